package filelog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
)

// copyBytes is how much is copied at once; blocks of that size that are all zeros become holes.
const copyBytes = 64 << 10

// cut shortens file to size and removes the segments later than it. What goes is saved first; a crash at any point
// leaves a log from which the next recovery makes the same cut.
func (v *recovery) cut(c *storage.Cut, file found, size int64, later []found) error {
	if err := v.saveAll(c, file, size, later); err != nil {
		return err
	}
	if c.Dirty && !v.content.pending {
		// Once later segments are gone, what is left may look like an ordinary torn tail.
		if err := v.store.disk.create(filepath.Join(v.dir, pendingName), []byte(c.Reason+"\n")); err != nil {
			return err
		}
		v.content.pending = true
	}
	if err := v.store.disk.fs.SyncDir(v.dir); err != nil {
		return err
	}
	for i := len(later) - 1; i >= 0; i-- { // highest first: a crash in between must not leave a gap
		if err := v.store.disk.fs.Remove(segmentPath(v.dir, later[i].base)); err != nil {
			return err
		}
	}
	if len(later) > 0 {
		if err := v.store.disk.fs.SyncDir(v.dir); err != nil {
			return err
		}
	}
	if file.size == size {
		return nil
	}
	return v.shorten(file, size)
}

// shorten cuts one segment. Where a core lives that may have handed pages of this file to readers, it gets a new inode
// instead: pages in a socket's queue change when they are overwritten in place.
func (v *recovery) shorten(file found, size int64) error {
	d := v.store.disk
	path := segmentPath(v.dir, file.base)
	if v.r.Ceiling >= 0 {
		tmp := path + tmpSuffix
		if err := d.fs.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := d.copyRange(path, tmp, 0, size); err != nil {
			return err
		}
		if err := d.fs.Replace(tmp, path); err != nil {
			return err
		}
		return d.fs.SyncDir(v.dir)
	}
	f, err := d.fs.Open(path, vfs.Write)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Sync() // a cut that is not on disk comes back after a power loss
	}
	return errors.Join(err, f.Close())
}

// saveAll keeps what a cut takes off, and names the first file that holds some of it.
func (v *recovery) saveAll(c *storage.Cut, file found, size int64, later []found) error {
	if file.size > size {
		name, err := v.save(file, size)
		if err != nil {
			return fmt.Errorf("save what is cut: %w", err)
		}
		c.SavedAs = name
	}
	for _, f := range later {
		if f.size == 0 {
			continue
		}
		name, err := v.save(f, 0)
		if err != nil {
			return fmt.Errorf("save what is cut: %w", err)
		}
		if c.SavedAs == "" {
			c.SavedAs = name
		}
	}
	return nil
}

// save copies the end of a segment to "<base>.cut-<position>", or takes the same copy that an unfinished cut left. A
// different one is kept beside it.
func (v *recovery) save(f found, from int64) (string, error) {
	d := v.store.disk
	stem := strings.TrimSuffix(kafkalog.SegmentName(f.base), kafkalog.LogSuffix)
	name := fmt.Sprintf("%s%s%d", stem, cutInfix, from)
	tmp := filepath.Join(v.dir, name+tmpSuffix)
	if err := d.fs.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := d.copyRange(segmentPath(v.dir, f.base), tmp, from, f.size); err != nil {
		return "", errors.Join(err, d.removeQuietly(tmp))
	}
	for n := 1; ; n++ {
		target := name
		if n > 1 {
			target = fmt.Sprintf("%s.%d", name, n)
		}
		path := filepath.Join(v.dir, target)
		err := d.fs.Rename(tmp, path)
		if err == nil {
			return target, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		same, err := d.sameContent(tmp, path)
		if err != nil {
			return "", err
		}
		if same {
			return target, d.fs.Remove(tmp)
		}
	}
}

// removeQuietly removes a half-written copy, so that a full disk is not kept full by it.
func (d disk) removeQuietly(path string) error {
	if err := d.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// copyRange makes a new file of the bytes [lo, hi) of another, durable but for its name.
func (d disk) copyRange(from, to string, lo, hi int64) error {
	src, err := d.fs.Open(from, vfs.Read)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // only read
	dst, err := d.fs.Open(to, vfs.Create)
	if err != nil {
		return err
	}
	err = copyInto(dst, src, lo, hi)
	if err == nil {
		err = dst.Sync()
	}
	return errors.Join(err, dst.Close())
}

func copyInto(dst, src vfs.File, lo, hi int64) error {
	if err := dst.Truncate(hi - lo); err != nil {
		return err
	}
	buf := make([]byte, copyBytes)
	zeros := make([]byte, copyBytes)
	for at := lo; at < hi; {
		piece := buf[:min(copyBytes, hi-at)]
		if n, err := src.ReadAt(piece, at); n < len(piece) {
			return errors.Join(errUnexpectedEnd, err)
		}
		if !bytes.Equal(piece, zeros[:len(piece)]) {
			if _, err := dst.WriteAt(piece, at-lo); err != nil {
				return err
			}
		}
		at += int64(len(piece))
	}
	return nil
}

func (d disk) sameContent(a, b string) (bool, error) {
	fa, err := d.fs.Open(a, vfs.Read)
	if err != nil {
		return false, err
	}
	defer func() { _ = fa.Close() }() // only read
	fb, err := d.fs.Open(b, vfs.Read)
	if err != nil {
		return false, err
	}
	defer func() { _ = fb.Close() }() // only read
	ia, errA := fa.Stat()
	ib, errB := fb.Stat()
	if err := errors.Join(errA, errB); err != nil || ia.Size != ib.Size {
		return false, err
	}
	bufA, bufB := make([]byte, copyBytes), make([]byte, copyBytes)
	for at := int64(0); at < ia.Size; at += copyBytes {
		n := min(copyBytes, ia.Size-at)
		if k, err := fa.ReadAt(bufA[:n], at); int64(k) < n {
			return false, err
		}
		if k, err := fb.ReadAt(bufB[:n], at); int64(k) < n {
			return false, err
		}
		if !bytes.Equal(bufA[:n], bufB[:n]) {
			return false, nil
		}
	}
	return true, nil
}
