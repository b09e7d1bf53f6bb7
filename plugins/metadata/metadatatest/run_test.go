package metadatatest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/internal/handshake"
	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/metadata/embedded"
	"github.com/trunkline-mq/trunkline/plugins/metadata/metadatarpc"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "plugin" {
		pluginMain()
	}
	goleak.VerifyTestMain(m)
}

// pluginMain is the whole main of the embedded store as a process.
func pluginMain() {
	var conf struct {
		Path string `json:"path"`
	}
	if err := sdk.Config(&conf); err != nil {
		sdk.Fatal(err)
	}
	store, err := embedded.Open(embedded.Options{Path: conf.Path, Logger: sdk.Logger()})
	if err != nil {
		sdk.Fatal(err)
	}
	sdk.Serve(sdk.Plugin{Kind: sdk.KindMetadata, Name: embedded.Name, Version: embedded.Version, Metadata: store})
}

func openEmbedded(t *testing.T) *embedded.Store {
	t.Helper()
	s, err := embedded.Open(embedded.Options{
		Path: filepath.Join(t.TempDir(), "meta", "embedded.db"), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestDirectly(t *testing.T) {
	Run(t, func(t *testing.T) metadata.Store { return openEmbedded(t) })
}

func TestThroughPipe(t *testing.T) {
	Run(t, func(t *testing.T) metadata.Store {
		impl := openEmbedded(t)
		lis := bufconn.Listen(1 << 16)
		srv := grpc.NewServer(grpc.MaxRecvMsgSize(handshake.MessageBytesMax))
		metadatarpc.Register(srv, impl)
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
		return metadatarpc.NewClient(conn)
	})
}

func TestAsProcess(t *testing.T) {
	Run(t, func(t *testing.T) metadata.Store {
		s, err := startProcess(t).Store(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestKilledInTheMiddleOfCommits(t *testing.T) {
	Crash(t, startProcess(t), 8)
}

func TestSecondProcessIsToldToStopTheFirst(t *testing.T) {
	p := startProcess(t)
	spec := p.spec
	spec.RunDir, spec.OnUp, spec.OnDown = shortDir(t), nil, nil
	err := host.New(spec, host.Options{Logger: slog.New(slog.DiscardHandler)}).Start(t.Context())
	var start *host.StartError
	if !errors.As(err, &start) || !errors.Is(err, host.ErrExited) {
		t.Fatalf("start: %v", err)
	}
	if want := embedded.ErrLocked.Error(); !strings.Contains(start.Said, want) {
		t.Fatalf("it does not say %q: %v", want, err)
	}
}

// process is the embedded store as a supervised plugin.
type process struct {
	spec host.Spec

	mu      sync.Mutex
	inst    *host.Instance
	changed chan struct{}
}

var _ Process = (*process)(nil)

func startProcess(t *testing.T) *process {
	t.Helper()
	p := &process{changed: make(chan struct{})}
	p.spec = host.Spec{
		Kind: sdk.KindMetadata, Name: embedded.Name, RunDir: shortDir(t),
		Command: []string{"/proc/self/exe", "plugin"},
		Config:  fmt.Appendf(nil, `{"path":%q}`, filepath.Join(t.TempDir(), "meta", "embedded.db")),
		OnUp: func(_ context.Context, inst *host.Instance) error {
			p.set(inst)
			return nil
		},
		OnDown: func(error) { p.set(nil) },
	}
	// Crash kills it often, and is not about back-off.
	sup := host.New(p.spec, host.Options{Logger: slog.New(slog.DiscardHandler), BackoffMax: 100 * time.Millisecond})
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
	return p
}

func (p *process) set(inst *host.Instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inst = inst
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *process) running(ctx context.Context) (*host.Instance, error) {
	for {
		p.mu.Lock()
		inst, changed := p.inst, p.changed
		p.mu.Unlock()
		if inst != nil {
			return inst, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (p *process) Store(ctx context.Context) (metadata.Store, error) {
	inst, err := p.running(ctx)
	if err != nil {
		return nil, err
	}
	return metadatarpc.NewClient(inst.Conn()), nil
}

func (p *process) Kill(ctx context.Context) error {
	inst, err := p.running(ctx)
	if err != nil {
		return err
	}
	inst.Kill(errors.New("the suite kills it"))
	for { // gone, and known to be gone
		p.mu.Lock()
		current, changed := p.inst, p.changed
		p.mu.Unlock()
		if current != inst {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
