// Package partitionerrpc is how the partitioner contract travels over gRPC: a client that is a
// partitioner.Partitioner, and Register for the other side. Each call has a deadline of its own, errors keep their
// identity, and answers are checked before they are believed. It starts no process and dials nothing.
package partitionerrpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	partitionerpb "github.com/trunkline-mq/trunkline/protocol/pluginpb/partitioner/v1"
)

// callTimeout bounds every call: a plan is worked out in memory, so this is for a machine under load.
const callTimeout = 2 * time.Second

// textBytesMax bounds the words a plugin says of itself or of a plan's kind.
const textBytesMax = 80

var (
	// ErrUnavailable says that the plugin could not be reached, or went away during the call.
	ErrUnavailable = errors.New("partitioner plugin is not available")
	// ErrDeadline says that the plugin did not answer in time.
	ErrDeadline = errors.New("partitioner plugin did not answer in time")
	// ErrBadAnswer says that the plugin's answer breaks the contract.
	ErrBadAnswer = errors.New("partitioner plugin gave an answer that breaks the contract")
	// ErrPlugin says that the plugin answered with an error that the contract does not know.
	ErrPlugin = errors.New("partitioner plugin reports")
)

// Client asks a plugin. It is safe for concurrent use.
type Client struct {
	rpc     partitionerpb.PartitionerClient
	timeout time.Duration
	assign  *assigner
}

var _ partitioner.Partitioner = (*Client)(nil)

// NewClient returns a client over cc, which stays the caller's. Close ends it.
func NewClient(cc grpc.ClientConnInterface) *Client {
	return &Client{rpc: partitionerpb.NewPartitionerClient(cc), timeout: callTimeout, assign: newAssigner()}
}

// Describe asks what the plugin is.
func (c *Client) Describe(ctx context.Context) (partitioner.Description, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.rpc.Describe(ctx, &partitionerpb.DescribeRequest{})
	if err != nil {
		return partitioner.Description{}, fromStatus(ctx, "describe", err)
	}
	if resp.GetName() == "" || len(resp.GetName()) > textBytesMax || len(resp.GetVersion()) > textBytesMax {
		return partitioner.Description{}, fmt.Errorf("%w: describe: no name, or a long one", ErrBadAnswer)
	}
	return partitioner.Description{Name: resp.GetName(), Version: resp.GetVersion()}, nil
}

// Plan asks for a topic's plan. Whether this version can evaluate it is for the caller to find out.
func (c *Client) Plan(ctx context.Context, r partitioner.PlanRequest) (partition.Plan, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.rpc.Plan(ctx, &partitionerpb.PlanRequest{Topic: r.Topic, Partitions: r.Partitions})
	if err != nil {
		return partition.Plan{}, fromStatus(ctx, "plan", err)
	}
	if resp.GetKind() == "" || len(resp.GetKind()) > textBytesMax {
		return partition.Plan{}, fmt.Errorf("%w: plan of kind %.80q", ErrBadAnswer, resp.GetKind())
	}
	if resp.GetPartitions() != r.Partitions {
		return partition.Plan{}, fmt.Errorf("%w: plan for %d partitions where %d were asked for",
			ErrBadAnswer, resp.GetPartitions(), r.Partitions)
	}
	return partition.Plan{Kind: resp.GetKind(), Partitions: resp.GetPartitions()}, nil
}
