package vfs_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
)

func TestRoom(t *testing.T) {
	room, ok := vfs.OS().(vfs.Room)
	if !ok {
		t.Fatal("OS tells nothing about room")
	}
	dir := t.TempDir()
	v, err := room.Volume(dir)
	if err != nil || v.Size <= 0 || v.Free < 0 || v.Free > v.Size {
		t.Errorf("volume %+v, %v", v, err)
	}
	if _, err := room.Volume(filepath.Join(dir, "none")); err == nil {
		t.Error("a volume of nothing")
	}
	f, err := vfs.OS().Open(filepath.Join(dir, "f"), vfs.Create)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := room.Allocate(f, 1<<20); err != nil {
		t.Fatal(err)
	}
	if info, err := f.Stat(); err != nil || info.Size != 1<<20 {
		t.Errorf("allocated %+v, %v", info, err)
	}
}

func TestMemoryIsVolatile(t *testing.T) {
	const shm = "/dev/shm"
	if _, err := os.Stat(shm); err != nil {
		t.Skip("no tmpfs to look at: " + shm + " is not there")
	}
	v, err := vfs.OS().(vfs.Room).Volume(shm)
	if err != nil || !v.Volatile {
		t.Errorf("%s is %+v, %v", shm, v, err)
	}
}
