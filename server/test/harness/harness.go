// Package harness runs the real binaries for whole-system tests: it builds them once a test package, starts servers on
// free ports and fresh directories, kills them and their plugins, and talks to them line by line.
package harness

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience is how long a test waits for what must happen.
const Patience = time.Minute

// binEnv names the directory with the built binaries between Main and the tests.
const binEnv = "TRUNKLINE_TEST_BIN"

// Main builds the binaries, with build tags where those that ship are not what is wanted, runs the tests of a package, and
// returns their exit code; TestMain calls it. Where the environment names a directory with binaries already, they are
// used, unless there are tags.
func Main(m *testing.M, tags ...string) int {
	if os.Getenv(binEnv) != "" && len(tags) == 0 {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "trunkline-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	args := []string{"build", "-o", dir + "/", "-tags", strings.Join(tags, ",")}
	if raceDetector {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "github.com/trunkline-mq/trunkline/server", "github.com/trunkline-mq/trunkline/clients/cli")...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the binaries: %v\n%s", err, out)
		return 1
	}
	_ = os.Rename(filepath.Join(dir, "server"), filepath.Join(dir, "trunkline-server"))
	_ = os.Rename(filepath.Join(dir, "cli"), filepath.Join(dir, "trunkline"))
	if err := os.Setenv(binEnv, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// Race reports whether the binaries that Main builds are built with the race detector, which takes memory of its own.
func Race() bool { return raceDetector }

// Binary is the path of one of the binaries: "trunkline-server" or "trunkline".
func Binary(name string) string { return filepath.Join(os.Getenv(binEnv), name) }

// Server is a running server, and can be started again on the same data after its end.
type Server struct {
	t      testing.TB
	Data   string
	Client string // HOST:PORT
	HTTP   string
	env    []string // beside the test's own
	args   []string
	// descriptors is the limit on open ones; 0: the test's own.
	descriptors int
	cmd         *exec.Cmd
	exited      chan struct{}
	code        int
	mu          sync.Mutex
	stderr      bytes.Buffer
	reader      sync.WaitGroup
}

// Start starts a server with extra arguments on a fresh data directory and waits until it is ready. It is killed when
// the test ends.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return StartOn(t, t.TempDir(), args...)
}

// StartIn is Start with more in the environment, as KEY=VALUE.
func StartIn(t testing.TB, env []string, args ...string) *Server {
	t.Helper()
	s := &Server{t: t, Data: t.TempDir(), env: env, args: args}
	s.Restart()
	t.Cleanup(s.Kill)
	return s
}

// StartLimited is Start with a limit on the descriptors that the server, and each of its plugins, may have open.
func StartLimited(t testing.TB, descriptors int, args ...string) *Server {
	t.Helper()
	s := &Server{t: t, Data: t.TempDir(), descriptors: descriptors, args: args}
	s.Restart()
	t.Cleanup(s.Kill)
	return s
}

// StartOn is Start on a data directory of the caller's.
func StartOn(t testing.TB, data string, args ...string) *Server {
	t.Helper()
	s := &Server{t: t, Data: data, args: args}
	s.Restart()
	t.Cleanup(s.Kill)
	return s
}

var readyLine = regexp.MustCompile(`(?m)^ready client=(\S+) http=(\S+) data=(\S+)$`)

// Restart starts the server again on its data; it has ended before. A later start gets other ports.
func (s *Server) Restart() {
	s.t.Helper()
	if err := s.Launch(); err != nil {
		s.t.Fatal(err)
	}
}

// Launch is Restart for tests that expect it to fail.
func (s *Server) Launch() error {
	args := append([]string{"--data", s.Data, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"}, s.args...)
	s.cmd = exec.Command(Binary("trunkline-server"), args...)
	if s.descriptors > 0 {
		limited := fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, s.descriptors) // the process stays the same
		s.cmd = exec.Command("sh", append([]string{"-c", limited, Binary("trunkline-server")}, args...)...)
	}
	s.cmd.Env = append(os.Environ(), s.env...)
	pipe, err := s.cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.exited = make(chan struct{})
	ready := make(chan []string, 1)
	s.reader.Go(func() { s.watch(bufio.NewReader(pipe), ready) })
	select {
	case m := <-ready:
		s.Client, s.HTTP = m[1], m[2]
		return nil
	case <-s.exited:
		return fmt.Errorf("server exited with %d:\n%s", s.code, s.Stderr())
	case <-time.After(Patience):
		s.Kill()
		return fmt.Errorf("server is not ready after %s:\n%s", Patience, s.Stderr())
	}
}

func (s *Server) watch(r *bufio.Reader, ready chan<- []string) {
	for {
		text, err := r.ReadString('\n')
		s.mu.Lock()
		s.stderr.WriteString(text)
		s.mu.Unlock()
		if m := readyLine.FindStringSubmatch(strings.TrimRight(text, "\n")); m != nil {
			ready <- m
		}
		if err != nil {
			break
		}
	}
	_ = s.cmd.Wait()
	s.code = s.cmd.ProcessState.ExitCode()
	close(s.exited)
}

// Stderr is everything the server has said.
func (s *Server) Stderr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stderr.String()
}

// PID is the server's process id.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Kill ends the server with SIGKILL, its plugins with it, and waits until all are gone. It may have ended already.
func (s *Server) Kill() {
	plugins := s.Plugins()
	_ = s.cmd.Process.Kill()
	s.reader.Wait()
	for _, bad := range []string{"DATA RACE", "\npanic: ", "fatal error: ", `msg="connection failed"`, `"msg":"connection failed"`} {
		if said := s.Stderr(); strings.Contains(said, bad) {
			s.t.Errorf("server said %q:\n%s", bad, said[strings.Index(said, bad):min(len(said), strings.Index(said, bad)+4000)])
		}
	}
	for _, pid := range plugins {
		Eventually(s.t, fmt.Sprintf("plugin %d is gone", pid), func() bool { return !Alive(pid) })
	}
}

// Alive reports whether a process runs. One that is dead and not yet reaped does not.
func Alive(pid int) bool {
	state, _, ok := procStat(pid)
	return ok && state != "Z" && state != "X"
}

// procStat reads the state and the parent of a process.
func procStat(pid int) (state string, parent int, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, false
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 2 {
		return "", 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return fields[0], parent, err == nil
}

// Term ends the server with SIGTERM and returns its exit code.
func (s *Server) Term() int {
	s.t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	return s.Wait()
}

// Wait waits for the server's end and returns its exit code.
func (s *Server) Wait() int {
	s.t.Helper()
	select {
	case <-s.exited:
		return s.code
	case <-time.After(Patience):
		s.t.Fatalf("server has not ended:\n%s", s.Stderr())
		return -1
	}
}

// Plugins returns the process ids of the server's plugins by kind; where several of a kind run, one of them.
func (s *Server) Plugins() map[string]int {
	found := map[string]int{}
	s.eachPlugin(func(kind, _ string, pid int) { found[kind] = pid })
	return found
}

// Plugin returns the process id of a shipped plugin, 0 while it does not run.
func (s *Server) Plugin(kind, name string) (found int) {
	s.eachPlugin(func(k, n string, pid int) {
		if k == kind && n == name {
			found = pid
		}
	})
	return found
}

// KillPlugin ends a shipped plugin by a signal and, where that replaces it, waits for its successor.
func (s *Server) KillPlugin(kind, name string, signal syscall.Signal) {
	s.t.Helper()
	pid := 0
	Eventually(s.t, name+" runs", func() bool { pid = s.Plugin(kind, name); return pid != 0 })
	if err := syscall.Kill(pid, signal); err != nil {
		s.t.Fatal(err)
	}
	Eventually(s.t, name+" is replaced", func() bool { p := s.Plugin(kind, name); return p != 0 && p != pid })
}

func (s *Server) eachPlugin(f func(kind, name string, pid int)) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if _, parent, ok := procStat(pid); !ok || parent != s.PID() || !Alive(pid) {
			continue
		}
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if args := strings.Split(string(line), "\x00"); len(args) >= 4 && args[1] == "plugin" {
			f(args[2], args[3], pid)
		}
	}
}

