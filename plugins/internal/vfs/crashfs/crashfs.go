// Package crashfs is a file system in memory that loses at a crash what a disk would lose, for tests of what survives.
//
// New gives an empty one. StopAfter makes a chosen call the last one that the machine does, and every call after it fails
// with ErrGone; Watch sees a copy stopped after every call. Crash then shows the file system as the next boot would find it, once for each seed: what was synced is
// there, and of the rest each sector, each length and each name is there or not, as the seed decides.
//
// It assumes the order that journalled file systems keep: a directory that is synced takes along every earlier change
// of a name that one of its own depends on, and a rename is there as a whole or not at all. Data keeps no order.
// It starts no goroutine, and the same calls and the same seed give the same result. It does not fail calls while the
// machine runs, and it has room for everything: package faultfs is for that.
package crashfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
)

// ErrGone is what every call answers after the machine has stopped.
var ErrGone = errors.New("the machine is gone")

// Options say what a crash may do beyond losing whole sectors and the latest names.
type Options struct {
	Torn      bool // a sector that was being written may hold the new bytes up to any place in it
	Unordered bool // names that do not depend on each other may survive in any order
	// Lie picks syncs, of files and of directories, that are answered and not done; nil: none. It shows whether a test
	// would notice.
	Lie func(Call) bool
}

// Call is one call that changed something.
type Call struct {
	Op   string // "write", "sync", "syncdir", …
	Path string // as it was opened; of a rename, the old name
	To   string // of a rename, the new name
	Off  int64  // of a write its place, of a truncate the new length
	Len  int
}

// String is a line of a transcript: "write /logs/t-0/00.log 0+61".
func (c Call) String() string {
	switch {
	case c.To != "":
		return c.Op + " " + c.Path + " " + c.To
	case c.Op == "write":
		return fmt.Sprintf("write %s %d+%d", c.Path, c.Off, c.Len)
	case c.Op == "truncate" || c.Op == "allocate" || c.Op == "preallocate":
		return fmt.Sprintf("%s %s %d", c.Op, c.Path, c.Off)
	}
	return c.Op + " " + c.Path
}

// FS is a file system that can crash. It is safe for concurrent use.
type FS struct {
	opt Options

	mu      sync.Mutex
	root    *node
	lastIno uint64
	pending []*change // of names, not synced, in the order in which they were made
	calls   []Call
	stop    int // so many calls are done and no more; negative: no limit
	gone    bool
	watch   func(Call, *FS)
}

var (
	_ vfs.FS   = (*FS)(nil)
	_ vfs.Room = (*FS)(nil)
)

// node is an inode, with what processes see and what is on disk.
type node struct {
	ino   uint64
	links uint64 // names that processes see

	names, syncedNames map[string]*node // of a directory; nil in a file

	data, synced []byte
	writes       []write // since the last sync, in order
	ahead        int64   // blocks were asked for up to here, beyond the length; a crash gives none of them back
}

func (n *node) isDir() bool { return n.names != nil }

// change is what one call did to names. It happens as a whole.
type change []edit

// edit makes name in dir stand for node, or for nothing.
type edit struct {
	dir  *node
	name string
	node *node
}

// New returns a file system with nothing but its root.
func New(o Options) *FS {
	f := &FS{opt: o, stop: -1}
	f.root = f.newNode(true)
	f.root.links = 1
	return f
}

func (f *FS) newNode(dir bool) *node {
	f.lastIno++
	n := &node{ino: f.lastIno}
	if dir {
		n.names, n.syncedNames = map[string]*node{}, map[string]*node{}
	}
	return n
}

// StopAfter makes the machine stop when n calls have changed something since New or Crash: the n-th is done and answered,
// and nothing is after it. Zero stops it at once.
func (f *FS) StopAfter(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stop, f.gone = n, len(f.calls) >= n
}

// Gone reports whether the machine has stopped.
func (f *FS) Gone() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gone
}

// Calls returns the calls that have changed something so far, the earliest first.
func (f *FS) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Watch calls see after every call that changes something, with the machine as it would be if that call had been its
// last: a copy that is gone, and on which Crash works. So one run can be crashed after each of its calls. The call is
// answered after see has returned; see must not use f.
func (f *FS) Watch(see func(c Call, stopped *FS)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watch = see
}

