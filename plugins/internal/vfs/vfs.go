// Package vfs is the file system as the storage side of Trunkline sees it: a dozen calls, so that every write, sync,
// cut and rename of plugin and core can be counted, failed or lost in a test. OS is the real one.
package vfs

import "io/fs"

// File is an open file. Calls at explicit offsets may run concurrently.
type File interface {
	// ReadAt reads len(p) bytes at off; fewer come with an error, io.EOF at the end of the file.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes p at off. A short write comes with an error; what was written of it is on the file.
	WriteAt(p []byte, off int64) (int, error)
	// Sync is fdatasync: on a nil return, everything written before the call is durable, with the length that reads it.
	Sync() error
	// Truncate sets the length. Blocks beyond it are given back, also those of Preallocate where the length is size already.
	Truncate(size int64) error
	// Preallocate asks for blocks for [off, off+size) without a change of the length (fallocate, KEEP_SIZE). A nil return
	// promises nothing of a write there, and an error forbids none; a disk that fills up may keep a part of them.
	Preallocate(off, size int64) error
	// Stat tells size, device and inode as the file system has them now.
	Stat() (Info, error)
	// Fd is the descriptor, or -1 for a file that has none. It stays valid until Close.
	Fd() int
	// Close releases the descriptor. A second call returns fs.ErrClosed.
	Close() error
}

// Info is what Stat tells.
type Info struct {
	Size     int64
	Blocks   int64 // bytes that it takes on the disk: less than Size where it has holes, more where blocks lie beyond its end
	Dev, Ino uint64
	Regular  bool
	Links    uint64
}

// Flag says how Open opens.
type Flag int

const (
	// Read opens an existing file for reading.
	Read Flag = iota
	// Write opens an existing file for reading and writing.
	Write
	// Create makes a new file for reading and writing; fs.ErrExist if there is one.
	Create
)

// FS is a file system. Paths are absolute.
type FS interface {
	Open(path string, flag Flag) (File, error)
	// Reopen gives a new open file description of f's inode (through /proc/self/fd), so that errors, flags and offsets are not shared.
	Reopen(f File) (File, error)
	Mkdir(path string) error
	// Rename moves oldpath to newpath and fails with fs.ErrExist where newpath exists (RENAME_NOREPLACE).
	Rename(oldpath, newpath string) error
	// Replace moves oldpath over newpath.
	Replace(oldpath, newpath string) error
	Remove(path string) error
	RemoveAll(path string) error
	ReadDir(path string) ([]fs.DirEntry, error)
	Stat(path string) (Info, error)
	// SyncDir makes names in the directory durable.
	SyncDir(path string) error
	// DropCache asks the kernel to forget clean pages of f from off on (POSIX_FADV_DONTNEED), so that a scan reads the disk.
	DropCache(f File, off int64) error
	// Probe fails where the file system no longer takes writes: fallocate(KEEP_SIZE) on an allocated block of f.
	Probe(f File) error
}

// Volume is what holds a path.
type Volume struct {
	Size, Free int64 // bytes; Free is what an ordinary user may still take
	Volatile   bool  // it lives in memory: nothing on it outlasts the machine's power
}

// Room is what an FS may tell of the disk below it, and OS does. One that does not counts as a disk of unknown size.
type Room interface {
	// Volume tells about the file system that holds path.
	Volume(path string) (Volume, error)
	// Allocate gives f real blocks for [0, size), and that length.
	Allocate(f File, size int64) error
}
