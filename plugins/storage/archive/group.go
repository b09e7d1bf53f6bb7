package archive

import (
	"context"
	"fmt"
	"sort"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Append implements storage.Streamer: one group, one object.
func (s *Store) Append(_ context.Context, r storage.AppendRequest) error {
	p, err := s.enter(r.Partition, r.Instance)
	if err != nil {
		return err
	}
	defer p.calls.Unlock()
	p.mu.Lock()
	held, lease, epoch, end := p.held, p.lease, p.epoch, p.end
	there := p.thereLocked(r)
	p.mu.Unlock()
	switch {
	case !held || lease != r.Lease:
		return storage.ErrLeaseStale
	case there:
		return nil
	case r.Base != end:
		return fmt.Errorf("%w: group [%d, %d), and the log ends at %d", storage.ErrHeldMismatch, r.Base, r.Next, end)
	case r.Epoch != epoch:
		return fmt.Errorf("%w: group of leader epoch %d in a log that was opened with %d", storage.ErrInvalid, r.Epoch, epoch)
	}
	if err := check(r); err != nil {
		return err
	}
	o := object{
		base: r.Base, next: r.Next, epoch: r.Epoch, sum: r.Sum, maxTimestamp: r.MaxTimestamp,
		put: s.clock.Now(), size: int64(len(r.Bytes)),
	}
	if err := s.bucket.Put(p.key(o.name()), r.Bytes); err != nil {
		return fmt.Errorf("put %s: %w", p.key(o.name()), withFull(err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.objects, p.end = append(p.objects, o), o.next
	return nil
}

// thereLocked reports whether the group was put before: its answer was lost.
func (p *part) thereLocked(r storage.AppendRequest) bool {
	i := sort.Search(len(p.objects), func(i int) bool { return p.objects[i].base >= r.Base })
	if i == len(p.objects) {
		return false
	}
	o := &p.objects[i]
	return o.base == r.Base && o.next == r.Next && o.epoch == r.Epoch && o.sum == r.Sum && o.size == int64(len(r.Bytes))
}

// check refuses a group that is not what it says: nothing that is damaged is ever put.
func check(r storage.AppendRequest) error {
	next, bad := r.Base, error(nil)
	whole, err := eachBatch(r.Bytes, func(b record.Batch, _ int) bool {
		switch bad = b.Check(); {
		case bad != nil:
		case b.BaseOffset() != next || b.Epoch() != r.Epoch:
			bad = fmt.Errorf("batch of %d in epoch %d, expected %d in %d", b.BaseOffset(), b.Epoch(), next, r.Epoch)
		}
		next = b.NextOffset()
		return bad == nil
	})
	switch {
	case err != nil:
	case bad != nil:
		err = bad
	case !whole || next != r.Next:
		err = fmt.Errorf("it ends at %d", next)
	}
	if err != nil {
		return fmt.Errorf("%w: group [%d, %d): %w", storage.ErrInvalid, r.Base, r.Next, err)
	}
	return nil
}

// eachBatch calls f with each batch and where it begins, until f says that it is enough. It reports whether that was
// all; an error says that the bytes are no whole batches.
func eachBatch(group []byte, f func(b record.Batch, at int) bool) (whole bool, err error) {
	for at := 0; at < len(group); {
		size, err := record.SizeOf(group[at:])
		if err == nil && size > len(group)-at {
			err = record.ErrShort
		}
		if err != nil {
			return false, fmt.Errorf("byte %d: %w", at, err)
		}
		if !f(record.Batch(group[at:at+size]), at) {
			return false, nil
		}
		at += size
	}
	return true, nil
}

// holding is the index of the object that holds an offset, -1 where none does.
func holding(objects []object, at record.Offset) int {
	i := sort.Search(len(objects), func(i int) bool { return objects[i].next > at })
	if i == len(objects) || objects[i].base > at {
		return -1
	}
	return i
}

// Read implements storage.Streamer. It waits for no append.
func (s *Store) Read(_ context.Context, r storage.ReadRequest) ([]byte, error) {
	p, err := s.find(r.Partition)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	i := holding(p.objects, r.Offset)
	if i < 0 || r.Offset < p.start {
		defer p.mu.Unlock()
		return nil, fmt.Errorf("%w: %d in [%d, %d)", storage.ErrOffsetOutOfRange, r.Offset, p.start, p.end)
	}
	var wanted []object
	var bytes int64
	for _, o := range p.objects[i:] {
		if len(wanted) > 0 && bytes >= r.Limit {
			break
		}
		wanted, bytes = append(wanted, o), bytes+o.size
	}
	p.mu.Unlock()
	out := r.Into[:0]
	for n, o := range wanted {
		data, err := s.get(p.key(o.name()), o.size)
		if err != nil && n > 0 {
			break // whoever goes on there hears of it
		}
		if err != nil {
			return nil, withRange(err)
		}
		before := len(out)
		out = fit(out, data, r)
		if len(out)-before < len(data) && n > 0 {
			break
		}
	}
	return out, nil
}

// fit appends the batches from the one that holds the offset on, as far as the limit allows, but one at least. Bytes that
// are no batches go along as they are: the core reports them.
func fit(out, data []byte, r storage.ReadRequest) []byte {
	from, to := -1, 0
	_, err := eachBatch(data, func(b record.Batch, at int) bool {
		if b.NextOffset() <= r.Offset {
			return true
		}
		if from < 0 {
			from = at
		}
		if (len(out) > 0 || at > from) && int64(len(out)+at+len(b)-from) > r.Limit {
			return false
		}
		to = at + len(b)
		return true
	})
	if err != nil && from < 0 {
		return append(out, data...)
	}
	if from < 0 || to <= from {
		return out
	}
	return append(out, data[from:to]...)
}

// cacheObjects is how many objects are kept: who reads a large one in pieces gets it once.
const cacheObjects = 16

// cacheBytesMax bounds an object that is kept.
const cacheBytesMax = 2 << 20

// cache holds the objects read last.
type cache struct {
	mu   sync.Mutex
	keys [cacheObjects]string
	data [cacheObjects][]byte
	next int // to be replaced
}

// get returns a whole object.
func (s *Store) get(key string, size int64) ([]byte, error) {
	c := &s.cache
	c.mu.Lock()
	for i := range c.keys {
		if c.keys[i] == key {
			defer c.mu.Unlock()
			return c.data[i], nil
		}
	}
	c.mu.Unlock()
	data, err := s.bucket.Get(key, 0, size)
	if err != nil || size > cacheBytesMax || size < cacheBytesMin {
		return data, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys[c.next], c.data[c.next] = key, data
	c.next = (c.next + 1) % cacheObjects
	return data, nil
}

// cacheBytesMin is what a read takes in one go; smaller objects are read once anyway.
const cacheBytesMin = 128 << 10
