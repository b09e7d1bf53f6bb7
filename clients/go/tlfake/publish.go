package tlfake

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// publish is PUB, HPUB and SEND. The server's lock is held, as everywhere here.
func (c *conn) publish(cmd *line.Command) {
	l, o, live, err := c.publishRecord(cmd)
	switch {
	case err != nil:
		c.fail(cmd, err)
	case live: // it has its answer
	case c.server.cutLocked():
		c.cut()
	case cmd.Verb == line.Send || c.opt.verbose:
		c.acknowledge(l, o)
	}
}

func (c *conn) acknowledge(l *log, o record.Offset) {
	where := string(address.AppendAddress(nil, l.topic.name, l.id, o))
	c.say(func(dst []byte) []byte { return line.AppendOK(dst, where+" "+l.topic.set.durability()) })
}

func (c *conn) publishAddress(cmd *line.Command) (address.Address, *errcode.Error) {
	if c.opt.literal && cmd.Verb != line.Send {
		return address.ParseLiteral(cmd.Args[0]), nil
	}
	a, err := address.Parse(cmd.Args[0])
	if err == nil {
		err = a.ForPublish()
	}
	if err != nil {
		return a, errcode.From(err, errcode.BadAddress)
	}
	if address.HasWildcard(a.Topic) {
		return a, errcode.New(errcode.BadAddress, "a record goes to one topic, not to a pattern", "name the topic")
	}
	return a, nil
}

func (c *conn) publishRecord(cmd *line.Command) (_ *log, _ record.Offset, live bool, _ *errcode.Error) {
	a, err := c.publishAddress(cmd)
	if err != nil {
		return nil, 0, false, err
	}
	var reply []byte
	if len(cmd.Args) > 1 {
		reply = cmd.Args[1]
		if !c.opt.nats && (!address.ValidSubject(reply) || address.HasWildcard(reply)) {
			return nil, 0, false, errcode.New(errcode.BadAddress, fmt.Sprintf("the reply-to %q is no subject without wildcards", clip(reply)),
				"name the one subject that answers are to go to")
		}
	}
	if live, err = c.isLive(cmd, &a, reply); live || err != nil {
		if err == nil {
			err = c.publishLive(cmd, a.Topic, reply)
		}
		return nil, 0, live, err
	}
	r := record.Record{Timestamp: c.now, Key: a.Key, Value: cmd.Payload}
	if r.Value == nil {
		r.Value = []byte{}
	}
	if cmd.Verb == line.HPub {
		fields, err := line.ParseHeaders(cmd.Header, &r)
		if err != nil {
			return nil, 0, false, errcode.From(err, errcode.BadHeaders)
		}
		if a.HasKey && fields.Key {
			return nil, 0, false, errcode.New(errcode.BadHeaders, "the key is given twice, in the address and as a header", "leave one of them out")
		}
		if a.HasKey {
			r.Key = a.Key
		}
	}
	l, err := c.choose(&a, &r)
	if err != nil {
		return nil, 0, false, err
	}
	size := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		size += len(h.Key) + len(h.Value)
	}
	if limit := l.topic.set.messageBytes; size > limit {
		return nil, 0, false, errcode.New(errcode.TooLarge, fmt.Sprintf("record exceeds the topic's message.bytes of %d", limit), "send a smaller record")
	}
	var b record.Builder
	b.Reset(nil)
	b.Append(&r)
	o := l.appendBatches(b.Finish(0, 0))
	c.server.noteLocked()
	return l, o, false, nil
}

// isLive decides whether a publish goes to whoever listens now.
func (c *conn) isLive(cmd *line.Command, a *address.Address, reply []byte) (bool, *errcode.Error) {
	if cmd.Verb == line.Send || c.server.topics[string(a.Topic)] != nil {
		return false, nil
	}
	bare := !a.HasKey && a.Partition == partition.None
	never := address.IsLive(a.Topic, nil)
	switch {
	case never && !bare:
		return false, errcode.New(errcode.BadAddress, fmt.Sprintf("%q is a live subject and has neither keys nor partitions", clip(a.Topic)),
			"publish to the bare subject, or to a topic")
	case never, bare && (len(reply) > 0 || !c.server.opt.autoCreate):
		return true, nil
	case len(reply) > 0:
		return false, errUnknownTopic(a.Topic)
	}
	return false, nil
}

// choose finds the partition of a record, and makes its topic where it is missing.
func (c *conn) choose(a *address.Address, r *record.Record) (*log, *errcode.Error) {
	t, err := c.server.ensureLocked(string(a.Topic), a.Partition)
	if err != nil {
		return nil, err
	}
	switch {
	case a.Partition != partition.None:
		return t.log(a.Partition)
	case r.Key != nil:
		return t.log(t.forKey(r.Key))
	}
	if c.spread.topic != t || c.spread.chunk != c.chunk {
		c.spread = spread{t, c.chunk, t.plan.Next()}
	}
	return t.log(c.spread.id)
}

