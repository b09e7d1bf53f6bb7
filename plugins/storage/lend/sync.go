package lend

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
)

// SyncMode says when what was appended is made durable.
type SyncMode uint8

const (
	// SyncBatch syncs each group before it is confirmed.
	SyncBatch SyncMode = iota
	// SyncInterval confirms when the group is in the page cache, and syncs at the latest after an interval.
	SyncInterval
	// SyncNever leaves it to the kernel; a segment is synced when it is sealed.
	SyncNever
)

// Sync is a log's durability setting.
type Sync struct {
	Mode     SyncMode
	Interval time.Duration // of SyncInterval
}

// writebackBytes is how much an unsynced log may gather before the kernel is asked to start writing it: less and the
// requests cost, more and somebody else's fdatasync waits behind it.
const writebackBytes = 4 << 20

// sync makes f durable on one of the directory's slots and asks the canary afterwards: ⚗ after a journal abort
// fdatasync returns 0 for files whose bytes are gone, and only the canary tells (§3).
func (d *Dir) sync(f vfs.File) error {
	d.syncs <- struct{}{}
	err := f.Sync()
	<-d.syncs
	if err != nil {
		return fmt.Errorf("fdatasync: %w", err)
	}
	d.mu.Lock()
	fence := d.fence
	d.mu.Unlock()
	if fence != nil {
		return fmt.Errorf("fenced during the sync: %w", fence)
	}
	d.canaryMu.RLock() // over the probe: a canary that is replaced meanwhile must not be closed under it
	defer d.canaryMu.RUnlock()
	if d.canary == nil {
		return errors.New("closed during the sync")
	}
	if err := d.fs.Probe(d.canary); err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	return nil
}

// Sync makes everything appended so far durable. It may run beside Append. A failure fences the directory, as in Append.
func (l *Log) Sync() error {
	l.mu.Lock()
	if l.down != nil {
		defer l.mu.Unlock()
		return l.down
	}
	active := l.activeLocked()
	end := mark{active.next, active.size}
	if end == l.synced {
		l.mu.Unlock()
		return nil
	}
	file := l.file
	l.unsynced.since = time.Time{}
	l.use.count++
	l.mu.Unlock()
	err := l.dir.sync(file)
	if err != nil {
		err = l.unknown("sync", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil && end.next > l.synced.next && l.activeLocked() == active {
		l.synced = end
	}
	l.releaseLocked()
	return err
}

// syncIfDue syncs the log in its interval's turn. It returns at once while an earlier sync is still under way: a disk
// that hangs gathers one waiting sync a log, and no more.
func (l *Log) syncIfDue(now time.Time, start func(sync func())) {
	l.mu.Lock()
	u := &l.unsynced
	due := l.set.Sync.Mode == SyncInterval && !u.syncing && !u.since.IsZero() && now.Sub(u.since) >= l.set.Sync.Interval
	u.syncing = u.syncing || due
	l.mu.Unlock()
	if !due {
		return
	}
	start(func() {
		_ = l.Sync() // a failure has fenced the directory
		l.mu.Lock()
		defer l.mu.Unlock()
		l.unsynced.syncing = false
	})
}

// span is a piece of a file.
type span struct{ from, bytes int64 }

// unwrittenLocked is what the kernel has not been asked to write yet, once that is enough.
func (l *Log) unwrittenLocked(active *segment) span {
	if l.unsynced.written > active.size {
		l.unsynced.written = 0 // of an older segment
	}
	from := max(l.synced.position, l.unsynced.written)
	if active.size-from < writebackBytes {
		return span{}
	}
	l.unsynced.written = active.size
	return span{from, active.size - from}
}

// writeback asks the kernel to start writing. It is a request; nothing depends on its success.
func writeback(f vfs.File, s span) {
	if f.Fd() >= 0 {
		_ = unix.SyncFileRange(f.Fd(), s.from, s.bytes, unix.SYNC_FILE_RANGE_WRITE)
	}
}

// Alter changes the log's settings. A log that is synced by batch from now on is synced as a whole first: an
// acknowledgement that says disk covers everything below it.
func (l *Log) Alter(s Settings) error {
	l.mu.Lock()
	l.set = s
	l.mu.Unlock()
	if s.Sync.Mode != SyncBatch {
		return nil
	}
	return l.Sync()
}
