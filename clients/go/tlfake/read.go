package tlfake

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// spot is a record's place.
type spot struct {
	log    *log
	offset record.Offset
}

// frame appends one record.
func (c *conn) frame(dst, sid []byte, at spot, r *record.Record) []byte {
	l, o := at.log, at.offset
	subject := []byte(l.topic.name)
	if !c.opt.literal {
		subject = address.AppendAddress(nil, l.topic.name, l.id, o)
	}
	if !c.opt.headers || !c.opt.timestamps && !line.NeedsHeaders(r) {
		dst = line.AppendMsg(dst, subject, sid, len(r.Value))
	} else {
		header, _ := line.AppendHeaders(nil, r, line.HeaderOptions{Timestamp: c.opt.timestamps})
		dst = line.AppendHMsg(dst, subject, sid, line.Sizes{Header: len(header), Total: len(header) + len(r.Value)})
		dst = append(dst, header...)
	}
	return line.AppendEnd(append(dst, r.Value...))
}

func (c *conn) get(cmd *line.Command) (string, *errcode.Error) {
	if len(cmd.Args) < 1 || len(cmd.Args) > 2 {
		return "", errcode.New(errcode.BadArgs, fmt.Sprintf("GET has %d arguments", len(cmd.Args)), "use "+line.Get.Usage())
	}
	a, err := c.readAddress(cmd.Args[0])
	switch {
	case err != nil:
		return "", err
	case address.HasWildcard(a.Topic):
		return "", errcode.New(errcode.NotSupported, "wildcards are not offered yet", "name one topic")
	case address.IsLive(a.Topic, nil):
		return "", errcode.New(errcode.NotSupported, fmt.Sprintf("%q is a live subject: nothing of it is stored", clip(a.Topic)),
			"SUB it before it is published to, or name a topic")
	}
	count := 10
	if len(cmd.Args) == 2 {
		n, err := strconv.ParseUint(string(cmd.Args[1]), 10, 31)
		if err != nil || n == 0 {
			return "", errcode.New(errcode.BadArgs, fmt.Sprintf("count %q is not a number from 1", clip(cmd.Args[1])), "use "+line.Get.Usage())
		}
		count = int(n)
	}
	t := c.server.topics[string(a.Topic)]
	if t == nil {
		return "", errUnknownTopic(a.Topic)
	}
	logs, err := t.logs(a.Partition)
	if err != nil {
		return "", err
	}
	from := make([]record.Offset, len(logs))
	for i, l := range logs {
		if from[i], err = l.seek(a.Position, address.Earliest, c.now); err != nil {
			return "", err
		}
	}
	var next []string
	for i, l := range logs {
		if count > 0 {
			l.each(from[i], func(o record.Offset, r *record.Record) bool {
				c.say(func(dst []byte) []byte { return c.frame(dst, []byte("0"), spot{l, o}, r) })
				from[i] = o + 1
				count--
				return count > 0
			})
		}
		next = append(next, string(address.AppendAddress(nil, t.name, l.id, from[i])))
	}
	return strings.Join(next, " "), nil
}

// offsetJSON is one partition in the answer of OFFSETS.
type offsetJSON struct {
	Partition     partition.ID  `json:"partition"`
	Offset        record.Offset `json:"offset"`
	Timestamp     *string       `json:"timestamp"`
	LogStart      record.Offset `json:"log_start"`
	HighWatermark record.Offset `json:"high_watermark"`
	Error         errcode.Code  `json:"error,omitempty"`
}

