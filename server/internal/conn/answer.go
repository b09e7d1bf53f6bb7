package conn

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/partition"
)

// outbox is everything a connection has to say: the answers of requests, in request order, and frames that may come
// between them. One goroutine writes it to the socket.
type outbox struct {
	limit    int           // bytes that may wait for the peer
	deadline time.Duration // how long the peer may accept nothing

	mu    sync.Mutex
	ready *sync.Cond    // the writer waits here
	freed chan struct{} // closed and replaced when there is room again, or the queue is empty
	buf   []byte        // to be written next
	head  *answer       // oldest request without an answer in buf
	tail  *answer
	queue int     // answers between head and tail
	held  int     // bytes of what waits in the queue and in acks
	spare *answer // answers to use again, few and small
	idle  int     // how many those are
	acks  []ack   // due on reply subjects: the writer publishes them
	done  bool    // no more answers come: the writer ends when everything is out
	dead  bool    // the socket is of no use any more
	shut  bool    // the last word is said: nothing is taken any more, and what is in buf goes out

	heard
	mine

	publish func(acks []ack) // publishes acks; called by the writer without the lock
}

// heard is what an outbox knows of the frames of live subjects in it, which have no log to wait in.
type heard struct {
	live, flying int    // bytes in buf, and bytes handed to the writer
	spoke        uint64 // the id of the speaker who wrote the newest of them, and its round
	spokeRound   uint64
}

// answer is the place of one request, or of a run of publishes, in the order of answers.
type answer struct {
	next *answer
	box  *outbox

	// Guarded by box.mu.
	cost    int // what it adds to held
	settled bool
	literal []byte  // what to say, of a request that is not a publish
	pieces  []piece // of a FETCH: what goes out before literal
	outcome partition.Outcome

	// records counts the records of a run, for the case that they get no outcome in time; then it is closed.
	records atomic.Int64

	place
}

// place is what a publish says of itself when it takes its place in the order of answers. Immutable while queued.
type place struct {
	due   int64                // milliseconds since the epoch at which waiting for the outcome ends; 0: never
	part  *partition.Partition // nil: not a publish
	reply []byte               // a JetStream acknowledgement goes there; empty: to nobody
	tell  tell
	verb  line.Verb
	once  bool // one answer for the whole run: a PRODUCE
	holds int  // bytes that the request holds elsewhere while it waits
	own   bool // the connection's own subscriptions pass the records by
}

// holdLocked counts what a queued answer takes of memory.
func (b *outbox) holdLocked(a *answer) {
	a.cost = answerBytes + len(a.reply) + len(a.literal) + a.holds
	b.held += a.cost
}

// tell says how the outcome of a publish reaches the client.
type tell uint8

const (
	tellAll     tell = iota // +OK or -ERR for each record: verbose, and the native verbs
	tellAllNATS             // the same with failures in NATS's own words
	tellErrors              // -ERR ASYNC for what failed
	tellNATS                // -ERR in NATS's own words for what failed
	tellNobody              // who hears it on the reply subject hears it nowhere else
)

const (
	// answersMax bounds the requests of one connection that wait for their outcome; limits.pending bounds their bytes.
	answersMax = 1 << 14
	// answerBytes is about what an answer or an acknowledgement takes beside what it points to.
	answerBytes = 256
	// spareMax answers are kept to be used again, with what they point to where that is at most spareBytes.
	spareMax, spareBytes = 4 << 10, 128
	// writeBytes is how much one write hands to the socket: small enough that a slow peer shows progress.
	writeBytes = 256 << 10
	// bufferKeep is what a connection's buffers may keep while it is idle.
	bufferKeep = 64 << 10
)

func newOutbox(limit int, deadline time.Duration) *outbox {
	b := &outbox{limit: limit, deadline: deadline, freed: make(chan struct{})}
	b.ready = sync.NewCond(&b.mu)
	return b
}

// push queues a request. The caller settles it. The reply of its place is copied.
func (b *outbox) push(p place) *answer {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.pushLocked()
	p.reply = append(a.reply, p.reply...)
	a.place = p
	a.records.Store(1)
	b.holdLocked(a)
	return a
}

