// Package lend is the core's side of the storage lease: it holds what a storage plugin lent, writes and syncs it, reads
// from it, and re-adopts it when the plugin was restarted. Batch bytes pass through here and nowhere near a plugin.
//
// A Dir is one log directory, with its fence, its canary and its budget of concurrent syncs and open descriptors. A Log
// is one partition in it. The package trusts nothing a plugin says about files: sizes, inodes and batch headers are
// checked before they are used. It starts no process; who supervises the plugin hands its client to Dir.Adopt.
//
// The rules are STORAGE.md's, cited by paragraph (§).
package lend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
)

// Options configure a Dir. The zero value is the production file system with the documented budgets.
type Options struct {
	FS           vfs.FS  // nil: the real one
	Instance     string  // nonce of this core process
	SyncParallel int     // concurrent fdatasyncs; 0: 64
	Budget       *Budget // of descriptors, which others may share; nil: one of its own, NewBudget(0)
	Logger       *slog.Logger
}

const (
	syncParallelDefault = 64
	openFilesDefault    = 1024
)

// ErrFenced is what every append answers while the log directory is fenced: nothing was written for it.
var ErrFenced = errors.New("log directory is fenced")

// ErrUnknown says that a group may or may not be on disk. The directory is fenced with it.
var ErrUnknown = errors.New("outcome of the write is unknown")

// ErrNoStore is what a call that needs the plugin answers while there is none and the deadline has passed.
var ErrNoStore = errors.New("storage plugin is not available")

// FullError is a definite failure: the disk took no more, and what was written of the group is gone, durably.
type FullError struct{ Err error }

func (e *FullError) Error() string { return fmt.Sprintf("no space for the group: %v", e.Err) }

// Unwrap returns the file system's error.
func (e *FullError) Unwrap() error { return e.Err }

// Plugin is one running instance of a storage plugin.
type Plugin struct {
	Store storage.Plugin
	// Kill ends the instance at once: a call to it ended with an unknown outcome (§2).
	Kill func(reason error)
}

// Dir is a log directory as the core sees it. All methods are safe for concurrent use.
type Dir struct {
	fs       vfs.FS
	instance string
	log      *slog.Logger
	syncs    chan struct{}
	asking   asking
	files    *Budget
	told     told

	canaryMu sync.RWMutex // held over a probe, which is 2 µs and waits for nobody
	canary   vfs.File

	mu      sync.Mutex
	plugin  *Plugin       // nil while none is adopted
	changed chan struct{} // closed and replaced when plugin or fence change
	others  others
	fence   error
	fenced  chan struct{} // closed at the first fence since the last recovery
	// recovered is closed and replaced when a fence is lifted.
	recovered chan struct{}
	full      error       // not nil: the disk took no more
	fences    []time.Time // when it was fenced; the last two
	logs      map[*Log]struct{}
	inodes    map[inode]*Log // every leased segment: no two logs may write one file
}

// NewDir returns a Dir without a plugin; Adopt gives it one.
func NewDir(o Options) *Dir {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.SyncParallel == 0 {
		o.SyncParallel = syncParallelDefault
	}
	if o.Budget == nil {
		o.Budget = NewBudget(0)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Dir{
		fs: o.FS, instance: o.Instance, log: o.Logger,
		syncs: make(chan struct{}, o.SyncParallel), asking: asking{transits: make(chan struct{}, transits), doubts: make(map[storage.Partition]doubt)},
		files:   o.Budget,
		changed: make(chan struct{}), fenced: make(chan struct{}), recovered: make(chan struct{}),
		logs: make(map[*Log]struct{}), inodes: make(map[inode]*Log),
	}
}

// Description is what the adopted store said of itself.
func (d *Dir) Description() storage.Description {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.told.desc
}

// Adopt makes p the plugin of this directory: it takes its canary and re-opens every log, those that hold a lease with
// Held (§7), those that lost it to a fence by recovery (§3). On return calls go to p. A log that cannot be re-opened
// stops alone, and Run tries it again; an error means that p itself is of no use.
func (d *Dir) Adopt(ctx context.Context, p *Plugin) error {
	if d.offline() {
		return ErrOffline
	}
	desc, err := p.Store.Describe(ctx)
	if err != nil {
		return fmt.Errorf("describe the store: %w", err)
	}
	if desc.Canary == nil {
		return fmt.Errorf("%w: no canary was lent", ErrLied)
	}
	canary, err := d.fs.Reopen(unwrap(desc.Canary))
	_ = desc.Canary.Close() // ours is the reopened one
	if err != nil {
		return fmt.Errorf("reopen the canary: %w", err)
	}
	desc.Canary = nil

	d.mu.Lock()
	wasFenced := d.fence != nil
	d.asking.adopting = true
	clear(d.asking.doubts)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.asking.adopting = false
	}()
	d.learn(desc)
	_ = d.replaceCanary(canary) // nothing was ever written through the old one
	logs := d.all()
	if err := d.reopenAll(ctx, p, logs); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if wasFenced {
		d.log.Warn("log directory recovered", "cause", d.fence)
		d.fence, d.fenced = nil, make(chan struct{})
		close(d.recovered)
		d.recovered = make(chan struct{})
	}
	d.plugin = p
	failpoint.Hit("core.readopt.done")
	d.signalLocked()
	return nil
}

// reopenParallel bounds how many partitions are opened at once: opening is mostly waiting for the disk.
const reopenParallel = 32

