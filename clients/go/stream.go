package trunkline

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// batch is what one read of the socket brought.
type batch struct {
	records []Record
	err     error // after the records: an error that does not end the stream
}

// batchesMax is how many batches wait for a slow consumer: a few, so that the socket never idles; what holds the server
// back is TCP. A batch is bounded by the parser's buffer of 64 KiB, or is one larger record.
const batchesMax = 4

// stream is a link that delivers records, or several, one after the other. Its handler's calls all come from the link's
// reader.
type stream struct {
	client *Client
	about  string        // what it is for, as its errors say it
	queue  chan batch    // closed when nothing more comes
	stop   chan struct{} // closed by Stop: the reader must not wait for the consumer
	halted atomic.Bool
	first  chan struct{} // closed when the first record has come
	waits  atomic.Int64  // records handed to the queue and not yet yielded
	keeper sync.WaitGroup

	mu   sync.Mutex
	link *link // guarded by mu; the newest

	// The consumer's: what is being yielded. One iteration at a time.
	current batch
	used    atomic.Bool

	// The reader's.
	gathered gathered
	resume   *resume // nil: when the link ends, nothing more comes
	seen     bool
	whole    bool  // the request was answered: nothing more comes
	final    error // set before queue is closed: why nothing more comes; nil after a whole GET
}

// gathered is what a stream's reader makes batches of.
type gathered struct {
	ready []batch // whole, not yet handed over
	next  batch
	arena arena
	topic string
	names names
	head  []record.Header // scratch
}

