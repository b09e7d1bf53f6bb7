package broker

import (
	"bytes"
	"context"
	"fmt"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	plan "github.com/trunkline-mq/trunkline/protocol/partition"
)

// AheadMax bounds the keys that are asked for at once.
const AheadMax = 256

// Asked is keys of one write to a topic, and their partitions once a partitioner that is called has said them. Who reads
// adds keys and calls Ask, whoever handles the records takes their partitions, in the order of the keys.
type Asked struct {
	topic *Topic
	keys  plan.Keys // does not change once Ask has begun, while which they are read
	send  plan.Keys // Ask's; shares memory with keys, and is longer for a while
	to    []plan.ID
	fault *errcode.Error // why there are none; set before done is closed, as to is
	done  chan struct{}
	next  int // the first key that was not taken yet
	from  int // where it starts in keys.Blob
}

// NewAsked returns a question to t's partitioner without keys.
func NewAsked(t *Topic) *Asked { return &Asked{topic: t, done: make(chan struct{})} }

// Topic is the one whose partitioner is asked.
func (q *Asked) Topic() *Topic { return q.topic }

// Len is the number of keys.
func (q *Asked) Len() int { return q.keys.Len() }

// Add adds a copy of a key, before Ask.
func (q *Asked) Add(key []byte) { q.keys.Append(key) }

// Ask asks the partitioner, once, and returns when the answer is there, or why there is none.
func (q *Asked) Ask(ctx context.Context) {
	defer close(q.done)
	if n := q.keys.Len(); cap(q.to) < n {
		q.to = make([]plan.ID, max(n, AheadMax))
	}
	q.to = q.to[:q.keys.Len()]
	q.send = q.keys
	q.fault = q.topic.ChooseAll(ctx, &q.send, q.to)
}

// take returns the partition of the next key that equals key, and waits until it is known; false where there is no such
// key. Those before it were of records that were refused before they got as far, or of a guess that was wrong.
func (q *Asked) take(ctx context.Context, key []byte) (plan.ID, *errcode.Error, bool) {
	at, from := q.next, q.from
	for ; at < len(q.keys.Lengths); at++ {
		end := from + int(q.keys.Lengths[at])
		found := bytes.Equal(q.keys.Blob[from:end], key)
		if from = end; found {
			break
		}
	}
	if at == len(q.keys.Lengths) {
		return plan.None, nil, false
	}
	q.next, q.from = at+1, from
	select {
	case <-q.done:
	case <-ctx.Done():
		return plan.None, errcode.Wrap(errcode.PartitionerUnavailable, ctx.Err(),
			fmt.Sprintf("the connection ended before the partitioner of %s answered", q.topic.Meta.Name), "nothing was written; try again"), true
	}
	if q.fault != nil {
		return plan.None, q.fault, true
	}
	return q.to[at], nil, true
}

// Ahead holds the partitions of keys whose records were read and not yet handled, so that a partitioner that is called
// hears all keys of a write at once. It belongs to one connection and is not safe for concurrent use. The zero value
// holds none.
type Ahead struct {
	own   *Asked   // asked by Choose
	asked []*Asked // asked by who reads ahead
}

// Expect says what was asked for the records that come next, in place of what was expected before. The slice stays the
// caller's, and is read until the next call.
func (a *Ahead) Expect(asked []*Asked) { a.asked, a.own = asked, nil }

// Choose is Topic.Choose for a record of many. It takes what was asked before; where that is not this key, or under
// another plan, it asks, and more adds the keys of the records behind this one, as far as they are known, up to AheadMax.
// All of that is a guess, and each key is compared when its turn comes. What failed failed for all keys of the question.
func (a *Ahead) Choose(ctx context.Context, t *Topic, key []byte, more func(keys *plan.Keys)) (plan.ID, *errcode.Error) {
	if !t.Called() {
		return t.Choose(ctx, key)
	}
	for _, q := range a.asked {
		if q.topic != t {
			continue
		}
		if id, fault, ok := q.take(ctx, key); ok {
			return id, fault
		}
	}
	if a.own != nil && a.own.topic == t {
		if id, fault, ok := a.own.take(ctx, key); ok {
			return id, fault
		}
	}
	a.own = NewAsked(t)
	a.own.Add(key)
	more(&a.own.keys)
	a.own.Ask(ctx)
	id, fault, _ := a.own.take(ctx, key)
	return id, fault
}
