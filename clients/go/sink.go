package trunkline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/record/codec"
)

// pending is a record on its way into a batch.
type pending struct {
	message *Message
	key     []byte
	done    func(Ack, error)
	to      PartitionID // -1: none named
	size    int         // what it counts for in the buffer
}

// promise is what is kept of a record beside its bytes.
type promise struct {
	done  func(Ack, error)
	to    PartitionID // -1: none was named
	maybe bool        // it may be in the log
}

// batch of a producer: records for one partition. It belongs to its queue's lock until it is taken, then to the queue's
// goroutine.
type outBatch struct {
	builder  record.Builder
	buf      record.Batch // the builder's memory, once it is finished
	promises []promise
	size     int // what its records count for in the buffer
	era      uint64
	born     time.Time
	tries    int
	started  time.Time
	resized  bool          // it was refused as too large before, and made anew of what fits
	plan     int64         // the plan's version by which its records were placed; -1: none was
	packed   record.Batch  // what is sent, once it is sealed; the queue's goroutine's
	packer   *codec.Packer // whose memory that is
	uses     atomic.Int32  // of packed by links
}

// sink takes the records of one topic to their partitions.
type sink struct {
	producer *Producer
	topic    string
	loading  chan struct{} // holds a token while somebody asks for METADATA

	inFlight atomic.Int32 // queues that deliver

	// mu is held for reading while a record is placed and while a queue takes a batch, and for writing while the plan changes.
	mu        sync.RWMutex
	loaded    bool
	missing   bool // the topic does not exist: the first record makes it
	plan      *partition.Evaluator
	limit     int                   // bytes of a batch
	queues    []*queue              // of the partitions there are
	all       []*queue              // also of those that a topic of this name had once: these may hold records yet
	via       *queue                // records that the server has to place
	spread    atomic.Pointer[queue] // where records without a key go now
	replan    chan struct{}         // not nil: nothing is placed or taken; closed when there is another plan
	replanner bool                  // somebody makes that plan
}

func newSink(p *Producer, topic string) *sink {
	s := &sink{producer: p, topic: topic, loading: make(chan struct{}, 1), limit: p.opt.batchBytes}
	s.via = newQueue(s, partition.None)
	return s
}

