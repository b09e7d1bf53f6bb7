// Package filelog is the storage plugin that keeps partitions as Kafka's segment files on a local file system.
//
// It makes segments, lends the active one to the core, seals and locates them, recovers a log by scanning it, and
// deletes by way of a trash directory; it neither writes a batch nor syncs one that the core wrote, but for recovery.
// A log whose damage cannot be a torn tail is set aside in quarantine, never cut.
//
// It assumes that it is alone in its data directory (the core's lock sees to that) and that the file system keeps what
// was synced. It keeps no descriptor open between calls: what it lends belongs to the receiver.
package filelog

import (
	"context"
	"errors"
	"fmt"
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
)

// Name and Version are what Describe says.
const (
	Name    = "filelog"
	Version = "1"
)

// Options configure a Store.
type Options struct {
	// Data is the data directory, made where it is missing.
	Data string
	// FS is the file system; nil is the real one.
	FS vfs.FS
	// Logger is where repairs are reported; nil discards.
	Logger *slog.Logger
	// Clock tells the time; nil is the machine's.
	Clock Clock
	// Reserve is how many bytes are kept for the store itself when the disk is full: 0 none, negative the smaller of
	// 64 MiB and a sixteenth of the file system.
	Reserve int64
}

// Store is a directory of partitions. It is safe for concurrent use.
type Store struct {
	disk disk
	log  *slog.Logger

	clock          *retentionClock
	recoveryPoints *checkpoint
	logStarts      *checkpoint
	reserve        reserve
	suspects       chan struct{} // one slot: who opens a partition at which the process has ended before
	scanned        atomic.Int64  // bytes, by all recoveries

	// generation counts the starts on this directory and is the high half of every lease epoch; leases is the low
	// half. So an epoch never comes twice, whatever was forgotten with the process before.
	generation uint32
	leases     atomic.Uint32

	mu    sync.Mutex
	parts map[string]*part // by directory name; those that are open or being worked on

	trash   backlog // names under trash/ to unlink
	spares  backlog // partitions to make a spare for
	tidying backlog // partitions with notes, seals or stamps to work off
	cancel  context.CancelFunc
	workers sync.WaitGroup

	stopOnce sync.Once
	stopMu   sync.Mutex
	failure  error // the first error of a worker; guarded by stopMu
}

var _ storage.Store = (*Store)(nil)

// New opens the data directory: it makes what is missing, clears what was being built, and goes on with what was being
// deleted. Stop ends it.
func New(o Options) (*Store, error) {
	data, err := filepath.Abs(o.Data)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = retention.System()
	}
	s := &Store{
		disk: disk{fs: o.FS, data: data}, log: o.Logger, parts: make(map[string]*part),
		clock: &retentionClock{clock: o.Clock}, reserve: reserve{turn: make(chan struct{}, 1)}, suspects: make(chan struct{}, 1),
		trash: newBacklog(), spares: newBacklog(), tidying: newBacklog(),
	}
	write := func(path string, content []byte) error {
		return s.withReserve(func() error { return s.disk.writeDurably(path, content) })
	}
	s.recoveryPoints = newCheckpoint(s.disk.logs(), recoveryPointName, write)
	s.logStarts = newCheckpoint(s.disk.logs(), logStartName, write)
	left, err := s.disk.prepare()
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", data, withFull(err))
	}
	if s.generation, err = s.disk.nextGeneration(); err != nil {
		return nil, fmt.Errorf("prepare %s: %w", data, withFull(err))
	}
	s.remember(o)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	for _, name := range left {
		s.trash.push(name)
	}
	s.work(ctx, "trash", s.trash, s.emptyTrash)
	s.work(ctx, "spares", s.spares, s.makeSpare)
	s.work(ctx, "tidying", s.tidying, s.tidyPart)
	for _, c := range []*checkpoint{s.recoveryPoints, s.logStarts} {
		s.label(ctx, c.name, func(ctx context.Context) { c.run(ctx, func(err error) { s.workerFailed(c.name, err) }) })
	}
	s.label(ctx, "clock", s.keepClock)
	return s, nil
}

// remember takes up what outlasted the process before. All of it is of use only: a store starts without.
func (s *Store) remember(o Options) {
	for _, c := range []*checkpoint{s.recoveryPoints, s.logStarts} {
		if err := c.load(s.disk); err != nil {
			s.log.Warn("checkpoint of no use; recovery takes longer", "checkpoint", c.name, "err", err)
		}
	}
	if err := s.clock.load(s.disk, s.generation); err != nil {
		s.log.Warn("retention clock begins anew: segments count as sealed now", "err", err)
	}
	s.reserve.size = s.reserveBytes(o.Reserve)
}

// keepClock saves the retention clock now and then, and makes the reserve first of all. Neither keeps a store on a full
// disk from starting.
func (s *Store) keepClock(ctx context.Context) {
	if err := s.restoreReserve(); err != nil {
		s.log.Warn("the reserve for a full disk could not be made", "err", err)
	}
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.clock.save(s.disk); err != nil {
			s.workerFailed("save the retention clock", err)
		}
	}
}

// work starts the one goroutine of a backlog; Stop waits for it.
func (s *Store) work(ctx context.Context, what string, b backlog, do func(context.Context, string)) {
	s.label(ctx, what, func(ctx context.Context) { b.run(ctx, do) })
}

