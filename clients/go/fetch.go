package trunkline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// run fetches until the consumer is closed, over one connection after the other.
func (c *Consumer) run() {
	ctx, cancel := until(context.Background(), c.stop)
	defer cancel()
	f := &fetcher{consumer: c, dialer: dialer{client: c.client, purpose: "consumer", made: true}, known: time.Now()}
	err := f.run(ctx)
	c.mu.Lock()
	c.final = err
	c.mu.Unlock()
	c.tell(c.ready)
}

func (c *Consumer) tell(slot chan struct{}) {
	select {
	case slot <- struct{}{}:
	default:
	}
}

// interrupt makes the fetcher look again: any verb ends a FETCH that waits.
func (c *Consumer) interrupt() {
	c.tell(c.nudge)
	c.tell(c.ready) // it may be the end
	c.mu.Lock()
	w := c.conn
	c.mu.Unlock()
	if w != nil {
		_, _ = io.WriteString(w, "PING\r\n") // where that fails, so does the FETCH
	}
}

// fetcher is the goroutine of a consumer.
type fetcher struct {
	consumer *Consumer
	dialer   dialer
	known    time.Time // when the topics were last looked at
	rotate   int       // which partition is asked for first
	asked    []asked
	found    int // where the next answer's is looked for
	text     []byte
	frame    line.Frame
	conn     net.Conn
	parser   *line.FrameParser
}

// asked is a partition in a FETCH.
type asked struct {
	part *part
	turn int64
	from Offset
	end  Offset
}

func (f *fetcher) run(ctx context.Context) error {
	o := f.dialer.client.opt
	for failures := 0; ; failures++ {
		if failures > 0 {
			if err := o.backoff.wait(ctx, failures); err != nil {
				return ErrClosed
			}
		}
		conn, parser, where, err := f.dialer.connect(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return ErrClosed
			}
			return err
		}
		if f.conn != nil {
			f.known = time.Time{} // what has happened meanwhile?
		}
		f.conn, f.parser = conn, parser
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		worked, err := f.serve(ctx)
		stop()
		conn.Close()
		if ctx.Err() != nil {
			return ErrClosed
		}
		f.dialer.client.tellEnd("consumer", where, err)
		if o.once || !passes(err) && !isCut(err) {
			return err
		}
		if worked {
			failures = -1 // the next one at once
		}
	}
}

// isCut reports whether err is a connection's.
func isCut(err error) bool {
	_, server := errors.AsType[*ServerError](err)
	return !server
}

// serve fetches over one connection until that ends; worked says that it was of use.
func (f *fetcher) serve(ctx context.Context) (worked bool, _ error) {
	c := f.consumer
	for {
		if age := c.client.opt.metadataAge; time.Since(f.known) >= age {
			if err := f.lookAround(ctx); err != nil {
				return worked, err
			}
			f.known = time.Now()
		}
		room, pause := f.choose()
		if room == 0 {
			if err := f.rest(ctx, pause); err != nil {
				return worked, err
			}
			continue
		}
		if err := f.fetch(room, pause); err != nil {
			return worked, err
		}
		worked = true
	}
}

// choose finds what to fetch: how many bytes, none where nothing is to be fetched now, and how long that may be waited for.
func (f *fetcher) choose() (room int64, pause time.Duration) {
	c := f.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	pause = max(c.client.opt.metadataAge-now.Sub(f.known), time.Millisecond)
	f.asked = f.asked[:0]
	f.rotate++
	for i := range c.parts {
		p := c.parts[(i+f.rotate)%len(c.parts)]
		switch {
		case p.paused || p.stuck || p.end >= 0 && p.next >= p.end:
		case p.rest.After(now):
			pause = min(pause, p.rest.Sub(now))
		default:
			f.asked = append(f.asked, asked{p, p.turn.Load(), p.next, p.end})
		}
	}
	// What is left beside whole batches is not worth a request: there is more soon.
	most := min(c.opt.fetchBytes, c.opt.prefetchBytes)
	if room = min(most, c.opt.prefetchBytes-c.bytes); room <= most/2 && c.bytes > 0 || len(f.asked) == 0 {
		return 0, pause
	}
	return max(room, 1), min(pause, c.opt.wait)
}

