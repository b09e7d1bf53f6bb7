package stream

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
)

const (
	// healTick is how often Run looks for logs that are to be tried again.
	healTick = 250 * time.Millisecond
	// healParallel bounds the tries under way at once; each may hang.
	healParallel = 8
)

// again says when a log that could not be opened is tried again. Guarded by Log.mu.
type again struct {
	trying   bool      // it is being opened
	due      time.Time // zero: it is not down, or no try may mend it
	failures int       // in a row
	asked    *instance // where the last try failed
	late     bool      // that had no answer, or left a lease that nobody knows of: the instance has to end before another try
	same     bool      // that would say the same again
	said     string    // the reason, as it was last logged
}

// leavesOpen reports whether a failed call may have happened, or may yet: whom it was asked of is of no more use.
func leavesOpen(err error) bool {
	return errors.Is(err, storage.ErrNoAnswer) || errors.Is(err, storage.ErrLeaseHeld) || errors.Is(err, storage.ErrGone) || errors.Is(err, ErrBroken)
}

// begin takes the log for a try at up. It reports false where there is none to be made. Whoever adopts a plugin does not
// wait for a log that had no answer before.
func (l *Log) begin(up *instance, adopting bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &l.again
	if a.trying || errors.Is(l.down, lend.ErrClosed) {
		return false
	}
	if adopting && a.late {
		a.due = time.Now()
		return false
	}
	if !adopting && (a.due.IsZero() || time.Now().Before(a.due) || a.same && a.asked == up) {
		return false
	}
	a.trying = true
	return true
}

// done notes how a try ended, and says why the log is down, once for each reason.
func (l *Log) done(up *instance, err error) {
	if l.ended(up, err) {
		l.dir.log.Error("partition is down; tried again", "partition", l.part.String(), "err", err)
	}
}

// ended notes how a try ended, and reports whether the log is down for another reason than was known.
func (l *Log) ended(up *instance, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &l.again
	a.trying = false
	switch {
	case err == nil:
		*a = again{}
		return false
	case errors.Is(err, errReplaced):
		if !a.due.IsZero() {
			a.due = time.Now().Add(lend.RetryPause(1))
		}
		return false
	}
	a.failures++
	a.due, a.asked = time.Now().Add(lend.RetryPause(a.failures)), up
	a.late = errors.Is(err, storage.ErrNoAnswer) || errors.Is(err, storage.ErrLeaseHeld)
	a.same = errors.Is(err, storage.ErrBadAnswer) || errors.Is(err, ErrBadAnswer) || errors.Is(err, lend.ErrLostRecords)
	fresh := a.said != err.Error()
	a.said = err.Error()
	return fresh
}

// healAll tries logs again whose time has come.
func (d *Dir) healAll(ctx context.Context, tries *errgroup.Group) {
	d.mu.Lock()
	up := d.up
	var logs []*Log
	for l := range d.logs {
		logs = append(logs, l)
	}
	d.mu.Unlock()
	if up == nil {
		return
	}
	for _, l := range logs {
		if !l.begin(up, false) {
			continue
		}
		if !tries.TryGo(func() error { l.heal(ctx, up); return nil }) {
			l.done(up, errReplaced) // at another tick
			return
		}
	}
}

// heal opens the log at up, which is ended where it has not answered before.
func (l *Log) heal(ctx context.Context, up *instance) {
	l.mu.Lock()
	late := l.again.late && l.again.asked == up
	cause := l.down
	l.mu.Unlock()
	if late {
		l.dir.replace(up, cause)
		l.done(up, errReplaced)
		return
	}
	err := l.reopen(ctx, up)
	if err == nil && !l.dir.isUp(up) {
		err = errReplaced // and that one is gone
	}
	l.done(up, err)
	if err == nil {
		l.dir.log.Info("partition is back", "partition", l.part.String())
		if l.reopened != nil {
			l.reopened()
		}
	}
}

func (d *Dir) isUp(up *instance) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.up == up
}
