package measure

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
)

// Consume reads count records of what an address names with the client's Consumer, which checks every batch, and sees that
// the offsets of every partition follow each other. What was measured is there also when it ended early, beside the error.
func Consume(ctx context.Context, c *trunkline.Client, from string, o Options) (Result, error) {
	start := time.Now()
	consumer, err := c.NewConsumer(ctx, []string{from}, trunkline.ReuseRecords())
	if err != nil {
		return Result{}, err
	}
	defer consumer.Close()
	r := Result{Bench: "consume", Address: from, Durability: map[string]int{}}
	next, bytes := make(map[place]trunkline.Offset), int64(0)
	for rec, e := range consumer.Records(ctx) {
		if e != nil {
			err = e
			break
		}
		where := place{rec.Topic, rec.Partition}
		if want, known := next[where]; known && rec.Offset != want {
			err = fmt.Errorf("%s/%d@%d came behind %d: records are missing", rec.Topic, rec.Partition, rec.Offset, want-1)
			break
		}
		next[where] = rec.Offset + 1
		bytes += int64(len(rec.Value))
		r.Received++
		o.report(r.Received)
		if r.Received == o.Count {
			break
		}
	}
	r.Partitions = len(next)
	if r.Received > 0 {
		r.Size = int(bytes / int64(r.Received))
	}
	r.finish(r.Received, bytes, time.Since(start))
	return r, err
}

// deliveryPatience is how long the last record may take to arrive once it was acknowledged.
const deliveryPatience = 30 * time.Second

// errMissing says that records were acknowledged and not delivered.
var errMissing = errors.New("not all records were delivered")

// listener receives the records of a run.
type listener struct {
	run uint64
	sub *trunkline.Subscription

	mu       sync.Mutex
	due      map[int]time.Time // guarded; of the records that were sent and have not come
	received int               // guarded
}

func listen(ctx context.Context, c *trunkline.Client, to string) (*listener, error) {
	sub, err := c.Subscribe(ctx, to)
	if err != nil {
		return nil, err
	}
	return &listener{run: rand.Uint64(), sub: sub, due: make(map[int]time.Time)}, nil
}

// expect says that a record is going to be sent, and writes into its value what it is known by.
func (l *listener) expect(i int, due time.Time, value []byte) {
	stamp(value, l.run, i)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.due[i] = due
}

// come is told each record; ok is false for one of somebody else's, or one that came twice.
func (l *listener) come(r *trunkline.Record) (took time.Duration, ok bool) {
	number, ok := stamped(r.Value, l.run)
	if !ok {
		return 0, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	due, ok := l.due[number]
	if !ok {
		return 0, false
	}
	delete(l.due, number)
	l.received++
	return time.Since(due), true
}

// PubSub publishes and receives the same records at the same time. Besides what Produce measures it tells how long it took
// from a record's publish to its delivery.
func PubSub(ctx context.Context, c *trunkline.Client, to, from string, o Options) (Result, error) {
	if o.Size < StampBytes {
		return Result{}, ErrTooSmall
	}
	l, err := listen(ctx, c, from)
	if err != nil {
		return Result{}, err
	}
	defer l.sub.Stop()
	progress := o.Progress
	o.Progress = nil // what has come is what is done
	m := newMeter(o)
	o.Progress = progress
	delivered := newHistogram()
	var receiver sync.WaitGroup
	receiving, stopReceiving := context.WithCancel(ctx)
	defer stopReceiving()
	var broken error
	receiver.Go(func() {
		done := 0
		for r, err := range l.sub.Messages(receiving) {
			if err != nil {
				broken = err
				return
			}
			if took, ok := l.come(r); ok {
				record(delivered, took)
				done++
				o.report(done)
			}
			if done == o.Count {
				return
			}
		}
	})
	start := time.Now()
	by := ByClient(c)
	sent := m.publish(ctx, by, to, start, l.expect)
	err = by.Drain(ctx)
	if m.failure() != nil || err != nil {
		stopReceiving()
	}
	patience := time.AfterFunc(deliveryPatience, stopReceiving)
	receiver.Wait()
	patience.Stop()
	took := time.Since(start)
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.resultLocked("pubsub", to, sent)
	r.Received, r.Delivered = l.received, latency(delivered)
	r.finish(l.received, int64(l.received)*int64(o.Size), took)
	switch {
	case m.failed != nil:
		err = m.failed
	case err == nil && l.received < o.Count && broken != nil && !errors.Is(broken, context.Canceled):
		err = broken
	case err == nil && l.received < o.Count:
		err = fmt.Errorf("%w: %d of %d", errMissing, l.received, o.Count)
	}
	return r, err
}

func (m *meter) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failed
}

// RoundTrip publishes one record after the other, each when the one before was delivered, and tells how long it took to
// its answer and to its delivery.
func RoundTrip(ctx context.Context, c *trunkline.Client, to, from string, o Options) (Result, error) {
	if o.Size < StampBytes {
		return Result{}, ErrTooSmall
	}
	l, err := listen(ctx, c, from)
	if err != nil {
		return Result{}, err
	}
	defer l.sub.Stop()
	answered, delivered := newHistogram(), newHistogram()
	r := Result{Bench: "latency", Address: to, Durability: map[string]int{}, Size: o.Size, Rate: o.Rate}
	message := trunkline.Message{Value: Payload(o.Size)}
	places := make(map[place]bool)
	start := time.Now()
	pace := pacer{start, o.Rate}
	for i := range o.Count {
		var due time.Time
		if due, err = pace.wait(ctx, i); err != nil {
			break
		}
		l.expect(i, due, message.Value)
		r.Sent++
		var ack trunkline.Ack
		if ack, err = c.PublishSync(ctx, to, &message); err != nil {
			err = fmt.Errorf("record %d: %w", i, err)
			break
		}
		record(answered, time.Since(due))
		r.Acknowledged++
		r.Durability[ack.Durability]++
		if ack.Offset >= 0 {
			places[place{ack.Topic, ack.Partition}] = true
		}
		took, e := l.await(ctx)
		if e != nil {
			err = fmt.Errorf("record %d: %w", i, e)
			break
		}
		record(delivered, took)
		r.Received++
		o.report(r.Received)
	}
	r.Partitions, r.Answered, r.Delivered = len(places), latency(answered), latency(delivered)
	r.finish(r.Received, int64(r.Received)*int64(o.Size), time.Since(start))
	return r, err
}

// await waits for the record that is under way.
func (l *listener) await(ctx context.Context) (time.Duration, error) {
	limit, cancel := context.WithTimeoutCause(ctx, deliveryPatience, errMissing)
	defer cancel()
	for r, err := range l.sub.Messages(limit) {
		if err != nil {
			return 0, err
		}
		if took, ok := l.come(r); ok {
			return took, nil
		}
	}
	return 0, errMissing
}