// rest waits until there may be something to fetch. A connection that is silent for long is asked whether it is there, so that
// the server does not take this side for gone.
func (f *fetcher) rest(ctx context.Context, pause time.Duration) error {
	t := time.NewTimer(min(pause, f.dialer.client.opt.pingInterval))
	defer t.Stop()
	select {
	case <-f.consumer.nudge:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
	}
	if err := f.write([]byte("PING\r\n")); err != nil {
		return err
	}
	for {
		if err := f.next(f.dialer.client.opt.pingInterval); err != nil {
			return err
		}
		if f.frame.Kind == line.FramePong {
			return nil
		}
	}
}

func (f *fetcher) write(b []byte) error {
	f.conn.SetWriteDeadline(time.Now().Add(f.dialer.client.opt.writeTimeout)) // fails only when closed; then Write does too
	if _, err := f.conn.Write(b); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// lineBytes is how much is read at once where lines are expected: several of small batches, and little of a large body, whose
// rest is then read to where it stays.
const lineBytes = 4 << 10

// next reads a frame, and answers PING.
func (f *fetcher) next(patience time.Duration) error {
	for {
		ok, err := f.parser.Next(&f.frame)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if ok {
			switch f.frame.Kind {
			case line.FramePing:
				if err := f.write([]byte("PONG\r\n")); err != nil {
					return err
				}
				continue
			case line.FrameInfo:
				continue
			case line.FrameAsyncErr:
				return serverError(&f.frame)
			}
			return nil
		}
		f.conn.SetReadDeadline(time.Now().Add(patience))
		buf := f.parser.Buffer()
		n, err := f.conn.Read(buf[:min(len(buf), lineBytes)])
		f.parser.Advance(n)
		if n == 0 && err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("server closed the connection")
			}
			return err
		}
	}
}

// requestBytesMost is below every server's control line.
const requestBytesMost = 4000

// ask writes FETCH for what was chosen: on its line where there is room, else as JSON.
func (f *fetcher) ask(room int64, wait time.Duration) {
	ms := max(wait.Milliseconds(), 1)
	b := append(f.text[:0], "FETCH"...)
	for i := range f.asked {
		a := &f.asked[i]
		b = address.AppendAddress(append(b, ' '), a.part.topic, a.part.id, a.from)
		if len(b) > requestBytesMost {
			break
		}
	}
	if len(b) <= requestBytesMost {
		b = strconv.AppendInt(append(b, " max="...), room, 10)
		b = strconv.AppendInt(append(b, " wait="...), ms, 10)
		f.text = append(b, "ms\r\n"...)
		return
	}
	body := fmt.Appendf(nil, `{"max":%d,"wait":%d,"partitions":[`, room, ms)
	for i := range f.asked {
		a := &f.asked[i]
		if i > 0 {
			body = append(body, ',')
		}
		name, _ := json.Marshal(a.part.topic) // a string
		body = fmt.Appendf(body, `{"topic":%s,"partition":%d,"offset":%d}`, name, a.part.id, a.from)
	}
	body = append(body, "]}"...)
	b = strconv.AppendInt(append(b[:0], "FETCH "...), int64(len(body)), 10)
	f.text = append(append(append(b, '\r', '\n'), body...), '\r', '\n')
}

// fetch asks once and takes what comes.
func (f *fetcher) fetch(room int64, wait time.Duration) error {
	c := f.consumer
	f.ask(room, wait)
	if err := f.write(f.text); err != nil {
		return err
	}
	c.mu.Lock()
	c.conn = f.conn
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.conn = nil
		c.mu.Unlock()
	}()
	select { // what changed between choose and here
	case <-c.nudge:
		if err := f.write([]byte("PING\r\n")); err != nil {
			return err
		}
	default:
	}
	for {
		if err := f.next(wait + f.dialer.client.opt.pingInterval); err != nil {
			return err
		}
		switch f.frame.Kind {
		case line.FrameBatch:
			if err := f.takeBatch(); err != nil {
				return err
			}
		case line.FramePart:
			if err := f.takeTrouble(); err != nil {
				return err
			}
		case line.FrameOK:
			return nil
		case line.FrameErr:
			return serverError(&f.frame)
		case line.FramePong:
		default:
			return violation("FETCH is answered with something else")
		}
	}
}

