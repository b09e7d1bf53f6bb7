package filelog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// plant puts a partition's directory together by hand: one segment of those bytes.
func plant(t *testing.T, dir string, id partition.ID, segment []byte) storage.Partition {
	t.Helper()
	p := storagetest.Part()
	p.ID = id
	path := filepath.Join(dir, "logs", p.String())
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	metadata, err := kafkalog.PartitionMetadata(p.TopicID)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(path, kafkalog.PartitionMetadataName), string(metadata))
	write(t, filepath.Join(path, kafkalog.EpochCheckpointName), "0\n1\n1 0\n")
	write(t, filepath.Join(path, kafkalog.SegmentName(0)), string(segment))
	return p
}

// TestDamageAtEveryByte cuts a segment of three batches at every byte, flips every byte, and turns every suffix into
// zeros: what is left is always the batches before the damage, and never a record that nobody wrote.
func TestDamageAtEveryByte(t *testing.T) {
	values := [][]string{{"one", "two"}, {"three"}, {"four", "", "six"}}
	var whole []byte
	var ends []int
	next := record.Offset(0)
	for _, v := range values {
		b := storagetest.Batch(next, 1, 7, v...)
		whole, next = append(whole, b...), b.NextOffset()
		ends = append(ends, len(whole))
	}
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	id := partition.ID(0)
	check := func(what string, segment []byte, damage int) {
		id++
		p := plant(t, dir, id, segment)
		w, opened := storagetest.NewWriter(t, s, storagetest.Recover(p, "core"))
		var want []string
		sound := 0
		for i, e := range ends {
			if e <= damage {
				want, sound = append(want, values[i]...), e
			}
		}
		got := storagetest.Read(t, s, p, opened.Lease.Next)
		if !slices.Equal(got, want) {
			t.Errorf("%s: recovered %q, want %q", what, got, want)
		}
		switch c := opened.Cut; {
		case sound == len(segment):
			if c != nil {
				t.Errorf("%s: cut %+v", what, *c)
			}
		case c == nil || c.Bytes != int64(len(segment)-sound) || c.Offset != record.Offset(len(want)) || c.Dirty:
			t.Errorf("%s: cut is %+v", what, c)
		default:
			saved, err := os.ReadFile(filepath.Join(dir, "logs", p.String(), c.SavedAs))
			if err != nil || !bytes.Equal(saved, segment[sound:]) {
				t.Errorf("%s: saved %d bytes, %v, want %d", what, len(saved), err, len(segment)-sound)
			}
		}
		w.Append("after")
		w.Surrender()
	}
	for n := range len(whole) + 1 {
		check(fmt.Sprintf("cut at %d", n), whole[:n], n)
	}
	for n := range whole {
		flipped := bytes.Clone(whole)
		flipped[n] ^= 0x10
		check(fmt.Sprintf("flipped at %d", n), flipped, n)
	}
	for n := range whole {
		zeroed := bytes.Clone(whole)
		clear(zeroed[n:])
		damage := n
		for damage < len(whole) && whole[damage] == 0 { // zeros that were there are no damage
			damage++
		}
		check(fmt.Sprintf("zeros from %d", n), zeroed, damage)
	}
}

func TestTornOrDirty(t *testing.T) {
	big := strings.Repeat("x", 3<<20)
	kept := storagetest.Batch(0, 1, 7, "kept")
	for name, c := range map[string]struct {
		tail  []byte
		dirty bool
	}{
		"zeros of one group":              {make([]byte, 1<<20), false},
		"zeros of more":                   {make([]byte, 1<<20+1), true},
		"garbage of more":                 {bytes.Repeat([]byte("junk"), 300_000), true},
		"one large batch, cut short":      {storagetest.Batch(1, 1, 7, big)[:3<<20], false},
		"one large batch, its end zeroed": {append(storagetest.Batch(1, 1, 7, big)[:2<<20], make([]byte, 1<<20)...), false},
		"a large batch and more":          {append(flip(storagetest.Batch(1, 1, 7, big)), 0), true},
		"a large batch of elsewhere":      {storagetest.Batch(9, 1, 7, big)[:3<<20], true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := newStore(t, dir, nil)
			p := plant(t, dir, 2, append(bytes.Clone(kept), c.tail...))
			_, opened := storagetest.NewWriter(t, s, storagetest.Recover(p, "core"))
			if opened.Cut == nil || opened.Cut.Dirty != c.dirty || opened.Cut.Bytes != int64(len(c.tail)) {
				t.Fatalf("cut is %+v, want dirty %v", opened.Cut, c.dirty)
			}
			saved, err := os.ReadFile(filepath.Join(partDir(dir), opened.Cut.SavedAs))
			if err != nil || !bytes.Equal(saved, c.tail) {
				t.Errorf("saved %d bytes of %d, %v", len(saved), len(c.tail), err)
			}
			if got := storagetest.Read(t, s, p, opened.Lease.Next); !slices.Equal(got, []string{"kept"}) {
				t.Errorf("read %q", got)
			}
		})
	}
}

