package lend

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/storage"
)

// control runs f while no other call about this partition is made to the plugin: the contract has them one at a time.
// Where ctx has ended before, f runs if it can at once.
func (l *Log) control(ctx context.Context, f func() error) error {
	select {
	case l.calls <- struct{}{}:
	default:
		select {
		case l.calls <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("%w: another call for %s is still under way: %w", ErrNoStore, l.part, context.Cause(ctx))
		}
	}
	defer func() { <-l.calls }()
	return f()
}

// roll seals the active segment and takes the next; everything in it is synced before. A nil return says that it may
// be worth looking again, not that this call has rolled: a plugin that died is waited for by the next call. It waits for
// a plugin, or for other calls about the log, until wait ends.
func (l *Log) roll(ctx, wait context.Context) error {
	if l.parked() {
		return l.hold(wait, ctx)
	}
	failpoint.Hit("core.roll.begun")
	if err := l.Sync(); err != nil {
		return err
	}
	return l.control(wait, func() error {
		p, err := l.dir.store(wait)
		if err != nil {
			return err
		}
		l.mu.Lock()
		if l.use.parked {
			l.mu.Unlock()
			return nil
		}
		if l.down != nil {
			defer l.mu.Unlock()
			return l.down
		}
		active := l.activeLocked()
		if l.synced.position != active.size || active.size == 0 {
			l.mu.Unlock()
			return nil // something was written meanwhile, or it has been rolled
		}
		req := storage.RollRequest{
			Partition: l.part, Instance: l.dir.instance, Lease: l.lease,
			Position: active.size, Next: active.next, MaxTimestamp: active.maxTimestamp,
			// So that the plugin can seal the index without reading the end of the segment.
			Entries: slices.Clone(l.notes.entries),
		}
		l.mu.Unlock()
		l.giveBlocksBack()
		release := l.dir.transit()
		defer release()
		failpoint.Hit("core.roll.asking")
		lease, err := p.Store.Roll(ctx, req)
		failpoint.Hit("core.roll.answered")
		if err != nil {
			return l.callFailed(ctx, p, fmt.Errorf("roll %s: %w", l.part, err))
		}
		return l.rolled(active, lease, req)
	})
}

// rolled takes the lease of the next segment.
func (l *Log) rolled(active *segment, lease storage.Lease, req storage.RollRequest) error {
	file, err := l.take(lease)
	if err == nil && (lease.Base != req.Next || lease.Epoch <= req.Lease) {
		_ = file.Close()
		l.dir.disclaim(inode{lease.Dev, lease.Ino})
		err = fmt.Errorf("%w: rolled to %d, got %d", ErrLied, req.Next, lease.Base)
	}
	if err != nil {
		l.surrender(err)
		return fmt.Errorf("roll %s: %w", l.part, err)
	}
	next := &segment{base: lease.Base, next: lease.Base, maxTimestamp: -1, inode: inode{lease.Dev, lease.Ino}}
	l.mu.Lock()
	if l.lease != req.Lease && l.down == nil {
		// The plugin answered, died, and its successor has adopted the old segment: this answer is void.
		l.mu.Unlock()
		_ = file.Close()
		l.dir.disclaim(next.inode)
		return nil
	}
	if l.down != nil || l.activeLocked() != active || l.synced.position != active.size {
		// Fenced, closed, or written to while the call was under way: the new segment stays empty, and who opens the
		// log next finds it.
		down := l.down
		l.mu.Unlock()
		_ = file.Close()
		l.dir.disclaim(next.inode)
		if down == nil {
			down = fmt.Errorf("roll %s: written to while it was sealed", l.part)
			l.surrender(down)
		}
		return down
	}
	l.dir.files.claim() // a roll does not wait for a descriptor: it would hold one meanwhile
	l.dir.files.pin(next, file, l)
	l.segments = append(l.segments, next)
	l.lease, l.file = lease.Epoch, file
	l.synced = mark{lease.Base, 0}
	l.notes = notes{} // they were of the sealed segment; for that one the core has its own index
	l.ahead = ahead{}
	l.mu.Unlock()
	l.dir.disclaim(active.inode)
	l.dir.files.unpin(active)
	failpoint.Hit("core.roll.taken")
	return nil
}

// callFailed decides what a failed control call means. A full disk is the publisher's to wait out; a mismatch stops the
// partition. Whatever leaves open whether the call has happened ends the plugin: its successor is told what is held,
// and then the call is made again by who needs it.
func (l *Log) callFailed(ctx context.Context, p *Plugin, err error) error {
	switch {
	case errors.Is(err, storage.ErrFull) && l.dir.pinned():
		return &FullError{Err: err} // what others have in hand still takes records
	case errors.Is(err, storage.ErrFull):
		l.dir.filled(err)
		return &FullError{Err: err}
	case errors.Is(err, storage.ErrHeldMismatch):
		return l.lose(p, err)
	}
	p.Kill(err)
	l.dir.disown(p)
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrNoStore, err)
	}
	l.dir.log.Warn("storage plugin is replaced; the call is made again", "partition", l.part.String(), "err", err)
	return nil
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

// RollAged rolls the active segment if its first record was written longer ago than the log's SegmentTime. Only the
// log's writer may call it. It waits for no plugin: while there is none, or another call about the log is under way, it
// does nothing, and whoever calls again later finds the segment as it is.
func (l *Log) RollAged(ctx context.Context) error {
	atOnce, cancel := context.WithCancel(ctx)
	cancel()
	for range 2 { // a parked log is taken first
		if !l.Aged() {
			return nil
		}
		if err := l.roll(ctx, atOnce); err != nil && !errors.Is(err, ErrNoStore) {
			return err
		}
	}
	return nil
}
