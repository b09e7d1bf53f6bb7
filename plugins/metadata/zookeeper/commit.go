package zookeeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-zookeeper/zk"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

// trimEvery is how many commits pass before old changes are taken away, and changesKept how many stay: a store that is
// further behind reads everything anew.
const (
	trimEvery   = 64
	changesKept = 512
)

// Commit applies t. It goes on until it is clear what happened, or ctx ends.
func (s *Store) Commit(ctx context.Context, t metadata.Txn) (metadata.Revision, error) {
	return s.commitOwned(ctx, t, nil)
}

// commitOwned is Commit, if the keys in owners, which t touches, still belong to those sessions: versions do not tell,
// because a key that was deleted and made again starts over.
func (s *Store) commitOwned(ctx context.Context, t metadata.Txn, owners map[string]metadata.SessionID) (metadata.Revision, error) {
	if err := errors.Join(t.Check(), ctx.Err()); err != nil {
		return 0, err
	}
	ctx, done := bound(ctx)
	defer done()
	c := &commit{store: s, owners: owners, pending: &pending{id: randomID(), txn: t}}
	s.mirror.begin(c.pending)
	defer s.mirror.end(c.pending)
	for {
		revision, over, err := c.attempt(ctx)
		if over {
			return revision, err
		}
		if ctx.Err() != nil {
			return 0, c.givenUp(s.link.unavailable(ctx))
		}
	}
}

// commit is a transaction on its way.
type commit struct {
	store   *Store
	owners  map[string]metadata.SessionID // who keys have to belong to
	pending *pending
	fresh   bool // the mirror is as new as the last attempt
	lost    bool // an attempt was made whose outcome is not known
}

// givenUp makes err one that says whether something may have happened.
func (c *commit) givenUp(err error) error {
	if c.lost {
		// The chain ends here: "nothing was changed" may be in it.
		return fmt.Errorf("%w: %v", metadata.ErrUnknown, err)
	}
	return err
}

// attempt tries once. It is over when the outcome is clear.
func (c *commit) attempt(ctx context.Context) (revision metadata.Revision, over bool, err error) {
	s, t := c.store, c.pending.txn
	if c.lost || c.fresh {
		err = s.refresh(ctx)
	} else {
		err = s.mirror.await(ctx, s.link)
	}
	if err != nil {
		return 0, true, c.givenUp(err)
	}
	v := s.mirror.view(t)
	if c.lost {
		switch seen, revision, missed := s.mirror.outcome(c.pending); {
		case seen:
			return revision, true, nil
		case missed:
			return 0, true, c.givenUp(errGap)
		}
	}
	if v.at.seq >= v.turn {
		return 0, false, s.turnLog(ctx, v.at)
	}
	if key := conflict(t, v, c.owners); key != "" {
		return c.refuse(ctx, v, &metadata.ConflictError{Key: key})
	}
	p, err := s.makePlan(c.pending.id, t, v, c.lost || len(c.owners) > 0 || exact(t, v))
	if err != nil {
		return 0, true, c.givenUp(err)
	}
	if p.isNothing() {
		return c.confirm(ctx, p, v)
	}
	return c.send(ctx, p)
}

// refuse ends a commit that conflicts, once that is certain.
func (c *commit) refuse(ctx context.Context, v view, because error) (metadata.Revision, bool, error) {
	if !c.fresh {
		c.fresh = true
		return 0, false, nil
	}
	if !c.lost {
		return 0, true, because
	}
	// An attempt may still be under way to a server that does not know that it is no leader any more; what we read may
	// come from there, too. A check that a majority agreed to does not.
	s := c.store
	_, err := ask(ctx, s.link, func(conn *zk.Conn) ([]zk.MultiResponse, error) {
		return conn.Multi(&zk.CheckVersionRequest{Path: s.layout.generation(v.at.gen), Version: int32(v.at.seq)})
	})
	if err != nil {
		return 0, false, nil
	}
	return 0, true, because
}

// confirm ends a commit that changes nothing: its guards are checked, nothing is logged.
func (c *commit) confirm(ctx context.Context, p *plan, v view) (metadata.Revision, bool, error) {
	if !c.fresh {
		c.fresh = true // the revision to return is the newest
		return 0, false, nil
	}
	checks := p.ops[1:] // all but the one that numbers a commit
	answers, err := ask(ctx, c.store.link, func(conn *zk.Conn) ([]zk.MultiResponse, error) { return conn.Multi(checks...) })
	switch {
	case err == nil:
		return v.revision, true, nil
	case isLost(err), failed(answers) >= 0: // tried again; it had no effect
		return 0, false, nil
	}
	return 0, true, c.store.clarify(err)
}

// send makes the attempt and looks at what came of it.
func (c *commit) send(ctx context.Context, p *plan) (metadata.Revision, bool, error) {
	s := c.store
	answers, err := ask(ctx, s.link, func(conn *zk.Conn) ([]zk.MultiResponse, error) { return conn.Multi(p.ops...) })
	at := failed(answers)
	switch {
	case err == nil && len(answers) == len(p.ops) && answers[0].Stat != nil:
		if answers[0].Stat.Version%trimEvery == 0 {
			s.trimLater()
		}
		return metadata.Revision(answers[0].Stat.Mzxid), true, nil
	case errors.Is(err, metadata.ErrUnavailable), errors.Is(err, ErrClosed): // not made
		return 0, true, c.givenUp(err)
	case isLost(err), err == nil:
		c.lost = true
		return 0, false, nil
	case at >= p.sessions && at < p.keys && errors.Is(answers[at].Error, zk.ErrNoNode):
		return 0, true, c.givenUp(metadata.ErrSessionLost)
	case at >= 0 && stale(answers[at].Error):
		c.fresh = true
		return 0, false, nil
	}
	return 0, true, c.givenUp(s.clarify(fmt.Errorf("commit in ZooKeeper: %w", err)))
}

// stale reports that an operation failed because a key, or the log, is not as the mirror has it.
func stale(err error) bool {
	return errors.Is(err, zk.ErrBadVersion) || errors.Is(err, zk.ErrNoNode) || errors.Is(err, zk.ErrNodeExists)
}

// failed is the first operation that failed, -1 where none did.
func failed(answers []zk.MultiResponse) int {
	for i, a := range answers {
		if a.Error != nil {
			return i
		}
	}
	return -1
}

// turnLog ends the generation at p, which is full, and begins the next. Somebody else may be faster; whoever it is, the
// mirror will see it.
func (s *Store) turnLog(ctx context.Context, p place) error {
	raw, err := json.Marshal(change{ID: randomID(), Turn: true})
	if err != nil {
		return fmt.Errorf("encode a turn: %w", err)
	}
	next := p.gen + 1
	_, err = ask(ctx, s.link, func(c *zk.Conn) ([]zk.MultiResponse, error) {
		return c.Multi(
			&zk.SetDataRequest{Path: s.layout.generation(p.gen), Version: -1},
			&zk.SetDataRequest{Path: s.layout.log(), Data: fmt.Append(nil, next), Version: int32(p.gen)},
			s.create(s.layout.generation(next), nil),
			s.createChange(p.gen, raw),
		)
	})
	if err == nil {
		return s.reach(ctx, place{next, 0})
	}
	if !pause(ctx, againAfter) {
		return s.link.unavailable(ctx)
	}
	return s.refresh(ctx)
}
