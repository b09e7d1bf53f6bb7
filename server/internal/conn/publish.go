package conn

import (
	"errors"
	"fmt"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/jetstream"
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
	ahead       broker.Ahead
	calls       bool // keys are asked for: it pays to read ahead

	routes   map[string]route // of subjects, as long as routesAt is the broker's version
	routesAt uint64

	run     *answer // the newest place in the order of answers, if it is a run of publishes
	runPart *part.Partition
	runTell tell
	runVerb line.Verb

	runRecords int
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
	addr, err := publishAddress(cmd, c.opt.literal)
	if err != nil {
		return err
	}
	var reply []byte
	if len(cmd.Args) > 1 {
		reply = cmd.Args[1]
		if !c.opt.nats && !literalSubject(reply) {
			return errcode.New(errcode.BadAddress, fmt.Sprintf("the reply-to %q is no subject without wildcards", clip(reply)),
				"name the one subject that answers are to go to")
		}
	}
	isLive, err := c.isLive(cmd, &addr, reply)
	if err == nil && cmd.Verb == line.HPub && !c.opt.headers {
		err = errcode.New(errcode.BadHeaders, "this connection does not speak headers, by its CONNECT", "publish with PUB, or send CONNECT with \"headers\":true")
		if isLive {
			return err
		}
	}
	if isLive {
		c.pub.run = nil
		return c.publishLive(cmd, addr.Topic, reply)
	}
	var refusal *jetstream.Refusal
	if err == nil {
		c.voice.wake()
		refusal = c.publishRecord(cmd, &addr)
	} else {
		refusal = refusalOf(err)
	}
	if refusal == nil {
		return nil
	}
	if len(reply) > 0 {
		c.refuseReply(reply, *refusal)
		if !c.opt.verbose {
			c.pub.run = nil
			return nil
		}
	}
	return refusal.Err
}

func refusalOf(e *errcode.Error) *jetstream.Refusal {
	r := jetstream.Refuse(e)
	return &r
}

// publishRecord queues a record for its partition, or refuses it. A topic is made only for a record that is whole.
func (c *conn) publishRecord(cmd *line.Command, addr *address.Address) *jetstream.Refusal {
	rec := &c.pub.rec
	*rec = record.Record{Timestamp: c.pub.now, Key: addr.Key, Value: cmd.Payload, Headers: rec.Headers[:0]}
	if rec.Value == nil {
		rec.Value = []byte{}
	}
	if cmd.Verb == line.HPub && len(cmd.Header) > 0 { // libraries send blocks of no bytes: there are no headers
		if err := c.takeHeaders(cmd, addr, rec); err != nil {
			return refusalOf(err)
		}
		if r, refused := jetstream.CheckHeaders(rec); refused {
			refusal := r // only what is refused is on the heap
			return &refusal
		}
	}
	to, err := c.partitionFor(addr, rec)
	if err != nil {
		return refusalOf(err)
	}
	c.queueRecord(cmd, to)
	return nil
}

// partitionFor finds where a record goes.
func (c *conn) partitionFor(addr *address.Address, rec *record.Record) (*part.Partition, *errcode.Error) {
	topic, err := c.topicFor(addr)
	if err != nil {
		return nil, err
	}
	id, err := c.choose(topic, addr, rec)
	if err != nil {
		return nil, err
	}
	return topic.Partition(id)
}

// queueRecord adds the record to the run before it, or takes a new place in the order of answers.
func (c *conn) queueRecord(cmd *line.Command, to *part.Partition) {
	p := &c.pub
	rec := &p.rec
	at := place{part: to, tell: c.tells(cmd), verb: cmd.Verb, due: c.due(c.srv.opt.Publish), own: !c.opt.echo}
	if len(cmd.Args) > 1 { // an acknowledged record is a run of its own
		at.reply, p.run = cmd.Args[1], nil
	}
	if p.run != nil && p.runPart == to && p.runTell == at.tell && p.runVerb == at.verb && p.runRecords < runRecordsMax && to.Extend(rec, p.run) {
		p.runRecords++
		if !p.run.count() { // the run was answered while the record joined it: so is the record
			a := c.box.push(at)
			c.box.mu.Lock()
			a.timeOutLocked()
			c.box.mu.Unlock()
			p.run = nil
		}
		return
	}
	a := c.box.push(at)
	p.run, p.runPart, p.runTell, p.runVerb, p.runRecords = a, to, at.tell, at.verb, 1
	if err := to.Publish(c.stop, rec, a); err != nil {
		a.Settled(part.Outcome{N: 1, Err: err})
		p.run = nil
	}
	if len(at.reply) > 0 {
		p.run = nil
	}
}

