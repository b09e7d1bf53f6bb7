// Package archive is a store without files: it keeps each group of batches as one object, and asks no more of where they
// are kept than to put, get, list and delete (Bucket). Shipped is a bucket that is a directory; an append is answered
// when the object and its name are synced there.
//
// An object never changes. A log is what a list of its objects says, so recovery is a list; what was being put when a
// process died is there whole or not at all. Every publish costs a put, so it is a store for topics that are written in
// large groups, or seldom.
//
// It is served by package stream, and assumes that one process at a time uses a bucket.
package archive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/retention"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Name and Version are what the store says of itself.
const (
	Name    = "archive"
	Version = "1"
)

// Options configure a Store.
type Options struct {
	Data   string           // the data directory; objects lie below it
	FS     vfs.FS           // nil: the real one
	Clock  retention.Source // nil: the machine's
	Logger *slog.Logger     // nil: none
}

// Objects of the store itself, beside the directories of partitions.
const (
	ownDir         = "store"
	clockName      = "clock"
	generationName = "generation"
)

// clockEvery is how often the retention clock is saved.
const clockEvery = time.Minute

// Store keeps logs as objects.
type Store struct {
	bucket     Bucket
	durability string
	log        *slog.Logger
	clock      *retention.Clock
	generation uint32 // counts starts: the high half of lease epochs
	leases     atomic.Uint32
	cache      cache

	mu    sync.Mutex
	parts map[string]*part // by directory name

	cancel  context.CancelFunc
	workers sync.WaitGroup
	stopped sync.Once
}

var _ storage.StreamPlugin = (*Store)(nil)

// New opens the archive below the data directory and makes it where it is missing. Stop ends the store.
func New(o Options) (*Store, error) {
	data, err := filepath.Abs(o.Data)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.Clock == nil {
		o.Clock = retention.System()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	root := filepath.Join(data, "archive")
	bucket, err := newDirBucket(o.FS, root)
	if err != nil {
		return nil, fmt.Errorf("archive below %s: %w", data, withFull(err))
	}
	s := &Store{bucket: bucket, durability: "disk", log: o.Logger, clock: retention.New(o.Clock), parts: make(map[string]*part)}
	if room, ok := o.FS.(vfs.Room); ok {
		if volume, err := room.Volume(root); err == nil && volume.Volatile {
			s.durability = "memory"
		}
	}
	if err := s.remember(); err != nil {
		return nil, fmt.Errorf("archive below %s: %w", data, withFull(err))
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.workers.Go(func() {
		pprof.Do(ctx, pprof.Labels("component", "storage/archive", "work", "clock"), s.keepClock)
	})
	return s, nil
}

// remember takes up what outlasted the process before, and counts this start.
func (s *Store) remember() error {
	list, err := s.bucket.List(ownDir)
	if err != nil {
		return err
	}
	s.clock.Begin()
	for _, o := range list {
		text, err := s.bucket.Get(ownDir+"/"+o.Name, 0, min(o.Size, ownBytesMax))
		if err != nil {
			return err
		}
		var a, b int64
		switch o.Name {
		case clockName:
			if n, err := fmt.Sscanf(string(text), "1 %d %d\n", &a, &b); n == 2 && err == nil && a >= 0 && b >= 0 {
				s.clock.Resume(retention.Hands{Time: time.Duration(a) * time.Millisecond, Apart: time.Duration(b) * time.Millisecond})
			} else {
				s.log.Warn("retention clock begins anew", "read", fmt.Sprintf("%.80q", text))
			}
		case generationName:
			if _, err := fmt.Sscanf(string(text), "%d\n", &s.generation); err != nil {
				return fmt.Errorf("%w: %s %.80q", storage.ErrFormat, generationName, text)
			}
		}
	}
	s.generation++
	return s.bucket.Put(ownDir+"/"+generationName, fmt.Appendf(nil, "%d\n", s.generation))
}

// ownBytesMax is more than an object of the store itself can have.
const ownBytesMax = 256

func (s *Store) keepClock(ctx context.Context) {
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.saveClock()
			return
		case <-tick.C:
			s.saveClock()
		}
	}
}

// saveClock loses at most the time since the last save where it fails.
func (s *Store) saveClock() {
	h := s.clock.Hands()
	if err := s.bucket.Put(ownDir+"/"+clockName, fmt.Appendf(nil, "1 %d %d\n", h.Time.Milliseconds(), h.Apart.Milliseconds())); err != nil {
		s.log.Warn("retention clock is not saved", "err", err)
	}
}

// Stop ends the background work and waits for it. A second call does nothing.
func (s *Store) Stop() error {
	s.stopped.Do(func() {
		s.cancel()
		s.workers.Wait()
	})
	return nil
}

// Describe implements storage.Streamer.
func (s *Store) Describe(context.Context) (storage.Description, error) {
	return storage.Description{Name: Name, Version: Version, Durability: s.durability}, nil
}

func (s *Store) nextLease() storage.LeaseEpoch {
	return storage.LeaseEpoch(s.generation)<<32 | storage.LeaseEpoch(s.leases.Add(1))
}

// part is one partition that was opened in this process.
type part struct {
	name  storage.Partition
	calls sync.Mutex // held over a call that changes the log

	mu       sync.Mutex // never held over I/O
	open     bool
	gone     bool // deleted
	instance string
	held     bool
	epoch    record.Epoch // of what may be appended
	lease    storage.LeaseEpoch
	start    record.Offset
	end      record.Offset
	objects  []object // in order, without gaps up to end
}

func (p *part) key(name string) string { return p.name.String() + "/" + name }

// lock returns the partition of that name for a call that changes the log, and makes it where it is not known yet.
func (s *Store) lock(name storage.Partition) *part {
	for {
		s.mu.Lock()
		p := s.parts[name.String()]
		if p == nil {
			p = &part{name: name}
			s.parts[name.String()] = p
		}
		s.mu.Unlock()
		p.calls.Lock()
		p.mu.Lock()
		gone := p.gone
		p.mu.Unlock()
		if !gone {
			return p
		}
		p.calls.Unlock()
	}
}

// find returns a partition that is open; ErrNotOpen where it is not.
func (s *Store) find(name storage.Partition) (*part, error) {
	if err := name.Valid(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	p := s.parts[name.String()]
	s.mu.Unlock()
	if p == nil {
		return nil, storage.ErrNotOpen
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.open || p.name != name {
		return nil, storage.ErrNotOpen
	}
	return p, nil
}

// enter is find for a call that changes the log, on behalf of a core. leave must follow.
func (s *Store) enter(name storage.Partition, instance string) (*part, error) {
	p, err := s.find(name)
	if err != nil {
		return nil, err
	}
	p.calls.Lock()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.open || p.name != name:
		err = storage.ErrNotOpen
	case p.instance != instance:
		err = storage.ErrLeaseStale
	default:
		return p, nil
	}
	p.calls.Unlock()
	return nil, err
}

// withFull gives errors for want of space the contract's identity, unless the object may be there all the same.
func withFull(err error) error {
	if (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) && !errors.Is(err, errUnknown) {
		return fmt.Errorf("%w: %w", storage.ErrFull, err)
	}
	return err
}

// withRange says that an object which is gone was trimmed meanwhile.
func withRange(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", storage.ErrOffsetOutOfRange, err)
	}
	return err
}
