// Package broker is one broker: it owns the plugins, the log directory, the topics and their partitions. Connections
// look topics up here and publish to, or read from, what they find.
//
// Start brings everything up and Close takes it down in reverse; between them the plugins are kept alive.
// Changes to topics (create, delete, reconcile) happen one at a time; look-ups never wait for them.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/server/internal/catalog"
	"github.com/trunkline-mq/trunkline/server/internal/datadir"
)

// Options configure a broker.
type Options struct {
	Data           *datadir.Dir
	Plugin         []string // command that starts a shipped plugin; kind and name are appended
	Metadata       Metadata
	Foreign        func() (Foreign, error) // asked at the start and at each reload; nil: there are no third parties' plugins
	Breaker        Breaker
	Creation       Creation // until Tune says otherwise
	PublishTimeout time.Duration
	SyncParallel   int
	OpenFiles      int
	Reserve        int64 // bytes the store keeps free; -1: it decides
	Memory         int64 // bytes that topics in memory may hold together
	Logger         *slog.Logger
}

// Creation says which topics publishes bring about, and how they are. A running broker can be told anew.
type Creation struct {
	Auto       bool
	Max        int   // topics that publishes may bring about
	Partitions int32 // of a topic created without saying how many
}

// settings are the options, and what of them has been changed since.
type settings struct {
	Options
	creation atomic.Pointer[Creation] // goes before the options
}

// Tune changes how topics are created from now on.
func (b *Broker) Tune(c Creation) { b.opt.creation.Store(&c) }

// Broker is a running broker.
type Broker struct {
	opt  settings
	log  *slog.Logger
	runs string // directory of the plugins' sockets

	metadataSup *host.Supervisor // immutable after New
	meta        current[metadata.Store]
	stores      stores
	lenders     lenders
	foreign     foreigners
	ownHash     func() string // of the server's binary; takes it once

	changes changes
	healer  *healer
	// unsettled holds a token when a change has no known outcome, or a plugin came back, until topics are compared with metadata.
	unsettled chan struct{}
	version   atomic.Uint64 // of topics; grows with mu held
	mu        sync.RWMutex
	topics    map[string]*Topic
	changed   chan struct{} // closed and replaced when topics has changed

	ready  chan struct{} // closed when Start is done
	cancel context.CancelCauseFunc
	tasks  *errgroup.Group
	spawn  func(task func(context.Context) error) // starts what lives as long as the broker; set by run
}

// New returns a broker that is not started.
func New(o Options) (*Broker, error) {
	b := &Broker{
		opt: settings{Options: o}, log: o.Logger,
		changes: changes{token: make(chan struct{}, 1), over: make(chan struct{})}, unsettled: make(chan struct{}, 1), ready: make(chan struct{}),
		topics: make(map[string]*Topic), changed: make(chan struct{}),
	}
	b.Tune(o.Creation)
	b.foreign.read, b.ownHash = o.Foreign, sync.OnceValue(hashOwn)
	if err := b.foreign.refresh(); err != nil {
		return nil, err
	}
	runs, err := makeRunDir(o.Data.Path)
	if err != nil {
		return nil, fmt.Errorf("make a directory for plugin sockets: %w", err)
	}
	b.runs = runs
	b.metadataSup = b.metadataPlugin()
	b.stores.instance, b.stores.all = datadir.RandomID(), make(map[string]*store)
	b.stores.files = lend.NewBudget(o.OpenFiles)
	b.newStoreLocked(catalog.DefaultStore)
	b.healer = newHealer(b)
	b.lenders.all = make(map[string]*lender)
	b.newLenderLocked(defaultPartitioner)
	return b, nil
}