// due is when waiting for an outcome ends; never, without a timeout.
func (c *conn) due(timeout time.Duration) int64 {
	if timeout == 0 {
		return 0
	}
	return c.pub.now + timeout.Milliseconds()
}

// publishAddress reads the address; a literal one is a topic's name and nothing else.
func publishAddress(cmd *line.Command, literal bool) (address.Address, *errcode.Error) {
	if literal && cmd.Verb != line.Send {
		return address.ParseLiteral(cmd.Args[0]), nil
	}
	addr, err := address.Parse(cmd.Args[0])
	if err == nil {
		err = addr.ForPublish()
	}
	if err != nil {
		return addr, errcode.From(err, errcode.BadAddress)
	}
	if address.HasWildcard(addr.Topic) {
		return addr, errcode.New(errcode.BadAddress, "a record goes to one topic, not to a pattern", "name the topic")
	}
	return addr, nil
}

// route is what a subject was found to be.
type route struct {
	topic *broker.Topic // nil: no topic of that name
	never bool          // it can be no topic
}

const (
	// routesMax bounds what a connection remembers of subjects.
	routesMax = 1024
	// routeBytesMax is the longest subject that is remembered, a little more than a topic's name can have.
	routeBytesMax = 256
	// runRecordsMax bounds a run of publishes, and so the answers that are encoded in one go.
	runRecordsMax = 4 << 10
	// inboxPrefix begins the reply subjects of NATS libraries: each is used once, and none is a topic.
	inboxPrefix = "_INBOX."
)

// isLive decides whether a publish goes to whoever listens now, or to a topic. A subject is a topic when one of that name
// exists, or when a publish without reply-to may make it.
func (c *conn) isLive(cmd *line.Command, addr *address.Address, reply []byte) (bool, *errcode.Error) {
	if cmd.Verb == line.Send {
		return false, nil
	}
	bare := !addr.HasKey && addr.Partition == partition.None
	found := c.lookup(addr.Topic)
	switch {
	case found.never && !bare:
		return false, errcode.New(errcode.BadAddress, fmt.Sprintf("%q is a live subject and has neither keys nor partitions", clip(addr.Topic)),
			"publish to the bare subject, or to a topic")
	case found.topic != nil || found.never:
		return found.never, nil
	case bare && (len(reply) > 0 || !c.srv.tuned.Load().AutoCreate):
		return true, nil
	case len(reply) > 0:
		return false, errUnknownTopic(addr.Topic)
	}
	return false, nil
}

// lookup says what a subject is now. What it finds is remembered, so that live subjects need no lock of the broker.
func (c *conn) lookup(subject []byte) route {
	p := &c.pub
	if v := c.broker().Version(); p.routesAt != v {
		clear(p.routes)
		p.routesAt, p.topic = v, nil
	}
	if t := p.topic; t != nil && t.Meta.Name == string(subject) {
		return route{topic: t}
	}
	if r, ok := p.routes[string(subject)]; ok {
		return r
	}
	if len(subject) > len(inboxPrefix) && string(subject[:len(inboxPrefix)]) == inboxPrefix {
		return route{never: true}
	}
	r := route{never: address.IsLive(subject, c.srv.opt.Live)}
	if !r.never {
		r.topic = c.broker().Lookup(subject)
	}
	if r.topic != nil && !c.opt.echo {
		c.subs.meet(r.topic)
	}
	if len(subject) > routeBytesMax {
		return r
	}
	if len(p.routes) >= routesMax {
		clear(p.routes)
	}
	if p.routes == nil {
		p.routes = make(map[string]route)
	}
	p.routes[string(subject)] = r
	return r
}

