package lend

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
)

// A store's files may be pinned: they last as long as somebody has them open (§8). Then the core keeps every segment
// open, parks nothing, and hands all of it back to a successor of the plugin.

// Retention is what a log may keep, where that has to be seen to at each roll.
type Retention struct {
	Time  time.Duration // 0: for ever
	Bytes int64         // -1: no limit
}

// learn takes over what the store says of itself.
func (d *Dir) learn(desc storage.Description) {
	d.mu.Lock()
	d.told.desc = desc
	d.mu.Unlock()
	d.told.segmentRecords.Store(desc.SegmentRecords)
	d.told.pinned.Store(desc.Pinned)
}

// told is what the adopted store said of itself.
type told struct {
	desc storage.Description // guarded by Dir.mu
	// Of desc, for who asks for each append. segmentRecords bounds a segment; 0: by what 31 bits count.
	segmentRecords atomic.Int64
	pinned         atomic.Bool
}

// pinned reports whether what the store lends lasts no longer than it is open.
func (d *Dir) pinned() bool { return d.told.pinned.Load() }

// recordsMax is how many records a segment may hold.
func (d *Dir) recordsMax() int64 {
	if n := d.told.segmentRecords.Load(); n > 0 {
		return min(n, math.MaxInt32)
	}
	return math.MaxInt32
}

// TooManyError refuses a group that no segment of the store could hold. Nothing was written.
type TooManyError struct{ Records, Max int64 }

func (e *TooManyError) Error() string {
	return fmt.Sprintf("%d records at once, and a segment of this store holds %d", e.Records, e.Max)
}

// handBackLocked adds to h every file there is, in use until the function it returns is called.
func (l *Log) handBackLocked(h *storage.Held) (release func()) {
	h.LogStart = l.logStart
	var used []*segment
	for _, s := range l.segments {
		f, ok := l.dir.files.acquire(s)
		if !ok {
			continue // the store will miss it, and say so
		}
		used = append(used, s)
		if s == l.activeLocked() {
			h.File, h.MaxTimestamp = handedBack{f}, s.maxTimestamp
			continue
		}
		h.Sealed = append(h.Sealed, storage.HeldSegment{
			Segment: storage.Segment{Base: s.base, Next: s.next, Size: s.size, MaxTimestamp: s.maxTimestamp}, File: handedBack{f},
		})
	}
	return func() {
		for _, s := range used {
			l.dir.files.release(s)
		}
	}
}

// handedBack is a file of the core's as it goes to the store; it stays the core's.
type handedBack struct{ file vfs.File }

// Fd is the descriptor.
func (h handedBack) Fd() uintptr { return uintptr(h.file.Fd()) }

// Close does nothing: the core uses the file.
func (h handedBack) Close() error { return nil }

// VFS is the file itself, for a store in the same process.
func (h handedBack) VFS() vfs.File { return h.file }

// expireRolled has retention take what the roll has made too much, where waiting for the next look could fill the
// store. What fails is tried again at that look.
func (l *Log) expireRolled(ctx context.Context) {
	l.mu.Lock()
	r := l.set.Retention
	l.mu.Unlock()
	if r == nil || !l.dir.pinned() {
		return
	}
	if _, err := l.Expire(ctx, r.Time, r.Bytes, l.End()); err != nil {
		l.dir.log.Debug("retention after a roll", "partition", l.part.String(), "err", err)
	}
}

// checkLent refuses a descriptor that could not be written as the core writes, or that moves what is written (⚗ with
// O_APPEND pwrite ignores its offset; §2). A simulated file has none.
func checkLent(f storage.File) error {
	fd := int(f.Fd())
	if fd < 0 {
		return nil
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	switch {
	case err != nil:
		return fmt.Errorf("%w: descriptor %d: %w", ErrLied, fd, err)
	case flags&unix.O_APPEND != 0:
		return fmt.Errorf("%w: the lent descriptor is open for appending", ErrLied)
	case flags&unix.O_ACCMODE != unix.O_RDWR:
		return fmt.Errorf("%w: the lent descriptor is not open for reading and writing", ErrLied)
	}
	return nil
}
