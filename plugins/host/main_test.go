package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/partitionerrpc"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/stated"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// The test binary is also every child: "child MODE [ARGS]" as its arguments, since the environment is not passed on.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "child" {
		childMain(os.Args[2], os.Args[3:])
		os.Exit(0)
	}
	if filepath.Base(os.Args[0]) == ExecutableName("partitioner", "probe") { // a copy of this binary
		childMain("probe", nil)
	}
	goleak.VerifyTestMain(m)
}

func childMain(mode string, args []string) {
	serve := sdk.Plugin{Kind: "partitioner", Name: "probe", Version: "7.8.9"}
	p := &probe{}
	p.Partitioner, _ = stated.New("murmur2")
	if len(args) > 0 {
		p.marker = args[0]
	}
	serve.Partitioner = p
	switch mode {
	case "probe":
		sdk.Serve(serve)
	case "other":
		serve.Name = "other"
		sdk.Serve(serve)
	case "empty":
		sdk.Serve(sdk.Plugin{Kind: "partitioner", Name: "probe"})
	case "failing":
		p.failed = make(chan struct{})
		sdk.Serve(sdk.Plugin{Kind: "partitioner", Name: "probe", Partitioner: failingProbe{p}})
	case "config":
		conf := struct {
			Size int `json:"size"`
		}{Size: 1}
		if err := sdk.Config(&conf); err != nil {
			sdk.Fatal(err)
		}
		p.size = conf.Size
		sdk.Serve(serve)
	case "noisy":
		for i := range 5000 {
			fmt.Fprintf(os.Stderr, "line %d \x1b[31mred\x1b[0m\n", i)
		}
		sdk.Serve(serve)
	case "crash":
		fmt.Fprintln(os.Stderr, "the flux capacitor is missing")
		os.Exit(3)
	case "panic":
		panic("flux overflow")
	case "garbage":
		fmt.Println("Hello, I am a \x1b[31mplugin")
		hang()
	case "flood":
		fmt.Print(strings.Repeat("x", 1<<20))
		hang()
	case "hang":
		hang()
	case "version":
		fmt.Println("1|99|unix|/nowhere/plugin1|grpc|")
		hang()
	case "elsewhere":
		fmt.Println("1|1|unix|/nowhere/plugin1|grpc|")
		hang()
	case "deaf":
		listenOnly()
		hang()
	case "faint": // ends as soon as it has shaken hands
		listenOnly()
		fmt.Fprintln(os.Stderr, "all too much")
		os.Exit(4)
	case "host":
		hostMain(args[0])
	}
}

// listenOnly shakes hands and listens where it should, but answers nobody.
func listenOnly() {
	path := os.Getenv("PLUGIN_UNIX_SOCKET_DIR") + "/plugin1"
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = syscall.Listen(fd, 8)
	}
	if err != nil {
		sdk.Fatal(err)
	}
	fmt.Println("1|1|unix|" + path + "|grpc|")
}

// hang waits for something that does not come.
func hang() {
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	_, _ = r.Read(make([]byte, 1))
	runtime.KeepAlive(w)
}

// hostMain is a host that is going to be killed: it prints its plugin's pid and waits.
func hostMain(runDir string) {
	s := New(specOf("probe", runDir), Options{Logger: quiet()})
	if err := s.Start(context.Background()); err != nil {
		sdk.Fatal(err)
	}
	fmt.Println(s.Status().PID)
	if err := s.Run(context.Background()); err != nil {
		sdk.Fatal(err)
	}
}

// probe is a partitioner that tells about its process: topics are commands, answers travel in the refusal's text.
type probe struct {
	stated.Partitioner
	marker string
	failed chan struct{}
	size   int
}

// failingProbe is a probe that can give up.
type failingProbe struct{ *probe }

func (p failingProbe) Failed() <-chan struct{} { return p.failed }

