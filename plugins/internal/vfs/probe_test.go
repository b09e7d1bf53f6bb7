package vfs_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
)

// TestProbeTellsAFullDiskFromADeadOne asks for a block that is there already: on a disk without any other one, and then
// after the file system was shut down.
func TestProbeTellsAFullDiskFromADeadOne(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			at := mount(t, kind)
			f := create(t, filepath.Join(at, "canary"))
			if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Sync(), vfs.OS().Probe(f)); err != nil {
				t.Fatalf("with room: %v", err)
			}
			fill(t, at)
			if err := vfs.OS().Probe(f); err != nil {
				t.Errorf("on a full disk: %v", err)
			}
			shutDown(t, at)
			if err := vfs.OS().Probe(f); err == nil {
				t.Error("a full disk that was shut down takes writes")
			}
		})
	}
}

// fill takes every block that can be had.
func fill(t *testing.T, at string) {
	t.Helper()
	f := create(t, filepath.Join(at, "ballast"))
	end := int64(0)
	for step := int64(64 << 20); step >= 512; {
		switch err := unix.Fallocate(f.Fd(), 0, end, step); {
		case err == nil:
			end += step
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		default:
			t.Fatal(err)
		}
	}
}

// shutDown does what the loss of a disk does.
func shutDown(t *testing.T, at string) {
	t.Helper()
	const (
		shutdownCall = 0x8004587d // FS_IOC_SHUTDOWN
		noFlush      = 2
	)
	d, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	err = unix.IoctlSetPointerInt(int(d.Fd()), shutdownCall, noFlush)
	if err := errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
}

// mount makes a file system in a file and mounts it.
func mount(t *testing.T, kind string) string {
	t.Helper()
	missing := t.Skipf
	if os.Getenv("TRUNKLINE_TEST_REQUIRE") != "" {
		missing = t.Fatalf
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 320<<20), os.Mkdir(at, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{{"mkfs." + kind, "-q", image}, {"mount", "-o", "loop", image, at}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			missing("%q: %v\n%s", command, err, out)
		}
	}
	t.Cleanup(func() {
		// Files that the test closes in its own cleanup are closed by now.
		for end := time.Now().Add(10 * time.Second); syscall.Unmount(at, 0) != nil; <-time.After(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s stays in use", at)
			}
		}
	})
	return at
}
