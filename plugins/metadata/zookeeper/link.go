package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

const (
	// answerBytesMax bounds what a server may send at once; the list of a bucket's keys is the longest.
	answerBytesMax = 16 << 20
	// dialTimeoutMax is the library's own.
	dialTimeoutMax = time.Second
	// againAfter is the pause before a call that lost its connection is made again.
	againAfter = 20 * time.Millisecond
)

// errAbandoned says that a call was not waited for any longer. It may still happen.
var errAbandoned = errors.New("ZooKeeper did not answer in time")

// link is a connection to whichever server answers. The library has no contexts and no deadlines, blocks callers while
// it is not connected, and drops events when nobody reads them; link makes up for that.
//
// A link of the store itself begins anew, with a new ZooKeeper session, whenever it lost its connection: it has nothing
// to lose, and all its watches fire. The library would set them again, but with a race on what it has seen last, by
// which a change can be missed. A link of a session has no watches; it keeps its session while it can, and is over when
// that expired.
type link struct {
	opt    Options
	log    *slog.Logger
	anew   bool           // begin anew
	calls  sync.WaitGroup // calls under way, abandoned ones and ends of clients included
	expire sync.Once
	// expired is closed when a session is over.
	expired chan struct{}

	mu        sync.Mutex
	client    *client
	connected bool
	since     time.Time     // when connected changed last
	changed   chan struct{} // closed and replaced by each change
	closed    bool
	granted   time.Duration // the session's timeout as the server sees it
}

// client is one of the library's, from Connect to Close. All but conn and ended is guarded by the link's mutex.
type client struct {
	conn   *zk.Conn
	ended  <-chan zk.Event // closed when its last goroutine is over
	known  bool            // ZooKeeper knows who we are, or need not
	socket net.Conn
	over   bool
}

