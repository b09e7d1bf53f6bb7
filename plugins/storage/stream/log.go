package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/storeframe"
)

// Log is one partition's log in a store without files. One goroutine appends; any number read, at and below what Append
// has confirmed. What it answers are lend's errors.
type Log struct {
	dir      *Dir
	part     storage.Partition
	epoch    record.Epoch  // immutable
	create   bool          // immutable: the first open may make it
	adopt    bool          // immutable
	reopened func()        // immutable: hears that the end has moved without an append; may be nil
	calls    chan struct{} // holds one token: whoever has it may call the plugin about this partition

	mu      sync.Mutex // never held over I/O
	set     lend.Settings
	start   record.Offset
	end     record.Offset // of what was confirmed
	stored  record.Offset // where the store's log ended when it was last opened. Invariant: end <= stored until the next append
	runs    []run         // in order, without gaps; the last one grows
	lease   storage.LeaseEpoch
	at      *instance // where it is open
	sending bool      // an append is under way: it settles what lies above end
	down    error     // not nil: no appends
	lost    int       // openings in a row that the plugin did not survive
	again   again
}

// run is a stretch of the log, remembered for its timestamps and its size.
type run struct {
	base, next   record.Offset
	size         int64
	maxTimestamp int64
	since        time.Time
}

func (l *Log) request() storage.OpenRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return storage.OpenRequest{
		Partition: l.part, Instance: l.dir.instance, Epoch: l.epoch, SegmentBytes: l.set.SegmentBytes, Ceiling: -1,
	}
}

// open opens the log for the first time.
func (l *Log) open(ctx context.Context, up *instance) (*storage.Cut, error) {
	r := l.request()
	r.Create, r.Adopt = l.create, l.adopt
	o, err := up.client.Open(ctx, r)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end = o.Lease.Next
	l.installLocked(o, up)
	return o.Cut, nil
}

// installLocked takes over what the store says of its log.
func (l *Log) installLocked(o storage.Opened, up *instance) {
	l.start, l.stored, l.lease, l.at, l.down = o.LogStart, o.Lease.Next, o.Lease.Epoch, up, nil
	l.runs = l.runs[:0]
	for _, s := range o.Sealed {
		l.growLocked(run{base: s.Base, next: s.Next, size: s.Size, maxTimestamp: s.MaxTimestamp})
	}
}

// growLocked adds a stretch to the last run, or begins another where that is large or old enough: as a log in files would
// roll.
func (l *Log) growLocked(r run) {
	n := len(l.runs)
	if n > 0 {
		last := &l.runs[n-1]
		young := l.set.SegmentTime == 0 || last.since.IsZero() || time.Since(last.since) < l.set.SegmentTime
		if last.size+r.size <= l.set.SegmentBytes && young {
			last.next, last.size, last.maxTimestamp = r.next, last.size+r.size, max(last.maxTimestamp, r.maxTimestamp)
			return
		}
	}
	l.runs = append(l.runs, r)
}

// reopen opens the log at a successor. What was confirmed has to be there. What lies above is a group whose outcome was
// open: whoever has sent it sends it again; else it is part of the log from now on.
func (l *Log) reopen(ctx context.Context, up *instance) error {
	l.mu.Lock()
	if errors.Is(l.down, lend.ErrClosed) {
		l.mu.Unlock()
		return nil
	}
	l.mu.Unlock()
	o, err := up.client.Open(ctx, l.request())
	if l.outlived(ctx, err) {
		return fmt.Errorf("re-open %s: %w: %w", l.part, errReplaced, err)
	}
	if err == nil && o.Lease.Next < l.End() {
		err = fmt.Errorf("%w: log ends at %d, acknowledged up to %d", lend.ErrLostRecords, o.Lease.Next, l.End())
	}
	if err != nil {
		err = fmt.Errorf("re-open %s: %w", l.part, err)
		l.stop(err)
		return err
	}
	if o.Cut != nil {
		l.dir.log.Warn("recovery cut the end of a partition", "partition", l.part.String(), "offset", int64(o.Cut.Offset),
			"bytes", o.Cut.Bytes, "reason", o.Cut.Reason)
	}
	l.mu.Lock()
	if errors.Is(l.down, lend.ErrClosed) {
		l.mu.Unlock()
		return nil
	}
	l.installLocked(o, up)
	more := !l.sending && l.end != l.stored
	if more {
		l.end = l.stored
	}
	l.mu.Unlock()
	if more && l.reopened != nil {
		l.reopened()
	}
	return nil
}

