package trunkline

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/record/codec"
)

// Codec says how a Producer compresses its batches.
type Codec = record.Codec

// The codecs. Consumers of this client unpack all of them.
const (
	NoCompression = record.CodecNone
	Gzip          = record.CodecGzip
	Snappy        = record.CodecSnappy
	LZ4           = record.CodecLZ4
	Zstd          = record.CodecZstd
)

// Acks says what a Producer waits for.
type Acks string

const (
	// AcksAll waits until a record is as durable as its topic asks for; the default.
	AcksAll Acks = "all"
	// AcksLeader waits for the partition's leader only; with one broker that is the same.
	AcksLeader Acks = "1"
	// AcksNone waits for the server to have read the record; its failures are not told, and its Ack has no offset.
	AcksNone Acks = "0"
)

// ProducerOption changes how a Producer works.
type ProducerOption func(*producerOptions)

type producerOptions struct {
	acks         Acks
	codec        Codec
	linger       time.Duration
	batchBytes   int
	bufferBytes  int64
	retryUnknown bool
	timeout      time.Duration
}

const (
	batchBytesDefault  = 1 << 20  // the default of message.bytes, above which the server refuses a batch
	batchBytesLeast    = 1 << 10  // the least that message.bytes can be
	bufferBytesDefault = 64 << 20 // many batches for each of many partitions
)

// WithAcks sets what is waited for.
func WithAcks(a Acks) ProducerOption { return func(o *producerOptions) { o.acks = a } }

// WithCompression compresses batches; one that would not become smaller is sent as it is.
func WithCompression(c Codec) ProducerOption { return func(o *producerOptions) { o.codec = c } }

// WithLinger makes a batch wait for more records, unless it is full. The default is 0: a record is sent at once, and what is
// produced while a batch is under way makes up the next one.
func WithLinger(d time.Duration) ProducerOption {
	return func(o *producerOptions) { o.linger = max(d, 0) }
}

// WithBatchBytes bounds a batch before compression, 1 MiB by default; the topic's message.bytes and the server's largest
// payload bound it too. A larger record is a batch of its own.
func WithBatchBytes(n int) ProducerOption {
	return func(o *producerOptions) { o.batchBytes = max(n, batchBytesLeast) }
}

// WithBufferBytes bounds what was produced and has no outcome yet, 64 MiB by default: Produce waits when it is reached. A
// larger record goes alone.
func WithBufferBytes(n int64) ProducerOption {
	return func(o *producerOptions) { o.bufferBytes = max(n, 1) }
}

// RetryUnknown says what becomes of records whose outcome is unknown: of a batch whose connection died, or that the server
// could not vouch for. They are sent again by default, so that every record is there at least once, some perhaps twice;
// RetryUnknown(false) hands them to their callback with an error that matches ErrOutcomeUnknown.
func RetryUnknown(again bool) ProducerOption {
	return func(o *producerOptions) { o.retryUnknown = again }
}

// WithRecordTimeout bounds how long a record is tried, from when it was produced. The default is 0: until Close's context
// ends.
func WithRecordTimeout(d time.Duration) ProducerOption {
	return func(o *producerOptions) { o.timeout = max(d, 0) }
}

// ErrBufferFull is the error of TryProduce when there is no room.
var ErrBufferFull = errors.New("buffer is full")

// ProduceError says why a record of a Producer was not acknowledged. Unless it matches ErrOutcomeUnknown, the record was certainly
// not written.
type ProduceError struct {
	Topic     string
	Partition PartitionID // -1: not known
	Tries     int
	Unknown   bool // the record may be in the log
	Err       error
}

// Error says what failed, and whether the record may have been written.
func (e *ProduceError) Error() string {
	where := e.Topic
	if e.Partition >= 0 {
		where = fmt.Sprintf("%s/%d", e.Topic, e.Partition)
	}
	if e.Unknown {
		return fmt.Sprintf("produce to %s, tries: %d, outcome unknown: %v", where, e.Tries, e.Err)
	}
	return fmt.Sprintf("produce to %s, tries: %d: %v", where, e.Tries, e.Err)
}

