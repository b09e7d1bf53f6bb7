package conn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
	"github.com/trunkline-mq/trunkline/server/internal/cursor"
	"github.com/trunkline-mq/trunkline/server/internal/live"
	part "github.com/trunkline-mq/trunkline/server/internal/partition"
)

// subscriptions are a connection's, by sid.
type subscriptions struct {
	mu  sync.Mutex
	all map[string]*subscription
}

// subscription is one SUB: what is published to live subjects reaches it through the router, and each topic that matches
// is fed to it from the log, by a goroutine that ends with the topic, UNSUB or the connection.
type subscription struct {
	conn  *conn
	sid   []byte
	addr  address.Address // its slices are the subscription's own
	asked string          // the address, as it was subscribed to
	name  string          // its subject
	group string
	heard *live.Sub     // among those who hear live subjects; nil: the address means a topic
	waits *live.Sub     // among those who wait for topics; nil: no topic can match
	stop  chan struct{} // closed by end

	mu    sync.Mutex
	feeds map[string]*feed // the newest of each topic, by its name
	over  bool             // no feed is started any more

	// Guarded by conn.box.mu, so that nothing is delivered after UNSUB was answered.
	f     framer
	quota live.Quota
	ended bool
}

// feed is a topic on its way to a subscription.
type feed struct {
	topic *broker.Topic
	done  chan struct{} // closed when nothing more of it comes

	// Guarded by conn.box.mu, of a connection that does not want to hear itself: what it published and the feed has
	// not passed yet, by partition, in order.
	hidden map[partition.ID][]span
	spans  int  // in hidden
	behind bool // too many: the connection reads no more commands until the feed has passed some

	// Of the feed's goroutine.
	reach *reach                  // nil: not looked up yet
	falls map[partition.ID]uint64 // of each partition, as far as hidden knows of them
}

// reach is what a subscription reads of a topic, from where on.
type reach struct {
	pos     address.Position
	nowMS   int64 // when it was asked for
	cursors []cursor.Cursor
	away    []absent
	why     *errcode.Error // of the first that is away
}

// absent is a partition that cannot be read, and is read when it can be, from where it would have been.
type absent struct {
	id    partition.ID
	end   record.Offset // where it ended when it was asked for; -1: it was not open, so that nothing was written since
	falls uint64        // of it, then
}

// handleSub starts a subscription. Topics that exist are read from now on, or from the address's position; those that
// appear later, from their first record.
func (c *conn) handleSub(cmd *line.Command) {
	sub, err := c.newSubscription(cmd)
	switch {
	case err != nil && c.opt.nats && len(cmd.Args) > 0 && !address.ValidSubject(cmd.Args[0]):
		c.box.say(func(dst []byte) []byte { return line.AppendNATSErr(dst, "Invalid Subject") })
		return
	case err != nil:
		c.fail(cmd, err)
		return
	}
	known, count := c.subs.find(sub.sid)
	if known != nil { // as in NATS, the first one stays
		c.ok()
		return
	}
	if limit := c.srv.tuned.Load().Subscriptions; limit > 0 && count >= limit {
		c.refuseSub(cmd, limit)
		return
	}
	if err := c.subscribe(sub); err != nil {
		c.fail(cmd, err)
	}
}

func (c *conn) refuseSub(cmd *line.Command, limit int) {
	if c.opt.nats {
		c.box.say(func(dst []byte) []byte { return line.AppendNATSErr(dst, "maximum subscriptions exceeded") })
		return
	}
	c.fail(cmd, errcode.New(errcode.LimitExceeded, fmt.Sprintf("the connection has %d subscriptions", limit),
		"end one with UNSUB, or raise limits.subscriptions"))
}

