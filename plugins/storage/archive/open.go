package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Open implements storage.Streamer: the log is what the list of its objects says.
func (s *Store) Open(_ context.Context, r storage.OpenRequest) (storage.Opened, error) {
	if err := r.Partition.Valid(); err != nil {
		return storage.Opened{}, err
	}
	if r.Adopt {
		return storage.Opened{}, fmt.Errorf("%w: nothing is adopted into an archive", storage.ErrDataMissing)
	}
	if r.Held != nil {
		return storage.Opened{}, fmt.Errorf("%w: nothing is lent that could be held", storage.ErrHeldMismatch)
	}
	p := s.lock(r.Partition)
	defer p.calls.Unlock()
	p.mu.Lock()
	held := p.open && p.held && p.instance == r.Instance && p.name == r.Partition
	p.mu.Unlock()
	if held {
		return storage.Opened{}, storage.ErrLeaseHeld
	}
	log, err := s.load(r)
	if err != nil {
		return storage.Opened{}, err
	}
	cut, err := s.cutAtCeiling(r, &log)
	if err != nil {
		return storage.Opened{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.name, p.open, p.instance, p.held, p.epoch = r.Partition, true, r.Instance, true, r.Epoch
	p.objects, p.start, p.end, p.lease = log.objects, log.start, log.end, s.nextLease()
	o := p.openedLocked()
	o.Cut = cut
	return o, nil
}

// log is what was found of a partition.
type log struct {
	objects    []object
	start, end record.Offset
}

// load reads what there is of a partition, and finishes what was begun.
func (s *Store) load(r storage.OpenRequest) (log, error) {
	dir := r.Partition.String()
	list, err := s.bucket.List(dir)
	if err != nil {
		return log{}, fmt.Errorf("list %s: %w", dir, err)
	}
	mark, err := s.mark(dir, list)
	if err != nil {
		return log{}, err
	}
	switch {
	case mark == "" && r.Create:
		return log{}, s.create(r.Partition, list)
	case mark == "":
		return log{}, storage.ErrDataMissing
	case mark != r.Partition.TopicID:
		return log{}, fmt.Errorf("%w: what lies there is of topic id %s", storage.ErrDataMissing, mark)
	}
	var c contents
	if err := c.read(list); err != nil {
		return log{}, fmt.Errorf("%s: %w", dir, err)
	}
	if err := s.finish(dir, &c); err != nil {
		return log{}, err
	}
	return c.log(dir)
}

// mark is the topic id of what lies in a directory; empty where nothing does, or only what is left of something deleted.
func (s *Store) mark(dir string, list []Object) (string, error) {
	i := slices.IndexFunc(list, func(o Object) bool { return o.Name == markName })
	if i < 0 {
		return "", nil
	}
	text, err := s.bucket.Get(dir+"/"+markName, 0, min(list[i].Size, ownBytesMax))
	if err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	var format int
	var id string
	if n, err := fmt.Sscanf(string(text), "%d %s\n", &format, &id); n != 2 || err != nil || format != 1 {
		return "", fmt.Errorf("%w: %s says %.80q", storage.ErrFormat, dir, text)
	}
	return id, nil
}

// create makes an empty log. What is left of one that was being deleted goes first.
func (s *Store) create(p storage.Partition, left []Object) error {
	dir := p.String()
	for _, name := range names(left) {
		if err := s.bucket.Delete(dir + "/" + name); err != nil {
			return fmt.Errorf("clear %s: %w", dir, err)
		}
	}
	if err := s.bucket.Put(dir+"/"+markName, fmt.Appendf(nil, "1 %s\n", p.TopicID)); err != nil {
		return fmt.Errorf("create %s: %w", dir, withFull(err))
	}
	return nil
}

// finish does the rest of a truncation and of a trim that a crash has cut off.
func (s *Store) finish(dir string, c *contents) error {
	for _, end := range c.ends {
		var err error
		if c.objects, err = s.cutObjects(dir, c.objects, end); err != nil {
			return err
		}
		if err := s.bucket.Delete(dir + "/" + endName(end)); err != nil {
			return err
		}
	}
	for _, at := range c.starts {
		if at < c.start {
			if err := s.bucket.Delete(dir + "/" + startName(at)); err != nil {
				return err
			}
		}
	}
	for len(c.objects) > 0 && c.objects[0].next <= c.start {
		if err := s.bucket.Delete(dir + "/" + c.objects[0].name()); err != nil {
			return err
		}
		c.objects = c.objects[1:]
	}
	return nil
}

// log checks that the objects are a log without gaps.
func (c *contents) log(dir string) (log, error) {
	l := log{objects: c.objects, start: c.start, end: c.start}
	for i := range l.objects {
		o := &l.objects[i]
		switch {
		case i == 0 && o.base > l.start, i > 0 && o.base > l.end:
			return l, fmt.Errorf("%w: %s has nothing between offsets %d and %d", storage.ErrQuarantined, dir, l.end, o.base)
		case i > 0 && o.base < l.end:
			return l, fmt.Errorf("%w: %s has two objects of offset %d", storage.ErrQuarantined, dir, o.base)
		}
		l.end = o.next
	}
	return l, nil
}

// cutAtCeiling takes off the end what a core that is gone never saw confirmed.
func (s *Store) cutAtCeiling(r storage.OpenRequest, l *log) (*storage.Cut, error) {
	if r.Ceiling < 0 || r.Ceiling == l.end {
		return nil, nil
	}
	if r.Ceiling > l.end {
		return &storage.Cut{Offset: l.end, Reason: "the log ends below what the core saw confirmed", Dirty: true}, nil
	}
	before := bytesOf(l.objects)
	to, err := s.boundary(r.Partition.String(), l.objects, r.Ceiling)
	if err != nil {
		return nil, err
	}
	if l.objects, err = s.truncate(r.Partition.String(), l.objects, max(to, l.start)); err != nil {
		return nil, err
	}
	l.end = max(to, l.start)
	return &storage.Cut{
		Offset: l.end, Bytes: before - bytesOf(l.objects), Reason: "the core never saw it confirmed", Dirty: l.end < r.Ceiling,
	}, nil
}

func bytesOf(objects []object) (n int64) {
	for i := range objects {
		n += objects[i].size
	}
	return n
}

// boundary is the last batch boundary at or below at.
func (s *Store) boundary(dir string, objects []object, at record.Offset) (record.Offset, error) {
	i := holding(objects, at)
	if i < 0 || objects[i].base == at {
		return at, nil
	}
	data, err := s.bucket.Get(dir+"/"+objects[i].name(), 0, objects[i].size)
	if err != nil {
		return 0, err
	}
	to := objects[i].base
	_, err = eachBatch(data, func(b record.Batch, _ int) bool {
		if b.NextOffset() > at {
			return false
		}
		to = b.NextOffset()
		return true
	})
	return to, err
}

// sealedMax is how many runs an answer tells of: enough to find a time, few enough for a message.
const sealedMax = 4096

// openedLocked is what Open and Truncate answer.
func (p *part) openedLocked() storage.Opened {
	o := storage.Opened{
		LogStart: p.start,
		Lease:    storage.Lease{Epoch: p.lease, Base: p.end, Next: p.end, MaxTimestamp: -1},
	}
	most := len(p.objects)/sealedMax + 1 // objects of a run
	for i := 0; i < len(p.objects); i += most {
		run := storage.Segment{Base: p.objects[i].base, MaxTimestamp: -1}
		for _, one := range p.objects[i:min(i+most, len(p.objects))] {
			run.Next, run.Size, run.MaxTimestamp = one.next, run.Size+one.size, max(run.MaxTimestamp, one.maxTimestamp)
		}
		o.Sealed = append(o.Sealed, run)
	}
	return o
}

// Close implements storage.Streamer.
func (s *Store) Close(_ context.Context, r storage.CloseRequest) error {
	p, err := s.enter(r.Partition, r.Instance)
	if errors.Is(err, storage.ErrNotOpen) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.calls.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lease != r.Lease {
		return storage.ErrLeaseStale
	}
	p.held = false
	return nil
}

// Delete implements storage.Streamer. The mark goes first: what is left without it is nobody's.
func (s *Store) Delete(_ context.Context, name storage.Partition) error {
	if err := name.Valid(); err != nil {
		return err
	}
	p := s.lock(name)
	defer p.calls.Unlock()
	dir := name.String()
	list, err := s.bucket.List(dir)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	mark, err := s.mark(dir, list)
	if err != nil {
		return err
	}
	if mark != "" && mark != name.TopicID {
		return nil
	}
	for _, key := range append([]string{markName}, names(list)...) {
		if err := s.bucket.Delete(dir + "/" + key); err != nil {
			return fmt.Errorf("delete %s: %w", dir, err)
		}
	}
	p.mu.Lock()
	p.open, p.gone = false, true
	p.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.parts, dir)
	return nil
}