func flip(b []byte) []byte {
	b[len(b)/2] ^= 1
	return b
}

// threeSegments writes one batch into each of three segments and lets the core die.
func threeSegments(t *testing.T, s storage.Store) {
	t.Helper()
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one", "two")
	w.Roll()
	w.Append("three")
	w.Roll()
	w.Append("four")
	w.Let()
}

// restart ends a store and starts another on the same directory, which knows nothing of how far the log was synced: all
// of it is scanned.
func restart(t *testing.T, s *filelog.Store, dir string, fsys vfs.FS) *filelog.Store {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	remove(t, filepath.Join(dir, "logs", "recovery-point-offset-checkpoint.by-id"))
	return newStore(t, dir, fsys)
}

// damage flips a bit in the middle of a segment.
func damage(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, flip(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDamageWithRecordsAfterItIsQuarantined(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"a flipped bit":     func(t *testing.T, dir string) { damage(t, segmentFile(dir, 2)) },
		"in the first":      func(t *testing.T, dir string) { damage(t, segmentFile(dir, 0)) },
		"a missing segment": func(t *testing.T, dir string) { remove(t, segmentFile(dir, 2)) },
		"an empty segment":  func(t *testing.T, dir string) { truncate(t, segmentFile(dir, 2), 0) },
		"a short segment":   func(t *testing.T, dir string) { truncate(t, segmentFile(dir, 2), 70) },
		"a segment twice": func(t *testing.T, dir string) {
			b, err := os.ReadFile(segmentFile(dir, 2))
			if err != nil {
				t.Fatal(err)
			}
			write(t, segmentFile(dir, 2), string(b)+string(storagetest.Batch(3, 1, 7, "other")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := newStore(t, dir, nil)
			threeSegments(t, s)
			s = restart(t, s, dir, nil)
			spoil(t, dir)
			before := names(t, partDir(dir))
			ctx := context.Background()
			for range 2 {
				_, err := s.Open(ctx, storagetest.Recover(storagetest.Part(), "next"))
				if !errors.Is(err, storage.ErrQuarantined) || errors.Is(err, storage.ErrDataMissing) {
					t.Errorf("open: %v", err)
				}
			}
			s = newStore(t, dir, nil) // it is not forgotten with the process
			for _, r := range []storage.OpenRequest{
				storagetest.Recover(storagetest.Part(), "next"), storagetest.Creating(storagetest.Part(), "next"),
			} {
				if _, err := s.Open(ctx, r); !errors.Is(err, storage.ErrQuarantined) {
					t.Errorf("open in the next life: %v", err)
				}
			}
			aside := filepath.Join(dir, "quarantine", "orders-2."+storagetest.Part().TopicID)
			for _, n := range before {
				if !exists(filepath.Join(aside, n)) && !strings.HasSuffix(n, ".spare") {
					t.Errorf("%s did not come along", n)
				}
			}
			if why, err := os.ReadFile(filepath.Join(aside, "quarantine-reason")); err != nil || !strings.Contains(string(why), "offset") {
				t.Errorf("reason %q, %v", why, err)
			}
			if exists(partDir(dir)) {
				t.Error("it is still under logs/")
			}
			other := storagetest.Part()
			other.ID = 3
			storagetest.NewWriter(t, s, storagetest.Creating(other, "next"))
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func TestOperatorPutsAQuarantinedPartitionBack(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	threeSegments(t, s)
	s = restart(t, s, dir, nil)
	damage(t, segmentFile(dir, 2))
	if _, err := s.Open(context.Background(), storagetest.Recover(storagetest.Part(), "next")); !errors.Is(err, storage.ErrQuarantined) {
		t.Fatalf("open: %v", err)
	}
	aside := filepath.Join(dir, "quarantine", "orders-2."+storagetest.Part().TopicID)
	damage(t, filepath.Join(aside, kafkalog.SegmentName(2))) // the same bit again: repaired
	if err := os.Rename(aside, partDir(dir)); err != nil {
		t.Fatal(err)
	}
	_, opened := storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
	if opened.Lease.Next != 4 || opened.Cut != nil {
		t.Errorf("opened %+v", opened)
	}
}

func TestSealedSegmentThatLostItsEnd(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one")
	w.Append("two")
	w.Roll()
	w.Let()
	s = restart(t, s, dir, nil)
	damage := storagetest.Batch(1, 1, 2, "two")
	info, err := os.Stat(segmentFile(dir, 0))
	if err != nil {
		t.Fatal(err)
	}
	truncate(t, segmentFile(dir, 0), info.Size()-int64(len(damage)))
	_, opened := storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
	if c := opened.Cut; c == nil || !c.Dirty || c.Offset != 1 || opened.Lease.Base != 0 {
		t.Errorf("opened %+v with cut %+v", opened.Lease, opened.Cut)
	}
	if exists(segmentFile(dir, 2)) {
		t.Error("the empty segment above the end is still there")
	}
}

func TestPartitionWithoutSegmentsIsMissing(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	p := plant(t, dir, 2, nil)
	remove(t, segmentFile(dir, 0))
	if _, err := s.Open(context.Background(), storagetest.Creating(p, "core")); !errors.Is(err, storage.ErrDataMissing) {
		t.Errorf("open: %v", err)
	}
	if err := os.Mkdir(segmentFile(dir, 0), 0o700); err != nil {
		t.Fatal(err)
	}
	if o, err := s.Open(context.Background(), storagetest.Recover(p, "core")); err == nil {
		t.Errorf("a directory was opened as a segment: %+v", o)
	}
}

func TestCutBelowACeilingLeavesTheOldInodeAlone(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, opened := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one")
	w.Append("two")
	reader, err := vfs.OS().Open(segmentFile(dir, 0), vfs.Read) // what a socket's queue may still point to
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	size := w.Position()
	w.Let()
	s = newStore(t, dir, nil)
	r := storagetest.Recover(storagetest.Part(), "core")
	r.Ceiling = 1
	_, again := storagetest.NewWriter(t, s, r)
	if again.Lease.Next != 1 || again.Lease.Ino == opened.Lease.Ino {
		t.Errorf("cut to %+v, and before it was inode %d", again.Lease, opened.Lease.Ino)
	}
	if info, err := reader.Stat(); err != nil || info.Size != size {
		t.Errorf("the old inode has %d bytes of %d, %v", info.Size, size, err)
	}
}

func TestCutOverSegmentsWithACeiling(t *testing.T) {
	for name, c := range map[string]struct {
		ceiling, next record.Offset
		dirty         bool
		removed       []record.Offset // highest first, or a crash leaves a gap
	}{
		"on a segment's edge":  {2, 2, false, []record.Offset{3}},
		"inside the first one": {1, 0, true, []record.Offset{3, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := newStore(t, dir, nil)
			threeSegments(t, s)
			fsys := faultfs.New(vfs.OS())
			s = restart(t, s, dir, fsys)
			damage(t, segmentFile(dir, 2)) // above the ceiling: nothing that was confirmed
			r := storagetest.Recover(storagetest.Part(), "core")
			r.Ceiling = c.ceiling
			_, opened := storagetest.NewWriter(t, s, r)
			if opened.Lease.Next != c.next || opened.Cut == nil || opened.Cut.Dirty != c.dirty {
				t.Errorf("opened %+v, cut %+v", opened.Lease, opened.Cut)
			}
			var removed []record.Offset
			for _, call := range fsys.Calls(faultfs.On(faultfs.Remove, "*.log")) {
				base, _ := kafkalog.ParseSegmentName(filepath.Base(call.Path))
				removed = append(removed, base)
			}
			if !slices.Equal(removed, c.removed) {
				t.Errorf("removed %v, want %v", removed, c.removed)
			}
			if exists(segmentFile(dir, 3)) || !exists(filepath.Join(partDir(dir), "00000000000000000003.cut-0")) {
				t.Errorf("left: %q", names(t, partDir(dir)))
			}
		})
	}
}

func TestSavedCutsAreKeptApart(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	plant(t, dir, 2, nil)
	cut := func(tail string) string {
		t.Helper()
		write(t, segmentFile(dir, 0), tail)
		w, opened := storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "core"))
		w.Surrender()
		if opened.Cut == nil {
			t.Fatal("nothing was cut")
		}
		return opened.Cut.SavedAs
	}
	first := cut("junk")
	if again := cut("junk"); again != first {
		t.Errorf("the same bytes were saved as %s and %s", first, again)
	}
	if other := cut("jank"); other == first {
		t.Errorf("other bytes were saved over %s", first)
	}
	if b, err := os.ReadFile(filepath.Join(partDir(dir), first)); err != nil || string(b) != "junk" {
		t.Errorf("first copy is %q, %v", b, err)
	}
}

// TestCrashAtEveryCallOfARecovery lets a recovery that has to cut two segments die at each of its calls; whatever was
// done by then, the next one ends with the same log, and knows that records are missing.
func TestCrashAtEveryCallOfARecovery(t *testing.T) {
	for at := 0; ; at++ {
		dir := t.TempDir()
		s := newStore(t, dir, nil)
		w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
		w.Append("one")
		w.Append("two")
		w.Roll()
		w.Let()
		fsys := faultfs.New(vfs.OS())
		dying := restart(t, s, dir, fsys)
		truncate(t, segmentFile(dir, 0), w.Lease().Position+80)      // inside the second batch
		write(t, segmentFile(dir, 2), strings.Repeat("garbage ", 9)) // and no record after it
		fsys.Inject(faultfs.Fault{Match: faultfs.Changing, Skip: at, Times: -1, Err: syscall.EIO})
		_, err := dying.Open(context.Background(), storagetest.Recover(storagetest.Part(), "next"))
		if err == nil {
			if at < 12 {
				t.Errorf("recovery makes only %d calls", at)
			}
			return
		}
		s = newStore(t, dir, nil)
		w, opened := storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "after"))
		done := opened.Lease.Next == 1 && len(opened.Sealed) == 0
		if !done || !(opened.Cut != nil && opened.Cut.Dirty) && !lastCall(fsys) {
			t.Errorf("crash at call %d (%v): opened %+v, cut %+v", at, err, opened.Lease, opened.Cut)
		}
		if got := storagetest.Read(t, s, storagetest.Part(), 1); !slices.Equal(got, []string{"one"}) {
			t.Errorf("crash at call %d: read %q", at, got)
		}
		saved, err := filepath.Glob(filepath.Join(partDir(dir), "*.cut-*"))
		if err != nil || len(saved) != 2 {
			t.Errorf("crash at call %d: saved %q, %v", at, saved, err)
		}
		w.Append("three")
		w.Surrender()
	}
}

// lastCall reports whether all that failed was the sync after the mark of an unfinished cut was taken away: the cut
// itself was over then.
func lastCall(fsys *faultfs.FS) bool {
	return len(fsys.Calls(faultfs.On(faultfs.Remove, "cut-pending"))) > 0
}

// TestCrashAtEveryCall lets the store die at each call of a partition's life. What the core wrote and synced is there
// afterwards, unless the partition was on its way out.
func TestCrashAtEveryCall(t *testing.T) {
	for at := 0; ; at++ {
		dir := t.TempDir()
		fsys := faultfs.New(vfs.OS())
		dying := newStore(t, dir, fsys)
		fsys.Inject(faultfs.Fault{Match: faultfs.Changing, Skip: at, Times: -1, Err: syscall.EIO})
		wrote, deleting, err := life(t, dying)
		_ = dying.Stop() // its spares fail too
		if err == nil {
			return
		}
		s := newStore(t, dir, nil)
		r := storagetest.Creating(storagetest.Part(), "next")
		w, opened := storagetest.NewWriter(t, s, r)
		got := storagetest.Read(t, s, storagetest.Part(), opened.Lease.Next)
		if opened.Cut != nil || !slices.Equal(got, wrote) && !(deleting && len(got) == 0) {
			t.Errorf("crash at call %d (%v): wrote %q, read %q, cut %+v", at, err, wrote, got, opened.Cut)
		}
		w.Append("on")
		w.Roll()
		w.Append("and on")
		w.Surrender()
	}
}

// life is the calls of a core on one partition, up to the first that fails.
func life(t *testing.T, s storage.Store) (wrote []string, deleting bool, err error) {
	ctx := context.Background()
	opened, err := s.Open(ctx, storagetest.Creating(storagetest.Part(), "core"))
	if err != nil {
		return nil, false, err
	}
	path := fmt.Sprintf("/proc/self/fd/%d", opened.Lease.File.Fd())
	for i := range 3 {
		value := fmt.Sprint("record ", i)
		batch := storagetest.Batch(record.Offset(i), 1, 7, value)
		if err := os.WriteFile(path, batch, 0o600); err != nil {
			t.Fatal(err)
		}
		wrote = append(wrote, value)
		l, err := s.Roll(ctx, storage.RollRequest{
			Partition: storagetest.Part(), Instance: "core", Lease: opened.Lease.Epoch,
			Position: int64(len(batch)), Next: record.Offset(i + 1), MaxTimestamp: 7,
		})
		if err != nil {
			return wrote, false, errors.Join(err, opened.Lease.File.Close())
		}
		_ = opened.Lease.File.Close()
		opened.Lease = l
		path = fmt.Sprintf("/proc/self/fd/%d", l.File.Fd())
	}
	_ = opened.Lease.File.Close()
	return wrote, true, s.Delete(ctx, storagetest.Part())
}
