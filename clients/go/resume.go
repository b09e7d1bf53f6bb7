package trunkline

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

// mainSID names the subscription that the caller asked for. When a connection is the second one or later, it is made without
// a position, for what comes from now on; others beside it, one for each partition that has missed something, catch up
// from where the last connection ended. They are ended when they have reached what the main one delivers.
const mainSID = "1"

// resume is what a subscription knows so that it can go on over another connection. It belongs to the link's reader, and
// between two links to keep.
type resume struct {
	stream  *stream
	dialer  *dialer
	subject string // as in SUB, without a position
	topic   string // empty where the subject can be no single topic
	first   string // the address as it was given
	topics  map[string]*followed
	live    bool // messages of live subjects have come, or may come
	asking  bool // where the one topic stands is asked: what it has that is not known was missed
	sids    int  // so many were used to catch up
	lost    error
	worked  atomic.Bool // the connection was of use
	link    *link

	lastName string // the topic that wants found last
	last     *followed
}

// followed is a topic that the subscription has seen.
type followed struct {
	id    string
	parts map[PartitionID]*progress
}

// progress is how far a partition was delivered.
type progress struct {
	next    Offset
	behind  bool   // what the main subscription delivers does not count yet
	sid     string // of the subscription that catches up; empty: none, or not yet
	target  Offset // the high watermark when that one began
	skipped Offset // the last record of the main one that did not count; -1 without one
	caught  bool   // what the main one delivers below next was delivered by the one that has caught up
}

func newResume(s *stream, d *dialer, addr string) *resume {
	r := &resume{stream: s, dialer: d, first: addr, subject: addr, topics: make(map[string]*followed)}
	a, err := address.Parse([]byte(addr))
	if err != nil {
		return r // the server says what it thinks of it
	}
	a.Position = address.Position{}
	r.subject = a.String()
	if name := string(a.Topic); address.ValidTopic(name) == nil && !address.HasWildcard(name) {
		r.topic = name
	} else {
		r.live = true
	}
	return r
}

// learn asks where the topic stands, which is its end unless the address says otherwise, before it is subscribed to, so that a
// partition that has delivered nothing by the time the connection ends is not passed over.
func (r *resume) learn(l *link) {
	if r.link = l; r.topic == "" {
		return
	}
	// What cannot be sent says so to the SUB behind it.
	_ = l.send("METADATA "+r.topic, request{done: r.identify})
	_ = l.send("OFFSETS "+r.first, request{done: func(a answer) {
		list, err := offsetsOf(a)
		t := r.topics[r.topic]
		if err != nil || t == nil {
			return // there is no such topic: it is waited for
		}
		for _, p := range list {
			t.parts[p.Partition] = &progress{next: max(p.Offset, 0), skipped: -1}
		}
	}})
	r.worked.Store(true)
}

func offsetsOf(a answer) ([]PartitionOffset, error) {
	var list struct {
		Partitions []PartitionOffset `json:"partitions"`
	}
	if a.err != nil {
		return nil, a.err
	}
	return list.Partitions, decode("OFFSETS", a.data, &list)
}

// identify takes METADATA's answer on the one topic, and notices where it is not the one that is known.
func (r *resume) identify(a answer) {
	var m Metadata
	if a.err != nil || decode("METADATA", a.data, &m) != nil || len(m.Topics) != 1 {
		return
	}
	t, known := &m.Topics[0], r.topics[r.topic]
	switch {
	case known != nil && known.id == "" && t.Error == "":
		known.id = t.ID
	case known != nil && (t.Error == errcode.UnknownTopic || t.Error == "" && t.ID != known.id):
		r.forget(r.topic)
		r.stream.tell(&ServerError{Code: errcode.TopicDeleted, Async: true,
			Text: "SUB " + r.subject + ": topic " + r.topic + " was deleted meanwhile; the subscription goes on with the next one of that name"})
		fallthrough
	case known == nil:
		if t.Error == "" {
			r.topics[r.topic] = &followed{id: t.ID, parts: make(map[PartitionID]*progress)}
		}
	}
}

func (r *resume) forget(topic string) {
	delete(r.topics, topic)
	r.last, r.lastName = nil, ""
}

// heard takes what the server says of the subscription: a topic that is made anew begins at offset 0. False for what the main
// subscription says, too.
func (r *resume) heard(err *ServerError) bool {
	if err.Code != errcode.TopicDeleted {
		return true
	}
	text, main := strings.CutPrefix(err.Text, "SUB "+r.subject+": ")
	if !main {
		if text, main = strings.CutPrefix(err.Text, "SUB "+r.first+": "); !main {
			return false
		}
	}
	name := r.topic
	if name == "" { // a pattern's: the others are as they were
		text, _ = strings.CutPrefix(text, "topic ")
		name, _, _ = strings.Cut(text, " ")
	}
	if t := r.topics[name]; t != nil {
		r.forget(name)
		for _, p := range t.parts {
			if p.behind { // what is under way is another topic's now
				r.link.fail(err)
				break
			}
		}
	}
	return true
}