func newLink(opt Options, anew bool) (*link, error) {
	l := &link{
		opt: opt, log: opt.Logger, anew: anew, since: time.Now(), granted: opt.Session,
		expired: make(chan struct{}), changed: make(chan struct{}),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l, l.connectLocked()
}

// connectLocked makes a client, which connects by itself.
func (l *link) connectLocked() error {
	c := &client{known: l.opt.Digest == ""}
	conn, events, err := zk.Connect(l.opt.Servers, l.opt.Session, zk.WithHostProvider(&ring{}),
		zk.WithDialer(func(network, address string, timeout time.Duration) (net.Conn, error) {
			return l.dial(c, network, address, timeout)
		}),
		zk.WithEventCallback(func(ev zk.Event) { l.event(c, ev) }),
		zk.WithLogger(quiet{l.log}), zk.WithLogInfo(false), zk.WithMaxBufferSize(answerBytesMax))
	if err != nil {
		return fmt.Errorf("set up ZooKeeper at %s: %w", strings.Join(l.opt.Servers, ","), err)
	}
	c.conn, c.ended = conn, events
	l.client = c
	if !c.known {
		l.calls.Go(func() { l.introduce(c) })
	}
	return nil
}

// quiet makes the library's log lines ours: it reports what it then mends.
type quiet struct{ log *slog.Logger }

// Printf logs for debugging.
func (q quiet) Printf(format string, args ...any) {
	q.log.Debug("zookeeper client: " + fmt.Sprintf(format, args...))
}

func (l *link) dial(c *client, network, address string, timeout time.Duration) (net.Conn, error) {
	timeout = min(timeout, dialTimeoutMax, l.opt.Session/4)
	nc, err := net.DialTimeout(network, address, timeout)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.over {
		return nil, errors.Join(ErrClosed, nc.Close())
	}
	c.socket = nc
	return &wire{Conn: nc, patience: l.opt.Session / 4, granted: l.grant}, nil
}

func (l *link) grant(session time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.granted = session
}

// event is called by the library's goroutines, which must not wait.
func (l *link) event(c *client, ev zk.Event) {
	if ev.Type != zk.EventSession {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || c.over || l.client != nil && l.client != c {
		return
	}
	switch ev.State {
	case zk.StateHasSession:
		l.turnLocked(true, ev.Server)
	case zk.StateDisconnected:
		was := l.connected
		l.turnLocked(false, ev.Server)
		if was && l.anew {
			l.calls.Go(func() { l.replace(c) })
		}
	case zk.StateExpired:
		l.turnLocked(false, ev.Server)
		l.expire.Do(func() { close(l.expired) })
	}
}

func (l *link) turnLocked(connected bool, server string) {
	if l.connected == connected {
		return
	}
	l.connected = connected
	if connected {
		l.log.Info("connected to ZooKeeper", "server", server, "after", time.Since(l.since).Round(time.Millisecond).String())
	} else {
		l.log.Warn("ZooKeeper is away", "server", server)
	}
	l.since = time.Now()
	l.wakeLocked()
}

func (l *link) wakeLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// replace ends a client that lost its connection, and makes another.
func (l *link) replace(c *client) {
	l.mu.Lock()
	if !l.closed && l.client == c {
		if err := l.connectLocked(); err != nil { // no server, which cannot be: it was checked
			l.log.Error("no new connection to ZooKeeper", "err", err)
		}
	}
	l.mu.Unlock()
	l.end(c)
}

// end ends a client, with its session where a server can be told, and returns when its goroutines are gone.
func (l *link) end(c *client) {
	l.mu.Lock()
	again := c.over
	c.over = true
	l.mu.Unlock()
	if !again {
		c.conn.Close() // a second at most
	}
	l.mu.Lock()
	socket := c.socket
	l.mu.Unlock()
	if socket != nil {
		_ = socket.Close() // a server that hangs is not waited for
	}
	for range c.ended { // until the library closes it
	}
}

// introduce tells ZooKeeper who we are, once; the library repeats it on each connection.
func (l *link) introduce(c *client) {
	for {
		err := c.conn.AddAuth("digest", []byte(l.opt.Digest))
		l.mu.Lock()
		if err == nil {
			c.known = true
			l.wakeLocked()
		}
		over, changed := c.known || c.over, l.changed
		l.mu.Unlock()
		if over {
			return
		}
		select {
		case <-changed:
		case <-time.After(againAfter):
		}
	}
}

// await waits until calls make sense.
func (l *link) await(ctx context.Context) error {
	for {
		l.mu.Lock()
		ready, closed, changed := l.connected && l.client.known, l.closed, l.changed
		l.mu.Unlock()
		switch {
		case closed:
			return ErrClosed
		case ready:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return l.unavailable(ctx)
		}
	}
}

// unavailable says what who waited for us should hear. ctx has ended.
func (l *link) unavailable(ctx context.Context) error {
	l.mu.Lock()
	away, servers := !l.connected, strings.Join(l.opt.Servers, ",")
	since := time.Since(l.since).Round(100 * time.Millisecond)
	l.mu.Unlock()
	if away {
		return fmt.Errorf("%w: no connection to ZooKeeper at %s for %s: %w", metadata.ErrUnavailable, servers, since, ctx.Err())
	}
	return fmt.Errorf("%w: ZooKeeper at %s is slow: %w", metadata.ErrUnavailable, servers, ctx.Err())
}

// spawn runs a call, unless the link is closed.
func (l *link) spawn(call func(*zk.Conn)) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	conn := l.client.conn
	l.calls.Go(func() { call(conn) })
	return true
}

// ask makes one call when there is a connection. A call that was abandoned, or lost its connection, may have happened;
// an ErrUnavailable of its own means that it was not made.
func ask[T any](ctx context.Context, l *link, call func(*zk.Conn) (T, error)) (T, error) {
	var none T
	if err := l.await(ctx); err != nil {
		return none, err
	}
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1) // so that an abandoned call can end
	if !l.spawn(func(conn *zk.Conn) {
		v, err := call(conn)
		done <- answer{v, err}
	}) {
		return none, ErrClosed
	}
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
		return none, errAbandoned
	}
}

// read makes a call that changes nothing, as often as it takes until ctx ends.
func read[T any](ctx context.Context, l *link, call func(*zk.Conn) (T, error)) (T, error) {
	for {
		v, err := ask(ctx, l, call)
		if !isLost(err) {
			return v, err
		}
		if !pause(ctx, againAfter) {
			var none T
			return none, l.unavailable(ctx)
		}
	}
}

// isLost says that a call's outcome is not known.
func isLost(err error) bool {
	for _, lost := range []error{
		errAbandoned, zk.ErrConnectionClosed, zk.ErrSessionExpired, zk.ErrNoServer, zk.ErrClosing, zk.ErrSessionMoved,
	} {
		if errors.Is(err, lost) {
			return true
		}
	}
	return false
}

// pause waits; false when ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// session is the ZooKeeper session's id and how long it outlives silence.
func (l *link) session() (id int64, timeout time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.client.conn.SessionID(), l.granted
}

// close ends the link and returns when every goroutine is gone. It is called once.
func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	l.wakeLocked()
	c := l.client
	l.mu.Unlock()
	l.end(c)
	l.calls.Wait()
}