func (c *conn) offsets(cmd *line.Command) (any, *errcode.Error) {
	if len(cmd.Args) != 1 {
		return nil, errcode.New(errcode.BadArgs, fmt.Sprintf("OFFSETS has %d arguments", len(cmd.Args)), "use "+line.Offsets.Usage())
	}
	a, fault := address.Parse(cmd.Args[0])
	if fault == nil {
		fault = a.ForRead()
	}
	if fault != nil {
		return nil, errcode.From(fault, errcode.BadAddress)
	}
	t := c.server.topics[string(a.Topic)]
	if t == nil {
		return nil, errUnknownTopic(a.Topic)
	}
	logs, err := t.logs(a.Partition)
	if err != nil {
		return nil, err
	}
	answer := struct {
		Topic      string       `json:"topic"`
		Partitions []offsetJSON `json:"partitions"`
	}{Topic: t.name}
	for _, l := range logs {
		j := offsetJSON{Partition: l.id, Offset: -1, LogStart: l.start, HighWatermark: l.next}
		if o, err := l.seek(a.Position, address.Latest, c.now); err != nil {
			j.Error = err.Code
		} else {
			j.Offset = o
			l.each(o, func(_ record.Offset, r *record.Record) bool {
				text := time.UnixMilli(r.Timestamp).UTC().Format(line.TimeLayout)
				j.Timestamp = &text
				return false
			})
		}
		answer.Partitions = append(answer.Partitions, j)
	}
	return answer, nil
}

// sub is a subscription. It is guarded by the server's lock.
type sub struct {
	conn  *conn
	sid   []byte
	addr  address.Address
	name  string
	asked string // the address as it came
	group string
	bare  bool // it hears live subjects
	feeds map[string]*feed
	stop  chan struct{} // closed when it ends
	count int           // delivered so far
	limit int           // 0: none
	ended bool
}

// feed is a topic on its way to a subscription.
type feed struct {
	topic *topic
	next  map[partition.ID]record.Offset
	bad   bool // it does not have what was asked for
}

func (c *conn) subscribe(cmd *line.Command) {
	s, err := c.newSub(cmd)
	if err != nil {
		if c.opt.nats && len(cmd.Args) > 0 && !address.ValidSubject(cmd.Args[0]) {
			c.say(func(dst []byte) []byte { return line.AppendNATSErr(dst, "Invalid Subject") })
			return
		}
		c.fail(cmd, err)
		return
	}
	if c.subs[string(s.sid)] != nil { // the first one stays
		c.ok()
		return
	}
	for _, t := range s.matching() {
		if s.group != "" {
			c.fail(cmd, errGroup(t.name))
			return
		}
		if err := s.feed(t, address.Latest); err != nil {
			c.fail(cmd, err)
			return
		}
	}
	c.subs[string(s.sid)] = s
	c.ok()
	c.tasks.Go(s.run)
}

func errGroup(topic string) *errcode.Error {
	return errcode.New(errcode.NotSupported, topic+" is a topic, and groups on topics are not offered yet",
		"subscribe without a group; every subscription gets every record")
}

func (c *conn) newSub(cmd *line.Command) (*sub, *errcode.Error) {
	n := len(cmd.Args)
	if n != 2 && n != 3 {
		return nil, errcode.New(errcode.BadArgs, fmt.Sprintf("SUB has %d arguments", n), "use "+line.Sub.Usage())
	}
	a, err := c.readAddress(slices.Clone(cmd.Args[0]))
	if err != nil {
		return nil, err
	}
	s := &sub{conn: c, sid: slices.Clone(cmd.Args[n-1]), addr: a, name: string(a.Topic), asked: string(cmd.Args[0]), feeds: map[string]*feed{}, stop: make(chan struct{})}
	s.bare = a.Partition == partition.None && a.Position.Kind == address.None
	if n == 3 {
		s.group = string(cmd.Args[1])
	}
	never := !address.HasWildcard(s.name) && address.IsLive(a.Topic, nil)
	switch {
	case !address.ValidSubject(s.name):
		return nil, errcode.New(errcode.BadAddress, fmt.Sprintf("%q is no subject", clip(a.Topic)), "join tokens with single dots; > stands last")
	case never && !s.bare:
		return nil, errcode.New(errcode.BadAddress, fmt.Sprintf("%q is a live subject and has neither partitions nor positions", clip(a.Topic)),
			"subscribe to the bare subject, or to a topic")
	case !s.bare && s.group != "":
		return nil, errGroup(s.name)
	}
	return s, nil
}

