package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/partitionerrpc"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	plan "github.com/trunkline-mq/trunkline/protocol/partition"
)

// Choose returns the partition of a record with that key. Under a plan of the called form it asks the plugin, which may
// take 50 ms; PARTITIONER_UNAVAILABLE, which is definite, where it has no answer that can be believed.
func (t *Topic) Choose(ctx context.Context, key []byte) (plan.ID, *errcode.Error) {
	t.life.recent.note(key)
	if t.called == nil {
		return t.Plan.ForKey(key), nil
	}
	return t.called.one(ctx, key)
}

// ChooseAll is Choose for all keys of a write, with one question to the plugin: to[i] is the partition of the i-th key.
// keys is as it was on return.
func (t *Topic) ChooseAll(ctx context.Context, keys *plan.Keys, to []plan.ID) *errcode.Error {
	for _, key := range keys.All() {
		t.life.recent.note(key)
	}
	return t.places(ctx, keys, to)
}

// places is ChooseAll for keys that nobody publishes now.
func (t *Topic) places(ctx context.Context, keys *plan.Keys, to []plan.ID) *errcode.Error {
	if t.called != nil && keys.Len() > 0 {
		return t.called.all(ctx, keys, to)
	}
	for i, key := range keys.All() {
		to[i] = t.Plan.ForKey(key)
	}
	return nil
}

// Called reports whether keys are asked for, so that it pays to ask for many at once by ChooseAll.
func (t *Topic) Called() bool { return t.called != nil }

// asker is what knows the partitions of keys: a lender.
type asker interface {
	assign(ctx context.Context, r partitioner.AssignRequest, to []plan.ID) error
	// blame is told what is wrong with an answer.
	blame(err error)
}

var _ asker = (*lender)(nil)

// called asks a plugin for the keys of one topic, and finds out if it does not answer the same each time: with every
// question it repeats one key of it, and one that it asked before.
type called struct {
	plugin     asker // nil: fault says why
	fault      *errcode.Error
	topic      string
	partitions int32
	spare      sync.Pool // of *question

	mu    sync.Mutex
	turn  uint64
	known []answered // the first ones under this plan, at most knownKeysMax
}

const (
	// knownKeysMax is how many answers are remembered to be asked for again. A restarted plugin has to give them too.
	knownKeysMax = 16
	// knownKeyBytesMax bounds a key that is remembered.
	knownKeyBytesMax = 256
)

// answered is a key and where it went; None: there is no answer yet.
type answered struct {
	key []byte
	at  plan.ID
}

// question is memory for one call.
type question struct {
	one   plan.Keys // of Choose
	at    [1]plan.ID
	to    []plan.ID // answers to the keys and the two that are repeated
	again answered
}

func (b *Broker) newCalled(topic string, p plan.Plan) *called {
	l, fault := b.lender(p.By())
	return newCalled(topic, p.Partitions, l, fault)
}

func newCalled(topic string, partitions int32, plugin asker, fault *errcode.Error) *called {
	c := &called{topic: topic, partitions: partitions, plugin: plugin, fault: fault}
	c.spare.New = func() any { return &question{} }
	return c
}

func (c *called) one(ctx context.Context, key []byte) (plan.ID, *errcode.Error) {
	q := c.spare.Get().(*question)
	defer c.spare.Put(q)
	q.one.Reset()
	q.one.Append(key)
	err := c.ask(ctx, q, &q.one, q.at[:])
	return q.at[0], err
}

func (c *called) all(ctx context.Context, keys *plan.Keys, to []plan.ID) *errcode.Error {
	q := c.spare.Get().(*question)
	defer c.spare.Put(q)
	return c.ask(ctx, q, keys, to)
}

