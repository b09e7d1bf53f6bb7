package conn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
)

// conn is one connection. Its fields belong to the reader's goroutine but where they say otherwise.
type conn struct {
	srv    *Server
	nc     net.Conn
	id     uint64
	log    *slog.Logger
	parser *line.Parser
	box    *outbox
	opt    options
	pub    publisher

	stop     chan struct{} // closed when the connection ends: whatever waits gives up
	stopOnce sync.Once
	ctx      context.Context // ends with stop; of calls that a command makes
	cancel   context.CancelFunc
	quit     bool          // QUIT was read
	poll     chan struct{} // closed to end the newest FETCH's long poll; nil when there is none
	down     atomic.Bool   // the server is shutting down

	voice voices // publishes to live subjects
	pulse pulse

	subs      subscriptions
	tasks     sync.WaitGroup // writer and subscriptions
	writerErr error          // set by the writer before it ends
}

// options are what CONNECT can change.
type options struct {
	verbose    bool
	headers    bool // the client reads HMSG
	timestamps bool // every record comes with its Timestamp
	literal    bool // subjects are topic names and nothing else
	nats       bool // a library that knows NATS only: errors in NATS's words
	pedantic   bool // NATS libraries: a publish to what is no subject is told

	echo         bool // what the connection publishes comes back to its own subscriptions
	news         bool // an INFO is due behind the next PONG: as in NATS, for who said protocol 1
	noResponders bool // live subjects: who asks where nobody listens is told at once
}

func newConn(s *Server, nc net.Conn) *conn {
	tuned := s.tuned.Load()
	c := &conn{
		srv: s, nc: nc, id: s.lastID.Add(1),
		parser: line.NewParser(s.opt.Limits),
		box:    newOutbox(tuned.Pending, tuned.WriteDeadline),
		opt:    options{verbose: true, headers: true, pedantic: true, echo: true},
		stop:   make(chan struct{}),
	}
	c.log = s.opt.Logger.With("client", nc.RemoteAddr().String())
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.box.publish = c.publishAcks
	c.pulse.heard.Store(true)
	for i, s := range []*speaker{&c.voice.speaker, &c.voice.refusals, &c.voice.acks.speaker} {
		s.id = c.id<<2 | uint64(i)
	}
	return c
}

// run serves the connection to its end. What panics in it ends it, and nothing else.
func (c *conn) run() {
	if c.guard(c.serve) {
		return
	}
	c.guard(c.subs.endAll) // it hears nothing any more
	c.tasks.Wait()
}

