package partition

import (
	"errors"
	"fmt"
	"hash/crc32"
	"sync/atomic"
)

// The kinds of plans.
const (
	// KindMurmur2 is Kafka's default: murmur2 of the key, modulo the number of partitions.
	KindMurmur2 = "murmur2"
	// KindCRC32 is librdkafka's "consistent_random": CRC-32 (IEEE) of the key, modulo the number of partitions; as there,
	// an empty key is no key.
	KindCRC32 = "crc32"
	// KindFNV1a is what NATS's subject mapping makes of partition(n, …): 32-bit FNV-1a, modulo the number of partitions.
	KindFNV1a = "fnv1a"
	// KindRoundRobin ignores keys: each record with a key goes to the next partition.
	KindRoundRobin = "roundrobin"
	// KindSticky is Kafka's UniformStickyPartitioner: it ignores keys and stays with one partition until a batch is
	// full, here after StickyRecords records; then, and for each batch of records without a key, it takes another one.
	KindSticky = "sticky"
	// KindCalled is a strategy that cannot be stated: its partitioner is asked for every key.
	KindCalled = "called"
)

// StickyRecords is how many records with a key stay together under KindSticky: what fills Kafka's default batch of
// 16 KiB with records of 128 bytes.
const StickyRecords = 128

// ErrPlan says that a plan cannot be evaluated here.
var ErrPlan = errors.New("partition plan cannot be evaluated")

// Evaluator runs a plan. It is safe for concurrent use.
type Evaluator struct {
	plan  Plan
	turn  atomic.Uint64 // of Next; for KindRoundRobin of every record
	stuck atomic.Uint64 // of KindSticky: moves so far, records since the last one, partition (32, 16, 16 bits)
}

// NewEvaluator returns an evaluator of p; ErrPlan where its kind is not known to this version or its number of
// partitions is not in [1, CountMax].
func NewEvaluator(p Plan) (*Evaluator, error) {
	switch p.Kind {
	case KindMurmur2, KindCRC32, KindFNV1a, KindRoundRobin, KindSticky, KindCalled:
	default:
		return nil, fmt.Errorf("%w: kind %q is not known", ErrPlan, p.Kind)
	}
	if p.Partitions < 1 || p.Partitions > CountMax {
		return nil, fmt.Errorf("%w: %d partitions are not between 1 and %d", ErrPlan, p.Partitions, CountMax)
	}
	return &Evaluator{plan: p}, nil
}

// Plan is what is evaluated.
func (e *Evaluator) Plan() Plan { return e.plan }

// ForKey returns the partition of a record with that key; None for a plan of KindCalled, whose partitioner knows. An
// empty key is a key, but for KindCRC32.
func (e *Evaluator) ForKey(key []byte) ID {
	var hash uint32
	switch e.plan.Kind {
	case KindMurmur2:
		hash = murmur2(key) & 0x7fffffff
	case KindCRC32:
		if len(key) == 0 {
			return e.Next()
		}
		hash = crc32.ChecksumIEEE(key)
	case KindFNV1a:
		hash = fnv1a(key)
	case KindSticky:
		return e.stick(1)
	case KindCalled:
		return None
	default:
		return e.Next()
	}
	return ID(hash % uint32(e.plan.Partitions))
}

// Next returns the partition for records without a key and moves on: call it once for each batch.
func (e *Evaluator) Next() ID {
	if e.plan.Kind == KindSticky {
		return e.stick(StickyRecords)
	}
	return ID((e.turn.Add(1) - 1) % uint64(e.plan.Partitions))
}

// stick counts records and moves to another partition before the first one that is too many. A batch of its own counts
// for StickyRecords, so that the next record finds it full.
func (e *Evaluator) stick(records uint64) ID {
	for {
		old := e.stuck.Load()
		moves, count, at := old>>32, old>>16&0xffff, old&0xffff
		if count+records > StickyRecords {
			moves, count = uint64(uint32(moves+1)), 0
			if others := uint64(e.plan.Partitions) - 1; others > 0 {
				at = (at + 1 + mix(moves)%others) % (others + 1)
			}
		}
		if e.stuck.CompareAndSwap(old, moves<<32|(count+records)<<16|at) {
			return ID(at)
		}
	}
}

// mix is splitmix64's: consecutive numbers come out as if by chance.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// fnv1a is the 32-bit FNV-1a hash.
func fnv1a(data []byte) uint32 {
	h := uint32(2166136261)
	for _, b := range data {
		h = (h ^ uint32(b)) * 16777619
	}
	return h
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
