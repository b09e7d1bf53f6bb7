package tlfake

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// natsLevel is the NATS server version whose client protocol is spoken.
const natsLevel = "2.12.0"

// lingerTime is how long a connection that ends is read on, so that its last words are not lost in a reset.
const lingerTime = 2 * time.Second

// conn is a connection. What is not said to be guarded belongs to its reader.
type conn struct {
	server *Server
	nc     net.Conn
	id     uint64
	parser *line.Parser
	stop   chan struct{} // closed when the reader ends
	tasks  sync.WaitGroup
	now    int64 // milliseconds; of the last read
	chunk  int   // counts reads
	spread spread
	quit   bool
	poll   *poll // a FETCH that waits

	// Guarded by the server's lock.
	opt  connOptions
	subs map[string]*sub

	mu     sync.Mutex
	buf    []byte        // guarded by mu
	wake   chan struct{} // one slot
	mute   bool          // guarded by mu; nothing is said
	finish bool          // guarded by mu; the writer ends when everything is written
}

// connOptions are what CONNECT sets.
type connOptions struct {
	verbose, headers, timestamps, nats, literal, echo bool
}

// spread is where records without a key go that come in one read.
type spread struct {
	topic *topic
	chunk int
	id    partition.ID
}

func newConn(s *Server, nc net.Conn, id uint64) *conn {
	return &conn{
		server: s, nc: nc, id: id, parser: line.NewParser(line.Limits{ControlLine: controlLine, Payload: s.opt.maxPayload}),
		stop: make(chan struct{}), opt: connOptions{verbose: true, headers: true, echo: true}, subs: make(map[string]*sub),
		wake: make(chan struct{}, 1),
	}
}

func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }

// cut ends the connection at once.
func (c *conn) cut() { _ = c.nc.Close() }

func (c *conn) run() {
	var writer sync.WaitGroup
	writer.Go(c.write)
	c.greet()
	if err := c.read(); err != nil {
		c.sayFatal(err)
	}
	c.endPoll()
	close(c.stop)
	c.tasks.Wait()
	c.mu.Lock()
	c.finish = true
	c.mu.Unlock()
	c.kick()
	writer.Wait()
	if tcp, ok := c.nc.(*net.TCPConn); ok && tcp.CloseWrite() == nil {
		_ = c.nc.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.Copy(io.Discard, c.nc)
	}
	_ = c.nc.Close()
	c.server.mu.Lock()
	delete(c.server.conns, c)
	c.server.mu.Unlock()
}

func (c *conn) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *conn) setMute(mute bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute = mute
}

// say queues bytes for the peer.
func (c *conn) say(f func(dst []byte) []byte) {
	c.mu.Lock()
	if !c.mute {
		c.buf = f(c.buf)
	}
	c.mu.Unlock()
	c.kick()
}

func (c *conn) write() {
	for range c.wake {
		for {
			c.mu.Lock()
			buf, over := c.buf, c.finish
			c.buf = nil
			c.mu.Unlock()
			if len(buf) == 0 {
				if over {
					return
				}
				break
			}
			if _, err := c.nc.Write(buf); err != nil {
				_ = c.nc.Close() // ends the reader
			}
		}
	}
}

func (c *conn) greet() {
	host, port, _ := net.SplitHostPort(c.nc.LocalAddr().String())
	number, _ := strconv.Atoi(port)
	peer, _, _ := net.SplitHostPort(c.nc.RemoteAddr().String())
	text, _ := json.Marshal(struct { // cannot fail: strings and numbers
		ServerID   string `json:"server_id"`
		ServerName string `json:"server_name"`
		Version    string `json:"version"`
		Proto      int    `json:"proto"`
		Go         string `json:"go"`
		Host       string `json:"host"`
		Port       int    `json:"port"`
		Headers    bool   `json:"headers"`
		MaxPayload int    `json:"max_payload"`
		ClientID   uint64 `json:"client_id"`
		ClientIP   string `json:"client_ip"`
		Trunkline  any    `json:"trunkline"`
	}{
		"tlfake", "tlfake", natsLevel, 1, runtime.Version(), host, number, true, c.server.opt.maxPayload, c.id, peer,
		struct {
			Version  string `json:"version"`
			Protocol int    `json:"protocol"`
			Broker   int    `json:"broker"`
			Cluster  string `json:"cluster"`
		}{"tlfake", 1, 1, "tlfake"},
	})
	c.say(func(dst []byte) []byte { return append(append(append(dst, "INFO "...), text...), '\r', '\n') })
}