// add places a record. It waits for the topic's plan where that is not known.
func (s *sink) add(ctx context.Context, rec *pending) error {
	for {
		s.mu.RLock()
		replan := s.replan
		if replan == nil && s.loaded {
			err := s.place(rec)
			s.mu.RUnlock()
			return err
		}
		s.mu.RUnlock()
		if replan == nil {
			if err := s.load(ctx); err != nil {
				return err
			}
			continue
		}
		select {
		case <-replan:
		case <-s.producer.stop:
			return ErrClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// place adds a record to the queue that it belongs to. mu is held for reading.
func (s *sink) place(rec *pending) error {
	switch {
	case s.missing:
		if err := rec.message.check(); err != nil { // it goes as HPUB
			return err
		}
		return s.via.add(rec)
	case rec.to >= PartitionID(len(s.queues)):
		return &ProduceError{Topic: s.topic, Partition: rec.to, Err: &ServerError{Code: errcode.UnknownPartition,
			Text: fmt.Sprintf("topic %s has partitions 0 to %d; name one of these, or none", s.topic, len(s.queues)-1)}}
	case rec.to >= 0:
		return s.queues[rec.to].add(rec)
	case rec.key == nil:
		return s.placeKeyless(rec)
	}
	if id := s.plan.ForKey(rec.key); id >= 0 {
		return s.queues[id].add(rec)
	}
	if err := rec.message.check(); err != nil {
		return err
	}
	return s.via.add(rec)
}

// placeKeyless keeps records without a key together until their batch goes, and begins the next one elsewhere.
func (s *sink) placeKeyless(rec *pending) error {
	for {
		q := s.spread.Load()
		if q != nil {
			if added, err := q.addKeyless(rec); added || err != nil {
				return err
			}
		}
		next := s.queues[s.plan.Next()]
		next.offer()
		s.spread.CompareAndSwap(q, next)
	}
}

// load asks for the topic's plan, unless somebody was faster.
func (s *sink) load(ctx context.Context) error {
	select {
	case s.loading <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.loading }()
	s.mu.RLock()
	done := s.loaded
	s.mu.RUnlock()
	if done {
		return nil
	}
	t, err := s.describe(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.install(t)
}

// describe asks for the topic; nil where there is none.
func (s *sink) describe(ctx context.Context) (*Topic, error) {
	m, err := s.producer.client.Metadata(ctx, s.topic)
	if err != nil {
		return nil, err
	}
	t := &m.Topics[0]
	switch {
	case t.Error == errcode.UnknownTopic:
		return nil, nil
	case t.Error != "":
		return nil, &ServerError{Code: t.Error, Text: "topic " + s.topic}
	case t.Plan == nil || len(t.Partitions) == 0:
		return nil, violation("METADATA tells neither plan nor partitions of %s", s.topic)
	}
	return t, nil
}

// install makes what METADATA said of the topic what records are placed by. mu is held for writing.
func (s *sink) install(t *Topic) error {
	s.spread.Store(nil)
	if t == nil {
		s.loaded, s.missing = true, true
		return nil
	}
	plan, err := partition.NewEvaluator(partition.Plan{Version: t.Plan.Version, Kind: t.Plan.Kind, Partitions: t.Plan.Partitions})
	if err != nil { // a later version's: the server places records by it
		plan, err = partition.NewEvaluator(partition.Plan{Version: t.Plan.Version, Kind: partition.KindCalled, Partitions: int32(len(t.Partitions))})
	}
	if err != nil || int(plan.Plan().Partitions) > len(t.Partitions) {
		return violation("METADATA tells a plan of %s that does not fit its %d partitions", s.topic, len(t.Partitions))
	}
	p := s.producer
	limit := min(p.opt.batchBytes, int(p.client.maxPayload.Load()))
	if n, ok := t.Settings["message.bytes"].(json.Number); ok {
		if v, err := n.Int64(); err == nil && v > 0 {
			limit = min(limit, int(v))
		}
	}
	for id := len(s.all); id < len(t.Partitions); id++ {
		q := newQueue(s, PartitionID(id))
		s.all = append(s.all, q)
		p.start(q)
	}
	s.queues = s.all[:len(t.Partitions):len(t.Partitions)]
	s.loaded, s.missing, s.plan, s.limit = true, false, plan, limit
	return nil
}

// forget makes the next record ask for the topic again.
func (s *sink) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loaded = false
}

// startReplan stops the sink until there is another plan. The caller delivers, and leaves its batch where it was.
func (s *sink) startReplan() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.replan == nil {
		s.replan = make(chan struct{})
	}
}

// left is called by a queue that delivers no more; the last one of a sink that has stopped makes the new plan.
func (s *sink) left(ctx context.Context, q *queue) {
	if s.inFlight.Add(-1) > 0 {
		return
	}
	s.mu.RLock() // those who place records go on meanwhile
	stopped := s.replan != nil
	s.mu.RUnlock()
	if !stopped {
		return
	}
	s.mu.Lock()
	mine := s.replan != nil && !s.replanner && s.inFlight.Load() == 0
	s.replanner = s.replanner || mine
	s.mu.Unlock()
	if mine {
		q.pay() // a plan may take long
		s.makePlan(ctx)
	}
}

// makePlan asks for the plan until it is told, and places anew what has no outcome, in its old order: records of one key were
// in one partition.
func (s *sink) makePlan(ctx context.Context) {
	var t *Topic
	var err error
	for try := 1; ; try++ {
		asking, cancel := s.expire(ctx)
		t, err = s.describe(asking)
		expired := asking.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil && expired {
			continue
		}
		if err == nil || ctx.Err() != nil || !passes(err) {
			break
		}
		if s.producer.client.opt.backoff.wait(ctx, try) != nil {
			break
		}
	}
	s.mu.Lock()
	old := append(slices.Clone(s.all), s.via)
	if err == nil {
		err = s.install(t)
	}
	var batches []*outBatch
	for _, q := range old {
		batches = append(batches, q.takeAll()...)
	}
	var failed []failure
	for _, b := range batches {
		failed = append(failed, s.placeAgain(b, err)...)
	}
	s.loaded = s.loaded && err == nil
	close(s.replan)
	s.replan, s.replanner = nil, false
	for _, q := range append(slices.Clone(s.all), s.via) {
		q.signal()
	}
	s.mu.Unlock()
	for _, f := range failed {
		f.promise.settle(Ack{}, f.err)
		s.producer.giveRoom(f.size)
	}
	for _, b := range batches {
		s.producer.finish(b.era)
		s.producer.recycle(b)
	}
}

// expire fails what was tried for its time and waits for a plan. The context ends when that is true of more.
func (s *sink) expire(ctx context.Context) (context.Context, context.CancelFunc) {
	timeout := s.producer.opt.timeout
	if timeout == 0 {
		return context.WithCancel(ctx)
	}
	first := time.Now().Add(timeout)
	s.mu.RLock()
	queues := append(slices.Clone(s.all), s.via)
	s.mu.RUnlock()
	for _, q := range queues {
		var left []*outBatch
		for _, b := range q.takeAll() { // nothing is added or taken meanwhile
			until := b.born.Add(timeout)
			if time.Until(until) <= 0 {
				q.settle(b, nil, fmt.Errorf("no plan of the topic was to be had: %w", context.DeadlineExceeded))
				continue
			}
			if left = append(left, b); until.Before(first) {
				first = until
			}
		}
		q.mu.Lock()
		q.waiting = left
		q.mu.Unlock()
	}
	return context.WithDeadline(ctx, first)
}

// failure is a record that has no place any more.
type failure struct {
	promise promise
	err     error
	size    int
}

// placeAgain moves the records of a batch to where they belong now, and returns those that belong nowhere; with an error,
// all of them.
func (s *sink) placeAgain(b *outBatch, err error) (failed []failure) {
	if b.packed == nil { // else a link may still be at it
		b.buf = b.builder.Finish(0, -1)
	}
	it := record.NewIterator(b.buf)
	var r record.Record
	for _, pr := range b.promises {
		if _, ok := it.Next(&r); !ok {
			panic("trunkline: a batch does not hold the records that were put into it: " + fmt.Sprint(it.Err()))
		}
		m := Message{Key: r.Key, Value: r.Value, Timestamp: time.UnixMilli(r.Timestamp)}
		for _, h := range r.Headers {
			m.Headers = append(m.Headers, Header{Name: string(h.Key), Value: h.Value})
		}
		rec := pending{message: &m, key: r.Key, done: pr.done, to: pr.to, size: messageBytes(&m)}
		why := err
		if why == nil {
			why = s.placeOld(&rec, pr.maybe, b)
		}
		if why != nil {
			failed = append(failed, failure{pr, &ProduceError{Topic: s.topic, Partition: pr.to, Tries: b.tries, Unknown: pr.maybe, Err: why}, rec.size})
		}
	}
	return failed
}

// placeOld is place for a record that was placed before: it keeps its era and its age.
func (s *sink) placeOld(rec *pending, maybe bool, b *outBatch) error {
	q := s.via
	switch {
	case s.missing:
	case rec.to >= PartitionID(len(s.queues)):
		return &ServerError{Code: errcode.UnknownPartition, Text: "the topic does not have that partition any more"}
	case rec.to >= 0:
		q = s.queues[rec.to]
	case rec.key == nil:
		q = s.queues[s.plan.Next()]
	default:
		if id := s.plan.ForKey(rec.key); id >= 0 {
			q = s.queues[id]
		}
	}
	if q == s.via {
		if err := rec.message.check(); err != nil {
			return err
		}
	}
	return q.addOld(rec, maybe, b)
}

func (s *sink) wakeAll() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, q := range s.all {
		q.signal()
	}
	s.via.signal()
}

// close fails what is left. The queues' goroutines are on their way out.
func (s *sink) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range append(slices.Clone(s.all), s.via) {
		q.mu.Lock()
		q.shut = true
		q.mu.Unlock()
		q.signal()
	}
}

