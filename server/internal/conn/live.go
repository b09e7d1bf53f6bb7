package conn

import (
	"context"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/jetstream"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/live"
	part "github.com/trunkline-mq/trunkline/server/internal/partition"
)

// speaker is one goroutine's side of publishing to live subjects. It belongs to that goroutine.
type speaker struct {
	id       uint64
	cache    live.Cache
	message  live.Message
	touched  []*outbox // have frames that their writers were not woken for
	round    uint64    // counts the wake-ups
	slow     *outbox   // one that has much to take; nil: none
	patience time.Duration
}

// voices are a connection's speakers. What the server says on its own account comes from other ones: a connection that
// does not want to hear itself hears that.
type voices struct {
	speaker          // the reader's, of what was read
	refusals speaker // the reader's
	acks     acker   // the writer's
}

// stallMax is how long a publisher waits, for each read from its socket, for subscribers that are behind: enough for
// one that is only slower, too little for one that is stuck to hold up the others. It was guessed.
const stallMax = 10 * time.Millisecond

// wake lets what was delivered be sent: once for all that came in one piece.
func (s *speaker) wake() {
	if len(s.touched) == 0 {
		return
	}
	for i, b := range s.touched {
		b.ready.Signal()
		s.touched[i] = nil
	}
	s.touched = s.touched[:0]
	s.round++
}

// pace waits for a subscriber that is behind, within the patience that is left.
func (s *speaker) pace(stop <-chan struct{}) {
	b := s.slow
	s.slow = nil
	if b == nil || s.patience <= 0 {
		return
	}
	start := time.Now()
	timer := time.NewTimer(s.patience)
	defer timer.Stop()
	for {
		b.mu.Lock()
		behind, freed := b.live+b.flying > b.limit/2 && !b.dead && !b.shut, b.freed
		b.mu.Unlock()
		if !behind {
			break
		}
		select {
		case <-freed:
			continue
		case <-timer.C:
		case <-stop:
		}
		break
	}
	s.patience -= time.Since(start)
}

// publishLive hands a message to whoever listens now. NATS libraries that are not pedantic may name what is no subject;
// it reaches whom the pattern reaches, or nobody.
func (c *conn) publishLive(cmd *line.Command, subject, reply []byte) *errcode.Error {
	if !literalSubject(subject) {
		if !c.opt.nats {
			return errcode.New(errcode.BadAddress, "a message goes to one subject: tokens joined by single dots, none of them * or >", "name the subject")
		}
		if c.opt.pedantic {
			c.box.say(func(dst []byte) []byte { return line.AppendNATSErr(dst, "Invalid Publish Subject") })
		}
	}
	c.ok()
	s := &c.voice.speaker
	s.message = live.Message{Subject: subject, Reply: reply, Header: cmd.Header, Payload: cmd.Payload, From: s}
	if c.srv.live.Publish(&s.cache, &s.message) == 0 && len(reply) > 0 && c.opt.noResponders {
		c.sayNobody(subject, reply)
	}
	return nil
}

func literalSubject(subject []byte) bool {
	return address.ValidSubject(subject) && !address.HasWildcard(subject)
}

// sayNobody answers a request that nobody listens for, where its answer is waited for: on this connection.
func (c *conn) sayNobody(subject, reply []byte) {
	sid := c.subs.waitsFor(reply)
	if sid == nil {
		return
	}
	header := append([]byte("NATS/1.0 503\r\nNats-Subject: "), subject...)
	header = append(header, "\r\n\r\n"...)
	c.box.frame(func(dst []byte) []byte {
		dst = line.AppendHMsg(dst, reply, sid, line.Sizes{Header: len(header), Total: len(header)})
		return line.AppendEnd(append(dst, header...))
	})
}

