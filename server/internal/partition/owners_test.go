package partition

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// gatedLog takes a group when it is told to.
type gatedLog struct {
	Log
	end  record.Offset
	gate chan struct{}
}

func (l *gatedLog) End() record.Offset     { return l.end }
func (l *gatedLog) Durable() record.Offset { return l.end }
func (l *gatedLog) Epoch() record.Epoch    { return 0 }
func (l *gatedLog) Stats() lend.Stats      { return lend.Stats{} }
func (l *gatedLog) Append(_ context.Context, g lend.Group) error {
	<-l.gate
	l.end = g.Next
	return nil
}

type lender struct{ told atomic.Int32 }

func (o *lender) Free() { o.told.Add(1) }

type nobody struct{}

func (nobody) Settled(Outcome) {}

// TestOwnersAreToldOnce: of a group that is written, of those that are dropped when the partition is closed, and of what is refused.
func TestOwnersAreToldOnce(t *testing.T) {
	l := &gatedLog{gate: make(chan struct{})}
	p := Open(storage.Partition{Topic: "t"}, l, Options{PublishTimeout: 50 * time.Millisecond, Set: Settings{MessageBytes: 1 << 20}})
	owners := make([]lender, 7)
	for i := range owners {
		var b record.Builder
		b.Reset(nil)
		b.Append(&record.Record{Value: make([]byte, KeepBytesLeast)})
		_ = p.Produce(nil, Batches{Bytes: b.Finish(0, -1), Records: 1, Owner: &owners[i]}, nobody{}) // the last ones find no room
	}
	var closing sync.WaitGroup
	closing.Go(func() { p.Close(errcode.New(errcode.TopicDeleted, "gone", "")) })
	for p.Produce(nil, Batches{Bytes: make([]byte, 1), Records: 1}, nobody{}).Code != errcode.TopicDeleted { // until it is being closed
	}
	close(l.gate)
	closing.Wait()
	for i := range owners {
		if n := owners[i].told.Load(); n != 1 {
			t.Errorf("owner %d is told %d times", i, n)
		}
	}
}
