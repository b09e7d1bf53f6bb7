// Package zookeeper is the metadata store of a cluster: keys in ZooKeeper, 3.5 or newer.
//
// ZooKeeper's own watches skip states, and its reads are of one node at a time. So each commit also appends what it
// changed to a log in ZooKeeper (see layout), and each store follows that log into a copy in memory, from which lists are
// answered, after a sync, as of one revision, and watchers are fed without gaps. A revision is a zxid.
//
// Sessions are ZooKeeper sessions with a connection each; what they own are ordinary nodes, and when a session is over
// whichever store sees it first deletes them with a commit like any other.
//
// When ZooKeeper is away, calls wait for it as long as their context allows and then say so; watches and sessions live
// on. A commit whose connection was lost is looked for in the log, and made again when it is not there; the log's
// version as a guard makes sure that it cannot happen twice. What could not be settled in time is ErrUnknown.
//
// It assumes that nobody else writes below its chroot, and that all metadata fits into memory, as ZooKeeper does.
package zookeeper

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/metadata/history"
)

// Name is how configuration names this store.
const Name = "zookeeper"

// Version is this implementation's.
const Version = "1.0.0"

const (
	// callTimeout bounds calls whose context says nothing shorter.
	callTimeout = 10 * time.Second
	// rootBytesMax and digestBytesMax keep what is added to each operation within what a transaction allows for.
	rootBytesMax   = 100
	digestBytesMax = 128
	// sessionMin is what a busy machine can still keep.
	sessionMin = 500 * time.Millisecond
)

var (
	// ErrFormat says that what is below the chroot is not ours, or of a newer version.
	ErrFormat = errors.New("not metadata that this version can read")
	// ErrDenied says that the nodes belong to somebody else.
	ErrDenied = errors.New("ZooKeeper denies access: the nodes were made with another digest, or with one where there is none now")
	// ErrOptions says that the store was set up wrongly.
	ErrOptions = errors.New("ZooKeeper is not set up right")
	// ErrClosed says that the store or watch was closed.
	ErrClosed = history.ErrClosed
)

// Options say where ZooKeeper is and what is ours in it.
type Options struct {
	Servers []string      // HOST:PORT each
	Chroot  string        // "/trunkline"; made where it is missing. "" and "/" are the root
	Session time.Duration // how long a session outlives silence, within what the servers allow
	Digest  string        // "user:password", who may read and write; empty: everybody
	Logger  *slog.Logger  // nil: slog.Default()
}