// Deliver writes one live message, unless the subscription has ended. Who lets too much wait is cut off: there is no log
// to read it from later.
func (s *subscription) Deliver(m *live.Message) bool {
	switch s.hear(m) {
	case heardLast:
		s.forget()
		return true
	case heardIt:
		return true
	case cutOff:
		s.conn.log.Warn("slow consumer cut off", "subject", s.name)
		s.conn.leave()
	}
	return false
}

// hearing is what became of a live message.
type hearing uint8

const (
	notHeard hearing = iota
	heardIt
	heardLast // and the subscription has ended with it
	cutOff    // the connection has too much to take
)

func (s *subscription) hear(m *live.Message) hearing {
	b := s.conn.box
	from := m.From.(*speaker)
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.ended || b.done || b.dead || b.shut {
		return notHeard
	}
	if waiting := b.live + b.flying; waiting > 0 && waiting+s.f.bound(m) > b.limit {
		b.lastWordLocked(s.appendTooSlow)
		return cutOff
	}
	_, last := s.quota.Claim()
	s.ended = last
	before := len(b.buf)
	b.buf = s.f.appendLive(b.buf, m)
	b.live += len(b.buf) - before
	if b.live+b.flying > b.limit/2 {
		from.slow = b
	}
	if b.spoke != from.id || b.spokeRound != from.round { // its writer is not to be woken yet
		b.spoke, b.spokeRound = from.id, from.round
		from.touched = append(from.touched, b)
	}
	if last {
		return heardLast
	}
	return heardIt
}

func (s *subscription) appendTooSlow(dst []byte) []byte {
	if s.f.opt.nats {
		return line.AppendNATSErr(dst, "Slow Consumer")
	}
	e := errcode.New(errcode.SlowConsumer, "more live messages wait than limits.pending allows, and they are kept nowhere else",
		"read faster, or publish to a topic and read its log")
	return line.AppendAsyncErr(dst, e, "SUB "+s.name)
}

// leave makes the reader stop; what the outbox was told last still goes out.
func (c *conn) leave() {
	c.halt()
	_ = c.nc.SetReadDeadline(time.Now())
}

// framer encodes records and live messages as MSG and HMSG frames for one subscription or GET.
type framer struct {
	opt     options
	sid     []byte
	subject []byte
	header  []byte
}

// append encodes one record. Literal subjects are the bare topic, others the full address.
func (f *framer) append(dst []byte, p *part.Partition, off record.Offset, r *record.Record) []byte {
	f.subject = f.subject[:0]
	if f.opt.literal {
		f.subject = append(f.subject, p.Name.Topic...)
	} else {
		f.subject = address.AppendAddress(f.subject, p.Name.Topic, p.Name.ID, off)
	}
	if !f.opt.headers || !f.opt.timestamps && !line.NeedsHeaders(r) {
		dst = line.AppendMsg(dst, f.subject, f.sid, len(r.Value))
	} else {
		f.header, _ = line.AppendHeaders(f.header[:0], r, line.HeaderOptions{Timestamp: f.opt.timestamps})
		dst = line.AppendHMsg(dst, f.subject, f.sid, line.Sizes{Header: len(f.header), Total: len(f.header) + len(r.Value)})
		dst = append(dst, f.header...)
	}
	dst = append(dst, r.Value...)
	return line.AppendEnd(dst)
}

// appendLive encodes one live message as it came; a client that reads no headers gets it without.
func (f *framer) appendLive(dst []byte, m *live.Message) []byte {
	if len(m.Header) == 0 || !f.opt.headers {
		dst = line.AppendMsgReply(dst, line.Head{Subject: m.Subject, SID: f.sid, Reply: m.Reply}, len(m.Payload))
	} else {
		dst = line.AppendHMsgReply(dst, line.Head{Subject: m.Subject, SID: f.sid, Reply: m.Reply},
			line.Sizes{Header: len(m.Header), Total: len(m.Header) + len(m.Payload)})
		dst = append(dst, m.Header...)
	}
	dst = append(dst, m.Payload...)
	return line.AppendEnd(dst)
}

