package chaos

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// disk is a file system of its own, in an image that is mounted by way of a loop device.
type disk struct {
	t     *testing.T
	image string
	at    string // where it is mounted
}

// newDisk makes a file system of a kind, "ext4" or "xfs", with a journal, and mounts it.
func newDisk(t *testing.T, kind string) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	for _, program := range []string{"mkfs." + kind, "mount", "umount"} {
		if _, err := exec.LookPath(program); err != nil {
			harness.Missing(t, "%s is not installed; make test installs it", program)
		}
	}
	dir := t.TempDir()
	d := &disk{t: t, image: filepath.Join(dir, "image"), at: filepath.Join(dir, "mount")}
	const imageBytes = 320 << 20 // the least that mkfs.xfs takes is 300 MiB
	if err := errors.Join(os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, imageBytes), os.Mkdir(d.at, 0o700)); err != nil {
		t.Fatal(err)
	}
	d.run("mkfs."+kind, "-q", d.image)
	if err := d.tryMount(); err != nil {
		harness.Missing(t, "%v", err)
	}
	t.Cleanup(d.unmount)
	return d
}

func (d *disk) run(program string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

func (d *disk) tryMount() error {
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.at).CombinedOutput(); err != nil {
		return fmt.Errorf("mount by way of a loop device: %w\n%s", err, out)
	}
	return nil
}

// unmount waits for processes that were killed and still close their files.
func (d *disk) unmount() {
	d.t.Helper()
	harness.Eventually(d.t, d.at+" is no longer in use", func() bool { return exec.Command("umount", d.at).Run() == nil })
}

// remount is what a boot does after a power loss: the journal is replayed.
func (d *disk) remount() {
	d.t.Helper()
	d.unmount()
	if err := d.tryMount(); err != nil {
		d.t.Fatal(err)
	}
}

// shutdownCall is FS_IOC_SHUTDOWN of XFS, which ext4 has under the same number, and noFlush drops what the journal has
// not written.
const (
	shutdownCall = 0x8004587d
	noFlush      = 2
)

// powerLoss stops the file system as it lies on the disk. Who uses it gets errors from then on.
func (d *disk) powerLoss() {
	d.t.Helper()
	fd, err := unix.Open(d.at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	err = unix.IoctlSetPointerInt(fd, shutdownCall, noFlush)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		d.t.Fatalf("shut %s down: %v", d.at, err)
	}
}

// abortJournal makes ext4 do what it does after an error of its journal: it takes no more writes.
func (d *disk) abortJournal() {
	d.t.Helper()
	d.run("mount", "-o", "remount,abort", d.at)
}

// fill takes all free space but left bytes, until the returned function frees it.
func (d *disk) fill(left int64) (free func()) {
	d.t.Helper()
	name := filepath.Join(d.at, "ballast")
	f, err := os.Create(name)
	if err != nil {
		d.t.Fatal(err)
	}
	var st unix.Statfs_t
	err = unix.Fstatfs(int(f.Fd()), &st)
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-left)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		d.t.Fatalf("fill the disk: %v", err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			d.t.Fatal(err)
		}
	}
}

// freeze stops every thread of the server and of its plugins, the server first, so that it starts no other, and waits
// until all of them stand still: a call into the kernel that is under way is finished before.
func freeze(t *testing.T, s *harness.Server) (thaw func()) {
	t.Helper()
	stop := func(pid int) {
		_ = syscall.Kill(pid, syscall.SIGSTOP) // it may have ended
		harness.Eventually(t, fmt.Sprintf("process %d stands still", pid), func() bool { return still(pid) })
	}
	stop(s.PID())
	pids := []int{s.PID()}
	for _, pid := range s.Plugins() {
		stop(pid)
		pids = append(pids, pid)
	}
	return func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
}

// still reports whether every thread of a process is stopped, or gone.
func still(pid int) bool {
	threads, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/stat")
	for _, name := range threads {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		after := string(text[strings.LastIndexByte(string(text), ')')+1:])
		if fields := strings.Fields(after); len(fields) > 0 && !strings.Contains("TtZX", fields[0]) {
			return false
		}
	}
	return true
}
