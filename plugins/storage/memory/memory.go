// Package memory is a store whose logs live in memory: it lends memfds, which last as long as a process has them open.
// The core keeps all of them open and hands them back when the store's process was restarted, so a log outlives its
// store, and nothing outlives the server.
//
// What does outlive it is a floor for each partition, a small file: no offset below it is ever given again. A partition
// that is opened with nothing held goes on, empty, at its floor; the core gives it a new leader epoch.
//
// All logs together stay within a cap. A segment is counted in full when it is lent; one that does not fit is refused
// with storage.ErrFull, and retention makes room. Acknowledgements say "memory".
//
// It assumes Linux. It indexes nothing, because the core that wrote a log knows where everything lies: Locate walks the
// segment.
package memory

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Name and Version are what the store says of itself.
const (
	Name    = "memory"
	Version = "1"
)

// Options configure a Store.
type Options struct {
	Data string           // the data directory; floors lie below it
	Cap  int64            // bytes that all logs together may take
	FS   vfs.FS           // of the floors; nil: the real one
	Now  func() time.Time // nil: the machine's clock
}

// capMin is room for one smallest segment.
const capMin = 64 << 10

// Store keeps logs in memory.
type Store struct {
	floors floors
	cap    int64
	now    func() time.Time // monotonic: segments age by it

	mu    sync.Mutex
	parts map[string]*part // by directory name; those that were opened in this process
	used  int64            // bytes of all segments, active ones in full
}

var _ storage.Plugin = (*Store)(nil)

// New makes the directory of floors where it is missing. Stop ends the store.
func New(o Options) (*Store, error) {
	if o.Cap < capMin {
		return nil, fmt.Errorf("%w: a cap of %d bytes, below %d", storage.ErrInvalid, o.Cap, capMin)
	}
	data, err := filepath.Abs(o.Data)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	s := &Store{cap: o.Cap, now: o.Now, parts: make(map[string]*part)}
	s.floors = floors{fs: o.FS, dir: filepath.Join(data, "memory")}
	if s.floors.fs == nil {
		s.floors.fs = vfs.OS()
	}
	if s.now == nil {
		s.now = time.Now
	}
	if err := vfs.MakeDirs(s.floors.fs, s.floors.dir); err != nil {
		return nil, fmt.Errorf("directory of floors: %w", err)
	}
	return s, nil
}

// Stop closes what the store has open. What the core has open it keeps. A second call does nothing.
func (s *Store) Stop() error {
	s.mu.Lock()
	parts := s.parts
	s.parts = make(map[string]*part)
	s.mu.Unlock()
	for _, p := range parts {
		p.mu.Lock()
		s.dropSegmentsLocked(p, len(p.segments))
		p.mu.Unlock()
	}
	return nil
}

// Describe implements storage.Store. The canary lies in memory, too: it never fails.
func (s *Store) Describe(context.Context) (storage.Description, error) {
	canary, err := newFile("canary")
	if err != nil {
		return storage.Description{}, fmt.Errorf("canary: %w", err)
	}
	return storage.Description{
		Name: Name, Version: Version, Durability: "memory", Canary: loan{canary}, Pinned: true, SegmentRecords: segmentRecords,
	}, nil
}

// part is one partition that was opened.
type part struct {
	name storage.Partition

	mu       sync.Mutex // held over a call; Locate and Note may wait for one
	gone     bool       // deleted: whoever waited for mu finds nothing
	instance string     // of the core that has, or had, the lease
	held     bool
	lease    storage.LeaseEpoch // the newest
	floor    record.Offset      // as it is on disk
	start    record.Offset      // the log start
	segments []*segment         // in order; the last one is active
	size     int64              // of a segment, as the core says: what the active one is counted as
	rolled   rolled
}

// segment is offsets [base, next), bytes [0, size) of a memfd; the end of the active one is what the core has told.
type segment struct {
	base, next   record.Offset
	size         int64
	counted      int64 // in Store.used
	maxTimestamp int64
	sealed       time.Time
	file         vfs.File
}

// rolled is the last roll and its answer, which a core that did not hear it may ask for again.
type rolled struct {
	request storage.RollRequest
	lease   storage.LeaseEpoch
}

func (p *part) active() *segment { return p.segments[len(p.segments)-1] }

// enter finds a partition of that id and locks it; ErrNotOpen where it was never opened here.
func (s *Store) enter(name storage.Partition) (*part, error) {
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
	if p.gone || p.name != name || len(p.segments) == 0 {
		p.mu.Unlock()
		return nil, storage.ErrNotOpen
	}
	return p, nil
}

// enterAs is enter for a call that carries a lease.
func (s *Store) enterAs(name storage.Partition, instance string, lease storage.LeaseEpoch) (*part, error) {
	p, err := s.enter(name)
	if err != nil {
		return nil, err
	}
	if p.instance != instance || p.lease != lease || !p.held {
		p.mu.Unlock()
		return nil, storage.ErrLeaseStale
	}
	return p, nil
}

// charge counts a segment as so many bytes; ErrFull where that is more than there is room for, unless force says that
// the bytes are there already.
func (s *Store) charge(seg *segment, bytes int64, force bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	more := bytes - seg.counted
	if more > 0 && s.used+more > s.cap && !force {
		return fmt.Errorf("%w: %d bytes of memory are in use, a segment of %d does not fit into the cap of %d", storage.ErrFull, s.used, bytes, s.cap)
	}
	s.used += more
	seg.counted = bytes
	return nil
}

// dropSegmentsLocked lets go of the first n segments.
func (s *Store) dropSegmentsLocked(p *part, n int) {
	for _, seg := range p.segments[:n] {
		_ = s.charge(seg, 0, true) // less is never refused
		_ = seg.file.Close()       // memory: nothing is lost that anybody can still read
	}
	p.segments = append([]*segment(nil), p.segments[n:]...)
}

// lend is the active segment as the core gets it.
func (p *part) lend() (storage.Lease, error) {
	a := p.active()
	info, err := a.file.Stat()
	if err != nil {
		return storage.Lease{}, err
	}
	f, err := vfs.OS().Reopen(a.file)
	if err != nil {
		return storage.Lease{}, fmt.Errorf("lend: %w", err)
	}
	return storage.Lease{
		Epoch: p.lease, Base: a.base, Next: a.next, Position: a.size, MaxTimestamp: a.maxTimestamp,
		Dev: info.Dev, Ino: info.Ino, File: loan{f},
	}, nil
}

// opened is what Open and Truncate answer.
func (p *part) opened() (storage.Opened, error) {
	lease, err := p.lend()
	if err != nil {
		return storage.Opened{}, err
	}
	o := storage.Opened{Lease: lease, LogStart: p.start}
	for _, seg := range p.segments[:len(p.segments)-1] {
		o.Sealed = append(o.Sealed, storage.Segment{Base: seg.base, Next: seg.next, Size: seg.size, MaxTimestamp: seg.maxTimestamp})
	}
	return o, nil
}

// loan is a file as it is lent.
type loan struct{ file vfs.File }

// Fd is the descriptor.
func (l loan) Fd() uintptr { return uintptr(l.file.Fd()) }

// Close gives the loan back.
func (l loan) Close() error { return l.file.Close() }
