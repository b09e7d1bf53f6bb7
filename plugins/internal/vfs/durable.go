package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// TmpSuffix marks a file that is being written. One that is left over is written anew.
const TmpSuffix = ".tmp"

// WriteDurably replaces the file at path: after a crash it is either the old or the new one, and on a nil return the new
// one. One goroutine at a time may write a path.
func WriteDurably(f FS, path string, content []byte) error {
	tmp := path + TmpSuffix
	if err := f.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := WriteNew(f, tmp, content); err != nil {
		return err
	}
	if err := f.Replace(tmp, path); err != nil {
		return err
	}
	return f.SyncDir(filepath.Dir(path))
}

// WriteNew makes a new file with that content, and its bytes durable. Its name is so after a sync of the directory.
func WriteNew(f FS, path string, content []byte) error {
	file, err := f.Open(path, Create)
	if err != nil {
		return err
	}
	if len(content) > 0 {
		_, err = file.WriteAt(content, 0)
	}
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// ReadWhole reads a file of at most so many bytes.
func ReadWhole(f FS, path string, most int64) ([]byte, error) {
	file, err := f.Open(path, Read)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // only read
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size > most {
		return nil, fmt.Errorf("%s: %d bytes, more than it can have", path, info.Size)
	}
	content := make([]byte, info.Size)
	if n, err := file.ReadAt(content, 0); n < len(content) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return content, nil
}

// MakeDirs makes path with every parent that is missing, durably.
func MakeDirs(f FS, path string) error {
	_, err := f.Stat(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(path)
	if err := MakeDirs(f, parent); err != nil {
		return err
	}
	if err := f.Mkdir(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return f.SyncDir(parent)
}
