// Package fnv1a is what NATS's subject mapping makes of partition(n, …), as a plugin: the 32-bit FNV-1a hash of the key
// chooses the partition, and records without a key go round robin by batch. It lends a plan and is never asked about a
// record. It keeps no state.
package fnv1a

import (
	"context"
	"fmt"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// Name is how configuration and topics name this partitioner.
const Name = "fnv1a"

// Version is this implementation's.
const Version = "1.0.0"

// Partitioner lends plans of its kind. The zero value is ready.
type Partitioner struct{}

var _ partitioner.Partitioner = Partitioner{}

// New returns the partitioner.
func New() Partitioner { return Partitioner{} }

// Describe tells name and version.
func (Partitioner) Describe(ctx context.Context) (partitioner.Description, error) {
	return partitioner.Description{Name: Name, Version: Version}, ctx.Err()
}

// Plan serves every topic with a legal number of partitions; ErrRefused else.
func (Partitioner) Plan(ctx context.Context, r partitioner.PlanRequest) (partition.Plan, error) {
	if err := ctx.Err(); err != nil {
		return partition.Plan{}, err
	}
	if r.Partitions < 1 || r.Partitions > partition.CountMax {
		return partition.Plan{}, fmt.Errorf("%w: %d partitions are not between 1 and %d",
			partitioner.ErrRefused, r.Partitions, partition.CountMax)
	}
	return partition.Plan{Kind: partition.KindFNV1a, Partitions: r.Partitions}, nil
}
