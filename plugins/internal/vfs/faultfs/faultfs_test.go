package faultfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
)

func newFile(t *testing.T) (*faultfs.FS, vfs.File, string) {
	t.Helper()
	fsys := faultfs.New(vfs.OS())
	path := filepath.Join(t.TempDir(), "f.log")
	f, err := fsys.Open(path, vfs.Create)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return fsys, f, path
}

func TestFaultsTakeTheCallsTheyMatch(t *testing.T) {
	fsys, f, _ := newFile(t)
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Sync, "*.log"), Skip: 1, Times: 2, Err: syscall.EIO})
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Sync, "*.other"), Times: -1, Err: syscall.EPERM})
	for i, want := range []error{nil, syscall.EIO, syscall.EIO, nil} {
		if err := f.Sync(); !errors.Is(err, want) {
			t.Errorf("sync %d: %v, want %v", i, err, want)
		}
	}
	fsys.Inject(faultfs.Fault{Times: -1, Err: syscall.EROFS})
	for range 3 {
		if err := f.Truncate(1); !errors.Is(err, syscall.EROFS) {
			t.Errorf("truncate: %v", err)
		}
	}
	fsys.Clear()
	if err := f.Truncate(1); err != nil {
		t.Errorf("truncate without faults: %v", err)
	}
}

func TestShortAndLostWrites(t *testing.T) {
	fsys, f, path := newFile(t)
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Write, ""), Short: 3, Err: syscall.ENOSPC})
	if n, err := f.WriteAt([]byte("hello"), 0); n != 3 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("short write: %d, %v", n, err)
	}
	if b, _ := os.ReadFile(path); string(b) != "hel" {
		t.Errorf("file holds %q", b)
	}
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Write, ""), After: true, Err: syscall.EIO})
	if n, err := f.WriteAt([]byte("world"), 0); n != 5 || !errors.Is(err, syscall.EIO) {
		t.Errorf("write whose answer was lost: %d, %v", n, err)
	}
	if b, _ := os.ReadFile(path); string(b) != "world" {
		t.Errorf("file holds %q", b)
	}
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Rename, ""), After: true, Err: syscall.EIO})
	if err := fsys.Rename(path, path+".2"); !errors.Is(err, syscall.EIO) {
		t.Errorf("rename: %v", err)
	}
	if _, err := os.Stat(path + ".2"); err != nil {
		t.Errorf("the rename was not done: %v", err)
	}
}

func TestCallsAreWrittenDown(t *testing.T) {
	fsys, f, path := newFile(t)
	again, err := fsys.Reopen(f)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	if _, err := again.WriteAt([]byte("xy"), 4); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(fsys.Probe(f), fsys.DropCache(f, 0), f.Truncate(2), fsys.Replace(path, path+".2")); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range fsys.Calls(faultfs.Changing) {
		got = append(got, c.String())
	}
	want := []string{"create " + path, "write " + path + " 4+2", "truncate " + path + " 2", "replace " + path + " " + path + ".2"}
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Fatalf("calls %q, want %q", got, want)
		}
	}
	if n := len(fsys.Calls(nil)); n != len(want)+3 {
		t.Errorf("%d calls in all", n)
	}
	fsys.Forget()
	if n := len(fsys.Calls(nil)); n != 0 {
		t.Errorf("%d calls after all were forgotten", n)
	}
}

func TestEveryOtherCallGoesThrough(t *testing.T) {
	fsys, f, path := newFile(t)
	dir := filepath.Dir(path)
	w := fsys.Wrap(vfs.FromFd(f.Fd(), "adopted"), "lent.log")
	if _, err := w.Stat(); err != nil {
		t.Error(err)
	}
	if w.Fd() != f.Fd() {
		t.Error("another descriptor")
	}
	sub := filepath.Join(dir, "sub")
	if err := errors.Join(fsys.Mkdir(sub), fsys.SyncDir(dir), fsys.RemoveAll(sub), fsys.Remove(path)); err != nil {
		t.Error(err)
	}
	if entries, err := fsys.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("entries %v, %v", entries, err)
	}
	if info, err := fsys.Stat(dir); err != nil || info.Regular {
		t.Errorf("stat: %+v, %v", info, err)
	}
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Create, ""), After: true, Err: syscall.EIO})
	if _, err := fsys.Open(path, vfs.Create); !errors.Is(err, syscall.EIO) {
		t.Errorf("open: %v", err)
	}
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Read, "lent.log"), Err: syscall.EIO})
	if _, err := w.ReadAt(make([]byte, 1), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("read: %v", err)
	}
}
