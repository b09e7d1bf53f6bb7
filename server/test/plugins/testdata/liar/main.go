// Command liar is a partitioner of the called form that breaks its contract as its configuration says.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	partitionerpb "github.com/trunkline-mq/trunkline/protocol/pluginpb/partitioner/v1"
)

type config struct {
	Lie string `json:"lie"`
	// After is how many calls are answered well before.
	After int `json:"after"`
}

func main() {
	var conf config
	if err := sdk.Config(&conf); err == nil && conf.Lie == "count" {
		if err := serveRaw(); err != nil {
			sdk.Fatal(err)
		}
		return
	}
	sdk.Serve(sdk.Plugin{
		Kind: sdk.KindPartitioner, Name: "liar", Version: "1", Config: &conf,
		Setup: func(p *sdk.Plugin) error {
			p.Partitioner = &liar{config: conf}
			return nil
		},
	})
}

type liar struct {
	config
	calls int // one stream, one call at a time
}

func (l *liar) Describe(context.Context) (partitioner.Description, error) {
	return partitioner.Description{Name: "liar", Version: "1"}, nil
}

func (l *liar) Plan(_ context.Context, r partitioner.PlanRequest) (partition.Plan, error) {
	if l.Lie == "plan" {
		return partition.Plan{Kind: "mine", Partitions: r.Partitions}, nil
	}
	return partition.Plan{Kind: partition.KindCalled, Partitions: r.Partitions}, nil
}

func (l *liar) Assign(ctx context.Context, r partitioner.AssignRequest, to []partition.ID) error {
	l.calls++
	for i := range to {
		to[i] = 0
		if l.calls <= l.After {
			continue
		}
		switch l.Lie {
		case "range":
			to[i] = partition.ID(r.Partitions)
		case "unsteady":
			to[i] = partition.ID(l.calls % int(r.Partitions))
		case "error":
			return errors.New("the moon is full")
		case "late":
			<-ctx.Done()
			return ctx.Err()
		case "hang":
			time.Sleep(time.Hour)
		case "crash":
			fmt.Fprintln(os.Stderr, "the flux capacitor is missing")
			os.Exit(3)
		}
	}
	return nil
}

// serveRaw speaks the protocol by itself, as a plugin in another language would, and answers one partition too many.
func serveRaw() error {
	path := os.Getenv("PLUGIN_UNIX_SOCKET_DIR") + "/raw"
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	h := health.NewServer()
	h.SetServingStatus("plugin", grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(s, h)
	partitionerpb.RegisterPartitionerServer(s, raw{})
	fmt.Printf("1|1|unix|%s|grpc|\n", path)
	return s.Serve(listener)
}

type raw struct {
	partitionerpb.UnimplementedPartitionerServer
}

func (raw) Describe(context.Context, *partitionerpb.DescribeRequest) (*partitionerpb.DescribeResponse, error) {
	return &partitionerpb.DescribeResponse{Name: "liar", Version: "1"}, nil
}

func (raw) Plan(_ context.Context, r *partitionerpb.PlanRequest) (*partitionerpb.PlanResponse, error) {
	return &partitionerpb.PlanResponse{Kind: partition.KindCalled, Partitions: r.GetPartitions()}, nil
}

func (raw) Assign(stream grpc.BidiStreamingServer[partitionerpb.AssignRequest, partitionerpb.AssignResponse]) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := stream.Send(&partitionerpb.AssignResponse{Id: r.GetId(), Partitions: make([]uint32, len(r.GetLengths())+1)}); err != nil {
			return err
		}
	}
}
