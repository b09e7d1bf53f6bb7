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
	"io/fs"
	"log/slog"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"syscall"

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
}

// Store is a directory of partitions. It is safe for concurrent use.
type Store struct {
	disk disk
	log  *slog.Logger

	// generation counts the starts on this directory and is the high half of every lease epoch; leases is the low
	// half. So an epoch never comes twice, whatever was forgotten with the process before.
	generation uint32
	leases     atomic.Uint32

	mu    sync.Mutex
	parts map[string]*part // by directory name; those that are open or being worked on

	trash   backlog // names under trash/ to unlink
	spares  backlog // partitions to make a spare for
	cancel  context.CancelFunc
	workers sync.WaitGroup

	stopMu  sync.Mutex
	failure error // the first error of a worker
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
	s := &Store{
		disk: disk{fs: o.FS, data: data}, log: o.Logger, parts: make(map[string]*part),
		trash: newBacklog(), spares: newBacklog(),
	}
	left, err := s.disk.prepare()
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", data, withFull(err))
	}
	if s.generation, err = s.disk.nextGeneration(); err != nil {
		return nil, fmt.Errorf("prepare %s: %w", data, withFull(err))
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	for _, name := range left {
		s.trash.push(name)
	}
	s.work(ctx, "trash", s.trash, s.emptyTrash)
	s.work(ctx, "spares", s.spares, s.makeSpare)
	return s, nil
}

// work starts the one goroutine of a backlog; Stop waits for it.
func (s *Store) work(ctx context.Context, what string, b backlog, do func(context.Context, string)) {
	s.workers.Go(func() {
		pprof.Do(ctx, pprof.Labels("component", "storage/filelog", "work", what), func(ctx context.Context) { b.run(ctx, do) })
	})
}

// Stop ends the background work and waits for it. It returns the first error that work met. Leases are not touched:
// their files are the core's. A second call does nothing.
func (s *Store) Stop() error {
	s.cancel()
	s.workers.Wait()
	s.stopMu.Lock()
	defer s.stopMu.Unlock()
	err := s.failure
	s.failure = nil
	return err
}

// workerFailed reports an error that no caller waits for. The work is taken up again at the next start.
func (s *Store) workerFailed(what string, err error) {
	s.log.Error("storage background work", "what", what, "err", err)
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
	return storage.Description{Name: Name, Version: Version, Durability: "disk", Canary: &Lent{file: f}}, nil
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
var ErrInvalid = fmt.Errorf("request is not valid: %w", fs.ErrInvalid)
