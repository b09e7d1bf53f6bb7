// Package live is plain NATS in memory: a Router knows who subscribed to which subjects and hands each message to all of
// them, and to one member of every queue group. Nothing is stored; who is not there when a message comes never sees it.
//
// Sinks take messages, and must not block. A Router has one lock of its own, shared with nobody: publishers remember
// what they looked up and meet it only when subscriptions have changed. Subjects are not validated here; a subject with
// an empty token reaches nobody. The package knows no sockets and no frames, and starts no goroutines.
package live

import (
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
)

// Message is one message on its way. Its slices are the publisher's and valid only during the call.
type Message struct {
	Subject []byte
	Reply   []byte // empty: none is wanted
	Header  []byte // a whole header block, or empty
	Payload []byte
	// From is the publisher: subscriptions that are NotFrom it pass the message by.
	From any
}

// Sink is where a subscription's messages go.
type Sink interface {
	// Deliver takes one message, or reports false; then a queue group's message goes to another member. It is called
	// from publishers' goroutines, several at a time, and must not block. It may call Remove.
	Deliver(m *Message) bool
}

// Options say what a subscription wants.
type Options struct {
	Pattern string // a subject, * and > allowed
	Group   string // empty: everything that matches; else the group gets each message once
	NotFrom any    // messages From this are passed by; nil: from everybody
	Sink    Sink
}

// Sub is one subscription.
type Sub struct {
	pattern, group string
	notFrom        any
	// sink is nil once the subscription was removed, so that what publishers remember does not keep it in memory.
	sink atomic.Pointer[Sink]

	// Guarded by the Router's mu.
	at    *node // nil: not in the trie
	index int   // in at's plain, or in its group's members
}

// NewSub returns a subscription that is in no router yet.
func NewSub(o Options) *Sub {
	s := &Sub{pattern: o.Pattern, group: o.Group, notFrom: o.NotFrom}
	s.sink.Store(&o.Sink)
	return s
}

// Router finds the subscriptions of a subject. Its methods are safe for concurrent use.
type Router struct {
	version atomic.Uint64 // counts changes of the trie
	count   atomic.Int64  // subscriptions in it

	mu   sync.RWMutex
	root node
}

// NewRouter returns an empty router.
func NewRouter() *Router { return &Router{} }

// Len is the number of subscriptions.
func (r *Router) Len() int { return int(r.count.Load()) }

// Add lets s receive what is published from now on. It is called once for a Sub.
func (r *Router) Add(s *Sub) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.sink.Load() == nil {
		return
	}
	r.root.insert(s)
	r.count.Add(1)
	r.version.Add(1)
}

// Remove ends a subscription. A publish that is under way may still reach it. It is safe to call twice, or for a Sub
// that was never added.
func (r *Router) Remove(s *Sub) {
	if s.sink.Swap(nil) == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.at == nil {
		return
	}
	s.at.remove(s)
	r.count.Add(-1)
	r.version.Add(1)
}

const (
	// cacheMax bounds what a Cache remembers: a publisher of more subjects than that looks them up again.
	cacheMax = 1024
	// cacheBytesMax is the longest subject that is remembered: others cost a look-up each time, and no memory.
	cacheBytesMax = 256
)

// Cache is what one publisher remembers of its look-ups. The zero value is empty; it is not safe for concurrent use.
type Cache struct {
	known map[string]*entry
	once  matches // of a look-up that is not remembered
}

type entry struct {
	version uint64
	matches
}

// Publish hands m to every subscription of its subject and returns how many took it, a group counting as one.
func (r *Router) Publish(c *Cache, m *Message) int {
	if r.count.Load() == 0 {
		return 0
	}
	if len(m.Subject) > cacheBytesMax {
		return r.PublishOnce(c, m)
	}
	e := c.known[string(m.Subject)]
	if e == nil {
		r.find(m.Subject, &c.once)
		if len(c.once.plain)+len(c.once.groups) == 0 {
			return 0 // nobody: not worth remembering, the trie says so at its first tokens
		}
		if len(c.known) >= cacheMax {
			clear(c.known)
		}
		if c.known == nil {
			c.known = make(map[string]*entry)
		}
		e = &entry{}
		c.known[string(m.Subject)] = e
	}
	if v := r.version.Load() + 1; e.version != v { // + 1: an entry that was never filled has 0
		e.version = v
		r.find(m.Subject, &e.matches)
	}
	return e.deliver(m)
}

// PublishOnce is Publish for a subject that does not come again, such as the reply subject of a request.
func (r *Router) PublishOnce(c *Cache, m *Message) int {
	if r.count.Load() == 0 {
		return 0
	}
	r.find(m.Subject, &c.once)
	n := c.once.deliver(m)
	clear(c.once.plain) // what has ended is not held on to
	clear(c.once.members)
	return n
}

// Visit calls f for the sink of every subscription of a subject, members of groups too.
func (r *Router) Visit(subject []byte, f func(s Sink)) {
	var m matches
	r.find(subject, &m)
	for _, list := range [2][]*Sub{m.plain, m.members} {
		for _, s := range list {
			if sink := s.sink.Load(); sink != nil {
				f(*sink)
			}
		}
	}
}

func (r *Router) find(subject []byte, m *matches) {
	m.reset()
	if hasEmptyToken(subject) {
		return
	}
	r.match(subject, m)
	m.sortGroups()
}

func (r *Router) match(subject []byte, m *matches) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.root.match(subject, m)
}

func (m *matches) deliver(msg *Message) int {
	n := 0
	for _, s := range m.plain {
		if s.deliver(msg) {
			n++
		}
	}
	for i := range m.groups {
		members := m.members[m.groups[i].from:m.groups[i].to]
		first := rand.IntN(len(members))
		for j := range members {
			if members[(first+j)%len(members)].deliver(msg) {
				n++
				break
			}
		}
	}
	return n
}

func (s *Sub) deliver(m *Message) bool {
	sink := s.sink.Load()
	if sink == nil || s.notFrom != nil && s.notFrom == m.From {
		return false
	}
	return (*sink).Deliver(m)
}

// cutToken takes the first token off a pattern.
func cutToken(pattern string) (token, rest string, more bool) { return strings.Cut(pattern, ".") }

func hasEmptyToken(subject []byte) bool {
	last := byte('.')
	for _, c := range subject {
		if c == '.' && last == '.' {
			return true
		}
		last = c
	}
	return last == '.'
}

// Quota counts what a subscription was given and knows when it has had enough. It is for the sink to keep, under the
// lock that orders its deliveries.
type Quota struct {
	delivered int
	max       int // 0: without end
}

// Claim takes one delivery: ok says whether there is one left, last that it was the last.
func (q *Quota) Claim() (ok, last bool) {
	if q.max > 0 && q.delivered >= q.max {
		return false, false
	}
	q.delivered++
	return true, q.delivered == q.max
}

// Limit ends the subscription after so many deliveries in all. It reports true where that many were made already, and for
// 0, which stands for now.
func (q *Quota) Limit(deliveries int) (over bool) {
	if deliveries <= q.delivered {
		return true
	}
	q.max = deliveries
	return false
}