// matching are the topics that a subscription is for.
func (s *sub) matching() []*topic {
	var found []*topic
	for name, t := range s.conn.server.topics {
		if name == s.name || address.HasWildcard(s.name) && address.Match(s.name, name) {
			found = append(found, t)
		}
	}
	return found
}

// feed begins to deliver a topic; none is where without a position.
func (s *sub) feed(t *topic, none address.PositionKind) *errcode.Error {
	f := &feed{topic: t, next: map[partition.ID]record.Offset{}}
	s.feeds[t.id] = f
	logs, err := t.logs(s.addr.Partition)
	for _, l := range logs {
		if f.next[l.id], err = l.seek(s.addr.Position, none, time.Now().UnixMilli()); err != nil {
			break
		}
	}
	f.bad = err != nil
	return err
}

// run delivers until the subscription or its connection ends.
func (s *sub) run() {
	server := s.conn.server
	for {
		server.mu.Lock()
		if s.ended {
			server.mu.Unlock()
			return
		}
		s.deliver()
		changed := server.changed
		server.mu.Unlock()
		select {
		case <-changed:
		case <-s.stop:
			return
		case <-s.conn.stop:
			return
		}
	}
}

// deliver sends everything that is new.
func (s *sub) deliver() {
	for id, f := range s.feeds {
		if f.topic.gone {
			delete(s.feeds, id)
			if !f.bad && !s.conn.opt.nats {
				s.async(errcode.New(errcode.TopicDeleted, fmt.Sprintf("topic %s was deleted", f.topic.name), "the subscription waits for it to come back"))
			}
		}
	}
	for _, t := range s.matching() {
		if s.feeds[t.id] == nil {
			if s.group != "" {
				s.feeds[t.id] = &feed{topic: t, bad: true}
				s.async(errGroup(t.name))
			} else if err := s.feed(t, address.Earliest); err != nil {
				s.async(err)
			}
		}
	}
	for _, f := range s.feeds {
		if f.bad {
			continue
		}
		logs, _ := f.topic.logs(s.addr.Partition) // it was there
		for _, l := range logs {
			l.each(max(f.next[l.id], l.start), func(o record.Offset, r *record.Record) bool {
				last := s.claim()
				s.conn.say(func(dst []byte) []byte { return s.conn.frame(dst, s.sid, spot{l, o}, r) })
				f.next[l.id] = o + 1
				if last {
					s.conn.endSub(string(s.sid))
				}
				return !last
			})
			if s.ended {
				return
			}
		}
	}
}

// claim counts a delivery; true for the last one.
func (s *sub) claim() bool {
	s.count++
	return s.limit > 0 && s.count >= s.limit
}

func (s *sub) async(e *errcode.Error) {
	s.conn.say(func(dst []byte) []byte {
		if s.conn.opt.nats {
			return line.AppendNATSErr(dst, fmt.Sprintf("Permissions Violation for Subscription to %q (%s: %s)", s.name, e.Code, e.Text()))
		}
		return line.AppendAsyncErr(dst, e, "SUB "+s.asked)
	})
}

func (c *conn) endSub(sid string) {
	if s := c.subs[sid]; s != nil {
		s.ended = true
		close(s.stop)
		delete(c.subs, sid)
	}
}

func (c *conn) unsubscribe(cmd *line.Command) {
	if n := len(cmd.Args); n < 1 || n > 2 {
		c.fail(cmd, errcode.New(errcode.BadArgs, fmt.Sprintf("UNSUB has %d arguments", n), "use "+line.Unsub.Usage()))
		return
	}
	limit := 0
	if len(cmd.Args) == 2 {
		n, err := strconv.ParseUint(string(cmd.Args[1]), 10, 31)
		if err != nil {
			c.fail(cmd, errcode.New(errcode.BadArgs, fmt.Sprintf("max %q is not a number", clip(cmd.Args[1])), "use "+line.Unsub.Usage()))
			return
		}
		limit = int(n)
	}
	if s := c.subs[string(cmd.Args[0])]; s != nil {
		if s.limit = limit; limit == 0 || s.count >= limit {
			c.endSub(string(s.sid))
		}
	}
	c.ok()
}