func (p *probe) Plan(ctx context.Context, r partitioner.PlanRequest) (partition.Plan, error) {
	switch r.Topic {
	case "env":
		return partition.Plan{}, fmt.Errorf("%w: %s", partitioner.ErrRefused, strings.Join(os.Environ(), " "))
	case "argv0":
		exe, err := os.Readlink("/proc/self/exe")
		return partition.Plan{}, fmt.Errorf("%w: %s %s %v", partitioner.ErrRefused, os.Args[0], exe, err)
	case "data":
		return partition.Plan{}, fmt.Errorf("%w: %s", partitioner.ErrRefused, sdk.DataDir())
	case "fd3":
		text, err := io.ReadAll(os.NewFile(3, "inherited"))
		return partition.Plan{}, fmt.Errorf("%w: %s %v", partitioner.ErrRefused, text, err)
	case "grandchild":
		cmd := exec.Command("/bin/sleep", "600")
		// The real one, so that the pipe stays open after us; a session of its own, so that it outlives the group.
		cmd.Stderr = os.NewFile(2, "stderr")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		err := cmd.Start()
		return partition.Plan{}, fmt.Errorf("%w: %d %v", partitioner.ErrRefused, cmd.Process.Pid, err)
	case "size":
		return partition.Plan{}, fmt.Errorf("%w: %d", partitioner.ErrRefused, p.size)
	case "fail":
		close(p.failed)
	case "print":
		fmt.Println("printed while served")
	}
	return p.Partitioner.Plan(ctx, r)
}

// Close leaves a mark that the end was an orderly one.
func (p *probe) Close() error {
	if p.marker == "" {
		return nil
	}
	return os.WriteFile(p.marker, []byte("closed"), 0o600)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func specOf(mode, runDir string, args ...string) Spec {
	return Spec{
		Kind: "partitioner", Name: "probe", RunDir: runDir,
		Command: append([]string{"/proc/self/exe", "child", mode}, args...),
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

// patience is for conditions that come soon on an idle machine.
const patience = time.Minute

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("did not happen: %s", what)
		}
	}
}

// alive says whether pid runs; a zombie does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// running is a started supervisor, with a diary of its instances.
type running struct {
	*Supervisor
	stop func() // ends Run and waits; safe to call twice

	mu    sync.Mutex
	diary []string
	up    []*Instance
	downs []error
}

// start starts spec, whose OnUp and OnDown are wrapped, and runs it until the test ends.
func start(t *testing.T, spec Spec, opt Options) *running {
	t.Helper()
	r := record(spec, opt)
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.run(t)
	return r
}

func record(spec Spec, opt Options) *running {
	if opt.Logger == nil {
		opt.Logger = quiet()
	}
	r := &running{}
	onUp, onDown := spec.OnUp, spec.OnDown
	spec.OnUp = func(ctx context.Context, inst *Instance) error {
		if onUp != nil {
			if err := onUp(ctx, inst); err != nil {
				return err
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.diary = append(r.diary, fmt.Sprintf("up %d", inst.Number()))
		r.up = append(r.up, inst)
		return nil
	}
	spec.OnDown = func(inst *Instance, err error) {
		if onDown != nil {
			onDown(inst, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.diary = append(r.diary, "down")
		r.downs = append(r.downs, err)
	}
	r.Supervisor = New(spec, opt)
	return r
}

func (r *running) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	r.stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(r.stop)
}

func (r *running) latest() *Instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.up[len(r.up)-1]
}

func (r *running) events() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.diary, ", ")
}

func (r *running) lastDown() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.downs) == 0 {
		return nil
	}
	return r.downs[len(r.downs)-1]
}

// ready waits for instance number n.
func (r *running) ready(t *testing.T, n uint64) *Instance {
	t.Helper()
	eventually(t, fmt.Sprintf("instance %d is ready", n), func() bool {
		return r.Status().State == StateReady && r.latest().Number() == n
	})
	return r.latest()
}

// ask sends a command to the probe and returns its words.
func ask(t *testing.T, inst *Instance, command string) string {
	t.Helper()
	_, err := partitionerrpc.NewClient(inst.Conn()).Plan(t.Context(), partitioner.PlanRequest{Topic: command, Partitions: 1})
	if !errors.Is(err, partitioner.ErrRefused) {
		t.Fatalf("probe answered %v", err)
	}
	return err.Error()
}
