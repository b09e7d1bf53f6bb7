package filelog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

const reserveBytes = 1 << 20

func reserved(t *testing.T, dir string, fsys vfs.FS) (*filelog.Store, string) {
	t.Helper()
	s, err := filelog.New(filelog.Options{Data: dir, FS: fsys, Reserve: reserveBytes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	file := filepath.Join(dir, "logs", ".reserve")
	eventually(t, "reserve made", func() bool {
		info, err := os.Stat(file)
		return err == nil && info.Size() == reserveBytes
	})
	return s, file
}

func TestReserveIsSpentOnARollAndRestored(t *testing.T) {
	dir := t.TempDir()
	fsys := faultfs.New(vfs.OS())
	s, file := reserved(t, dir, fsys)
	ctx := context.Background()
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one")
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Create, "*.spare"), Times: -1, Err: syscall.ENOSPC})
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Create, "*.log"), Err: syscall.ENOSPC})
	w.Roll()
	if exists(file) {
		t.Error("the reserve is still there")
	}
	w.Append("two")
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Create, "*.log"), Err: syscall.ENOSPC})
	if _, err := s.Roll(ctx, w.RollRequest()); !errors.Is(err, storage.ErrFull) {
		t.Errorf("roll on a full disk without a reserve: %v", err)
	}
	for _, at := range []string{".reserve.tmp", "room"} {
		fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Allocate, at), Err: syscall.ENOSPC})
		if err := s.Room(ctx); !errors.Is(err, storage.ErrFull) {
			t.Errorf("room without space for %s: %v", at, err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "tmp", "*")); len(left) != 0 {
			t.Errorf("left: %q", left)
		}
	}
	if err := s.Room(ctx); err != nil {
		t.Errorf("room on a disk with space: %v", err)
	}
	if info, err := os.Stat(file); err != nil || info.Size() != reserveBytes {
		t.Errorf("reserve: %v, %v", info, err)
	}
	w.Roll()
}

func TestReserveIsSpentOnACheckpoint(t *testing.T) {
	dir := t.TempDir()
	fsys := faultfs.New(vfs.OS())
	s, file := reserved(t, dir, fsys)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 3, 10)
	w.Note()
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Write, logStart+".tmp"), Short: 2, Err: syscall.ENOSPC})
	if _, err := s.Trim(context.Background(), storage.TrimRequest{Partition: storagetest.Part(), Instance: "core", LogStart: 2}); err != nil {
		t.Errorf("trim on a full disk: %v", err)
	}
	if exists(file) {
		t.Error("the reserve is still there")
	}
}

func TestReserveWithoutAllocation(t *testing.T) {
	dir := t.TempDir()
	s, file := reserved(t, dir, plainFS{vfs.OS()})
	remove(t, file)
	if err := s.Room(context.Background()); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, make([]byte, reserveBytes)) {
		t.Errorf("reserve of %d bytes, %v", len(b), err)
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	none := newStore(t, dir, nil) // and who wants none gets none
	eventually(t, "reserve gone", func() bool { return !exists(file) })
	stop(t, none)
}

// plainFS is a file system that tells nothing of room.
type plainFS struct{ vfs.FS }

func TestReserveByDefaultIsMeasured(t *testing.T) {
	dir := t.TempDir()
	s, err := filelog.New(filelog.Options{Data: dir, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, s)
	volume, err := vfs.OS().(vfs.Room).Volume(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := min(64<<20, volume.Size/16)
	eventually(t, "reserve made", func() bool {
		info, err := os.Stat(filepath.Join(dir, "logs", ".reserve"))
		return err == nil && info.Size() == want
	})
}

func TestAFileSystemInMemoryMakesNothingDurable(t *testing.T) {
	for volatile, want := range map[bool]string{true: "memory", false: "disk"} {
		s := newStore(t, t.TempDir(), volatileFS{vfs.OS(), volatile})
		d, err := s.Describe(context.Background())
		if err != nil || d.Durability != want {
			t.Errorf("volatile %v: %+v, %v", volatile, d, err)
		}
		if err := d.Canary.Close(); err != nil {
			t.Error(err)
		}
	}
}

type volatileFS struct {
	vfs.FS
	volatile bool
}

func (f volatileFS) Volume(string) (vfs.Volume, error) { return vfs.Volume{Volatile: f.volatile}, nil }
func (f volatileFS) Allocate(vfs.File, int64) error    { return errors.ErrUnsupported }

// TestAPartitionThatEndsTheProcessIsSetAside lets the process die while it opens one partition, twice.
func TestAPartitionThatEndsTheProcessIsSetAside(t *testing.T) {
	for _, deaths := range []int{1, 2} {
		dir := t.TempDir()
		s := newStore(t, dir, nil)
		other := storagetest.Part()
		other.ID = 3
		for _, p := range []storage.Partition{storagetest.Part(), other} {
			w, _ := storagetest.NewWriter(t, s, storagetest.Creating(p, "core"))
			w.Append("one")
			w.Surrender()
		}
		stop(t, s)
		for range deaths {
			fsys := faultfs.New(vfs.OS())
			s := newStore(t, dir, fsys)
			fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Sync, "*.log"), Err: syscall.EIO})
			fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Remove, "opening"), Times: -1, Err: syscall.EIO})
			if _, err := s.Open(context.Background(), storagetest.Recover(storagetest.Part(), "core")); err == nil {
				t.Fatal("opened")
			}
		}
		fsys := faultfs.New(vfs.OS())
		s = newStore(t, dir, fsys)
		_, err := s.Open(context.Background(), storagetest.Recover(storagetest.Part(), "core"))
		if quarantined := errors.Is(err, storage.ErrQuarantined); quarantined != (deaths == 2) || !quarantined && err != nil {
			t.Errorf("after %d deaths: %v", deaths, err)
		}
		_, opened := storagetest.NewWriter(t, s, storagetest.Recover(other, "core"))
		if opened.Lease.Next != 1 {
			t.Errorf("the other one: %+v", opened)
		}
		if deaths < 2 {
			continue
		}
		aside := filepath.Join(dir, "quarantine", "orders-2."+storagetest.Part().TopicID)
		if err := os.Rename(aside, partDir(dir)); err != nil {
			t.Fatal(err)
		}
		_, opened = storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "core"))
		if opened.Lease.Next != 1 || exists(filepath.Join(partDir(dir), "opening")) {
			t.Errorf("put back: %+v", opened)
		}
	}
}