func errLive(subject []byte) *errcode.Error {
	return errcode.New(errcode.NotSupported, fmt.Sprintf("%q is a live subject: nothing of it is stored", clip(subject)),
		"SUB it before it is published to, or name a topic")
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
func (c *conn) topicFor(addr *address.Address) (*broker.Topic, *errcode.Error) {
	name := addr.Topic
	found := c.lookup(name)
	t := found.topic
	if t == nil {
		if found.never && address.ValidTopic(string(name)) == nil {
			return nil, errcode.New(errcode.BadName, fmt.Sprintf("%q is a live subject by subjects.live", clip(name)), "publish to it with PUB, or name a topic")
		}
		var err error
		if t, err = c.broker().EnsureTopic(c.ctx, string(name), addr.Partition); err != nil {
			return nil, errcode.From(err, errcode.MetadataUnavailable)
		}
		if !c.opt.echo {
			c.subs.meet(t)
		}
	}
	c.pub.topic = t
	return t, nil
}

// choose says which partition a record goes to: the one the address names, the one its key falls to, or, without a
// key, the next in turn for each read from the socket.
func (c *conn) choose(t *broker.Topic, addr *address.Address, rec *record.Record) (partition.ID, *errcode.Error) {
	switch {
	case addr.Partition != partition.None:
		return addr.Partition, nil
	case rec.Key != nil:
		c.pub.calls = c.pub.calls || t.Called()
		return c.pub.ahead.Choose(c.ctx, t, rec.Key, func(keys *partition.Keys) { c.lookAhead(t, keys) })
	}
	p := &c.pub
	if p.spreadTopic != t || p.spreadChunk != p.chunk {
		p.spread, p.spreadTopic, p.spreadChunk = t.Plan.Next(), t, p.chunk
	}
	return p.spread, nil
}

// lookAhead adds the keys of the records to t that were read behind the one being handled. It is a guess.
func (c *conn) lookAhead(t *broker.Topic, keys *partition.Keys) {
	reader := *c.parser // a copy: what it takes apart is taken apart again in its turn
	var cmd line.Command
	for keys.Len() < broker.AheadMax {
		if ok, err := reader.Next(&cmd); !ok || err != nil || !publishes(cmd.Verb) {
			return
		}
		topic, key := keyAhead(&cmd, c.opt.literal)
		if string(topic) != t.Meta.Name {
			return
		}
		if key != nil {
			keys.Append(key)
		}
	}
}

// keyAhead guesses the topic of a publish whose turn has not come, and its key; nil where it has none, or where it says its
// partition.
func keyAhead(cmd *line.Command, literal bool) (topic, key []byte) {
	if cmd.Err != nil {
		return nil, nil
	}
	addr, err := publishAddress(cmd, literal)
	switch {
	case err != nil:
		return nil, nil
	case addr.Partition != partition.None:
		return addr.Topic, nil
	case addr.HasKey:
		return addr.Topic, addr.Key
	case cmd.Verb == line.HPub:
		return addr.Topic, line.HeaderKey(cmd.Header)
	}
	return addr.Topic, nil
}

// tells says how the outcome of a publish is told.
func (c *conn) tells(cmd *line.Command) tell {
	switch {
	case c.opt.verbose && c.opt.nats && cmd.Verb != line.Send:
		return tellAllNATS
	case cmd.Verb == line.Send || c.opt.verbose:
		return tellAll
	case len(cmd.Args) > 1:
		return tellNobody
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
	switch cmd.Verb {
	case line.Connect:
		return fmt.Sprintf("Permissions Violation for Connect (%s: %s)", e.Code, e.Text())
	case line.Sub, line.Unsub:
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
	case errors.Is(e, line.ErrPayload):
		return "Maximum Payload Violation"
	case errors.Is(e, errcode.Of(errcode.ShuttingDown)):
		return "Server Shutdown"
	}
	return "Unknown Protocol Operation: " + e.Text()
}

// clip bounds what of a peer's input is sent back to it.
func clip(b []byte) []byte { return b[:min(len(b), 64)] }
