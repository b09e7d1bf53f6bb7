package trunkline

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

const (
	// viaBatchesMax is how many batches are under way at most whose records travel by themselves: enough to keep the server
	// busy, and few, so that what is produced meanwhile is gathered.
	viaBatchesMax = 8
	// viaBytesMax and viaRecordsMax bound what is under way beyond the first of these batches.
	viaBytesMax, viaRecordsMax = 4 << 20, 16 << 10
)

// viaBatch is a batch whose records travel by themselves.
type viaBatch struct {
	*outBatch
	ctx     context.Context // ends when its records have been tried for their time
	cancel  context.CancelFunc
	whole   record.Batch
	left    []int  // the numbers of the records without an outcome
	round   *round // of the records in left
	settled int    // records that are there
	failed  error  // the first that is final
	stuck   bool   // not all of left was sent in this round: nothing may overtake it
}

// deliverVia sends each record by itself, for the server to place, and the batches behind b without waiting for the answers
// to those before. When something has to be sent again, nothing more is sent until every answer is there.
func (q *queue) deliverVia(ctx context.Context, b *outBatch) {
	s := q.sink
	way := []*viaBatch{q.beginVia(ctx, b)}
	q.sendEach(way[0])
	for len(way) > 0 {
		more := (<-chan struct{})(nil)
		if q.mayFollow(way) {
			if b, _ := q.take(); b != nil {
				v := q.beginVia(ctx, b)
				way = append(way, v)
				q.sendEach(v)
				continue
			}
			more = q.wake
		}
		select {
		case <-more:
			continue
		case <-way[0].round.done:
		case <-way[0].ctx.Done():
		}
		if q.judge(way[0]) {
			q.endVia(way[0])
			if way = way[1:]; len(way) > 0 {
				s.left(ctx, q)
			}
			continue
		}
		way = q.resend(ctx, way)
	}
}

// mayFollow reports whether another batch may be sent behind those that are under way. The first record of a topic that does
// not exist makes it: those behind wait for its plan.
func (q *queue) mayFollow(way []*viaBatch) bool {
	size, records := 0, 0
	for _, v := range way {
		size, records = size+v.builder.Size(), records+len(v.promises)
	}
	return !way[len(way)-1].stuck && len(way) < viaBatchesMax && size < viaBytesMax && records < viaRecordsMax && !q.sink.isMissing()
}

// resend waits for the answers of all batches, and sends again what has to be. It returns the batches that are under way; where
// none is, the last one is left for the caller to count out.
func (q *queue) resend(ctx context.Context, way []*viaBatch) []*viaBatch {
	again := way[:1] // which was judged
	for i, v := range way[1:] {
		select {
		case <-v.round.done:
		case <-v.ctx.Done():
		}
		if !q.judge(v) {
			again = append(again, way[1+i])
			continue
		}
		q.endVia(v)
		q.sink.left(ctx, q) // the first is under way
	}
	first := again[0]
	_ = q.sink.producer.client.opt.backoff.wait(first.ctx, first.tries) // when its time is over, the next round fails
	stuck := false
	for _, v := range again {
		if stuck {
			v.round, v.stuck = newRound(len(v.left)), true
			v.round.end(0, errBehind)
			continue
		}
		q.sendEach(v)
		stuck = v.stuck
	}
	return again
}

func (q *queue) beginVia(ctx context.Context, b *outBatch) *viaBatch {
	ctx, cancel := q.limit(ctx, b)
	b.buf = b.builder.Finish(0, -1)
	v := &viaBatch{outBatch: b, ctx: ctx, cancel: cancel, whole: b.buf, left: make([]int, len(b.promises))}
	for i := range v.left {
		v.left[i] = i
	}
	return v
}

// judge settles the records of a batch that have their outcome, and reports whether that is all of them.
func (q *queue) judge(v *viaBatch) bool {
	s := q.sink
	opt := s.producer.opt
	outcomes := v.round.close(v.ctx)
	again := v.left[:0]
	var last error
	for n, i := range v.left {
		pr, o := &v.promises[i], &outcomes[n]
		if o.err == nil && o.ack.Offset < 0 {
			o.err = &ServerError{Code: errcode.UnknownTopic, Text: "topic " + s.topic + " does not exist, and publishes do not make it; create it"}
		}
		switch {
		case o.err == nil:
			v.settled++
			pr.settle(o.ack, nil)
			continue
		case unknown(o.err):
			pr.maybe = true
		}
		if v.ctx.Err() != nil || s.producer.client.opt.once || pr.maybe && !opt.retryUnknown || !unknown(o.err) && !passes(o.err) {
			fault := q.fault(v.outBatch, pr.maybe, q.why(v.ctx, o.err))
			if v.failed == nil {
				v.failed = fault
			}
			pr.settle(Ack{}, fault)
			continue
		}
		again, last = append(again, i), o.err
	}
	if v.left = again; len(again) > 0 {
		q.tellRetry(v.outBatch, unknown(last), last)
	}
	return len(again) == 0
}

