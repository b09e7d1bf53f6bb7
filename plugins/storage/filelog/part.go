package filelog

import (
	"context"
	"fmt"
	"sort"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// part is one partition's directory: "orders-2". Calls that change files take turns by turn, which is held over I/O;
// mu guards the state and never is.
type part struct {
	name  string
	turn  chan struct{} // one slot, taken by the call that works on the files
	users int           // guarded by Store.mu: calls that have or wait for the turn

	mu    sync.Mutex
	state state // guarded by mu
}

// state is what the store knows of an open partition. Its zero value is a partition that is not open.
type state struct {
	topicID  string
	instance string
	lease    storage.LeaseEpoch // the newest
	held     bool               // the core holds it
	last     *storage.RollRequest
	spare    bool // next.spare is ready
	failed   error

	// segments ascend without gaps; the last one is the active one, as far as notes tell. Empty: not open.
	segments []*segment
}

// segment is one file. The core may have written more to an active one than is noted here.
type segment struct {
	storage.Segment
	dev, ino uint64 // of the active one
	index    []storage.Entry
}

func (st *state) active() *segment { return st.segments[len(st.segments)-1] }

// mine checks that a mutating call comes from the holder of the newest lease.
func (st *state) mine(instance string, lease storage.LeaseEpoch) error {
	switch {
	case len(st.segments) == 0:
		return storage.ErrNotOpen
	case st.failed != nil:
		return st.failed
	case !st.held || st.instance != instance || st.lease != lease:
		return fmt.Errorf("%w: %d, not %d of %q", storage.ErrLeaseStale, st.lease, lease, instance)
	}
	return nil
}

// enter waits for p's turn. leave must follow.
func (s *Store) enter(ctx context.Context, name string) (*part, error) {
	s.mu.Lock()
	p := s.parts[name]
	if p == nil {
		p = &part{name: name, turn: make(chan struct{}, 1)}
		s.parts[name] = p
	}
	p.users++
	s.mu.Unlock()
	select {
	case p.turn <- struct{}{}:
		return p, nil
	case <-ctx.Done():
		s.forget(p)
		return nil, fmt.Errorf("%s is busy: %w", name, context.Cause(ctx))
	}
}

func (s *Store) leave(p *part) {
	<-p.turn
	s.forget(p)
}

// forget drops a partition that is not open and that nobody works on.
func (s *Store) forget(p *part) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.users--
	if p.users == 0 && !p.isOpen() {
		delete(s.parts, p.name)
	}
}

func (p *part) isOpen() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.state.segments) > 0
}

// find returns the partition where it is open, without waiting for its turn.
func (s *Store) find(which storage.Partition) (*part, error) {
	s.mu.Lock()
	p := s.parts[which.String()]
	s.mu.Unlock()
	if p == nil || !p.isOpen() {
		return nil, fmt.Errorf("%s: %w", which, storage.ErrNotOpen)
	}
	return p, nil
}

// indexBytes is how far apart index entries lie at least: a lookup reads about that much.
const indexBytes = 64 << 10

// addEntries merges entries into the index, which stays sorted and sparse.
func (g *segment) addEntries(entries []storage.Entry) {
	for _, e := range entries {
		at := sort.Search(len(g.index), func(i int) bool { return g.index[i].Position >= e.Position })
		before := at == 0 && e.Position >= indexBytes || at > 0 && e.Position-g.index[at-1].Position >= indexBytes
		after := at == len(g.index) || g.index[at].Position-e.Position >= indexBytes
		if !before || !after {
			continue
		}
		g.index = append(g.index, storage.Entry{})
		copy(g.index[at+1:], g.index[at:])
		g.index[at] = e
	}
}

// floor is a position at or below the batch that holds off: where to begin to look.
func (g *segment) floor(off record.Offset) int64 {
	at := sort.Search(len(g.index), func(i int) bool { return g.index[i].Last >= off })
	if at == 0 {
		return 0
	}
	return g.index[at-1].Position
}