// look runs a call that changes nothing.
func (f *FS) look(op, name string, call func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := ErrGone
	if !f.gone {
		err = call()
	}
	return pathError(op, name, err)
}

// change runs a call that changes something, and counts it where it succeeds.
func (f *FS) change(c Call, call func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := ErrGone
	if !f.gone {
		if err = call(); err == nil {
			f.calls = append(f.calls, c)
			f.gone = f.stop >= 0 && len(f.calls) >= f.stop
			if f.watch != nil {
				f.watch(c, f.freeze())
			}
		}
	}
	return pathError(c.Op, c.Path, err)
}

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// find walks to a name.
func (f *FS) find(name string) (*node, error) {
	if !path.IsAbs(name) {
		return nil, fs.ErrInvalid
	}
	n := f.root
	for _, step := range strings.Split(path.Clean(name)[1:], "/") {
		if step == "" {
			continue // the root itself
		}
		if !n.isDir() {
			return nil, syscall.ENOTDIR
		}
		if n = n.names[step]; n == nil {
			return nil, fs.ErrNotExist
		}
	}
	return n, nil
}

// place finds the directory of a name, and what the name stands for: nil where it is free.
func (f *FS) place(name string) (at edit, err error) {
	dir, err := f.find(path.Dir(name))
	if err != nil {
		return edit{}, err
	}
	if !dir.isDir() {
		return edit{}, syscall.ENOTDIR
	}
	at = edit{dir: dir, name: path.Base(path.Clean(name))}
	if at.name == "/" {
		return edit{}, fs.ErrInvalid
	}
	at.node = dir.names[at.name]
	return at, nil
}

// taken is place for a name that has to stand for something.
func (f *FS) taken(name string) (edit, error) {
	at, err := f.place(name)
	if err == nil && at.node == nil {
		err = fs.ErrNotExist
	}
	return at, err
}

// free is place for a name that has to be free.
func (f *FS) free(name string) (edit, error) {
	at, err := f.place(name)
	if err == nil && at.node != nil {
		err = fs.ErrExist
	}
	return at, err
}

// apply changes names for processes, and remembers that the disk does not know.
func (f *FS) apply(edits ...edit) {
	c := change(edits)
	for _, e := range c {
		if old := e.dir.names[e.name]; old != nil {
			old.links--
		}
		if e.node == nil {
			delete(e.dir.names, e.name)
			continue
		}
		e.dir.names[e.name] = e.node
		e.node.links++
	}
	f.pending = append(f.pending, &c)
}

// Open opens a file. Making one is a change of its name, which a sync of the file does not make durable.
func (f *FS) Open(name string, flag vfs.Flag) (vfs.File, error) {
	var n *node
	if flag == vfs.Create {
		err := f.change(Call{Op: "create", Path: name}, func() error {
			at, err := f.free(name)
			if err != nil {
				return err
			}
			n = f.newNode(false)
			f.apply(edit{at.dir, at.name, n})
			return nil
		})
		return f.handle(n, name, true, err)
	}
	err := f.look("open", name, func() (err error) {
		if n, err = f.find(name); err == nil && n.isDir() && flag == vfs.Write {
			err = syscall.EISDIR
		}
		return err
	})
	return f.handle(n, name, flag == vfs.Write, err)
}

// Reopen opens the inode of a file of this file system once more, whatever its name is now.
func (f *FS) Reopen(file vfs.File) (vfs.File, error) {
	h, ok := file.(*handle)
	if !ok || h.fs != f {
		return nil, pathError("reopen", "file of another file system", syscall.EBADF)
	}
	err := f.look("reopen", h.name, h.open)
	return f.handle(h.node, h.name, h.writable, err)
}

// Mkdir makes a directory.
func (f *FS) Mkdir(name string) error {
	return f.change(Call{Op: "mkdir", Path: name}, func() error {
		at, err := f.free(name)
		if err != nil {
			return err
		}
		f.apply(edit{at.dir, at.name, f.newNode(true)})
		return nil
	})
}

