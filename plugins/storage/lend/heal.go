package lend

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
)

// A log that could not be opened at a plugin is tried again by itself: by each plugin that is adopted, and meanwhile after
// a pause that grows. What the core holds and the store denies (HELD_MISMATCH) is not tried again: that would take
// another log for the one that was acknowledged.

const (
	// retryMin and retryMax bound the pause between two tries: what mends by itself does so soon, and what an operator
	// mends is noticed while he looks.
	retryMin = time.Second
	retryMax = 30 * time.Second
	// healTick is how often the directory looks for logs that are to be tried again.
	healTick = 250 * time.Millisecond
	// healParallel bounds the tries under way at once; each may hang.
	healParallel = 8
	// healWait bounds how long a try waits for a descriptor, or for other calls about the log.
	healWait = 5 * time.Second
)

// RetryPause is how long to wait before a partition is tried again that could not be opened so many times in a row: a
// second, doubled each time up to thirty, and then up to a quarter less, so that partitions which fell together do not
// come back together.
func RetryPause(failures int) time.Duration {
	d := retryMin
	for range failures - 1 {
		if d >= retryMax {
			break
		}
		d *= 2
	}
	d = min(d, retryMax)
	return d - time.Duration(rand.Int64N(int64(d)/4))
}

// again says when a log that is down is tried again. Guarded by Log.mu.
type again struct {
	due      time.Time // zero: it is not down, or nothing is to be tried
	failures int       // in a row
	late     bool      // the last try had no answer: who adopts a plugin does not wait for the next one
	advanced bool      // a leader epoch was taken for what comes after
	barred   bool      // the store denies what was held: the log stays down
	said     string    // the reason, as it was last logged
}

// doubt is an open whose answer cannot be used, at the plugin it was asked of.
type doubt struct {
	plugin *Plugin
	err    error
	open   bool // the call may be under way yet, or has left a lease that nobody knows of
}

// asking is what bears on asking a plugin for a partition.
type asking struct {
	transits chan struct{}               // a token for each descriptor that is on its way
	opens    sync.RWMutex                // held for reading over each open, for writing by who ends a plugin over one
	adopting bool                        // guarded by Dir.mu: a plugin is being adopted
	doubts   map[storage.Partition]doubt // guarded by Dir.mu
}

// ask opens a partition at p. Tries that end a plugin do not begin meanwhile.
func (d *Dir) ask(ctx context.Context, p *Plugin, r storage.OpenRequest) (storage.Opened, error) {
	d.asking.opens.RLock()
	defer d.asking.opens.RUnlock()
	return p.Store.Open(ctx, r)
}

// note remembers what forbids to ask p for the partition once more.
func (d *Dir) note(part storage.Partition, p *Plugin, err error) {
	open := errors.Is(err, storage.ErrNoAnswer) || errors.Is(err, storage.ErrLeaseHeld)
	if !open && !errors.Is(err, storage.ErrBadAnswer) && !errors.Is(err, ErrLied) && !errors.Is(err, ErrLostRecords) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asking.doubts[part] = doubt{p, err, open}
}

// doubted takes out what is known against asking p for the partition.
func (d *Dir) doubted(part storage.Partition, p *Plugin) (doubt, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, ok := d.asking.doubts[part]
	if ok && known.plugin != p {
		delete(d.asking.doubts, part)
		ok = false
	}
	return known, ok
}

// mayAsk refuses to ask p for a partition that it has lied about: it would say the same. Where an earlier try had no
// answer p is ended first, and its successor asked (§2); but not while others are being opened, because a store counts
// the ends of its process against them (§6.6).
func (d *Dir) mayAsk(part storage.Partition, p *Plugin) error {
	known, ok := d.doubted(part, p)
	if !ok {
		return nil
	}
	if !known.open {
		return known.err
	}
	if !d.asking.opens.TryLock() {
		return fmt.Errorf("%w: it is ended for an earlier try, when others are opened: %w", ErrNoStore, known.err)
	}
	defer d.asking.opens.Unlock()
	d.end(p, known.err)
	return fmt.Errorf("%w: it is being replaced: %w", ErrNoStore, known.err)
}

// end kills p and forgets it.
func (d *Dir) end(p *Plugin, cause error) {
	p.Kill(cause)
	d.disown(p)
}