// read handles commands until the connection ends; an error is one that ends it.
func (c *conn) read() *errcode.Error {
	var cmd line.Command
	for {
		n, err := c.nc.Read(c.parser.Buffer())
		c.parser.Advance(n)
		c.chunk++
		c.now = time.Now().UnixMilli()
		for !c.quit {
			ok, err := c.parser.Next(&cmd)
			if err != nil {
				return errcode.From(err, errcode.BadArgs)
			}
			if !ok {
				break
			}
			c.handle(&cmd)
		}
		if err != nil || c.quit {
			return nil
		}
	}
}

func (c *conn) sayFatal(e *errcode.Error) {
	if !c.opt.nats {
		c.say(func(dst []byte) []byte { return line.AppendErr(dst, e) })
		return
	}
	text := "Unknown Protocol Operation: " + e.Text()
	if e.Code == errcode.LineTooLong {
		text = "maximum control line exceeded"
	}
	c.say(func(dst []byte) []byte { return line.AppendNATSErr(dst, text) })
}

func (c *conn) handle(cmd *line.Command) {
	if cmd.Verb != line.Pong {
		c.endPoll()
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	err := cmd.Err
	var late *fault
	if err == nil {
		if f := c.server.faultLocked(cmd.Verb); f != nil && !f.after {
			err = f.err()
		} else {
			late = f
		}
	}
	if err != nil {
		c.fail(cmd, err)
		return
	}
	if late != nil { // what it answers is not said
		c.setMute(true)
		c.do(cmd)
		c.setMute(false)
		c.fail(cmd, late.err())
		return
	}
	c.do(cmd)
}

// do carries out a command. The server's lock is held.
func (c *conn) do(cmd *line.Command) {
	switch cmd.Verb {
	case line.Pub, line.HPub, line.Send:
		c.publish(cmd)
	case line.Ping:
		c.say(func(dst []byte) []byte { return append(dst, "PONG\r\n"...) })
	case line.Connect:
		c.connect(cmd)
	case line.Sub:
		c.subscribe(cmd)
	case line.Unsub:
		c.unsubscribe(cmd)
	case line.Get:
		c.answer(cmd, c.get)
	case line.Topic:
		c.topic(cmd)
	case line.Produce:
		c.produce(cmd)
	case line.Fetch:
		c.fetch(cmd)
	case line.Offsets:
		c.data(cmd, c.offsets)
	case line.Metadata:
		c.data(cmd, c.metadata)
	case line.Help:
		c.help(cmd)
	case line.Quit:
		c.quit = true
	case line.Pong, line.OK, line.Err, line.Info:
	default:
		c.fail(cmd, errcode.New(errcode.NotSupported, "this server does not offer "+cmd.Verb.String(), "it is a fake one, for tests"))
	}
}

// answer is +OK with what f returns, or its error.
func (c *conn) answer(cmd *line.Command, f func(*line.Command) (string, *errcode.Error)) {
	detail, err := f(cmd)
	if err != nil {
		c.fail(cmd, err)
		return
	}
	c.say(func(dst []byte) []byte { return line.AppendOK(dst, detail) })
}

// data is DATA with what f returns as JSON, or its error.
func (c *conn) data(cmd *line.Command, f func(*line.Command) (any, *errcode.Error)) {
	v, err := f(cmd)
	if err != nil {
		c.fail(cmd, err)
		return
	}
	text, _ := json.Marshal(v) // cannot fail: strings, numbers and maps of them
	c.say(func(dst []byte) []byte { return line.AppendData(dst, text) })
}

func isNATS(v line.Verb) bool {
	switch v {
	case line.Pub, line.HPub, line.Sub, line.Unsub, line.Connect, line.Ping, line.Pong:
		return true
	}
	return false
}

// fail is the answer to a command that was refused.
func (c *conn) fail(cmd *line.Command, e *errcode.Error) {
	subject := ""
	if len(cmd.Args) > 0 {
		subject = string(cmd.Args[0])
	}
	switch {
	case c.opt.nats && isNATS(cmd.Verb):
		kind := "Publish"
		if cmd.Verb == line.Sub || cmd.Verb == line.Unsub {
			kind = "Subscription"
		}
		c.say(func(dst []byte) []byte {
			return line.AppendNATSErr(dst, fmt.Sprintf("Permissions Violation for %s to %q (%s: %s)", kind, subject, e.Code, e.Text()))
		})
	case isNATS(cmd.Verb) && !c.opt.verbose:
		about := strings.TrimRight(cmd.Verb.String()+" "+subject, " ")
		c.say(func(dst []byte) []byte { return line.AppendAsyncErr(dst, e, about) })
	default:
		c.say(func(dst []byte) []byte { return line.AppendErr(dst, e) })
	}
}

// ok is the answer to a NATS verb that worked.
func (c *conn) ok() {
	if c.opt.verbose {
		c.say(func(dst []byte) []byte { return line.AppendOK(dst, "") })
	}
}

func (c *conn) connect(cmd *line.Command) {
	var ask struct {
		Verbose    *bool  `json:"verbose"`
		Headers    *bool  `json:"headers"`
		Echo       *bool  `json:"echo"`
		Protocol   int    `json:"protocol"`
		Lang       string `json:"lang"`
		Addresses  bool   `json:"addresses"`
		Timestamps bool   `json:"timestamps"`
	}
	if len(cmd.Args) > 0 {
		if err := json.Unmarshal(cmd.Args[0], &ask); err != nil {
			c.fail(cmd, errcode.New(errcode.BadJSON, "CONNECT's JSON cannot be read: "+jsonFault(err), `send CONNECT {} or CONNECT {"verbose":false}`))
			return
		}
	}
	if ask.Protocol < 0 || ask.Protocol > 1 {
		c.fail(cmd, errcode.New(errcode.BadArgs, "protocol "+strconv.Itoa(ask.Protocol)+" is not spoken here", "send 0 or 1"))
		return
	}
	for sid := range c.subs {
		c.endSub(sid)
	}
	library := ask.Lang != "" && !strings.HasPrefix(ask.Lang, "trunkline-")
	c.opt = connOptions{
		verbose: ask.Verbose == nil || *ask.Verbose, headers: !library, timestamps: ask.Timestamps, nats: library,
		literal: library && !ask.Addresses, echo: ask.Echo == nil || *ask.Echo,
	}
	if ask.Headers != nil {
		c.opt.headers = *ask.Headers
	}
	c.ok()
}

func (c *conn) help(cmd *line.Command) {
	text := ""
	switch {
	case len(cmd.Args) > 1:
		c.fail(cmd, errcode.New(errcode.BadArgs, "HELP takes one verb", "use "+line.Help.Usage()))
		return
	case len(cmd.Args) == 1:
		v := line.Lookup(cmd.Args[0])
		if !v.Offered() {
			hint := "HELP lists the verbs"
			if near := line.Nearest(cmd.Args[0]); near != line.Unknown {
				hint = "did you mean " + near.String() + "? " + hint
			}
			c.fail(cmd, errcode.New(errcode.BadVerb, "there is no verb "+string(clip(cmd.Args[0])), hint))
			return
		}
		text = v.Usage() + "\n"
	default:
		for v := line.Connect; v.String() != "?"; v++ {
			if v.Offered() {
				text += v.Usage() + "\n"
			}
		}
	}
	c.say(func(dst []byte) []byte { return line.AppendData(dst, []byte(text)) })
}

// readAddress reads an address to read from.
func (c *conn) readAddress(field []byte) (address.Address, *errcode.Error) {
	if c.opt.literal {
		return address.ParseLiteral(field), nil
	}
	a, err := address.Parse(field)
	if err == nil {
		err = a.ForRead()
	}
	if err != nil {
		return a, errcode.From(err, errcode.BadAddress)
	}
	return a, nil
}

func errUnknownTopic(name []byte) *errcode.Error {
	return errcode.New(errcode.UnknownTopic, fmt.Sprintf("topic %s does not exist", clip(name)),
		"create it with TOPIC CREATE, or look with TOPIC LIST")
}

// clip bounds what of a peer's input is sent back to it.
func clip(b []byte) []byte { return b[:min(len(b), 64)] }

// jsonFault says what is wrong with JSON.
func jsonFault(err error) string {
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if kind.Field != "" {
			return fmt.Sprintf("the value of %q is of the wrong kind: %s", clip([]byte(kind.Field)), clip([]byte(kind.Value)))
		}
		return "an object is wanted, not this: " + kind.Value
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("%v, at byte %d", syntax, syntax.Offset)
	}
	return err.Error()
}
