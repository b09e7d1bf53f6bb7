package trunkline

import (
	"cmp"
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// queue is what a producer has for one partition: batches that wait, the last of which is being filled, and a goroutine that
// sends one after the other.
type queue struct {
	sink *sink
	id   PartitionID   // -1: the server places the records
	wake chan struct{} // one slot: something has changed

	mu      sync.Mutex
	waiting []*outBatch   // guarded by mu; the last may be open
	parked  *outBatch     // guarded by mu; taken, and left for another plan
	offered bool          // guarded by mu; the next batch may be begun by a record without a key
	shut    bool          // guarded by mu
	via     []Header      // scratch of the queue's goroutine
	names   []byte        // guarded by mu; scratch, as the next
	rec     record.Record // guarded by mu

	owed owed // the goroutine's
}

// owed is a batch that was acknowledged, and whose callbacks were not called yet: the next one goes first, so that the server
// does not wait for them.
type owed struct {
	batch *outBatch // nil: none is
	what  sent
}

func newQueue(s *sink, id PartitionID) *queue {
	return &queue{sink: s, id: id, wake: make(chan struct{}, 1)}
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// add puts a record into the open batch. The sink's lock is held for reading.
func (q *queue) add(rec *pending) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.addLocked(rec, false, nil)
}

// addKeyless is add, unless a batch would begin that is for another queue to begin.
func (q *queue) addKeyless(rec *pending) (added bool, _ error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.offered && q.openLocked(rec.bound()) == nil {
		return false, nil
	}
	q.offered = false
	return true, q.addLocked(rec, false, nil)
}

// offer lets the next batch be begun by a record without a key.
func (q *queue) offer() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.offered = true
}

// addOld is add for a record of b.
func (q *queue) addOld(rec *pending, maybe bool, b *outBatch) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.addLocked(rec, maybe, b)
}

// bound is the most bytes that a record adds to a batch.
func (rec *pending) bound() int { return rec.size + len(rec.key) + recordOverhead }

// recordOverhead is above what a record has in a batch around its key, value and headers.
const recordOverhead = 48

// openLocked returns the batch that takes n more bytes, nil where there is none. While the topic is missing each record is
// a batch of its own: the first that is acknowledged makes the topic, those behind it wait and go by its plan, in order.
func (q *queue) openLocked(n int) *outBatch {
	if len(q.waiting) == 0 || q.id < 0 && q.sink.missing {
		return nil
	}
	if b := q.waiting[len(q.waiting)-1]; b.builder.Size()+n <= q.sink.limit {
		return b
	}
	return nil
}

func (q *queue) addLocked(rec *pending, maybe bool, from *outBatch) error {
	if q.shut {
		return ErrClosed
	}
	p := q.sink.producer
	b := q.openLocked(rec.bound())
	if b != nil && from != nil && b.era > from.era {
		b = nil // who waits for the era of this record must not miss it
	}
	if b == nil {
		if b, _ = p.batches.Get().(*outBatch); b == nil {
			b = &outBatch{}
		}
		if n := len(q.waiting); n > 0 && cap(b.buf) < q.waiting[n-1].builder.Size() { // the one before is full: so will this be
			b.buf = make(record.Batch, 0, q.sink.limit)
		}
		b.builder.Reset(b.buf)
		b.plan, b.born = -1, time.Now()
		if from == nil {
			b.era = p.begin(0)
		} else {
			b.born, b.tries, b.started, b.resized = from.born, from.tries, from.started, from.resized
			b.era = p.begin(from.era)
		}
		q.waiting = append(q.waiting, b)
	}
	b.builder.Append(q.recordLocked(rec))
	q.rec.Key, q.rec.Value = nil, nil // the caller's
	b.promises = append(b.promises, promise{done: rec.done, to: rec.to, maybe: maybe})
	b.size += rec.size
	if rec.to < 0 && q.id >= 0 {
		b.plan = q.sink.plan.Plan().Version
	}
	if len(b.promises) == 1 || p.opt.linger > 0 && q.isFull(b) {
		q.signal()
	}
	return nil
}

// recordLocked is a message as a record. It is valid until the next call.
func (q *queue) recordLocked(rec *pending) *record.Record {
	m := rec.message
	r := &q.rec
	*r = record.Record{Key: rec.key, Value: m.Value, Headers: r.Headers[:0]}
	if r.Timestamp = m.Timestamp.UnixMilli(); m.Timestamp.IsZero() {
		r.Timestamp = time.Now().UnixMilli()
	}
	q.names = q.names[:0]
	for i := range m.Headers {
		q.names = append(q.names, m.Headers[i].Name...)
	}
	rest := q.names
	for i := range m.Headers {
		n := len(m.Headers[i].Name)
		r.Headers = append(r.Headers, record.Header{Key: rest[:n:n], Value: m.Headers[i].Value})
		rest = rest[n:]
	}
	return r
}