// Rename moves a name to a free one.
func (f *FS) Rename(oldpath, newpath string) error {
	return f.change(Call{Op: "rename", Path: oldpath, To: newpath}, func() error {
		from, err := f.taken(oldpath)
		if err != nil {
			return err
		}
		to, err := f.free(newpath)
		if err != nil {
			return err
		}
		f.apply(edit{from.dir, from.name, nil}, edit{to.dir, to.name, from.node})
		return nil
	})
}

// Replace moves a name over another, which must not stand for a directory.
func (f *FS) Replace(oldpath, newpath string) error {
	return f.change(Call{Op: "replace", Path: oldpath, To: newpath}, func() error {
		from, err := f.taken(oldpath)
		if err != nil {
			return err
		}
		to, err := f.place(newpath)
		switch {
		case err != nil:
			return err
		case to.node == from.node:
			return nil
		case to.node != nil && to.node.isDir():
			return fs.ErrExist
		case to.node != nil && from.node.isDir():
			return syscall.ENOTDIR
		}
		f.apply(edit{from.dir, from.name, nil}, edit{to.dir, to.name, from.node})
		return nil
	})
}

// Remove takes a name away. Who has the file open goes on using it.
func (f *FS) Remove(name string) error {
	return f.change(Call{Op: "remove", Path: name}, func() error {
		at, err := f.taken(name)
		if err != nil {
			return err
		}
		if len(at.node.names) > 0 {
			return syscall.ENOTEMPTY
		}
		f.apply(edit{at.dir, at.name, nil})
		return nil
	})
}

// RemoveAll takes a tree away, one name after the other, so that a crash may leave a part of it. It counts as one call.
// A name that is free is no error.
func (f *FS) RemoveAll(name string) error {
	return f.change(Call{Op: "removeall", Path: name}, func() error {
		at, err := f.place(name)
		if err != nil || at.node == nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return err
		}
		f.removeTree(at)
		return nil
	})
}

func (f *FS) removeTree(at edit) {
	for _, name := range sortedNames(at.node.names) {
		f.removeTree(edit{at.node, name, at.node.names[name]})
	}
	f.apply(edit{at.dir, at.name, nil})
}

func sortedNames(names map[string]*node) []string {
	sorted := make([]string, 0, len(names))
	for name := range names {
		sorted = append(sorted, name)
	}
	slices.Sort(sorted)
	return sorted
}

// SyncDir makes the names in a directory durable, and the earlier changes that they depend on.
func (f *FS) SyncDir(name string) error {
	c := Call{Op: "syncdir", Path: name}
	return f.change(c, func() error {
		dir, err := f.find(name)
		if err != nil {
			return err
		}
		if !dir.isDir() {
			return syscall.ENOTDIR
		}
		if !f.lies(c) {
			f.syncNames(dir)
		}
		return nil
	})
}

func (f *FS) lies(c Call) bool { return f.opt.Lie != nil && f.opt.Lie(c) }

// syncNames commits the changes in dir, and those before them in every directory that a committed one was made in: a
// journal has no way of keeping one half of a rename, nor the later of two changes of one directory.
func (f *FS) syncNames(dir *node) {
	synced := map[*node]bool{dir: true}
	var kept, done []*change
	for _, c := range slices.Backward(f.pending) {
		if !slices.ContainsFunc(*c, func(e edit) bool { return synced[e.dir] }) {
			kept = append(kept, c)
			continue
		}
		done = append(done, c)
		for _, e := range *c {
			synced[e.dir] = true
		}
	}
	for _, c := range slices.Backward(done) {
		for _, e := range *c {
			e.set(e.dir.syncedNames)
		}
	}
	slices.Reverse(kept)
	f.pending = kept
}

func (e edit) set(names map[string]*node) {
	if e.node == nil {
		delete(names, e.name)
		return
	}
	names[e.name] = e.node
}

// Volume tells of a disk that is never full.
func (f *FS) Volume(name string) (v vfs.Volume, err error) {
	err = f.look("statfs", name, func() error {
		_, err := f.find(name)
		v = vfs.Volume{Size: 1 << 40, Free: 1 << 40}
		return err
	})
	return v, err
}