// subscribe makes a subscription known and starts its feeds.
func (c *conn) subscribe(sub *subscription) *errcode.Error {
	topics := sub.matching()
	if len(topics) > 0 && sub.group != "" {
		return errGroup(topics[0].Meta.Name)
	}
	// "From now" is after everything this connection published before.
	if len(topics) > 0 && !c.box.waitAnswered(c.stop) {
		return nil
	}
	feeds := make([]*feed, len(topics))
	faults := make([]*errcode.Error, len(topics))
	for i, t := range topics {
		reach, err := sub.lookUp(t, address.Latest, c.pub.now)
		if !address.HasWildcard(sub.addr.Topic) {
			if err == nil {
				err = reach.why
			}
			if err != nil {
				return err
			}
		}
		faults[i], feeds[i] = err, sub.newFeed(t)
		feeds[i].reach = reach
		sub.feeds[t.Meta.Name] = feeds[i]
	}
	c.subs.put(sub)
	if sub.waits != nil {
		c.srv.waiting.Add(sub.waits)
		for _, t := range sub.matching() { // what appeared meanwhile
			sub.appear(t)
		}
	}
	if sub.heard != nil {
		c.srv.live.Add(sub.heard)
	}
	c.ok()
	for i, f := range feeds {
		if faults[i] != nil {
			sub.async(faults[i])
			sub.endFeed(f)
			continue
		}
		sub.start(f, nil)
	}
	return nil
}

func errGroup(topic string) *errcode.Error {
	return errcode.New(errcode.NotSupported, fmt.Sprintf("%s is a topic, and groups on topics are not offered yet", clip([]byte(topic))),
		"subscribe without a group; every subscription gets every record")
}

func (c *conn) newSubscription(cmd *line.Command) (*subscription, *errcode.Error) {
	n := len(cmd.Args)
	if n != 2 && n != 3 {
		return nil, errcode.New(errcode.BadArgs, fmt.Sprintf("SUB has %d arguments", n), "use "+line.Sub.Usage())
	}
	field := append([]byte(nil), cmd.Args[0]...) // the subscription outlives the command
	addr, err := parseRead(field, c.opt.literal)
	if err != nil {
		return nil, err
	}
	s := &subscription{
		conn: c, sid: append([]byte(nil), cmd.Args[n-1]...), addr: addr, asked: string(field), name: string(addr.Topic),
		stop: make(chan struct{}), feeds: make(map[string]*feed),
	}
	s.f = framer{opt: c.opt, sid: s.sid}
	if n == 3 {
		s.group = string(cmd.Args[1])
	}
	bare := addr.Partition == partition.None && addr.Position.Kind == address.None
	never := neverTopic(s.name, c.srv.opt.Live)
	switch {
	case !address.ValidSubject(s.name):
		return nil, errcode.New(errcode.BadAddress, fmt.Sprintf("%q is no subject", clip(addr.Topic)), "join tokens with single dots; > stands last")
	case never && !bare:
		return nil, errcode.New(errcode.BadAddress, fmt.Sprintf("%q is a live subject and has neither partitions nor positions", clip(addr.Topic)),
			"subscribe to the bare subject, or to a topic")
	case !bare && s.group != "":
		return nil, errGroup(s.name)
	}
	if !never {
		s.waits = live.NewSub(live.Options{Pattern: s.name, Sink: s})
	}
	if bare {
		o := live.Options{Pattern: s.name, Group: s.group, Sink: s}
		if !c.opt.echo {
			o.NotFrom = &c.voice.speaker
		}
		s.heard = live.NewSub(o)
	}
	return s, nil
}

// neverTopic reports whether nothing that a pattern matches can be a topic: by a token no topic's name has, or because
// live matches all of it. Where it is in doubt it says no.
func neverTopic(pattern string, patterns []string) bool {
	if !address.HasWildcard(pattern) {
		return address.IsLive([]byte(pattern), patterns)
	}
	tokens := strings.Split(pattern, ".")
	for i, token := range tokens {
		if token != "*" && token != ">" && (address.ValidTopic("x"+token) != nil || i == 0 && address.ValidTopic(token+".x") != nil) {
			return true
		}
	}
	for _, p := range patterns {
		// As long as > is not taken for one token, a pattern that matches another's text matches what it stands for.
		if address.Match(p, pattern) && (tokens[len(tokens)-1] != ">" || strings.HasSuffix(p, ">")) {
			return true
		}
	}
	return false
}