// poll is a FETCH that waits for its answer.
type poll struct {
	items []item
	max   int64
	min   int64
	wait  time.Duration
	end   chan struct{} // closed by a later verb
	done  chan struct{}
}

// item is one partition of a FETCH.
type item struct {
	topic string
	id    partition.ID
	pos   address.Position
}

const (
	fetchBytesDefault = 1 << 20
	fetchBytesMax     = 64 << 20
	fetchWaitMax      = 5 * time.Minute
	fetchItemsMax     = 1 << 14
)

// fetch is FETCH. It waits on a goroutine of its own, so that the reader hears the verb that ends it.
func (c *conn) fetch(cmd *line.Command) {
	p := &poll{max: fetchBytesDefault, min: 1, end: make(chan struct{}), done: make(chan struct{})}
	var err *errcode.Error
	if cmd.Payload != nil {
		err = p.readJSON(cmd.Payload)
	} else {
		err = p.readArgs(cmd.Args)
	}
	switch {
	case err != nil:
	case len(p.items) == 0:
		err = errcode.New(errcode.BadArgs, "FETCH names no partition", "use "+line.Fetch.Usage())
	case len(p.items) > fetchItemsMax:
		err = errcode.New(errcode.LimitExceeded, fmt.Sprintf("FETCH names %d partitions", len(p.items)), fmt.Sprintf("name at most %d", fetchItemsMax))
	case p.max < 1 || p.max > fetchBytesMax || p.min < 0 || p.min > p.max || p.wait < 0 || p.wait > fetchWaitMax:
		err = errcode.New(errcode.BadArgs, "max, min or wait of FETCH is out of range", "max goes to 64MiB, min to max, wait to 5m")
	}
	if err != nil {
		c.fail(cmd, err)
		return
	}
	p.locate(c)
	c.poll = p
	c.tasks.Go(func() { c.runPoll(p) })
}

// locate turns positions into offsets, as of now.
func (p *poll) locate(c *conn) {
	for i := range p.items {
		it := &p.items[i]
		t := c.server.topics[it.topic]
		if t == nil {
			continue
		}
		if l, err := t.log(it.id); err == nil && it.pos.Kind != address.Offset {
			o, _ := l.seek(it.pos, address.Earliest, c.now) // only an offset can be out of range
			it.pos = address.Position{Kind: address.Offset, N: int64(o)}
		}
	}
}

// endPoll ends a FETCH that waits, and has it answered. The server's lock is not held.
func (c *conn) endPoll() {
	if c.poll != nil {
		close(c.poll.end)
		<-c.poll.done
		c.poll = nil
	}
}

func (c *conn) runPoll(p *poll) {
	defer close(p.done)
	timer := time.NewTimer(p.wait)
	defer timer.Stop()
	for over := p.wait == 0; ; {
		c.server.mu.Lock()
		out, size, trouble := c.gather(p)
		changed := c.server.changed
		c.server.mu.Unlock()
		if over || trouble || size >= p.min {
			c.say(func(dst []byte) []byte { return line.AppendOK(append(dst, out...), "") })
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			over = true
		case <-p.end:
			over = true
		}
	}
}

