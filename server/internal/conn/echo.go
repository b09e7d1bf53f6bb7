package conn

import (
	"slices"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
	part "github.com/trunkline-mq/trunkline/server/internal/partition"
)

// span is the half-open range of offsets of records that are the connection's own, and how often the high watermark had
// fallen when they were written.
type span struct {
	from, to record.Offset
	falls    uint64
}

// mine are the feeds that pass by what their connection publishes, by the id of their topic. Guarded by outbox.mu.
type mine struct {
	deaf   map[string][]*feed
	behind int // feeds that are
}

// spansMax bounds what a feed has to remember. Ranges that follow each other are one: only a feed that is far behind, on a
// topic that others publish to at the same time, comes near it.
const spansMax = 1 << 14

// newFeed returns a feed that hides, from now on, what its connection publishes, if that was asked for.
func (s *subscription) newFeed(t *broker.Topic) *feed {
	f := &feed{topic: t, done: make(chan struct{})}
	if s.f.opt.echo {
		return f
	}
	f.hidden, f.falls = make(map[partition.ID][]span), make(map[partition.ID]uint64)
	b := s.conn.box
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.deaf == nil {
		b.deaf = make(map[string][]*feed)
	}
	b.deaf[t.Meta.ID] = append(b.deaf[t.Meta.ID], f)
	return f
}

// meet starts the feeds of a topic to which the connection is about to publish, before it does: they are to know which
// records are its own.
func (l *subscriptions) meet(t *broker.Topic) {
	l.mu.Lock()
	var want []*subscription
	for _, s := range l.all {
		if s.waits != nil && s.group == "" && address.Match(s.name, []byte(t.Meta.Name)) {
			want = append(want, s)
		}
	}
	l.mu.Unlock()
	for _, s := range want {
		s.appear(t)
	}
}

func (b *outbox) forget(f *feed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	id := f.topic.Meta.ID
	if b.deaf[id] = slices.DeleteFunc(b.deaf[id], func(x *feed) bool { return x == f }); len(b.deaf[id]) == 0 {
		delete(b.deaf, id)
	}
	f.spans = 0
	b.lookBehindLocked(f)
}

// hide keeps n records from base on from the connection's own feeds. It is called before anybody can read them.
func (b *outbox) hide(p *part.Partition, base record.Offset, n int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	to, falls := base+record.Offset(n), p.Falls()
	for _, f := range b.deaf[p.Name.TopicID] {
		list := f.hidden[p.Name.ID]
		if last := len(list) - 1; last >= 0 && list[last].to == base && list[last].falls == falls {
			list[last].to = to
			continue
		}
		f.hidden[p.Name.ID] = append(list, span{base, to, falls})
		f.spans++
		b.lookBehindLocked(f)
	}
}

// unhide forgets own records that the log has lost: what has their offsets now is somebody else's.
func (b *outbox) unhide(f *feed, p *part.Partition) {
	id, falls := p.Name.ID, p.Falls()
	if f.hidden == nil || falls == f.falls[id] {
		return
	}
	end, fell := p.FellSince(f.falls[id])
	f.falls[id] = falls
	b.mu.Lock()
	defer b.mu.Unlock()
	list := f.hidden[id]
	kept := list[:0]
	for _, s := range list {
		if fell && s.falls < falls {
			s.to = min(s.to, end)
		}
		if s.from < s.to {
			kept = append(kept, s)
		}
	}
	f.hidden[id] = kept
	f.spans -= len(list) - len(kept)
	b.lookBehindLocked(f)
}

// hidesLocked reports whether a record is the connection's own. The feed asks in the order of offsets.
func (b *outbox) hidesLocked(f *feed, id partition.ID, off record.Offset) bool {
	list := f.hidden[id]
	for len(list) > 0 && list[0].to <= off {
		list = list[1:]
		f.hidden[id] = list
		f.spans--
		b.lookBehindLocked(f)
	}
	return len(list) > 0 && list[0].from <= off
}

func (b *outbox) lookBehindLocked(f *feed) {
	switch {
	case !f.behind && f.spans > spansMax:
		f.behind = true
		b.behind++
	case f.behind && f.spans <= spansMax/2:
		f.behind = false
		b.behind--
		b.freeLocked()
	}
}