// matching returns the topics that the subscription is for and that exist now, by name.
func (s *subscription) matching() []*broker.Topic {
	if s.waits == nil {
		return nil
	}
	if !address.HasWildcard(s.name) {
		if t := s.conn.broker().Lookup(s.addr.Topic); t != nil {
			return []*broker.Topic{t}
		}
		return nil
	}
	var found []*broker.Topic
	for _, t := range s.conn.broker().Topics() {
		if name := []byte(t.Meta.Name); address.Match(s.name, name) && !address.IsLive(name, s.conn.srv.opt.Live) {
			found = append(found, t)
		}
	}
	slices.SortFunc(found, byName)
	return found
}

// find returns the subscription of a sid, nil where there is none, and how many there are.
func (l *subscriptions) find(sid []byte) (*subscription, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[string(sid)], len(l.all)
}

func (l *subscriptions) put(s *subscription) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = make(map[string]*subscription)
	}
	l.all[string(s.sid)] = s
}

// waitsFor returns the sid of a subscription that would get a reply, nil where there is none.
func (l *subscriptions) waitsFor(reply []byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.all {
		if s.heard != nil && s.group == "" && address.Match(s.name, reply) {
			return s.sid
		}
	}
	return nil
}

func (l *subscriptions) endAll() {
	l.mu.Lock()
	all := make([]*subscription, 0, len(l.all))
	for _, s := range l.all {
		all = append(all, s)
	}
	l.mu.Unlock()
	for _, s := range all {
		s.end()
	}
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
	if sub, _ := c.subs.find(cmd.Args[0]); sub != nil {
		c.box.mu.Lock()
		over := sub.quota.Limit(limit)
		c.box.mu.Unlock()
		if over {
			sub.end()
		}
	}
	c.ok()
}

// end stops the subscription and forgets it; safe to call twice. On return no feed is started any more.
func (s *subscription) end() {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.conn.box.mu.Lock()
	ended := s.ended
	s.ended = true
	s.conn.box.mu.Unlock()
	if !ended {
		s.forget()
	}
}

// forget takes a subscription that has ended out of where it is known. It is called once.
func (s *subscription) forget() {
	close(s.stop)
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	if s.heard != nil {
		s.conn.srv.live.Remove(s.heard)
	}
	if s.waits != nil {
		s.conn.srv.waiting.Remove(s.waits)
	}
	l := &s.conn.subs
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all[string(s.sid)] == s {
		delete(l.all, string(s.sid))
	}
}

// appear feeds a topic that has come to be, from its first record; once, however often it is told. A group has no share
// in topics.
func (s *subscription) appear(t *broker.Topic) {
	if s.group != "" {
		s.conn.log.Warn("queue subscription is without messages: its subject is a topic now; name it in subjects.live, or set topics.auto_create: false",
			"subject", s.name, "topic", t.Meta.Name)
		s.async(errGroup(t.Meta.Name))
		return
	}
	s.mu.Lock()
	before := s.feeds[t.Meta.Name]
	if before != nil && before.topic.Meta.ID == t.Meta.ID {
		s.mu.Unlock()
		return
	}
	f := s.newFeed(t)
	s.feeds[t.Meta.Name] = f
	s.mu.Unlock()
	s.start(f, before)
}

// start runs a feed, after the one before it: of a topic of the same name that is gone. Where it was not looked up yet, it
// begins at the first record, or at the address's position.
func (s *subscription) start(f, before *feed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		s.endFeed(f)
		return
	}
	s.conn.task(func() {
		defer s.endFeed(f)
		if before != nil {
			select {
			case <-before.done:
			case <-s.stop:
				return
			}
		}
		s.run(f)
	})
}

// endFeed says that nothing more of a feed comes.
func (s *subscription) endFeed(f *feed) {
	if f.hidden != nil {
		s.conn.box.forget(f)
	}
	close(f.done)
}

// run delivers a topic until it is gone, or the subscription ends.
func (s *subscription) run(f *feed) {
	topic := f.topic
	if f.reach == nil {
		var err *errcode.Error
		if f.reach, err = s.lookUp(topic, address.Earliest, time.Now().UnixMilli()); err != nil {
			s.async(err)
			return
		}
	}
	if f.reach.why != nil {
		s.async(f.reach.fault())
	}
	if s.follow(f) && !s.f.opt.nats {
		s.async(errcode.New(errcode.TopicDeleted, fmt.Sprintf("topic %s was deleted", topic.Meta.Name), "the subscription waits for it to come back"))
	}
}