// endVia lets go of a batch whose records have their outcome.
func (q *queue) endVia(v *viaBatch) {
	v.cancel()
	q.tellOutcome(v.outBatch, &sent{packed: len(v.whole), plain: len(v.whole)}, v.failed)
	q.drop(v.outBatch)
	if v.settled > 0 && q.sink.isMissing() { // it has come to be
		q.sink.startReplan()
	}
}

func (s *sink) isMissing() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.missing
}

type published struct {
	ack Ack
	err error
}

// round is one sending of records, whose answers come in their order.
type round struct {
	done chan struct{} // closed when every record that was sent is answered

	mu       sync.Mutex
	outcomes []published // guarded by mu; of the records that were to be sent
	answered int         // guarded by mu
	sent     int         // guarded by mu; -1 while they are being sent
	closed   bool        // guarded by mu; answers come too late
}

func newRound(records int) *round {
	return &round{done: make(chan struct{}), outcomes: make([]published, records), sent: -1}
}

// take is told the next outcome.
func (r *round) take(ack Ack, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.outcomes[r.answered] = published{ack, err}
	if r.answered++; r.answered == r.sent {
		close(r.done)
	}
}

// end says how many records were sent, and why those behind them were not.
func (r *round) end(sent int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := sent; i < len(r.outcomes); i++ {
		r.outcomes[i].err = err
		err = errBehind // and this one nobody tried
	}
	if r.sent = sent; r.answered == sent {
		close(r.done)
	}
}

// errBehind is why a record was not sent: one before it could not be, and nothing overtakes.
var errBehind = &LinkError{Err: errors.New("not sent")}

// close returns the outcomes. What was sent and is not answered has none; ctx says why nobody waits any more.
func (r *round) close(ctx context.Context) []published {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for i := r.answered; i < r.sent; i++ {
		r.outcomes[i].err = &LinkError{Sent: true, Err: context.Cause(ctx)}
	}
	return r.outcomes
}

// sendEach publishes the records of a batch that are left, in their order.
func (q *queue) sendEach(v *viaBatch) {
	v.tries++
	v.round = newRound(len(v.left))
	l, err := q.sink.producer.link(v.ctx)
	n := 0
	if err == nil {
		n, err = q.publishLeft(l, v)
	}
	v.stuck = err != nil
	v.round.end(n, err)
}

// publishLeft returns how many were sent, and why not all.
func (q *queue) publishLeft(l *link, v *viaBatch) (sent int, err error) {
	take := v.round.take
	it := record.NewIterator(v.whole)
	var r record.Record
	for i := 0; sent < len(v.left); i++ {
		if _, ok := it.Next(&r); !ok {
			return sent, it.Err()
		}
		if i != v.left[sent] {
			continue
		}
		if err := q.publish(l, &r, v.promises[i].to, take); err != nil {
			return sent, err
		}
		sent++
	}
	return sent, nil
}

// headersOf returns a record's headers, valid until the next call. Names that the record before it had cost no memory.
func (q *queue) headersOf(r *record.Record) []Header {
	all := q.via
	for i, h := range r.Headers {
		if i == len(all) {
			all = append(all, Header{})
		}
		keep(&all[i].Name, h.Key)
		all[i].Value = h.Value
	}
	q.via = all
	return all[:len(r.Headers)]
}

// publish sends one record as PUB or HPUB. Without a key it names a partition, so that it cannot be taken for a live message.
func (q *queue) publish(l *link, r *record.Record, to PartitionID, done func(Ack, error)) error {
	m := Message{Key: r.Key, Value: r.Value, Timestamp: time.UnixMilli(r.Timestamp), Headers: q.headersOf(r)}
	where := q.sink.topic
	if to == partition.None && r.Key == nil {
		to = 0
	}
	if to != partition.None {
		where = string(appendPlace([]byte(where), to))
	}
	l.out.Lock()
	if err := l.out.err; err != nil {
		l.out.Unlock()
		return &LinkError{Err: err}
	}
	before := len(l.out.buf)
	var total int
	l.out.buf, total = appendPublish(l.out.buf, where, &m)
	if limit := int(q.sink.producer.client.maxPayload.Load()); total > limit {
		l.out.buf = l.out.buf[:before]
		l.out.Unlock()
		return invalidSize(total, limit)
	}
	l.commitAndUnlock(request{ack: done}, len(l.out.buf)-before)
	return nil
}
