package host

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/partitionerrpc"
)

func TestPluginServesAndEndsInOrder(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "closed")
	r := start(t, specOf("probe", shortDir(t), marker), Options{})
	inst := r.latest()
	plan, err := partitionerrpc.NewClient(inst.Conn()).Plan(t.Context(), partitioner.PlanRequest{Topic: "orders", Partitions: 6})
	if err != nil || plan.Partitions != 6 {
		t.Fatalf("plan %+v, %v", plan, err)
	}
	st := r.Status()
	if st.State != StateReady || st.PID != inst.PID() || st.Version != "7.8.9" || st.Restarts != 0 || st.LastError != "" {
		t.Fatalf("status %+v", st)
	}
	r.stop()
	if _, err := os.Stat(marker); err != nil {
		t.Fatalf("the plugin was not closed: %v", err)
	}
	if alive(st.PID) {
		t.Fatal("the plugin lives on")
	}
	if got := r.Status(); got.State != StateStopped || got.PID != 0 {
		t.Fatalf("status after the end %+v", got)
	}
	if got := r.events(); got != "up 1, down" || !errors.Is(r.lastDown(), ErrStopped) {
		t.Fatalf("diary %q, last %v", got, r.lastDown())
	}
	select {
	case <-inst.Done():
	default:
		t.Fatal("Done is open after the end")
	}
}

func TestStartTellsWhyNot(t *testing.T) {
	quick := Options{StartTimeout: time.Second}
	for _, tc := range []struct {
		name, mode string
		opt        Options
		is         error
		says       string
	}{
		{"crashes at once", "crash", Options{}, ErrExited, "exit status 3 (its last words: the flux capacitor is missing)"},
		{"panics", "panic", Options{}, ErrExited, "panic: flux overflow"},
		{"has no implementation", "empty", Options{}, ErrExited, "exactly one implementation"},
		{"prints garbage", "garbage", Options{}, ErrHandshake, `printed "Hello, I am a ?[31mplugin" first`},
		{"prints without an end", "flood", Options{}, ErrHandshake, "must print nothing before"},
		{"hangs", "hang", quick, ErrStartTimeout, "no working connection in time"},
		{"does not answer", "deaf", quick, ErrStartTimeout, "no working connection in time"},
		{"ends after its handshake", "faint", Options{}, ErrExited, "exit status 4 (its last words: all too much)"},
		{"has another version", "version", Options{}, ErrProtocol, "the plugin speaks version 99, this host speaks 1;"},
		{"listens elsewhere", "elsewhere", Options{}, ErrHandshake, "not in its socket directory"},
		{"is another plugin", "other", Options{}, ErrWrongPlugin, "partitioner other"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := record(specOf(tc.mode, shortDir(t)), tc.opt)
			begin := time.Now()
			err := r.Start(t.Context())
			var start *StartError
			if !errors.As(err, &start) || !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("start says %v", err)
			}
			if took := time.Since(begin); took > time.Minute {
				t.Fatalf("it took %v", took)
			}
			if strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Fatalf("the plugin's text is passed on as it is: %q", err)
			}
			if st := r.Status(); st.State != StateStopped || st.PID != 0 || st.LastError == "" {
				t.Fatalf("status %+v", st)
			}
			if r.events() != "" {
				t.Fatalf("diary %q", r.events())
			}
		})
	}
}

