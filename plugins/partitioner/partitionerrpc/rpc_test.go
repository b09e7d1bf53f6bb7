package partitionerrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	partitionerpb "github.com/trunkline-mq/trunkline/protocol/pluginpb/partitioner/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// liar answers whatever it is told to.
type liar struct {
	description partitioner.Description
	plan        partition.Plan
	err         error
	hang        bool
}

func (l liar) outcome(ctx context.Context) error {
	if l.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return l.err
}

func (l liar) Describe(ctx context.Context) (partitioner.Description, error) {
	return l.description, l.outcome(ctx)
}

func (l liar) Plan(ctx context.Context, _ partitioner.PlanRequest) (partition.Plan, error) {
	return l.plan, l.outcome(ctx)
}

func connect(t *testing.T, impl partitioner.Partitioner) (c *Client, stop func()) {
	t.Helper()
	return connectRaw(t, &service{impl: impl})
}

func connectRaw(t *testing.T, impl partitionerpb.PartitionerServer) (c *Client, stop func()) {
	t.Helper()
	lis := bufconn.Listen(1 << 16)
	srv := grpc.NewServer()
	partitionerpb.RegisterPartitionerServer(srv, impl)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(lis) })
	conn, err := grpc.NewClient("passthrough:///pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	c = NewClient(conn)
	t.Cleanup(func() {
		_ = c.Close()
		_ = conn.Close()
		srv.Stop()
		wg.Wait()
	})
	return c, srv.Stop
}

func each(ctx context.Context, c *Client, check func(name string, err error)) {
	_, err := c.Describe(ctx)
	check("describe", err)
	_, err = c.Plan(ctx, partitioner.PlanRequest{Topic: "orders", Partitions: 3})
	check("plan", err)
}

func TestLiesAreFound(t *testing.T) {
	good := partitioner.Description{Name: "liar", Version: "1"}
	long := strings.Repeat("x", 1000)
	for _, tc := range []struct {
		name string
		liar liar
		is   [2]error // of Describe and Plan
	}{
		{"the truth", liar{description: good, plan: partition.Plan{Kind: "murmur2", Partitions: 3}}, [2]error{}},
		{"nothing", liar{}, [2]error{ErrBadAnswer, ErrBadAnswer}},
		{"long words", liar{description: partitioner.Description{Name: long}, plan: partition.Plan{Kind: long, Partitions: 3}}, [2]error{ErrBadAnswer, ErrBadAnswer}},
		{"another number", liar{description: good, plan: partition.Plan{Kind: "murmur2", Partitions: 4}}, [2]error{nil, ErrBadAnswer}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, _ := connect(t, tc.liar)
			i := 0
			each(t.Context(), c, func(name string, err error) {
				if !errors.Is(err, tc.is[i]) {
					t.Errorf("%s: %v, want %v", name, err, tc.is[i])
				}
				i++
			})
		})
	}
}

func TestErrorsKeepTheirIdentity(t *testing.T) {
	gone := func(c *Client, stop func()) *Client { stop(); return c }
	short := func(c *Client, _ func()) *Client { c.timeout = 30 * time.Millisecond; return c }
	plain := func(c *Client, _ func()) *Client { return c }
	for _, tc := range []struct {
		name string
		impl liar
		with func(*Client, func()) *Client
		is   error
		says string
	}{
		{"refused", liar{err: fmt.Errorf("%w: not on Sundays", partitioner.ErrRefused)}, plain, partitioner.ErrRefused, "(not on Sundays)"},
		{"something else", liar{err: errors.New("on\nfire")}, plain, ErrPlugin, "on?fire"},
		{"something long", liar{err: errors.New(strings.Repeat("x", 1<<16))}, plain, ErrPlugin, "xxx"},
		{"hangs", liar{hang: true}, short, ErrDeadline, ""},
		{"gone", liar{}, gone, ErrUnavailable, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := tc.with(connect(t, tc.impl))
			each(t.Context(), c, func(name string, err error) {
				if !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.says) || len(err.Error()) > 2*messageBytesMax {
					t.Errorf("%s: %.200v", name, err)
				}
			})
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	c, _ := connect(t, liar{hang: true})
	time.AfterFunc(30*time.Millisecond, cancel)
	if _, err := c.Describe(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("given up: %v", err)
	}
}