// publishLive hands a message to every subscription that matches, and to one of each group.
func (c *conn) publishLive(cmd *line.Command, subject, reply []byte) *errcode.Error {
	if !address.ValidSubject(subject) || address.HasWildcard(subject) {
		return errcode.New(errcode.BadAddress, "a message goes to one subject: tokens joined by single dots, none of them * or >", "name the subject")
	}
	c.ok() // before what it may bring to this connection
	served := map[string]bool{}
	for other := range c.server.conns {
		if other == c && !c.opt.echo {
			continue
		}
		for _, s := range other.subs {
			group := s.name + " " + s.group
			if !s.bare || !address.Match(s.name, subject) || s.group != "" && served[group] {
				continue
			}
			served[group] = true
			if last := s.claim(); last {
				other.endSub(string(s.sid))
			}
			other.say(func(dst []byte) []byte {
				head := line.Head{Subject: subject, SID: s.sid, Reply: reply}
				if cmd.Verb == line.HPub && other.opt.headers {
					dst = line.AppendHMsgReply(dst, head, line.Sizes{Header: len(cmd.Header), Total: len(cmd.Header) + len(cmd.Payload)})
					dst = append(dst, cmd.Header...)
				} else {
					dst = line.AppendMsgReply(dst, head, len(cmd.Payload))
				}
				return line.AppendEnd(append(dst, cmd.Payload...))
			})
		}
	}
	return nil
}

// produce is PRODUCE.
func (c *conn) produce(cmd *line.Command) {
	l, o, acked, err := c.produceBatches(cmd)
	switch {
	case err != nil:
		c.fail(cmd, err)
	case c.server.cutLocked():
		c.cut()
	case !acked:
		where := string(address.AppendAddress(nil, l.topic.name, l.id, -1))
		c.say(func(dst []byte) []byte { return line.AppendOK(dst, where+" none") })
	default:
		c.acknowledge(l, o)
	}
}

func (c *conn) produceBatches(cmd *line.Command) (_ *log, _ record.Offset, acked bool, _ *errcode.Error) {
	a, fault := address.Parse(cmd.Args[0])
	if fault == nil {
		fault = a.ForPublish()
	}
	if fault == nil && a.Partition == partition.None {
		fault = errcode.New(errcode.BadAddress, "PRODUCE names no partition", "use "+line.Produce.Usage())
	}
	if fault != nil {
		return nil, 0, false, errcode.From(fault, errcode.BadAddress)
	}
	acked, plan := true, int64(-1)
	for _, arg := range cmd.Args[1:] {
		key, value, _ := strings.Cut(string(arg), "=")
		ok := false
		switch key {
		case "acks":
			acked, ok = value != "0", value == "0" || value == "1" || value == "all"
		case "timeout":
			d, err := address.ParseDuration(value)
			ok = err == nil && d >= time.Millisecond
		case "plan":
			n, err := strconv.ParseInt(value, 10, 64)
			plan, ok = n, err == nil && n >= 0
		}
		if !ok {
			return nil, 0, false, errcode.New(errcode.BadArgs, fmt.Sprintf("%q is no option of PRODUCE", clip(arg)), "use "+line.Produce.Usage())
		}
	}
	if c.server.topics[string(a.Topic)] == nil { // what is refused makes no topic
		if err := checkBatches(cmd.Payload, defaultSettings().messageBytes); err != nil {
			return nil, 0, false, err
		}
	}
	t, err := c.server.ensureLocked(string(a.Topic), a.Partition)
	if err != nil {
		return nil, 0, false, err
	}
	l, err := t.log(a.Partition)
	if err != nil {
		return nil, 0, false, err
	}
	if version := t.plan.Plan().Version; plan >= 0 && plan != version {
		return nil, 0, false, errcode.New(errcode.PlanStale, fmt.Sprintf("topic %s has plan version %d, not %d", t.name, version, plan),
			"read METADATA and choose the partition again")
	}
	if err := checkBatches(cmd.Payload, t.set.messageBytes); err != nil {
		return nil, 0, false, err
	}
	o := l.appendBatches(append([]byte(nil), cmd.Payload...))
	c.server.noteLocked()
	return l, o, acked, nil
}

// checkBatches refuses what is no run of whole, sound batches.
func checkBatches(b []byte, limit int) *errcode.Error {
	if len(b) == 0 {
		return errcode.New(errcode.BadBatch, "PRODUCE carries no batch", "send at least one record batch")
	}
	for at := 0; at < len(b); {
		size, err := record.SizeOf(b[at:])
		if err == nil && size > len(b)-at {
			err = errors.New("it is cut off")
		}
		if err == nil && size > limit {
			return errcode.New(errcode.TooLarge, fmt.Sprintf("batch of %d bytes exceeds the topic's message.bytes of %d", size, limit), "send smaller batches")
		}
		if err == nil {
			batch := record.Batch(b[at : at+size])
			if err = batch.Check(); err == nil && batch.Count() != batch.LastDelta()+1 {
				err = fmt.Errorf("%d records with a last offset delta of %d", batch.Count(), batch.LastDelta())
			}
			if err == nil && (batch.ProducerID() >= 0 || batch.Transactional() || batch.Control()) {
				return errcode.New(errcode.NotSupported, "idempotent and transactional batches are not offered yet", "send them with producer id -1")
			}
		}
		if err != nil {
			return errcode.Wrap(errcode.BadBatch, err, fmt.Sprintf("the batch at byte %d of the payload: %v", at, err), "send Kafka record batches of magic 2")
		}
		at += size
	}
	return nil
}
