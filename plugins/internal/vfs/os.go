package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// writePiece bounds one pwrite. Pieces of 64 KiB write at a steady speed where single calls of 1 MiB swing widely,
// because the kernel then builds very large folios from cold memory.
const writePiece = 64 << 10

// Modes of what is created, before the umask: the log is nobody else's business.
const (
	fileMode = 0o640
	dirMode  = 0o750
)

// OS returns the machine's file system. It works on raw descriptors, so that no call goes through the runtime's
// poller and a descriptor can be lent without a change of its flags.
func OS() FS { return osFS{} }

// FromFd adopts an open descriptor of a regular file: Close closes it. The name is used in errors only. Nothing
// closes the descriptor behind the caller's back: there is no finalizer.
func FromFd(fd int, name string) File { return &osFile{fd: fd, name: name} }

// closedBit in osFile.state says that Close was called; the bits below count calls in progress.
const closedBit = int64(1) << 62

// osFile is a raw descriptor that is closed when Close was called and the last call in progress is done, so that
// a call never meets a descriptor number that was given to another file meanwhile.
type osFile struct {
	fd    int
	name  string
	state atomic.Int64
}

func (f *osFile) enter(op string) error {
	for {
		v := f.state.Load()
		if v&closedBit != 0 {
			return &fs.PathError{Op: op, Path: f.name, Err: fs.ErrClosed}
		}
		if f.state.CompareAndSwap(v, v+1) {
			return nil
		}
	}
}

func (f *osFile) leave() {
	if f.state.Add(-1) == closedBit {
		_ = unix.Close(f.fd) // Close has answered already; Linux reports nothing here that Sync did not
	}
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.enter("read"); err != nil {
		return 0, err
	}
	defer f.leave()
	for n := 0; ; {
		if n == len(p) {
			return n, nil
		}
		k, err := unix.Pread(f.fd, p[n:], off+int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return n, &fs.PathError{Op: "read", Path: f.name, Err: err}
		case k == 0:
			return n, io.EOF
		default:
			n += k
		}
	}
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.enter("write"); err != nil {
		return 0, err
	}
	defer f.leave()
	for n := 0; n < len(p); {
		piece := p[n:min(n+writePiece, len(p))]
		k, err := unix.Pwrite(f.fd, piece, off+int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return n, &fs.PathError{Op: "write", Path: f.name, Err: err}
		case k == 0:
			return n, &fs.PathError{Op: "write", Path: f.name, Err: io.ErrShortWrite}
		default:
			n += k // short: the next piece starts there, and meets the reason
		}
	}
	return len(p), nil
}

func (f *osFile) Sync() error {
	return f.do("fdatasync", func(fd int) error { return unix.Fdatasync(fd) })
}

func (f *osFile) Truncate(size int64) error {
	return f.do("truncate", func(fd int) error { return unix.Ftruncate(fd, size) })
}

func (f *osFile) Preallocate(off, size int64) error {
	return f.do("fallocate", func(fd int) error { return unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, off, size) })
}

func (f *osFile) Stat() (Info, error) {
	var st unix.Stat_t
	err := f.do("stat", func(fd int) error { return unix.Fstat(fd, &st) })
	if err != nil {
		return Info{}, err
	}
	return infoOf(&st), nil
}

func (f *osFile) Fd() int { return f.fd }

func (f *osFile) Close() error {
	for {
		v := f.state.Load()
		if v&closedBit != 0 {
			return &fs.PathError{Op: "close", Path: f.name, Err: fs.ErrClosed}
		}
		if !f.state.CompareAndSwap(v, v|closedBit) {
			continue
		}
		if v != 0 {
			return nil // the last call in progress closes
		}
		// After EINTR Linux has closed the descriptor too, so there is no second try.
		if err := unix.Close(f.fd); err != nil && !errors.Is(err, unix.EINTR) {
			return &fs.PathError{Op: "close", Path: f.name, Err: err}
		}
		return nil
	}
}