// run sends batch after batch until the producer ends.
func (q *queue) run() {
	p := q.sink.producer
	ctx, cancel := until(context.Background(), p.stop)
	defer cancel()
	for {
		b, wait := q.take()
		if b != nil {
			q.deliver(ctx, b)
			q.sink.left(ctx, q)
			continue
		}
		q.pay()
		var linger <-chan time.Time
		var timer *time.Timer
		if wait > 0 {
			timer = time.NewTimer(wait)
			linger = timer.C
		}
		select {
		case <-q.wake:
		case <-linger:
		case <-p.stop:
			q.abandon()
			return
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// take returns the next batch, and counts its queue in with those that deliver; nil where there is none yet, and then how long
// it lingers.
func (q *queue) take() (*outBatch, time.Duration) {
	s := q.sink
	s.mu.RLock()
	defer s.mu.RUnlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 || s.replan != nil || q.shut {
		return nil, 0
	}
	b := q.waiting[0]
	if linger := s.producer.opt.linger; linger > 0 && len(q.waiting) == 1 && b.tries == 0 && s.producer.flushing.Load() == 0 {
		if left := linger - time.Since(b.born); left > 0 && !q.isFull(b) {
			return nil, left
		}
	}
	q.waiting[0] = nil
	if q.waiting = q.waiting[1:]; len(q.waiting) == 0 {
		q.waiting = nil
	}
	s.inFlight.Add(1)
	return b, 0
}

// isFull reports whether a batch need not linger. The sink's lock is held for reading.
func (q *queue) isFull(b *outBatch) bool { return b.builder.Size() >= q.sink.limit-q.sink.limit/8 }

// takeAll returns every batch that has no outcome, in order.
func (q *queue) takeAll() []*outBatch {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.waiting
	if q.parked != nil {
		all = append([]*outBatch{q.parked}, all...)
	}
	q.waiting, q.parked = nil, nil
	return all
}

// park leaves a batch for the next plan.
func (q *queue) park(b *outBatch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.parked = b
}

// abandon fails what was never sent, or is left of what was.
func (q *queue) abandon() {
	q.mu.Lock()
	q.shut = true
	q.mu.Unlock()
	for _, b := range q.takeAll() {
		q.settle(b, nil, ErrClosed)
	}
}

// deliver sends a batch until it has its outcome, or waits for another plan.
func (q *queue) deliver(ctx context.Context, b *outBatch) {
	if q.id < 0 {
		q.deliverVia(ctx, b)
		return
	}
	ctx, cancel := q.limit(ctx, b)
	defer cancel()
	q.deliverBatch(ctx, b)
}

// limit ends a batch's context when its records have been tried for their time.
func (q *queue) limit(ctx context.Context, b *outBatch) (context.Context, context.CancelFunc) {
	if b.started.IsZero() {
		b.started = time.Now()
	}
	timeout := q.sink.producer.opt.timeout
	if timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, b.born.Add(timeout))
}

func (q *queue) deliverBatch(ctx context.Context, b *outBatch) {
	s := q.sink
	p := s.producer
	if err := q.seal(b); err != nil {
		q.settle(b, nil, err)
		return
	}
	packed, plain := b.packed, b.builder.Size()
	if limit := int(p.client.maxPayload.Load()); len(packed) > limit {
		q.settle(b, &sent{}, invalidSize(len(packed), limit))
		return
	}
	var last error // of the try before
	for {
		b.tries++
		ack, err := q.send(ctx, b, packed)
		if err != nil && last != nil && ctx.Err() != nil && !unknown(err) {
			err = last // the time was up before it was sent again: why it had to be says more
		}
		last = err
		switch {
		case err == nil:
			q.owed = owed{b, sent{ack: ack, packed: len(packed), plain: plain, took: time.Since(b.started)}}
			return
		case q.isStale(b, err), hasCode(err, errcode.TooLarge) && len(b.promises) > 1 && !b.resized:
			b.resized = b.resized || hasCode(err, errcode.TooLarge) // message.bytes may be less than it was
			q.park(b)
			s.startReplan()
			q.tellRetry(b, false, err)
			return
		}
		if hasCode(err, errcode.TopicDeleted) || hasCode(err, errcode.UnknownTopic) {
			s.forget()
		}
		if !q.tryAgain(ctx, b, err) {
			q.settle(b, &sent{packed: len(packed), plain: plain}, q.why(ctx, err))
			return
		}
	}
}

// seal makes a batch what is sent. Nothing is added to it any more.
func (q *queue) seal(b *outBatch) error {
	if b.packed != nil {
		return nil
	}
	packer, err := q.sink.producer.packer()
	if err != nil {
		return err
	}
	b.buf = b.builder.Finish(0, -1)
	packed, err := packer.Pack(b.buf)
	if err != nil {
		q.sink.producer.packers.Put(packer)
		return err
	}
	b.packed, b.packer = packed, packer
	return nil
}

// sealNext seals the batch that goes next, where it is full, while the one before it is under way.
func (q *queue) sealNext() {
	q.mu.Lock()
	var next *outBatch
	if len(q.waiting) > 1 { // so the first is not the open one
		next = q.waiting[0]
	}
	q.mu.Unlock()
	if next != nil {
		_ = q.seal(next) // deliverBatch tries again, and tells
	}
}

// isStale reports whether a batch was refused because its records were placed by a plan that does not hold any more.
func (q *queue) isStale(b *outBatch, err error) bool {
	return b.plan >= 0 && (hasCode(err, errcode.PlanStale) || hasCode(err, errcode.UnknownPartition))
}

// send sends a batch once and waits for its answer.
func (q *queue) send(ctx context.Context, b *outBatch, packed record.Batch) (Ack, error) {
	p := q.sink.producer
	l := p.session.living()
	if l == nil || ctx.Err() != nil { // it may take long
		q.pay()
		var err error
		if l, err = p.link(ctx); err != nil {
			return Ack{}, err
		}
	}
	type outcome struct {
		ack Ack
		err error
	}
	answered := make(chan outcome, 1)
	var line [512]byte
	text := p.text(line[:0], q.sink.topic, q.id, b.plan)
	text = appendSize(text, len(packed))
	err := l.sendBody(text, packed, &b.uses, request{ack: func(ack Ack, err error) { answered <- outcome{ack, err} }})
	runtime.Gosched() // to the link's writer, which would else wait for the callbacks and the checksum below
	q.pay()
	if err != nil {
		return Ack{}, err
	}
	for {
		q.sealNext()
		select {
		case <-q.wake: // another batch was begun: the one before it is full. run looks at everything before it waits
		case o := <-answered:
			if o.err == nil && (o.ack.Topic != q.sink.topic || o.ack.Partition != q.id) {
				return Ack{}, &LinkError{Sent: true, Err: violation("a batch for %s/%d is acknowledged for %.80q", q.sink.topic, q.id, o.ack.Topic)}
			}
			return o.ack, o.err
		case <-ctx.Done():
			return Ack{}, &LinkError{Sent: true, Err: context.Cause(ctx)}
		}
	}
}

// link returns what a record is sent by, unless its time is over: then it is not sent any more.
func (p *Producer) link(ctx context.Context) (*link, error) {
	if ctx.Err() != nil {
		return nil, &LinkError{Err: context.Cause(ctx)}
	}
	return p.session.get(ctx)
}

// tryAgain decides whether a batch that failed is sent again, and waits until it is time.
func (q *queue) tryAgain(ctx context.Context, b *outBatch, err error) bool {
	o := q.sink.producer.opt
	open := unknown(err)
	if open {
		for i := range b.promises {
			b.promises[i].maybe = true
		}
	}
	if open && !o.retryUnknown || !open && !passes(err) || ctx.Err() != nil {
		return false
	}
	if q.sink.producer.client.opt.once {
		return false
	}
	q.tellRetry(b, open, err)
	return q.sink.producer.client.opt.backoff.wait(ctx, b.tries) == nil
}

func (q *queue) tellRetry(b *outBatch, open bool, err error) {
	c := q.sink.producer.client
	c.opt.log.Debug("sending again", "component", "producer", "topic", q.sink.topic, "partition", q.id, "records", len(b.promises), "unknown", open, "err", err)
	if f := c.opt.hooks.Retried; f != nil {
		f(Retried{Topic: q.sink.topic, Partition: q.id, Records: len(b.promises), Unknown: open, Err: err})
	}
}

// why is what a batch failed with: what ended the trying, and what failed last.
func (q *queue) why(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return errors.Join(context.Cause(ctx), err)
}

// sent says what was sent of a batch; nothing, where it is nil.
type sent struct {
	ack           Ack // of the first record
	packed, plain int
	took          time.Duration // from when it was first tried; 0: until now
}

// pay calls the callbacks of the batch that was acknowledged last.
func (q *queue) pay() {
	if o := q.owed; o.batch != nil {
		q.owed = owed{}
		q.settle(o.batch, &o.what, nil)
	}
}

// settle gives each record of a batch its outcome.
func (q *queue) settle(b *outBatch, what *sent, err error) {
	q.pay() // what was produced before
	var ack Ack
	if what != nil {
		ack = what.ack
	}
	if what != nil {
		q.tellOutcome(b, what, err)
	}
	for i := range b.promises {
		pr := &b.promises[i]
		if err == nil {
			pr.settle(ack, nil)
			if ack.Offset >= 0 {
				ack.Offset++
			}
			continue
		}
		pr.settle(Ack{}, q.fault(b, pr.maybe, err))
	}
	q.drop(b)
}

func (q *queue) tellOutcome(b *outBatch, what *sent, err error) {
	if f := q.sink.producer.client.opt.hooks.Produced; f != nil {
		f(Produced{Topic: q.sink.topic, Partition: q.id, Records: len(b.promises), Bytes: what.packed, Plain: what.plain,
			Tries: b.tries, Took: cmp.Or(what.took, time.Since(b.started)), Err: err})
	}
}

func (q *queue) fault(b *outBatch, maybe bool, err error) *ProduceError {
	return &ProduceError{Topic: q.sink.topic, Partition: q.id, Tries: b.tries, Unknown: maybe, Err: err}
}

// drop lets go of a batch whose records have their outcome.
func (q *queue) drop(b *outBatch) {
	p := q.sink.producer
	p.giveRoom(b.size)
	p.finish(b.era)
	p.recycle(b)
}
