package filelog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Roll implements storage.Store.
func (s *Store) Roll(ctx context.Context, r storage.RollRequest) (storage.Lease, error) {
	if err := check(r.Partition); err != nil {
		return storage.Lease{}, err
	}
	p, err := s.enter(ctx, r.Partition.String())
	if err != nil {
		return storage.Lease{}, err
	}
	defer s.leave(p)
	l, err := s.roll(p, r)
	if err != nil {
		return storage.Lease{}, fmt.Errorf("roll %s: %w", p.name, withFull(err))
	}
	s.spares.push(p.name)
	s.tidying.push(p.name)
	failpoint.Hit("plugin.roll.leased")
	return l, nil
}

func (s *Store) roll(p *part, r storage.RollRequest) (storage.Lease, error) {
	p.mu.Lock()
	st := &p.state
	if st.last != nil && sameRoll(*st.last, r) && st.held && st.which.TopicID == r.Partition.TopicID {
		lease, base := st.lease, st.active().Base
		p.mu.Unlock()
		return s.rolledAlready(p, lease, base)
	}
	err := st.mine(r.Instance, r.Lease)
	if err == nil && st.which.TopicID != r.Partition.TopicID {
		err = storage.ErrNotOpen
	}
	var active segment
	if err == nil {
		active = *st.active()
	}
	spare := st.spare
	p.mu.Unlock()
	if err != nil {
		return storage.Lease{}, err
	}
	if r.Position <= 0 || r.Next <= active.Base {
		return storage.Lease{}, fmt.Errorf("%w: seal segment %d at position %d, next offset %d", ErrInvalid, active.Base, r.Position, r.Next)
	}
	if err := checkEntries(r.Entries, storage.Segment{Base: active.Base, Next: r.Next, Size: r.Position}); err != nil {
		return storage.Lease{}, err
	}
	dir := s.disk.partition(p.name)
	info, err := s.disk.fs.Stat(segmentPath(dir, active.Base))
	if err != nil {
		return storage.Lease{}, err
	}
	if info.Size != r.Position || info.Dev != active.dev || info.Ino != active.ino {
		return storage.Lease{}, fmt.Errorf("%w: segment %d has %d bytes, to be sealed at %d", storage.ErrHeldMismatch, active.Base, info.Size, r.Position)
	}
	return s.nextSegment(p, dir, r, spare)
}

// sameRoll reports whether a is b once more.
func sameRoll(a, b storage.RollRequest) bool {
	return a.Partition == b.Partition && a.Instance == b.Instance && a.Lease == b.Lease &&
		a.Position == b.Position && a.Next == b.Next && a.MaxTimestamp == b.MaxTimestamp
}

// rolledAlready answers a Roll that has happened and whose answer was lost: the same lease, as long as nobody used it.
func (s *Store) rolledAlready(p *part, epoch storage.LeaseEpoch, base record.Offset) (storage.Lease, error) {
	f, info, err := s.openLent(segmentPath(s.disk.partition(p.name), base))
	if err != nil {
		return storage.Lease{}, err
	}
	if info.Size != 0 {
		return storage.Lease{}, errors.Join(storage.ErrLeaseStale, f.Close())
	}
	return storage.Lease{Epoch: epoch, Base: base, Next: base, MaxTimestamp: -1, Dev: info.Dev, Ino: info.Ino, File: f}, nil
}

