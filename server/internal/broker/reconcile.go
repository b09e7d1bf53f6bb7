package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	plan "github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/catalog"
	"github.com/trunkline-mq/trunkline/server/internal/partition"
	"github.com/trunkline-mq/trunkline/server/internal/setting"
)

// reconcile makes what is served equal to what metadata says: it finishes deletions and creations that were begun,
// opens what is not open, and drops what is no longer there. It is the start, and what settles changes whose outcome
// was unknown when a metadata plugin died.
func (b *Broker) reconcile(ctx context.Context) error {
	// Opening may take long: it is bounded by the lack of progress of each call, and not by a deadline.
	return b.changes.alone(ctx, func(ctx context.Context) error {
		store, err := b.metadata(ctx)
		if err != nil {
			return err
		}
		contents, err := b.contents(ctx, store)
		if err != nil {
			return fmt.Errorf("read topics from metadata: %w", err)
		}
		for _, grave := range contents.Tombstones {
			if err := b.buryLocked(ctx, store, grave); err != nil {
				b.log.Warn("deleted topic still has files", "topic", grave.Name, "id", grave.ID, "err", err)
			}
		}
		known := make(map[string]string, len(contents.Topics))
		for _, meta := range contents.Topics {
			known[meta.Name] = meta.ID
		}
		for _, t := range b.Topics() {
			if known[t.Meta.Name] != t.Meta.ID {
				b.dropLocked(t)
			}
		}
		if err := b.serveAllLocked(ctx, store, contents.Topics); err != nil {
			return err
		}
		return context.Cause(ctx) // what it cut short is not compared
	})
}

func (b *Broker) contents(ctx context.Context, store metadata.Store) (catalog.Contents, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	return catalog.Load(ctx, store)
}

// serveAllLocked serves every topic that is not served yet, and those that were altered as they are now. One that cannot
// be served is reported and left out.
func (b *Broker) serveAllLocked(ctx context.Context, store metadata.Store, topics []catalog.Topic) error {
	for _, meta := range topics {
		t := b.Lookup([]byte(meta.Name))
		if t == nil {
			var err error
			if t, err = b.serveLocked(ctx, store, meta); err != nil {
				b.log.Error("topic is not served", "topic", meta.Name, "err", err)
				continue
			}
			meta = t.Meta
		}
		if _, err := b.catchUpLocked(ctx, store, t, meta); err != nil {
			b.log.Error("topic is served as it was before it was altered", "topic", meta.Name, "err", err)
		}
	}
	return nil
}

// reconcileLater reconciles in the background, after a plugin of metadata or storage came back. Before the first start is
// done there is nothing to settle.
func (b *Broker) reconcileLater() {
	select {
	case <-b.ready:
		b.unsettle()
	default:
	}
}