func TestStartRefusesWhatCannotRun(t *testing.T) {
	open := filepath.Join(shortDir(t), "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func(*Spec)
		says   string
	}{
		{"no program", func(s *Spec) { s.Command = []string{"/nowhere/at/all"} }, "no such file"},
		{"no command", func(s *Spec) { s.Command = nil }, "not an absolute path"},
		{"relative command", func(s *Spec) { s.Command = []string{"sh"} }, "not an absolute path"},
		{"not executable", func(s *Spec) { s.Command = []string{"/etc/passwd"} }, "permission denied"},
		{"run directory too long", func(s *Spec) { s.RunDir = "/tmp/" + strings.Repeat("x", 90) }, "too long for a socket's path"},
		{"relative run directory", func(s *Spec) { s.RunDir = "run" }, "not an absolute path"},
		{"run directory open to all", func(s *Spec) { s.RunDir = open }, "can be written by others"},
		{"no descriptors", func(s *Spec) {
			s.Files = func() ([]*os.File, error) { return nil, fs.ErrPermission }
		}, "descriptors to inherit"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := specOf("probe", shortDir(t))
			tc.change(&spec)
			err := New(spec, Options{Logger: quiet()}).Start(t.Context())
			if !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("start says %v", err)
			}
		})
	}
	s := New(specOf("crash", shortDir(t)), Options{Logger: quiet()})
	if err := s.Run(t.Context()); !errors.Is(err, ErrSpec) {
		t.Fatalf("run before start: %v", err)
	}
	if err := s.Start(t.Context()); !errors.Is(err, ErrExited) {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); !errors.Is(err, ErrSpec) {
		t.Fatalf("second start: %v", err)
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := New(specOf("hang", shortDir(t)), Options{Logger: quiet()}).Start(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("start says %v", err)
	}
}

func TestKilledPluginIsBack(t *testing.T) {
	r := start(t, specOf("probe", shortDir(t)), Options{})
	first := r.latest()
	begin := time.Now()
	if err := syscall.Kill(first.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := r.ready(t, 2)
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("it took %v", took)
	}
	if alive(first.PID()) {
		t.Error("the first instance lives")
	}
	if got := r.events(); got != "up 1, down, up 2" {
		t.Errorf("diary %q", got)
	}
	if !errors.Is(r.lastDown(), ErrExited) || !strings.Contains(r.lastDown().Error(), "killed") {
		t.Errorf("the end was told as %v", r.lastDown())
	}
	if st := r.Status(); st.Restarts != 1 || st.PID != second.PID() || !strings.Contains(st.LastError, "killed") || st.ErrorAt.IsZero() || st.ErrorAt.After(st.Since) {
		t.Errorf("status %+v", st)
	}
	_, err := partitionerrpc.NewClient(first.Conn()).Plan(t.Context(), partitioner.PlanRequest{Topic: "t", Partitions: 1})
	if !errors.Is(err, partitionerrpc.ErrUnavailable) {
		t.Errorf("the old connection answers %v", err)
	}
}

