package trunkline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
)

// handler takes what no request of its link waits for. The link's reader calls it, one call at a time.
type handler interface {
	// message takes a MSG or HMSG; an error ends the link. The frame is valid during the call.
	message(f *line.Frame) error
	// async takes an error that answers no request.
	async(err *ServerError)
	// drained is called when everything that one read brought has been handed over; it may block. An error ends the link.
	drained() error
	// ended is called once, last, with what ended the link.
	ended(err error)
}

// answer is the final answer of a request. Its slices are valid during the callback.
type answer struct {
	detail []byte // what follows +OK
	data   []byte // DATA's body
	err    error
}

// request is what waits for its answer. One of ack and done is set; a ping has neither or done.
type request struct {
	ack   func(Ack, error)
	done  func(answer)
	ping  bool
	start int64 // where its bytes begin in the stream of everything written
	size  int   // what it counts for in flight
}

// link is a connection with one reader and one writer. Requests are answered in order.
type link struct {
	conn    net.Conn
	parser  *line.FrameParser // reader only
	handler handler
	opt     *options
	acks    ackReader // reader only

	reads   atomic.Int64 // counts reads from the socket
	blocked atomic.Bool  // the reader waits for its handler
	dead    atomic.Bool  // set by fail

	wake       chan struct{} // one slot: there is something to write
	dying      chan struct{} // closed by fail
	writerGone chan struct{}
	wg         sync.WaitGroup
	pieces     net.Buffers // writer only: what is to be written
	vector     net.Buffers // writer only: of that, what goes with one call

	out outbox
}

// outbox is what the callers, the writer and the reader share.
type outbox struct {
	sync.Mutex
	buf, spare []byte // guarded; not yet taken by the writer, and the writer's last buffer
	lent, free []lent // guarded; payloads that go between the bytes of buf, and the writer's last ones
	pong       bool   // guarded; buf holds a PONG
	queued     int64  // guarded; bytes ever put into buf
	written    int64  // guarded; bytes the network took. Invariant: written <= queued.
	pending    ring   // guarded
	inFlight   int    // guarded; sum of the sizes of pending publishes
	pings      int    // guarded; pings of ours without an answer
	room       chan struct{}
	waiters    int   // guarded; callers that wait for room
	err        error // guarded; what ended the link
}

// lent is a payload that the writer takes from where it lies, instead of from a copy.
type lent struct {
	at   int // it goes behind so many bytes of the buffer
	body []byte
	uses *atomic.Int32 // of its memory by writers; what a broken connection leaves unwritten stays counted
}

// lendBytesLeast is the size from which on a payload is not worth a copy.
const lendBytesLeast = 16 << 10

func newLink(conn net.Conn, parser *line.FrameParser, h handler, opt *options) *link {
	l := &link{conn: conn, parser: parser, handler: h, opt: opt}
	l.wake = make(chan struct{}, 1)
	l.dying = make(chan struct{})
	l.writerGone = make(chan struct{})
	l.out.room = make(chan struct{})
	l.wg.Go(l.read)
	l.wg.Go(l.write)
	return l
}

// close ends the link and waits for its goroutines. It is safe to call twice, and not from a callback.
func (l *link) close() {
	l.fail(ErrClosed)
	l.wg.Wait()
}

// fail ends the link; the first error stays.
func (l *link) fail(err error) {
	l.out.Lock()
	defer l.out.Unlock()
	if l.out.err != nil {
		return
	}
	l.out.err = err
	l.dead.Store(true)
	close(l.dying)
	l.conn.Close() // wakes reader and writer
}

// reason is what ended the link.
func (l *link) reason() error {
	if l == nil {
		return ErrClosed
	}
	l.out.Lock()
	defer l.out.Unlock()
	return l.out.err
}

