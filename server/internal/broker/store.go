package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagerpc"
	"github.com/trunkline-mq/trunkline/plugins/storage/stream"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/server/internal/catalog"
	"github.com/trunkline-mq/trunkline/server/internal/partition"
)

// shippedStores are those that live in the server's binary. The default one always runs; the others run from when a
// topic first wants them.
func shippedStores() []string { return []string{"archive", catalog.DefaultStore, memoryStore} }

// memoryStore is told how much it may take.
const memoryStore = "memory"

const (
	// adoptTimeout bounds the re-adoption of a restarted storage plugin. With Held it scans nothing; after a fence it
	// recovers from disk, which takes as long as the disk takes.
	adoptTimeout = 10 * time.Minute
	// storeTimeout is how long a topic waits for a store that has not been up yet.
	storeTimeout = 10 * time.Second
)

// engine is the core's side of a store, whatever it lends: it holds what was lent, and hands it on to the successor of
// a plugin that died.
type engine interface {
	logs
	// Adopt makes p the plugin.
	Adopt(ctx context.Context, p *lend.Plugin) error
	// Orphan says that there is no plugin.
	Orphan()
	// Run looks after the logs until ctx ends.
	Run(ctx context.Context) error
	// Description is what the plugin said of itself.
	Description() storage.Description
	// Healthy says why no log takes appends, nil when they do.
	Healthy() error
	// Close drops what is still held.
	Close() error
}

// logs is what topics want of an engine.
type logs interface {
	OpenLog(ctx context.Context, part storage.Partition, o lend.OpenOptions) (partition.Log, *storage.Cut, error)
	Adoptable(ctx context.Context, topic string) (storage.Adoption, error)
	Delete(ctx context.Context, part storage.Partition) error
}

// leases is the engine of stores that lend files.
type leases struct{ *lend.Dir }

func (d leases) OpenLog(ctx context.Context, part storage.Partition, o lend.OpenOptions) (partition.Log, *storage.Cut, error) {
	l, cut, err := d.Open(ctx, part, o)
	if err != nil {
		return nil, nil, err
	}
	return partition.Lent(l), cut, nil
}

// streams is the engine of stores without files.
type streams struct{ *stream.Dir }

func (d streams) OpenLog(ctx context.Context, part storage.Partition, o lend.OpenOptions) (partition.Log, *storage.Cut, error) {
	l, cut, err := d.Open(ctx, part, o)
	if err != nil {
		return nil, nil, err
	}
	return partition.Streamed(l), cut, nil
}

// stores are the storage plugins that run, by name.
type stores struct {
	instance string // nonce of this process
	files    *lend.Budget
	mu       sync.Mutex
	all      map[string]*store
}

// store is one storage plugin, who supervises it, and what the core holds of it.
type store struct {
	onDemand
	name   string
	broker *Broker
	engine current[engine] // from when the plugin has first said what it is; then for good
	inst   current[*host.Instance]
}

// knownStore refuses the name of a store that there is none of.
func (b *Broker) knownStore(name string) *errcode.Error {
	return b.mustBeAvailable(kindStorage, "store", name)
}

// store returns the store of that name, which is started if it does not run yet, and need not be up.
func (b *Broker) store(name string) (*store, *errcode.Error) {
	if err := b.knownStore(name); err != nil {
		return nil, err
	}
	b.stores.mu.Lock()
	defer b.stores.mu.Unlock()
	s := b.stores.all[name]
	if s == nil {
		s = b.newStoreLocked(name)
		b.spawn(s.keep)
	}
	return s, nil
}

func (b *Broker) newStoreLocked(name string) *store {
	s := &store{name: name, broker: b}
	s.onDemand = onDemand{
		log: b.log.With("kind", kindStorage, "name", name), fresh: s.supervise, tend: s.run, again: make(chan chan<- error),
	}
	s.renew()
	b.stores.all[name] = s
	return s
}

// engine waits for the store of that name to have been up once.
func (b *Broker) engine(ctx context.Context, name string) (engine, error) {
	s, fault := b.store(name)
	if fault != nil {
		return nil, fault
	}
	e, err := s.get(ctx)
	if err != nil {
		return nil, errcode.Wrap(errcode.StorageUnavailable, err, fmt.Sprintf("the storage plugin %s does not run: %v", name, err), "see the server's log")
	}
	return e, nil
}

