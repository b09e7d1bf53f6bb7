package memory

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Roll implements storage.Store. ErrFull where the next segment does not fit into the cap; the active one stays as it is.
func (s *Store) Roll(_ context.Context, r storage.RollRequest) (storage.Lease, error) {
	p, err := s.enter(r.Partition)
	if err != nil {
		return storage.Lease{}, err
	}
	defer p.mu.Unlock()
	if p.held && p.rolled.lease == p.lease && p.rolled.is(r) {
		return p.lend()
	}
	if p.instance != r.Instance || p.lease != r.Lease || !p.held {
		return storage.Lease{}, storage.ErrLeaseStale
	}
	a := p.active()
	info, err := a.file.Stat()
	switch {
	case err != nil:
		return storage.Lease{}, err
	case r.Position <= 0 || r.Next <= a.base || r.Next > a.base+segmentRecords:
		return storage.Lease{}, fmt.Errorf("%w: roll of segment %d at %d to %d", storage.ErrInvalid, a.base, r.Position, r.Next)
	case info.Size != r.Position:
		return storage.Lease{}, fmt.Errorf("%w: segment %d has %d bytes, not %d", storage.ErrHeldMismatch, a.base, info.Size, r.Position)
	}
	counted := a.counted
	_ = s.charge(a, r.Position, true)
	if err := s.add(p, r.Next, p.size); err != nil {
		_ = s.charge(a, counted, true)
		return storage.Lease{}, err
	}
	a.next, a.size, a.maxTimestamp, a.sealed = r.Next, r.Position, r.MaxTimestamp, s.now()
	p.lease++
	p.rolled = rolled{request: r, lease: p.lease}
	return p.lend()
}

// is reports whether r asks for the same again.
func (done rolled) is(r storage.RollRequest) bool {
	d := done.request
	return d.Instance == r.Instance && d.Lease == r.Lease && d.Position == r.Position && d.Next == r.Next
}

// Locate implements storage.Store.
func (s *Store) Locate(_ context.Context, r storage.LocateRequest) (storage.Extent, error) {
	p, err := s.enter(r.Partition)
	if err != nil {
		return storage.Extent{}, err
	}
	defer p.mu.Unlock()
	i := sort.Search(len(p.segments), func(i int) bool { return p.segments[i].base > r.Offset }) - 1
	if i < 0 || r.Offset < p.start {
		return storage.Extent{}, storage.ErrOffsetOutOfRange
	}
	seg := p.segments[i]
	if seg == p.active() && !p.held {
		return storage.Extent{}, storage.ErrOffsetOutOfRange
	}
	at, err := seg.walk(seg.size, func(b record.Batch) bool { return b.NextOffset() > r.Offset })
	if err == nil && at.offset > r.Offset {
		err = storage.ErrOffsetOutOfRange
	}
	if err != nil {
		return storage.Extent{}, fmt.Errorf("segment %d at %d: %w", seg.base, at.position, err)
	}
	f, err := vfs.OS().Reopen(seg.file)
	if err != nil {
		return storage.Extent{}, err
	}
	return storage.Extent{
		Segment:  storage.Segment{Base: seg.base, Next: seg.next, Size: seg.size, MaxTimestamp: seg.maxTimestamp},
		Position: at.position, Offset: at.offset, File: loan{f},
	}, nil
}

// Note implements storage.Store: it learns where the active segment ends.
func (s *Store) Note(_ context.Context, n storage.Note) error {
	p, err := s.enterAs(n.Partition, n.Instance, n.Lease)
	if err != nil {
		return err
	}
	defer p.mu.Unlock()
	a := p.active()
	for _, e := range n.Entries {
		if e.Position >= n.Position || e.Last >= n.Next || e.Last < a.base {
			return fmt.Errorf("%w: entry for offset %d at %d in a note up to %d at %d", storage.ErrInvalid, e.Last, e.Position, n.Next, n.Position)
		}
		a.maxTimestamp = max(a.maxTimestamp, e.MaxTimestamp)
	}
	if n.Position <= a.size {
		return nil
	}
	a.size, a.next = n.Position, n.Next
	if a.size > a.counted { // a record larger than a segment
		return s.charge(a, a.size, true)
	}
	return nil
}

// Close implements storage.Store. The floor is put where the log ends: whoever comes after the server leaves no gap.
func (s *Store) Close(_ context.Context, r storage.CloseRequest) error {
	p, err := s.enter(r.Partition)
	if errors.Is(err, storage.ErrNotOpen) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.mu.Unlock()
	if p.instance != r.Instance || p.lease != r.Lease {
		return storage.ErrLeaseStale
	}
	if !p.held {
		return nil
	}
	p.held = false
	a := p.active()
	info, err := a.file.Stat()
	if err != nil {
		return err
	}
	if info.Size != r.Position || r.Next < a.base || r.Next > a.base+segmentRecords {
		return nil // what the core says is not what is there: whoever opens it next looks
	}
	a.size, a.next = r.Position, r.Next
	if err := s.floors.write(p.name, r.Next); err != nil {
		return err
	}
	p.floor = r.Next
	return nil
}

// Delete implements storage.Store.
func (s *Store) Delete(_ context.Context, name storage.Partition) error {
	if err := name.Valid(); err != nil {
		return err
	}
	p := s.part(name)
	defer p.mu.Unlock()
	if len(p.segments) > 0 && p.name != name {
		return nil // another topic's
	}
	if err := s.floors.remove(name); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	s.dropSegmentsLocked(p, len(p.segments))
	p.gone = true
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.parts, name.String())
	return nil
}