func (pr *promise) settle(ack Ack, err error) {
	if pr.done != nil {
		pr.done(ack, err)
	}
}

// recycle keeps a batch's memory, unless a link may still write from it: one that broke, or has more to write of a batch that
// was refused before the server had all of it.
func (p *Producer) recycle(b *outBatch) {
	if b.uses.Load() > 0 {
		return
	}
	if b.packer != nil {
		p.packers.Put(b.packer)
	}
	clear(b.promises)
	*b = outBatch{builder: b.builder, buf: b.buf, promises: b.promises[:0]}
	p.batches.Put(b)
}

func (p *Producer) packer() (*codec.Packer, error) {
	if packer, ok := p.packers.Get().(*codec.Packer); ok {
		return packer, nil
	}
	return codec.NewPacker(p.opt.codec)
}

// text is the request that takes a batch to a partition.
func (p *Producer) text(dst []byte, topic string, id PartitionID, plan int64) []byte {
	dst = append(append(append(dst, "PRODUCE "...), topic...), '/')
	dst = strconv.AppendInt(dst, int64(id), 10)
	if p.opt.acks != AcksAll {
		dst = append(append(dst, " acks="...), p.opt.acks...)
	}
	if plan >= 0 {
		dst = strconv.AppendInt(append(dst, " plan="...), plan, 10)
	}
	return dst
}

// unknown reports whether what failed with err may have been done all the same. A code that this version does not know says
// nothing.
func unknown(err error) bool {
	if server, ok := errors.AsType[*ServerError](err); ok {
		if _, known := errcode.Lookup(server.Code); !known {
			return true
		}
	}
	return errors.Is(err, ErrOutcomeUnknown)
}