// newStream opens a stream; with an address, one that goes on when its link has ended. Connecting is tried until ctx ends, as
// Client's options say.
func (c *Client) newStream(ctx context.Context, about, again string) (*stream, error) {
	s := &stream{
		client: c, about: about, queue: make(chan batch, batchesMax), stop: make(chan struct{}), first: make(chan struct{}),
	}
	s.gathered.names = make(names)
	if err := c.add(s); err != nil {
		return nil, err
	}
	ctx, cancel := until(ctx, s.stop)
	defer cancel()
	d := &dialer{client: c, purpose: about, made: true}
	if again != "" {
		s.resume = newResume(s, d, again)
	}
	conn, parser, address, err := d.connect(ctx)
	if err == nil {
		err = s.open(conn, parser, address)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// open makes a connection the stream's link, unless the stream was closed meanwhile.
func (s *stream) open(conn net.Conn, parser *line.FrameParser, address string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.halted.Load() {
		conn.Close()
		return ErrClosed
	}
	s.link = newLink(conn, parser, &streamEnd{stream: s, address: address}, s.client.opt)
	return nil
}

// streamEnd is a stream as the handler of one of its links.
type streamEnd struct {
	*stream
	address string
}

func (e *streamEnd) ended(err error) {
	if !errors.Is(err, ErrClosed) {
		e.client.tellEnd(e.about, e.address, err)
	}
	if e.resume != nil {
		e.resume.lost = err // for keep, which waits for the link's goroutines
		return
	}
	e.finish(err)
}

// finish says that nothing more comes.
func (s *stream) finish(err error) {
	if !s.whole {
		s.final = err
	}
	close(s.queue)
}

// close ends the stream and waits for its goroutines; safe to call twice.
func (s *stream) close() {
	s.client.drop(s)
	s.mu.Lock()
	if !s.halted.Swap(true) {
		close(s.stop)
	}
	l := s.link
	s.mu.Unlock()
	if l != nil {
		l.close()
	}
	s.keeper.Wait()
}

func (s *stream) async(err *ServerError) {
	if s.resume != nil && !s.resume.heard(err) {
		return
	}
	s.tell(err)
}

// tell puts an error that does not end the stream behind the records that have come.
func (s *stream) tell(err error) {
	s.gathered.next.err = err
	s.cut()
}

// cut ends the batch being gathered.
func (s *stream) cut() {
	g := &s.gathered
	g.ready = append(g.ready, g.next)
	g.next = batch{records: make([]Record, 0, min(len(g.next.records), recordsAhead))}
}

// recordsAhead bounds the room made for the next batch on the evidence of the last.
const recordsAhead = 256

func (s *stream) drained() error {
	g := &s.gathered
	if len(g.next.records) > 0 {
		s.cut()
	}
	for i, b := range g.ready {
		g.ready[i] = batch{}
		s.waits.Add(int64(len(b.records)))
		select { // not on the link's end: what has come is delivered all the same
		case s.queue <- b:
		case <-s.stop:
			return ErrClosed
		}
	}
	g.ready = g.ready[:0]
	if s.whole {
		return ErrClosed
	}
	return nil
}

func (s *stream) message(f *line.Frame) error {
	a, err := address.Parse(f.Subject)
	live := err != nil || a.Position.Kind != address.Offset || a.Partition < 0
	if live { // not from a log: the subject is all it has
		a = address.ParseLiteral(f.Subject)
		a.Partition, a.Position.N = -1, -1
	}
	topic := keep(&s.gathered.topic, a.Topic)
	if s.resume != nil && !s.resume.wants(topic, a.Partition, Offset(a.Position.N), f.SID) {
		return nil
	}
	g := &s.gathered
	header, value := g.arena.keep(f.Header), g.arena.keep(f.Payload) // out of the parser's buffer
	in := record.Record{Value: value, Headers: g.head[:0]}
	if live {
		in.Timestamp = time.Now().UnixMilli()
	}
	if f.Kind == line.FrameHMsg {
		if _, err := line.ParseHeaders(header, &in); err != nil && !live {
			return violation("the headers of %.80q cannot be read: %v", f.Subject, err)
		} else if err != nil { // a status, as NATS has them
			in.Headers = in.Headers[:0]
		}
	}
	g.head = in.Headers
	out := Record{
		Topic: topic, Partition: a.Partition, Offset: Offset(a.Position.N),
		Timestamp: time.UnixMilli(in.Timestamp).UTC(), Key: in.Key, Value: in.Value,
	}
	if len(in.Headers) > 0 {
		out.Headers = make([]Header, len(in.Headers))
		for i, h := range in.Headers {
			out.Headers[i] = Header{Name: g.names.of(h.Key), Value: h.Value}
		}
	}
	g.next.records = append(g.next.records, out)
	if !s.seen {
		s.seen = true
		close(s.first)
	}
	return nil
}

// messages yields records until the stream ends, ctx ends or the consumer breaks. One at a time.
func (s *stream) messages(ctx context.Context) iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		if s.used.Swap(true) {
			yield(nil, invalid("another iteration over the same records is under way"))
			return
		}
		defer s.used.Store(false)
		for {
			for len(s.current.records) > 0 {
				if s.halted.Load() {
					yield(nil, ErrClosed)
					return
				}
				r := &s.current.records[0]
				s.current.records = s.current.records[1:]
				s.waits.Add(-1)
				if !yield(r, nil) {
					return
				}
			}
			if err := s.current.err; err != nil {
				s.current.err = nil
				if !yield(nil, err) {
					return
				}
			}
			more, err := s.receive(ctx)
			if err != nil {
				yield(nil, err)
				return
			}
			if !more {
				return
			}
		}
	}
}

