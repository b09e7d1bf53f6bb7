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
	"github.com/trunkline-mq/trunkline/plugins/metadata/zookeeper"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "plugin" {
		pluginMain(os.Args[2])
	}
	goleak.VerifyTestMain(m)
}

// childConfig is what a store's process is told.
type childConfig struct {
	Path    string        `json:"path,omitempty"` // embedded
	Servers []string      `json:"servers,omitempty"`
	Chroot  string        `json:"chroot,omitempty"`
	Session time.Duration `json:"session,omitempty"`
	Digest  string        `json:"digest,omitempty"`
}

// pluginMain is the whole main of a store as a process.
func pluginMain(name string) {
	var conf childConfig
	if err := sdk.Config(&conf); err != nil {
		sdk.Fatal(err)
	}
	p := sdk.Plugin{Kind: sdk.KindMetadata, Name: name}
	var err error
	switch name {
	case embedded.Name:
		p.Version = embedded.Version
		p.Metadata, err = embedded.Open(embedded.Options{Path: conf.Path, Logger: sdk.Logger()})
	case zookeeper.Name:
		p.Version = zookeeper.Version
		p.Metadata, err = zookeeper.Open(zookeeper.Options{
			Servers: conf.Servers, Chroot: conf.Chroot, Session: conf.Session, Digest: conf.Digest, Logger: sdk.Logger(),
		})
	}
	if err != nil {
		sdk.Fatal(err)
	}
	sdk.Serve(p)
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

// each runs every case of the suite by itself.
func each(t *testing.T, open func(t *testing.T) metadata.Store) {
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel() // a process that was built with the race detector takes a second to end
			c.Run(t, func(TB) metadata.Store { return open(t) })
		})
	}
}

func TestDirectly(t *testing.T) {
	each(t, func(t *testing.T) metadata.Store { return openEmbedded(t) })
}

func TestThroughPipe(t *testing.T) {
	t.Parallel()
	Run(t, func(TB) metadata.Store { return throughPipe(t, openEmbedded(t)) })
}

// throughPipe is a client of impl over gRPC in memory.
func throughPipe(t *testing.T, impl metadata.Store) metadata.Store {
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
	return metadatarpc.NewClientTimeout(conn, patience)
}

func TestAsProcess(t *testing.T) {
	each(t, func(t *testing.T) metadata.Store { return asProcess(t, embedded.Name, embeddedConfig(t)) })
}

// asProcess is a client of the named store, run as a supervised plugin.
func asProcess(t *testing.T, name string, config []byte) metadata.Store {
	s, err := startProcess(t, name, config).Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestKilledInTheMiddleOfCommits(t *testing.T) {
	Crash(t, startProcess(t, embedded.Name, embeddedConfig(t)), 8)
}

func TestSecondProcessIsToldToStopTheFirst(t *testing.T) {
	p := startProcess(t, embedded.Name, embeddedConfig(t))
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

// embeddedConfig is the configuration of an embedded store of its own.
func embeddedConfig(t *testing.T) []byte {
	return fmt.Appendf(nil, `{"path":%q}`, filepath.Join(t.TempDir(), "meta", "embedded.db"))
}

// process is a store as a supervised plugin.
type process struct {
	spec host.Spec

	mu      sync.Mutex
	inst    *host.Instance
	changed chan struct{}
}

var _ Process = (*process)(nil)

func startProcess(t *testing.T, name string, config []byte) *process {
	t.Helper()
	p := &process{changed: make(chan struct{})}
	p.spec = host.Spec{
		Kind: sdk.KindMetadata, Name: name, RunDir: shortDir(t),
		Command: []string{"/proc/self/exe", "plugin", name},
		Config:  config,
		OnUp: func(_ context.Context, inst *host.Instance) error {
			p.set(inst)
			return nil
		},
		OnDown: func(*host.Instance, error) { p.set(nil) },
	}
	// Crash kills it often, and is not about back-off; a busy machine is no reason to end a process.
	sup := host.New(p.spec, host.Options{
		Logger: slog.New(slog.DiscardHandler), BackoffMax: 100 * time.Millisecond, StartTimeout: patience, HeartbeatTimeout: patience,
	})
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
	return metadatarpc.NewClientTimeout(inst.Conn(), patience), nil
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
