package memory

import (
	"context"
	"errors"
	"fmt"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Expire implements storage.Keeper.
func (s *Store) Expire(_ context.Context, r storage.ExpireRequest) (record.Offset, error) {
	if r.RetentionTime < 0 {
		return 0, fmt.Errorf("%w: retention of %s", storage.ErrInvalid, r.RetentionTime)
	}
	p, err := s.enter(r.Partition)
	if err != nil {
		return 0, err
	}
	defer p.mu.Unlock()
	if p.instance != r.Instance {
		return 0, storage.ErrLeaseStale
	}
	var total int64
	for _, seg := range p.segments {
		total += seg.size
	}
	start, now := p.start, s.now()
	for i, seg := range p.segments[:len(p.segments)-1] {
		tooMuch := r.RetentionBytes >= 0 && total-seg.size >= r.RetentionBytes
		tooOld := r.RetentionTime > 0 && now.Sub(seg.sealed) > r.RetentionTime
		next := p.segments[i+1].base
		if !tooMuch && !tooOld || next > r.Limit {
			break
		}
		total -= seg.size
		start = max(start, next)
	}
	return start, nil
}

// Trim implements storage.Keeper. The log start is in the core's hands as long as the log is: nothing of it outlives
// the server.
func (s *Store) Trim(_ context.Context, r storage.TrimRequest) (storage.Trimmed, error) {
	p, err := s.enter(r.Partition)
	if err != nil {
		return storage.Trimmed{}, err
	}
	defer p.mu.Unlock()
	if p.instance != r.Instance {
		return storage.Trimmed{}, storage.ErrLeaseStale
	}
	p.start = max(p.start, r.LogStart)
	gone := 0
	for gone < len(p.segments)-1 && p.segments[gone].next <= p.start {
		gone++
	}
	s.dropSegmentsLocked(p, gone)
	return storage.Trimmed{LogStart: p.start, First: p.segments[0].base}, nil
}

// Truncate implements storage.Keeper.
func (s *Store) Truncate(_ context.Context, r storage.TruncateRequest) (storage.Opened, error) {
	p, err := s.enter(r.Partition)
	if err != nil {
		return storage.Opened{}, err
	}
	defer p.mu.Unlock()
	switch {
	case p.instance != r.Instance || p.lease != r.Lease:
		return storage.Opened{}, storage.ErrLeaseStale
	case p.held:
		return storage.Opened{}, storage.ErrLeaseHeld
	case r.Next < p.start || r.Next > p.active().next:
		return storage.Opened{}, fmt.Errorf("%w: truncate [%d, %d) to %d", storage.ErrOffsetOutOfRange, p.start, p.active().next, r.Next)
	}
	last := len(p.segments) - 1
	for last > 0 && p.segments[last].base > r.Next {
		last--
	}
	if err := s.shorten(p, p.segments[last], r.Next); err != nil {
		return storage.Opened{}, err
	}
	for len(p.segments)-1 > last {
		s.pop(p)
	}
	p.held, p.rolled = true, rolled{}
	p.lease++
	return p.opened()
}

// shorten ends a segment at a batch boundary, in a new file: readers may have the old one.
func (s *Store) shorten(p *part, seg *segment, next record.Offset) error {
	at, err := seg.walk(seg.size, func(b record.Batch) bool { return b.NextOffset() > next })
	if err != nil {
		return fmt.Errorf("segment %d at %d: %w", seg.base, at.position, err)
	}
	if at.offset != next {
		return fmt.Errorf("%w: offset %d lies inside the batch of %d", storage.ErrInvalid, next, at.offset)
	}
	if err := s.cover(p, seg.base); err != nil {
		return err
	}
	file, err := copyFile(p.name.String(), seg.file, at.position)
	if err != nil {
		return err
	}
	_ = seg.file.Close()
	seg.file, seg.next, seg.size, seg.maxTimestamp = file, at.offset, at.position, at.maxTimestamp
	return s.charge(seg, max(p.size, seg.size), true)
}

// Adoptable implements storage.Keeper: there is nothing to be moved into memory.
func (s *Store) Adoptable(_ context.Context, topic string) (storage.Adoption, error) {
	return storage.Adoption{}, errors.Join(storage.ValidTopic(topic), storage.ErrDataMissing)
}

// Room implements storage.Keeper: whether a smallest segment fits into the cap.
func (s *Store) Room(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cap-s.used < capMin {
		return fmt.Errorf("%w: %d bytes of memory are in use, the cap is %d", storage.ErrFull, s.used, s.cap)
	}
	return nil
}
