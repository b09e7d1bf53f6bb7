package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// store is the storage plugin. One lock for all partitions keeps the example short.
type store struct {
	root string

	mu    sync.Mutex
	lease storage.LeaseEpoch // of the newest lease
	parts map[string]*part   // that were opened, by the partition's name
}

// part is a partition that was opened.
type part struct {
	*file
	id       string // of the topic
	instance string // of the core
	lease    storage.LeaseEpoch
	held     bool
	epoch    record.Epoch
}

var _ storage.StreamPlugin = (*store)(nil)

// newStore opens what lies below the data directory. Leases grow from start to start.
func newStore(data string) (*store, error) {
	s := &store{root: filepath.Join(data, name), parts: map[string]*part{}}
	if err := os.MkdirAll(s.root, 0o700); err != nil {
		return nil, err
	}
	generation := uint32(0)
	text, err := os.ReadFile(filepath.Join(s.root, "generation"))
	if err == nil {
		_, err = fmt.Sscan(string(text), &generation)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("generation: %w", err)
	}
	generation++
	s.lease = storage.LeaseEpoch(generation) << 32
	return s, writeFile(s.root, "generation", fmt.Sprintln(generation))
}

// Stop closes the files.
func (s *store) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, p := range s.parts {
		errs = append(errs, p.f.Close())
	}
	clear(s.parts)
	return errors.Join(errs...)
}

// Describe tells what this is.
func (s *store) Describe(context.Context) (storage.Description, error) {
	return storage.Description{Name: name, Version: version, Durability: "disk"}, nil
}

func (s *store) dir(p storage.Partition) string { return filepath.Join(s.root, p.String()) }