func (s *Store) label(ctx context.Context, what string, do func(context.Context)) {
	s.workers.Go(func() {
		pprof.Do(ctx, pprof.Labels("component", "storage/filelog", "work", what), do)
	})
}

// Stop ends the background work and waits for it, completes indexes and writes the checkpoints, so that the next start
// scans little. It returns the first error that work met. Leases are not touched: their files are the core's. A second
// call does nothing.
func (s *Store) Stop() error {
	s.stopOnce.Do(func() {
		s.cancel()
		s.workers.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), settleMax)
		defer cancel()
		s.settle(ctx)
	})
	s.stopMu.Lock()
	defer s.stopMu.Unlock()
	err := s.failure
	s.failure = nil
	return err
}

// settleMax bounds the wait for calls that are still under way when the store stops.
const settleMax = 3 * time.Second

// settle does once more, for all partitions, what the workers do.
func (s *Store) settle(ctx context.Context) {
	s.mu.Lock()
	var names []string
	for name := range s.parts {
		names = append(names, name)
	}
	s.mu.Unlock()
	for _, name := range names {
		p, err := s.enter(ctx, name)
		if err != nil {
			continue // a call is still under way: what it leaves, the next start does
		}
		s.tidyOrTell(ctx, p)
		s.leave(p)
	}
	for _, c := range []*checkpoint{s.recoveryPoints, s.logStarts} {
		if err := c.flush(ctx); err != nil {
			s.workerFailed(c.name, err)
		}
	}
	if err := s.clock.save(s.disk); err != nil {
		s.workerFailed("save the retention clock", err)
	}
}

// workerFailed reports an error that no caller waits for. The work is taken up again at the next start.
// Of a full disk one line is enough, until there is room again.
func (s *Store) workerFailed(what string, err error) {
	if !errors.Is(withFull(err), storage.ErrFull) || !s.reserve.wanting.Swap(true) {
		s.log.Error("storage background work", "what", what, "err", err)
	}
	s.stopMu.Lock()
	defer s.stopMu.Unlock()
	if s.failure == nil {
		s.failure = fmt.Errorf("%s: %w", what, err)
	}
}

// Describe implements storage.Store.
func (s *Store) Describe(context.Context) (storage.Description, error) {
	f, err := s.disk.fs.Open(s.disk.canary(), vfs.Write)
	if err != nil {
		return storage.Description{}, fmt.Errorf("canary: %w", err)
	}
	return storage.Description{Name: Name, Version: Version, Durability: s.durability(), Canary: &Lent{file: f}}, nil
}

// durability is what a sync is worth here: on a file system in memory it makes nothing durable.
func (s *Store) durability() string {
	if room, ok := s.disk.fs.(vfs.Room); ok {
		if volume, err := room.Volume(s.disk.logs()); err == nil && volume.Volatile {
			return "memory"
		}
	}
	return "disk"
}

// nextLease returns an epoch above every one given before, and above the one the core may know of from a directory that
// was put back from a copy.
func (s *Store) nextLease(above storage.LeaseEpoch) storage.LeaseEpoch {
	e := storage.LeaseEpoch(s.generation)<<32 | storage.LeaseEpoch(s.leases.Add(1))
	return max(e, above+1)
}

// Lent is an open file on loan to the core.
type Lent struct{ file vfs.File }

// Fd is the descriptor; of a simulated file it is no valid one.
func (l *Lent) Fd() uintptr { return uintptr(l.file.Fd()) }

// Close gives the loan back.
func (l *Lent) Close() error { return l.file.Close() }

// VFS is the file itself, for a core in the same process whose file system is simulated.
func (l *Lent) VFS() vfs.File { return l.file }

// withFull gives errors for want of space the contract's identity.
func withFull(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", storage.ErrFull, err)
	}
	return err
}

// ErrInvalid says that a request cannot be right whatever lies on disk.
var ErrInvalid = storage.ErrInvalid

// backlog is work for one goroutine, by name. A name that waits already is not queued twice, so it is never longer
// than there are partitions.
type backlog struct {
	state *backlogState
}

type backlogState struct {
	mu      sync.Mutex
	names   []string
	waiting map[string]struct{}
	wake    chan struct{} // one slot: a second wake-up before the first was seen tells nothing new
}

func newBacklog() backlog {
	return backlog{&backlogState{waiting: make(map[string]struct{}), wake: make(chan struct{}, 1)}}
}

func (b backlog) push(name string) {
	s := b.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.waiting[name]; ok {
		return
	}
	s.waiting[name] = struct{}{}
	s.names = append(s.names, name)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (b backlog) pop() (string, bool) {
	s := b.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.names) == 0 {
		return "", false
	}
	name := s.names[0]
	s.names = s.names[1:]
	delete(s.waiting, name)
	return name, true
}

// run works until ctx ends, and finishes the piece at hand.
func (b backlog) run(ctx context.Context, work func(context.Context, string)) {
	for ctx.Err() == nil {
		if name, ok := b.pop(); ok {
			work(ctx, name)
			continue
		}
		select {
		case <-b.state.wake:
		case <-ctx.Done():
		}
	}
}
