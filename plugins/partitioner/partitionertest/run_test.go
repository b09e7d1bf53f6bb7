package partitionertest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/murmur2"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/partitionerrpc"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "plugin" {
		sdk.Serve(sdk.Plugin{
			Kind: sdk.KindPartitioner, Name: murmur2.Name, Version: murmur2.Version, Partitioner: murmur2.New(),
		})
	}
	goleak.VerifyTestMain(m)
}

func TestDirectly(t *testing.T) {
	Run(t, func(*testing.T) partitioner.Partitioner { return murmur2.New() })
}

func TestThroughPipe(t *testing.T) {
	Run(t, func(t *testing.T) partitioner.Partitioner {
		lis := bufconn.Listen(1 << 16)
		srv := grpc.NewServer()
		partitionerrpc.Register(srv, murmur2.New())
		var wg sync.WaitGroup
		wg.Go(func() { _ = srv.Serve(lis) })
		conn, err := grpc.NewClient("passthrough:///pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = conn.Close()
			srv.Stop()
			wg.Wait()
		})
		return partitionerrpc.NewClient(conn)
	})
}

func TestAsProcess(t *testing.T) {
	p, _ := startProcess(t)
	Run(t, func(*testing.T) partitioner.Partitioner { return p })
}

func TestKilledPluginIsUnavailable(t *testing.T) {
	p, inst := startProcess(t)
	inst.Kill(errors.New("the test kills it"))
	<-inst.Done()
	if _, err := p.Plan(t.Context(), partitioner.PlanRequest{Topic: "orders", Partitions: 1}); !errors.Is(err, partitionerrpc.ErrUnavailable) {
		t.Fatalf("plan: %v", err)
	}
}

func startProcess(t *testing.T) (partitioner.Partitioner, *host.Instance) {
	t.Helper()
	dir, err := os.MkdirTemp("", "tl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	first := make(chan *host.Instance, 1)
	sup := host.New(host.Spec{
		Kind: sdk.KindPartitioner, Name: murmur2.Name, RunDir: dir, Command: []string{"/proc/self/exe", "plugin"},
		OnUp: func(_ context.Context, inst *host.Instance) error {
			select {
			case first <- inst:
			default: // a restart is not looked at
			}
			return nil
		},
	}, host.Options{Logger: slog.New(slog.DiscardHandler)})
	if err := sup.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := sup.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	inst := <-first
	return partitionerrpc.NewClient(inst.Conn()), inst
}
