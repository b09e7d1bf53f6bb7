package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
)

// Bucket is all that the store asks of where it keeps its objects. Keys are <directory>/<name>.
type Bucket interface {
	// Put makes an object, whole, replacing one of that key. On a nil return it is durable; while it is not there whole it
	// is not there at all. After an error it may be there, unless the error is for want of space: then it is not.
	Put(key string, data []byte) error
	// Get returns n bytes of an object from at on; fs.ErrNotExist where there is no such object.
	Get(key string, at, n int64) ([]byte, error)
	// List returns the objects of a directory, in the order of their keys. It comes before the first Put there. What it
	// tells is durable: an object that was put and is listed stays.
	List(dir string) ([]Object, error)
	// Delete removes an object, durably. One that is not there is no error.
	Delete(key string) error
}

// Object is what List tells.
type Object struct {
	Name string // behind the directory
	Size int64
}

// putPrefix begins the names of files that are being put. What a crash leaves of them is no object.
const putPrefix = ".put-"

// dirBucket keeps objects as files.
type dirBucket struct {
	fs   vfs.FS
	root string
	puts atomic.Uint64 // numbers files that are being put; those of an earlier process go when their directory is listed
}

var _ Bucket = (*dirBucket)(nil)

// newDirBucket makes root where it is missing.
func newDirBucket(f vfs.FS, root string) (*dirBucket, error) {
	if err := vfs.MakeDirs(f, root); err != nil {
		return nil, err
	}
	return &dirBucket{fs: f, root: root}, nil
}

func (b *dirBucket) Put(key string, data []byte) error {
	path := filepath.Join(b.root, key)
	dir := filepath.Dir(path)
	if err := vfs.MakeDirs(b.fs, dir); err != nil {
		return err
	}
	tmp := filepath.Join(dir, fmt.Sprint(putPrefix, b.puts.Add(1)))
	if err := vfs.WriteNew(b.fs, tmp, data); err != nil {
		return errors.Join(err, b.fs.Remove(tmp))
	}
	if err := b.fs.Replace(tmp, path); err != nil {
		return errors.Join(err, b.fs.Remove(tmp))
	}
	if err := b.fs.SyncDir(dir); err != nil {
		return fmt.Errorf("%w: %w", errUnknown, err)
	}
	return nil
}

// errUnknown marks an error after which the object may be there.
var errUnknown = errors.New("the object may be there or not")

func (b *dirBucket) Get(key string, at, n int64) ([]byte, error) {
	f, err := b.fs.Open(filepath.Join(b.root, key), vfs.Read)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	data := make([]byte, n)
	if m, err := f.ReadAt(data, at); int64(m) < n {
		return nil, fmt.Errorf("%s: %d bytes of %d at %d: %w", key, m, n, at, err)
	}
	return data, nil
}

func (b *dirBucket) List(dir string) ([]Object, error) {
	path := filepath.Join(b.root, dir)
	entries, err := b.fs.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// What the cache shows may not be on disk yet, if the process before died in the middle of a Put.
	if err := b.fs.SyncDir(path); err != nil {
		return nil, err
	}
	var objects []Object
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), putPrefix) {
			if err := b.fs.Remove(filepath.Join(path, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			continue
		}
		info, err := b.fs.Stat(filepath.Join(path, e.Name()))
		if err != nil {
			return nil, err
		}
		objects = append(objects, Object{Name: e.Name(), Size: info.Size})
	}
	return objects, nil
}

func (b *dirBucket) Delete(key string) error {
	path := filepath.Join(b.root, key)
	err := b.fs.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return b.fs.SyncDir(filepath.Dir(path))
}