// Eventually waits until ok, and fails the test after Patience.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(Patience); time.Now().Before(end); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("not within %s: %s", Patience, what)
}

// Line is a connection as a person would have it.
type Line struct {
	t  testing.TB
	nc net.Conn
	r  *bufio.Reader
}

// Dial connects and reads the greeting.
func (s *Server) Dial() *Line {
	s.t.Helper()
	l := s.DialRaw()
	if got := l.Read(); !strings.HasPrefix(got, "INFO {") {
		s.t.Fatalf("greeting is %q", got)
	}
	return l
}

// DialRaw connects and reads nothing.
func (s *Server) DialRaw() *Line {
	s.t.Helper()
	nc, err := net.DialTimeout("tcp", s.Client, Patience)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = nc.Close() })
	return &Line{t: s.t, nc: nc, r: bufio.NewReaderSize(nc, 1<<20)}
}

// Conn is the connection itself.
func (l *Line) Conn() net.Conn { return l.nc }

// Send writes text as it stands.
func (l *Line) Send(text string) {
	l.t.Helper()
	_ = l.nc.SetWriteDeadline(time.Now().Add(Patience))
	if _, err := l.nc.Write([]byte(text)); err != nil {
		l.t.Fatalf("send %.60q: %v", text, err)
	}
}

// Read reads one line, without its end.
func (l *Line) Read() string {
	l.t.Helper()
	text, err := l.TryRead()
	if err != nil {
		l.t.Fatalf("read a line: %v (got %q)", err, text)
	}
	return text
}

// TryRead is Read for tests that expect the end.
func (l *Line) TryRead() (string, error) {
	_ = l.nc.SetReadDeadline(time.Now().Add(Patience))
	text, err := l.r.ReadString('\n')
	return strings.TrimRight(text, "\r\n"), err
}

// ReadN reads exactly n bytes.
func (l *Line) ReadN(n int) string {
	l.t.Helper()
	_ = l.nc.SetReadDeadline(time.Now().Add(Patience))
	b := make([]byte, n)
	for got := 0; got < n; {
		m, err := l.r.Read(b[got:])
		got += m
		if err != nil {
			l.t.Fatalf("read %d of %d bytes: %v", got, n, err)
		}
	}
	return string(b)
}

// Ask sends a line and returns the line that answers it.
func (l *Line) Ask(text string) string {
	l.t.Helper()
	l.Send(text + "\n")
	return l.Read()
}
