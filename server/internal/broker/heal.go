package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/partition"
	"github.com/trunkline-mq/trunkline/server/internal/setting"
)

const (
	// healParallel bounds how many partitions of one store are being opened again at once; each may hang.
	healParallel = 8
	// healWait bounds how long one waits for a descriptor meanwhile.
	healWait = 5 * time.Second
	// turnWait bounds how long a partition that is open waits for other changes of topics before it is given back, and
	// a reason to be told.
	turnWait = 10 * time.Second
)

// healer opens partitions again that could not be opened: after a pause that grows, and at once when their store's plugin
// is up. Partitions that were open once are their engine's to see to. Opening takes no part in the order of changes; what
// was opened is served in its turn.
type healer struct {
	broker *Broker
	kick   chan struct{} // holds one: something is due earlier than was known

	mu   sync.Mutex
	over bool // nothing is begun any more
	down map[storage.Partition]*patient
	busy map[string]int // tries under way, by store
	work sync.WaitGroup
}

// patient is a partition that is not open. Guarded by healer.mu, but for what one try at a time has to itself.
type patient struct {
	life     *life
	store    string
	due      time.Time
	failures int  // in a row
	again    bool // the store came up during the try that is under way
	try      *try // nil: none is under way
	said     string

	// Of the try. epoch is the newest leader epoch, and advanced says that nothing was written under it.
	epoch    record.Epoch
	advanced bool
}

// try is one that is under way.
type try struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func newHealer(b *Broker) *healer {
	return &healer{broker: b, kick: make(chan struct{}, 1), down: make(map[storage.Partition]*patient), busy: make(map[string]int)}
}

// admit takes over the partitions of t that are not open. advanced says that they have a leader epoch under which nothing
// was written.
func (h *healer) admit(t *Topic, advanced bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, fault := range t.faults {
		if fault != nil {
			h.down[t.name(i)] = &patient{
				life: t.life, store: t.Meta.Store(), failures: 1, due: time.Now().Add(lend.RetryPause(1)), said: fault.Err.Error(),
				epoch: t.Meta.Epochs[i], advanced: advanced,
			}
		}
	}
	h.wake()
}

func (h *healer) wake() {
	select {
	case h.kick <- struct{}{}:
	default: // one is enough
	}
}

// storeUp has the partitions of a store tried at once.
func (h *healer) storeUp(store string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.down {
		if p.store == store {
			p.failures, p.due, p.again = 0, time.Time{}, true
		}
	}
	h.wake()
}

// run begins what is due, until ctx ends.
func (h *healer) run(ctx context.Context) error {
	for {
		timer := time.NewTimer(time.Until(h.begin(ctx, time.Now())))
		select {
		case <-h.kick:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// idlePause is how long the healer sleeps where nothing is due: it is woken when that changes.
const idlePause = time.Hour

// begin begins what is due and returns when it is to be looked again.
func (h *healer) begin(ctx context.Context, now time.Time) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := now.Add(idlePause)
	for part, p := range h.down {
		switch {
		case h.over || p.try != nil || h.busy[p.store] >= healParallel: // whoever ends makes room, and says so
		case p.due.After(now):
			if p.due.Before(next) {
				next = p.due
			}
		default:
			h.startLocked(ctx, part, p)
		}
	}
	return next
}

func (h *healer) startLocked(ctx context.Context, part storage.Partition, p *patient) {
	ctx, cancel := context.WithCancel(ctx)
	t := &try{cancel: cancel, done: make(chan struct{})}
	p.try, p.again = t, false
	h.busy[p.store]++
	h.work.Go(func() {
		defer close(t.done)
		defer cancel()
		err := h.attempt(ctx, part, p)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.busy[p.store]--
		p.try = nil
		h.wake()
		if err == nil {
			if h.down[part] == p {
				delete(h.down, part)
			}
			return
		}
		if p.again {
			p.due = time.Time{}
			return
		}
		p.failures++
		p.due = time.Now().Add(lend.RetryPause(p.failures))
	})
}

// attempt opens a partition and has it served. What cannot be opened is told once for each reason.
func (h *healer) attempt(ctx context.Context, name storage.Partition, p *patient) error {
	part, set, err := h.open(ctx, name, p)
	if err == nil {
		if err = h.serve(ctx, part, p, set); err != nil {
			h.discard(part)
			return err // it is not the partition's fault
		}
		h.broker.log.Info("partition is served again", "topic", name.Topic, "partition", int(name.ID))
		return nil
	}
	if ctx.Err() == nil && err.Error() != p.said && !errors.Is(err, errNotUp) && !errors.Is(err, lend.ErrNoStore) {
		p.said = err.Error()
		h.broker.log.Error("partition is not served; tried again", "topic", name.Topic, "partition", int(name.ID), "err", err)
		h.tell(ctx, name, p, err)
	}
	return err
}

// open opens the partition and returns it with the settings that it has.
func (h *healer) open(ctx context.Context, name storage.Partition, p *patient) (*partition.Partition, setting.Topic, error) {
	b, t := h.broker, p.life.newest.Load()
	e, err := b.engineNow(p.store)
	if err != nil {
		return nil, t.Set, err
	}
	o := opening{epoch: max(p.epoch, t.Meta.Epochs[name.ID]), wait: healWait}
	if t.lazy(e.Description()) && !p.advanced {
		if o.epoch, err = b.advanceEpoch(ctx, name); err != nil {
			return nil, t.Set, err
		}
		p.epoch, p.advanced = o.epoch, true
	}
	part, cut, err := b.openAs(ctx, e, t, name, o)
	if err != nil || cut == nil || !cut.Dirty {
		return part, t.Set, err
	}
	// What may have lost acknowledged records goes on under another epoch.
	h.discard(part)
	if o.epoch, err = b.advanceEpoch(ctx, name); err != nil {
		return nil, t.Set, err
	}
	p.epoch = o.epoch
	part, _, err = b.openAs(ctx, e, t, name, o)
	return part, t.Set, err
}

// discard gives a partition back that nobody was told of.
func (h *healer) discard(p *partition.Partition) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	p.Close(errShuttingDown)
	if err := p.Log().Close(ctx); err != nil {
		h.broker.log.Warn("lease not given back", "partition", p.Name.String(), "err", err)
	}
}

// serve makes an open partition, which has the settings set, one of its topic's.
func (h *healer) serve(ctx context.Context, part *partition.Partition, p *patient, set setting.Topic) error {
	return h.turn(ctx, p, func(t *Topic) error {
		if t.Set != set { // altered meanwhile
			next := Topic{Meta: t.Meta, Set: t.Set, partitions: []*partition.Partition{part}}
			if err := h.broker.apply(&next); err != nil {
				return err
			}
		}
		h.broker.swapLocked(t, part.Name, part, nil)
		return nil
	})
}

// tell has the topic say why its partition is not served. Where that must wait too long, it goes on saying what it said.
func (h *healer) tell(ctx context.Context, name storage.Partition, p *patient, err error) {
	_ = h.turn(ctx, p, func(t *Topic) error {
		h.broker.swapLocked(t, name, nil, notServed(name, err))
		return nil
	})
}

// errGone says that a topic was deleted while a partition of it was opened.
var errGone = errors.New("topic was deleted meanwhile")

// turn runs f in the order of changes, on the topic as it is then.
func (h *healer) turn(ctx context.Context, p *patient, f func(t *Topic) error) error {
	ctx, cancel := context.WithTimeout(ctx, turnWait)
	defer cancel()
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-p.life.gone:
			cancel()
		case <-ctx.Done():
		}
	})
	defer watch.Wait()
	defer cancel()
	return h.broker.changes.alone(ctx, func(context.Context) error {
		t := p.life.newest.Load()
		select {
		case <-p.life.gone:
			return errGone
		default:
		}
		return f(t)
	})
}