// get waits for the plugin to have been up once. Where it has failed to start nobody waits for the next try.
func (s *store) get(ctx context.Context) (engine, error) {
	if e, ok := s.engine.now(); ok {
		return e, nil
	}
	if fault := s.why(nil); fault != nil {
		return nil, fault
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	e, err := s.engine.get(ctx)
	if err != nil {
		err = s.why(err)
	}
	return e, err
}

// storeConfig is what a shipped store is told.
func (b *Broker) storeConfig(name string) []byte {
	config := map[string]any{"data": b.opt.Data.Path}
	switch name {
	case catalog.DefaultStore:
		config["reserve"] = b.opt.Reserve
	case memoryStore:
		config["memory"] = b.opt.Memory
	}
	text, _ := json.Marshal(config) // cannot fail: texts and numbers
	return text
}

// supervise makes a supervisor that has not started anything. The plugin inherits the socket that descriptors travel
// through and the directory's lock.
func (s *store) supervise() *host.Supervisor {
	b := s.broker
	var sock *storagerpc.Socket // of the instance being started or running; touched by the supervisor's goroutine only
	closeSocket := func() {
		if sock != nil {
			_ = sock.Close()
			sock = nil
		}
	}
	return b.supervise(kindStorage, s.name, host.Spec{
		Config: b.storeConfig(s.name),
		Files: func() ([]*os.File, error) {
			closeSocket()
			core, child, err := storagerpc.SocketPair()
			if err != nil {
				return nil, fmt.Errorf("make the descriptor socket: %w", err)
			}
			lock, err := b.opt.Data.Inherit()
			if err != nil {
				_, _ = core.Close(), child.Close()
				return nil, err
			}
			sock = core
			return []*os.File{child, lock}, nil
		},
		OnUp: func(ctx context.Context, inst *host.Instance) error {
			ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
			defer cancel()
			return s.adopt(ctx, inst, sock)
		},
		OnDown: func(*host.Instance, error) {
			s.inst.clear()
			if e, ok := s.engine.now(); ok {
				e.Orphan()
			}
			closeSocket()
		},
	})
}

// adopt hands the core's side over to a new instance.
func (s *store) adopt(ctx context.Context, inst *host.Instance, sock *storagerpc.Socket) error {
	plugin := &lend.Plugin{Store: storagerpc.NewClient(inst.Conn(), sock), Kill: inst.Kill}
	e, known := s.engine.now()
	if !known {
		d, err := describe(ctx, plugin)
		if err != nil {
			return err
		}
		e = s.newEngine(d)
	}
	if err := e.Adopt(ctx, plugin); err != nil {
		if !known {
			err = errors.Join(err, e.Close())
		}
		return err
	}
	s.inst.set(inst)
	s.engine.set(e)
	s.broker.healer.storeUp(s.name)
	s.broker.reconcileLater() // deletions and creations that waited for it, or that its predecessor did not survive
	return nil
}

// describe asks a store what it is, before anything of it is used.
func describe(ctx context.Context, p *lend.Plugin) (storage.Description, error) {
	d, err := p.Store.Describe(ctx)
	if err == nil && d.Canary != nil {
		err = d.Canary.Close() // who adopts the store asks again
		d.Canary = nil
	}
	return d, err
}

func (s *store) newEngine(d storage.Description) engine {
	o := &s.broker.opt
	if d.Streams {
		return streams{stream.NewDir(stream.Options{Instance: s.broker.stores.instance, Logger: o.Logger})}
	}
	return leases{lend.NewDir(lend.Options{
		Instance: s.broker.stores.instance, SyncParallel: o.SyncParallel, Budget: s.broker.stores.files, Logger: o.Logger,
	})}
}

// run looks after a plugin that has been started, and after what the core holds of it, until ctx ends.
func (s *store) run(ctx context.Context, sup *host.Supervisor) error {
	e, _ := s.engine.now()
	var tasks errgroup.Group
	tasks.Go(func() error { return e.Run(ctx) })
	tasks.Go(func() error { return s.watchFence(ctx, e) })
	return errors.Join(sup.Run(ctx), tasks.Wait())
}

// watchFence kills the plugin when its log directory is fenced, so that its descriptors are closed too; its successor
// recovers from disk (STORAGE §3).
func (s *store) watchFence(ctx context.Context, e engine) error {
	d, ok := e.(leases)
	if !ok {
		return nil
	}
	for {
		fenced, recovered := d.Fenced(), d.Recovered()
		select {
		case <-ctx.Done():
			return nil
		case <-fenced:
		}
		inst, err := s.inst.get(ctx)
		if err != nil {
			return nil
		}
		inst.Kill(lend.ErrFenced)
		select {
		case <-ctx.Done():
			return nil
		case <-recovered:
		}
	}
}

// engine is that of a store which has been up.
func (s *stores) engine(name string) (engine, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.all[name]
	if one == nil {
		return nil, false
	}
	return one.engine.now()
}

// engines are those of the stores that have been up, by name.
func (s *stores) engines() map[string]engine {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]engine, len(s.all))
	for name, one := range s.all {
		if e, ok := one.engine.now(); ok {
			all[name] = e
		}
	}
	return all
}

// close closes the engines.
func (s *stores) close() error {
	var errs []error
	for _, e := range s.engines() {
		errs = append(errs, e.Close())
	}
	return errors.Join(errs...)
}

// healthy is the complaint of the first store that takes no records.
func (s *stores) healthy() error {
	all := s.engines()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		err := all[name].Healthy()
		var full *lend.FullError
		switch {
		case errors.As(err, &full):
			return fmt.Errorf("%s: the disk of the store %s is full: publishing is refused until there is room, reading goes on (%w)", errcode.StorageFull, name, full.Err)
		case err != nil:
			return fmt.Errorf("%s: the store %s takes no records: %w", errcode.StorageUnavailable, name, err)
		}
	}
	return nil
}