// nextSegment gives the segment to come its name, durably, and leases it.
func (s *Store) nextSegment(p *part, dir string, r storage.RollRequest, spare bool) (storage.Lease, error) {
	failpoint.Hit("plugin.roll.checked")
	path := segmentPath(dir, r.Next)
	err := error(fs.ErrNotExist)
	if spare {
		err = s.disk.fs.Rename(filepath.Join(dir, spareName), path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = s.withReserve(func() error { return s.disk.create(path, nil) })
	}
	if errors.Is(err, fs.ErrExist) {
		err = s.mustBeEmpty(path) // an earlier Roll got that far and failed after it
	}
	if err != nil {
		return storage.Lease{}, err
	}
	failpoint.Hit("plugin.roll.named")
	f, info, err := s.openLent(path)
	if err != nil {
		return storage.Lease{}, err
	}
	if err := s.disk.fs.SyncDir(dir); err != nil {
		// A second sync may succeed without the name being on disk, so nothing more happens here in this process.
		p.mu.Lock()
		p.state.failed = fmt.Errorf("an earlier sync failed: %w", err)
		p.mu.Unlock()
		return storage.Lease{}, errors.Join(err, f.Close())
	}
	failpoint.Hit("plugin.roll.synced")
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &p.state
	sealed := st.active()
	sealed.x.note(r.Entries)
	r.Entries = nil // the request is kept, to know it when it comes again
	sealed.Next, sealed.Size, sealed.MaxTimestamp = r.Next, r.Position, max(sealed.MaxTimestamp, r.MaxTimestamp)
	sealed.stamp, st.unstamped = s.clock.now(), true
	st.sealing++
	st.noted = max(st.noted, r.Next)
	st.segments = append(st.segments, &segment{
		Segment: storage.Segment{Base: r.Next, Next: r.Next, MaxTimestamp: -1}, dev: info.Dev, ino: info.Ino, x: noIndexes(),
	})
	st.lease, st.last, st.spare = s.nextLease(r.Lease), &r, false
	return storage.Lease{
		Epoch: st.lease, Base: r.Next, Next: r.Next, MaxTimestamp: -1, Dev: info.Dev, Ino: info.Ino, File: f,
	}, nil
}

func (s *Store) mustBeEmpty(path string) error {
	info, err := s.disk.fs.Stat(path)
	if err == nil && (!info.Regular || info.Size != 0) {
		err = fmt.Errorf("%w: %s is there already and not empty", storage.ErrHeldMismatch, path)
	}
	return err
}

// makeSpare prepares the segment that the next Roll of a partition will need.
func (s *Store) makeSpare(ctx context.Context, name string) {
	p, err := s.enter(ctx, name)
	if err != nil {
		return // stopping
	}
	defer s.leave(p)
	p.mu.Lock()
	wanted := p.state.held && !p.state.spare && p.state.failed == nil
	p.mu.Unlock()
	if !wanted {
		return
	}
	dir := s.disk.partition(name)
	path := filepath.Join(dir, spareName)
	err = s.disk.create(path, nil)
	if errors.Is(err, fs.ErrExist) {
		err = s.mustBeEmpty(path)
	}
	failpoint.Hit("plugin.spare.made")
	if err == nil {
		err = s.disk.fs.SyncDir(dir)
	}
	if err != nil {
		s.workerFailed("make a spare segment for "+name, err) // the next Roll makes its own, or says what is wrong
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.spare = true
}

// Note implements storage.Store.
func (s *Store) Note(_ context.Context, n storage.Note) error {
	p, err := s.find(n.Partition)
	if err != nil {
		return err
	}
	failpoint.Hit("plugin.note.begun")
	wantsSpare, err := p.note(n)
	if err != nil {
		return fmt.Errorf("note for %s: %w", p.name, err)
	}
	if wantsSpare {
		s.spares.push(p.name)
	}
	s.tidying.push(p.name)
	failpoint.Hit("plugin.note.taken")
	return nil
}

func (p *part) note(n storage.Note) (wantsSpare bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &p.state
	if err := st.mine(n.Instance, n.Lease); err != nil {
		return false, err
	}
	g := st.active()
	if n.Position < 0 || n.Next < g.Base || (n.Position == 0) != (n.Next == g.Base) {
		return false, fmt.Errorf("%w: position %d, next offset %d", ErrInvalid, n.Position, n.Next)
	}
	if err := checkEntries(n.Entries, storage.Segment{Base: g.Base, Next: n.Next, Size: n.Position}); err != nil {
		return false, err
	}
	g.x.note(n.Entries)
	for _, e := range n.Entries {
		g.MaxTimestamp = max(g.MaxTimestamp, e.MaxTimestamp)
	}
	if n.Position > g.Size { // else it repeats an older one
		g.Size, g.Next = n.Position, n.Next
	}
	st.noted = max(st.noted, n.Next)
	return !st.spare && g.Size > 0, nil
}

// checkEntries checks index entries against the segment they are of, as far as it is synced.
func checkEntries(entries []storage.Entry, g storage.Segment) error {
	for i, e := range entries {
		inOrder := i == 0 || e.Position > entries[i-1].Position && e.Last > entries[i-1].Last
		if e.Position < 0 || e.Position >= g.Size || e.Last < g.Base || e.Last >= g.Next || !inOrder {
			return fmt.Errorf("%w: entry %d of offset %d at position %d", ErrInvalid, i, e.Last, e.Position)
		}
	}
	return nil
}

// Close implements storage.Store.
func (s *Store) Close(ctx context.Context, r storage.CloseRequest) error {
	if err := check(r.Partition); err != nil {
		return err
	}
	p, err := s.enter(ctx, r.Partition.String())
	if err != nil {
		return err
	}
	defer s.leave(p)
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &p.state
	if !st.held || st.which.TopicID != r.Partition.TopicID {
		return nil
	}
	if st.instance != r.Instance || st.lease != r.Lease {
		return fmt.Errorf("close %s: %w: %d, not %d of %q", p.name, storage.ErrLeaseStale, st.lease, r.Lease, r.Instance)
	}
	st.held = false
	if g := st.active(); r.Position > g.Size && r.Next > g.Next {
		g.Size, g.Next = r.Position, r.Next
	}
	// The core has synced what it says lies there: whoever comes next from that core finds the log parked.
	st.parked = r.Position == st.active().Size && r.Next == st.active().Next
	if st.parked {
		st.noted = max(st.noted, r.Next)
	}
	s.tidying.push(p.name)
	return nil
}

// part is one partition's directory: "orders-2". Calls that change files take turns by turn, which is held over I/O;
// mu guards the state and never is.
type part struct {
	name  string
	turn  chan struct{} // one slot, taken by the call that works on the files
	users int           // guarded by Store.mu: calls that have or wait for the turn

	mu     sync.Mutex
	state  state // guarded by mu
	untidy bool  // guarded by mu: to be tidied when the turn is free
}

// state is what the store knows of an open partition. Its zero value is a partition that is not open.
type state struct {
	which    storage.Partition
	instance string
	lease    storage.LeaseEpoch // the newest
	held     bool               // the core holds it
	last     *storage.RollRequest
	spare    bool // next.spare is ready
	failed   error
	parked   bool // not held, and the core said that all of it is synced

	logStart record.Offset
	// noted: by the core's word everything below is synced. point is the recovery point: it follows, but does not pass a
	// segment whose indexes are not on disk. Invariant: point <= noted.
	noted, point record.Offset
	// segments ascend without gaps; the last one is the active one, as far as notes tell. Empty: not open.
	segments []*segment
	// sealing counts the segments right below the active one whose indexes are not complete yet.
	sealing   int
	unstamped bool // segment-times lacks a stamp that segments have
	stamps    stampFile
}

// segment is one file. The core may have written more to an active one than is noted here.
type segment struct {
	storage.Segment
	dev, ino uint64 // of the active one
	x        indexes
	stamp    int64 // of a sealed one: when it was sealed, by the retention clock, in milliseconds
}

func (st *state) active() *segment { return st.segments[len(st.segments)-1] }

// advance moves the recovery point as far as it may.
func (st *state) advance() {
	limit := st.noted
	if st.sealing > 0 {
		limit = min(limit, st.segments[len(st.segments)-1-st.sealing].Base)
	}
	st.point = max(st.point, limit)
}

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

// enterAtOnce is enter where nobody has the turn. Otherwise it reports false, and the partition is tidied when the turn
// is free.
func (s *Store) enterAtOnce(name string) (*part, bool) {
	s.mu.Lock()
	p := s.parts[name]
	if p == nil {
		s.mu.Unlock()
		return nil, false
	}
	p.users++
	s.mu.Unlock()
	for range 2 { // once more after the mark: who has left in between has not seen it
		select {
		case p.turn <- struct{}{}:
			return p, true
		default:
		}
		p.mu.Lock()
		p.untidy = true
		p.mu.Unlock()
	}
	s.forget(p)
	return nil, false
}

func (s *Store) leave(p *part) {
	<-p.turn
	p.mu.Lock()
	untidy := p.untidy
	p.untidy = false
	p.mu.Unlock()
	if untidy {
		s.tidying.push(p.name)
	}
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