// gather takes what is there now.
func (c *conn) gather(p *poll) (out []byte, size int64, trouble bool) {
	for _, it := range p.items {
		code, low, high := errcode.UnknownTopic, record.Offset(-1), record.Offset(-1)
		if t := c.server.topics[it.topic]; t != nil {
			l, err := t.log(it.id)
			if err != nil {
				code = err.Code
			} else if from := record.Offset(it.pos.N); from >= l.start && from <= l.next {
				batch, n := l.read(from, p.max-size, size == 0)
				if n > 0 {
					out = address.AppendAddress(append(out, "BATCH "...), t.name, l.id, record.Batch(batch).BaseOffset())
					out = fmt.Appendf(out, " %d %d %d\r\n", l.next, l.start, n)
					out = line.AppendEnd(append(out, batch...))
					size += int64(n)
				}
				continue
			} else {
				code, low, high = errcode.OffsetOutOfRange, l.start, l.next
			}
		}
		name := it.topic
		if !address.ValidSubject(name) {
			name = "-"
		}
		out = fmt.Appendf(out, "PART %s/%d %d %d %s\r\n", name, it.id, high, low, code)
		trouble = true
	}
	return out, size, trouble
}

// read returns whole batches from the one that holds an offset, up to limit bytes; the first whatever its size, if it may.
func (l *log) read(from record.Offset, limit int64, first bool) ([]byte, int) {
	var out []byte
	for _, b := range l.batches[l.find(from):] {
		if int64(len(out)+len(b)) > limit && !(first && len(out) == 0) {
			break
		}
		out = append(out, b...)
	}
	return out, len(out)
}

func (p *poll) readArgs(args [][]byte) *errcode.Error {
	for _, arg := range args {
		key, value, isOption := strings.Cut(string(arg), "=")
		if isOption {
			var err error
			switch key {
			case "max":
				p.max, err = size(value)
			case "min":
				p.min, err = size(value)
			case "wait":
				p.wait, err = address.ParseDuration(value)
			default:
				err = errors.New("unknown")
			}
			if err != nil {
				return errcode.New(errcode.BadArgs, fmt.Sprintf("%q is no option of FETCH", clip(arg)), "use "+line.Fetch.Usage())
			}
			continue
		}
		a, err := address.Parse(slices.Clone(arg))
		if err == nil {
			err = a.ForRead()
		}
		if err == nil && (a.Partition == partition.None || a.Position.Kind == address.None) {
			err = errcode.New(errcode.BadAddress, fmt.Sprintf("%q names no partition or no offset", clip(arg)), "use "+line.Fetch.Usage())
		}
		if err != nil {
			return errcode.From(err, errcode.BadAddress)
		}
		p.items = append(p.items, item{string(a.Topic), a.Partition, a.Position})
	}
	return nil
}

func size(value string) (int64, error) {
	if n, err := strconv.ParseInt(value, 10, 64); err == nil {
		return n, nil
	}
	return address.ParseBytes(value)
}

func (p *poll) readJSON(text []byte) *errcode.Error {
	var ask struct {
		Max        *int64          `json:"max"`
		Min        *int64          `json:"min"`
		Wait       json.RawMessage `json:"wait"`
		Partitions []struct {
			Topic     string       `json:"topic"`
			Partition partition.ID `json:"partition"`
			Offset    int64        `json:"offset"`
		} `json:"partitions"`
	}
	if err := json.Unmarshal(text, &ask); err != nil {
		return errcode.New(errcode.BadJSON, "FETCH's JSON cannot be read: "+jsonFault(err), `send {"partitions":[{"topic":"orders","partition":0,"offset":0}]}`)
	}
	if ask.Max != nil {
		p.max = *ask.Max
	}
	if ask.Min != nil {
		p.min = *ask.Min
	}
	if len(ask.Wait) > 0 {
		var ms int64
		var span string
		err := json.Unmarshal(ask.Wait, &ms)
		if p.wait = time.Duration(min(ms, int64(2*fetchWaitMax/time.Millisecond))) * time.Millisecond; err != nil {
			if err = json.Unmarshal(ask.Wait, &span); err == nil {
				p.wait, err = address.ParseDuration(span)
			}
		}
		if err != nil {
			return errcode.New(errcode.BadJSON, "wait of FETCH is no time", `send "500ms", or a number of milliseconds`)
		}
	}
	for _, it := range ask.Partitions {
		p.items = append(p.items, item{it.Topic, it.Partition, address.Position{Kind: address.Offset, N: it.Offset}})
	}
	return nil
}
