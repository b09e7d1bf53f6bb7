// Package partitioner is the contract of a partitioner plugin: it states, as a plan, how a topic's records are spread
// over its partitions. The core evaluates the plan; no record travels to the plugin. Only a strategy that cannot be
// stated is called: its plans are of partition.KindCalled, it is an Assigner too, and it sees keys, many at once.
package partitioner

import (
	"context"
	"errors"
	"fmt"

	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// Partitioner is a partitioner plugin. Calls may run concurrently.
type Partitioner interface {
	// Describe tells what the plugin is.
	Describe(ctx context.Context) (Description, error)
	// Plan states the strategy for a topic. The core sets Version when it commits the plan. ErrRefused if the plugin
	// cannot serve such a topic.
	Plan(ctx context.Context, r PlanRequest) (partition.Plan, error)
}

// Description is what a partitioner says of itself.
type Description struct {
	Name    string // "murmur2"
	Version string
}

// PlanRequest names a topic that wants a plan.
type PlanRequest struct {
	Topic      string
	Partitions int32
}

// Check returns ErrRefused for a number of partitions that no topic has.
func (r PlanRequest) Check() error {
	if r.Partitions < 1 || r.Partitions > partition.CountMax {
		return fmt.Errorf("%w: %d partitions are not between 1 and %d", ErrRefused, r.Partitions, partition.CountMax)
	}
	return nil
}

// ErrRefused is a partitioner's "not for this topic". It keeps its identity across the wire.
var ErrRefused = errors.New("REFUSED: the partitioner does not serve this topic")

// Assigner is what a partitioner is besides, if its plans are of partition.KindCalled. Calls may run concurrently.
type Assigner interface {
	// Assign writes the partition of each key of r to the same place in to, which has r.Keys.Len() elements. The answer
	// depends on topic, number of partitions and key alone, today and after a restart, and is in [0, r.Partitions): the
	// core asks for some keys again and refuses publishes when answers differ. It has 50 ms, waiting included. An error
	// refuses the whole write; nothing of it is published. r's slices are the caller's.
	Assign(ctx context.Context, r AssignRequest, to []partition.ID) error
}

// AssignRequest is the keys of one write to a topic. Records without a key are not among them: they take turns.
type AssignRequest struct {
	Topic      string
	Partitions int32
	Keys       *partition.Keys
}
