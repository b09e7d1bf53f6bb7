package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

// closeTimeout bounds how long the end of a session waits for its keys to be deleted; then others do it.
const closeTimeout = time.Second

// session is a ZooKeeper session with its connection. The store's own connection is another: that one may lose its
// session without anybody losing anything.
type session struct {
	store *Store
	link  *link
	id    metadata.SessionID
	lost  chan struct{}
	end   chan struct{} // closed by Close
	once  sync.Once
	task  sync.WaitGroup
}

var _ metadata.Session = (*session)(nil)

// Session begins a session on a connection of its own.
func (s *Store) Session(ctx context.Context) (metadata.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, done := bound(ctx)
	defer done()
	if err := s.mirror.await(ctx, s.link); err != nil { // the layout is there
		return nil, err
	}
	l, err := newLink(s.opt, false)
	if err != nil {
		return nil, err
	}
	id, err := s.enter(ctx, l)
	if err != nil {
		s.discard(l)
		return nil, err
	}
	n := &session{store: s, link: l, id: id, lost: make(chan struct{}), end: make(chan struct{})}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		n.task.Go(n.hold)
		s.tasks.Go(n.task.Wait)
	}
	s.mu.Unlock()
	if closed {
		l.close()
		return nil, ErrClosed
	}
	return n, nil
}

// discard closes a link that came to nothing, which takes its time; the caller need not wait.
func (s *Store) discard(l *link) {
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.tasks.Go(l.close)
	}
	s.mu.Unlock()
	if closed {
		l.close()
	}
}

// enter makes the node that says that the session lives.
func (s *Store) enter(ctx context.Context, l *link) (metadata.SessionID, error) {
	for {
		if err := l.await(ctx); err != nil {
			return 0, err
		}
		raw, _ := l.session()
		id := metadata.SessionID(raw)
		_, err := ask(ctx, l, func(c *zk.Conn) (string, error) {
			return c.Create(s.layout.alive(id), nil, zk.FlagEphemeral, s.acl)
		})
		select {
		case <-l.expired:
			return 0, fmt.Errorf("%w: before it began", metadata.ErrSessionLost)
		default:
		}
		switch {
		case err == nil, errors.Is(err, zk.ErrNodeExists): // an attempt before this one, in the same session
			return id, nil
		case !isLost(err):
			return 0, s.clarify(err)
		case ctx.Err() != nil:
			return 0, l.unavailable(ctx)
		}
		pause(ctx, againAfter)
	}
}

// hold lives as long as the session.
func (n *session) hold() {
	select {
	case <-n.link.expired:
	case <-n.end:
		ctx, cancel := context.WithTimeout(n.store.life, closeTimeout)
		// If it fails, whoever sees the session end deletes them.
		_ = n.store.drop(ctx, n.store.mirror.owned(), func(id metadata.SessionID) bool { return id == n.id })
		cancel()
	case <-n.store.life.Done():
	}
	close(n.lost)
	n.link.close()
}

// ID is the ZooKeeper session's id.
func (n *session) ID() metadata.SessionID { return n.id }

// Lost is closed when ZooKeeper says that the session expired, by Close, and by the store's end.
func (n *session) Lost() <-chan struct{} { return n.lost }

// Renew makes a sync on the session's connection, which goes to the leader: a server that was cut off from it answers
// pings all the same. The session outlives that by its timeout, of which we promise some less.
func (n *session) Renew(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	ctx, done := bound(ctx)
	defer done()
	for {
		asked := time.Now()
		_, err := ask(ctx, n.link, func(c *zk.Conn) (string, error) { return c.Sync(n.store.layout.live()) })
		select {
		case <-n.lost:
			return time.Time{}, fmt.Errorf("%w: %016x", metadata.ErrSessionLost, uint64(n.id))
		case <-n.link.expired:
			return time.Time{}, fmt.Errorf("%w: %016x", metadata.ErrSessionLost, uint64(n.id))
		default:
		}
		switch {
		case err == nil:
			_, timeout := n.link.session()
			return asked.Add(timeout * 6 / 10), nil
		case !isLost(err):
			return time.Time{}, n.store.clarify(err)
		case !pause(ctx, againAfter):
			return time.Time{}, n.link.unavailable(ctx)
		}
	}
}

// Close ends the session and returns when its connection is closed.
func (n *session) Close() error {
	n.once.Do(func() { close(n.end) })
	n.task.Wait()
	return nil
}