// do runs call on the descriptor until no signal interrupts it.
func (f *osFile) do(op string, call func(fd int) error) error {
	if err := f.enter(op); err != nil {
		return err
	}
	defer f.leave()
	return pathError(op, f.name, retry(func() error { return call(f.fd) }))
}

func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// statBlock is the unit of st_blocks, whatever the file system's own is.
const statBlock = 512

// infoOf widens the link count, whose type differs by platform.
func infoOf(st *unix.Stat_t) Info {
	return Info{
		Size: st.Size, Blocks: st.Blocks * statBlock, Dev: st.Dev, Ino: st.Ino, Links: uint64(st.Nlink),
		Regular: st.Mode&unix.S_IFMT == unix.S_IFREG,
	}
}

type osFS struct{}

func (osFS) Open(path string, flag Flag) (File, error) {
	mode := unix.O_CLOEXEC
	switch flag {
	case Read:
		mode |= unix.O_RDONLY
	case Write:
		mode |= unix.O_RDWR
	case Create:
		mode |= unix.O_RDWR | unix.O_CREAT | unix.O_EXCL
	default:
		return nil, pathError("open", path, unix.EINVAL)
	}
	return openRaw(path, mode)
}

func openRaw(path string, mode int) (File, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(path, mode, fileMode)
		return err
	})
	if err != nil {
		return nil, pathError("open", path, err)
	}
	return &osFile{fd: fd, name: path}, nil
}

func (osFS) Reopen(f File) (File, error) {
	fd := f.Fd()
	if fd < 0 {
		return nil, pathError("reopen", "file without a descriptor", unix.EBADF)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, pathError("reopen", fmt.Sprintf("descriptor %d", fd), err)
	}
	return openRaw(fmt.Sprintf("/proc/self/fd/%d", fd), flags&unix.O_ACCMODE|unix.O_CLOEXEC)
}

func (osFS) Mkdir(path string) error { return os.Mkdir(path, dirMode) }

func (osFS) Rename(oldpath, newpath string) error {
	err := retry(func() error {
		return unix.Renameat2(unix.AT_FDCWD, oldpath, unix.AT_FDCWD, newpath, unix.RENAME_NOREPLACE)
	})
	if err != nil {
		return &os.LinkError{Op: "rename", Old: oldpath, New: newpath, Err: err}
	}
	return nil
}

func (osFS) Replace(oldpath, newpath string) error { return os.Rename(oldpath, newpath) }

func (osFS) Remove(path string) error { return os.Remove(path) }

func (osFS) RemoveAll(path string) error { return os.RemoveAll(path) }

func (osFS) ReadDir(path string) ([]fs.DirEntry, error) { return os.ReadDir(path) }

func (osFS) Stat(path string) (Info, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Stat(path, &st) }); err != nil {
		return Info{}, pathError("stat", path, err)
	}
	return infoOf(&st), nil
}

func (osFS) SyncDir(path string) error {
	f, err := openRaw(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	err = retry(func() error { return unix.Fsync(f.Fd()) })
	return pathError("fsync", path, errors.Join(err, f.Close()))
}

func (osFS) DropCache(f File, off int64) error {
	err := retry(func() error { return unix.Fadvise(f.Fd(), off, 0, unix.FADV_DONTNEED) })
	return pathError("fadvise", fmt.Sprintf("descriptor %d", f.Fd()), err)
}

// probeBytes lies within the one block that a canary has written, so that the probe allocates nothing.
const probeBytes = 512

func (osFS) Probe(f File) error {
	err := retry(func() error { return unix.Fallocate(f.Fd(), unix.FALLOC_FL_KEEP_SIZE, 0, probeBytes) })
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return nil // ⚗ a full XFS sets a block aside before it sees that none is needed; one that has given up says EIO first
	}
	return pathError("probe", fmt.Sprintf("descriptor %d", f.Fd()), err)
}