// errReplaced says that a plugin ended before it had opened a log.
var errReplaced = errors.New("store was replaced meanwhile")

// outlived reports whether err says that the plugin ended over the call: then the log waits for the next one. A log over
// which several end in a row stops, and then the others go on.
func (l *Log) outlived(ctx context.Context, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil || ctx.Err() == nil && !errors.Is(err, storage.ErrGone) {
		l.lost = 0
		return false
	}
	l.lost++
	return l.lost < openTries
}

// stop refuses appends from now on, for cause; a log that was closed stays so.
func (l *Log) stop(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !errors.Is(l.down, lend.ErrClosed) {
		l.down = cause
	}
}

// Append sends g to the store and returns when that has it, as durable as it says. Only one goroutine appends to a log.
//
// Definite failures, after which nothing of g ever appears: *lend.FullError, lend.ErrNoStore, lend.ErrClosed, and what
// the store said of itself when it was opened. lend.ErrUnknown says that g was sent, and that no store could be asked for
// its outcome until ctx ended, or that it answered nonsense, which stops the log.
func (l *Log) Append(ctx context.Context, g lend.Group) error {
	sum, err := storeframe.Sum(g.Bytes)
	if err != nil {
		return fmt.Errorf("append to %s: %w", l.part, err)
	}
	weight := min(int64(len(g.Bytes)), flightBytes)
	if err := l.dir.flight.Acquire(ctx, weight); err != nil {
		return fmt.Errorf("%w: %w", lend.ErrNoStore, err)
	}
	defer l.dir.flight.Release(weight)
	err = l.send(ctx, g, sum)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sending = false
	if err == nil {
		l.confirmLocked(g)
		return nil
	}
	l.end = max(l.end, l.stored) // what the store has although nobody knows whose it is
	return err
}

// send sends g until a store has answered, or ctx ends.
func (l *Log) send(ctx context.Context, g lend.Group, sum uint32) error {
	var open error // why the outcome is open
	for {
		up, lease, err := l.ready(ctx, g)
		if err != nil && open != nil {
			return fmt.Errorf("%w: %w; then %w", lend.ErrUnknown, open, err)
		}
		if err != nil {
			return err
		}
		err = up.client.Append(ctx, storage.AppendRequest{
			Partition: l.part, Instance: l.dir.instance, Lease: lease, Epoch: l.epoch,
			Base: g.Base, Next: g.Next, MaxTimestamp: g.MaxTimestamp, Sum: sum, Bytes: g.Bytes,
		})
		switch {
		case err == nil:
			return nil
		case errors.Is(err, storage.ErrFull):
			return &lend.FullError{Err: err}
		case errors.Is(err, ErrBadAnswer): // whatever it answers, it is not about this group
			l.stop(err)
			return fmt.Errorf("%w: %w", lend.ErrUnknown, err)
		case errors.Is(err, storage.ErrLeaseStale), errors.Is(err, storage.ErrHeldMismatch):
			// It is another log than the one that was opened: nothing of it can be trusted.
			l.stop(err)
			if open != nil {
				return fmt.Errorf("%w: %w; then %w", lend.ErrUnknown, open, err)
			}
			return err
		case errors.Is(err, errNoChannel): // it was replaced just now; nothing was sent
			l.dir.replace(up, err)
			continue
		}
		open = err
		l.dir.log.Warn("store is replaced; the group is sent again", "partition", l.part.String(), "offset", int64(g.Base), "err", err)
		l.dir.replace(up, err)
	}
}

// ready waits for a plugin at which the log is open, and checks that g continues it. From then on what lies above the
// log's end is g, or nothing.
func (l *Log) ready(ctx context.Context, g lend.Group) (*instance, storage.LeaseEpoch, error) {
	up, err := l.dir.instanceUp(ctx)
	if err != nil {
		return nil, 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.down != nil:
		return nil, 0, l.down
	case g.Base != l.end:
		return nil, 0, fmt.Errorf("group begins at %d, the log ends at %d", g.Base, l.end)
	}
	if e := record.Batch(g.Bytes).Epoch(); e != l.epoch {
		return nil, 0, fmt.Errorf("group is of leader epoch %d, the log of %d", e, l.epoch)
	}
	if l.at != up {
		return nil, 0, fmt.Errorf("%w: %s is not open there", lend.ErrNoStore, l.part)
	}
	l.sending = true
	return up, l.lease, nil
}

