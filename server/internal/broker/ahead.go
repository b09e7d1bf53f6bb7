package broker

import (
	"bytes"
	"context"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	plan "github.com/trunkline-mq/trunkline/protocol/partition"
)

// AheadMax bounds the keys that are asked for at once.
const AheadMax = 256

// Ahead holds the partitions of keys whose records were read and not yet handled, so that a partitioner that is called
// hears all keys of a write at once. It belongs to one connection and is not safe for concurrent use. The zero value
// holds none.
type Ahead struct {
	topic *Topic // whose plan they are of
	keys  plan.Keys
	to    []plan.ID
	next  int // the first key that was not taken yet
	from  int // where it starts in keys.Blob
}

// Choose is Topic.Choose for a record of many. Where t's partitioner has to be asked, more adds the keys of the records
// behind this one, as far as they are known, up to AheadMax; they are a guess, and each is compared when its turn comes.
func (a *Ahead) Choose(ctx context.Context, t *Topic, key []byte, more func(keys *plan.Keys)) (plan.ID, *errcode.Error) {
	if !t.Called() {
		return t.Choose(ctx, key)
	}
	if id, ok := a.take(t, key); ok {
		return id, nil
	}
	a.topic, a.next, a.from = t, 0, 0
	a.keys.Reset()
	a.keys.Append(key)
	more(&a.keys)
	if n := a.keys.Len(); cap(a.to) < n {
		a.to = make([]plan.ID, max(n, AheadMax))
	}
	a.to = a.to[:a.keys.Len()]
	if err := t.ChooseAll(ctx, &a.keys, a.to); err != nil {
		a.topic = nil
		return plan.None, err
	}
	id, _ := a.take(t, key)
	return id, nil
}

// take returns the partition of the next key, if it is that one.
func (a *Ahead) take(t *Topic, key []byte) (plan.ID, bool) {
	if a.topic != t || a.next >= a.keys.Len() {
		return plan.None, false
	}
	end := a.from + int(a.keys.Lengths[a.next])
	if !bytes.Equal(a.keys.Blob[a.from:end], key) {
		return plan.None, false
	}
	a.next, a.from = a.next+1, end
	return a.to[a.next-1], true
}