// receive waits for the next batch; false at a good end.
func (s *stream) receive(ctx context.Context) (bool, error) {
	select {
	case b, ok := <-s.queue:
		switch {
		case s.halted.Load():
			return false, ErrClosed
		case ok:
			s.current = b
			return true, nil
		case s.final != nil:
			return false, fmt.Errorf("%s: %w", s.about, s.final)
		}
		return false, nil
	case <-s.stop:
		return false, ErrClosed
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// Subscription delivers the records of a topic or a partition as they become visible.
type Subscription struct{ s *stream }

// Subscribe follows an address, "orders", "orders/2", "orders@earliest" or "orders/2@17", or live subjects: from now unless
// it has a position, in order within each partition. A topic that does not exist is waited for. ctx bounds the subscribing
// only. The server is held back by TCP while nobody iterates, and cuts off who takes nothing for long: see Messages.
//
// When the connection ends, the subscription goes on behind the last record of each partition as soon as there is another one.
// What was published to live subjects meanwhile is gone; it says so by a *GapError.
func (c *Client) Subscribe(ctx context.Context, address string) (*Subscription, error) {
	if err := checkField("address", address); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		sub, err := c.subscribe(ctx, address)
		if err == nil {
			return sub, nil
		}
		if c.opt.once || ctx.Err() != nil || !passes(err) {
			return nil, fmt.Errorf("subscribe to %s: %w", address, err)
		}
		if ended := c.opt.backoff.wait(ctx, try); ended != nil {
			return nil, fmt.Errorf("subscribe to %s: %w: %w", address, ended, err)
		}
	}
}

// subscribe is Subscribe over one connection.
func (c *Client) subscribe(ctx context.Context, address string) (*Subscription, error) {
	again := address
	if c.opt.once {
		again = ""
	}
	s, err := c.newStream(ctx, "subscription to "+address, again)
	if err != nil {
		return nil, err
	}
	answered := make(chan error, 1)
	if s.resume != nil {
		s.resume.learn(s.link)
	}
	err = s.link.send("SUB "+address+" "+mainSID, request{done: func(a answer) { answered <- a.err }})
	if err == nil {
		select {
		case err = <-answered:
		case <-s.first: // records come only when it was accepted; and the reader may wait for us to take them
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		s.close()
		return nil, err
	}
	if s.resume != nil {
		s.keeper.Go(s.keep)
	}
	return &Subscription{s}, nil
}

// Messages yields records in the order they came, and waits for more until ctx ends, Stop is called, or, without retries, the
// link dies; then it yields the reason as its last error. An error before that, a *ServerError with Async set such as CORRUPT
// or TOPIC_DELETED, or a *GapError, does not end it: go on, or break. After a break a new call goes on with the next record. One iteration
// at a time.
func (s *Subscription) Messages(ctx context.Context) iter.Seq2[*Record, error] {
	return s.s.messages(ctx)
}

// Buffered is the number of records that have come and were not yet yielded; at 0 the next one may have to be waited
// for.
func (s *Subscription) Buffered() int { return int(s.s.waits.Load()) }

// Stop ends the subscription and drops what is buffered; an iteration under way ends with ErrClosed. It waits for the
// subscription's goroutines and is safe to call twice.
func (s *Subscription) Stop() { s.s.close() }

// Reading is a GET under way: the records from an address on.
type Reading struct {
	s        *stream
	answered []string // the reader's, until its goroutine is gone
	next     []string
}

// Get reads up to count records from an address on, partitions in ascending order; from the earliest unless the address
// says otherwise. It does not wait for records that are not there yet. The Reading must be iterated to its end or
// closed.
func (c *Client) Get(ctx context.Context, address string, count int) (*Reading, error) {
	if err := checkField("address", address); err != nil {
		return nil, err
	}
	if count < 1 {
		return nil, invalid("cannot read %d records; ask for 1 or more", count)
	}
	s, err := c.newStream(ctx, "get "+address, "")
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", address, err)
	}
	r := &Reading{s: s}
	if err := s.link.send("GET "+address+" "+strconv.Itoa(count), request{done: r.finish}); err != nil {
		s.close()
		return nil, fmt.Errorf("get %s: %w", address, err)
	}
	return r, nil
}

// finish runs on the reader when the last record has been handed over.
func (r *Reading) finish(a answer) {
	s := r.s
	if s.final, s.whole = a.err, true; a.err == nil {
		r.answered = strings.Fields(string(a.detail))
	}
}

// Messages yields the records; an error is the last thing it yields, unless it is a *ServerError with Async set. At the
// end it closes the Reading; after a break a new call goes on with the next record.
func (r *Reading) Messages(ctx context.Context) iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		var last error
		for rec, err := range r.s.messages(ctx) {
			if last = err; !yield(rec, err) {
				return
			}
		}
		r.s.close()
		if last == nil || isAsync(last) {
			r.next = r.answered
		}
	}
}

func isAsync(err error) bool {
	e, ok := errors.AsType[*ServerError](err)
	return ok && e.Async
}

// Next returns the addresses to go on from, one a partition, once Messages has come to its end without an error; nil
// before. It belongs to the goroutine that iterates.
func (r *Reading) Next() []string { return r.next }

// Close ends the reading; it waits for its goroutines and is safe to call twice.
func (r *Reading) Close() { r.s.close() }
