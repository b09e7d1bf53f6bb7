package broker

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

// changes has changes of topics happen one at a time, until it is closed.
type changes struct {
	token chan struct{}                           // holds one: whoever has it may change topics
	end   atomic.Pointer[context.CancelCauseFunc] // of the newest change
	over  chan struct{}                           // closed by close
	once  sync.Once                               // of close
}

// EndChanges waits for the change of topics that is under way, and tells it to end if it takes long, so that no client
// waits for it. None begins any more. Close does it too.
func (b *Broker) EndChanges() { b.changes.once.Do(b.changes.close) }

// alone runs f while nobody else changes topics, and not once the broker closes, which ends f's context if f takes long.
func (c *changes) alone(ctx context.Context, f func(ctx context.Context) error) error {
	select {
	case c.token <- struct{}{}:
	case <-c.over:
		return errShuttingDown
	case <-ctx.Done():
		return errcode.New(errcode.MetadataUnavailable, "another change of topics is still under way", "try again")
	}
	defer func() { <-c.token }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.end.Store(&cancel)
	select {
	case <-c.over: // looked at when end is there to be called
		return errShuttingDown
	default:
	}
	return f(ctx)
}

// close waits for the change that is under way, which is told to end if it takes long. None begins any more.
func (c *changes) close() {
	close(c.over)
	patience := time.NewTimer(closeTimeout)
	defer patience.Stop()
	select {
	case c.token <- struct{}{}:
		return
	case <-patience.C:
	}
	if end := c.end.Load(); end != nil {
		(*end)(errShuttingDown)
	}
	c.token <- struct{}{}
}
