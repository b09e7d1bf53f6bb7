package trunkline

import (
	"context"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// ConsumerOption changes how a Consumer works.
type ConsumerOption func(*consumerOptions)

type consumerOptions struct {
	fetchBytes    int64
	prefetchBytes int64
	wait          time.Duration
	untilLatest   bool
	reuse         bool
}

const (
	fetchBytesDefault    = 4 << 20
	fetchBytesMost       = 64 << 20 // the server's
	prefetchBytesDefault = 16 << 20
	fetchWaitDefault     = 5 * time.Second
	fetchWaitMost        = time.Minute
)

// WithFetchBytes bounds what is asked for at once, 4 MiB by default; a batch that is larger comes all the same.
func WithFetchBytes(n int64) ConsumerOption {
	return func(o *consumerOptions) { o.fetchBytes = min(max(n, 1), fetchBytesMost) }
}

// WithPrefetchBytes bounds what has come and was not handed over yet, 16 MiB by default, but for a batch that is larger.
func WithPrefetchBytes(n int64) ConsumerOption {
	return func(o *consumerOptions) { o.prefetchBytes = max(n, 1) }
}

// WithFetchWait sets how long the server may wait for records before it says that there are none, 5 s by default, at most a
// minute. It is not a delay: records are sent as soon as they are there.
func WithFetchWait(d time.Duration) ConsumerOption {
	return func(o *consumerOptions) { o.wait = min(max(d, time.Millisecond), fetchWaitMost) }
}

// UntilLatest makes the consumer end behind the records that were there when it was made: Records ends, Poll returns io.EOF. A
// partition that waits for a Seek past damage counts as read.
func UntilLatest() ConsumerOption { return func(o *consumerOptions) { o.untilLatest = true } }

// ReuseRecords makes a record, with all that it points to, valid only until the next one is asked for: by the loop over Records,
// or by Poll. Their memory is then used again, which about halves what a consumer costs; who keeps something of a record copies it.
func ReuseRecords() ConsumerOption { return func(o *consumerOptions) { o.reuse = true } }

// CorruptError says that a Consumer met bytes that fail their check. It goes on behind them, unless To is -1: then it cannot be
// told where the next record begins, and the partition waits for a Seek that goes past the damage; the others go on.
type CorruptError struct {
	Topic     string
	Partition PartitionID
	From, To  Offset // records [From, To); To is -1 where the damage hides its own end
	Err       error
}

// Error says where the damage is.
func (e *CorruptError) Error() string {
	if e.To < 0 {
		return fmt.Sprintf("%s/%d@%d: what is stored there is damaged, and so is where it ends; seek past it: %v", e.Topic, e.Partition, e.From, e.Err)
	}
	return fmt.Sprintf("%s/%d: records %d to %d are damaged: %v", e.Topic, e.Partition, e.From, e.To-1, e.Err)
}

// Unwrap returns what is wrong.
func (e *CorruptError) Unwrap() error { return e.Err }

// Is makes errors.Is match ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// ConsumerPartition is where a Consumer stands in a partition.
type ConsumerPartition struct {
	Topic         string
	Partition     PartitionID
	Position      Offset // of the record to be handed over next
	HighWatermark Offset // as the server last said; -1 before it did
	Paused        bool
	Damaged       bool // it waits for a Seek: a *CorruptError whose To is -1 was told
}

// Consumer reads partitions by fetching batches of records ahead of who takes them. It checks and unpacks them. Records of one
// partition come in the order of their offsets, each once; between partitions there is no order.
//
// The server remembers nothing of a consumer: the caller keeps its positions, from each record, or from Positions, and says
// them again when it makes the next one.
//
// Records and Poll belong to one goroutine at a time. All other methods may be called from any.
type Consumer struct {
	client *Client
	opt    consumerOptions
	stop   chan struct{}
	ended  sync.Once
	wg     sync.WaitGroup
	ready  chan struct{} // one slot: there is something to take
	nudge  chan struct{} // one slot: there may be something to fetch, or room for it
	used   atomic.Bool
	taker  taker     // who iterates
	bodies sync.Pool // of *[]byte; ReuseRecords: what was read

	mu    sync.Mutex
	wants []*want         // guarded by mu
	parts []*part         // guarded by mu
	place map[place]*part // guarded by mu
	queue []*chunk        // guarded by mu
	bytes int64           // guarded by mu; of queue, and of the chunk that is being taken
	conn  io.Writer       // guarded by mu; of a FETCH that waits
	final error           // guarded by mu; why nothing more comes
}

// want is an address that is consumed.
type want struct {
	topic string
	only  PartitionID // -1: all
	id    string      // of the topic as it was last seen; empty: it does not exist now
}

type place struct {
	topic string
	id    PartitionID
}

// part is a partition that is consumed.
type part struct {
	place
	position atomic.Int64 // the next record to hand over
	high     atomic.Int64 // the high watermark, -1 where it is not known
	turn     atomic.Int64 // grows when what was fetched is not wanted any more

	// Guarded by Consumer.mu.
	next   Offset // to fetch
	end    Offset // UntilLatest: where it ends; -1: nowhere
	paused bool
	stuck  bool      // at damage that hides its own end, until it is moved
	fails  int       // in a row
	rest   time.Time // not fetched before
}

// chunk is what one BATCH brought, or an error that does not end the consumer.
type chunk struct {
	part  *part
	turn  int64
	bytes []byte // whole batches
	from  Offset // records below were there before
	end   Offset // records from here on are not wanted; -1: all are
	size  int64  // what it counts for in the bound
	err   error
}

// NewConsumer returns a consumer of addresses, "orders", "orders/2", "orders@earliest" or "orders/2@17": from now where there
// is no position. It finds out where that is, and tries until ctx ends; ErrNotFound for a topic or partition that does not
// exist, ErrOffsetOutOfRange for an offset that is not in the log. Partitions that a topic grows by are read from their first
// record, and so is a topic that is deleted and comes back: a request under way, the next METADATA (WithMetadataAge) and every new
// connection notice that. Between two looks at METADATA nothing else tells one log from another of the same name that
// has grown beyond the consumer's position: a consumer that is paused, or asks for nothing because its buffer is full, while its
// topic is deleted, made and filled again reads the new log from there until the next look. Close it.
func (c *Client) NewConsumer(ctx context.Context, addresses []string, opts ...ConsumerOption) (*Consumer, error) {
	r := &Consumer{
		client: c, stop: make(chan struct{}), ready: make(chan struct{}, 1), nudge: make(chan struct{}, 1), place: make(map[place]*part),
		opt: consumerOptions{fetchBytes: fetchBytesDefault, prefetchBytes: prefetchBytesDefault, wait: fetchWaitDefault},
	}
	for _, opt := range opts {
		opt(&r.opt)
	}
	if len(addresses) == 0 {
		return nil, invalid("there is no address to consume")
	}
	for _, addr := range addresses {
		if err := r.want(ctx, addr); err != nil {
			return nil, fmt.Errorf("consume %s: %w", addr, err)
		}
	}
	if err := c.add(r); err != nil {
		return nil, err
	}
	r.taker.names, r.taker.reuse = make(names), r.opt.reuse
	r.wg.Go(r.run)
	return r, nil
}

func readAddress(text string) (address.Address, error) {
	if err := checkField("address", text); err != nil {
		return address.Address{}, err
	}
	a, err := address.Parse([]byte(text))
	if err == nil {
		err = a.ForRead()
	}
	if err == nil && address.HasWildcard(a.Topic) {
		return a, invalid("a Consumer takes no wildcards; subscribe, or name each topic")
	}
	if err != nil {
		return a, invalid("%v", err)
	}
	return a, nil
}

// want adds an address, before the consumer runs.
func (c *Consumer) want(ctx context.Context, text string) error {
	a, err := readAddress(text)
	if err != nil {
		return err
	}
	m, err := c.client.Metadata(ctx, string(a.Topic))
	if err != nil {
		return err
	}
	if code := m.Topics[0].Error; code != "" {
		return &ServerError{Code: code, Text: "topic " + string(a.Topic)}
	}
	list, err := c.client.Offsets(ctx, text)
	if err != nil {
		return err
	}
	w := &want{topic: string(a.Topic), only: a.Partition, id: m.Topics[0].ID}
	c.wants = append(c.wants, w)
	for _, at := range list {
		if at.isMissing() {
			return &ServerError{Code: at.Error, Text: fmt.Sprintf("%s/%d, which has the offsets %d to %d", w.topic, at.Partition, at.LogStart, at.HighWatermark)}
		}
		p := c.addPart(w.topic, at.Partition, at.Offset)
		p.high.Store(int64(at.HighWatermark))
		if c.opt.untilLatest {
			p.end = at.HighWatermark
		}
	}
	return nil
}

// isMissing reports whether there is no such place. Where only the record there cannot be read, there is.
func (at *PartitionOffset) isMissing() bool {
	return at.Error != "" && (at.Error != errcode.Corrupt || at.Offset < 0)
}

// addPart adds a partition, or sets the one that is there. mu is held, or the consumer does not run yet.
func (c *Consumer) addPart(topic string, id PartitionID, from Offset) *part {
	at := place{topic, id}
	p := c.place[at]
	if p == nil {
		p = &part{place: at}
		p.high.Store(-1)
		c.place[at] = p
		c.parts = append(c.parts, p)
	}
	p.end = -1
	c.move(p, from)
	return p
}

// move makes o the next record of a partition. What was fetched of it is thrown away. mu is held.
func (c *Consumer) move(p *part, o Offset) {
	p.turn.Add(1)
	p.next, p.fails, p.rest, p.stuck = o, 0, time.Time{}, false
	p.position.Store(int64(o))
	c.queue = slices.DeleteFunc(c.queue, func(k *chunk) bool {
		stale := k.part == p && k.err == nil
		if stale {
			c.bytes -= k.size
		}
		return stale
	})
}

// selected are the partitions that an address means.
func (c *Consumer) selectedLocked(a *address.Address) ([]*part, error) {
	var some []*part
	for _, p := range c.parts {
		if p.topic == string(a.Topic) && (a.Partition == partition.None || a.Partition == p.id) {
			some = append(some, p)
		}
	}
	if len(some) == 0 {
		return nil, invalid("%s is not consumed", *a)
	}
	return some, nil
}

// Seek goes on at an address with a position, "orders/2@17" or "orders@1h": what was fetched and not handed over is thrown
// away. ErrOffsetOutOfRange where a partition does not have the offset; then nothing has moved. Behind damage the first few
// offsets may not be reachable, because the server finds them by walking over it: a *CorruptError tells, and a Seek further on helps.
func (c *Consumer) Seek(ctx context.Context, addr string) error {
	a, err := readAddress(addr)
	if err != nil {
		return err
	}
	if a.Position.Kind == address.None {
		return invalid("%s has no position to go to; add @OFFSET, @earliest, @latest or a time", addr)
	}
	list, err := c.client.Offsets(ctx, addr)
	if err != nil {
		return fmt.Errorf("seek %s: %w", addr, err)
	}
	to := make(map[PartitionID]Offset)
	for _, at := range list {
		if at.isMissing() {
			return fmt.Errorf("seek %s: %w", addr, &ServerError{Code: at.Error, Text: fmt.Sprintf("partition %d has the offsets %d to %d", at.Partition, at.LogStart, at.HighWatermark)})
		}
		to[at.Partition] = at.Offset
	}
	c.mu.Lock()
	some, err := c.selectedLocked(&a)
	for _, p := range some {
		if o, ok := to[p.id]; ok {
			c.move(p, o)
		}
	}
	c.mu.Unlock()
	c.interrupt()
	return err
}

// Pause stops handing over records of addresses without a position, "orders" or "orders/2", until Resume.
func (c *Consumer) Pause(addresses ...string) error { return c.pause(addresses, true) }

// Resume undoes Pause: nothing was missed.
func (c *Consumer) Resume(addresses ...string) error { return c.pause(addresses, false) }

func (c *Consumer) pause(addresses []string, pause bool) error {
	defer c.interrupt()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, text := range addresses {
		a, err := readAddress(text)
		if err == nil && a.Position.Kind != address.None {
			err = invalid("%s has a position; leave it out", text)
		}
		if err != nil {
			return err
		}
		some, err := c.selectedLocked(&a)
		if err != nil {
			return err
		}
		for _, p := range some {
			if p.paused != pause {
				p.paused = pause
				c.move(p, Offset(p.position.Load()))
			}
		}
	}
	return nil
}

// Partitions tells where the consumer stands, by topic and partition.
func (c *Consumer) Partitions() []ConsumerPartition {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []ConsumerPartition
	for _, p := range c.parts {
		list = append(list, ConsumerPartition{
			Topic: p.topic, Partition: p.id, Position: Offset(p.position.Load()), HighWatermark: Offset(p.high.Load()), Paused: p.paused, Damaged: p.stuck,
		})
	}
	slices.SortFunc(list, func(a, b ConsumerPartition) int {
		if a.Topic != b.Topic {
			if a.Topic < b.Topic {
				return -1
			}
			return 1
		}
		return int(a.Partition - b.Partition)
	})
	return list
}

// Positions are the addresses at which another consumer goes on behind what this one has handed over, one a partition.
func (c *Consumer) Positions() []string {
	var list []string
	for _, p := range c.Partitions() {
		list = append(list, p.Topic+"/"+strconv.Itoa(int(p.Partition))+"@"+strconv.FormatInt(int64(p.Position), 10))
	}
	return list
}

// Buffered is the number of bytes that have come and were not handed over yet.
func (c *Consumer) Buffered() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

// Close ends the consumer; an iteration under way ends with ErrClosed. It waits for the consumer's goroutines and is safe to
// call twice.
func (c *Consumer) Close() { c.close() }

func (c *Consumer) close() {
	c.client.drop(c)
	c.ended.Do(func() { close(c.stop) })
	c.wg.Wait()
}

// Records yields records, and waits for more until ctx ends or the consumer is closed; then it yields the reason as its last
// error. An error before that does not end it: a *CorruptError, a *GapError for records that were removed before they were read, or
// a *ServerError with Async set, such as TOPIC_DELETED. Go on, or break. After a break a new call goes on with the next record.
func (c *Consumer) Records(ctx context.Context) iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		if c.used.Swap(true) {
			yield(nil, invalid("the consumer is being read from by another iteration"))
			return
		}
		defer c.used.Store(false)
		for {
			final, err := c.fill(ctx)
			if err == io.EOF {
				return
			}
			if err != nil {
				if !yield(nil, err) || final {
					return
				}
				continue
			}
			for r := c.taker.next(); r != nil; r = c.taker.next() {
				if !yield(r, nil) {
					return
				}
			}
		}
	}
}

// Poll returns up to limit records of one partition, at least one, and waits for them as Records does; they may be kept, unless
// ReuseRecords was given. An error is as those of Records; which of them end the consumer, errors.Is tells: ErrClosed, io.EOF,
// and those of ctx end the poll.
func (c *Consumer) Poll(ctx context.Context, limit int) ([]Record, error) {
	if limit < 1 {
		return nil, invalid("cannot poll %d records; ask for 1 or more", limit)
	}
	if c.used.Swap(true) {
		return nil, invalid("the consumer is being read from by another iteration")
	}
	defer c.used.Store(false)
	for {
		if _, err := c.fill(ctx); err != nil {
			return nil, err
		}
		if some := c.taker.some(limit); len(some) > 0 {
			return some, nil
		}
	}
}
