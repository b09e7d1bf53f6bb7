package partitionerrpc

import (
	"context"

	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	partitionerpb "github.com/trunkline-mq/trunkline/protocol/pluginpb/partitioner/v1"
)

// Register offers impl on s.
func Register(s grpc.ServiceRegistrar, impl partitioner.Partitioner) {
	partitionerpb.RegisterPartitionerServer(s, &service{impl: impl})
}

type service struct {
	partitionerpb.UnimplementedPartitionerServer
	impl partitioner.Partitioner
}

func (s *service) Describe(ctx context.Context, _ *partitionerpb.DescribeRequest) (*partitionerpb.DescribeResponse, error) {
	d, err := s.impl.Describe(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	return &partitionerpb.DescribeResponse{Name: d.Name, Version: d.Version}, nil
}

func (s *service) Plan(ctx context.Context, r *partitionerpb.PlanRequest) (*partitionerpb.PlanResponse, error) {
	p, err := s.impl.Plan(ctx, partitioner.PlanRequest{Topic: r.GetTopic(), Partitions: r.GetPartitions()})
	if err != nil {
		return nil, toStatus(err)
	}
	return &partitionerpb.PlanResponse{Kind: p.Kind, Partitions: p.Partitions}, nil
}