func (d *Dir) reopenAll(ctx context.Context, p *Plugin, logs []*Log) error {
	var all errgroup.Group
	all.SetLimit(reopenParallel)
	for _, l := range logs {
		all.Go(func() error {
			err := l.reopen(ctx, p)
			if errors.Is(err, errReplaced) {
				return err
			}
			if err != nil {
				l.complain(err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// Orphan says that the plugin is gone. What is lent stays lent: appends and reads go on, calls wait for the next Adopt.
func (d *Dir) Orphan() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.plugin = nil
	d.signalLocked()
}

func (d *Dir) signalLocked() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// store waits for an adopted plugin until ctx ends; then it is ErrNoStore, and at once in a directory that was given up.
func (d *Dir) store(ctx context.Context) (*Plugin, error) {
	for {
		d.mu.Lock()
		p, changed, offline := d.plugin, d.changed, d.offlineLocked()
		d.mu.Unlock()
		if offline {
			return nil, fmt.Errorf("%w: %w", ErrNoStore, ErrOffline)
		}
		if p != nil {
			return p, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrNoStore, context.Cause(ctx))
		}
	}
}

// Fenced is closed when the directory stops taking appends because a write ended in the unknown (§3). The supervisor
// then kills the plugin, so that its descriptors close too, and its successor's Adopt recovers.
func (d *Dir) Fenced() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fenced
}

// Recovered is closed when the next fence is lifted.
func (d *Dir) Recovered() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.recovered
}

// Fence stops every append in the directory, for cause. Repeating it changes nothing.
func (d *Dir) Fence(cause error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fence != nil {
		return
	}
	d.fence = cause
	d.fences = append(d.fences, time.Now())
	d.fences = d.fences[max(0, len(d.fences)-2):]
	d.log.Error("log directory fenced: no appends until it is recovered", "cause", cause)
	close(d.fenced)
	d.signalLocked()
}

// offlineWithin is how close two fences must lie for the directory to be given up: a disk that fails again right after
// a recovery is broken (§3).
const offlineWithin = 10 * time.Minute

// ErrOffline says that the directory was fenced twice within ten minutes. A restart of the server tries again.
var ErrOffline = errors.New("log directory is offline: it failed twice within ten minutes; check the disk, then restart the server")

func (d *Dir) offline() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.offlineLocked()
}

func (d *Dir) offlineLocked() bool {
	n := len(d.fences)
	return d.fence != nil && n == 2 && d.fences[1].Sub(d.fences[0]) < offlineWithin
}

// claim makes l the only log that writes the inode.
func (d *Dir) claim(i inode, l *Log) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.inodes[i]; other != nil && other != l {
		return fmt.Errorf("%w: inode %d:%d is leased to %s", ErrLied, i.dev, i.ino, other.part)
	}
	d.inodes[i] = l
	return nil
}

func (d *Dir) disclaim(i inode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.inodes, i)
}

// filled notes that the disk takes no more: appends are refused without trying until the plugin says that there is room.
func (d *Dir) filled(cause error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full == nil {
		d.log.Error("disk is full: records are refused until there is room", "cause", cause)
	}
	d.full = cause
}

// askRoom lets records in again when the plugin has restored its reserve (§9).
func (d *Dir) askRoom(ctx context.Context, p *Plugin) {
	d.mu.Lock()
	full := d.full
	d.mu.Unlock()
	if full == nil {
		return
	}
	for _, l := range d.all() {
		l.giveIdleBlocksBack() // nothing is written meanwhile, and what they hold may be what is wanted
	}
	if p.Store.Room(ctx) != nil {
		return
	}
	d.log.Info("disk has room again: records are taken")
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = nil
}

// takesRecords says why the directory takes no appends, nil when it does.
func (d *Dir) takesRecords() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.fence != nil:
		return fmt.Errorf("%w: %w", ErrFenced, d.fence)
	case d.full != nil:
		return &FullError{Err: d.full}
	}
	return nil
}

// Healthy says why the directory takes no appends, nil when it does: ErrFenced or a *FullError.
func (d *Dir) Healthy() error { return d.takesRecords() }

func (d *Dir) fenceErr() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fence != nil {
		return fmt.Errorf("%w: %w", ErrFenced, d.fence)
	}
	return nil
}

// Close closes every log and the canary. The caller has stopped all writers and readers.
func (d *Dir) Close() error {
	d.mu.Lock()
	d.others.closed = true
	d.mu.Unlock()
	d.others.work.Wait()
	for _, l := range d.all() {
		l.drop()
	}
	return d.replaceCanary(nil)
}

// replaceCanary waits for probes of the old canary and closes it.
func (d *Dir) replaceCanary(canary vfs.File) error {
	d.canaryMu.Lock()
	old := d.canary
	d.canary = canary
	d.canaryMu.Unlock()
	if old == nil {
		return nil
	}
	return old.Close()
}

// unwrap turns what was lent into a file of ours: a simulated file hands over itself, a real one its descriptor.
func unwrap(f storage.File) vfs.File {
	if w, ok := f.(interface{ VFS() vfs.File }); ok {
		return w.VFS()
	}
	return lentFile{File: vfs.FromFd(int(f.Fd()), "lent"), lent: f}
}

// lentFile is a received descriptor seen as a vfs.File. Its owner, and who closes it, is lent.
type lentFile struct {
	vfs.File
	lent storage.File
}

func (f lentFile) Close() error { return f.lent.Close() }
