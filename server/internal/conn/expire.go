package conn

import (
	"context"
	"fmt"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
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

// timeOut settles a publish that got no outcome in time. Its records may still be written.
func (a *answer) timeOutLocked() {
	n := a.records.Add(recordsClosed) - recordsClosed
	a.outcome = partition.Outcome{N: int(n), Err: errcode.New(errcode.Timeout,
		fmt.Sprintf("%s has no outcome for the record yet", a.part.Name), "it may or may not appear; read the log before sending it again")}
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
			s.mu.Lock()
			all := make([]*conn, 0, len(s.conns))
			for c := range s.conns {
				all = append(all, c)
			}
			s.mu.Unlock()
			for _, c := range all {
				c.box.expire(now.UnixMilli())
			}
		}
	}
}
