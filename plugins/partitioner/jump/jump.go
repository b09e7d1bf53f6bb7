// Package jump is a partitioner for topics that are going to grow, as a plugin: Lamping and Veach's jump consistent hash
// of the key. Where n partitions become m, only the share 1 - n/m of the keys moves, and all that move go to new
// partitions; of a hash modulo the number of partitions, most keys move.
//
// It is of the called form: the core asks for the keys of each write, and evaluates nothing itself. Records without a
// key take turns, as everywhere. It keeps no state.
package jump

import (
	"cmp"
	"context"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// Name is how configuration and topics name this partitioner.
const Name = "jump"

// Version is this implementation's.
const Version = "1.0.0"

// Partitioner answers for keys. The zero value is ready.
type Partitioner struct{}

var (
	_ partitioner.Partitioner = Partitioner{}
	_ partitioner.Assigner    = Partitioner{}
)

// New returns the partitioner.
func New() Partitioner { return Partitioner{} }

// Describe tells name and version.
func (Partitioner) Describe(ctx context.Context) (partitioner.Description, error) {
	return partitioner.Description{Name: Name, Version: Version}, ctx.Err()
}

// Plan serves every topic with a legal number of partitions; ErrRefused else.
func (Partitioner) Plan(ctx context.Context, r partitioner.PlanRequest) (partition.Plan, error) {
	if err := cmp.Or(ctx.Err(), r.Check()); err != nil {
		return partition.Plan{}, err
	}
	return partition.Plan{Kind: partition.KindCalled, Partitions: r.Partitions}, nil
}

// Assign hashes every key; the topic makes no difference.
func (Partitioner) Assign(ctx context.Context, r partitioner.AssignRequest, to []partition.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for i, key := range r.Keys.All() {
		to[i] = bucket(hash(key), r.Partitions)
	}
	return nil
}

// hash is the 64-bit FNV-1a hash: jump takes 64 well-mixed bits, and its own generator does the mixing.
func hash(key []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range key {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return h
}

// bucket is the algorithm as its authors print it ("A Fast, Minimal Memory, Consistent Hash Algorithm", 2014).
func bucket(key uint64, buckets int32) partition.ID {
	b, j := int64(-1), int64(0)
	for j < int64(buckets) {
		b = j
		key = key*2862933555777941757 + 1
		j = int64(float64(b+1) * (float64(int64(1)<<31) / float64(key>>33+1)))
	}
	return partition.ID(b)
}
