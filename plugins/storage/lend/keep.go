package lend

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// keep runs f with the plugin, one call about this partition at a time. A parked log that the plugin does not know of,
// because it was restarted since, is opened for it.
func (l *Log) keep(ctx context.Context, f func(p *Plugin) error) error {
	err := l.call(ctx, f)
	if errors.Is(err, storage.ErrNotOpen) && l.parked() {
		if err = l.hold(ctx, ctx); err == nil {
			err = l.call(ctx, f)
		}
	}
	return err
}

func (l *Log) call(ctx context.Context, f func(p *Plugin) error) error {
	return l.control(ctx, func() error {
		p, err := l.dir.store(ctx)
		if err != nil {
			return err
		}
		return f(p)
	})
}

// Expire asks the plugin what retention would take, and takes it: never at or above limit, the high watermark. It
// returns the log start.
func (l *Log) Expire(ctx context.Context, age time.Duration, bytes int64, limit record.Offset) (record.Offset, error) {
	now := l.Stats().LogStart
	start := now
	err := l.keep(ctx, func(p *Plugin) error {
		var err error
		start, err = p.Store.Expire(ctx, storage.ExpireRequest{
			Partition: l.part, Instance: l.dir.instance, RetentionTime: age, RetentionBytes: bytes, Limit: limit,
		})
		return err
	})
	switch {
	case err != nil:
		return now, fmt.Errorf("retention of %s: %w", l.part, err)
	case start <= now:
		return now, nil
	case start > limit:
		return now, fmt.Errorf("%w: retention of %s proposes %d, above the high watermark %d", ErrLied, l.part, start, limit)
	}
	return l.Trim(ctx, start)
}

// Trim moves the log start up to at least to, which is not above the confirmed end, and returns where it is. On return
// the new start is durable. Readers below it end.
func (l *Log) Trim(ctx context.Context, to record.Offset) (record.Offset, error) {
	if to > l.End() {
		return 0, fmt.Errorf("trim %s to %d, beyond its end: %w", l.part, to, storage.ErrOffsetOutOfRange)
	}
	var done storage.Trimmed
	err := l.keep(ctx, func(p *Plugin) error {
		var err error
		done, err = p.Store.Trim(ctx, storage.TrimRequest{Partition: l.part, Instance: l.dir.instance, LogStart: to})
		switch {
		case err == nil:
			return nil
		case errors.Is(err, storage.ErrFull), errors.Is(err, storage.ErrNotOpen):
			return err
		}
		if failed := l.callFailed(ctx, p, err); failed != nil {
			return failed
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("trim %s: %w", l.part, err)
	}
	return l.trimmed(done)
}

func (l *Log) trimmed(done storage.Trimmed) (record.Offset, error) {
	l.mu.Lock()
	if done.LogStart > l.confirmed || done.First > done.LogStart {
		defer l.mu.Unlock()
		return 0, fmt.Errorf("%w: log start %d, first segment %d, end %d", ErrLied, done.LogStart, done.First, l.confirmed)
	}
	l.logStart = max(l.logStart, done.LogStart)
	start := l.logStart
	gone := 0
	for gone < len(l.segments)-1 && l.segments[gone].base < done.First {
		gone++
	}
	removed := l.segments[:gone]
	l.segments = append([]*segment(nil), l.segments[gone:]...)
	l.mu.Unlock()
	for _, s := range removed {
		l.dir.files.forget(s)
	}
	return start, nil
}

// Truncate takes everything from next on off the log, a batch boundary, under a new leader epoch. Appends wait; readers
// of what was there go on with the old files until they ask anew.
func (l *Log) Truncate(ctx context.Context, next record.Offset, epoch record.Epoch) error {
	if err := l.holdStill(ctx); err != nil {
		return fmt.Errorf("truncate %s to %d: %w", l.part, next, err)
	}
	defer l.letGo()
	if err := l.Sync(); err != nil {
		return fmt.Errorf("truncate %s to %d: %w", l.part, next, err)
	}
	req := l.closing()
	l.surrender(ErrTruncating)
	failpoint.Hit("core.truncate.surrendered")
	err := l.keep(ctx, func(p *Plugin) error {
		if err := p.Store.Close(ctx, req); err != nil {
			return err
		}
		failpoint.Hit("core.truncate.closed")
		l.mu.Lock()
		l.confirmed = min(l.confirmed, next) // a plugin that ends over it leaves the cut to its successor
		l.mu.Unlock()
		a, err := p.Store.Truncate(ctx, storage.TruncateRequest{
			Partition: l.part, Instance: l.dir.instance, Lease: req.Lease, Next: next, Epoch: epoch,
		})
		if err != nil {
			return err
		}
		failpoint.Hit("core.truncate.answered")
		if a.Lease.Next != next {
			_ = a.Lease.File.Close()
			return fmt.Errorf("%w: truncated to %d, got %d", ErrLied, next, a.Lease.Next)
		}
		l.mu.Lock()
		l.epoch = epoch
		l.mu.Unlock()
		l.dir.files.claim() // it had one before
		return l.install(a, p)
	})
	if err != nil {
		return fmt.Errorf("truncate %s to %d: %w", l.part, next, err)
	}
	failpoint.Hit("core.truncate.taken")
	l.reopened()
	return nil
}

// ErrTruncating is what an append answers while the log is being shortened: nothing was written for it.
var ErrTruncating = errors.New("log is being truncated")

// Aged reports whether the active segment has taken records for longer than its setting allows.
func (l *Log) Aged() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down != nil || l.set.SegmentTime == 0 {
		return false
	}
	active := l.activeLocked()
	return active.size > 0 && time.Since(active.since) >= l.set.SegmentTime
}

// Adoptable tells what lies ready to be adopted for a topic.
func (d *Dir) Adoptable(ctx context.Context, topic string) (storage.Adoption, error) {
	p, err := d.store(ctx)
	if err != nil {
		return storage.Adoption{}, err
	}
	return p.Store.Adoptable(ctx, topic)
}