func (o *Options) check() error {
	if len(o.Servers) == 0 {
		return fmt.Errorf("%w: no server is named", ErrOptions)
	}
	for _, s := range o.Servers {
		if _, port, err := net.SplitHostPort(s); err != nil || port == "" {
			return fmt.Errorf("%w: %q is not HOST:PORT", ErrOptions, s)
		}
	}
	if o.Chroot = strings.TrimSuffix(o.Chroot, "/"); o.Chroot != "" {
		if err := metadata.CheckKey(o.Chroot); err != nil || len(o.Chroot) > rootBytesMax {
			return fmt.Errorf("%w: %q is no chroot of at most %d bytes", ErrOptions, o.Chroot, rootBytesMax)
		}
	}
	if user, password, ok := strings.Cut(o.Digest, ":"); o.Digest != "" && (!ok || user == "" || password == "") || len(o.Digest) > digestBytesMax {
		return fmt.Errorf("%w: the digest is not USER:PASSWORD of at most %d bytes", ErrOptions, digestBytesMax)
	}
	if o.Session < sessionMin {
		return fmt.Errorf("%w: a session of %s; at least %s", ErrOptions, o.Session, sessionMin)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return nil
}

// acl is who may do what with our nodes.
func (o *Options) acl() []zk.ACL {
	if user, password, ok := strings.Cut(o.Digest, ":"); ok {
		return zk.DigestACL(zk.PermAll, user, password)
	}
	return zk.WorldACL(zk.PermAll)
}

// Store is one broker's view. It is safe for concurrent use.
type Store struct {
	opt     Options
	log     *slog.Logger
	layout  layout
	acl     []zk.ACL
	link    *link
	mirror  *mirror
	history *history.History

	life   context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	poke   chan struct{} // wakes the follower; one is enough
	trim   chan struct{} // wakes the trimmer; one is enough

	mu     sync.Mutex
	closed bool
}

var _ metadata.Store = (*Store)(nil)

// Open returns a store at once; that ZooKeeper answers, the first call finds out.
func Open(opt Options) (*Store, error) {
	if err := opt.check(); err != nil {
		return nil, err
	}
	l, err := newLink(opt, true)
	if err != nil {
		return nil, err
	}
	s := &Store{
		opt: opt, log: opt.Logger, layout: layout{root: opt.Chroot}, acl: opt.acl(),
		link: l, mirror: newMirror(), history: history.New(0),
		poke: make(chan struct{}, 1), trim: make(chan struct{}, 1),
	}
	s.life, s.cancel = context.WithCancel(context.Background())
	s.tasks.Go(s.follow)
	s.tasks.Go(s.reap)
	s.tasks.Go(s.trimNow)
	return s, nil
}

// Describe tells name and version.
func (s *Store) Describe(ctx context.Context) (metadata.Description, error) {
	return metadata.Description{Name: Name, Version: Version, Shared: true}, ctx.Err()
}

// bound gives a call its deadline: a little less than its caller's, who would rather hear a reason than see the time
// pass.
func bound(ctx context.Context) (context.Context, context.CancelFunc) {
	left := callTimeout
	if end, ok := ctx.Deadline(); ok {
		left = min(left, time.Until(end)*9/10)
	}
	return context.WithTimeout(ctx, left)
}

// Get reads one key, after a sync.
func (s *Store) Get(ctx context.Context, key string) (metadata.Entry, error) {
	if err := errors.Join(metadata.CheckKey(key), ctx.Err()); err != nil {
		return metadata.Entry{}, err
	}
	ctx, done := bound(ctx)
	defer done()
	if err := s.mirror.await(ctx, s.link); err != nil { // or we could not tell a missing key from a missing everything
		return metadata.Entry{}, err
	}
	if err := s.sync(ctx); err != nil {
		return metadata.Entry{}, err
	}
	e, err := s.readKey(ctx, key)
	if errors.Is(err, zk.ErrNoNode) {
		return metadata.Entry{}, fmt.Errorf("%w: %s", metadata.ErrNotFound, key)
	}
	return e, err
}

// sync lets the server we talk to catch up with the leader.
func (s *Store) sync(ctx context.Context) error {
	_, err := read(ctx, s.link, func(c *zk.Conn) (string, error) { return c.Sync(s.layout.log()) })
	return s.clarify(err)
}

// node is a node's data with its stat.
type node struct {
	data []byte
	stat *zk.Stat
}

func (s *Store) readNode(ctx context.Context, path string) (node, error) {
	n, err := read(ctx, s.link, func(c *zk.Conn) (node, error) {
		data, stat, err := c.Get(path)
		return node{data, stat}, err
	})
	return n, s.clarify(err)
}

func (s *Store) readChildren(ctx context.Context, path string) ([]string, error) {
	names, err := read(ctx, s.link, func(c *zk.Conn) ([]string, error) {
		names, _, err := c.Children(path)
		return names, err
	})
	return names, s.clarify(err)
}

func (s *Store) readKey(ctx context.Context, key string) (metadata.Entry, error) {
	n, err := s.readNode(ctx, s.layout.key(key))
	if err != nil {
		return metadata.Entry{}, err
	}
	return decodeEntry(key, n.data, n.stat)
}

// clarify says in our words what ZooKeeper says of rights.
func (s *Store) clarify(err error) error {
	if errors.Is(err, zk.ErrNoAuth) || errors.Is(err, zk.ErrAuthFailed) {
		return fmt.Errorf("%w (below %s)", ErrDenied, s.layout.root+"/")
	}
	return err
}

// List reads all keys below prefix, from memory, when that is as new as ZooKeeper.
func (s *Store) List(ctx context.Context, prefix string) (metadata.Snapshot, error) {
	if err := errors.Join(metadata.CheckPrefix(prefix), ctx.Err()); err != nil {
		return metadata.Snapshot{}, err
	}
	ctx, done := bound(ctx)
	defer done()
	if err := s.refresh(ctx); err != nil {
		return metadata.Snapshot{}, err
	}
	return s.mirror.list(prefix), nil
}

// Watch watches prefix. ctx bounds only how long it is found out what the newest revision is.
func (s *Store) Watch(ctx context.Context, prefix string, after metadata.Revision) (metadata.Watcher, error) {
	if err := errors.Join(metadata.CheckPrefix(prefix), ctx.Err()); err != nil {
		return nil, err
	}
	ctx, done := bound(ctx)
	defer done()
	if err := s.refresh(ctx); err != nil {
		return nil, err
	}
	return s.history.Watch(prefix, after)
}

// refresh returns when the mirror holds every commit that had returned before, whoever made it.
func (s *Store) refresh(ctx context.Context) error {
	for {
		if err := s.mirror.await(ctx, s.link); err != nil {
			return err
		}
		gen := s.mirror.place().gen
		if err := s.sync(ctx); err != nil {
			return err
		}
		n, err := s.readNode(ctx, s.layout.generation(gen))
		switch {
		case errors.Is(err, zk.ErrNoNode): // trimmed away meanwhile; the mirror will find out
			s.wake()
			if !pause(ctx, againAfter) {
				return s.link.unavailable(ctx)
			}
			continue
		case err != nil:
			return err
		}
		if err := s.reach(ctx, place{gen, int64(n.stat.Version)}); err != nil {
			return err
		}
		if s.mirror.place().gen == gen {
			return nil
		}
	}
}

// reach waits until the mirror is at p.
func (s *Store) reach(ctx context.Context, p place) error {
	for {
		at, changed := s.mirror.watch()
		if !at.before(p) {
			return nil
		}
		s.wake()
		select {
		case <-changed:
		case <-ctx.Done():
			return s.link.unavailable(ctx)
		}
	}
}

func (s *Store) wake() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// Close ends watches and sessions, gives up the calls under way, and returns when every goroutine is gone. It is safe
// to call twice.
func (s *Store) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if !again {
		s.cancel() // sessions end with it
		s.history.Close()
		s.mirror.fail(ErrClosed)
		s.link.close()
	}
	s.tasks.Wait()
	return nil
}

// randomID names a commit.
func randomID() string { return rand.Text() }