// serveLocked opens the partitions of a topic, marks it live if it was being created, and publishes it to look-ups. A
// partition of a live topic that cannot be opened answers with its reason, beside the others; a topic that is being
// created needs all of them.
func (b *Broker) serveLocked(ctx context.Context, store metadata.Store, meta catalog.Topic) (*Topic, error) {
	evaluator, err := plan.NewEvaluator(meta.Plan)
	if err != nil {
		return nil, errcode.Wrap(errcode.PartitionerUnavailable, err, fmt.Sprintf("topic %s has a plan this version cannot run", meta.Name),
			"start a newer version")
	}
	set, err := setting.Parse(meta.Settings)
	if err != nil {
		return nil, err
	}
	keep, storeErr := b.engine(ctx, meta.Store()) // where there is none, each partition says so
	volatile := storeErr == nil && keep.Description().Pinned
	advance := (set.Sync != setting.SyncBatch || volatile) && meta.State == catalog.Live
	if advance {
		// What such a topic acknowledged may be gone after an unclean end, and an end is not known to have been clean:
		// what comes now is told apart from it (STORAGE §6.5).
		meta.Epochs = nextEpochs(meta.Epochs)
		if err := catalog.Update(ctx, store, &meta); err != nil {
			return nil, fmt.Errorf("write new epochs of %s: %w", meta.Name, err)
		}
	}
	t := &Topic{
		Meta: meta, Set: set, Plan: evaluator, life: &life{gone: make(chan struct{})}, altered: make(chan struct{}),
		partitions: make([]*partition.Partition, meta.Partitions), faults: make([]*errcode.Error, meta.Partitions),
	}
	if meta.Plan.Kind == plan.KindCalled {
		t.called = b.newCalled(meta.Name, meta.Plan)
	}
	dirty := b.openPartitions(ctx, t, 0)
	if len(dirty) > 0 {
		if err := b.advanceEpochs(ctx, store, t, dirty); err != nil {
			b.abandon(t)
			return nil, err
		}
	}
	if meta.State == catalog.Creating {
		for _, fault := range t.faults {
			if fault != nil {
				b.abandon(t)
				return nil, fault
			}
		}
		t.Meta.State, t.Meta.Adopt = catalog.Live, false
		if err := catalog.Update(ctx, store, &t.Meta); err != nil {
			b.abandon(t)
			return nil, errcode.Wrap(errcode.MetadataUnavailable, err, fmt.Sprintf("topic %s could not be written to metadata%s", meta.Name, because(err)),
				"look with TOPIC LIST, then try again")
		}
	}
	t.life.newest.Store(t)
	b.mu.Lock()
	b.topics[meta.Name] = t
	b.noteChangeLocked()
	b.mu.Unlock()
	b.healer.admit(t, advance)
	return t, nil
}

// openParallel bounds how many partitions of a topic are opened at once.
const openParallel = 32

// openPartitions opens the partitions from first on and returns the ones whose recovery may have lost acknowledged
// records.
func (b *Broker) openPartitions(ctx context.Context, t *Topic, first int) (dirty []int) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	slots := make(chan struct{}, openParallel)
	for i := first; i < len(t.partitions); i++ {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			cut, err := b.openPartition(ctx, t, i)
			if err != nil {
				b.blame(t, i, err)
			}
			if cut != nil && cut.Dirty {
				mu.Lock()
				defer mu.Unlock()
				dirty = append(dirty, i)
			}
		})
	}
	wg.Wait()
	return dirty
}

// blame notes why partition i of t is not open.
func (b *Broker) blame(t *Topic, i int, err error) {
	b.log.Error("partition is not served", "topic", t.Meta.Name, "partition", i, "err", err)
	t.faults[i] = notServed(t.name(i), err)
}

func (b *Broker) openPartition(ctx context.Context, t *Topic, i int) (*storage.Cut, error) {
	keep, err := b.engine(ctx, t.Meta.Store())
	if err != nil {
		return nil, err
	}
	part, cut, err := b.openAs(ctx, keep, t, t.name(i), opening{
		create: t.Meta.State == catalog.Creating || i >= int(t.Meta.Partitions), adopt: t.Meta.Adopt, epoch: t.Meta.Epochs[i],
	})
	if err != nil {
		return nil, err
	}
	t.partitions[i] = part
	return cut, nil
}

// opening is how a partition is opened, beside its topic's settings.
type opening struct {
	create, adopt bool
	epoch         record.Epoch
	wait          time.Duration // for a plugin and a descriptor; 0: no bound but the context
}

