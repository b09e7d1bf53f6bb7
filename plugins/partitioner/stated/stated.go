// Package stated has the partitioners whose strategy a plan can state, as plugins: they lend a plan of the kind that is
// their name, and are never asked about a record. What each kind does with a key stands at its constant in
// protocol/partition. A strategy that no kind states is called instead; see package jump. Nothing here keeps state.
package stated

import (
	"cmp"
	"context"
	"slices"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// Version is that of all of them.
const Version = "1.0.0"

// Names returns the names of the partitioners, ascending: murmur2 is Kafka's default, crc32 librdkafka's
// (consistent_random), fnv1a what NATS's subject mapping makes of partition(n, …); roundrobin and sticky are for records
// whose order does not matter, sticky being Kafka's UniformStickyPartitioner.
func Names() []string {
	return []string{partition.KindCRC32, partition.KindFNV1a, partition.KindMurmur2, partition.KindRoundRobin, partition.KindSticky}
}

// Partitioner lends plans of one kind.
type Partitioner struct{ kind string }

var _ partitioner.Partitioner = Partitioner{}

// New returns the partitioner of that name; ok is false where there is none.
func New(name string) (p Partitioner, ok bool) {
	return Partitioner{kind: name}, slices.Contains(Names(), name)
}

// Describe tells name and version.
func (p Partitioner) Describe(ctx context.Context) (partitioner.Description, error) {
	return partitioner.Description{Name: p.kind, Version: Version}, ctx.Err()
}

// Plan serves every topic with a legal number of partitions; ErrRefused else.
func (p Partitioner) Plan(ctx context.Context, r partitioner.PlanRequest) (partition.Plan, error) {
	if err := cmp.Or(ctx.Err(), r.Check()); err != nil {
		return partition.Plan{}, err
	}
	return partition.Plan{Kind: p.kind, Partitions: r.Partitions}, nil
}
