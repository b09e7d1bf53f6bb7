package conn

import (
	"errors"
	"fmt"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
	part "github.com/trunkline-mq/trunkline/server/internal/partition"
)

// publisher is what a connection remembers between two publishes.
type publisher struct {
	now   int64  // milliseconds; of the last read from the socket
	chunk uint64 // counts those reads
	rec   record.Record

	topic *broker.Topic // of the last publish
	// keyless records of one chunk go to one partition: they form one batch there.
	spread      partition.ID
	spreadTopic *broker.Topic
	spreadChunk uint64

	run     *answer // the newest place in the order of answers, if it is a run of publishes
	runPart *part.Partition
	runTell tell
	runVerb line.Verb
}

// handlePublish takes one record to its partition. It returns when the record is queued there or refused.
func (c *conn) handlePublish(cmd *line.Command) {
	err := cmd.Err
	if err == nil {
		err = c.publish(cmd)
	}
	if err == nil {
		return
	}
	c.pub.run = nil
	c.fail(cmd, err)
}

func (c *conn) publish(cmd *line.Command) *errcode.Error {
	addr, err := c.publishAddress(cmd)
	if err != nil {
		return err
	}
	rec := &c.pub.rec
	*rec = record.Record{Timestamp: c.pub.now, Key: addr.Key, Value: cmd.Payload, Headers: rec.Headers[:0]}
	if rec.Value == nil {
		rec.Value = []byte{}
	}
	if cmd.Verb == line.HPub {
		if err := c.takeHeaders(cmd, &addr, rec); err != nil {
			return err
		}
	}
	topic, err := c.topicFor(addr.Topic)
	if err != nil {
		return err
	}
	id := c.choose(topic, &addr, rec)
	to, err := topic.Partition(id)
	if err != nil {
		return err
	}
	how := c.tells(cmd.Verb)
	p := &c.pub
	if p.run != nil && p.runPart == to && p.runTell == how && p.runVerb == cmd.Verb && to.Extend(rec, p.run) {
		if p.run.count() {
			return nil
		}
		// The run was answered while the record joined it: so is the record.
		a := c.box.push(place{part: to, tell: how, verb: cmd.Verb})
		c.box.mu.Lock()
		a.timeOutLocked()
		c.box.mu.Unlock()
		p.run = nil
		return nil
	}
	a := c.box.push(place{part: to, tell: how, verb: cmd.Verb, due: c.due(c.srv.opt.Publish)})
	p.run, p.runPart, p.runTell, p.runVerb = a, to, how, cmd.Verb
	if err := to.Publish(c.stop, rec, a); err != nil {
		a.Settled(part.Outcome{N: 1, Err: err})
		p.run = nil
	}
	return nil
}

// due is when waiting for an outcome ends; never, without a timeout.
func (c *conn) due(timeout time.Duration) int64 {
	if timeout == 0 {
		return 0
	}
	return c.pub.now + timeout.Milliseconds()
}

// publishAddress reads the address and refuses what this version does not serve.
func (c *conn) publishAddress(cmd *line.Command) (address.Address, *errcode.Error) {
	var addr address.Address
	if c.opt.literal && cmd.Verb != line.Send {
		addr = address.ParseLiteral(cmd.Args[0])
	} else {
		var err error
		if addr, err = address.Parse(cmd.Args[0]); err == nil {
			err = addr.ForPublish()
		}
		if err != nil {
			return addr, errcode.From(err, errcode.BadAddress)
		}
	}
	switch {
	case len(cmd.Args) > 1:
		return addr, errcode.New(errcode.NotSupported, "reply subjects are not offered yet", "publish without one; PING answers when the record is durable")
	case address.HasWildcard(addr.Topic):
		return addr, errcode.New(errcode.BadAddress, "a record goes to one topic, not to a pattern", "name the topic")
	case cmd.Verb != line.Send && address.IsLive(addr.Topic, c.srv.opt.Live):
		return addr, errLive(addr.Topic)
	}
	return addr, nil
}