// openAs opens a partition of t at its store, and returns it with what recovery cut.
func (b *Broker) openAs(ctx context.Context, keep engine, t *Topic, name storage.Partition, o opening) (*partition.Partition, *storage.Cut, error) {
	var reopened reopened
	l, cut, err := keep.OpenLog(ctx, name, lend.OpenOptions{
		Create: o.create, Adopt: o.adopt, Epoch: o.epoch, Settings: logSettings(t.Set, keep.Description()),
		Advance:  func(ctx context.Context) (record.Epoch, error) { return b.advanceEpoch(ctx, name) },
		Reopened: reopened.tell, Wait: o.wait,
	})
	if err != nil {
		return nil, nil, err
	}
	if cut != nil {
		level := b.log.Warn
		if cut.Dirty {
			level = b.log.Error
		}
		level("recovery cut the end of a partition", "partition", name.String(), "offset", int64(cut.Offset), "bytes", cut.Bytes,
			"reason", cut.Reason, "saved", cut.SavedAs, "acknowledged records may be missing", cut.Dirty)
	}
	p := partition.Open(name, l, partition.Options{
		PublishTimeout: b.opt.PublishTimeout, Durable: keep.Description().Durability, Set: partitionSettings(t.Set), Logger: b.log,
	})
	reopened.part.Store(p)
	reopened.tell() // what came between
	return p, cut, nil
}

// reopened tells a partition when its log is opened anew.
type reopened struct {
	part atomic.Pointer[partition.Partition]
}

func (r *reopened) tell() {
	if p := r.part.Load(); p != nil {
		p.Reopened()
	}
}

func nextEpochs(epochs []record.Epoch) []record.Epoch {
	next := make([]record.Epoch, len(epochs))
	for i, e := range epochs {
		next[i] = e + 1
	}
	return next
}

// advanceTries bounds how often an epoch is written again because somebody else changed the topic.
const advanceTries = 5

// advanceEpoch gives one partition of a topic that is served a new leader epoch. It takes no part in the order of
// changes, whose holder may be waiting for the plugin that is being adopted; the transaction's guard settles it.
func (b *Broker) advanceEpoch(ctx context.Context, name storage.Partition) (record.Epoch, error) {
	store, err := b.metadata(ctx)
	if err != nil {
		return 0, err
	}
	for range advanceTries {
		var meta catalog.Topic
		if meta, err = catalog.Get(ctx, store, name.Topic); err != nil {
			return 0, err
		}
		if meta.ID != name.TopicID || int(name.ID) >= len(meta.Epochs) {
			return 0, catalog.ErrUnknown
		}
		meta.Epochs[name.ID]++
		if err = catalog.Update(ctx, store, &meta); err == nil {
			return meta.Epochs[name.ID], nil
		}
		if !errors.Is(err, catalog.ErrUnknown) {
			return 0, err
		}
	}
	return 0, fmt.Errorf("give %s a new epoch: %w", name, err)
}

// advanceEpochs gives partitions that may have lost records a new leader epoch and opens them under it: what is written
// from now on is told apart from what stood there before (STORAGE §6.5). One that cannot be opened again has its fault.
func (b *Broker) advanceEpochs(ctx context.Context, store metadata.Store, t *Topic, dirty []int) error {
	t.Meta.Epochs = append([]record.Epoch(nil), t.Meta.Epochs...)
	for _, i := range dirty {
		t.Meta.Epochs[i]++
		p := t.partitions[i]
		t.partitions[i] = nil
		p.Close(errShuttingDown)
		if err := p.Log().Close(ctx); err != nil {
			b.blame(t, i, fmt.Errorf("close %s to open it under a new epoch: %w", p.Name, err))
		}
	}
	if err := catalog.Update(ctx, store, &t.Meta); err != nil {
		return fmt.Errorf("write new epochs of %s: %w", t.Meta.Name, err)
	}
	for _, i := range dirty {
		if t.faults[i] != nil {
			continue
		}
		if _, err := b.openPartition(ctx, t, i); err != nil {
			b.blame(t, i, err)
		}
	}
	return nil
}

// abandon closes what was opened of a topic that will not be served. Its directories stay for the next try.
func (b *Broker) abandon(t *Topic) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	for _, p := range t.partitions {
		if p == nil {
			continue
		}
		p.Close(errShuttingDown)
		if err := p.Log().Close(ctx); err != nil {
			b.log.Warn("lease not given back", "partition", p.Name.String(), "err", err)
		}
	}
}