func (l *Log) confirmLocked(g lend.Group) {
	if l.stored < g.Next { // else it was there when the log was opened again
		l.growLocked(run{base: g.Base, next: g.Next, size: int64(len(g.Bytes)), maxTimestamp: g.MaxTimestamp, since: time.Now()})
	}
	l.end, l.stored = g.Next, g.Next
}

// End is the offset of the next record.
func (l *Log) End() record.Offset {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end
}

// Durable is End: what is confirmed is as durable as the store says.
func (l *Log) Durable() record.Offset { return l.End() }

// Epoch is the leader epoch of the batches to come.
func (l *Log) Epoch() record.Epoch { return l.epoch }

// Stats is the log's extent as of now. Segments counts the stretches that retention looks at.
func (l *Log) Stats() lend.Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := lend.Stats{LogStart: l.start, Confirmed: l.end, Segments: max(1, len(l.runs)), Down: l.down}
	for _, r := range l.runs {
		s.Bytes += r.size
	}
	return s
}

// FirstSince is an offset at or below the first record whose timestamp is not below ms.
func (l *Log) FirstSince(ms int64) record.Offset {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.runs {
		if r.maxTimestamp >= ms {
			return max(r.base, l.start)
		}
	}
	return l.end
}

// Alter changes the settings.
func (l *Log) Alter(s lend.Settings) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set = s
	return nil
}

// Aged is false: there are no segments that grow old unwritten.
func (l *Log) Aged() bool { return false }

// RollAged has nothing to do.
func (l *Log) RollAged(context.Context) error { return nil }

// call runs f with the plugin, one call about this partition at a time.
func (l *Log) call(ctx context.Context, f func(up *instance) error) error {
	select {
	case l.calls <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%w: another call for %s is still under way: %w", lend.ErrNoStore, l.part, context.Cause(ctx))
	}
	defer func() { <-l.calls }()
	up, err := l.dir.instanceUp(ctx)
	if err != nil {
		return err
	}
	return f(up)
}

// Expire asks the store what retention would take below limit, and takes it. It returns the log start.
func (l *Log) Expire(ctx context.Context, age time.Duration, bytes int64, limit record.Offset) (record.Offset, error) {
	now := l.Stats().LogStart
	start := now
	err := l.call(ctx, func(up *instance) error {
		var err error
		start, err = up.client.Expire(ctx, storage.ExpireRequest{
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
		return now, fmt.Errorf("%w: retention of %s proposes %d, above the high watermark %d", ErrBadAnswer, l.part, start, limit)
	}
	return l.Trim(ctx, start)
}

// Trim moves the log start up to at least to, durably, and returns where it is.
func (l *Log) Trim(ctx context.Context, to record.Offset) (record.Offset, error) {
	if to > l.End() {
		return 0, fmt.Errorf("trim %s to %d, beyond its end: %w", l.part, to, storage.ErrOffsetOutOfRange)
	}
	var done storage.Trimmed
	err := l.call(ctx, func(up *instance) error {
		var err error
		done, err = up.client.Trim(ctx, storage.TrimRequest{Partition: l.part, Instance: l.dir.instance, LogStart: to})
		if err != nil && !storage.IsAnswer(err) {
			l.dir.replace(up, err)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("trim %s: %w", l.part, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if done.LogStart > l.end || done.First > done.LogStart {
		return 0, fmt.Errorf("%w: log start %d, first %d, end %d", ErrBadAnswer, done.LogStart, done.First, l.end)
	}
	l.start = max(l.start, done.LogStart)
	for len(l.runs) > 0 && l.runs[0].next <= done.First {
		l.runs = l.runs[1:]
	}
	return l.start, nil
}

// Close gives the log back to the store. Without a plugin there is nothing to be given back.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	closed, lease, end := errors.Is(l.down, lend.ErrClosed), l.lease, l.end
	l.mu.Unlock()
	if closed {
		return nil
	}
	l.stop(lend.ErrClosed)
	l.dir.remove(l)
	return l.call(ctx, func(up *instance) error {
		return up.client.Close(ctx, storage.CloseRequest{Partition: l.part, Instance: l.dir.instance, Lease: lease, Next: end})
	})
}
