package filelog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

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
	return l, nil
}

func (s *Store) roll(p *part, r storage.RollRequest) (storage.Lease, error) {
	p.mu.Lock()
	st := &p.state
	if st.last != nil && *st.last == r && st.held && st.topicID == r.Partition.TopicID {
		lease, base := st.lease, st.active().Base
		p.mu.Unlock()
		return s.rolledAlready(p, lease, base)
	}
	err := st.mine(r.Instance, r.Lease)
	if err == nil && st.topicID != r.Partition.TopicID {
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
	path := segmentPath(dir, r.Next)
	err := error(fs.ErrNotExist)
	if spare {
		err = s.disk.fs.Rename(filepath.Join(dir, spareName), path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = s.disk.create(path, nil)
	}
	if errors.Is(err, fs.ErrExist) {
		err = s.mustBeEmpty(path) // an earlier Roll got that far and failed after it
	}
	if err != nil {
		return storage.Lease{}, err
	}
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
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &p.state
	sealed := st.active()
	sealed.Next, sealed.Size, sealed.MaxTimestamp = r.Next, r.Position, max(sealed.MaxTimestamp, r.MaxTimestamp)
	st.segments = append(st.segments, &segment{
		Segment: storage.Segment{Base: r.Next, Next: r.Next, MaxTimestamp: -1}, dev: info.Dev, ino: info.Ino,
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
	wantsSpare, err := p.note(n)
	if err != nil {
		return fmt.Errorf("note for %s: %w", p.name, err)
	}
	if wantsSpare {
		s.spares.push(p.name)
	}
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
	for i, e := range n.Entries {
		inOrder := i == 0 || e.Position > n.Entries[i-1].Position && e.Last > n.Entries[i-1].Last
		if e.Position < 0 || e.Position >= n.Position || e.Last < g.Base || e.Last >= n.Next || !inOrder {
			return false, fmt.Errorf("%w: entry %d of offset %d at position %d", ErrInvalid, i, e.Last, e.Position)
		}
	}
	g.addEntries(n.Entries)
	for _, e := range n.Entries {
		g.MaxTimestamp = max(g.MaxTimestamp, e.MaxTimestamp)
	}
	if n.Position > g.Size { // else it repeats an older one
		g.Size, g.Next = n.Position, n.Next
	}
	return !st.spare && g.Size > 0, nil
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
	if !st.held || st.topicID != r.Partition.TopicID {
		return nil
	}
	if st.instance != r.Instance || st.lease != r.Lease {
		return fmt.Errorf("close %s: %w: %d, not %d of %q", p.name, storage.ErrLeaseStale, st.lease, r.Lease, r.Instance)
	}
	st.held = false
	if g := st.active(); r.Position > g.Size && r.Next > g.Next {
		g.Size, g.Next = r.Position, r.Next
	}
	return nil
}