// find returns what was asked of the partition that a frame is about.
func (f *fetcher) find() (*asked, error) {
	a, err := address.Parse(f.frame.Subject)
	if err == nil {
		for range f.asked { // the answers come in the order of the question
			at := &f.asked[f.found%len(f.asked)]
			f.found++
			if at.part.id == a.Partition && at.part.topic == string(a.Topic) {
				return at, nil
			}
		}
	}
	return nil, violation("FETCH is answered for %.80q, which was not asked for", f.frame.Subject)
}

// takeBatch reads the body of a BATCH and queues it.
func (f *fetcher) takeBatch() error {
	a, err := f.find()
	if err != nil {
		return err
	}
	high := Offset(f.frame.HighWatermark)
	body := f.consumer.body(f.frame.Size)
	n := f.parser.TakeBody(body)
	if err := f.readFull(body[n:]); err != nil {
		return fmt.Errorf("read %d bytes of %s/%d: %w", len(body), a.part.topic, a.part.id, err)
	}
	next, good, records, err := walk(body, a.from)
	if err != nil && good == 0 {
		f.consumer.damage(a, err)
		return nil
	}
	body = body[:good] // the damage comes again, at the beginning
	if h := f.dialer.client.opt.hooks.Fetched; h != nil {
		h(Fetched{Topic: a.part.topic, Partition: a.part.id, Records: records, Bytes: len(body), HighWatermark: high})
	}
	c := f.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	a.part.high.Store(int64(high))
	if a.part.turn.Load() != a.turn {
		return nil
	}
	a.part.next, a.part.fails = next, 0
	c.push(&chunk{part: a.part, turn: a.turn, bytes: body, from: a.from, end: a.end, size: int64(len(body))})
	return nil
}

// readFull reads a body. A slow one may take its time, one that stands still may not.
func (f *fetcher) readFull(b []byte) error {
	for len(b) > 0 {
		f.conn.SetReadDeadline(time.Now().Add(f.dialer.client.opt.writeTimeout)) // fails only when closed; then Read does too
		n, err := f.conn.Read(b)
		if b = b[n:]; err != nil && len(b) > 0 {
			if errors.Is(err, io.EOF) {
				err = errors.New("server closed the connection")
			}
			return err
		}
	}
	return nil
}

// walk goes over whole batches by their headers, as far as these can be believed, and returns the offset behind them and how many
// bytes they are.
func walk(body []byte, from Offset) (next Offset, good, records int, _ error) {
	next = from
	for rest := body; len(rest) > 0; {
		size, err := record.SizeOf(rest)
		if err != nil {
			return next, good, records, err
		}
		if size > len(rest) {
			return next, good, records, record.ErrShort
		}
		b := record.Batch(rest[:size])
		if b.LastDelta() < 0 || b.NextOffset() <= next {
			return next, good, records, fmt.Errorf("%w: a batch that ends at offset %d, where %d is expected", record.ErrCount, b.LastOffset(), next)
		}
		next, rest = b.NextOffset(), rest[size:]
		good, records = good+size, records+int(b.Count())
	}
	return next, good, records, nil
}

// bodyStep is what memory for bodies that is used again comes in multiples of: they are seldom of the same size.
const bodyStep = 256 << 10

// body returns memory for what a BATCH brings. Where memory is used again, what came back serves, unless it is much larger: the
// bound on what has come counts what was asked for.
func (c *Consumer) body(size int) []byte {
	if !c.opt.reuse || size < bodyStep {
		return make([]byte, size)
	}
	if b, _ := c.bodies.Get().(*[]byte); b != nil && cap(*b) >= size && cap(*b)/2 <= size {
		return (*b)[:size]
	}
	return make([]byte, size, (size+bodyStep-1)/bodyStep*bodyStep)
}

// recycle takes back the memory of a chunk, if its records are not the caller's for good.
func (c *Consumer) recycle(k *chunk) {
	if c.opt.reuse && cap(k.bytes) >= bodyStep {
		c.bodies.Put(&k.bytes)
	}
}

// push queues a chunk. mu is held.
func (c *Consumer) push(k *chunk) {
	c.queue = append(c.queue, k)
	c.bytes += k.size
	c.tell(c.ready)
}

