// Package faultfs wraps a file system and makes chosen calls fail, for tests of both sides of a storage lease.
//
// Every call is counted and written down; a Fault picks calls by what they are and says what becomes of them: an
// error instead of the call, an error after the call was done, or a write of which only a part reaches the file.
// A fault that never ends ("from this call on, everything fails") is a process that died at that call, as far as the
// files can tell. It assumes that the wrapped file system itself works, and loses no bytes of its own accord.
package faultfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
)

// Op names a call of vfs.FS or vfs.File.
type Op string

// The calls that are counted. Close and Fd are not: they never change what lies on disk.
const (
	Open      Op = "open"
	Create    Op = "create"
	Reopen    Op = "reopen"
	Mkdir     Op = "mkdir"
	Rename    Op = "rename"
	Replace   Op = "replace"
	Remove    Op = "remove"
	RemoveAll Op = "removeall"
	ReadDir   Op = "readdir"
	Stat      Op = "stat"
	SyncDir   Op = "syncdir"
	DropCache Op = "dropcache"
	Probe     Op = "probe"
	Read      Op = "read"
	Write     Op = "write"
	Sync      Op = "sync"
	Truncate  Op = "truncate"
	FileStat  Op = "fstat"
	Allocate  Op = "allocate"

	Preallocate Op = "preallocate"
)

// Changes reports whether the call can change what lies on disk, or when it does.
func (o Op) Changes() bool {
	switch o {
	case Open, Reopen, ReadDir, Stat, DropCache, Probe, Read, FileStat:
		return false
	}
	return true
}

// Call is one call, as it came.
type Call struct {
	Op   Op
	Path string // of a rename, the old name
	To   string // of a rename, the new name
	Off  int64  // of a read, a write, a cut or a preallocation
	Len  int
}

// String is a line of a transcript: "write logs/t-0/00.log 0+61".
func (c Call) String() string {
	var b strings.Builder
	b.WriteString(string(c.Op) + " " + c.Path)
	if c.To != "" {
		b.WriteString(" " + c.To)
	}
	switch c.Op {
	case Read, Write, Preallocate:
		fmt.Fprintf(&b, " %d+%d", c.Off, c.Len)
	case Truncate:
		fmt.Fprintf(&b, " %d", c.Off)
	}
	return b.String()
}

// Fault says which calls fail and how.
type Fault struct {
	Match func(Call) bool // nil: every call
	Skip  int             // so many matching calls go through first
	Times int             // how many fail after that; 0: one; negative: all
	Err   error
	// After: the call is done first and then answers Err, as when the answer was lost.
	After bool
	// Short: so many bytes of a matching write reach the file before Err.
	Short int
}

// On matches calls of op on paths whose last element fits the pattern of filepath.Match; "" fits all.
func On(op Op, pattern string) func(Call) bool {
	return func(c Call) bool { return c.Op == op && fits(pattern, c.Path, c.To) }
}

// Changing matches every call that can change what lies on disk.
func Changing(c Call) bool { return c.Op.Changes() }

func fits(pattern string, paths ...string) bool {
	if pattern == "" {
		return true
	}
	return slices.ContainsFunc(paths, func(p string) bool {
		ok, _ := filepath.Match(pattern, filepath.Base(p)) // a malformed pattern fits nothing
		return ok
	})
}

// FS is a file system with faults. It is safe for concurrent use.
type FS struct {
	inner vfs.FS

	mu     sync.Mutex
	faults []*Fault
	calls  []Call
}

var _ vfs.FS = (*FS)(nil)

// New wraps inner; without a Fault every call goes through.
func New(inner vfs.FS) *FS { return &FS{inner: inner} }

// Inject adds a fault. Faults are asked in the order in which they came; the first that takes a call decides.
func (f *FS) Inject(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fault.Times == 0 {
		fault.Times = 1
	}
	f.faults = append(f.faults, &fault)
}

// Clear removes all faults; the record of calls stays.
func (f *FS) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// Calls returns what was called so far that match takes (nil: all).
func (f *FS) Calls(match func(Call) bool) []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]Call, 0, len(f.calls))
	for _, c := range f.calls {
		if match == nil || match(c) {
			out = append(out, c)
		}
	}
	return out
}

// Forget empties the record of calls.
func (f *FS) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = nil
}

// decide records c and returns the fault that takes it, or nil.
func (f *FS) decide(c Call) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, c)
	for _, fault := range f.faults {
		if fault.Match != nil && !fault.Match(c) {
			continue
		}
		if fault.Skip > 0 {
			fault.Skip--
			continue
		}
		if fault.Times == 0 {
			continue
		}
		if fault.Times > 0 {
			fault.Times--
		}
		taken := *fault
		return &taken
	}
	return nil
}

// do runs call unless a fault takes it.
func (f *FS) do(c Call, call func() error) error {
	fault := f.decide(c)
	if fault == nil {
		return call()
	}
	if fault.After {
		if err := call(); err != nil {
			return err
		}
	}
	return &fs.PathError{Op: string(c.Op), Path: c.Path, Err: fault.Err}
}

// Open opens through the wrapped file system.
func (f *FS) Open(path string, flag vfs.Flag) (vfs.File, error) {
	op := Open
	if flag == vfs.Create {
		op = Create
	}
	return f.file(Call{Op: op, Path: path}, func() (vfs.File, error) { return f.inner.Open(path, flag) })
}

// Reopen reopens through the wrapped file system.
func (f *FS) Reopen(file vfs.File) (vfs.File, error) {
	path := "lent"
	if w, ok := file.(*wrapped); ok {
		file, path = w.inner, w.path
	}
	return f.file(Call{Op: Reopen, Path: path}, func() (vfs.File, error) { return f.inner.Reopen(file) })
}