// wants says whether a record is the next one of its partition; a message without a place always is.
func (r *resume) wants(topic string, id PartitionID, o Offset, sid []byte) bool {
	if o < 0 {
		r.live = true
		return true
	}
	if r.last == nil || r.lastName != topic {
		t := r.topics[topic]
		if t == nil {
			t = &followed{parts: make(map[PartitionID]*progress)}
			r.topics[topic] = t
			if topic == r.topic { // it has come to be: which one is it?
				_ = r.link.send("METADATA "+topic, request{done: r.identify})
			}
		}
		r.last, r.lastName = t, topic
	}
	p := r.last.parts[id]
	if p == nil {
		p = &progress{skipped: -1}
		if r.asking {
			p.next, p.behind = -1, true
		}
		r.last.parts[id] = p
	}
	switch {
	case p.behind && string(sid) != p.sid:
		p.skipped = max(p.skipped, o)
		return false
	case !p.behind && string(sid) != mainSID: // the main one delivers it, too
		return false
	case !p.behind && p.caught && o < p.next:
		return false
	}
	p.next, p.caught = o+1, false // it may have fallen: a log can be cut off, which the server tells
	if p.behind && p.next >= p.target && p.next > p.skipped {
		_ = r.link.send("UNSUB "+p.sid, request{done: func(answer) {}}) // a link that has ended needs none
		p.behind, p.sid, p.skipped, p.caught = false, "", -1, true
	}
	return true
}

// keep makes another connection whenever one has ended, until the stream is closed or the server refuses for good.
func (s *stream) keep() {
	r := s.resume
	ctx, cancel := until(context.Background(), s.stop)
	defer cancel()
	for failures := 0; ; {
		s.link.wg.Wait() // s.link changes only here
		if r.worked.Swap(false) {
			failures = 0
		}
		failures++
		err := r.lost
		if final, ok := errors.AsType[*finalError](err); ok {
			s.finish(final.err)
			return
		}
		if failures > 1 {
			err = s.client.opt.backoff.wait(ctx, failures-1)
		} else if s.halted.Load() {
			err = ErrClosed
		} else {
			err = nil
		}
		if err == nil {
			conn, parser, where, dialErr := r.dialer.connect(ctx)
			if err = dialErr; err == nil {
				r.rewind()
				err = s.open(conn, parser, where)
			}
		}
		if err != nil {
			s.finish(err)
			return
		}
		r.again(s.link)
	}
}

// finalError ends a subscription for good.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

// rewind prepares what is known for another connection: nothing that comes by the main subscription counts until it is known
// what was missed.
func (r *resume) rewind() {
	if r.live {
		r.stream.tell(&GapError{Topic: r.subject, Partition: -1, From: -1, To: -1,
			Err: errors.New("messages of live subjects may have been missed while there was no connection")})
	}
	for _, t := range r.topics {
		for _, p := range t.parts {
			p.behind, p.sid, p.skipped, p.caught = true, "", -1, false
		}
	}
}

// again subscribes once more. The first request wakes the reader, so what it needs is ready before.
func (r *resume) again(l *link) {
	r.link, r.asking = l, r.topic != ""
	questions := make(map[string]string) // topic to address
	for name := range r.topics {
		questions[name] = name
	}
	if r.topic != "" {
		questions = map[string]string{r.topic: r.subject}
	}
	_ = l.send("SUB "+r.subject+" "+mainSID, request{done: func(a answer) {
		r.worked.Store(a.err == nil)
		r.refused(a.err)
	}})
	if r.topic != "" {
		_ = l.send("METADATA "+r.topic, request{done: r.identify})
	}
	for name, where := range questions {
		r.ask(name, where)
	}
}

func (r *resume) ask(name, where string) {
	_ = r.link.send("OFFSETS "+where, request{done: func(a answer) {
		r.asking = false
		r.compare(name, a)
		if t := r.topics[name]; t != nil {
			for _, p := range t.parts {
				if p.next < 0 { // its records overtook an answer that did not know it
					r.asking = r.topic != ""
				}
			}
		}
		if r.asking {
			r.ask(name, where)
		}
	}})
}

// refused ends the link where a request of the subscription failed: it is tried again over another one, or, where that
// would not help, never.
func (r *resume) refused(err error) {
	server, ok := errors.AsType[*ServerError](err)
	if !ok {
		return
	}
	if server.Retriable() {
		r.link.fail(server)
		return
	}
	r.link.fail(&finalError{server})
}

// compare holds where a topic stands against what was delivered, and catches up where something was missed.
func (r *resume) compare(name string, a answer) {
	list, err := offsetsOf(a)
	if hasCode(err, errcode.UnknownTopic) || hasCode(err, errcode.UnknownPartition) {
		return // the main subscription waits for it
	}
	if err != nil {
		r.refused(err)
		return
	}
	t := r.topics[name]
	if t == nil {
		return
	}
	for i := range list {
		at := &list[i]
		p := t.parts[at.Partition]
		if p == nil && r.topic == "" { // of what a pattern matches, only what has delivered something is known
			continue
		}
		if p == nil { // it has come to be meanwhile
			p = &progress{next: -1, behind: true, skipped: -1}
			t.parts[at.Partition] = p
		}
		if p.next < 0 {
			p.next = max(at.LogStart, 0)
		}
		if p.behind && p.sid == "" {
			r.catchUp(name, at, p)
		}
	}
}

func (r *resume) catchUp(topic string, at *PartitionOffset, p *progress) {
	if next := min(max(p.next, at.LogStart), max(at.HighWatermark, 0)); next != p.next && at.HighWatermark >= 0 {
		r.stream.tell(&GapError{Topic: topic, Partition: at.Partition, From: p.next, To: next})
		p.next = next
	}
	if p.next >= at.HighWatermark && p.skipped < 0 && at.HighWatermark >= 0 {
		p.behind = false
		return
	}
	r.sids++
	p.sid, p.target = "c"+strconv.Itoa(r.sids), at.HighWatermark
	where := topic + "/" + strconv.Itoa(int(at.Partition)) + "@" + strconv.FormatInt(int64(p.next), 10)
	_ = r.link.send("SUB "+where+" "+p.sid, request{done: func(a answer) { r.refused(a.err) }})
}
