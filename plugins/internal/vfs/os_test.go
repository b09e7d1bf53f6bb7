package vfs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
)

func create(t *testing.T, path string) vfs.File {
	t.Helper()
	f, err := vfs.OS().Open(path, vfs.Create)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestReadAndWriteAtOffsets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f := create(t, path)
	big := bytes.Repeat([]byte("0123456789abcdef"), 20_000) // several pieces, and a rest
	if n, err := f.WriteAt(big, 7); n != len(big) || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(big))
	if n, err := f.ReadAt(got, 7); n != len(big) || err != nil || !bytes.Equal(got, big) {
		t.Errorf("read: %d, %v", n, err)
	}
	if n, err := f.ReadAt(got, 8); n != len(big)-1 || !errors.Is(err, io.EOF) {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if n, err := f.ReadAt(nil, 1<<40); n != 0 || err != nil {
		t.Errorf("read of nothing: %d, %v", n, err)
	}
	if err := f.Truncate(3); err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil || info.Size != 3 || !info.Regular || info.Links != 1 {
		t.Errorf("stat: %+v, %v", info, err)
	}
	byName, err := vfs.OS().Stat(path)
	byName.Blocks = info.Blocks // the kernel may count them anew in between
	if err != nil || byName != info {
		t.Errorf("stat by name: %+v, %v, want %+v", byName, err, info)
	}
}

func TestOpenFlags(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, flag := range []vfs.Flag{vfs.Read, vfs.Write} {
		if _, err := vfs.OS().Open(path, flag); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open of nothing with %d: %v", flag, err)
		}
	}
	create(t, path)
	if _, err := vfs.OS().Open(path, vfs.Create); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create of what is there: %v", err)
	}
	if _, err := vfs.OS().Open(path, vfs.Flag(9)); err == nil {
		t.Error("opened with a flag that does not exist")
	}
	r, err := vfs.OS().Open(path, vfs.Read)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := r.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.EBADF) {
		t.Errorf("write to a file opened for reading: %v", err)
	}
	flags, err := unix.FcntlInt(uintptr(r.Fd()), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %x, %v: a child would inherit it", flags, err)
	}
}

func TestReopenSharesTheInodeAndNothingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f := create(t, path)
	if err := os.Rename(path, path+".moved"); err != nil { // it goes by the inode, not by the name
		t.Fatal(err)
	}
	again, err := vfs.OS().Reopen(f)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	a, errA := f.Stat()
	b, errB := again.Stat()
	if errors.Join(errA, errB) != nil || a != b {
		t.Errorf("reopened %+v as %+v, %v %v", a, b, errA, errB)
	}
	if _, err := unix.FcntlInt(uintptr(f.Fd()), unix.F_SETFL, unix.O_APPEND); err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(uintptr(again.Fd()), unix.F_GETFL, 0); err != nil || flags&unix.O_APPEND != 0 {
		t.Errorf("flags %x, %v: the description is shared", flags, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := again.WriteAt([]byte("x"), 0); err != nil {
		t.Errorf("write after the other was closed: %v", err)
	}
	if _, err := vfs.OS().Reopen(vfs.FromFd(-1, "none")); err == nil {
		t.Error("reopened a file without a descriptor")
	}
}

func TestClosedFile(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "f"))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	_, readErr := f.ReadAt(make([]byte, 1), 0)
	_, writeErr := f.WriteAt(make([]byte, 1), 0)
	_, statErr := f.Stat()
	for what, err := range map[string]error{
		"close": f.Close(), "read": readErr, "write": writeErr, "stat": statErr, "sync": f.Sync(), "truncate": f.Truncate(1),
	} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s after close: %v", what, err)
		}
	}
}

// TestCloseBesideCalls closes files under writers: a writer may meet fs.ErrClosed and never another file.
func TestCloseBesideCalls(t *testing.T) {
	dir := t.TempDir()
	victim := create(t, filepath.Join(dir, "victim"))
	if _, err := victim.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		f, err := vfs.OS().Open(filepath.Join(dir, "f"), vfs.Create)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					if _, err := f.WriteAt([]byte("stray"), 0); err != nil {
						if !errors.Is(err, fs.ErrClosed) {
							t.Errorf("write: %v", err)
						}
						return
					}
				}
			})
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		// Takes the number of the closed descriptor, if it is free.
		other, err := vfs.OS().Open(filepath.Join(dir, "victim"), vfs.Write)
		if err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		_ = other.Close()
		if err := vfs.OS().Remove(filepath.Join(dir, "f")); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 4096)
	if _, err := victim.ReadAt(got, 0); err != nil || !bytes.Equal(got, make([]byte, 4096)) {
		t.Errorf("another file was written to: %q, %v", got[:8], err)
	}
}

func TestRenameDoesNotReplace(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	create(t, a)
	create(t, b)
	if err := vfs.OS().Rename(a, b); !errors.Is(err, fs.ErrExist) {
		t.Errorf("rename over a file: %v", err)
	}
	if err := vfs.OS().Replace(a, b); err != nil {
		t.Errorf("replace: %v", err)
	}
	if err := vfs.OS().Rename(a, b); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("rename of nothing: %v", err)
	}
	if err := vfs.OS().Rename(b, a); err != nil {
		t.Errorf("rename: %v", err)
	}
}

func TestDirectories(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := vfs.OS().Mkdir(dir); err != nil {
		t.Fatal(err)
	}
	if err := vfs.OS().Mkdir(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second mkdir: %v", err)
	}
	create(t, filepath.Join(dir, "f"))
	if err := vfs.OS().SyncDir(dir); err != nil {
		t.Error(err)
	}
	if err := vfs.OS().SyncDir(filepath.Join(dir, "f")); err == nil {
		t.Error("synced a file as a directory")
	}
	if entries, err := vfs.OS().ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("entries %v, %v", entries, err)
	}
	if err := vfs.OS().RemoveAll(dir); err != nil {
		t.Error(err)
	}
	if _, err := vfs.OS().Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat: %v", err)
	}
}

func TestProbeAndDropCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f := create(t, path)
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), vfs.OS().Probe(f), vfs.OS().DropCache(f, 0)); err != nil {
		t.Error(err)
	}
	if info, err := f.Stat(); err != nil || info.Size != 4096 {
		t.Errorf("the probe changed the file: %+v, %v", info, err)
	}
	r, err := vfs.OS().Open(path, vfs.Read)
	if err != nil {
		t.Fatal(err)
	}
	if err := vfs.OS().Probe(r); err == nil {
		t.Error("a file that takes no writes passed the probe")
	}
	_ = r.Close()
	if err := vfs.OS().DropCache(vfs.FromFd(-1, "none"), 0); err == nil {
		t.Error("dropped the cache of nothing")
	}
}

func TestWriteToAFullDeviceSaysWhy(t *testing.T) {
	if f, err := os.OpenFile("/dev/full", os.O_RDWR, 0); err != nil {
		t.Skip("no /dev/full here")
	} else {
		_ = f.Close()
	}
	f, err := vfs.OS().Open("/dev/full", vfs.Write)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if n, err := f.WriteAt(make([]byte, 100_000), 0); n != 0 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write to a full device: %d, %v", n, err)
	}
	if info, err := f.Stat(); err != nil || info.Regular {
		t.Errorf("a device is a regular file: %+v, %v", info, err)
	}
}