// dismiss forgets a topic's partitions. On return none of them is being opened.
func (h *healer) dismiss(topicID string) {
	h.mu.Lock()
	var tries []*try
	for part, p := range h.down {
		if part.TopicID == topicID {
			delete(h.down, part)
			if p.try != nil {
				tries = append(tries, p.try)
			}
		}
	}
	h.mu.Unlock()
	end(tries, closeTimeout)
}

// close ends every try; none begins any more.
func (h *healer) close() {
	h.mu.Lock()
	h.over = true
	var tries []*try
	for _, p := range h.down {
		if p.try != nil {
			tries = append(tries, p.try)
		}
	}
	h.mu.Unlock()
	end(tries, 0)
	h.work.Wait()
}

// end waits until the tries are over. To give one up ends the store's process, so that it has some time before.
func end(tries []*try, patience time.Duration) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for i, t := range tries {
		select {
		case <-t.done:
			continue
		case <-timer.C:
		}
		for _, t := range tries[i:] {
			t.cancel()
		}
		for _, t := range tries[i:] {
			<-t.done
		}
		return
	}
}

// swapLocked serves a topic with another partition in the place of one, or another reason why there is none.
func (b *Broker) swapLocked(t *Topic, name storage.Partition, part *partition.Partition, fault *errcode.Error) {
	next := *t
	next.altered = make(chan struct{})
	next.partitions, next.faults = slices.Clone(t.partitions), slices.Clone(t.faults)
	next.partitions[name.ID], next.faults[name.ID] = part, fault
	b.mu.Lock()
	b.topics[t.Meta.Name] = &next
	b.noteChangeLocked()
	b.mu.Unlock()
	close(t.life.newest.Swap(&next).altered)
}

// notServed is what is answered for a partition that could not be opened.
func notServed(name storage.Partition, err error) *errcode.Error {
	code := errcode.StorageUnavailable
	if errors.Is(err, storage.ErrFull) {
		code = errcode.StorageFull
	}
	return errcode.Wrap(code, err, fmt.Sprintf("partition %s/%d is not served: %v", name.Topic, name.ID, err), "see the server's log")
}

// errNotUp says that a store is being started, which is no news: what was said before is why.
var errNotUp = errors.New("the storage plugin is being started")

// engineNow is engine for who does not wait.
func (b *Broker) engineNow(name string) (engine, error) {
	s, fault := b.store(name)
	if fault != nil {
		return nil, fault
	}
	e, ok := s.engine.now()
	if !ok {
		return nil, s.why(errNotUp)
	}
	if _, ok := s.inst.now(); !ok {
		return nil, errNotUp
	}
	return e, nil
}
