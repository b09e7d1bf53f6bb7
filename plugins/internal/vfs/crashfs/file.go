package crashfs

import (
	"io"
	"io/fs"
	"slices"
	"syscall"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
)

// write is one change of a file's bytes or length that is not synced.
type write struct {
	off   int64
	bytes []byte
	cut   bool // no bytes: the length becomes off
}

// handle is an open file.
type handle struct {
	fs       *FS
	node     *node
	name     string
	writable bool
	closed   bool // guarded by fs.mu
}

var _ vfs.File = (*handle)(nil)

// handle opens n, unless err says why not.
func (f *FS) handle(n *node, name string, writable bool, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &handle{fs: f, node: n, name: name, writable: writable}, nil
}

// open says whether the handle is of use. The caller has fs.mu.
func (h *handle) open() error {
	if h.closed {
		return fs.ErrClosed
	}
	return nil
}

func (h *handle) mayWrite() error {
	if err := h.open(); err != nil {
		return err
	}
	if !h.writable {
		return syscall.EBADF
	}
	return nil
}

// ReadAt shows what processes see, synced or not.
func (h *handle) ReadAt(p []byte, off int64) (n int, err error) {
	end := false
	err = h.fs.look("read", h.name, func() error {
		if err := h.open(); err != nil {
			return err
		}
		if off < 0 {
			return syscall.EINVAL
		}
		if off < int64(len(h.node.data)) {
			n = copy(p, h.node.data[off:])
		}
		end = n < len(p)
		return nil
	})
	if err == nil && end {
		err = io.EOF
	}
	return n, err
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	err := h.fs.change(Call{Op: "write", Path: h.name, Off: off, Len: len(p)}, func() error {
		if err := h.mayWrite(); err != nil {
			return err
		}
		if off < 0 {
			return syscall.EINVAL
		}
		h.node.write(write{off: off, bytes: slices.Clone(p)})
		return nil
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Sync makes bytes and length durable, and no name.
func (h *handle) Sync() error {
	c := Call{Op: "sync", Path: h.name}
	return h.fs.change(c, func() error {
		if err := h.open(); err != nil || h.fs.lies(c) {
			return err
		}
		n := h.node
		for _, w := range n.writes {
			n.synced = w.apply(n.synced)
		}
		n.writes = nil
		return nil
	})
}

func (h *handle) Truncate(size int64) error {
	return h.fs.change(Call{Op: "truncate", Path: h.name, Off: size}, func() error {
		if err := h.mayWrite(); err != nil {
			return err
		}
		if size < 0 {
			return syscall.EINVAL
		}
		h.node.write(write{off: size, cut: true})
		h.node.ahead = 0
		return nil
	})
}

// Preallocate notes that blocks lie beyond the end.
func (h *handle) Preallocate(off, size int64) error {
	return h.fs.change(Call{Op: "preallocate", Path: h.name, Off: off, Len: int(size)}, func() error {
		if err := h.mayWrite(); err != nil {
			return err
		}
		if off < 0 || size <= 0 {
			return syscall.EINVAL
		}
		h.node.ahead = max(h.node.ahead, off+size)
		return nil
	})
}

func (h *handle) Stat() (info vfs.Info, err error) {
	err = h.fs.look("fstat", h.name, func() error {
		if err := h.open(); err != nil {
			return err
		}
		info = h.node.info()
		return nil
	})
	return info, err
}

// Fd is -1: there is no descriptor.
func (h *handle) Fd() int { return -1 }

// Close works on a machine that is gone, too.
func (h *handle) Close() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	err := h.open()
	h.closed = true
	return pathError("close", h.name, err)
}

// DropCache has nothing to do: without a failed sync the cache and the disk agree.
func (f *FS) DropCache(file vfs.File, _ int64) error { return f.ask("fadvise", file, (*handle).open) }

// Probe fails on a machine that is gone, and on no other.
func (f *FS) Probe(file vfs.File) error { return f.ask("probe", file, (*handle).mayWrite) }

func (f *FS) ask(op string, file vfs.File, about func(*handle) error) error {
	h, ok := file.(*handle)
	if !ok || h.fs != f {
		return pathError(op, "file of another file system", syscall.EBADF)
	}
	return f.look(op, h.name, func() error { return about(h) })
}

// Allocate makes a file at least that long.
func (f *FS) Allocate(file vfs.File, size int64) error {
	h, ok := file.(*handle)
	if !ok || h.fs != f {
		return pathError("allocate", "file of another file system", syscall.EBADF)
	}
	return f.change(Call{Op: "allocate", Path: h.name, Off: size}, func() error {
		if err := h.mayWrite(); err != nil {
			return err
		}
		if size > int64(len(h.node.data)) {
			h.node.write(write{off: size, cut: true})
		}
		return nil
	})
}

func (n *node) write(w write) {
	n.data = w.apply(n.data)
	n.writes = append(n.writes, w)
}

// apply returns what b becomes. It leaves b as it is, because frozen copies share it.
func (w write) apply(b []byte) []byte {
	if w.cut {
		return resize(b, w.off)
	}
	b = resize(b, max(int64(len(b)), w.off+int64(len(w.bytes))))
	copy(b[w.off:], w.bytes)
	return b
}

// resize is a copy of b that is cut, or filled up with zeros.
func resize(b []byte, size int64) []byte {
	c := make([]byte, size)
	copy(c, b)
	return c
}

func (n *node) info() vfs.Info {
	size := int64(len(n.data))
	return vfs.Info{Size: size, Blocks: max(size, n.ahead), Dev: 1, Ino: n.ino, Regular: !n.isDir(), Links: n.links}
}

// Stat tells what a name stands for.
func (f *FS) Stat(name string) (info vfs.Info, err error) {
	err = f.look("stat", name, func() error {
		n, err := f.find(name)
		if err == nil {
			info = n.info()
		}
		return err
	})
	return info, err
}

// ReadDir lists a directory, sorted.
func (f *FS) ReadDir(name string) (entries []fs.DirEntry, err error) {
	err = f.look("readdir", name, func() error {
		dir, err := f.find(name)
		if err != nil {
			return err
		}
		if !dir.isDir() {
			return syscall.ENOTDIR
		}
		for _, name := range sortedNames(dir.names) {
			n := dir.names[name]
			entries = append(entries, fs.FileInfoToDirEntry(entry{name, int64(len(n.data)), n.isDir()}))
		}
		return nil
	})
	return entries, err
}

// entry is a name in a listing.
type entry struct {
	name string
	size int64
	dir  bool
}

func (e entry) Name() string       { return e.name }
func (e entry) Size() int64        { return e.size }
func (e entry) IsDir() bool        { return e.dir }
func (e entry) ModTime() time.Time { return time.Time{} } // nothing here has one
func (e entry) Sys() any           { return nil }

func (e entry) Mode() fs.FileMode {
	if e.dir {
		return fs.ModeDir | 0o750
	}
	return 0o640
}
