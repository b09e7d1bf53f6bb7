package partition

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// KindMurmur2 is Kafka's default: murmur2 of the key, modulo the number of partitions; records without a key go round
// robin by batch.
const KindMurmur2 = "murmur2"

// ErrPlan says that a plan cannot be evaluated here.
var ErrPlan = errors.New("partition plan cannot be evaluated")

// Evaluator runs a plan. It is safe for concurrent use.
type Evaluator struct {
	plan Plan
	turn atomic.Uint64
}

// NewEvaluator returns an evaluator of p; ErrPlan where its kind is not known to this version or its number of
// partitions is not in [1, CountMax].
func NewEvaluator(p Plan) (*Evaluator, error) {
	if p.Kind != KindMurmur2 {
		return nil, fmt.Errorf("%w: kind %q is not known", ErrPlan, p.Kind)
	}
	if p.Partitions < 1 || p.Partitions > CountMax {
		return nil, fmt.Errorf("%w: %d partitions are not between 1 and %d", ErrPlan, p.Partitions, CountMax)
	}
	return &Evaluator{plan: p}, nil
}

// Plan is what is evaluated.
func (e *Evaluator) Plan() Plan { return e.plan }

// ForKey returns the partition of a record with that key. An empty key is a key.
func (e *Evaluator) ForKey(key []byte) ID {
	return ID(int32(murmur2(key)&0x7fffffff) % e.plan.Partitions)
}

// Next returns the partition for records without a key and moves on by one: call it once for each batch.
func (e *Evaluator) Next() ID {
	return ID((e.turn.Add(1) - 1) % uint64(e.plan.Partitions))
}

// murmur2 is Austin Appleby's 32-bit MurmurHash2 with Kafka's seed.
func murmur2(data []byte) uint32 {
	const (
		seed = 0x9747b28c
		m    = 0x5bd1e995
		r    = 24
	)
	h := uint32(seed) ^ uint32(len(data))
	for ; len(data) >= 4; data = data[4:] {
		k := uint32(data[0]) | uint32(data[1])<<8 | uint32(data[2])<<16 | uint32(data[3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h *= m
		h ^= k
	}
	switch len(data) {
	case 3:
		h ^= uint32(data[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(data[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(data[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return h
}
