package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/partitionerrpc"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	plan "github.com/trunkline-mq/trunkline/protocol/partition"
)

// defaultPartitioner is the one of a topic that names none. It always runs; the others run from when a topic first
// wants them.
const defaultPartitioner = "murmur2"

// shippedPartitioners are those that live in the server's binary.
func shippedPartitioners() []string {
	return []string{"crc32", "fnv1a", "jump", defaultPartitioner, "roundrobin", "sticky"}
}

// lenders are the partitioner plugins that run, by name.
type lenders struct {
	mu  sync.Mutex
	all map[string]*lender
}

// lender is one partitioner plugin and who supervises it.
type lender struct {
	onDemand
	name   string
	broker *Broker
	up     current[lending]
	late   atomic.Int32 // calls in a row that were not answered in time

	lentMu sync.Mutex
	lent   []lending // adopted and not given back: one, but while it is reloaded
}

// lending is a running instance of a partitioner.
type lending struct {
	client *partitionerrpc.Client
	inst   *host.Instance
}

// lateMax is how many late answers in a row show that a plugin hangs: its heartbeat may be well, since that asks another
// part of it.
const lateMax = 20

// lender returns the partitioner of that name, which is started if it does not run yet, and need not be up.
func (b *Broker) lender(name string) (*lender, *errcode.Error) {
	if err := b.mustBeAvailable(kindPartitioner, "partitioner", name); err != nil {
		return nil, err
	}
	b.lenders.mu.Lock()
	defer b.lenders.mu.Unlock()
	l := b.lenders.all[name]
	if l == nil {
		l = b.newLenderLocked(name)
		b.spawn(l.keep)
	}
	return l, nil
}

func (b *Broker) newLenderLocked(name string) *lender {
	l := &lender{name: name, broker: b}
	l.onDemand = onDemand{
		log: b.log.With("kind", kindPartitioner, "name", name), fresh: l.supervise, again: make(chan chan<- error),
		tend: func(ctx context.Context, sup *host.Supervisor) error { return sup.Run(ctx) },
	}
	l.renew()
	b.lenders.all[name] = l
	return l
}

// supervise makes a supervisor that has not started anything.
func (l *lender) supervise() *host.Supervisor {
	return l.broker.supervise(kindPartitioner, l.name, host.Spec{
		OnUp: func(ctx context.Context, inst *host.Instance) error {
			up := lending{client: partitionerrpc.NewClient(inst.Conn()), inst: inst}
			if _, err := up.client.Describe(ctx); err != nil {
				return errors.Join(err, up.client.Close())
			}
			l.late.Store(0)
			l.lentMu.Lock()
			l.lent = append(l.lent, up)
			l.lentMu.Unlock()
			l.up.set(up)
			return nil
		},
		Overlap: true,
		OnDown:  l.down,
	})
}

// down closes the client of an instance that is gone or replaced. Calls under way are asked of its successor.
func (l *lender) down(inst *host.Instance, _ error) {
	l.lentMu.Lock()
	i := slices.IndexFunc(l.lent, func(up lending) bool { return up.inst == inst })
	gone := l.lent[i] // each instance that was adopted is given back once
	l.lent = slices.Delete(l.lent, i, i+1)
	rest := l.lent
	l.lentMu.Unlock()
	if len(rest) > 0 {
		l.up.set(rest[len(rest)-1])
	} else {
		l.up.clear()
	}
	_ = gone.client.Close() // never fails
}

// get waits for the plugin until ctx ends, and then says why it is not up where that is known.
func (l *lender) get(ctx context.Context) (lending, error) {
	up, err := l.up.get(ctx)
	if err != nil {
		err = l.why(err)
	}
	return up, err
}

// assignTries is how often a write's keys are asked for before it is refused. On a machine under load an answer may be
// late with nothing wrong, and asking twice does no harm: the answer is the same.
const assignTries = 2

// assign asks the plugin for partitions. A plugin that is late again and again is killed; its successor may do better.
func (l *lender) assign(ctx context.Context, r partitioner.AssignRequest, to []plan.ID) error {
	var err error
	for try := 0; try < assignTries; {
		up, ok := l.up.now()
		if !ok {
			return errors.Join(errNoPartitioner, l.why(nil))
		}
		err = up.client.Assign(ctx, r, to)
		if errors.Is(err, partitionerrpc.ErrUnavailable) && ctx.Err() == nil && l.replaced(up) {
			continue // ends when processes are not replaced faster than they are asked
		}
		if !errors.Is(err, partitionerrpc.ErrDeadline) || ctx.Err() != nil {
			l.late.Store(0)
			return err
		}
		try++
		if l.late.Add(1) == lateMax {
			up.inst.Kill(fmt.Errorf("%d calls in a row: %w", lateMax, partitionerrpc.ErrDeadline))
		}
	}
	return err
}

// blame implements asker.
func (l *lender) blame(err error) { l.supervisor().Blame(err) }

// replaced reports whether another instance than up answers now.
func (l *lender) replaced(up lending) bool {
	now, ok := l.up.now()
	return ok && now.client != up.client
}

// errNoPartitioner is why a key has no partition while its topic's plugin does not run.
var errNoPartitioner = errors.New("its plugin does not run")

// plan asks the plugin, and once it was replaced meanwhile its successor.
func (l *lender) plan(ctx context.Context, r partitioner.PlanRequest) (plan.Plan, error) {
	for {
		up, err := l.get(ctx)
		if err != nil {
			return plan.Plan{}, err
		}
		strategy, err := up.client.Plan(ctx, r)
		if !errors.Is(err, partitionerrpc.ErrUnavailable) || !l.replaced(up) {
			return strategy, err
		}
	}
}

// plan asks a partitioner plugin how to spread a topic. The plan has no version yet.
func (b *Broker) plan(ctx context.Context, topic, by string, partitions int32) (plan.Plan, error) {
	l, fault := b.lender(by)
	if fault != nil {
		return plan.Plan{}, fault
	}
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	strategy, err := l.plan(ctx, partitioner.PlanRequest{Topic: topic, Partitions: partitions})
	if err == nil && strategy.Partitions != partitions {
		err = fmt.Errorf("plan is for %d partitions", strategy.Partitions)
	}
	if err == nil {
		_, err = plan.NewEvaluator(strategy)
	}
	if err != nil {
		return strategy, errcode.Wrap(errcode.PartitionerUnavailable, err,
			fmt.Sprintf("partitioner %s lent no plan for %s: %v", by, topic, err), "nothing was changed; try again")
	}
	if strategy.Kind != by {
		strategy.Partitioner = by
	}
	return strategy, nil
}