// lockForRoom returns with the outbox locked once size more bytes may be in flight. A request larger than the bound
// goes when nothing else is under way.
func (l *link) lockForRoom(ctx context.Context, size int) error {
	l.out.Lock()
	for {
		if l.out.err != nil {
			err := l.out.err
			l.out.Unlock()
			return &LinkError{Err: err}
		}
		if l.out.inFlight == 0 || l.out.inFlight+size <= l.opt.inFlightBytes {
			return nil
		}
		l.out.waiters++
		room := l.out.room
		l.out.Unlock()
		var err error
		select {
		case <-room:
		case <-l.dying:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		l.out.Lock()
		l.out.waiters--
		if err != nil {
			l.out.Unlock()
			return err
		}
	}
}

// commitAndUnlock enqueues r, whose bytes were just appended to out.buf, wakes the writer and unlocks.
func (l *link) commitAndUnlock(r request, bytes int) {
	r.start = l.out.queued
	l.out.queued += int64(bytes)
	l.out.inFlight += r.size
	l.out.pending.push(r)
	l.out.Unlock()
	l.kick()
}

func (l *link) kick() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// send queues a request that has no payload.
func (l *link) send(text string, r request) error { return l.sendBody([]byte(text), nil, nil, r) }

// sendBody queues a request with its payload; nil is none. A large payload is written from where it lies: it must not change
// while it counts as used.
func (l *link) sendBody(text, body []byte, uses *atomic.Int32, r request) error {
	if len(text) > l.opt.controlLine {
		return invalid("the request is longer than a control line of %d bytes", l.opt.controlLine)
	}
	l.out.Lock()
	if err := l.out.err; err != nil {
		l.out.Unlock()
		return &LinkError{Err: err}
	}
	before, extra := len(l.out.buf), 0
	l.out.buf = append(append(l.out.buf, text...), '\r', '\n')
	switch {
	case body == nil:
	case len(body) < lendBytesLeast:
		l.out.buf = append(append(l.out.buf, body...), '\r', '\n')
	default:
		uses.Add(1)
		l.out.lent = append(l.out.lent, lent{len(l.out.buf), body, uses})
		l.out.buf, extra = append(l.out.buf, '\r', '\n'), len(body)
	}
	if r.ping {
		l.out.pings++
	}
	l.commitAndUnlock(r, len(l.out.buf)-before+extra)
	return nil
}

// call sends a request and waits for its answer. When ctx ends first the request may still be carried out.
func (l *link) call(ctx context.Context, text string, ping bool) (answer, error) {
	got := make(chan answer, 1)
	err := l.send(text, request{ping: ping, done: func(a answer) {
		a.detail, a.data = append([]byte(nil), a.detail...), append([]byte(nil), a.data...)
		got <- a
	}})
	if err != nil {
		return answer{}, err
	}
	select {
	case a := <-got:
		return a, a.err
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	}
}

// writeBytesMax is how much one call to the network may carry.
const writeBytesMax = 256 << 10

func (l *link) write() {
	defer close(l.writerGone)
	tick := time.NewTicker(l.opt.pingInterval)
	defer tick.Stop()
	var reads int64
	for {
		select {
		case <-l.dying:
			return
		case <-tick.C:
			if now := l.reads.Load(); now != reads || l.blocked.Load() {
				reads = now
			} else if !l.ping() {
				return
			}
			continue
		case <-l.wake:
		}
		if err := l.flush(); err != nil {
			l.fail(err)
			return
		}
	}
}

// ping asks a silent peer whether it is there; false when it has not answered two.
func (l *link) ping() bool {
	l.out.Lock()
	unanswered := l.out.pings
	l.out.Unlock()
	if unanswered >= 2 {
		l.fail(fmt.Errorf("server silent for %v: %w", 3*l.opt.pingInterval, ErrUnavailable))
		return false
	}
	return l.send("PING", request{ping: true}) == nil
}

// flush writes until there is nothing more to write: what was queued during one write goes out with the next.
func (l *link) flush() error {
	for {
		l.out.Lock()
		buf, bodies := l.out.buf, l.out.lent
		l.out.buf, l.out.spare, l.out.pong = l.out.spare[:0], nil, false
		l.out.lent, l.out.free = l.out.free[:0], nil
		l.out.Unlock()
		l.pieces = l.pieces[:0]
		at := 0
		for i := range bodies {
			l.pieces = append(l.pieces, buf[at:bodies[i].at], bodies[i].body)
			at = bodies[i].at
		}
		if at < len(buf) {
			l.pieces = append(l.pieces, buf[at:])
		}
		if err := l.writePieces(l.pieces); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		for i := range bodies {
			bodies[i].uses.Add(-1)
		}
		l.recycle(buf, bodies)
		if len(buf) == 0 {
			return nil
		}
	}
}

// writePieces writes so much at a time that a slow peer still makes progress within the deadline of each.
func (l *link) writePieces(pieces net.Buffers) error {
	defer clear(pieces)
	for len(pieces) > 0 {
		all, room := l.vector[:0], writeBytesMax
		for len(pieces) > 0 && room > 0 {
			n := min(len(pieces[0]), room)
			all = append(all, pieces[0][:n])
			room -= n
			if pieces[0] = pieces[0][n:]; len(pieces[0]) == 0 {
				pieces = pieces[1:]
			}
		}
		l.conn.SetWriteDeadline(time.Now().Add(l.opt.writeTimeout)) // fails only when closed; then a write does too
		l.vector = all
		n, err := l.vector.WriteTo(l.conn) // moves vector on
		l.vector = all
		l.out.Lock()
		l.out.written += n
		l.out.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// recycle keeps what was written for the next time, unless a record larger than the bound in flight made it grow.
func (l *link) recycle(buf []byte, bodies []lent) {
	clear(bodies)
	if cap(buf) > 2*l.opt.inFlightBytes+writeBytesMax {
		buf = nil
	}
	l.out.Lock()
	l.out.spare, l.out.free = buf[:0], bodies[:0]
	l.out.Unlock()
}

func (l *link) read() {
	err := l.readFrames()
	l.fail(err)
	<-l.writerGone // from here on written does not move
	l.out.Lock()
	err = l.out.err
	left, written := l.out.pending, l.out.written
	l.out.pending, l.out.inFlight = ring{}, 0
	l.out.Unlock()
	for {
		r, ok := left.pop()
		if !ok {
			break
		}
		r.finish(Ack{}, answer{err: &LinkError{Sent: r.start < written, Err: err}})
	}
	l.handler.ended(err)
}

// readFrames returns what ended the stream, never nil.
func (l *link) readFrames() error {
	var f line.Frame
	var notice error // the server's last word that was no answer; it often says why the link ends
	for {
		freed := 0
		for {
			ok, err := l.parser.Next(&f)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrProtocol, err)
			}
			if !ok {
				break
			}
			n, word, err := l.handle(&f)
			if err != nil {
				return err
			}
			freed += n
			if word != nil {
				notice = word
			}
		}
		l.release(freed)
		l.blocked.Store(true)
		err := l.handler.drained()
		l.blocked.Store(false)
		if err != nil {
			return err
		}
		n, err := l.conn.Read(l.parser.Buffer())
		l.parser.Advance(n)
		l.reads.Add(1)
		if err == nil || n > 0 && errors.Is(err, io.EOF) {
			continue
		}
		if errors.Is(err, io.EOF) {
			err = errors.New("server closed the connection")
		}
		if notice != nil {
			return fmt.Errorf("%w: %w", err, notice)
		}
		return err
	}
}

// handle takes one frame; freed is what its request counted for in flight, notice an error that answered none.
func (l *link) handle(f *line.Frame) (freed int, notice, err error) {
	switch f.Kind {
	case line.FrameMsg, line.FrameHMsg:
		return 0, nil, l.handler.message(f)
	case line.FramePing:
		l.pong()
		return 0, nil, nil
	case line.FrameInfo: // an update of what Dial read; nothing in it changes a living link
		return 0, nil, nil
	case line.FrameAsyncErr:
		e := serverError(f)
		l.handler.async(e)
		return 0, e, nil
	}
	l.out.Lock()
	r, ok := l.out.pending.pop()
	if ok && r.ping {
		l.out.pings--
	}
	l.out.Unlock()
	if !ok && f.Kind == line.FrameErr { // what the server says before it hangs up on a client that asked nothing
		e := serverError(f)
		e.Async = true
		l.handler.async(e)
		return 0, e, nil
	}
	if !ok || f.Kind != line.FrameErr && r.ping != (f.Kind == line.FramePong) {
		if ok {
			r.finish(Ack{}, answer{err: &LinkError{Sent: true, Err: ErrProtocol}})
		}
		return 0, nil, violation("an answer that no request waits for")
	}
	err = l.answer(&r, f)
	if f.Kind == line.FrameErr && errcode.Code(f.Code).Closes() {
		notice = serverError(f)
	}
	return r.size, notice, err
}

func (l *link) answer(r *request, f *line.Frame) error {
	if f.Kind == line.FrameErr {
		r.finish(Ack{}, answer{err: serverError(f)})
		return nil
	}
	if r.ack == nil {
		r.finish(Ack{}, answer{detail: f.Detail, data: f.Payload})
		return nil
	}
	ack, err := l.acks.read(f.Detail)
	if err != nil {
		r.ack(Ack{}, &LinkError{Sent: true, Err: err})
		return err
	}
	r.ack(ack, nil)
	return nil
}

func (r *request) finish(ack Ack, a answer) {
	switch {
	case r.ack != nil:
		r.ack(ack, a.err)
	case r.done != nil:
		r.done(a)
	}
}

func (l *link) pong() {
	l.out.Lock()
	if !l.out.pong && l.out.err == nil { // one PONG that waits to be written answers every PING before it
		l.out.buf = append(l.out.buf, "PONG\r\n"...)
		l.out.queued += 6
		l.out.pong = true
	}
	l.out.Unlock()
	l.kick()
}

func (l *link) release(bytes int) {
	if bytes == 0 {
		return
	}
	l.out.Lock()
	l.out.inFlight -= bytes
	if l.out.waiters > 0 {
		close(l.out.room)
		l.out.room = make(chan struct{})
	}
	l.out.Unlock()
}

func serverError(f *line.Frame) *ServerError {
	return &ServerError{Code: errcode.Code(f.Code), Text: string(f.Detail), Async: f.Kind == line.FrameAsyncErr}
}

// ring is a queue of requests that reuses its memory. Its size follows the bound on bytes in flight.
type ring struct {
	slots []request // len is a power of two
	head  int       // the oldest
	count int
}

func (q *ring) push(r request) {
	if q.count == len(q.slots) {
		grown := make([]request, max(16, 2*len(q.slots)))
		for i := range q.count {
			grown[i] = q.slots[(q.head+i)&(len(q.slots)-1)]
		}
		q.slots, q.head = grown, 0
	}
	q.slots[(q.head+q.count)&(len(q.slots)-1)] = r
	q.count++
}

func (q *ring) pop() (request, bool) {
	if q.count == 0 {
		return request{}, false
	}
	r := q.slots[q.head]
	q.slots[q.head] = request{} // let go of the callback
	q.head = (q.head + 1) & (len(q.slots) - 1)
	q.count--
	return r, true
}
