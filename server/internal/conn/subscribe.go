package conn

import (
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
)

// subscriptions are a connection's, by sid.
type subscriptions struct {
	mu  sync.Mutex
	all map[string]*subscription
}

// subscription feeds one SUB from the log, in a goroutine of its own that ends with UNSUB or the connection.
type subscription struct {
	conn *conn
	sid  []byte
	addr address.Address // its slices are the subscription's own
	name string
	f    framer
	wake chan struct{} // one element: something may have come
	stop chan struct{} // closed by end

	// Guarded by conn.box.mu, so that nothing is delivered after UNSUB was answered.
	delivered int
	max       int // 0: without end
	ended     bool
}

// handleSub starts a subscription: from now, or from the address's position; on a topic that does not exist yet, from
// its first record once it does.
func (c *conn) handleSub(cmd *line.Command) {
	sub, err := c.newSubscription(cmd)
	if err != nil {
		c.fail(cmd, err)
		return
	}
	c.subs.mu.Lock()
	known := c.subs.all[string(sub.sid)] != nil
	c.subs.mu.Unlock()
	if known { // as in NATS, the first one stays
		c.ok()
		return
	}
	// "From now" is after everything this connection published before.
	if !c.box.waitAnswered(c.stop) {
		return
	}
	topic := c.broker().Lookup(sub.addr.Topic)
	var cursors []cursor
	if topic != nil {
		if cursors, err = c.cursors(topic, &sub.addr, address.Latest); err != nil {
			c.fail(cmd, err)
			return
		}
	}
	c.subs.mu.Lock()
	if c.subs.all == nil {
		c.subs.all = make(map[string]*subscription)
	}
	c.subs.all[string(sub.sid)] = sub
	c.subs.mu.Unlock()
	c.ok()
	c.tasks.Go(func() { sub.run(topic, cursors) })
}

func (c *conn) newSubscription(cmd *line.Command) (*subscription, *errcode.Error) {
	switch n := len(cmd.Args); {
	case n == 3:
		return nil, errcode.New(errcode.NotSupported, "groups are not offered yet", "use "+line.Sub.Usage())
	case n != 2:
		return nil, errcode.New(errcode.BadArgs, fmt.Sprintf("SUB has %d arguments", n), "use "+line.Sub.Usage())
	}
	field := append([]byte(nil), cmd.Args[0]...) // the subscription outlives the command
	addr, err := c.readAddress(field)
	if err != nil {
		return nil, err
	}
	sid := append([]byte(nil), cmd.Args[1]...)
	return &subscription{
		conn: c, sid: sid, addr: addr, name: string(addr.Topic), f: framer{opt: c.opt, sid: sid},
		wake: make(chan struct{}, 1), stop: make(chan struct{}),
	}, nil
}

// handleUnsub ends a subscription, at once or when it has delivered max records in all. Nothing is delivered for it
// after the answer.
func (c *conn) handleUnsub(cmd *line.Command) {
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
	c.subs.mu.Lock()
	sub := c.subs.all[string(cmd.Args[0])]
	c.subs.mu.Unlock()
	if sub != nil {
		c.box.mu.Lock()
		sub.max = limit
		over := sub.delivered >= limit
		c.box.mu.Unlock()
		if over {
			sub.end()
		}
	}
	c.ok()
}

// end stops the subscription and forgets it; safe to call twice.
func (s *subscription) end() {
	c := s.conn
	c.box.mu.Lock()
	ended := s.ended
	s.ended = true
	c.box.mu.Unlock()
	if ended {
		return
	}
	close(s.stop)
	c.subs.mu.Lock()
	delete(c.subs.all, string(s.sid))
	c.subs.mu.Unlock()
}

// run delivers until the subscription or the connection ends. A topic that is deleted is waited for, and read from its
// first record when it comes back.
func (s *subscription) run(topic *broker.Topic, cursors []cursor) {
	for {
		if topic == nil {
			if topic, cursors = s.await(); topic == nil {
				return
			}
		}
		if !s.follow(topic, cursors) {
			return
		}
		if !s.conn.opt.nats {
			s.async(errcode.New(errcode.TopicDeleted, fmt.Sprintf("topic %s was deleted", s.name), "the subscription waits for it to come back"))
		}
		topic = nil
	}
}

// await waits for the topic to appear; nil when the subscription ends first.
func (s *subscription) await() (*broker.Topic, []cursor) {
	c := s.conn
	for {
		select {
		case <-c.broker().Appears(s.name):
		case <-s.stop:
			return nil, nil
		case <-c.stop:
			return nil, nil
		}
		topic := c.broker().Lookup([]byte(s.name))
		if topic == nil {
			continue // it is gone again
		}
		cursors, err := c.cursors(topic, &s.addr, address.Earliest)
		if err == nil {
			return topic, cursors
		}
		s.async(err)
		select {
		case <-topic.Gone(): // this one is of no use; wait for the next
		case <-s.stop:
			return nil, nil
		case <-c.stop:
			return nil, nil
		}
	}
}

// follow delivers from the cursors until the topic is gone (true) or the subscription ended (false).
func (s *subscription) follow(topic *broker.Topic, cursors []cursor) bool {
	for i := range cursors {
		cursors[i].part.Watch(s.wake)
		defer cursors[i].part.Unwatch(s.wake)
	}
	for {
		for i := range cursors {
			if !s.drain(&cursors[i]) {
				return false
			}
		}
		select {
		case <-s.wake:
		case <-topic.Gone():
			return true
		case <-s.stop:
			return false
		case <-s.conn.stop:
			return false
		}
	}
}

// drain delivers what is visible in one partition. Damage is reported and passed over.
func (s *subscription) drain(cur *cursor) bool {
	end := cur.part.HighWatermark()
	var r record.Record
	for {
		if !s.conn.box.waitRoom(s.stop) {
			return false
		}
		off, ok, err := cur.record(s.conn.ctx, end, &r)
		var damage *lend.CorruptError
		switch {
		case s.conn.ctx.Err() != nil:
			return false
		case errors.As(err, &damage):
			s.async(readFailed(cur.part, err))
			cur.skip(s.conn.ctx)
		case err != nil:
			s.async(readFailed(cur.part, err))
			return true // tried again when the partition moves
		case !ok:
			return true
		case !s.deliver(cur, off, &r):
			return false
		}
	}
}

// deliver sends one record, unless the subscription has ended.
func (s *subscription) deliver(cur *cursor, off record.Offset, r *record.Record) bool {
	b := s.conn.box
	b.mu.Lock()
	if s.ended {
		b.mu.Unlock()
		return false
	}
	b.buf = s.f.append(b.buf, cur.part, off, r)
	b.ready.Signal()
	s.delivered++
	over := s.max > 0 && s.delivered >= s.max
	b.mu.Unlock()
	if over {
		s.end()
	}
	return !over
}

// async tells the client what happened to the subscription. NATS libraries close themselves on texts they do not know,
// so they hear it as a violation, which they hand to their error handler.
func (s *subscription) async(e *errcode.Error) {
	c := s.conn
	if c.opt.nats {
		c.box.frame(func(dst []byte) []byte {
			return line.AppendNATSErr(dst, fmt.Sprintf("Permissions Violation for Subscription to %q (%s: %s)", s.name, e.Code, e.Text()))
		})
		return
	}
	c.box.frame(func(dst []byte) []byte { return line.AppendAsyncErr(dst, e, "SUB "+s.name) })
}
