package partitionerrpc

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/protocol/partition"
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

// Assign answers request after request. The implementation may be called by many streams at once, but by one of them
// for one write at a time.
func (s *service) Assign(stream grpc.BidiStreamingServer[partitionerpb.AssignRequest, partitionerpb.AssignResponse]) error {
	impl, ok := s.impl.(partitioner.Assigner)
	if !ok {
		return status.Error(codes.Unimplemented, "this partitioner states its plans and is not called")
	}
	var to []partition.ID
	resp := &partitionerpb.AssignResponse{} // Send keeps nothing of it
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		resp.Id, resp.Partitions, resp.Error, resp.Late = req.GetId(), resp.Partitions[:0], "", false
		if to, err = assignTo(stream.Context(), impl, req, to); err != nil {
			resp.Error, resp.Late = bounded(err.Error()), errors.Is(err, context.DeadlineExceeded)
		} else {
			for _, p := range to {
				resp.Partitions = append(resp.Partitions, uint32(p))
			}
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// assignTo asks impl for one request, in the memory of the one before.
func assignTo(ctx context.Context, impl partitioner.Assigner, req *partitionerpb.AssignRequest, to []partition.ID) ([]partition.ID, error) {
	keys := &partition.Keys{Blob: req.GetKeys(), Lengths: req.GetLengths()}
	sum := uint64(0)
	for _, n := range keys.Lengths {
		sum += uint64(n)
	}
	if sum != uint64(len(keys.Blob)) || req.GetPartitions() < 1 || req.GetPartitions() > partition.CountMax {
		return to, fmt.Errorf("request of %d keys of %d bytes in %d bytes, for %d partitions", keys.Len(), sum, len(keys.Blob), req.GetPartitions())
	}
	if cap(to) < keys.Len() {
		to = make([]partition.ID, keys.Len())
	}
	to = to[:keys.Len()]
	ctx, cancel := context.WithTimeout(ctx, assignTimeout)
	defer cancel()
	return to, impl.Assign(ctx, partitioner.AssignRequest{Topic: req.GetTopic(), Partitions: req.GetPartitions(), Keys: keys}, to)
}
