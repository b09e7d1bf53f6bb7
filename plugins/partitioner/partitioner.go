// Package partitioner is the contract of a partitioner plugin: it states, as a plan, how a topic's records are spread
// over its partitions. The core evaluates the plan; no record travels to the plugin.
package partitioner

import (
	"context"
	"errors"

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

// ErrRefused is a partitioner's "not for this topic". It keeps its identity across the wire.
var ErrRefused = errors.New("REFUSED: the partitioner does not serve this topic")