// Unwrap returns what failed last.
func (e *ProduceError) Unwrap() error { return e.Err }

// Is makes errors.Is match ErrOutcomeUnknown for a record that may be in the log.
func (e *ProduceError) Is(target error) bool { return target == ErrOutcomeUnknown && e.Unknown }

// Producer gathers records into batches, one for each partition, and sends each when the one before it has its outcome:
// so records that were produced in an order to one partition lie there in that order, also where a batch had to be sent
// again. A record that is there twice, because the outcome of its batch was unknown, is there a second time behind records of
// the same batch; only where the server still reads from a connection that was given up may later ones lie between.
//
// Records with equal keys go to the same partition, by the topic's own plan, which is evaluated here; where the plan can only be
// evaluated by the server, records with keys travel by themselves, several batches of them at a time, and keep their order while
// nothing has to be sent again.
// When the plan changes, what is under way is partitioned anew.
type Producer struct {
	client  *Client
	opt     producerOptions
	session *session
	sinks   atomic.Pointer[map[string]*sink] // by topic; replaced under mu
	packers sync.Pool
	batches sync.Pool
	wg      sync.WaitGroup
	stop    chan struct{} // closed by end
	ended   sync.Once

	buffered atomic.Int64 // bytes without an outcome
	flushing atomic.Int32 // calls of Flush under way: nothing lingers
	closing  atomic.Bool

	mu      sync.Mutex
	over    bool           // guarded by mu; no goroutine is started any more
	room    chan struct{}  // guarded by mu; closed when buffered has fallen and somebody waits
	waiters int            // guarded by mu
	era     uint64         // guarded by mu; each Flush begins another
	open    map[uint64]int // guarded by mu; batches without an outcome, by the era they were begun in
	settled chan struct{}  // guarded by mu; closed when an era has no open batches any more
}

// NewProducer returns a producer. It connects when it has something to send. Close it.
func (c *Client) NewProducer(opts ...ProducerOption) (*Producer, error) {
	p := &Producer{
		client: c, stop: make(chan struct{}), room: make(chan struct{}), open: make(map[uint64]int), settled: make(chan struct{}),
		opt: producerOptions{acks: AcksAll, batchBytes: batchBytesDefault, bufferBytes: bufferBytesDefault, retryUnknown: true},
	}
	for _, opt := range opts {
		opt(&p.opt)
	}
	switch p.opt.acks {
	case AcksAll, AcksLeader, AcksNone:
	default:
		return nil, invalid("acks %q; use AcksAll, AcksLeader or AcksNone", p.opt.acks)
	}
	if _, err := codec.NewPacker(p.opt.codec); err != nil {
		return nil, invalid("compression: %v", err)
	}
	p.sinks.Store(&map[string]*sink{})
	p.session = c.newSession("producer", &producerLink{c})
	p.session.dialer.made = true // connecting is retried from the first time on
	if err := c.add(p); err != nil {
		return nil, err
	}
	return p, nil
}

// Produce takes a record for an address, "orders", "orders#key" or "orders/2", and returns; its bytes are copied. It waits only
// for room, and for what the topic's partitions are, until ctx ends. done is called exactly once if Produce returns nil,
// and never otherwise; for the records of one partition in the order in which they were produced, unless one fails, on a goroutine
// of the producer: it must not block, nor produce, flush or close. A nil done is allowed. Once it has returned nil, the record is
// sent whatever becomes of ctx.
func (p *Producer) Produce(ctx context.Context, address string, m *Message, done func(Ack, error)) error {
	return p.produce(ctx, address, m, done)
}

// TryProduce is Produce for those who would rather drop a record than wait: ErrBufferFull where there is no room.
func (p *Producer) TryProduce(ctx context.Context, address string, m *Message, done func(Ack, error)) error {
	if used := p.buffered.Load(); used > 0 && used+int64(messageBytes(m)) > p.opt.bufferBytes {
		return ErrBufferFull
	}
	return p.produce(ctx, address, m, done)
}