func TestAFailedOpenIsNoDeath(t *testing.T) {
	dir := t.TempDir()
	fsys := faultfs.New(vfs.OS())
	s := newStore(t, dir, fsys)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one")
	w.Let()
	for range 5 {
		fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Read, "*.log"), Err: syscall.EIO})
		if _, err := s.Open(context.Background(), storagetest.Recover(storagetest.Part(), "next")); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
	}
	storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
}

func TestTheMarkIsOnDiskBeforeTheScanAndGoneAfterIt(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one")
	w.Let()
	stop(t, s)
	fsys := faultfs.New(vfs.OS())
	s = newStore(t, dir, fsys)
	fsys.Forget()
	storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
	var got []string
	for _, c := range fsys.Calls(nil) {
		inside := filepath.Base(c.Path) == "orders-2" && c.Op == faultfs.SyncDir
		if inside || strings.HasPrefix(filepath.Base(c.Path), "opening") && c.Op.Changes() || strings.HasSuffix(c.Path, ".log") && c.Op == faultfs.Read {
			got = append(got, string(c.Op)+" "+filepath.Base(c.Path))
		}
	}
	text := strings.Join(got, ", ")
	if !strings.Contains(text, "sync opening.tmp, replace opening.tmp, syncdir orders-2, read 0") || !strings.HasSuffix(text, "remove opening, syncdir orders-2") {
		t.Errorf("calls: %s", text)
	}
}

// slowFS takes its time for every read of a segment.
type slowFS struct {
	vfs.FS
	each time.Duration
}

func (f slowFS) Open(path string, flag vfs.Flag) (vfs.File, error) {
	file, err := f.FS.Open(path, flag)
	if err != nil || !strings.HasSuffix(path, ".log") {
		return file, err
	}
	return slowFile{file, f.each}, nil
}

type slowFile struct {
	vfs.File
	each time.Duration
}

func (f slowFile) ReadAt(p []byte, off int64) (int, error) {
	<-time.After(f.each)
	return f.File.ReadAt(p, off)
}

// lines is a log that may be read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestRecoverySaysHowFarItIs(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	p := plant(t, dir, partition.ID(2), nil)
	stop(t, s)
	var segment []byte
	for i := range 8 {
		segment = append(segment, storagetest.Batch(record.Offset(i), 1, 7, strings.Repeat("x", 1<<20))...)
	}
	write(t, segmentFile(dir, 0), string(segment))
	synctest.Test(t, func(t *testing.T) {
		var log lines
		s, err := filelog.New(filelog.Options{Data: dir, FS: slowFS{vfs.OS(), 400 * time.Millisecond}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		var reports []storage.Progress
		ctx := storage.WithProgress(context.Background(), func(p storage.Progress) { reports = append(reports, p) })
		begin := time.Now()
		opened, err := s.Open(ctx, storagetest.Recover(p, "core"))
		if err != nil {
			t.Fatal(err)
		}
		_ = opened.Lease.File.Close()
		took := int(time.Since(begin) / time.Second)
		if n := strings.Count(log.String(), "msg=recovering"); n < took-1 || n > took || took < 3 {
			t.Errorf("%d lines in %d seconds:\n%s", n, took, log.String())
		}
		if !strings.Contains(log.String(), "partition=orders-2 percent=") {
			t.Errorf("log: %s", log.String())
		}
		if last := reports[len(reports)-1]; len(reports) < 8 || last.Done != int64(len(segment)) || last.Total != int64(len(segment)) {
			t.Errorf("reports %+v of %d bytes", reports, len(segment))
		}
		if err := s.Stop(); err != nil {
			t.Error(fmt.Errorf("stop: %w", err))
		}
	})
}
