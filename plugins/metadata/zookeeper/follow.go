package zookeeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"
	"golang.org/x/sync/errgroup"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

const (
	// readParallel is how many reads are under way at once: round trips are what loading costs.
	readParallel = 64
	// chunk is how many changes are read before they are applied.
	chunk = 128
	// retryAfter is the pause after what is not a lost connection.
	retryAfter = 200 * time.Millisecond
	// loadTimeout bounds one attempt at reading everything.
	loadTimeout = 2 * time.Minute
)

// errGap says that changes are missing: everything has to be read anew.
var errGap = errors.New("changes are no longer kept")

// follow keeps the mirror at the end of the log until the store is closed.
func (s *Store) follow() {
	var end watch
	for s.life.Err() == nil {
		err := s.followOn(&end)
		switch {
		case s.life.Err() != nil || errors.Is(err, ErrClosed):
			return
		case err == nil:
		case errors.Is(err, errGap):
			s.log.Warn("metadata is read anew: this store fell behind what ZooKeeper keeps of changes")
			s.mirror.unload()
		case errors.Is(err, metadata.ErrUnavailable): // the link says so itself
		case errors.Is(err, ErrFormat), errors.Is(err, ErrDenied):
			s.mirror.fail(err)
			pause(s.life, retryAfter)
		default:
			s.log.Warn("metadata in ZooKeeper is not followed; tried again", "err", err)
			pause(s.life, retryAfter)
		}
	}
}

// watch is a one-shot watch of ZooKeeper's, with what it watches.
type watch struct {
	path  string
	fired <-chan zk.Event // nil: to be set
}

