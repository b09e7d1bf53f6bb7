package measure

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
)

// lastAnswersPatience is how long an interrupted run waits for what is under way.
const lastAnswersPatience = 2 * time.Second

// Publisher is what takes records: a Client, which sends each by itself, or a Producer, which sends batches.
type Publisher struct {
	Publish func(ctx context.Context, address string, m *trunkline.Message, done func(trunkline.Ack, error)) error
	Flush   func(context.Context) error
	Close   func() // gives every record its result
}

// ByClient publishes with a client.
func ByClient(c *trunkline.Client) Publisher {
	return Publisher{c.PublishFunc, c.Flush, func() { c.Close() }}
}

// ByProducer publishes with a producer.
func ByProducer(p *trunkline.Producer) Publisher {
	return Publisher{p.Produce, p.Flush, func() {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		_ = p.Close(over) // what it says the records' results say
	}}
}

// Produce publishes records without waiting for answers in between, and checks that each is acknowledged and that the
// offsets of every partition follow each other. What was measured is there also when it ended early, beside the error.
func Produce(ctx context.Context, by Publisher, to string, o Options) (Result, error) {
	m := newMeter(o)
	start := time.Now()
	sent := m.publish(ctx, by, to, start, nil)
	err := by.Drain(ctx)
	took := time.Since(start)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		err = m.failed
	}
	r := m.resultLocked("produce", to, sent)
	r.finish(m.acked, int64(m.acked)*int64(o.Size), took)
	return r, err
}

// Drain waits for what is under way, an interrupted run only for a little. Every publish has its result when it returns.
func (by Publisher) Drain(ctx context.Context) error {
	cancel := context.CancelFunc(func() {})
	if ctx.Err() != nil {
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), lastAnswersPatience)
	}
	defer cancel()
	err := by.Flush(ctx)
	if err != nil {
		by.Close()
	}
	return err
}

// meter measures publishes. Answers come in the order of the publishes of each partition.
type meter struct {
	opt  Options
	room chan struct{} // a slot for each record without an answer; nil: no bound of ours
	stop chan struct{} // closed with the first failure

	mu         sync.Mutex
	free       []*waiter                  // guarded; of records that have their answer
	answered   int                        // guarded
	acked      int                        // guarded
	durability map[string]int             // guarded
	next       map[place]trunkline.Offset // guarded; the offset that has to come
	latency    *hdrhistogram.Histogram    // guarded
	failed     error                      // guarded; the first failure
}

// waiter waits for a record's answer. They are used again, so that measuring costs no allocation per record.
type waiter struct {
	due    time.Time
	number int
	done   func(trunkline.Ack, error) // takes the answer
}

func newMeter(o Options) *meter {
	m := &meter{opt: o, stop: make(chan struct{}), durability: make(map[string]int), next: make(map[place]trunkline.Offset), latency: newHistogram()}
	if o.Window > 0 {
		m.room = make(chan struct{}, o.Window)
	}
	return m
}

// publish publishes until all is sent, something failed, or ctx ends, and returns how many records were sent. before, if
// any, is told of each and may write into its value.
func (m *meter) publish(ctx context.Context, by Publisher, to string, start time.Time, before func(i int, due time.Time, value []byte)) int {
	message := trunkline.Message{Value: Payload(m.opt.Size)}
	pace := pacer{start, m.opt.Rate}
	for i := range m.opt.Count {
		due, err := pace.wait(ctx, i)
		if err == nil {
			err = m.enter(ctx)
		}
		if err != nil {
			m.fail(err)
			return i
		}
		if before != nil {
			before(i, due, message.Value)
		}
		if err := by.Publish(ctx, to, &message, m.waiter(i, due).done); err != nil {
			m.fail(fmt.Errorf("record %d: %w", i, err))
			return i
		}
	}
	return m.opt.Count
}

// waiter returns a waiter for record i.
func (m *meter) waiter(i int, due time.Time) *waiter {
	m.mu.Lock()
	defer m.mu.Unlock()
	var w *waiter
	if n := len(m.free); n > 0 {
		w = m.free[n-1]
		m.free = m.free[:n-1]
	} else {
		w = new(waiter)
		w.done = func(ack trunkline.Ack, err error) { m.take(w, ack, err) }
	}
	w.number, w.due = i, due
	return w
}

// enter waits for room in the window. After a failure there is none.
func (m *meter) enter(ctx context.Context) error {
	select {
	case <-m.stop:
		return errStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	default:
	}
	if m.room == nil {
		return nil
	}
	select {
	case m.room <- struct{}{}:
		return nil
	case <-m.stop:
		return errStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *meter) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failLocked(err)
}

func (m *meter) failLocked(err error) {
	if m.failed == nil {
		m.failed = err
		close(m.stop)
	}
}

// take is told each record's outcome.
func (m *meter) take(w *waiter, ack trunkline.Ack, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	took, number := time.Since(w.due), w.number
	m.free = append(m.free, w)
	if m.room != nil {
		<-m.room // it holds a slot of this record
	}
	m.answered++
	m.opt.report(m.answered)
	if err != nil {
		m.failLocked(fmt.Errorf("record %d: %w", number, err))
		return
	}
	m.acked++
	m.durability[ack.Durability]++
	record(m.latency, took)
	if ack.Offset < 0 { // live, or not asked for
		return
	}
	where := place{ack.Topic, ack.Partition}
	if want, known := m.next[where]; known && ack.Offset != want {
		m.failLocked(fmt.Errorf("record %d was acknowledged as %s/%d@%d, behind %d: somebody else publishes there, or records are missing",
			number, ack.Topic, ack.Partition, ack.Offset, want-1))
	}
	m.next[where] = ack.Offset + 1
}

func (m *meter) resultLocked(bench, to string, sent int) Result {
	return Result{Bench: bench, Address: to, Sent: sent, Acknowledged: m.acked, Durability: m.durability, Partitions: len(m.next),
		Size: m.opt.Size, Rate: m.opt.Rate, Answered: latency(m.latency)}
}
