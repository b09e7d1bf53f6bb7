package zookeeper

import (
	"context"
	"errors"
	"math"
	"strconv"

	"github.com/go-zookeeper/zk"
	"golang.org/x/sync/errgroup"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

// reap deletes the keys of sessions that are over, until the store is closed. Every store does; one is the first.
func (s *Store) reap() {
	for s.life.Err() == nil {
		ended, err := s.reapOnce()
		if err != nil {
			var changed *metadata.ConflictError // another store is at it
			if s.life.Err() == nil && !errors.As(err, &changed) && !errors.Is(err, metadata.ErrUnavailable) && !errors.Is(err, metadata.ErrUnknown) {
				s.log.Warn("keys of sessions that are over are not deleted yet", "err", err)
			}
			pause(s.life, retryAfter)
			continue
		}
		select {
		case <-ended:
		case <-s.life.Done():
		}
	}
}

// reapOnce deletes what sessions left that were over when it began, and returns what fires when sessions come or go.
// Keys are looked at before sessions: a key whose session is then not there has lost it for good.
func (s *Store) reapOnce() (<-chan zk.Event, error) {
	ctx, cancel := context.WithTimeout(s.life, callTimeout)
	defer cancel()
	if err := s.mirror.await(ctx, s.link); err != nil {
		return nil, err
	}
	ended, err := read(ctx, s.link, func(c *zk.Conn) (<-chan zk.Event, error) {
		_, _, fired, err := c.ChildrenW(s.layout.live())
		return fired, err
	})
	if err != nil {
		return nil, s.clarify(err)
	}
	if err := s.refresh(ctx); err != nil {
		return nil, err
	}
	owned := s.mirror.owned()
	names, err := s.readChildren(ctx, s.layout.live())
	if err != nil {
		return nil, err
	}
	alive := make(map[metadata.SessionID]bool, len(names))
	for _, name := range names {
		if id, ok := sessionOf(name); ok {
			alive[id] = true
		}
	}
	return ended, s.drop(ctx, owned, func(id metadata.SessionID) bool { return !alive[id] })
}

// drop deletes those of the keys whose session is over. A *ConflictError says that somebody else changed one meanwhile:
// look again.
func (s *Store) drop(ctx context.Context, owned []metadata.Entry, over func(metadata.SessionID) bool) error {
	var t metadata.Txn
	owners := make(map[string]metadata.SessionID)
	flush := func() error {
		if len(t.Deletes) == 0 {
			return nil
		}
		_, err := s.commitOwned(ctx, t, owners)
		t = metadata.Txn{}
		clear(owners)
		return err
	}
	for _, e := range owned {
		if !over(e.Session) {
			continue
		}
		t.Deletes = append(t.Deletes, e.Key)
		owners[e.Key] = e.Session
		if t.Size() > metadata.TxnBytesMax/2 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func (s *Store) trimLater() {
	select {
	case s.trim <- struct{}{}:
	default:
	}
}

// trimNow takes old changes out of the log whenever it is told to.
func (s *Store) trimNow() {
	for {
		select {
		case <-s.life.Done():
			return
		case <-s.trim:
		}
		ctx, cancel := context.WithTimeout(s.life, callTimeout)
		err := s.trimOnce(ctx)
		cancel()
		if err != nil && s.life.Err() == nil {
			// Whoever trims next takes them, too.
			s.log.Debug("old changes stay in ZooKeeper", "err", err)
		}
	}
}

// trimOnce deletes all but the last changes, and generations that ended before those.
func (s *Store) trimOnce(ctx context.Context) error {
	at := s.mirror.place()
	if at.seq < changesKept {
		return nil
	}
	generations, err := s.readChildren(ctx, s.layout.log())
	if err != nil {
		return err
	}
	for _, name := range generations {
		gen, err := strconv.ParseInt(name, 10, 64)
		if err != nil || gen > at.gen {
			continue
		}
		below := at.seq - changesKept
		if gen < at.gen {
			below = math.MaxInt64
		}
		if err := s.trimGeneration(ctx, gen, below); err != nil {
			return err
		}
		if gen == at.gen {
			continue
		}
		if err := s.remove(ctx, s.layout.generation(gen)); err != nil {
			return err
		}
	}
	return nil
}

// trimGeneration deletes the changes of a generation with numbers below below.
func (s *Store) trimGeneration(ctx context.Context, gen, below int64) error {
	names, err := s.readChildren(ctx, s.layout.generation(gen))
	if err != nil {
		return err
	}
	var removers errgroup.Group
	removers.SetLimit(readParallel)
	for _, name := range names {
		if n, ok := changeNumber(name); ok && n < below {
			removers.Go(func() error { return s.remove(ctx, s.layout.change(place{gen, n})) })
		}
	}
	return removers.Wait()
}

// remove deletes a node; it may be gone already.
func (s *Store) remove(ctx context.Context, path string) error {
	_, err := read(ctx, s.link, func(c *zk.Conn) (struct{}, error) { return struct{}{}, c.Delete(path, -1) })
	if errors.Is(err, zk.ErrNoNode) {
		return nil
	}
	return s.clarify(err)
}