func (c *called) ask(ctx context.Context, q *question, keys *plan.Keys, to []plan.ID) *errcode.Error {
	for i := range to {
		to[i] = plan.None // whoever overlooks the error publishes nowhere
	}
	if c.fault != nil {
		return c.unavailable(c.fault)
	}
	n, blob := keys.Len(), len(keys.Blob)
	sample, key := c.sample(q, keys)
	keys.Append(key)
	keys.Append(q.again.key)
	q.to = append(q.to[:0], make([]plan.ID, n+2)...)
	err := c.plugin.assign(ctx, partitioner.AssignRequest{Topic: c.topic, Partitions: c.partitions, Keys: keys}, q.to)
	keys.Blob, keys.Lengths = keys.Blob[:blob], keys.Lengths[:n]
	switch {
	case err != nil:
	case q.to[n] != q.to[sample]:
		err = fmt.Errorf("%w: %d and %d within one call", errUnsteady, q.to[sample], q.to[n])
	case q.again.at != plan.None && q.to[n+1] != q.again.at:
		err = fmt.Errorf("%w: %d earlier and %d now", errUnsteady, q.again.at, q.to[n+1])
	}
	if err != nil {
		if atFault(err) && ctx.Err() == nil {
			c.plugin.blame(fmt.Errorf("topic %s: %w", c.topic, err))
		}
		return c.unavailable(err)
	}
	copy(to, q.to[:n])
	c.remember(key, q.to[sample])
	return nil
}

// atFault reports whether err is the fault of what a plugin answered: who is gone or late is dealt with elsewhere.
func atFault(err error) bool {
	return !errors.Is(err, errNoPartitioner) && !errors.Is(err, partitionerrpc.ErrUnavailable) && !errors.Is(err, partitionerrpc.ErrDeadline)
}

// errUnsteady says that a plugin gave two answers for one key.
var errUnsteady = errors.New("it gives different partitions for the same key")

func (c *called) unavailable(err error) *errcode.Error {
	return errcode.Wrap(errcode.PartitionerUnavailable, err, fmt.Sprintf("the partitioner of %s chose no partition: %v", c.topic, err),
		"nothing was written; try again, name a partition, or alter the topic's partitioner")
}

// sample picks a key of this question, and copies one that was answered before into q.again.
func (c *called) sample(q *question, keys *plan.Keys) (int, []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn++
	q.again.key, q.again.at = q.again.key[:0], plan.None
	if n := uint64(len(c.known)); n > 0 {
		old := &c.known[c.turn%n]
		q.again.key, q.again.at = append(q.again.key, old.key...), old.at
	}
	want := int(c.turn % uint64(keys.Len()))
	for i, key := range keys.All() {
		if i == want {
			return i, key
		}
	}
	return 0, nil // not reached: want is below Len
}

// remember keeps an answer while there is room for another key.
func (c *called) remember(key []byte, at plan.ID) {
	if len(key) > knownKeyBytesMax {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) == knownKeysMax {
		return
	}
	for i := range c.known {
		if bytes.Equal(c.known[i].key, key) {
			return
		}
	}
	c.known = append(c.known, answered{key: append([]byte(nil), key...), at: at})
}

// recentKeys is a sample of the keys that were published lately.
type recentKeys struct {
	full  atomic.Bool
	mu    sync.Mutex
	slots [][]byte
	next  int
}

const (
	// recentMax bounds the sample: enough to tell a tenth from a half, and small beside ten thousand topics.
	recentMax = 128
	// recentEvery is how many keys pass, on average, for one that is taken once the sample is full.
	recentEvery = 64
	// recentKeyBytesMax bounds a key that is taken.
	recentKeyBytesMax = 128
)

// note may take key into the sample.
func (r *recentKeys) note(key []byte) {
	if r.full.Load() && rand.Uint32()%recentEvery != 0 || len(key) > recentKeyBytesMax || !r.mu.TryLock() {
		return
	}
	defer r.mu.Unlock()
	if len(r.slots) < recentMax {
		r.slots = append(r.slots, append([]byte(nil), key...))
		r.full.Store(len(r.slots) == recentMax)
		return
	}
	r.slots[r.next] = append(r.slots[r.next][:0], key...)
	r.next = (r.next + 1) % recentMax
}

// distinct returns the keys of the sample, each once.
func (r *recentKeys) distinct() *plan.Keys {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys := &plan.Keys{}
	for i, key := range r.slots {
		seen := false
		for _, before := range r.slots[:i] {
			if bytes.Equal(before, key) {
				seen = true
				break
			}
		}
		if !seen {
			keys.Append(key)
		}
	}
	return keys
}
