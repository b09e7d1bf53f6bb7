package filelog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync/atomic"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
)

// The reserve is space that is kept for what the store itself has to write when the disk is full: checkpoints, the
// name of the next segment, the end of an index.
const (
	reserveDefault  = 64 << 20
	reserveFraction = 16 // of the file system, where that is less
	// roomBytes must be free beside the reserve before records are taken again: a group, and what goes with it.
	roomBytes = 2 << 20
)

// reserve is the reserve file's size and whose turn it is to work on it.
type reserve struct {
	size    int64         // immutable
	turn    chan struct{} // one slot
	wanting atomic.Bool   // the disk was full, and Room has not found room since
}

// reserveBytes is how large the reserve is to be.
func (s *Store) reserveBytes(want int64) int64 {
	if want >= 0 {
		return want
	}
	room, ok := s.disk.fs.(vfs.Room)
	if !ok {
		return 0
	}
	volume, err := room.Volume(s.disk.data)
	if err != nil {
		return 0
	}
	return min(reserveDefault, volume.Size/reserveFraction)
}

// withReserve does something that needs a little space. Where there is none, the reserve is given up for it.
func (s *Store) withReserve(do func() error) error {
	err := do()
	if err == nil || !errors.Is(withFull(err), storage.ErrFull) {
		return err
	}
	spent, spendErr := s.spendReserve()
	if spendErr != nil || !spent {
		return err
	}
	s.log.Error("disk is full: the reserve is used up", "cause", err)
	return do()
}

// spendReserve frees the reserve, and reports whether there was any.
func (s *Store) spendReserve() (bool, error) {
	s.reserve.turn <- struct{}{}
	defer func() { <-s.reserve.turn }()
	info, err := s.disk.fs.Stat(s.disk.reserve())
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, s.disk.fs.Remove(s.disk.reserve())
}

// Room implements storage.Keeper.
func (s *Store) Room(context.Context) error {
	if err := s.restoreReserve(); err != nil {
		return fmt.Errorf("reserve: %w", withFull(err))
	}
	probe := filepath.Join(s.disk.tmp(), "room")
	err := s.disk.allocate(probe, roomBytes)
	if err := errors.Join(err, s.disk.removeQuietly(probe)); err != nil {
		return fmt.Errorf("room beside the reserve: %w", withFull(err))
	}
	s.reserve.wanting.Store(false)
	return nil
}

// restoreReserve makes the reserve whole.
func (s *Store) restoreReserve() error {
	s.reserve.turn <- struct{}{}
	defer func() { <-s.reserve.turn }()
	info, err := s.disk.fs.Stat(s.disk.reserve())
	there := err == nil
	switch {
	case !there && !errors.Is(err, fs.ErrNotExist):
		return err
	case there && info.Size == s.reserve.size, !there && s.reserve.size == 0:
		return nil
	case s.reserve.size == 0:
		return s.disk.fs.Remove(s.disk.reserve())
	}
	tmp := s.disk.reserve() + tmpSuffix
	if err := errors.Join(s.disk.removeQuietly(tmp), s.disk.removeQuietly(s.disk.reserve())); err != nil {
		return err
	}
	if err := s.disk.allocate(tmp, s.reserve.size); err != nil {
		return errors.Join(err, s.disk.removeQuietly(tmp))
	}
	return s.disk.fs.Replace(tmp, s.disk.reserve())
}

// zerosAtOnce is how much is written at a time where blocks can only be had by writing.
const zerosAtOnce = 1 << 20

// allocate makes a new file of that size with blocks of its own. That they are on disk after a crash does not matter.
func (d disk) allocate(path string, size int64) error {
	f, err := d.fs.Open(path, vfs.Create)
	if errors.Is(err, fs.ErrExist) {
		if err = d.fs.Remove(path); err == nil {
			f, err = d.fs.Open(path, vfs.Create)
		}
	}
	if err != nil {
		return err
	}
	err = errors.ErrUnsupported
	if room, ok := d.fs.(vfs.Room); ok {
		err = room.Allocate(f, size)
	}
	if isUnsupported(err) {
		err = writeZeros(f, size)
	}
	return errors.Join(err, f.Close())
}

func writeZeros(f vfs.File, size int64) error {
	zeros := make([]byte, min(size, zerosAtOnce))
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// isUnsupported is errors.ErrUnsupported, which EOPNOTSUPP and ENOSYS are too.
func isUnsupported(err error) bool { return errors.Is(err, errors.ErrUnsupported) }
