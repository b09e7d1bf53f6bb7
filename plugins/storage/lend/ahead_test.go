package lend_test

import (
	"context"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

const (
	roomy = 64 << 20 // a segment with room for every step
	// slack is what a file system may take beyond a small file's end for itself.
	slack = 128 << 10
)

// beyond tells how many bytes the first segment of the bench's partition n takes beyond its end.
func (b *bench) beyond(n int) int64 {
	b.t.Helper()
	p := part
	p.ID = partition.ID(n)
	info, err := vfs.OS().Stat(filepath.Join(b.data, "logs", p.String(), "00000000000000000000.log"))
	if err != nil {
		b.t.Fatal(err)
	}
	return info.Blocks - info.Size
}

// mustBeAhead has logs whose active segment holds blocks beyond its end.
func (b *bench) mustBeAhead(logs ...*lend.Log) {
	b.t.Helper()
	for i, l := range logs {
		mustAdd(b.t, l, "a")
		if got := b.beyond(i); got > slack {
			b.t.Fatalf("%d bytes after the first write, which may be the only one", got)
		}
		mustAdd(b.t, l, "b")
		if got := b.beyond(i); got < 1<<20-slack {
			b.t.Fatalf("%d bytes are preallocated", got)
		}
	}
}

func TestBlocksAheadAreGivenBack(t *testing.T) {
	for name, end := range map[string]func(*bench, *lend.Log) error{
		"at seal": func(b *bench, l *lend.Log) error {
			eventually(b.t, "it is rolled", func() bool { // which does nothing when another call seems to be under way
				return l.RollAged(context.Background()) == nil && l.Stats().Segments == 2
			})
			return nil
		},
		"at close": func(_ *bench, l *lend.Log) error { return l.Close(context.Background()) },
		"at park": func(b *bench, _ *lend.Log) error {
			for n := 1; n < 3; n++ {
				p := part
				p.ID = partition.ID(n)
				other, _, err := b.dir.Open(context.Background(), p, lend.OpenOptions{Create: true, Settings: lend.Settings{SegmentBytes: roomy}})
				if err != nil {
					return err
				}
				mustAdd(b.t, other, "x")
			}
			return nil
		},
		"when the core was killed": func(b *bench, _ *lend.Log) error {
			b.end()
			b.dir = lend.NewDir(lend.Options{FS: b.fs, Instance: "core-2", Budget: lend.NewBudget(2)})
			b.restartStore()
			b.runDir()
			if b.beyond(0) < 1<<20-slack {
				b.t.Fatal("a death gives nothing back")
			}
			b.openMany(1, false, lend.Settings{SegmentBytes: roomy})
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			l := b.openMany(1, true, lend.Settings{SegmentBytes: roomy, SegmentTime: 1})[0]
			b.mustBeAhead(l)
			if err := end(b, l); err != nil {
				t.Fatal(err)
			}
			if got := b.beyond(0); got > slack {
				t.Errorf("%d bytes are still there", got)
			}
		})
	}
}

func TestBlocksAheadDoubleAndEndWithTheSegment(t *testing.T) {
	b := newBench(t)
	const segment = 5 << 20
	l := b.open(true, segment)
	value := string(make([]byte, 256<<10))
	for l.Stats().Segments == 1 {
		mustAdd(t, l, value)
	}
	at, step := int64(0), int64(0)
	for _, c := range b.fs.Calls(faultfs.On(faultfs.Preallocate, "00000000000000000000.log")) {
		if c.Off < at || int64(c.Len) <= step && c.Off+int64(c.Len) != segment {
			t.Errorf("asked for %d+%d after a step of %d that ended at %d", c.Off, c.Len, step, at)
		}
		at, step = c.Off+int64(c.Len), int64(c.Len)
	}
	if at != segment {
		t.Errorf("blocks end at %d, the segment at %d", at, segment)
	}
}

func TestRefusedPreallocationIsNoError(t *testing.T) {
	for _, refusal := range []error{syscall.EOPNOTSUPP, syscall.ENOSPC, syscall.EDQUOT, syscall.EIO} {
		t.Run(refusal.Error(), func(t *testing.T) {
			b := newBench(t)
			l := b.open(true, roomy)
			// After: a part may have been given all the same.
			b.fs.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Preallocate, ""), Times: -1, Err: refusal, After: true})
			for _, v := range []string{"a", "b", "c"} {
				mustAdd(t, l, v)
			}
			want(t, read(t, l, 0), "a", "b", "c")
			full := refusal == syscall.ENOSPC || refusal == syscall.EDQUOT
			if got := b.beyond(0); full && got > slack {
				t.Errorf("a full disk has %d bytes less", got)
			}
			if n := len(b.fs.Calls(faultfs.On(faultfs.Preallocate, ""))); n != 1 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

func TestAFullDiskGetsBackWhatOthersHaveAhead(t *testing.T) {
	b := newBench(t)
	logs := b.openMany(2, true, lend.Settings{SegmentBytes: roomy})
	b.mustBeAhead(logs...)
	b.fs.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Write, "*.log"), Err: syscall.ENOSPC, Short: 10})
	if err := add(logs[1], "c"); err == nil {
		t.Fatal("the disk was not full")
	}
	eventually(t, "the other one's blocks are given back", func() bool { return b.beyond(0) <= slack })
	eventually(t, "records are taken again", func() bool { return add(logs[0], "c") == nil })
	want(t, read(t, logs[0], 0), "a", "b", "c")
}
