package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
)

// flightBytes bounds the groups that are on their way to one store: a group for each of 64 busy partitions. Whoever
// comes on top waits.
const flightBytes = 64 << 20

// Options configure a Dir.
type Options struct {
	Instance string // nonce of this core process
	Logger   *slog.Logger
}

// Dir is one store without files as the core sees it. All methods are safe for concurrent use.
type Dir struct {
	instance string
	log      *slog.Logger
	flight   *semaphore.Weighted

	mu      sync.Mutex
	up      *instance     // nil while there is no plugin
	changed chan struct{} // closed and replaced when up changes
	desc    storage.Description
	logs    map[*Log]struct{}
}

// instance is a running plugin.
type instance struct {
	client *Client
	kill   func(reason error)
}

// NewDir returns a Dir without a plugin; Adopt gives it one.
func NewDir(o Options) *Dir {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Dir{
		instance: o.Instance, log: o.Logger, flight: semaphore.NewWeighted(flightBytes),
		changed: make(chan struct{}), logs: make(map[*Log]struct{}),
	}
}

// reopenParallel bounds how many partitions are opened at once.
const reopenParallel = 32

// Adopt makes p the plugin: every log is opened there, and goes on. A log that cannot be opened stops alone, and Run tries it
// again; an error means that p is of no use, and the logs wait for the next one.
func (d *Dir) Adopt(ctx context.Context, p *lend.Plugin) error {
	up := &instance{client: NewClient(p.Store), kill: p.Kill}
	desc, err := up.client.Describe(ctx)
	if err != nil {
		return fmt.Errorf("describe the store: %w", err)
	}
	d.mu.Lock()
	d.desc = desc
	logs := make([]*Log, 0, len(d.logs))
	for l := range d.logs {
		logs = append(logs, l)
	}
	d.mu.Unlock()
	if err := d.reopenAll(ctx, up, logs); err != nil {
		up.client.Hangup()
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.up = up
	d.signalLocked()
	return nil
}

func (d *Dir) reopenAll(ctx context.Context, up *instance, logs []*Log) error {
	var all errgroup.Group
	all.SetLimit(reopenParallel)
	for _, l := range logs {
		all.Go(func() error {
			if !l.begin(up, true) {
				return nil
			}
			err := l.reopen(ctx, up)
			l.done(up, err)
			if errors.Is(err, errReplaced) {
				return err
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// Orphan says that the plugin is gone. Appends and reads wait for the next Adopt.
func (d *Dir) Orphan() {
	d.mu.Lock()
	up := d.up
	d.up = nil
	d.signalLocked()
	d.mu.Unlock()
	if up != nil {
		up.client.Hangup()
	}
}

func (d *Dir) signalLocked() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// replace ends an instance whose answer left something open: its successor settles it.
func (d *Dir) replace(up *instance, reason error) {
	d.mu.Lock()
	if d.up == up {
		d.up = nil
		d.signalLocked()
	}
	d.mu.Unlock()
	up.kill(reason)
	up.client.Hangup()
}

// instance waits for a plugin until ctx ends; then it is lend.ErrNoStore.
func (d *Dir) instanceUp(ctx context.Context) (*instance, error) {
	for {
		d.mu.Lock()
		up, changed := d.up, d.changed
		d.mu.Unlock()
		if up != nil {
			return up, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", lend.ErrNoStore, context.Cause(ctx))
		}
	}
}

// Run tries logs again that are down, until ctx ends.
func (d *Dir) Run(ctx context.Context) error {
	var tries errgroup.Group
	tries.SetLimit(healParallel)
	tick := time.NewTicker(healTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return tries.Wait()
		case <-tick.C:
			d.healAll(ctx, &tries)
		}
	}
}

// Description is what the adopted store said of itself.
func (d *Dir) Description() storage.Description {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.desc
}

// Healthy is nil: what goes wrong is a partition's, or the plugin's.
func (d *Dir) Healthy() error { return nil }

// Open opens the partition at the plugin. It waits for one until ctx ends.
func (d *Dir) Open(ctx context.Context, part storage.Partition, o lend.OpenOptions) (*Log, *storage.Cut, error) {
	l := &Log{dir: d, part: part, set: o.Settings, epoch: o.Epoch, create: o.Create, adopt: o.Adopt, reopened: o.Reopened, calls: make(chan struct{}, 1)}
	wait := ctx
	if o.Wait > 0 {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, o.Wait)
		defer cancel()
	}
	for try := 1; ; try++ {
		up, err := d.instanceUp(wait)
		if err != nil {
			return nil, nil, fmt.Errorf("open %s: %w", part, err)
		}
		cut, err := l.open(ctx, up)
		if err == nil {
			if d.add(l, up) {
				return l, cut, nil
			}
			continue // replaced meanwhile
		}
		open := leavesOpen(err)
		if open { // whoever asks again asks a successor
			d.replace(up, err)
		}
		if !open || try >= openTries || ctx.Err() != nil {
			return nil, nil, fmt.Errorf("open %s: %w", part, err)
		}
		d.log.Warn("partition is opened again", "partition", part.String(), "err", err)
	}
}

// openTries is how often a partition is opened when the plugin's process ends meanwhile.
const openTries = 4

// add makes l one that Adopt opens again. It reports false where up is no longer the plugin.
func (d *Dir) add(l *Log, up *instance) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.up != up {
		return false
	}
	d.logs[l] = struct{}{}
	return true
}

func (d *Dir) remove(l *Log) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.logs, l)
}

// Delete removes the partition for good, open or not.
func (d *Dir) Delete(ctx context.Context, part storage.Partition) error {
	d.mu.Lock()
	for l := range d.logs {
		if l.part == part {
			delete(d.logs, l)
			l.stop(lend.ErrClosed)
		}
	}
	d.mu.Unlock()
	up, err := d.instanceUp(ctx)
	if err != nil {
		return err
	}
	if err := up.client.Delete(ctx, part); err != nil {
		return fmt.Errorf("delete %s: %w", part, err)
	}
	return nil
}

// Adoptable tells what lies ready to be adopted for a topic.
func (d *Dir) Adoptable(ctx context.Context, topic string) (storage.Adoption, error) {
	up, err := d.instanceUp(ctx)
	if err != nil {
		return storage.Adoption{}, err
	}
	return up.client.Adoptable(ctx, topic)
}

// Close stops every log. The caller has stopped all writers and readers.
func (d *Dir) Close() error {
	d.mu.Lock()
	for l := range d.logs {
		l.stop(lend.ErrClosed)
	}
	clear(d.logs)
	d.mu.Unlock()
	d.Orphan()
	return nil
}