// followOn does one round: load where nothing is loaded, read up to the end of the log, wait for more.
func (s *Store) followOn(end *watch) error {
	if !s.mirror.isLoaded() {
		ctx, cancel := context.WithTimeout(s.life, loadTimeout)
		defer cancel()
		if err := s.load(ctx); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(s.life, callTimeout)
	defer cancel()
	at := s.mirror.place()
	to, err := s.endOfLog(ctx, s.layout.generation(at.gen), end)
	if errors.Is(err, zk.ErrNoNode) {
		return errGap
	}
	if err != nil {
		return err
	}
	for from := at.seq; from < to; from += chunk {
		if err := s.advance(ctx, place{at.gen, from}, min(from+chunk, to)); err != nil {
			return err
		}
	}
	if s.mirror.place().gen != at.gen {
		return nil // the log goes on there
	}
	// A watch that got lost would be a bug of the library; the ticker makes it a delay.
	tick := time.NewTimer(s.opt.Session)
	defer tick.Stop()
	select {
	case <-end.fired:
		end.fired = nil
	case <-s.poke:
	case <-tick.C:
	case <-s.life.Done():
	}
	return nil
}

// endOfLog is how many commits a generation has, and sets the watch where there is none.
func (s *Store) endOfLog(ctx context.Context, path string, end *watch) (int64, error) {
	if end.fired != nil && end.path == path {
		n, err := s.readNode(ctx, path)
		if err != nil {
			return 0, err
		}
		return int64(n.stat.Version), nil
	}
	type watched struct {
		version int32
		fired   <-chan zk.Event
	}
	w, err := read(ctx, s.link, func(c *zk.Conn) (watched, error) {
		_, stat, fired, err := c.GetW(path)
		if err != nil {
			return watched{}, err
		}
		return watched{stat.Version, fired}, nil
	})
	if err != nil {
		return 0, s.clarify(err)
	}
	end.path, end.fired = path, w.fired
	return int64(w.version), nil
}

// logged is a change as the log has it.
type logged struct {
	change
	revision metadata.Revision
}

// readChanges reads the changes of a generation in [from.seq, to).
func (s *Store) readChanges(ctx context.Context, from place, to int64) ([]logged, error) {
	found := make([]logged, to-from.seq)
	var readers errgroup.Group
	readers.SetLimit(readParallel)
	for i := range found {
		readers.Go(func() error {
			n, err := s.readNode(ctx, s.layout.change(place{from.gen, from.seq + int64(i)}))
			if errors.Is(err, zk.ErrNoNode) {
				return errGap
			}
			if err != nil {
				return err
			}
			c, err := decodeChange(n.data)
			found[i] = logged{c, metadata.Revision(n.stat.Czxid)}
			return err
		})
	}
	return found, readers.Wait()
}

// advance applies the changes of a generation in [from.seq, to).
func (s *Store) advance(ctx context.Context, from place, to int64) error {
	changes, err := s.readChanges(ctx, from, to)
	if err != nil {
		return err
	}
	for i, c := range changes {
		events, err := s.events(ctx, c)
		if err != nil {
			return err
		}
		next := place{from.gen, from.seq + int64(i) + 1}
		if c.Turn {
			next = place{from.gen + 1, 0}
		}
		// The mirror first: who was told of an event finds it in a list.
		s.mirror.apply(c.change, events, c.revision, next)
		s.history.Add(c.revision, events)
	}
	return nil
}

// events makes a change's events, and gets the values that are not in it.
func (s *Store) events(ctx context.Context, c logged) ([]metadata.Event, error) {
	events := make([]metadata.Event, 0, len(c.Events))
	for _, h := range c.Events {
		ev := metadata.Event{
			Entry:   metadata.Entry{Key: h.Key, Value: h.Value, Version: h.Version, Revision: c.revision, Session: h.Session},
			Deleted: h.Deleted,
		}
		if h.Deleted {
			ev.Session = metadata.NoSession
		}
		if h.Elsewhere {
			value, err := s.elsewhere(ctx, c, h)
			if err != nil {
				return nil, err
			}
			ev.Value = value
		}
		events = append(events, ev)
	}
	return events, nil
}

// elsewhere gets a value that is not in the change: we wrote it ourselves, or it is still in the key's node. If it is
// not, a state would be skipped: that is a gap.
func (s *Store) elsewhere(ctx context.Context, c logged, h happen) ([]byte, error) {
	if value, ok := s.mirror.own(c.ID, h.Key); ok {
		return value, nil
	}
	e, err := s.readKey(ctx, h.Key)
	switch {
	case errors.Is(err, zk.ErrNoNode):
		return nil, errGap
	case err != nil:
		return nil, err
	case e.Revision != c.revision:
		return nil, errGap
	}
	return e.Value, nil
}

// load reads everything. Keys are read one by one while others write, so the log is followed, without telling anybody,
// until nothing that was read is newer than the place in the log.
func (s *Store) load(ctx context.Context) error {
	params, err := s.bootstrap(ctx)
	if err != nil {
		return err
	}
	top, err := s.readNode(ctx, s.layout.log())
	if err != nil {
		return err
	}
	var gen int64
	if _, err := fmt.Sscan(string(top.data), &gen); err != nil || gen != int64(top.stat.Version) {
		return fmt.Errorf("%w: the log is in generation %.20q", ErrFormat, top.data)
	}
	start, err := s.readNode(ctx, s.layout.generation(gen))
	if errors.Is(err, zk.ErrNoNode) {
		return errGap
	}
	if err != nil {
		return err
	}
	c := content{
		at: place{gen, int64(start.stat.Version)}, revision: metadata.Revision(start.stat.Mzxid), turn: params.Turn,
	}
	if c.entries, err = s.readAll(ctx); err != nil {
		return err
	}
	if err := s.settle(ctx, &c); err != nil {
		return err
	}
	s.history.Reset(c.revision)
	s.mirror.load(c)
	s.log.Info("metadata is read from ZooKeeper", "keys", len(c.entries), "revision", int64(c.revision))
	return nil
}

func (s *Store) readAll(ctx context.Context) (map[string]metadata.Entry, error) {
	var mu sync.Mutex
	entries := make(map[string]metadata.Entry)
	var readers errgroup.Group
	readers.SetLimit(readParallel)
	for bucket := range bucketCount {
		readers.Go(func() error {
			names, err := s.readChildren(ctx, s.layout.bucket(bucket))
			if err != nil {
				return err
			}
			for _, name := range names {
				key := keyOf(name)
				e, err := s.readKey(ctx, key)
				if errors.Is(err, zk.ErrNoNode) {
					continue // deleted meanwhile; the log knows
				}
				if err != nil {
					return err
				}
				mu.Lock()
				entries[key] = e
				mu.Unlock()
			}
			return nil
		})
	}
	return entries, readers.Wait()
}

// settle follows the log from c's place until c is consistent.
func (s *Store) settle(ctx context.Context, c *content) error {
	for {
		n, err := s.readNode(ctx, s.layout.generation(c.at.gen))
		if errors.Is(err, zk.ErrNoNode) {
			return errGap
		}
		if err != nil {
			return err
		}
		to := int64(n.stat.Version)
		for from := c.at.seq; from < to; from += chunk {
			changes, err := s.readChanges(ctx, place{c.at.gen, from}, min(from+chunk, to))
			if err != nil {
				return err
			}
			for _, ch := range changes {
				if ch.Turn {
					return errGap // once in a generation's life: begin anew
				}
				if err := s.overtake(ctx, c.entries, ch); err != nil {
					return err
				}
				c.revision = ch.revision
			}
		}
		c.at.seq = to
		newest := c.revision
		for _, e := range c.entries {
			newest = max(newest, e.Revision)
		}
		if newest == c.revision {
			return nil
		}
	}
}

// overtake applies a change to entries some of which may be newer.
func (s *Store) overtake(ctx context.Context, entries map[string]metadata.Entry, c logged) error {
	for _, h := range c.Events {
		if entries[h.Key].Revision >= c.revision {
			continue
		}
		switch {
		case h.Deleted:
			delete(entries, h.Key)
		case h.Elsewhere:
			e, err := s.readKey(ctx, h.Key)
			if errors.Is(err, zk.ErrNoNode) {
				delete(entries, h.Key) // later; the log will come to it
				continue
			}
			if err != nil {
				return err
			}
			entries[h.Key] = e // it may be newer still
		default:
			entries[h.Key] = metadata.Entry{Key: h.Key, Value: h.Value, Version: h.Version, Revision: c.revision, Session: h.Session}
		}
	}
	return nil
}

// bootstrap makes the layout where there is none.
func (s *Store) bootstrap(ctx context.Context) (parameters, error) {
	params, err := s.readParameters(ctx)
	if !errors.Is(err, zk.ErrNoNode) {
		return params, err
	}
	if err := s.makeRoot(ctx); err != nil {
		return params, err
	}
	raw, err := json.Marshal(parameters{Format: formatVersion, Turn: turnDefault})
	if err != nil {
		return params, fmt.Errorf("encode the format: %w", err)
	}
	y := s.layout
	ops := []any{s.create(y.log(), []byte("0")), s.create(y.generation(0), nil), s.create(y.root+"/keys", nil), s.create(y.live(), nil)}
	for bucket := range bucketCount {
		ops = append(ops, s.create(y.bucket(bucket), nil))
	}
	ops = append(ops, s.create(y.format(), raw))
	_, err = ask(ctx, s.link, func(c *zk.Conn) ([]zk.MultiResponse, error) { return c.Multi(ops...) })
	if err != nil && !errors.Is(err, zk.ErrNodeExists) {
		return params, s.clarify(fmt.Errorf("make the metadata layout below %s/: %w", y.root, err))
	}
	params, err = s.readParameters(ctx)
	if errors.Is(err, zk.ErrNoNode) {
		return params, fmt.Errorf("%w: there is something else below %s/; choose another chroot", ErrFormat, y.root)
	}
	return params, err
}

func (s *Store) readParameters(ctx context.Context) (parameters, error) {
	var p parameters
	n, err := s.readNode(ctx, s.layout.format())
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(n.data, &p); err != nil || p.Format != formatVersion || p.Turn < 1 || p.Turn > turnDefault {
		return p, fmt.Errorf("%w: the format below %s/ is %.80q", ErrFormat, s.layout.root, n.data)
	}
	return p, nil
}

// makeRoot makes the chroot and what is missing above it.
func (s *Store) makeRoot(ctx context.Context) error {
	for i := 1; i <= len(s.layout.root); i++ {
		if i < len(s.layout.root) && s.layout.root[i] != '/' {
			continue
		}
		path := s.layout.root[:i]
		_, err := read(ctx, s.link, func(c *zk.Conn) (string, error) { return c.Create(path, nil, zk.FlagPersistent, s.acl) })
		if err != nil && !errors.Is(err, zk.ErrNodeExists) {
			return s.clarify(fmt.Errorf("make the chroot %s: %w", path, err))
		}
	}
	return nil
}

func (s *Store) create(path string, data []byte) *zk.CreateRequest {
	return &zk.CreateRequest{Path: path, Data: data, Acl: s.acl, Flags: zk.FlagPersistent}
}