func TestStoppedPluginIsKilledAndRestarted(t *testing.T) {
	opt := Options{HeartbeatEvery: 100 * time.Millisecond, HeartbeatTimeout: 500 * time.Millisecond}
	r := start(t, specOf("probe", shortDir(t)), opt)
	first := r.latest()
	if err := syscall.Kill(first.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	r.ready(t, 2)
	if !errors.Is(r.lastDown(), ErrHung) {
		t.Fatalf("the end was told as %v", r.lastDown())
	}
	if alive(first.PID()) {
		t.Fatal("the first instance lives")
	}
}

func TestStoppedPluginDoesNotHoldTheEndUp(t *testing.T) {
	opt := Options{ShutdownTimeout: 300 * time.Millisecond, HeartbeatEvery: time.Hour}
	r := start(t, specOf("probe", shortDir(t)), opt)
	pid := r.latest().PID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	r.stop()
	if took := time.Since(begin); took > time.Minute || alive(pid) {
		t.Fatalf("it took %v, alive: %v", took, alive(pid))
	}
}

func TestKillEndsAnInstanceForAReason(t *testing.T) {
	r := start(t, specOf("probe", shortDir(t)), Options{})
	reason, later := errors.New("a call timed out"), errors.New("and another")
	first := r.latest()
	first.Kill(reason)
	first.Kill(later)
	<-first.Done()
	r.ready(t, 2)
	first.Kill(later) // its pid may be another's by now
	if !errors.Is(r.lastDown(), reason) {
		t.Fatalf("the end was told as %v", r.lastDown())
	}
}

func TestPluginThatGivesUpIsRestarted(t *testing.T) {
	r := start(t, specOf("failing", shortDir(t)), Options{})
	_, err := partitionerrpc.NewClient(r.latest().Conn()).Plan(t.Context(), partitioner.PlanRequest{Topic: "fail", Partitions: 1})
	if err != nil && !errors.Is(err, partitionerrpc.ErrUnavailable) {
		t.Fatal(err)
	}
	r.ready(t, 2)
	if !strings.Contains(r.lastDown().Error(), "exit status 1") {
		t.Fatalf("the end was told as %v", r.lastDown())
	}
}

func TestAdoptionThatFailsKills(t *testing.T) {
	refused := errors.New("not this one")
	var pid int
	spec := specOf("probe", shortDir(t))
	spec.OnUp = func(_ context.Context, inst *Instance) error {
		pid = inst.PID()
		return refused
	}
	r := record(spec, Options{})
	if err := r.Start(t.Context()); !errors.Is(err, refused) {
		t.Fatalf("start says %v", err)
	}
	if pid == 0 || alive(pid) || r.events() != "" {
		t.Fatalf("pid %d alive: %v, diary %q", pid, alive(pid), r.events())
	}
}

func TestAdoptionThatFailsLaterIsTriedAgain(t *testing.T) {
	spec := specOf("probe", shortDir(t))
	spec.OnUp = func(_ context.Context, inst *Instance) error {
		if inst.Number() == 2 {
			return errors.New("not this one")
		}
		return nil
	}
	r := start(t, spec, Options{})
	r.latest().Kill(errors.New("by hand"))
	r.ready(t, 3)
	if got := r.events(); got != "up 1, down, up 3" {
		t.Fatalf("diary %q", got)
	}
	if st := r.Status(); st.Restarts != 2 || !strings.Contains(st.LastError, "not this one") {
		t.Fatalf("status %+v", st)
	}
}

func TestAdoptionEndsWhenThePluginHangs(t *testing.T) {
	spec := specOf("probe", shortDir(t))
	spec.OnUp = func(ctx context.Context, inst *Instance) error {
		if err := syscall.Kill(inst.PID(), syscall.SIGSTOP); err != nil {
			return err
		}
		<-ctx.Done()
		return context.Cause(ctx)
	}
	opt := Options{HeartbeatEvery: 50 * time.Millisecond, HeartbeatTimeout: 200 * time.Millisecond}
	if err := record(spec, opt).Start(t.Context()); !errors.Is(err, ErrHung) {
		t.Fatalf("start says %v", err)
	}
}

func TestPluginDiesWithItsHost(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			host := exec.Command("/proc/self/exe", "child", "host", shortDir(t))
			out, err := host.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := host.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil || !alive(pid) {
				t.Fatalf("plugin's pid %q, %v", line, err)
			}
			// Stopped, it can do nothing about it by itself.
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			if err := host.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_ = host.Wait()
			eventually(t, "the plugin is gone", func() bool { return !alive(pid) })
		})
	}
}

func TestEnvironmentIsClean(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
	t.Setenv("TZ", "Europe/Riga")
	spec := specOf("probe", shortDir(t))
	spec.Config = []byte(`{"size":3}`)
	env := ask(t, start(t, spec, Options{}).latest(), "env")
	if strings.Contains(env, "hush-hush") || strings.Contains(env, "HOME=") {
		t.Errorf("the host's environment leaks: %s", env)
	}
	if !strings.Contains(env, "TZ=Europe/Riga") || !strings.Contains(env, `TRUNKLINE_PLUGIN_CONFIG={"size":3}`) {
		t.Errorf("what it should have is missing: %s", env)
	}
}

