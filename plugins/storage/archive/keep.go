package archive

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/storeframe"
)

// Expire implements storage.Keeper. What it takes is whole objects, and never the last one.
func (s *Store) Expire(_ context.Context, r storage.ExpireRequest) (record.Offset, error) {
	if r.RetentionTime < 0 {
		return 0, fmt.Errorf("%w: retention of %s", storage.ErrInvalid, r.RetentionTime)
	}
	p, err := s.enter(r.Partition, r.Instance)
	if err != nil {
		return 0, err
	}
	defer p.calls.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	total, start, now := bytesOf(p.objects), p.start, s.clock.Now()
	for i := range len(p.objects) - 1 {
		o := &p.objects[i]
		tooMuch := r.RetentionBytes >= 0 && total-o.size >= r.RetentionBytes
		tooOld := r.RetentionTime > 0 && time.Duration(now-o.put)*time.Millisecond > r.RetentionTime
		if !tooMuch && !tooOld || o.next > r.Limit {
			break
		}
		total -= o.size
		start = max(start, o.next)
	}
	return start, nil
}

// Trim implements storage.Keeper: the new start is put, then the old one and the objects below go.
func (s *Store) Trim(_ context.Context, r storage.TrimRequest) (storage.Trimmed, error) {
	p, err := s.enter(r.Partition, r.Instance)
	if err != nil {
		return storage.Trimmed{}, err
	}
	defer p.calls.Unlock()
	p.mu.Lock()
	before, end, objects := p.start, p.end, p.objects
	p.mu.Unlock()
	start := max(before, min(r.LogStart, end))
	if start > before {
		if err := s.bucket.Put(p.key(startName(start)), nil); err != nil {
			return storage.Trimmed{}, fmt.Errorf("trim %s to %d: %w", p.name, start, withFull(err))
		}
		if err := s.bucket.Delete(p.key(startName(before))); err != nil { // there is none of a log that was never trimmed
			return storage.Trimmed{}, err
		}
	}
	gone := 0
	for gone < len(objects) && objects[gone].next <= start {
		gone++
	}
	p.mu.Lock()
	p.start, p.objects = start, append([]object(nil), objects[gone:]...)
	t := storage.Trimmed{LogStart: start, First: start}
	if len(p.objects) > 0 {
		t.First = p.objects[0].base
	}
	p.mu.Unlock()
	for i := range objects[:gone] {
		if err := s.bucket.Delete(p.key(objects[i].name())); err != nil {
			s.log.Warn("object below the log start stays until the next start", "partition", p.name.String(), "err", err)
			break
		}
	}
	return t, nil
}

// Truncate implements storage.Keeper.
func (s *Store) Truncate(_ context.Context, r storage.TruncateRequest) (storage.Opened, error) {
	p, err := s.enter(r.Partition, r.Instance)
	if err != nil {
		return storage.Opened{}, err
	}
	defer p.calls.Unlock()
	p.mu.Lock()
	held, lease, start, end, objects := p.held, p.lease, p.start, p.end, p.objects
	p.mu.Unlock()
	switch {
	case lease != r.Lease:
		return storage.Opened{}, storage.ErrLeaseStale
	case held:
		return storage.Opened{}, storage.ErrLeaseHeld
	case r.Next < start || r.Next > end:
		return storage.Opened{}, fmt.Errorf("%w: truncate [%d, %d) to %d", storage.ErrOffsetOutOfRange, start, end, r.Next)
	}
	to, err := s.boundary(p.name.String(), objects, r.Next)
	if err != nil {
		return storage.Opened{}, err
	}
	if to != r.Next {
		return storage.Opened{}, fmt.Errorf("%w: offset %d lies inside the batch of %d", storage.ErrInvalid, r.Next, to)
	}
	left, err := s.truncate(p.name.String(), objects, r.Next)
	if err != nil {
		return storage.Opened{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.objects, p.end, p.held, p.epoch, p.lease = left, r.Next, true, r.Epoch, s.nextLease()
	return p.openedLocked(), nil
}

// truncate ends a log at a batch boundary. What is to be is put first, so that a start after a crash goes on.
func (s *Store) truncate(dir string, objects []object, end record.Offset) ([]object, error) {
	if err := s.bucket.Put(dir+"/"+endName(end), nil); err != nil {
		return nil, fmt.Errorf("truncate %s to %d: %w", dir, end, withFull(err))
	}
	left, err := s.cutObjects(dir, objects, end)
	if err == nil {
		err = s.bucket.Delete(dir + "/" + endName(end))
	}
	if err != nil {
		return nil, fmt.Errorf("truncate %s to %d: %w", dir, end, err)
	}
	return left, nil
}

// cutObjects puts the beginning of the object that the end lies in, unless it is there, and deletes what lies above,
// highest first. Objects may be there in both forms.
func (s *Store) cutObjects(dir string, objects []object, end record.Offset) ([]object, error) {
	var left []object
	var across *object
	for i := range objects {
		switch o := &objects[i]; {
		case o.next <= end:
			left = append(left, *o)
		case o.base < end && across == nil:
			across = o
		}
	}
	if across != nil && (len(left) == 0 || left[len(left)-1].next < end) {
		short, err := s.shorten(dir, *across, end)
		if err != nil {
			return nil, err
		}
		left = append(left, short)
	}
	for i := len(objects) - 1; i >= 0; i-- {
		if objects[i].next > end {
			if err := s.bucket.Delete(dir + "/" + objects[i].name()); err != nil {
				return nil, err
			}
		}
	}
	return left, nil
}

// shorten puts the beginning of an object as one of its own.
func (s *Store) shorten(dir string, o object, end record.Offset) (object, error) {
	data, err := s.bucket.Get(dir+"/"+o.name(), 0, o.size)
	if err != nil {
		return o, err
	}
	keep := 0
	o.maxTimestamp = -1
	_, err = eachBatch(data, func(b record.Batch, at int) bool {
		if b.NextOffset() > end {
			return false
		}
		keep, o.next, o.maxTimestamp = at+len(b), b.NextOffset(), max(o.maxTimestamp, b.MaxTimestamp())
		return true
	})
	if err == nil && (keep == 0 || o.next != end) {
		err = fmt.Errorf("%w: offset %d lies inside a batch", storage.ErrInvalid, end)
	}
	if err != nil {
		return o, err
	}
	if o.sum, err = storeframe.Sum(data[:keep]); err != nil {
		return o, err
	}
	o.size = int64(keep)
	return o, s.bucket.Put(dir+"/"+o.name(), data[:keep])
}

// Adoptable implements storage.Keeper: there is nothing to be moved into an archive.
func (s *Store) Adoptable(_ context.Context, topic string) (storage.Adoption, error) {
	return storage.Adoption{}, errors.Join(storage.ValidTopic(topic), storage.ErrDataMissing)
}

// probeBytes is what there has to be room for.
const probeBytes = 1 << 20

// Room implements storage.Keeper: whether an object can be put.
func (s *Store) Room(context.Context) error {
	const key = ownDir + "/probe"
	if err := s.bucket.Put(key, make([]byte, probeBytes)); err != nil {
		return withFull(err)
	}
	return s.bucket.Delete(key)
}
