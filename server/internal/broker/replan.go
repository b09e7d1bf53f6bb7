package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	plan "github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/catalog"
	"github.com/trunkline-mq/trunkline/server/internal/partition"
	"github.com/trunkline-mq/trunkline/server/internal/setting"
)

// Alteration is what is to change of a topic.
type Alteration struct {
	// Settings gets the present settings and says what is wrong with the new ones. Nil: they stay.
	Settings    func(s *setting.Topic) *errcode.Error
	Partitioner string // empty: as it is
	Partitions  int32  // 0: as it is
	// AcceptReorder allows keys to go to other partitions than before, where their records have no order with earlier ones.
	AcceptReorder bool
}

// AlterTopic changes a topic that is served. On return the change is durable and holds for whatever is published from
// now on; publishes under way are not refused by it. A new plan counts from when metadata has it.
func (b *Broker) AlterTopic(ctx context.Context, name string, a Alteration) error {
	return b.change(ctx, func(ctx context.Context) error {
		t := b.Lookup([]byte(name))
		if t == nil {
			return errcode.New(errcode.UnknownTopic, fmt.Sprintf("topic %s does not exist", name), "TOPIC LIST shows what does")
		}
		set := t.Set
		if a.Settings != nil {
			if err := a.Settings(&set); err != nil {
				return err
			}
			keep, err := b.engine(ctx, t.Meta.Store())
			if err != nil {
				return err
			}
			if err := fits(keep.Description(), set); err != nil {
				return err
			}
		}
		store, err := b.metadata(ctx)
		if err != nil {
			return err
		}
		meta, err := b.fresh(ctx, store, t)
		if err != nil {
			return err
		}
		// What an earlier change left open is settled first, so that this one has a topic to start from.
		if t, err = b.catchUpLocked(ctx, store, t, meta); err != nil {
			return err
		}
		next, err := b.nextPlan(ctx, t, a)
		if err != nil {
			return err
		}
		if next.Partitions > t.Meta.Partitions {
			return b.growLocked(ctx, store, t, set, next)
		}
		meta, err = b.rewrite(ctx, store, t, func(m *catalog.Topic) { m.Settings, m.Plan = set.Text(), next })
		if err != nil {
			return err
		}
		_, err = b.replaceLocked(t, meta, set)
		return err
	})
}

// nextPlan returns the plan that a asks for, the present one where it asks for none.
func (b *Broker) nextPlan(ctx context.Context, t *Topic, a Alteration) (plan.Plan, error) {
	now := t.Meta.Plan
	by, count := now.By(), t.Meta.Partitions
	if a.Partitioner != "" {
		by = a.Partitioner
	}
	if a.Partitions != 0 {
		count = a.Partitions
	}
	switch {
	case count < t.Meta.Partitions:
		return now, errcode.New(errcode.BadSetting,
			fmt.Sprintf("topic %s has %d partitions, and their number only grows", t.Meta.Name, t.Meta.Partitions), "choose a larger one")
	case a.Partitioner == "" && count == t.Meta.Partitions:
		return now, nil
	}
	next, err := b.plan(ctx, t.Meta.Name, by, count)
	if err != nil {
		return now, err
	}
	next.Version = now.Version
	if next == now && next.Kind != plan.KindCalled {
		return now, nil // nothing changes
	}
	next.Version++
	if err := b.mayMove(ctx, t, next, a.AcceptReorder); err != nil {
		return now, err
	}
	return next, nil
}