func (b *outbox) pushLocked() *answer {
	a := b.spare
	if a == nil {
		a = &answer{box: b}
	} else {
		b.spare, b.idle = a.next, b.idle-1
		*a = answer{box: b, literal: a.literal[:0], place: place{reply: a.reply[:0]}}
	}
	if b.tail == nil {
		b.head = a
	} else {
		b.tail.next = a
	}
	b.tail = a
	b.queue++
	return a
}

// Placed keeps what the connection publishes from those of its own subscriptions that do not want it.
func (a *answer) Placed(base record.Offset, n int32) {
	if a.own {
		a.box.hide(a.part, base, n)
	}
}

// Settled is the outcome of a run of publishes.
func (a *answer) Settled(o partition.Outcome) {
	b := a.box
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.records.Load() >= recordsClosed {
		return // it was answered as timed out
	}
	a.outcome, a.settled = o, true
	if b.head == a {
		b.ready.Signal()
	}
}

// say queues a whole answer, behind those of earlier requests.
func (b *outbox) say(encode func(dst []byte) []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shut {
		return
	}
	if b.head == nil {
		b.buf = encode(b.buf)
	} else {
		a := b.pushLocked()
		a.literal, a.settled = encode(a.literal), true
		b.holdLocked(a)
	}
	b.ready.Signal()
}

// frame queues what may come between answers.
func (b *outbox) frame(encode func(dst []byte) []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shut {
		return
	}
	b.buf = encode(b.buf)
	b.ready.Signal()
}

// lastWord lets go of everything that waits and ends what the peer is told with text. A frame that is on its way is
// finished first.
func (b *outbox) lastWord(encode func(dst []byte) []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastWordLocked(encode)
}

func (b *outbox) lastWordLocked(encode func(dst []byte) []byte) {
	if b.shut || b.dead {
		return
	}
	b.shut = true
	b.buf, b.live = encode(b.buf[:0]), 0
	b.freeLocked()
	b.ready.Signal()
}

// waitRoom blocks while the peer has too much to take, or while too many requests wait, or too many bytes of them. One
// request alone is never too much: it may be a long poll, which the next command ends. It reports false when the
// connection is dead or stop is closed.
func (b *outbox) waitRoom(stop <-chan struct{}) bool { return b.wait(stop, b.roomLocked) }

func (b *outbox) roomLocked() bool { return b.behind == 0 && b.feedsLocked() }

// feedsLocked is roomLocked for the feeds: one that is behind holds up the reader, and must not wait for itself.
func (b *outbox) feedsLocked() bool {
	waiting := b.queue + len(b.acks)
	return len(b.buf) <= b.limit && waiting < answersMax && (b.held <= b.limit || waiting <= 1)
}

// hasFeedRoom is whether waitFeedRoom would not block.
func (b *outbox) hasFeedRoom() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.collectLocked()
	return b.feedsLocked()
}

// waitFeedRoom is waitRoom for a feed.
func (b *outbox) waitFeedRoom(stop <-chan struct{}) bool { return b.wait(stop, b.feedsLocked) }

// waitAnswered blocks until every earlier request has its answer.
func (b *outbox) waitAnswered(stop <-chan struct{}) bool {
	return b.wait(stop, func() bool { return b.head == nil })
}

func (b *outbox) wait(stop <-chan struct{}, enough func() bool) bool {
	for {
		b.mu.Lock()
		if b.dead || b.shut {
			b.mu.Unlock()
			return false
		}
		b.collectLocked()
		if enough() {
			b.mu.Unlock()
			return true
		}
		freed := b.freed
		b.mu.Unlock()
		select {
		case <-freed:
		case <-stop:
			return false
		}
	}
}

func (b *outbox) freeLocked() {
	close(b.freed)
	b.freed = make(chan struct{})
}

// finish says that no more answers come; write ends when everything is out.
func (b *outbox) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done = true
	b.ready.Signal()
}