// Open makes a partition ready.
func (s *store) Open(_ context.Context, r storage.OpenRequest) (storage.Opened, error) {
	if err := r.Partition.Valid(); err != nil {
		return storage.Opened{}, err
	}
	if r.Adopt {
		return storage.Opened{}, fmt.Errorf("%w: nothing can be adopted", storage.ErrDataMissing)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := r.Partition.String()
	if p := s.parts[key]; p != nil {
		if p.held && p.instance == r.Instance && p.id == r.Partition.TopicID {
			return storage.Opened{}, storage.ErrLeaseHeld
		}
		delete(s.parts, key)
		if err := p.f.Close(); err != nil {
			return storage.Opened{}, err
		}
	}
	if err := s.exists(r); err != nil {
		return storage.Opened{}, err
	}
	l, cut, err := openFile(s.dir(r.Partition))
	if err != nil {
		return storage.Opened{}, err
	}
	if cut == nil && r.Ceiling >= 0 && r.Ceiling != l.end() {
		if cut, err = l.atCeiling(r.Ceiling); err != nil {
			return storage.Opened{}, errors.Join(err, l.f.Close())
		}
	}
	if cut != nil && r.Lazy {
		cut.Dirty = false // it was never promised
	}
	p := &part{file: l, id: r.Partition.TopicID, instance: r.Instance, epoch: r.Epoch}
	s.parts[key] = p
	o := s.lendLocked(p)
	o.Cut = cut
	return o, nil
}

// exists makes sure that the partition's directory is there, and is this topic's.
func (s *store) exists(r storage.OpenRequest) error {
	dir := s.dir(r.Partition)
	id, err := os.ReadFile(filepath.Join(dir, idName))
	switch {
	case errors.Is(err, fs.ErrNotExist) && r.Create:
		return createFile(dir, r.Partition.TopicID)
	case errors.Is(err, fs.ErrNotExist):
		return storage.ErrDataMissing
	case err == nil && string(id) != r.Partition.TopicID:
		return fmt.Errorf("%w: what lies there is another topic's", storage.ErrDataMissing)
	}
	return err
}

// atCeiling takes off what a core that is gone never saw confirmed, and says what is missing of what it saw.
func (l *file) atCeiling(ceiling record.Offset) (*storage.Cut, error) {
	if ceiling > l.end() {
		return &storage.Cut{Offset: l.end(), Reason: "the log ends below what was confirmed", Dirty: true}, nil
	}
	to := max(l.start, l.batches[l.holding(ceiling)].base)
	before := l.size
	if err := l.truncate(to); err != nil {
		return nil, err
	}
	return &storage.Cut{Offset: to, Bytes: before - l.size, Reason: "it was never confirmed", Dirty: to < ceiling}, nil
}

// runBytes bounds what an answer tells of as one run of batches.
const runBytes = 64 << 20

// lendLocked gives the right to append.
func (s *store) lendLocked(p *part) storage.Opened {
	s.lease++
	p.lease, p.held = s.lease, true
	o := storage.Opened{LogStart: p.start, Lease: storage.Lease{Epoch: p.lease, Base: p.end(), Next: p.end(), MaxTimestamp: -1}}
	for _, b := range p.batches {
		n := len(o.Sealed) - 1
		if n < 0 || o.Sealed[n].Size+int64(b.size) > runBytes {
			o.Sealed = append(o.Sealed, storage.Segment{Base: b.base, MaxTimestamp: -1})
			n++
		}
		run := &o.Sealed[n]
		run.Next, run.Size, run.MaxTimestamp = b.next, run.Size+int64(b.size), max(run.MaxTimestamp, b.maxTimestamp)
	}
	return o
}

// findLocked returns a partition that is open; of another core's it says so.
func (s *store) findLocked(name storage.Partition, instance string) (*part, error) {
	p := s.parts[name.String()]
	switch {
	case p == nil || p.id != name.TopicID:
		return nil, storage.ErrNotOpen
	case p.instance != instance:
		return nil, storage.ErrLeaseStale
	}
	return p, nil
}

// Append adds a group at the end.
func (s *store) Append(_ context.Context, r storage.AppendRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.findLocked(r.Partition, r.Instance)
	if err != nil {
		return err
	}
	if !p.held || p.lease != r.Lease {
		return storage.ErrLeaseStale
	}
	if there, err := p.has(r.Base, r.Bytes); there || err != nil {
		return err // the answer was lost
	}
	if torn, err := p.tornOff(r); err != nil || torn {
		return err
	}
	if r.Base != p.end() {
		return fmt.Errorf("%w: a group of offset %d, and the log ends at %d", storage.ErrHeldMismatch, r.Base, p.end())
	}
	batches, err := check(r, p.epoch)
	if err != nil {
		return err
	}
	return p.append(r.Bytes, batches)
}

// tornOff completes a group of which a crash has left the beginning.
func (p *part) tornOff(r storage.AppendRequest) (bool, error) {
	i := p.holding(r.Base)
	if i == len(p.batches) || p.batches[i].base != r.Base {
		return false, nil
	}
	there := p.size - p.batches[i].at
	if there >= int64(len(r.Bytes)) {
		return false, nil
	}
	if same, err := p.has(r.Base, r.Bytes[:there]); !same || err != nil {
		return false, err
	}
	batches, err := check(r, p.epoch)
	if err != nil {
		return false, err
	}
	if err := p.truncate(r.Base); err != nil {
		return false, err
	}
	return true, p.append(r.Bytes, batches)
}

// check refuses a group that is not what it says, and tells where its batches lie in it.
func check(r storage.AppendRequest, epoch record.Epoch) ([]batch, error) {
	var found []batch
	next := r.Base
	for at := 0; at < len(r.Bytes); {
		size, err := record.SizeOf(r.Bytes[at:])
		if err == nil && size > len(r.Bytes)-at {
			err = record.ErrShort
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", storage.ErrInvalid, err)
		}
		b := record.Batch(r.Bytes[at : at+size])
		if err := b.Check(); err != nil {
			return nil, fmt.Errorf("%w: %w", storage.ErrInvalid, err)
		}
		if b.BaseOffset() != next || b.Epoch() != r.Epoch || r.Epoch != epoch {
			return nil, fmt.Errorf("%w: a batch of offset %d, epoch %d where %d, %d is to be", storage.ErrInvalid, b.BaseOffset(), b.Epoch(), next, epoch)
		}
		found = append(found, batch{next, b.NextOffset(), int64(at), size, b.MaxTimestamp()})
		at, next = at+size, b.NextOffset()
	}
	if next != r.Next {
		return nil, fmt.Errorf("%w: the group ends at %d and not at %d", storage.ErrInvalid, next, r.Next)
	}
	return found, nil
}

// Read returns batches.
func (s *store) Read(_ context.Context, r storage.ReadRequest) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.parts[r.Partition.String()]
	if p == nil || p.id != r.Partition.TopicID {
		return nil, storage.ErrNotOpen
	}
	return p.read(r.Into, r.Offset, r.Limit)
}

