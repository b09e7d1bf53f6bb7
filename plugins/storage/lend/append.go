package lend

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Group is what one append writes: whole batches, in order, stamped with offsets that continue the log.
type Group struct {
	Bytes        []byte
	Base, Next   record.Offset // offsets [Base, Next)
	MaxTimestamp int64
}

// Append writes g at the end of the log, syncs it, and asks the canary; on a nil return it is durable together with
// everything below it, and visible to readers. Only one goroutine appends to a log.
//
// Definite failures, after which nothing of g ever appears: *FullError, ErrNoStore (a roll found no plugin until ctx
// ended), ErrFenced, ErrClosed. ErrUnknown fences the directory. ctx bounds the wait for a plugin, not the disk.
func (l *Log) Append(ctx context.Context, g Group) error {
	file, pos, err := l.begin(ctx, g)
	if err != nil {
		return err
	}
	err = l.write(file, pos, g.Bytes)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.confirmLocked(g, pos)
	}
	l.writing = false
	l.idle.Broadcast()
	return err
}

// begin rolls if the group does not fit and claims the active file.
func (l *Log) begin(ctx context.Context, g Group) (vfs.File, int64, error) {
	size := int64(len(g.Bytes))
	for {
		l.mu.Lock()
		if l.down != nil {
			defer l.mu.Unlock()
			return nil, 0, l.down
		}
		active := l.segments[len(l.segments)-1]
		if g.Base != active.next {
			defer l.mu.Unlock()
			return nil, 0, fmt.Errorf("group begins at %d, the log ends at %d", g.Base, active.next)
		}
		if active.size == 0 || active.size+size <= l.opt.SegmentBytes {
			defer l.mu.Unlock()
			l.writing = true
			return l.file, active.size, nil
		}
		l.mu.Unlock()
		if err := l.dir.fenceErr(); err != nil {
			return nil, 0, err
		}
		if err := l.roll(ctx); err != nil {
			return nil, 0, err
		}
	}
}

// write puts b at pos and syncs it. The file is exactly pos long before, and exactly pos+len(b) long after success.
func (l *Log) write(file vfs.File, pos int64, b []byte) error {
	if err := l.dir.fenceErr(); err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil && info.Size != pos {
		err = fmt.Errorf("segment is %d bytes long, its writer stands at %d", info.Size, pos)
	}
	if err != nil {
		return l.unknown("stat", err)
	}
	if _, err := file.WriteAt(b, pos); err != nil {
		if !isFull(err) {
			return l.unknown("write", err)
		}
		return l.cutBack(file, pos, err)
	}
	if err := l.dir.sync(file); err != nil {
		return l.unknown("sync", err)
	}
	return nil
}

// cutBack makes a full disk a definite failure: the part that was written is cut off, and the cut is synced, because
// ⚗ a cut alone comes back after a power loss (§3).
func (l *Log) cutBack(file vfs.File, pos int64, cause error) error {
	if err := file.Truncate(pos); err != nil {
		return l.unknown("cut back after a full disk", err)
	}
	if err := l.dir.sync(file); err != nil {
		return l.unknown("sync after a full disk", err)
	}
	return &FullError{Err: cause}
}

func (l *Log) unknown(doing string, err error) error {
	err = fmt.Errorf("%s on %s: %w", doing, l.part, err)
	l.dir.Fence(err)
	return fmt.Errorf("%w: %w", ErrUnknown, err)
}

// isFull reports the errors that leave a short write and nothing worse.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

func (l *Log) confirmLocked(g Group, pos int64) {
	active := l.segments[len(l.segments)-1]
	active.next = g.Next
	active.size = pos + int64(len(g.Bytes))
	active.maxTimestamp = max(active.maxTimestamp, g.MaxTimestamp)
	if active.noteBatch(g.Base, pos) {
		l.notes.add(storage.Entry{Last: record.Batch(g.Bytes).LastOffset(), Position: pos, MaxTimestamp: active.maxTimestamp})
	}
	l.confirmed = g.Next
}

// roll seals the active segment and takes the next. Everything in the active one is synced: Append syncs each group.
func (l *Log) roll(ctx context.Context) error {
	p, err := l.dir.store(ctx)
	if err != nil {
		return err
	}
	l.mu.Lock()
	if l.down != nil {
		defer l.mu.Unlock()
		return l.down
	}
	active := l.segments[len(l.segments)-1]
	req := storage.RollRequest{
		Partition: l.part, Instance: l.dir.instance, Lease: l.lease,
		Position: active.size, Next: active.next, MaxTimestamp: active.maxTimestamp,
	}
	l.mu.Unlock()
	lease, err := p.Store.Roll(ctx, req)
	if err != nil {
		return l.rollFailed(ctx, p, err)
	}
	file, err := l.take(lease)
	if err != nil || lease.Base != req.Next || lease.Epoch <= req.Lease {
		if err == nil {
			_ = file.Close()
			err = fmt.Errorf("%w: rolled to %d, got %d", ErrLied, req.Next, lease.Base)
		}
		l.surrender(err)
		return fmt.Errorf("roll %s: %w", l.part, err)
	}
	next := &segment{base: lease.Base, next: lease.Base, maxTimestamp: -1, inode: inode{lease.Dev, lease.Ino}}
	l.dir.files.pin(next, file)
	l.mu.Lock()
	l.segments = append(l.segments, next)
	l.lease, l.file = lease.Epoch, file
	l.notes = notes{} // they were of the sealed segment; for that one the core has its own index
	l.mu.Unlock()
	l.dir.disclaim(active.inode)
	l.dir.files.unpin(active)
	return nil
}

// rollFailed decides what a failed roll means. A full disk is the publisher's to wait out. Whatever leaves open whether
// the roll has happened ends the plugin: its successor is told what is held, and then the roll is asked for again.
func (l *Log) rollFailed(ctx context.Context, p *Plugin, err error) error {
	err = fmt.Errorf("roll %s: %w", l.part, err)
	switch {
	case errors.Is(err, storage.ErrFull):
		return &FullError{Err: err}
	case errors.Is(err, storage.ErrHeldMismatch):
		l.surrender(err)
		return err
	}
	p.Kill(err)
	l.dir.disown(p)
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrNoStore, err)
	}
	l.dir.log.Warn("roll is asked for again when the plugin is back", "partition", l.part.String(), "err", err)
	return nil // begin tries again with the successor, until ctx ends
}

// disown forgets p, if it is still the plugin, so that calls wait for its successor.
func (d *Dir) disown(p *Plugin) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.plugin == p {
		d.plugin = nil
		d.signalLocked()
	}
}
