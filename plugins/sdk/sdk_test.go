package sdk_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/internal/handshake"
	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/partitionerrpc"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/stated"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagerpc"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "child" {
		childMain(os.Args[2])
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func childMain(mode string) {
	switch mode {
	case "partitioner":
		p, _ := stated.New("murmur2")
		sdk.Serve(sdk.Plugin{Kind: sdk.KindPartitioner, Name: "murmur2", Version: "1", Partitioner: p})
	case "storage":
		var conf struct {
			Data string `json:"data"`
		}
		if err := sdk.Config(&conf); err != nil {
			sdk.Fatal(err)
		}
		store, err := filelog.New(filelog.Options{Data: conf.Data, Logger: sdk.Logger()})
		if err != nil {
			sdk.Fatal(err)
		}
		sdk.Serve(sdk.Plugin{Kind: sdk.KindStorage, Name: "filelog", Version: "1", Storage: store})
	case "orphan": // a host that knows nothing of Pdeathsig, and dies
		if err := orphan(); err != nil {
			sdk.Fatal(err)
		}
	}
}

// orphan starts a plugin as any host may, prints its pid once it is up, and leaves it alone.
func orphan() error {
	cmd := exec.Command("/proc/self/exe", "child", "partitioner")
	dir, err := os.MkdirTemp("", "tl")
	if err != nil {
		return err
	}
	cmd.Env = []string{
		handshake.CookieKey + "=" + handshake.CookieValue, "PLUGIN_PROTOCOL_VERSIONS=1", handshake.SocketDirEnv + "=" + dir,
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	fmt.Println(cmd.Process.Pid, strings.TrimSpace(line), dir)
	return err
}

func TestPluginEndsWithAHostThatOnlyDies(t *testing.T) {
	out, err := exec.Command("/proc/self/exe", "child", "orphan").Output()
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(string(out))
	if len(words) != 3 || !strings.HasPrefix(words[1], "1|1|unix|") {
		t.Fatalf("the orphan's host said %q", out)
	}
	defer os.RemoveAll(words[2])
	pid, err := strconv.Atoi(words[0])
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the plugin is gone", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

func TestInterruptIsIgnored(t *testing.T) {
	inst := start(t, spec(t, sdk.KindPartitioner, "murmur2"))
	if err := syscall.Kill(inst.PID(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	client := partitionerrpc.NewClient(inst.Conn())
	for range 20 {
		if _, err := client.Plan(t.Context(), partitioner.PlanRequest{Topic: "orders", Partitions: 1}); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-inst.Done():
		t.Fatal("it ended")
	default:
	}
}

func TestStorageIsServedWithItsSocket(t *testing.T) {
	s := spec(t, sdk.KindStorage, "filelog")
	s.Config = fmt.Appendf(nil, `{"data":%q}`, filepath.Join(t.TempDir(), "data"))
	core, child, err := storagerpc.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	s.Files = func() ([]*os.File, error) { return []*os.File{child}, nil }
	inst := start(t, s)
	d, err := storagerpc.NewClient(inst.Conn(), core).Describe(t.Context())
	if err != nil || d.Name != filelog.Name || d.Canary == nil {
		t.Fatalf("describe: %+v, %v", d, err)
	}
	if err := d.Canary.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStorageWithoutASocketDoesNotStart(t *testing.T) {
	s := spec(t, sdk.KindStorage, "filelog")
	s.Config = fmt.Appendf(nil, `{"data":%q}`, filepath.Join(t.TempDir(), "data"))
	err := host.New(s, host.Options{Logger: slog.New(slog.DiscardHandler)}).Start(t.Context())
	if !errors.Is(err, host.ErrExited) || !strings.Contains(err.Error(), "descriptor 3") {
		t.Fatalf("start: %v", err)
	}
}

func spec(t *testing.T, kind, name string) host.Spec {
	t.Helper()
	dir, err := os.MkdirTemp("", "tl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return host.Spec{Kind: kind, Name: name, RunDir: dir, Command: []string{"/proc/self/exe", "child", kind}}
}

// start runs a plugin until the test ends and returns its first instance.
func start(t *testing.T, s host.Spec) *host.Instance {
	t.Helper()
	first := make(chan *host.Instance, 1)
	s.OnUp = func(_ context.Context, inst *host.Instance) error {
		select {
		case first <- inst:
		default: // a restart is not looked at
		}
		return nil
	}
	sup := host.New(s, host.Options{Logger: slog.New(slog.DiscardHandler)})
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
	return <-first
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("did not happen: %s", what)
		}
	}
}