// lookUp finds where the subscription reads a topic from; none is the position where the address has none. An error is
// one that trying again does not mend.
func (s *subscription) lookUp(t *broker.Topic, none address.PositionKind, nowMS int64) (*reach, *errcode.Error) {
	r := &reach{pos: s.addr.Position, nowMS: nowMS}
	if r.pos.Kind == address.None {
		r.pos.Kind = none
	}
	for id, last := meant(t, &s.addr); id <= last; id++ {
		a := absent{id: id, end: -1}
		p, err := t.Partition(id)
		if err == nil {
			a.end, a.falls = p.HighWatermark(), p.Falls()
			err = r.take(s.conn.ctx, p, a)
		}
		switch {
		case err == nil:
		case !err.Code.Retriable():
			return nil, err
		default:
			r.away = append(r.away, a)
			if r.why == nil {
				r.why = err
			}
		}
	}
	return r, nil
}

// take adds a cursor of a partition, which stands where the position was when it was asked for.
func (r *reach) take(ctx context.Context, p *part.Partition, a absent) *errcode.Error {
	end := a.end
	if end < 0 {
		end = p.Opened()
	}
	if fell, ok := p.FellSince(a.falls); ok {
		end = min(end, fell)
	}
	off, err := cursor.SeekBelow(ctx, p, r.pos, end, r.nowMS)
	if err == nil {
		r.cursors = append(r.cursors, cursor.New(p, off))
	}
	return err
}

// fault is what is told of the partitions that are away.
func (r *reach) fault() *errcode.Error {
	what := r.why.What
	if more := len(r.away) - 1; more > 0 {
		what = fmt.Sprintf("%s (and %d more of its topic)", what, more)
	}
	return errcode.Wrap(r.why.Code, r.why.Err, what, "the subscription takes it up when it is served again")
}

// takeUp adds the partitions that were away and can be read now.
func (s *subscription) takeUp(r *reach, topic *broker.Topic, wake chan struct{}) {
	still := r.away[:0]
	for _, a := range r.away {
		p, err := topic.Partition(a.id)
		if err != nil { // it is not open yet
			still = append(still, a)
			continue
		}
		p.Watch(wake) // first, so that nothing is missed
		err = r.take(s.conn.ctx, p, a)
		switch {
		case err == nil:
		case err.Code.Retriable():
			still = append(still, a)
		default:
			p.Unwatch(wake)
			s.async(err)
		}
	}
	r.away = still
}

// unwatch ends what wakes a feed.
func (r *reach) unwatch(topic *broker.Topic, wake chan struct{}) {
	for i := range r.cursors {
		r.cursors[i].Partition().Unwatch(wake)
	}
	for _, a := range r.away {
		if p, err := topic.Partition(a.id); err == nil {
			p.Unwatch(wake)
		}
	}
}

// follow delivers from the cursors until the topic is gone (true) or the subscription ended (false). Partitions that
// could not be read join in when they can be; those that the topic grows by are read from their first record.
func (s *subscription) follow(f *feed) bool {
	topic, r := f.topic, f.reach
	wake := make(chan struct{}, 1) // one element: something may have come
	for i := range r.cursors {
		r.cursors[i].Partition().Watch(wake)
	}
	defer func() { r.unwatch(topic, wake) }()
	again := (<-chan time.Time)(nil) // partitions that are away are looked at; nil: none is, or it is time
	for {
		if again == nil && len(r.away) > 0 {
			if s.takeUp(r, topic, wake); len(r.away) > 0 {
				again = time.After(awayPause)
			}
		}
		for i := range r.cursors {
			if !s.drain(f, &r.cursors[i]) {
				return false
			}
		}
		select {
		case <-wake:
		case <-again:
			again = nil
		case <-topic.Altered():
			grown := topic.Current()
			r.cursors = s.grow(r.cursors, topic, grown, wake)
			topic, again = grown, nil
		case <-topic.Gone():
			return true
		case <-s.stop:
			return false
		case <-s.conn.stop:
			return false
		}
	}
}