// mayMove refuses a plan that sends keys elsewhere, unless that is accepted, and says how many of the recent ones.
func (b *Broker) mayMove(ctx context.Context, t *Topic, next plan.Plan, accepted bool) error {
	if accepted || !t.Meta.Plan.Keyed() || t.Meta.Plan.Places(next) {
		return nil
	}
	keys := t.life.recent.distinct()
	moved, err := b.moved(ctx, t, next, keys)
	what := ""
	switch {
	case err != nil:
		what = fmt.Sprintf("keys of %s would move to other partitions, how many is not known: %v", t.Meta.Name, err)
	case keys.Len() == 0:
		what = fmt.Sprintf("keys of %s would move to other partitions; none was published since the server started", t.Meta.Name)
	default:
		what = fmt.Sprintf("%d of %d recent keys of %s (%d%%) would move to other partitions, out of order with their earlier records",
			moved, keys.Len(), t.Meta.Name, (200*moved+keys.Len())/(2*keys.Len()))
	}
	return errcode.New(errcode.BadSetting, what, "add accept_reorder=true if that may be")
}

// moved counts the keys that next sends elsewhere.
func (b *Broker) moved(ctx context.Context, t *Topic, next plan.Plan, keys *plan.Keys) (int, error) {
	then := &Topic{}
	var err error
	if then.Plan, err = plan.NewEvaluator(next); err != nil {
		return 0, err
	}
	if next.Kind == plan.KindCalled {
		then.called = b.newCalled(t.Meta.Name, next)
	}
	from, to := make([]plan.ID, keys.Len()), make([]plan.ID, keys.Len())
	if err := t.places(ctx, keys, from); err != nil {
		return 0, err
	}
	if err := then.places(ctx, keys, to); err != nil {
		return 0, err
	}
	n := 0
	for i := range from {
		if from[i] != to[i] {
			n++
		}
	}
	return n, nil
}

// rewrite changes what metadata says of a topic. An epoch that was advanced meanwhile stays.
func (b *Broker) rewrite(ctx context.Context, store metadata.Store, t *Topic, change func(m *catalog.Topic)) (catalog.Topic, error) {
	for try := 1; ; try++ {
		meta, err := b.fresh(ctx, store, t)
		if err != nil {
			return meta, err
		}
		change(&meta)
		err = catalog.Update(ctx, store, &meta)
		if err == nil {
			return meta, nil
		}
		if !errors.Is(err, catalog.ErrUnknown) || try == advanceTries {
			return meta, errcode.Wrap(errcode.MetadataUnavailable, err, fmt.Sprintf("topic %s could not be written to metadata%s", t.Meta.Name, because(err)),
				"look with TOPIC INFO, then try again")
		}
	}
}

// replaceLocked serves a topic as meta has it, from the next record on. partitions beyond those of t are added by
// whoever opened them.
func (b *Broker) replaceLocked(t *Topic, meta catalog.Topic, set setting.Topic) (*Topic, error) {
	next := *t
	next.Meta, next.Set, next.altered = meta, set, make(chan struct{})
	if meta.Plan != t.Meta.Plan || t.Plan.Plan() != meta.Plan {
		evaluator, err := plan.NewEvaluator(meta.Plan)
		if err != nil {
			return t, errcode.Wrap(errcode.PartitionerUnavailable, err, fmt.Sprintf("topic %s has a plan this version cannot run", meta.Name),
				"start a newer version")
		}
		next.Plan, next.called = evaluator, nil
		if meta.Plan.Kind == plan.KindCalled {
			next.called = b.newCalled(meta.Name, meta.Plan)
		}
	}
	b.mu.Lock()
	b.topics[meta.Name] = &next
	b.noteChangeLocked()
	b.mu.Unlock()
	before := t.life.newest.Swap(&next)
	close(before.altered)
	return &next, b.apply(&next)
}

// catchUpLocked serves t as meta has it, which may be newer: a change whose outcome was unknown is settled, and a growth
// that was begun is finished. It returns the topic as it is served then.
func (b *Broker) catchUpLocked(ctx context.Context, store metadata.Store, t *Topic, meta catalog.Topic) (*Topic, error) {
	if meta.Version != t.Meta.Version {
		set, fault := setting.Parse(meta.Settings)
		if fault != nil {
			return t, fault
		}
		wide, err := b.widen(ctx, t, meta, meta.Partitions)
		if err != nil {
			return t, err
		}
		if t, err = b.replaceLocked(wide, meta, set); err != nil {
			return t, err
		}
	}
	if meta.Grow == nil {
		return t, nil
	}
	return b.finishGrowthLocked(ctx, store, t, meta)
}