// Start starts the plugins side by side and opens every topic. On return the broker serves; partitions that could not
// be opened answer with their reason.
func (b *Broker) Start(ctx context.Context) error {
	var starts errgroup.Group
	var mu sync.Mutex
	var started []func(context.Context) error
	start := func(kind string, p *host.Supervisor, run func(context.Context) error) {
		starts.Go(func() error {
			if err := p.Start(ctx); err != nil {
				return fmt.Errorf("start the %s plugin: %w", kind, err)
			}
			mu.Lock()
			defer mu.Unlock()
			started = append(started, run)
			return nil
		})
	}
	start(kindMetadata, b.metadataSup, b.metadataSup.Run)
	for kind, d := range map[string]*onDemand{
		kindStorage: &b.stores.all[catalog.DefaultStore].onDemand, kindPartitioner: &b.lenders.all[defaultPartitioner].onDemand,
	} {
		sup := d.supervisor()
		start(kind, sup, func(ctx context.Context) error { return d.tend(ctx, sup) })
	}
	err := starts.Wait()
	b.run(started)
	if err == nil {
		err = b.reconcile(ctx)
	}
	if err != nil {
		return errors.Join(err, b.Close())
	}
	close(b.ready)
	return nil
}

// run starts what lives as long as the broker.
func (b *Broker) run(plugins []func(context.Context) error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	b.cancel = cancel
	b.tasks = &errgroup.Group{}
	b.spawn = func(task func(context.Context) error) { b.tasks.Go(func() error { return task(ctx) }) }
	for _, p := range plugins {
		b.tasks.Go(func() error { return p(ctx) })
	}
	b.tasks.Go(func() error { return b.keepLogs(ctx) })
	b.tasks.Go(func() error { return b.settle(ctx) })
	b.tasks.Go(func() error { return b.healer.run(ctx) })
}

// closeTimeout bounds how long Close waits for the storage plugin to take its leases back; without it they are
// recovered at the next start.
const closeTimeout = 2 * time.Second

// Close writes and answers what is queued, gives the leases back, and ends the plugins. It is called once, after the
// last connection is gone.
func (b *Broker) Close() error {
	b.EndChanges() // so that nothing is opened behind our back
	b.healer.close()
	b.mu.Lock()
	topics := b.topics
	b.topics = make(map[string]*Topic)
	b.noteChangeLocked()
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var logs sync.WaitGroup
	for _, t := range topics {
		for _, p := range t.partitions {
			if p == nil {
				continue
			}
			logs.Go(func() {
				p.Drain(errShuttingDown)
				if err := p.Log().Close(ctx); err != nil {
					b.log.Warn("lease not given back; the next start recovers the partition", "partition", p.Name.String(), "err", err)
				}
			})
		}
	}
	logs.Wait()
	b.cancel(errors.New("broker is closing"))
	err := b.tasks.Wait()
	return errors.Join(err, b.stores.close(), os.RemoveAll(b.runs))
}

// current holds the client of a plugin while there is one.
type current[T any] struct {
	mu    sync.Mutex
	value T
	up    bool
	ready chan struct{} // closed while up; made by the first wait
}

func (c *current[T]) set(v T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.value, c.up = v, true
	if c.ready != nil {
		close(c.ready)
		c.ready = nil
	}
}

// clear says that there is no client any more.
func (c *current[T]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var none T
	c.value, c.up = none, false
}

// now returns the client, and false while there is none.
func (c *current[T]) now() (T, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.value, c.up
}

// get waits for a client until ctx ends.
func (c *current[T]) get(ctx context.Context) (T, error) {
	for {
		c.mu.Lock()
		if c.up {
			defer c.mu.Unlock()
			return c.value, nil
		}
		if c.ready == nil {
			c.ready = make(chan struct{})
		}
		ready := c.ready
		c.mu.Unlock()
		select {
		case <-ready:
		case <-ctx.Done():
			var none T
			return none, context.Cause(ctx)
		}
	}
}

// Ready says why the broker does not serve, nil when it does.
func (b *Broker) Ready() error {
	select {
	case <-b.ready:
	default:
		return errors.New("starting")
	}
	return b.stores.healthy()
}