// Close takes the lease back.
func (s *store) Close(_ context.Context, r storage.CloseRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.findLocked(r.Partition, r.Instance)
	switch {
	case errors.Is(err, storage.ErrNotOpen):
		return nil
	case err != nil:
		return err
	case p.lease != r.Lease:
		return storage.ErrLeaseStale
	}
	p.held = false
	return nil
}

// Delete removes a partition. The topic's id goes first: what is left without it is nobody's.
func (s *store) Delete(_ context.Context, name storage.Partition) error {
	if err := name.Valid(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := s.dir(name)
	id, err := os.ReadFile(filepath.Join(dir, idName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && string(id) != name.TopicID {
		return nil
	}
	if p := s.parts[name.String()]; p != nil && p.id == name.TopicID {
		delete(s.parts, name.String())
		if err := p.f.Close(); err != nil {
			return err
		}
	}
	if err == nil {
		if err := errors.Join(os.Remove(filepath.Join(dir, idName)), syncDir(dir)); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(dir), syncDir(s.root))
}

// Expire proposes a log start. The last batch stays.
func (s *store) Expire(_ context.Context, r storage.ExpireRequest) (record.Offset, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.findLocked(r.Partition, r.Instance)
	if err != nil {
		return 0, err
	}
	start, total := p.start, p.size-p.from
	oldest := time.Now().Add(-r.RetentionTime).UnixMilli()
	for i := range len(p.batches) - 1 {
		b := &p.batches[i]
		tooMuch := r.RetentionBytes >= 0 && total-int64(b.size) >= r.RetentionBytes
		tooOld := r.RetentionTime > 0 && b.maxTimestamp < oldest
		if !tooMuch && !tooOld || b.next > r.Limit {
			break
		}
		total -= int64(b.size)
		start = max(start, b.next)
	}
	return start, nil
}

// Trim moves the log start up.
func (s *store) Trim(_ context.Context, r storage.TrimRequest) (storage.Trimmed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.findLocked(r.Partition, r.Instance)
	if err == nil {
		err = p.trim(min(r.LogStart, p.end()))
	}
	if err != nil {
		return storage.Trimmed{}, err
	}
	return storage.Trimmed{LogStart: p.start, First: min(p.first, p.start)}, nil
}

// Truncate takes the new end off the log.
func (s *store) Truncate(_ context.Context, r storage.TruncateRequest) (storage.Opened, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.findLocked(r.Partition, r.Instance)
	if err != nil {
		return storage.Opened{}, err
	}
	i := p.holding(r.Next)
	switch {
	case p.lease != r.Lease:
		return storage.Opened{}, storage.ErrLeaseStale
	case p.held:
		return storage.Opened{}, storage.ErrLeaseHeld
	case r.Next < p.start || r.Next > p.end():
		return storage.Opened{}, fmt.Errorf("%w: %d in [%d, %d)", storage.ErrOffsetOutOfRange, r.Next, p.start, p.end())
	case i < len(p.batches) && p.batches[i].base != r.Next:
		return storage.Opened{}, fmt.Errorf("%w: offset %d lies inside a batch", storage.ErrInvalid, r.Next)
	}
	if err := p.truncate(r.Next); err != nil {
		return storage.Opened{}, err
	}
	p.epoch = r.Epoch
	return s.lendLocked(p), nil
}

// Adoptable finds nothing: this store takes nothing over.
func (s *store) Adoptable(_ context.Context, topic string) (storage.Adoption, error) {
	return storage.Adoption{}, errors.Join(storage.ValidTopic(topic), storage.ErrDataMissing)
}

// Room reports whether there is room for a group.
func (s *store) Room(context.Context) error {
	probe := filepath.Join(s.root, "probe")
	err := os.WriteFile(probe, make([]byte, groupBytesMax), 0o600)
	if gone := os.Remove(probe); err == nil {
		return gone
	}
	return fmt.Errorf("%w: %w", storage.ErrFull, err)
}
