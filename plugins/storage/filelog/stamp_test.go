package filelog_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func stampsPath(dir string) string { return filepath.Join(partDir(dir), "segment-times") }

// stampedUpTo waits until the file has a line for the segment with that base.
func stampedUpTo(t *testing.T, dir string, base int) {
	t.Helper()
	eventually(t, fmt.Sprintf("segment %d has its stamp", base), func() bool {
		b, _ := os.ReadFile(stampsPath(dir))
		return strings.Contains(string(b), fmt.Sprintf("\n%d ", base))
	})
}

// TestStampsAreAppended counts what is written of them over many rolls.
func TestStampsAreAppended(t *testing.T) {
	dir := t.TempDir()
	fsys := faultfs.New(vfs.OS())
	s := newStore(t, dir, fsys)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	const rolls = 100
	for i := range rolls {
		w.Append("x")
		w.Roll()
		stampedUpTo(t, dir, i)
	}
	written := 0
	for _, c := range fsys.Calls(faultfs.On(faultfs.Write, "segment-times*")) {
		written += c.Len
	}
	info, err := os.Stat(stampsPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	if written > 2*int(info.Size()) {
		t.Errorf("%d bytes were written for a file of %d", written, info.Size())
	}
	if n := len(fsys.Calls(faultfs.On(faultfs.Replace, "segment-times"))); n != 1 {
		t.Errorf("the file was replaced %d times, once is needed", n)
	}
}

func TestStampsOfSegmentsThatAreGoneAreDropped(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	for i := range 200 {
		w.Append("x")
		w.Roll()
		stampedUpTo(t, dir, i)
		if _, err := s.Trim(context.Background(), storage.TrimRequest{
			Partition: storagetest.Part(), Instance: "core", LogStart: record.Offset(i + 1),
		}); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(stampsPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "\n"); n > 80 {
		t.Errorf("%d lines, and one segment", n)
	}
}

// TestTornStampIsOfNow damages the last line, as a power loss does.
func TestTornStampIsOfNow(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"cut":     func(b []byte) []byte { return b[:len(b)-5] },
		"flipped": func(b []byte) []byte { b[len(b)-12] ^= 1; return b },
		"zeros":   func(b []byte) []byte { clear(b[len(b)-10:]); return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			clock := &handClock{wall: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
			begin := func() *filelog.Store {
				s, err := filelog.New(filelog.Options{Data: dir, Clock: clock})
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			s := begin()
			w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
			for i := range 2 {
				w.Append("x")
				w.Roll()
				stampedUpTo(t, dir, i)
			}
			clock.wall, clock.elapsed = clock.wall.AddDate(0, 0, 1), clock.elapsed+24*time.Hour
			w.Let()
			stop(t, s)
			b, err := os.ReadFile(stampsPath(dir))
			if err != nil {
				t.Fatal(err)
			}
			write(t, stampsPath(dir), string(damage(b)))
			s = begin()
			defer stop(t, s)
			w, _ = storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
			defer w.Let()
			got, err := s.Expire(context.Background(), storage.ExpireRequest{
				Partition: storagetest.Part(), Instance: "next", RetentionTime: 12 * time.Hour, RetentionBytes: -1, Limit: 99,
			})
			if err != nil || got != 1 {
				t.Errorf("retention takes up to %d, %v; the first segment is a day old, the second counts as new", got, err)
			}
			eventually(t, "the file is whole again", func() bool {
				b, _ := os.ReadFile(stampsPath(dir))
				return strings.Count(string(b), "\n") == 3
			})
		})
	}
}

func TestStampThatCannotBeAppendedIsWrittenLater(t *testing.T) {
	dir := t.TempDir()
	fsys := faultfs.New(vfs.OS())
	s := newStore(t, dir, fsys)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("x")
	w.Roll()
	stampedUpTo(t, dir, 0)
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Write, "segment-times"), Err: syscall.EIO, Short: 3})
	w.Append("x")
	w.Roll()
	eventually(t, "the write failed", func() bool { return len(fsys.Calls(faultfs.On(faultfs.Write, "segment-times"))) > 0 })
	w.Append("x")
	w.Roll()
	for base := range 3 {
		stampedUpTo(t, dir, base)
	}
	if err := s.Stop(); err == nil {
		t.Error("what went wrong is not said")
	}
}
