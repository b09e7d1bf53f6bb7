package lend

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/storage"
)

// use says who works with the active file, and whether there is one. Guarded by Log.mu.
type use struct {
	count   int        // appends and syncs that use it
	idle    *sync.Cond // signalled when count falls, and when parking ends
	opening bool       // no plugin's answer was taken yet
	parking bool       // the lease is being given back, or the log cut: no append begins
	// parked: the lease was given back, to be taken again when it is needed. Everything in the log is durable, and
	// segments says what lies on disk. Invariant: parked => file == nil.
	parked bool
	lost   int // re-adoptions in a row that the plugin did not survive
	again  again
}

func (l *Log) parked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.use.parked
}

// park gives the lease of an idle log back, and with it a descriptor (§9). It reports false, and changes nothing, where
// the log is in use, or the plugin is not there to be told.
func (l *Log) park(ctx context.Context) bool {
	select {
	case l.calls <- struct{}{}:
		defer func() { <-l.calls }()
	default:
		return false
	}
	l.dir.mu.Lock()
	p := l.dir.plugin
	l.dir.mu.Unlock()
	l.mu.Lock()
	if p == nil || l.file == nil || l.down != nil || l.use.count > 0 || l.use.parking {
		l.mu.Unlock()
		return false
	}
	l.use.parking = true
	l.mu.Unlock()
	defer l.letGo()
	if l.Sync() != nil {
		return false
	}
	l.giveBlocksBack()
	// The plugin hears what was written, so that it need not read it to make its index.
	l.sendNotes(context.WithoutCancel(ctx), p)
	req, ok := l.detach(p)
	if !ok {
		return false
	}
	// Who needs the descriptor may have gone; the plugin has to be told all the same, and answers or is replaced.
	if err := p.Store.Close(context.WithoutCancel(ctx), req); err != nil {
		p.Kill(fmt.Errorf("park %s: %w", l.part, err))
		l.dir.disown(p)
	}
	return true
}

// detach closes the active file. It reports false where the log came into use meanwhile, or p is no longer the plugin.
func (l *Log) detach(p *Plugin) (storage.CloseRequest, bool) {
	l.mu.Lock()
	if l.file == nil || l.down != nil || l.use.count > 0 || l.synced.next != l.confirmed || !l.dir.isPlugin(p) {
		l.mu.Unlock()
		return storage.CloseRequest{}, false
	}
	active := l.activeLocked()
	file, ok := l.dir.files.detach(active)
	if !ok {
		l.mu.Unlock()
		return storage.CloseRequest{}, false
	}
	req := storage.CloseRequest{Partition: l.part, Instance: l.dir.instance, Lease: l.lease, Position: active.size, Next: l.confirmed}
	l.file, l.use.parked, l.notes = nil, true, notes{}
	l.mu.Unlock()
	_ = file.Close() // nothing was written through it since its last sync
	l.dir.files.give()
	return req, true
}

// hold takes the lease of a parked log again. It waits for the plugin until ctx ends, and for a descriptor until room
// does; then the log is as it was. What the plugin answers wrongly stops the log.
func (l *Log) hold(ctx, room context.Context) error {
	return l.control(ctx, func() error {
		for try := 1; ; try++ {
			l.mu.Lock()
			parked, down := l.use.parked, l.down
			l.mu.Unlock()
			if down != nil || !parked {
				return down
			}
			again, err := l.unpark(ctx, room)
			if !again || err == nil {
				return err
			}
			if errors.Is(err, errReplaced) {
				try-- // nothing is wrong with the log
				continue
			}
			if try >= openTries {
				return l.lose(nil, err)
			}
			l.dir.log.Warn("parked partition is opened again", "partition", l.part.String(), "err", err)
		}
	})
}

// unpark opens a parked log at the plugin. It reports whether another try may help: the plugin was replaced meanwhile.
func (l *Log) unpark(ctx, room context.Context) (again bool, err error) {
	p, err := l.dir.store(ctx)
	if err != nil {
		return false, err
	}
	if err := l.dir.fenceErr(); err != nil {
		return false, err
	}
	if err := l.dir.makeRoom(room); err != nil {
		return false, fmt.Errorf("lend %s again: %w", l.part, err)
	}
	release := l.dir.transit()
	defer release()
	l.mu.Lock()
	req := storage.OpenRequest{
		Partition: l.part, Instance: l.dir.instance, Epoch: l.epoch, SegmentBytes: l.set.SegmentBytes,
		Lazy: l.set.Sync.Mode != SyncBatch, Ceiling: l.confirmed,
	}
	l.mu.Unlock()
	// Who asks may give up; the plugin's answer is heard all the same, or it would hold a lease that nobody knows of.
	a, err := l.dir.ask(context.WithoutCancel(ctx), p, req)
	if err != nil {
		l.dir.files.give()
		return l.notOpened(p, err)
	}
	if a.Lease.Next < req.Ceiling {
		_ = a.Lease.File.Close()
		l.dir.files.give()
		err = fmt.Errorf("%w: parked log ends at %d, acknowledged up to %d", ErrLostRecords, a.Lease.Next, req.Ceiling)
		return false, l.lose(p, err)
	}
	if err = l.install(a, p); errors.Is(err, errReplaced) {
		return true, err
	}
	if err != nil {
		return false, l.lose(p, err)
	}
	return false, nil
}

// notOpened decides what it means that a parked log could not be opened: what the plugin says of the log stops it until it
// is tried again; anything else leaves it parked, and a plugin that may or may not have opened it is replaced.
func (l *Log) notOpened(p *Plugin, err error) (again bool, _ error) {
	err = fmt.Errorf("open parked %s: %w", l.part, err)
	switch {
	case errors.Is(err, storage.ErrFull):
		l.dir.filled(err)
		return false, &FullError{Err: err}
	case storage.IsAnswer(err) && !errors.Is(err, storage.ErrLeaseHeld):
		return false, l.lose(p, err)
	}
	l.dir.end(p, err)
	return true, fmt.Errorf("%w: %w", ErrNoStore, err)
}

// letGoOfParked makes a parked log read from disk anew after a fence: descriptors are closed, what is known stays. It
// reports false, and does nothing, for one that is not parked.
func (l *Log) letGoOfParked() bool {
	l.mu.Lock()
	if !l.use.parked {
		defer l.mu.Unlock()
		return l.use.opening && l.file == nil // it holds nothing either
	}
	old := l.segments
	l.segments = make([]*segment, len(old))
	for i, s := range old {
		l.segments[i] = &segment{
			base: s.base, next: s.next, size: s.size, maxTimestamp: s.maxTimestamp, maxOffset: s.maxOffset,
			since: s.since, index: s.index, inode: s.inode, parked: i == len(old)-1,
		}
	}
	l.mu.Unlock()
	for _, s := range old {
		l.dir.files.forget(s)
	}
	return true
}

// holdStill is hold for who must not have the log parked afterwards, or appended to, until letGo.
func (l *Log) holdStill(ctx context.Context) error {
	for {
		if err := l.hold(ctx, ctx); err != nil {
			return err
		}
		l.mu.Lock()
		still := !l.use.parked && !l.use.parking
		l.use.parking = l.use.parking || still
		l.mu.Unlock()
		if still {
			return nil
		}
	}
}

func (l *Log) letGo() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.use.parking = false
	l.use.idle.Broadcast()
}