// growLocked adds partitions. Metadata first says what is going to be, then the directories are made, then metadata says
// that it is: wherever that is cut off, catchUpLocked goes on. A store that makes no directories ends it: what was
// made is removed, and the topic stays as it was.
func (b *Broker) growLocked(ctx context.Context, store metadata.Store, t *Topic, set setting.Topic, next plan.Plan) error {
	meta, err := b.rewrite(ctx, store, t, func(m *catalog.Topic) { m.Settings, m.Grow = set.Text(), &next })
	if err != nil {
		return err
	}
	if t, err = b.replaceLocked(t, meta, set); err != nil {
		return err
	}
	_, err = b.finishGrowthLocked(ctx, store, t, meta)
	if errors.Is(err, errcode.Of(errcode.StorageUnavailable)) {
		if undo := b.shrinkLocked(ctx, store, t, next.Partitions); undo != nil {
			b.log.Warn("partitions that could not be added are not taken back; tried again at the next start", "topic", t.Meta.Name, "err", undo)
		}
	}
	return err
}

// finishGrowthLocked makes the partitions of meta.Grow and serves them.
func (b *Broker) finishGrowthLocked(ctx context.Context, store metadata.Store, t *Topic, meta catalog.Topic) (*Topic, error) {
	count := meta.Grow.Partitions
	wide, err := b.widen(ctx, t, meta, count)
	if err != nil {
		return t, err
	}
	meta, err = b.rewrite(ctx, store, t, func(m *catalog.Topic) {
		m.Epochs = append(m.Epochs, make([]record.Epoch, count-m.Partitions)...)
		m.Partitions, m.Plan, m.Grow = count, *m.Grow, nil
	})
	if err == nil {
		return b.replaceLocked(wide, meta, t.Set)
	}
	b.closeFrom(wide, len(t.partitions))
	return t, err
}

// widen returns t with count partitions, the new ones opened: all of them, or none.
func (b *Broker) widen(ctx context.Context, t *Topic, meta catalog.Topic, count int32) (*Topic, error) {
	first, more := len(t.partitions), int(count)-len(t.partitions)
	if more <= 0 {
		return t, nil
	}
	wide := *t
	wide.Meta = meta
	wide.Meta.Epochs = append(slices.Clone(meta.Epochs), make([]record.Epoch, int(count)-len(meta.Epochs))...)
	wide.partitions = append(slices.Clone(t.partitions), make([]*partition.Partition, more)...)
	wide.faults = append(slices.Clone(t.faults), make([]*errcode.Error, more)...)
	b.openPartitions(ctx, &wide, first)
	for _, fault := range wide.faults[first:] {
		if fault != nil {
			b.closeFrom(&wide, first)
			return nil, fault
		}
	}
	return &wide, nil
}

// closeFrom gives back the partitions from first on, which nobody has been told of.
func (b *Broker) closeFrom(t *Topic, first int) {
	b.abandon(&Topic{partitions: t.partitions[first:]})
}

// shrinkLocked takes a growth back that could not be finished. One that is committed stays.
func (b *Broker) shrinkLocked(ctx context.Context, store metadata.Store, t *Topic, count int32) error {
	meta, err := b.fresh(ctx, store, t)
	if err != nil || meta.Grow == nil {
		return err
	}
	keep, err := b.engine(ctx, t.Meta.Store())
	if err != nil {
		return err
	}
	for i := t.Meta.Partitions; i < count; i++ {
		if err := keep.Delete(ctx, storage.Partition{Topic: t.Meta.Name, TopicID: t.Meta.ID, ID: plan.ID(i)}); err != nil {
			return err
		}
	}
	meta, err = b.rewrite(ctx, store, t, func(m *catalog.Topic) { m.Grow = nil })
	if err != nil {
		return err
	}
	_, err = b.replaceLocked(t, meta, t.Set)
	return err
}