func errLive(subject []byte) *errcode.Error {
	return errcode.New(errcode.NotSupported, fmt.Sprintf("%q is a live subject, and these are not offered yet", clip(subject)),
		"a topic's name is tokens of letters, digits, _ and - joined by dots")
}

// takeHeaders reads the header block of an HPUB into rec.
func (c *conn) takeHeaders(cmd *line.Command, addr *address.Address, rec *record.Record) *errcode.Error {
	fields, err := line.ParseHeaders(cmd.Header, rec)
	if err != nil {
		return errcode.From(err, errcode.BadHeaders)
	}
	if addr.HasKey {
		if fields.Key {
			return errcode.New(errcode.BadHeaders, "the key is given twice, in the address and as a header", "leave one of them out")
		}
		rec.Key = addr.Key
	}
	return nil
}

// topicFor finds the topic and creates it where it is missing.
func (c *conn) topicFor(name []byte) (*broker.Topic, *errcode.Error) {
	if t := c.pub.topic; t != nil && t.Meta.Name == string(name) {
		select {
		case <-t.Gone():
		default:
			return t, nil
		}
	}
	t := c.broker().Lookup(name)
	if t == nil {
		var err error
		if t, err = c.broker().EnsureTopic(c.ctx, string(name)); err != nil {
			return nil, errcode.From(err, errcode.MetadataUnavailable)
		}
	}
	c.pub.topic = t
	return t, nil
}

// choose says which partition a record goes to: the one the address names, the one its key falls to, or, without a
// key, the next in turn for each read from the socket.
func (c *conn) choose(t *broker.Topic, addr *address.Address, rec *record.Record) partition.ID {
	switch {
	case addr.Partition != partition.None:
		return addr.Partition
	case rec.Key != nil:
		return t.Plan.ForKey(rec.Key)
	}
	p := &c.pub
	if p.spreadTopic != t || p.spreadChunk != p.chunk {
		p.spread, p.spreadTopic, p.spreadChunk = t.Plan.Next(), t, p.chunk
	}
	return p.spread
}

// tells says how the outcome of a publish by verb is told.
func (c *conn) tells(v line.Verb) tell {
	switch {
	case c.opt.verbose && c.opt.nats && v != line.Send:
		return tellAllNATS
	case v == line.Send || c.opt.verbose:
		return tellAll
	case c.opt.nats:
		return tellNATS
	}
	return tellErrors
}

// isNATS reports whether v is a verb of the NATS protocol.
func isNATS(v line.Verb) bool {
	switch v {
	case line.Pub, line.HPub, line.Sub, line.Unsub, line.Connect, line.Ping, line.Pong:
		return true
	}
	return false
}

// violation words a refusal so that a NATS library reports it and keeps the connection: it closes itself for good on
// any text it does not know.
func violation(cmd *line.Command, e *errcode.Error) string {
	subject := ""
	if len(cmd.Args) > 0 {
		subject = string(clip(cmd.Args[0]))
	}
	if cmd.Verb == line.Sub || cmd.Verb == line.Unsub {
		return fmt.Sprintf("Permissions Violation for Subscription to %q (%s: %s)", subject, e.Code, e.Text())
	}
	return publishViolation(subject, e)
}

func publishViolation(subject string, e *errcode.Error) string {
	return fmt.Sprintf("Permissions Violation for Publish to %q (%s: %s)", subject, e.Code, e.Text())
}

// natsFatal words an error after which the connection is closed, as NATS servers do where they have a text.
func natsFatal(e *errcode.Error) string {
	switch {
	case errors.Is(e, errcode.Of(errcode.LineTooLong)):
		return "maximum control line exceeded"
	case errors.Is(e, errcode.Of(errcode.ShuttingDown)):
		return "Server Shutdown"
	}
	return "Unknown Protocol Operation: " + e.Text()
}

// clip bounds what of a peer's input is sent back to it.
func clip(b []byte) []byte { return b[:min(len(b), 64)] }