// file runs a call that opens something; a fault after it must not leak what was opened.
func (f *FS) file(c Call, open func() (vfs.File, error)) (vfs.File, error) {
	var got vfs.File
	err := f.do(c, func() (err error) {
		got, err = open()
		return err
	})
	if err != nil {
		if got != nil {
			_ = got.Close()
		}
		return nil, err
	}
	return &wrapped{fs: f, inner: got, path: c.Path}, nil
}

// Mkdir makes a directory.
func (f *FS) Mkdir(path string) error {
	return f.do(Call{Op: Mkdir, Path: path}, func() error { return f.inner.Mkdir(path) })
}

// Rename renames without replacing.
func (f *FS) Rename(oldpath, newpath string) error {
	return f.do(Call{Op: Rename, Path: oldpath, To: newpath}, func() error { return f.inner.Rename(oldpath, newpath) })
}

// Replace renames over what is there.
func (f *FS) Replace(oldpath, newpath string) error {
	return f.do(Call{Op: Replace, Path: oldpath, To: newpath}, func() error { return f.inner.Replace(oldpath, newpath) })
}

// Remove removes one name.
func (f *FS) Remove(path string) error {
	return f.do(Call{Op: Remove, Path: path}, func() error { return f.inner.Remove(path) })
}

// RemoveAll removes a tree.
func (f *FS) RemoveAll(path string) error {
	return f.do(Call{Op: RemoveAll, Path: path}, func() error { return f.inner.RemoveAll(path) })
}

// ReadDir lists a directory.
func (f *FS) ReadDir(path string) (entries []fs.DirEntry, err error) {
	err = f.do(Call{Op: ReadDir, Path: path}, func() (err error) {
		entries, err = f.inner.ReadDir(path)
		return err
	})
	return entries, err
}

// Stat tells about a name.
func (f *FS) Stat(path string) (info vfs.Info, err error) {
	err = f.do(Call{Op: Stat, Path: path}, func() (err error) {
		info, err = f.inner.Stat(path)
		return err
	})
	return info, err
}

// SyncDir makes names durable.
func (f *FS) SyncDir(path string) error {
	return f.do(Call{Op: SyncDir, Path: path}, func() error { return f.inner.SyncDir(path) })
}

// DropCache forgets clean pages.
func (f *FS) DropCache(file vfs.File, off int64) error {
	return f.onFile(DropCache, file, func(inner vfs.File) error { return f.inner.DropCache(inner, off) })
}

var _ vfs.Room = (*FS)(nil)

// Volume tells what the wrapped file system tells; that is no call that could fail.
func (f *FS) Volume(path string) (vfs.Volume, error) {
	if room, ok := f.inner.(vfs.Room); ok {
		return room.Volume(path)
	}
	return vfs.Volume{}, errors.ErrUnsupported
}

// Allocate gives a file blocks through the wrapped file system.
func (f *FS) Allocate(file vfs.File, size int64) error {
	return f.onFile(Allocate, file, func(inner vfs.File) error {
		if room, ok := f.inner.(vfs.Room); ok {
			return room.Allocate(inner, size)
		}
		return errors.ErrUnsupported
	})
}

// Probe asks whether the file system takes writes.
func (f *FS) Probe(file vfs.File) error { return f.onFile(Probe, file, f.inner.Probe) }

func (f *FS) onFile(op Op, file vfs.File, call func(vfs.File) error) error {
	path := "lent"
	if w, ok := file.(*wrapped); ok {
		file, path = w.inner, w.path
	}
	return f.do(Call{Op: op, Path: path}, func() error { return call(file) })
}

// Wrap puts a file that came another way under this file system's faults, named path.
func (f *FS) Wrap(file vfs.File, path string) vfs.File {
	return &wrapped{fs: f, inner: file, path: path}
}

// wrapped is an open file whose calls can fail.
type wrapped struct {
	fs    *FS
	inner vfs.File
	path  string
}

func (w *wrapped) ReadAt(p []byte, off int64) (n int, err error) {
	err = w.fs.do(Call{Op: Read, Path: w.path, Off: off, Len: len(p)}, func() (err error) {
		n, err = w.inner.ReadAt(p, off)
		return err
	})
	return n, err
}

func (w *wrapped) WriteAt(p []byte, off int64) (int, error) {
	fault := w.fs.decide(Call{Op: Write, Path: w.path, Off: off, Len: len(p)})
	if fault == nil {
		return w.inner.WriteAt(p, off)
	}
	part := min(fault.Short, len(p))
	if fault.After {
		part = len(p)
	}
	n, err := w.inner.WriteAt(p[:part], off)
	if err != nil {
		return n, err
	}
	return n, &fs.PathError{Op: string(Write), Path: w.path, Err: fault.Err}
}

func (w *wrapped) Sync() error { return w.fs.do(Call{Op: Sync, Path: w.path}, w.inner.Sync) }

func (w *wrapped) Truncate(size int64) error {
	return w.fs.do(Call{Op: Truncate, Path: w.path, Off: size}, func() error { return w.inner.Truncate(size) })
}

func (w *wrapped) Preallocate(off, size int64) error {
	c := Call{Op: Preallocate, Path: w.path, Off: off, Len: int(size)}
	return w.fs.do(c, func() error { return w.inner.Preallocate(off, size) })
}

func (w *wrapped) Stat() (info vfs.Info, err error) {
	err = w.fs.do(Call{Op: FileStat, Path: w.path}, func() (err error) {
		info, err = w.inner.Stat()
		return err
	})
	return info, err
}

func (w *wrapped) Fd() int      { return w.inner.Fd() }
func (w *wrapped) Close() error { return w.inner.Close() }