func TestConfigIsStrict(t *testing.T) {
	spec := specOf("config", shortDir(t))
	spec.Config = []byte(`{"size":3}`)
	if got := ask(t, start(t, spec, Options{}).latest(), "size"); !strings.Contains(got, "3") {
		t.Errorf("configured with 3: %s", got)
	}
	if got := ask(t, start(t, specOf("config", shortDir(t)), Options{}).latest(), "size"); !strings.Contains(got, "1") {
		t.Errorf("configured with nothing: %s", got)
	}
	for _, tc := range []struct{ config, says string }{
		{`{"sise":3}`, "unknown field"},
		{`{"size":"x"}`, "cannot unmarshal"},
		{`{"size":3} {}`, "more than one"},
	} {
		spec.Config, spec.RunDir = []byte(tc.config), shortDir(t)
		if err := New(spec, Options{Logger: quiet()}).Start(t.Context()); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("config %s: %v", tc.config, err)
		}
	}
}

func TestDescriptorsAreInheritedAtEachStart(t *testing.T) {
	spec := specOf("probe", shortDir(t))
	var given []*os.File
	spec.Files = func() ([]*os.File, error) {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			return nil, err
		}
		if _, err := f.WriteString("through three"); err != nil {
			return nil, err
		}
		if _, err := f.Seek(0, 0); err != nil {
			return nil, err
		}
		given = append(given, f)
		return []*os.File{f}, nil
	}
	r := start(t, spec, Options{})
	for n := uint64(1); n <= 2; n++ {
		inst := r.ready(t, n)
		if got := ask(t, inst, "fd3"); !strings.Contains(got, "through three <nil>") {
			t.Errorf("instance %d read %q", n, got)
		}
		inst.Kill(errors.New("next"))
		<-inst.Done()
	}
	r.stop()
	for i, f := range given {
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("the host kept its copy %d: %v", i, err)
		}
	}
}

func TestGrandchildThatHoldsThePipesDelaysNothing(t *testing.T) {
	r := start(t, specOf("probe", shortDir(t)), Options{})
	words := strings.Fields(ask(t, r.latest(), "grandchild"))
	pid, err := strconv.Atoi(strings.Trim(words[len(words)-2], "("))
	if err != nil {
		t.Fatal(words)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGKILL) }()
	begin := time.Now()
	r.latest().Kill(errors.New("by hand"))
	r.ready(t, 2)
	if took := time.Since(begin); took > time.Minute {
		t.Fatalf("it took %v", took)
	}
	if !alive(pid) {
		t.Fatal("the grandchild did not outlive its parent: nothing was shown")
	}
}

func TestSocketsAreSwept(t *testing.T) {
	dir := shortDir(t)
	r := start(t, specOf("probe", dir), Options{})
	for n := uint64(1); n <= 3; n++ {
		inst := r.ready(t, n)
		inst.Kill(errors.New("next"))
		<-inst.Done()
	}
	r.ready(t, 4)
	sockets, err := filepath.Glob(filepath.Join(dir, "partitioner-probe", "plugin*"))
	if err != nil {
		t.Fatal(err)
	}
	live := 0
	for _, s := range sockets {
		if st, err := os.Lstat(s); err == nil && st.Mode()&fs.ModeSocket != 0 {
			live++
		}
	}
	if live != 1 {
		t.Fatalf("%d sockets in %q", live, sockets)
	}
	st, err := os.Stat(filepath.Join(dir, "partitioner-probe"))
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Fatalf("socket directory %v, %v", st.Mode(), err)
	}
}

func TestRunByHandItSaysWhatItIs(t *testing.T) {
	out, err := exec.Command("/proc/self/exe", "child", "probe").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || string(out) != "this is a Trunkline plugin, run by trunkline-server\n" {
		t.Fatalf("%v: %q", err, out)
	}
}

func TestRestartsLeaveNoDescriptorsBehind(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	r := start(t, specOf("probe", shortDir(t)), Options{BackoffMax: 10 * time.Millisecond})
	var before int
	for n := uint64(1); n <= 6; n++ {
		inst := r.ready(t, n)
		if n == 2 { // what the runtime opens once is open by now
			before = count()
		}
		if n == 6 {
			break
		}
		inst.Kill(errors.New("next"))
		<-inst.Done()
	}
	eventually(t, "no more descriptors than before", func() bool { return count() <= before })
}