// awayPause is how long a partition that cannot be read is left alone, unless the topic changes: what it is asked for may be
// a scan.
const awayPause = time.Second

// grow adds the partitions that grown has beyond topic's, where the subscription reads all of them.
func (s *subscription) grow(cursors []cursor.Cursor, topic, grown *broker.Topic, wake chan struct{}) []cursor.Cursor {
	if s.addr.Partition != partition.None {
		return cursors
	}
	for id := topic.Meta.Partitions; id < grown.Meta.Partitions; id++ {
		p, err := grown.Partition(partition.ID(id))
		if err != nil {
			s.async(err)
			continue
		}
		p.Watch(wake)
		cursors = append(cursors, cursor.New(p, 0))
	}
	return cursors
}

// drain delivers what is visible in one partition. Damage is reported and passed over.
func (s *subscription) drain(f *feed, cur *cursor.Cursor) bool {
	end := cur.Partition().HighWatermark()
	var r record.Record
	for {
		if !s.conn.box.hasFeedRoom() {
			cur.Rest() // a connection may have any number of these: only what it reads now is held in memory
			if !s.conn.box.waitFeedRoom(s.stop) {
				return false
			}
		}
		off, ok, err := cur.Record(s.conn.ctx, end, &r)
		s.conn.box.unhide(f, cur.Partition())
		switch {
		case s.conn.ctx.Err() != nil:
			return false
		case err != nil && !s.overcome(cur, err):
			return true // tried again when the partition moves
		case err != nil:
			end = cur.Partition().HighWatermark() // it may be lower now
		case !ok:
			return true
		case !s.deliver(f, cur, off, &r):
			return false
		}
	}
}

// overcome reports a failure to read, and whether the cursor could be moved on to where reading may go on.
func (s *subscription) overcome(cur *cursor.Cursor, err error) bool {
	s.async(cursor.ReadFailed(cur.Partition(), err))
	var damage *lend.CorruptError
	var fell *part.FellError
	switch start := cur.Partition().Log().Stats().LogStart; {
	case errors.As(err, &fell): // the log is shorter: what was delivered beyond its end is gone
	case errors.As(err, &damage):
		cur.Skip(s.conn.ctx)
	case errors.Is(err, storage.ErrOffsetOutOfRange) && start > cur.Offset(): // trimmed meanwhile
		cur.Advance(start)
	default:
		return false
	}
	return true
}

// deliver sends one record, unless the subscription has ended.
func (s *subscription) deliver(f *feed, cur *cursor.Cursor, off record.Offset, r *record.Record) bool {
	taken, last := s.write(f, cur, off, r)
	if last {
		s.forget()
	}
	return taken && !last
}

func (s *subscription) write(f *feed, cur *cursor.Cursor, off record.Offset, r *record.Record) (taken, last bool) {
	b := s.conn.box
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.ended || b.shut {
		return false, false
	}
	if f.hidden != nil && b.hidesLocked(f, cur.Partition().Name.ID, off) {
		return true, false
	}
	_, last = s.quota.Claim()
	s.ended = last
	b.buf = s.f.append(b.buf, cur.Partition(), off, r)
	b.ready.Signal()
	return true, last
}

// async tells the client what happened to the subscription. NATS libraries close themselves on texts they do not know,
// so they hear it as a violation, which they hand to their error handler.
func (s *subscription) async(e *errcode.Error) {
	box := s.conn.box
	if s.f.opt.nats {
		text := fmt.Sprintf("Permissions Violation for Subscription to %q (%s: %s)", s.asked, e.Code, e.Text())
		if s.group != "" {
			text = fmt.Sprintf("Permissions Violation for Subscription to %q using queue %q (%s: %s)", s.asked, s.group, e.Code, e.Text())
		}
		box.frame(func(dst []byte) []byte { return line.AppendNATSErr(dst, text) })
		return
	}
	box.frame(func(dst []byte) []byte { return line.AppendAsyncErr(dst, e, "SUB "+s.asked) })
}