// takeTrouble takes a PART.
func (f *fetcher) takeTrouble() error {
	a, err := f.find()
	if err != nil {
		return err
	}
	c, p := f.consumer, a.part
	code, low, high := errcode.Code(f.frame.Code), Offset(f.frame.LogStart), Offset(f.frame.HighWatermark)
	switch code {
	case errcode.OffsetOutOfRange:
		if low < 0 || high < 0 {
			break
		}
		to := low
		if a.from >= low {
			to = high
			f.known = time.Time{} // is it another topic's log?
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if p.turn.Load() == a.turn && to != a.from {
			c.push(&chunk{part: p, turn: a.turn, err: &GapError{Topic: p.topic, Partition: p.id, From: a.from, To: to}})
			p.next, p.fails = to, 0
		}
		return nil
	case errcode.Corrupt:
		c.damage(a, &ServerError{Code: code, Text: "the server says so", Async: true})
		return nil
	case errcode.UnknownTopic, errcode.TopicDeleted, errcode.UnknownPartition:
		f.known = time.Time{} // what is there now?
	}
	return c.trouble(a, code, &ServerError{Code: code, Text: p.topic + "/" + strconv.Itoa(int(p.id)), Async: true})
}

// damage tells of bytes that nobody can read on behind, and leaves their partition alone until it is moved.
func (c *Consumer) damage(a *asked, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := a.part
	if p.turn.Load() != a.turn {
		return
	}
	p.stuck = true
	c.client.opt.log.Error("damage in the log", "component", "consumer", "topic", p.topic, "partition", p.id, "offset", a.from, "err", err)
	c.push(&chunk{part: p, turn: a.turn, err: &CorruptError{Topic: p.topic, Partition: p.id, From: a.from, To: -1, Err: err}})
}

// trouble lets a partition rest. What will not pass by itself is told, once.
func (c *Consumer) trouble(a *asked, code errcode.Code, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := a.part
	if p.turn.Load() != a.turn {
		return nil
	}
	p.fails++
	p.rest = time.Now().Add(c.client.opt.backoff.pause(p.fails))
	c.client.opt.log.Debug("cannot fetch", "component", "consumer", "topic", p.topic, "partition", p.id, "err", err)
	gone := code == errcode.UnknownTopic || code == errcode.TopicDeleted || code == errcode.UnknownPartition // lookAround tells
	if p.fails == 1 && !code.Retriable() && !gone {
		c.push(&chunk{part: p, turn: a.turn, err: err})
	}
	return nil
}

// lookAround looks for partitions that have come to be, and for topics that are gone or back.
func (f *fetcher) lookAround(ctx context.Context) error {
	c := f.consumer
	var names []string
	for _, w := range c.wants { // only this goroutine changes them
		names = append(names, w.topic)
	}
	for len(names) > 0 {
		n, size := 0, len("METADATA")
		for ; n < len(names) && (n == 0 || size+1+len(names[n]) < requestBytesMost); n++ {
			size += 1 + len(names[n])
		}
		m, err := c.client.Metadata(ctx, names[:n]...)
		if err != nil {
			return err
		}
		c.mu.Lock()
		for i := range m.Topics {
			for _, w := range c.wants {
				if w.topic == m.Topics[i].Name {
					c.compare(w, &m.Topics[i])
				}
			}
		}
		c.mu.Unlock()
		names = names[n:]
	}
	return nil
}

// compare holds what is consumed of a topic against what there is. mu is held.
func (c *Consumer) compare(w *want, t *Topic) {
	if t.Error != "" && t.Error != errcode.UnknownTopic {
		return
	}
	if w.id != "" && t.ID != w.id {
		c.remove(w)
		c.push(&chunk{err: &ServerError{Code: errcode.TopicDeleted, Async: true, Text: "topic " + w.topic + " was deleted; the consumer waits for it to come back"}})
	}
	w.id = t.ID
	for i := range t.Partitions {
		id := t.Partitions[i].Partition
		if w.only >= 0 && w.only != id || c.place[place{w.topic, id}] != nil {
			continue
		}
		p := c.addPart(w.topic, id, 0)
		if c.opt.untilLatest {
			p.end = 0
		}
	}
}

// remove forgets the partitions of an address. mu is held.
func (c *Consumer) remove(w *want) {
	kept := c.parts[:0]
	for _, p := range c.parts {
		if p.topic != w.topic || w.only >= 0 && w.only != p.id {
			kept = append(kept, p)
			continue
		}
		c.move(p, Offset(p.position.Load()))
		delete(c.place, p.place)
	}
	clear(c.parts[len(kept):])
	c.parts = kept
}