// stop takes the log down for a reason that may pass, and has it tried again. With keep it goes on holding what it
// holds.
func (l *Log) stop(p *Plugin, keep bool, err error) {
	l.dir.note(l.part, p, err)
	if !keep {
		l.surrender(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.down = err
	a := &l.use.again
	a.failures++
	a.late = errors.Is(err, storage.ErrNoAnswer)
	a.barred = errors.Is(err, storage.ErrHeldMismatch)
	a.due = time.Time{}
	if !a.barred {
		a.due = time.Now().Add(RetryPause(a.failures))
	}
}

// lose is stop for a log that holds nothing, and returns err.
func (l *Log) lose(p *Plugin, err error) error {
	l.stop(p, false, err)
	l.complain(err)
	return err
}

// complain logs that the log is down, once for each reason.
func (l *Log) complain(err error) {
	l.mu.Lock()
	a := &l.use.again
	fresh, barred := a.said != err.Error(), a.barred
	a.said = err.Error()
	l.mu.Unlock()
	switch {
	case !fresh:
	case barred:
		l.dir.log.Error("partition stays down", "partition", l.part.String(), "err", err)
	default:
		l.dir.log.Error("partition is down; tried again", "partition", l.part.String(), "err", err)
	}
}

// healAll tries logs again whose time has come, beside each other, until ctx ends.
func (d *Dir) healAll(ctx context.Context, tasks *sync.WaitGroup) {
	places := make(chan struct{}, healParallel)
	every(ctx, healTick, func(now time.Time) {
		for _, l := range d.all() {
			if !l.healDue(now) {
				continue
			}
			select {
			case places <- struct{}{}:
			default:
				return // at the next tick
			}
			tasks.Go(func() {
				defer func() { <-places }()
				l.heal(ctx)
			})
		}
	})
}

func (l *Log) healDue(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	due := l.use.again.due
	return !due.IsZero() && !now.Before(due) && !l.use.opening && !l.closed
}

// heal tries to have the log opened at the plugin that there is. While one is being adopted that does it.
func (l *Log) heal(ctx context.Context) {
	l.mu.Lock()
	if l.closed || l.use.opening || l.use.again.due.IsZero() {
		l.mu.Unlock()
		return
	}
	l.use.opening = true // who adopts the next plugin leaves the log to this try
	l.mu.Unlock()
	d := l.dir
	d.mu.Lock()
	p := d.plugin
	if d.asking.adopting || d.fence != nil {
		p = nil
	}
	d.mu.Unlock()
	held, err := false, ErrNoStore
	if p != nil {
		held, err = l.healAt(ctx, p)
	}
	l.mu.Lock()
	l.use.opening = false
	l.mu.Unlock()
	switch {
	case err == nil:
		d.log.Info("partition is back", "partition", l.part.String())
		l.reopened()
	case ctx.Err() != nil, errors.Is(err, ErrClosed):
	case errors.Is(err, ErrNoStore), errors.Is(err, errReplaced):
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.use.again.due.IsZero() {
			l.use.again.due = time.Now().Add(retryMin)
		}
	default:
		err = fmt.Errorf("re-open %s: %w", l.part, err)
		l.stop(p, held && (errors.Is(err, storage.ErrNoAnswer) || l.outlived(ctx, err)), err)
		l.complain(err)
	}
}

// healAt opens the log at p: with Held where it has a lease, by recovery below the confirmed end where not.
func (l *Log) healAt(ctx context.Context, p *Plugin) (held bool, err error) {
	wait, cancel := context.WithTimeout(ctx, healWait)
	defer cancel()
	err = l.control(wait, func() error {
		if err := l.dir.mayAsk(l.part, p); err != nil {
			return err
		}
		req, confirmed, release := l.request()
		defer release()
		if held = req.Held != nil; held {
			a, err := l.dir.ask(ctx, p, req)
			if err != nil {
				return err
			}
			return l.adopted(a, req.Held, p)
		}
		if err := l.dir.makeRoom(wait); err != nil {
			return err
		}
		letGo := l.dir.transit()
		defer letGo()
		a, err := l.recoverAt(ctx, p, req, confirmed)
		if err != nil {
			l.dir.files.give()
			return err
		}
		return l.install(a, p)
	})
	return held, err
}
