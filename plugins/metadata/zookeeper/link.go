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

// link is a connection to whichever server answers, with one ZooKeeper session at a time. The library has no contexts
// and no deadlines, blocks callers while it is not connected, drops events when nobody reads them, and goes on with a
// new session when the old one expired; link makes up for that.
type link struct {
	opt   Options
	log   *slog.Logger
	conn  *zk.Conn
	ended <-chan zk.Event // closed when the library's last goroutine is over
	calls sync.WaitGroup  // calls under way, abandoned ones included

	expired chan struct{} // closed when the first session is over

	mu        sync.Mutex
	connected bool
	known     bool          // ZooKeeper knows who we are, or need not
	since     time.Time     // when connected changed last
	changed   chan struct{} // closed and replaced by each change
	isExpired bool
	closed    bool
	socket    net.Conn
	granted   time.Duration // the session's timeout as the server sees it
}

func newLink(opt Options) (*link, error) {
	l := &link{
		opt: opt, log: opt.Logger, known: opt.Digest == "", since: time.Now(), granted: opt.Session,
		expired: make(chan struct{}), changed: make(chan struct{}),
	}
	conn, events, err := zk.Connect(opt.Servers, opt.Session, zk.WithHostProvider(&ring{}), zk.WithDialer(l.dial),
		zk.WithEventCallback(l.event), zk.WithLogger(quiet{opt.Logger}), zk.WithLogInfo(false), zk.WithMaxBufferSize(answerBytesMax))
	if err != nil {
		return nil, fmt.Errorf("set up ZooKeeper at %s: %w", strings.Join(opt.Servers, ","), err)
	}
	l.conn, l.ended = conn, events
	if !l.known {
		l.calls.Go(l.introduce)
	}
	return l, nil
}

// quiet makes the library's log lines ours: it reports what it then mends.
type quiet struct{ log *slog.Logger }

// Printf logs for debugging.
func (q quiet) Printf(format string, args ...any) {
	q.log.Debug("zookeeper client: " + fmt.Sprintf(format, args...))
}

func (l *link) dial(network, address string, timeout time.Duration) (net.Conn, error) {
	timeout = min(timeout, dialTimeoutMax, l.opt.Session/4)
	nc, err := net.DialTimeout(network, address, timeout)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.Join(ErrClosed, nc.Close())
	}
	l.socket = nc
	return &wire{Conn: nc, patience: l.opt.Session / 4, granted: l.grant}, nil
}

func (l *link) grant(session time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.granted = session
}

// event is called by the library's goroutines, which must not wait.
func (l *link) event(ev zk.Event) {
	if ev.Type != zk.EventSession {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.connected
	switch ev.State {
	case zk.StateHasSession:
		l.connected = true
	case zk.StateDisconnected:
		l.connected = false
	case zk.StateExpired:
		l.connected = false
		if !l.isExpired {
			l.isExpired = true
			close(l.expired)
		}
	default:
		return
	}
	if was == l.connected || l.closed {
		return
	}
	if l.connected {
		l.log.Info("connected to ZooKeeper", "server", ev.Server, "away", time.Since(l.since).Round(time.Millisecond))
	} else {
		l.log.Warn("ZooKeeper is away", "server", ev.Server)
	}
	l.since = time.Now()
	l.wakeLocked()
}

func (l *link) wakeLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// introduce tells ZooKeeper who we are, once; the library repeats it on each connection.
func (l *link) introduce() {
	for {
		err := l.conn.AddAuth("digest", []byte(l.opt.Digest))
		l.mu.Lock()
		if err == nil {
			l.known = true
			l.wakeLocked()
		}
		over, changed := l.known || l.closed, l.changed
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
		ready, closed, changed := l.connected && l.known, l.closed, l.changed
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
func (l *link) spawn(call func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.calls.Go(call)
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
	if !l.spawn(func() {
		v, err := call(l.conn)
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
	return l.conn.SessionID(), l.granted
}

// close ends the session, where a server can be told, and returns when every goroutine is gone. It is called once.
func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	l.wakeLocked()
	l.mu.Unlock()
	l.conn.Close() // a second at most
	l.mu.Lock()
	socket := l.socket
	l.mu.Unlock()
	if socket != nil {
		_ = socket.Close() // a server that hangs is not waited for
	}
	for range l.ended { // until the library closes it
	}
	l.calls.Wait()
}