// ProduceSync produces a record and waits for its outcome. When ctx ends first, the error matches ErrOutcomeUnknown: the
// record may be written yet.
func (p *Producer) ProduceSync(ctx context.Context, address string, m *Message) (Ack, error) {
	acks, err := p.ProduceAll(ctx, address, m)
	if err != nil {
		return Ack{}, err
	}
	return acks[0], nil
}

// ProduceAll produces several records to one address and waits for their outcomes. The acks are in the order of the records;
// the error is the first one; the acks of records that failed, or were not tried because an earlier one could not be taken, are
// zero.
func (p *Producer) ProduceAll(ctx context.Context, address string, messages ...*Message) ([]Ack, error) {
	acks, errs := make([]Ack, len(messages)), make([]error, len(messages))
	var left atomic.Int64
	left.Store(int64(len(messages)) + 1)
	all := make(chan struct{})
	settle := func(n int64) {
		if left.Add(-n) == 0 {
			close(all)
		}
	}
	for i, m := range messages {
		err := p.produce(ctx, address, m, func(ack Ack, err error) {
			acks[i], errs[i] = ack, err
			settle(1)
		})
		if err != nil {
			errs[i] = err
			settle(int64(len(messages) - i))
			break
		}
	}
	settle(1)
	select {
	case <-all:
	case <-ctx.Done():
		select {
		case <-all:
		default:
			return make([]Ack, len(acks)), fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))
		}
	}
	for _, err := range errs {
		if err != nil {
			return acks, err
		}
	}
	return acks, nil
}

func messageBytes(m *Message) int {
	size := len(m.Key) + len(m.Value) + requestOverhead
	for i := range m.Headers {
		size += len(m.Headers[i].Name) + len(m.Headers[i].Value) + headerOverhead
	}
	return size
}

const headerOverhead = 10 // two lengths

func (p *Producer) produce(ctx context.Context, addr string, m *Message, done func(Ack, error)) error {
	rec := pending{message: m, key: m.Key, done: done, to: partition.None, size: messageBytes(m)}
	s := (*p.sinks.Load())[addr] // a topic that is known, and nothing else: there is nothing to take apart
	if s == nil || p.closing.Load() {
		topic, err := rec.take(addr)
		if err != nil {
			return err
		}
		if m.Key == nil {
			rec.size += len(rec.key) // the address's
		}
		if s, err = p.sink(topic); err != nil {
			return err
		}
	}
	if err := p.takeRoom(ctx, rec.size); err != nil {
		return err
	}
	if err := s.add(ctx, &rec); err != nil {
		p.giveRoom(rec.size)
		return err
	}
	return nil
}

// take reads an address. It allocates only where the address has a key.
func (rec *pending) take(addr string) (topic string, _ error) {
	end := strings.IndexAny(addr, "#/@")
	if end < 0 {
		return addr, nil
	}
	if n, err := strconv.ParseUint(addr[end+1:], 10, 31); err == nil && addr[end] == '/' {
		rec.to = PartitionID(n)
		return addr[:end], nil
	}
	a, err := address.Parse([]byte(addr))
	if err == nil {
		err = a.ForPublish()
	}
	if err != nil {
		return "", invalid("%v", err)
	}
	if rec.to = a.Partition; a.HasKey {
		if rec.key != nil {
			return "", invalid("the key is given twice, in the address and in the message")
		}
		rec.key = a.Key
	}
	return addr[:end], nil
}