// frameOverhead is more than a frame has beside subject, sid, reply, header and payload: verb, blanks, sizes, line ends.
const frameOverhead = 32

func (f *framer) bound(m *live.Message) int {
	return len(m.Subject) + len(f.sid) + len(m.Reply) + len(m.Header) + len(m.Payload) + frameOverhead
}

// ack is what a reply subject is to hear of a publish to a topic.
type ack struct {
	reply   []byte
	topic   string
	id      partition.ID
	outcome part.Outcome
}

// takeAckLocked queues the acknowledgement of a settled publish for the writer. The buffers of earlier ones are used
// again.
func (b *outbox) takeAckLocked(a *answer) {
	if len(b.acks) < cap(b.acks) {
		b.acks = b.acks[:len(b.acks)+1]
	} else {
		b.acks = append(b.acks, ack{})
	}
	k := &b.acks[len(b.acks)-1]
	k.reply, a.reply = a.reply, k.reply[:0]
	k.topic, k.id, k.outcome = a.part.Name.Topic, a.part.Name.ID, a.outcome
	b.held += k.bytes()
}

// bytes is what a queued acknowledgement takes of memory.
func (a *ack) bytes() int { return answerBytes + len(a.reply) }

// published lets go of acknowledgements that are out, and returns what of their memory is worth keeping.
func (b *outbox) published(acks []ack) []ack {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range acks {
		b.held -= acks[i].bytes()
		if cap(acks[i].reply) > spareBytes {
			acks[i].reply = nil
		}
	}
	b.freeLocked()
	if cap(acks) > spareMax {
		return nil
	}
	return acks
}

// acker publishes acknowledgements from the writer's goroutine.
type acker struct {
	speaker
	text []byte
}

func (c *conn) publishAcks(acks []ack) {
	k := &c.voice.acks
	for i := range acks {
		a := &acks[i]
		k.text = a.append(k.text[:0])
		a.outcome.Err = nil
		if len(k.text) > 0 {
			k.publish(c.srv.live, a.reply)
		}
	}
	k.wake()
}

// publish sends text to a reply subject, which is used once.
func (k *acker) publish(to *live.Router, reply []byte) {
	k.message = live.Message{Subject: reply, Payload: k.text, From: &k.speaker}
	to.PublishOnce(&k.cache, &k.message)
}

// append encodes the acknowledgement; nothing where the outcome is open: the client waits in vain, as it must.
func (a *ack) append(dst []byte) []byte {
	o := &a.outcome
	switch {
	case o.Err == nil:
		return jetstream.AppendAck(dst, jetstream.Ack{Topic: a.topic, Partition: a.id, Offset: o.Base, Durability: o.Durability})
	case o.Err.Code.Outcome() == errcode.Unknown:
		return dst
	}
	return jetstream.AppendError(dst, jetstream.Refuse(o.Err))
}

// refuseReply tells a reply subject that a publish was refused before it was queued.
func (c *conn) refuseReply(reply []byte, r jetstream.Refusal) {
	s := &c.voice.refusals
	s.message = live.Message{Subject: reply, Payload: jetstream.AppendError(nil, r), From: s}
	c.srv.live.PublishOnce(&s.cache, &s.message)
	s.wake()
}

// watchTopics tells subscriptions of the topics that appear, until ctx ends. A topic that was deleted and made again is
// another one.
func (s *Server) watchTopics(ctx context.Context) {
	known := map[string]string{} // ids by name
	for {
		changed := s.opt.Broker.Changed()
		now := make(map[string]string, len(known))
		for _, t := range s.opt.Broker.Topics() {
			now[t.Meta.Name] = t.Meta.ID
			name := []byte(t.Meta.Name)
			if known[t.Meta.Name] == t.Meta.ID || address.IsLive(name, s.opt.Live) {
				continue
			}
			s.waiting.Visit(name, func(to live.Sink) { to.(*subscription).appear(t) })
		}
		known = now
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