// kill makes write end at once and waiting publishers give up.
func (b *outbox) kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dead = true
	b.freeLocked()
	b.ready.Signal()
}

// collectLocked moves the answers that are due into buf.
func (b *outbox) collectLocked() {
	moved := false
	for !b.shut && b.head != nil && b.head.settled && len(b.buf) <= b.limit && b.head.pieces == nil {
		a := b.head
		b.held -= a.cost
		b.buf = a.append(b.buf)
		if len(a.reply) > 0 {
			b.takeAckLocked(a)
		}
		b.head = a.next
		if b.head == nil {
			b.tail = nil
		}
		b.queue--
		b.reuseLocked(a)
		moved = true
	}
	if moved {
		b.freeLocked()
	}
}

// reuseLocked keeps an answer for the next request. One whose outcome may still come must not meet another request.
func (b *outbox) reuseLocked(a *answer) {
	if a.records.Load() >= recordsClosed || b.idle == spareMax {
		return
	}
	a.part, a.outcome.Err = nil, nil
	if cap(a.literal) > spareBytes {
		a.literal = nil
	}
	if cap(a.reply) > spareBytes {
		a.reply = nil
	}
	a.next, b.spare, b.idle = b.spare, a, b.idle+1
}

// write is the connection's writer: it returns when everything is out after finish, or with the reason why the peer
// cannot be reached.
func (b *outbox) write(nc net.Conn) error {
	defer func() { // what comes to be answered from now on has nobody to hear it
		b.mu.Lock()
		defer b.mu.Unlock()
		b.dead = true
		b.abandonLocked()
		b.freeLocked()
	}()
	var out []byte
	var acks []ack
	for {
		b.mu.Lock()
		for !b.dueLocked() {
			b.ready.Wait()
		}
		switch {
		case b.dead:
			b.abandonLocked()
			b.mu.Unlock()
			return nil
		case len(b.acks) > 0 && !b.shut:
			acks, b.acks = b.acks, acks[:0]
			b.mu.Unlock()
			b.publish(acks)
			acks = b.published(acks)
			continue
		case len(b.buf) == 0 && b.piecesLocked():
			if err := b.writePiecesLocked(nc); err != nil {
				return err
			}
			continue
		case len(b.buf) == 0:
			b.abandonLocked()
			b.mu.Unlock()
			return nil
		}
		out, b.buf = b.buf, out[:0]
		b.flying, b.live = b.live, 0
		b.mu.Unlock()
		err := b.send(nc, out)
		b.mu.Lock()
		b.flying = 0
		if err != nil {
			b.dead = true
		}
		if len(b.buf) == 0 && b.head == nil { // idle again
			out, b.buf = keep(out), keep(b.buf)
		}
		b.freeLocked()
		b.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// keep is a buffer to use again: none where it has grown large.
func keep(p []byte) []byte {
	if cap(p) > bufferKeep {
		return nil
	}
	return p
}

// dueLocked reports whether there is something for the writer to do.
func (b *outbox) dueLocked() bool {
	b.collectLocked()
	return b.dead || len(b.buf) > 0 || len(b.acks) > 0 && !b.shut || b.piecesLocked() || b.done && (b.head == nil || b.shut)
}

// send writes p in pieces; the peer is cut off when it accepts nothing for the deadline.
func (b *outbox) send(nc net.Conn, p []byte) error {
	for len(p) > 0 {
		if err := nc.SetWriteDeadline(time.Now().Add(b.deadline)); err != nil {
			return err
		}
		n, err := nc.Write(p[:min(len(p), writeBytes)])
		p = p[n:]
		if n == writeBytes && len(p) > 0 {
			b.landed(len(p))
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && n > 0 {
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("peer accepted nothing for %s: %w", b.deadline, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// landed says that all but rest bytes of what the writer holds are out.
func (b *outbox) landed(rest int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.flying > rest {
		b.flying = rest
		b.freeLocked()
	}
}

// append encodes what a settled answer has to say.
func (a *answer) append(dst []byte) []byte {
	switch {
	case a.part == nil:
		return append(dst, a.literal...)
	case a.outcome.Err != nil:
		return a.appendFailure(dst)
	case a.once:
		return line.AppendOK(dst, string(address.AppendAddress(nil, a.part.Name.Topic, a.part.Name.ID, a.outcome.Base))+" "+a.outcome.Durability)
	case a.tell > tellAllNATS:
		return dst
	}
	name, o := a.part.Name, a.outcome
	for i := range o.N {
		dst = append(dst, "+OK "...)
		dst = address.AppendAddress(dst, name.Topic, name.ID, o.Base+record.Offset(i))
		dst = append(dst, ' ')
		dst = append(dst, o.Durability...)
		dst = append(dst, '\r', '\n')
	}
	return dst
}

func (a *answer) appendFailure(dst []byte) []byte {
	if a.once {
		return line.AppendErr(dst, a.outcome.Err)
	}
	for range a.outcome.N {
		switch a.tell {
		case tellAll:
			dst = line.AppendErr(dst, a.outcome.Err)
		case tellErrors:
			dst = line.AppendAsyncErr(dst, a.outcome.Err, a.verb.String()+" "+a.part.Name.Topic+"/"+strconv.Itoa(int(a.part.Name.ID)))
		case tellNATS, tellAllNATS:
			dst = line.AppendNATSErr(dst, publishViolation(a.part.Name.Topic, a.outcome.Err))
		}
	}
	return dst
}

// piece is a part of a FETCH's answer: a line, and batches that go from the file to the socket without being read.
type piece struct {
	head   []byte
	extent partition.Extent // nil: the line is all
}

// piecesLocked reports whether the oldest request is a FETCH that is due.
func (b *outbox) piecesLocked() bool {
	return !b.shut && b.head != nil && b.head.settled && b.head.pieces != nil
}

// writePiecesLocked sends the pieces of the oldest request. It lets the lock go; the request stays the oldest until its
// literal has followed.
func (b *outbox) writePiecesLocked(nc net.Conn) error {
	a := b.head
	pieces := a.pieces
	b.mu.Unlock()
	err := b.sendPieces(nc, pieces)
	release(pieces) // what was not sent
	b.mu.Lock()
	a.pieces = nil
	if err != nil {
		b.dead = true
		b.freeLocked()
	}
	b.mu.Unlock()
	return err
}

// sendPieces lets go of each extent as soon as it is sent: others may wait for its descriptor.
func (b *outbox) sendPieces(nc net.Conn, pieces []piece) error {
	progress := func() error { return nc.SetWriteDeadline(time.Now().Add(b.deadline)) }
	for i, p := range pieces {
		if err := b.send(nc, p.head); err != nil {
			return err
		}
		if p.extent == nil {
			continue
		}
		file, ok := nc.(syscall.Conn)
		if !ok {
			return errors.New("connection takes no files")
		}
		// A failure in the middle leaves the peer with a part: the connection ends.
		err := p.extent.SendTo(file, progress)
		p.extent.Release()
		pieces[i].extent = nil
		if err != nil {
			return err
		}
		if err := b.send(nc, []byte("\r\n")); err != nil {
			return err
		}
	}
	return nil
}

func release(pieces []piece) {
	for _, p := range pieces {
		if p.extent != nil {
			p.extent.Release()
		}
	}
}

// abandonLocked lets go of what will not be sent any more.
func (b *outbox) abandonLocked() {
	for a := b.head; a != nil; a = a.next {
		release(a.pieces)
		a.pieces = nil
	}
}

// settlePieces is the answer of a FETCH. On a dead connection nothing will send it.
func (a *answer) settlePieces(pieces []piece, literal []byte) {
	b := a.box
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dead || b.shut {
		release(pieces)
		pieces = nil
	}
	a.pieces, a.literal, a.settled = pieces, append(a.literal, literal...), true
	b.ready.Signal()
	b.freeLocked()
}

// waitOldest blocks until every request before a has its answer.
func (b *outbox) waitOldest(a *answer, stop <-chan struct{}) bool {
	return b.wait(stop, func() bool { return b.head == a })
}