// sink finds what takes a topic's records.
func (p *Producer) sink(name string) (*sink, error) {
	if p.closing.Load() {
		return nil, ErrClosed
	}
	if s := (*p.sinks.Load())[name]; s != nil {
		return s, nil
	}
	if err := address.ValidTopic(name); err != nil {
		return nil, invalid("%v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old := *p.sinks.Load()
	if s := old[name]; s != nil {
		return s, nil
	}
	if p.over {
		return nil, ErrClosed
	}
	name = strings.Clone(name) // it may be a piece of something large
	all := make(map[string]*sink, len(old)+1)
	for k, v := range old {
		all[k] = v
	}
	s := newSink(p, name)
	p.wg.Go(s.via.run)
	all[name] = s
	p.sinks.Store(&all)
	return s, nil
}

// takeRoom waits until size more bytes may be buffered.
func (p *Producer) takeRoom(ctx context.Context, size int) error {
	for {
		used := p.buffered.Load()
		if used == 0 || used+int64(size) <= p.opt.bufferBytes {
			if p.buffered.CompareAndSwap(used, used+int64(size)) {
				return nil
			}
			continue
		}
		p.mu.Lock()
		p.waiters++
		room := p.room
		p.mu.Unlock()
		var err error
		if now := p.buffered.Load(); now > 0 && now+int64(size) > p.opt.bufferBytes { // it may have fallen before we waited
			select {
			case <-room:
			case <-p.stop:
				err = ErrClosed
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		p.mu.Lock()
		p.waiters--
		p.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (p *Producer) giveRoom(size int) {
	p.buffered.Add(-int64(size))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiters > 0 {
		close(p.room)
		p.room = make(chan struct{})
	}
}

// Buffered is the number of bytes that were produced and have no outcome yet.
func (p *Producer) Buffered() int64 { return p.buffered.Load() }

// begin counts a batch in, under an era that is not over; 0 is the current one.
func (p *Producer) begin(era uint64) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if era == 0 {
		era = p.era + 1
	}
	p.open[era]++
	return era
}

func (p *Producer) finish(era uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[era]--; p.open[era] == 0 {
		delete(p.open, era)
		close(p.settled)
		p.settled = make(chan struct{})
	}
}

// Flush waits until every record that was produced before the call has its outcome, and its callback has returned. What is
// produced meanwhile is not waited for.
func (p *Producer) Flush(ctx context.Context) error {
	p.flushing.Add(1)
	defer p.flushing.Add(-1)
	p.mu.Lock()
	p.era++
	last := p.era
	p.mu.Unlock()
	for _, s := range *p.sinks.Load() {
		s.wakeAll()
	}
	for {
		p.mu.Lock()
		first := uint64(math.MaxUint64)
		for era := range p.open {
			first = min(first, era)
		}
		settled := p.settled
		p.mu.Unlock()
		if first > last {
			return nil
		}
		select {
		case <-settled:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Close flushes, until ctx ends, and ends the producer; what has no outcome by then fails with ErrClosed, and with
// ErrOutcomeUnknown where it was sent. Its error is Flush's. It is safe to call twice.
func (p *Producer) Close(ctx context.Context) error {
	p.closing.Store(true)
	err := p.Flush(ctx)
	p.close()
	return err
}

// close ends the producer without a flush, and waits for its goroutines.
func (p *Producer) close() {
	p.closing.Store(true)
	p.client.drop(p)
	p.ended.Do(func() { close(p.stop) })
	p.session.close() // before the sinks: what waits for its answer gets one
	p.mu.Lock()
	p.over = true
	sinks := *p.sinks.Load()
	p.mu.Unlock()
	for _, s := range sinks {
		s.close()
	}
	p.wg.Wait()
}

// start runs a queue, or shuts it when the producer has ended.
func (p *Producer) start(q *queue) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		q.shut = true // nobody else knows it yet
		return
	}
	p.wg.Go(q.run)
}

// producerLink is the handler of a producer's links, on which nothing is delivered.
type producerLink struct{ c *Client }

func (h *producerLink) message(f *line.Frame) error {
	return violation("a record for %.80q that nobody asked for", f.Subject)
}

func (h *producerLink) async(err *ServerError) { h.c.opt.onAsync(err) }
func (h *producerLink) drained() error         { return nil }
func (h *producerLink) ended(error)            {}