// guard runs f and reports whether it returned; after a panic the connection is cut off.
func (c *conn) guard(f func()) (returned bool) {
	defer func() {
		if r := recover(); r != nil {
			c.log.Error("connection failed", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			c.cut()
		}
	}()
	f()
	return true
}

// task runs f in a goroutine of the connection, which waits for it at its end.
func (c *conn) task(f func()) {
	c.tasks.Go(func() { c.guard(f) })
}

func (c *conn) serve() {
	c.task(func() {
		c.writerErr = c.box.write(c.nc)
		if c.writerErr != nil {
			c.halt()
			_ = c.nc.SetReadDeadline(time.Now()) // wake the reader
		}
	})
	c.box.frame(c.appendInfo)
	reason := c.read()
	c.halt()
	c.subs.endAll()
	c.say(reason)
	c.box.finish()
	c.tasks.Wait()
	if c.writerErr == nil {
		linger(c.nc, lingerTime)
	}
	_ = c.nc.Close()
	c.log.Debug("connection closed", "reason", errText(reason), "writer", c.writerErr)
}

// halt ends what the connection has under way, but not the answers that are queued.
func (c *conn) halt() {
	c.stopOnce.Do(func() {
		close(c.stop)
		c.cancel()
	})
}

// say tells the client why the connection ends, where there is something to tell.
func (c *conn) say(reason error) {
	var e *errcode.Error
	switch {
	case errors.As(reason, &e) && c.opt.nats:
		c.box.say(func(dst []byte) []byte { return line.AppendNATSErr(dst, natsFatal(e)) })
	case errors.As(reason, &e):
		c.box.say(func(dst []byte) []byte { return line.AppendErr(dst, e) })
	case c.down.Load() && !c.opt.nats:
		c.box.say(func(dst []byte) []byte {
			return line.AppendAsyncErr(dst, errcode.New(errcode.ShuttingDown, "the server is going down", "connect again later"), "")
		})
	}
}

// read reads and handles commands until the connection ends. It returns nil when the client or a shutdown ended it. A
// connection that publishes to topics whose partitioner is called has a goroutine that reads ahead, from when that is known.
func (c *conn) read() error {
	var cmd line.Command
	for {
		n, err := c.nc.Read(c.parser.Buffer())
		c.parser.Advance(n)
		if n > 0 {
			c.pulse.heard.Store(true)
			if fatal := c.handleAll(&cmd); fatal != nil || c.quit {
				return fatal
			}
		}
		if err != nil {
			return nil // the peer's end or ours, or a reset: nobody is there to be told
		}
		if c.pub.calls {
			return c.readAhead(&cmd)
		}
	}
}

// chunk is the whole commands that one read brought, with the partitions of their keys asked for.
type chunk struct {
	parser *line.Parser
	asked  []*broker.Asked
}

// scout reads a connection and asks for the partitions of the keys it sees, while what it read before is handled.
type scout struct {
	nc      net.Conn
	heard   *atomic.Bool
	literal bool // what CONNECT said; should it say something else later, guesses are wrong
	limits  line.Limits

	called func(name []byte) *broker.Topic // the topic of that name, if its partitioner is called
	ask    func(q *broker.Asked)           // begins to ask; waits while too many questions are under way

	parser *line.Parser // is read into
	cmd    line.Command
	spare  *chunk        // the next one; nil: none is at hand
	chunks chan *chunk   // to be handled; closed at the end
	free   chan *chunk   // handled
	stop   chan struct{} // the connection's
}

const (
	// chunksAhead is how many chunks may wait to be handled: one, and one more so that reading goes on while that is begun.
	chunksAhead = 2
	// asksMax bounds the questions of one connection under way. The plugin answers one after the other, and all of them
	// within the time of the last.
	asksMax = 4
)

// readAhead is read from where it has come to.
func (c *conn) readAhead(cmd *line.Command) error {
	s := &scout{
		nc: c.nc, heard: &c.pulse.heard, literal: c.opt.literal, limits: c.srv.opt.Limits, parser: c.parser,
		called: c.calledTopics(), chunks: make(chan *chunk, chunksAhead), free: make(chan *chunk, 1), stop: c.stop,
	}
	places := make(chan struct{}, asksMax)
	s.ask = func(q *broker.Asked) {
		select {
		case places <- struct{}{}:
			c.task(func() {
				defer func() { <-places }()
				q.Ask(c.ctx)
			})
		case <-c.stop: // nobody waits for the answer
		}
	}
	c.task(s.run)
	for ch := range s.chunks {
		c.parser = ch.parser
		c.pub.ahead.Expect(ch.asked)
		if fatal := c.handleAll(cmd); fatal != nil || c.quit {
			c.halt()
			_ = c.nc.SetReadDeadline(time.Now()) // wake the scout
			return fatal
		}
		ch.parser.Rest() // it may lie idle for long
		select {
		case s.free <- ch:
		default:
		}
	}
	return nil
}

// calledTopics returns a look-up of topics that are called, which takes the broker's lock only where the name is another one.
func (c *conn) calledTopics() func(name []byte) *broker.Topic {
	var last []byte
	var topic *broker.Topic
	var at uint64
	return func(name []byte) *broker.Topic {
		v := c.broker().Version()
		if v == at && bytes.Equal(name, last) {
			return topic
		}
		last, at = append(last[:0], name...), v
		if topic = c.broker().Lookup(name); topic != nil && !topic.Called() {
			topic = nil
		}
		return topic
	}
}

// run reads until the connection ends.
func (s *scout) run() {
	defer close(s.chunks)
	for {
		n, err := s.nc.Read(s.parser.Buffer())
		s.parser.Advance(n)
		if n > 0 {
			s.heard.Store(true)
			if !s.handOver() {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// handOver hands over what is whole, and reports whether reading goes on. Behind a command with which the stream is out of
// step there is nothing to read; whoever handles it finds that out again.
func (s *scout) handOver() bool {
	if s.spare == nil {
		select {
		case s.spare = <-s.free:
			clear(s.spare.asked)
			s.spare.asked = s.spare.asked[:0]
		default:
			s.spare = &chunk{parser: line.NewParser(s.limits)}
		}
	}
	taken, whole := *s.parser, false
	for {
		ok, err := taken.Next(&s.cmd)
		if err != nil {
			s.put(s.parser)
			return false
		}
		if !ok {
			break
		}
		whole = true
		s.look(&s.cmd)
	}
	if !whole {
		return true
	}
	filled := s.parser
	s.parser = s.spare.parser
	filled.HandOver(&taken, s.parser)
	return s.put(filled)
}

// look asks for the key of a publish.
func (s *scout) look(cmd *line.Command) {
	if !publishes(cmd.Verb) {
		return
	}
	name, key := keyAhead(cmd, s.literal)
	if key == nil {
		return
	}
	t := s.called(name)
	if t == nil {
		return
	}
	ch := s.spare
	i := len(ch.asked) - 1
	for ; i >= 0 && ch.asked[i].Topic() != t; i-- {
	}
	if i < 0 || ch.asked[i].Len() >= broker.AheadMax {
		i = len(ch.asked)
		ch.asked = append(ch.asked, broker.NewAsked(t))
	}
	q := ch.asked[i]
	if q.Add(key); q.Len() == broker.AheadMax {
		s.ask(q)
	}
}

// put hands the spare chunk over with the parser that has its commands.
func (s *scout) put(filled *line.Parser) bool {
	ch := s.spare
	ch.parser, s.spare = filled, nil
	for _, q := range ch.asked {
		if q.Len() < broker.AheadMax {
			s.ask(q)
		}
	}
	select {
	case s.chunks <- ch:
		return true
	case <-s.stop:
		return false
	}
}

// handleAll handles every whole command that was read.
func (c *conn) handleAll(cmd *line.Command) error {
	c.pub.chunk++
	c.pub.now = time.Now().UnixMilli()
	c.voice.patience = stallMax
	defer c.voice.wake()
	for {
		c.voice.wake()
		c.voice.pace(c.stop)
		if !c.box.waitRoom(c.stop) {
			return nil
		}
		for range commandsPerLook {
			ok, err := c.parser.Next(cmd)
			if err != nil || !ok {
				return err
			}
			c.handle(cmd)
			if c.quit {
				return nil
			}
			if !publishes(cmd.Verb) { // what it says may be long
				break
			}
		}
	}
}

// commandsPerLook is how many publishes are handled between two looks at what waits for the peer.
const commandsPerLook = 64

// publishes reports whether v publishes records one by one.
func publishes(v line.Verb) bool { return v == line.Pub || v == line.HPub || v == line.Send }

// handle answers one command, or queues it.
func (c *conn) handle(cmd *line.Command) {
	if c.poll != nil && cmd.Verb != line.Pong {
		c.endPoll()
	}
	if publishes(cmd.Verb) {
		c.handlePublish(cmd)
		return
	}
	c.voice.wake()
	c.pub.run = nil // whatever comes next is not of the same run
	if cmd.Err != nil {
		c.fail(cmd, cmd.Err)
		return
	}
	switch cmd.Verb {
	case line.Ping:
		c.handlePing()
	case line.Pong, line.OK, line.Err, line.Info:
		// A PONG is a sign of life, as everything is that comes; the others NATS servers take too.
	case line.Connect:
		c.handleConnect(cmd)
	case line.Sub:
		c.handleSub(cmd)
	case line.Unsub:
		c.handleUnsub(cmd)
	case line.Get:
		c.handleGet(cmd)
	case line.Plugin:
		c.handlePlugin(cmd)
	case line.Topic:
		c.handleTopic(cmd)
	case line.Produce:
		c.handleProduce(cmd)
	case line.Fetch:
		c.handleFetch(cmd)
	case line.Offsets:
		c.handleOffsets(cmd)
	case line.Metadata:
		c.handleMetadata(cmd)
	case line.Help:
		c.handleHelp(cmd)
	case line.Quit:
		c.quit = true
	}
}

func (c *conn) handlePing() {
	news := c.opt.news
	c.opt.news = false
	c.box.say(func(dst []byte) []byte {
		dst = append(dst, "PONG\r\n"...)
		if news {
			dst = c.appendInfoOf(dst, connected)
		}
		return dst
	})
}

// reply is the answer to a command that shows data, or says what it did; err, if there is one, goes before.
func (c *conn) reply(cmd *line.Command, detail string, data []byte, err *errcode.Error) {
	switch {
	case err != nil:
		c.fail(cmd, err)
	case data != nil:
		c.box.say(func(dst []byte) []byte { return line.AppendData(dst, data) })
	default:
		c.box.say(func(dst []byte) []byte { return line.AppendOK(dst, detail) })
	}
}

// fail is the answer to a command that was refused. Verbs of NATS answer only on a verbose connection; off it, their
// failures are ASYNC, or in NATS's words.
func (c *conn) fail(cmd *line.Command, e *errcode.Error) {
	switch {
	case c.opt.nats && isNATS(cmd.Verb):
		c.box.say(func(dst []byte) []byte { return line.AppendNATSErr(dst, violation(cmd, e)) })
	case isNATS(cmd.Verb) && !c.opt.verbose:
		about := cmd.Verb.String()
		if len(cmd.Args) > 0 {
			about += " " + string(cmd.Args[0])
		}
		c.box.say(func(dst []byte) []byte { return line.AppendAsyncErr(dst, e, about) })
	default:
		c.box.say(func(dst []byte) []byte { return line.AppendErr(dst, e) })
	}
}

// ok is the answer to a NATS verb that worked.
func (c *conn) ok() {
	if c.opt.verbose {
		c.box.say(func(dst []byte) []byte { return line.AppendOK(dst, "") })
	}
}

// shutdown makes the reader stop; what was read is still answered.
func (c *conn) shutdown() {
	c.down.Store(true)
	_ = c.nc.SetReadDeadline(time.Now())
}

// cut ends the connection at once.
func (c *conn) cut() {
	c.box.kill()
	c.halt()
	_ = c.nc.Close()
}

func (c *conn) broker() *broker.Broker { return c.srv.opt.Broker }

func errText(err error) string {
	if err == nil {
		return "closed"
	}
	return err.Error()
}
