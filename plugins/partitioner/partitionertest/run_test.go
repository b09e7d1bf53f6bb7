package partitionertest

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/trunkline-mq/trunkline/plugins/partitioner/jump"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/partitionerrpc"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/stated"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// shipped are all partitioners that ship, by name.
func shipped() map[string]partitioner.Partitioner {
	all := map[string]partitioner.Partitioner{jump.Name: jump.New()}
	for _, name := range stated.Names() {
		all[name], _ = stated.New(name)
	}
	return all
}

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "plugin" {
		sdk.Serve(sdk.Plugin{Kind: sdk.KindPartitioner, Name: os.Args[2], Version: "1", Partitioner: shipped()[os.Args[2]]})
	}
	goleak.VerifyTestMain(m)
}

// each runs test for every partitioner.
func each(t *testing.T, test func(t *testing.T, name string, p partitioner.Partitioner)) {
	for name, p := range shipped() {
		t.Run(name, func(t *testing.T) { test(t, name, p) })
	}
}

// suite runs every case by itself.
func suite(t *testing.T, open func(t *testing.T) partitioner.Partitioner) {
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			c.Run(t, func(TB) partitioner.Partitioner { return open(t) })
		})
	}
}

func TestDirectly(t *testing.T) {
	each(t, func(t *testing.T, name string, p partitioner.Partitioner) {
		suite(t, func(t *testing.T) partitioner.Partitioner {
			if d, err := p.Describe(t.Context()); err != nil || d.Name != name {
				t.Errorf("%+v, %v", d, err)
			}
			return p
		})
	})
}

func TestThroughPipe(t *testing.T) {
	each(t, func(t *testing.T, _ string, p partitioner.Partitioner) {
		Run(t, func(TB) partitioner.Partitioner { return throughPipe(t, p) })
	})
}

func throughPipe(t testing.TB, p partitioner.Partitioner) *partitionerrpc.Client {
	lis := bufconn.Listen(1 << 16)
	srv := grpc.NewServer()
	partitionerrpc.Register(srv, p)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(lis) })
	conn, err := grpc.NewClient("passthrough:///pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	c := partitionerrpc.NewClient(conn)
	t.Cleanup(func() {
		_ = c.Close()
		_ = conn.Close()
		srv.Stop()
		wg.Wait()
	})
	return c
}

func TestAsProcess(t *testing.T) {
	each(t, func(t *testing.T, name string, _ partitioner.Partitioner) {
		suite(t, func(t *testing.T) partitioner.Partitioner {
			p, _ := startProcess(t, name)
			return p
		})
	})
}

// BenchmarkAssign is the called form as it runs: another process, writes of 256 keys, some at a time.
func BenchmarkAssign(b *testing.B) {
	for _, callers := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("keys=256/callers=%d", callers), func(b *testing.B) {
			p, _ := startProcess(b, jump.Name)
			var keys partition.Keys
			for i := range 256 {
				keys.Append(fmt.Appendf(nil, "customer-%07d", i))
			}
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					to := make([]partition.ID, keys.Len())
					for range max(1, b.N/callers) {
						// The deadline is not what is measured: a machine under load may miss it.
						_ = p.Assign(context.Background(), partitioner.AssignRequest{Topic: "t", Partitions: 64, Keys: &keys}, to)
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(256*b.N)/b.Elapsed().Seconds(), "keys/s")
		})
	}
}

func TestKilledPluginIsUnavailable(t *testing.T) {
	p, inst := startProcess(t, jump.Name)
	inst.Kill(errors.New("the test kills it"))
	<-inst.Done()
	if _, err := p.Plan(t.Context(), partitioner.PlanRequest{Topic: "orders", Partitions: 1}); !errors.Is(err, partitionerrpc.ErrUnavailable) {
		t.Fatalf("plan: %v", err)
	}
	var keys partition.Keys
	keys.Append([]byte("k"))
	r := partitioner.AssignRequest{Topic: "orders", Partitions: 1, Keys: &keys}
	if err := p.Assign(t.Context(), r, make([]partition.ID, 1)); !errors.Is(err, partitionerrpc.ErrUnavailable) {
		t.Fatalf("assign: %v", err)
	}
}

func startProcess(t testing.TB, name string) (*partitionerrpc.Client, *host.Instance) {
	t.Helper()
	dir, err := os.MkdirTemp("", "tl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	first := make(chan *host.Instance, 1)
	sup := host.New(host.Spec{
		Kind: sdk.KindPartitioner, Name: name, RunDir: dir, Command: []string{"/proc/self/exe", "plugin", name},
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
	inst := <-first
	c := partitionerrpc.NewClient(inst.Conn())
	t.Cleanup(func() {
		_ = c.Close()
		cancel()
		wg.Wait()
	})
	return c, inst
}
