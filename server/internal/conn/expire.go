package conn

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/server/internal/partition"
)

// recordsClosed is added to a run's count when it was answered without an outcome: no record joins it any more.
const recordsClosed = 1 << 40

// count adds a record to the run; false where the run was answered already, and the record needs an answer of its own.
func (a *answer) count() bool {
	for {
		n := a.records.Load()
		if n >= recordsClosed {
			return false
		}
		if a.records.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// timeOutLocked settles a publish that got no outcome in time. Its records may still be written.
func (a *answer) timeOutLocked() {
	n := a.records.Add(recordsClosed) - recordsClosed
	a.outcome = partition.Outcome{N: int(n), Err: errcode.New(errcode.Timeout,
		fmt.Sprintf("%s has no outcome for the record yet", a.part.Address()), "it may or may not appear; read the log before sending it again")}
	a.settled = true
}

// expire answers what has waited for too long.
func (b *outbox) expire(nowMS int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for a := b.head; a != nil; a = a.next {
		if a.settled || a.part == nil || a.due == 0 || nowMS < a.due {
			continue
		}
		a.timeOutLocked()
		b.ready.Signal()
	}
}

// expireEvery is how exact the deadline of a publish is.
const expireEvery = 100 * time.Millisecond

// expireAll answers publishes without outcome, on every connection, until ctx ends.
func (s *Server) expireAll(ctx context.Context) {
	tick := time.NewTicker(expireEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, c := range s.everyone() {
				c.box.expire(now.UnixMilli())
			}
		}
	}
}

// pulse is what is known of a client's being there.
type pulse struct {
	heard atomic.Bool  // since the last beat
	asked atomic.Int32 // PINGs without a sign of life since
	kind  atomic.Int32 // what CONNECT said, for other goroutines than the reader
}

// The kinds of a client.
const (
	kindUnknown int32 = iota // no CONNECT was read: a person, who need not answer PING
	kindOurs
	kindNATS
)

// pingsMax is how many PINGs a client may leave unanswered.
const pingsMax = 2

// beatAll asks silent clients for a sign of life until ctx ends.
func (s *Server) beatAll(ctx context.Context) {
	if s.opt.PingInterval <= 0 {
		return
	}
	tick := time.NewTicker(s.opt.PingInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			for _, c := range s.everyone() {
				c.beat()
			}
		}
	}
}

// beat asks the client whether it is there, and gives it up when it was asked too often. Whoever says anything is there.
func (c *conn) beat() {
	kind := c.pulse.kind.Load()
	switch {
	case kind == kindUnknown:
		return
	case c.pulse.heard.Swap(false):
		c.pulse.asked.Store(0)
		return
	case c.pulse.asked.Add(1) <= pingsMax:
		c.box.frame(func(dst []byte) []byte { return append(dst, "PING\r\n"...) })
		return
	}
	c.log.Info("stale connection closed", "unanswered", pingsMax)
	c.box.lastWord(func(dst []byte) []byte {
		if kind == kindNATS {
			return line.AppendNATSErr(dst, "Stale Connection")
		}
		return line.AppendAsyncErr(dst, errcode.New(errcode.Timeout, "nothing was heard of this client for too long", "answer PING with PONG"), "")
	})
	c.leave()
}
