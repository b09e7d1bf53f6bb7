// Package zookeepertest runs real ZooKeeper servers for tests, alone or three together, and a proxy that can cut a
// connection. Servers listen on free ports, keep their data in the test's directory, and end with the test, or with the
// test's process, whatever becomes of it.
//
// It needs Java and Debian's libzookeeper-java. Where these are missing a test is skipped, and fails when the variable
// TRUNKLINE_TEST_REQUIRE says that nothing may be.
package zookeepertest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// requireEnv, when set, turns "a tool is missing" from a skip into a failure.
	requireEnv = "TRUNKLINE_TEST_REQUIRE"
	jars       = "/usr/share/java"
	// Patience bounds every wait for something that must come.
	Patience = time.Minute
)

// Require ends the test where ZooKeeper cannot be run.
func Require(t testing.TB) {
	t.Helper()
	_, err := exec.LookPath("java")
	if err == nil {
		_, err = os.Stat(filepath.Join(jars, "zookeeper.jar"))
	}
	switch {
	case err == nil:
	case os.Getenv(requireEnv) != "":
		t.Fatalf("ZooKeeper cannot be run (packages openjdk-17-jre-headless, libzookeeper-java; make test installs them): %v", err)
	default:
		t.Skipf("ZooKeeper cannot be run (packages openjdk-17-jre-headless, libzookeeper-java): %v", err)
	}
}

// Server is one ZooKeeper server. Its methods are for the test's own goroutine.
type Server struct {
	t       testing.TB
	dir     string
	Address string // HOST:PORT of its clients
	pid     int
	hold    io.Closer // its keeper ends it when this is closed
	keeper  *exec.Cmd
}

// settings are those of every server: short ticks, so that sessions may be short, and small logs.
const settings = `tickTime=250
initLimit=40
syncLimit=8
admin.enableServer=false
maxClientCnxns=0
4lw.commands.whitelist=*
minSessionTimeout=500
maxSessionTimeout=20000
preAllocSize=1024
`

// Start starts a server alone and waits until it serves.
func Start(t testing.TB) *Server {
	t.Helper()
	Require(t)
	s := prepare(t, FreePort(t), "")
	s.Restart()
	s.WaitReady()
	return s
}

// StartEnsemble starts three servers that elect a leader, and waits for it.
func StartEnsemble(t testing.TB) []*Server {
	t.Helper()
	Require(t)
	var members strings.Builder
	var ports []int
	for id := 1; id <= 3; id++ {
		ports = append(ports, FreePort(t))
		fmt.Fprintf(&members, "server.%d=127.0.0.1:%d:%d\n", id, FreePort(t), FreePort(t))
	}
	var all []*Server
	for i, port := range ports {
		s := prepare(t, port, members.String())
		write(t, filepath.Join(s.dir, "data", "myid"), strconv.Itoa(i+1))
		s.Restart()
		all = append(all, s)
	}
	for _, s := range all {
		s.WaitReady()
	}
	return all
}

// Leader is the ensemble's leader.
func Leader(t testing.TB, all []*Server) *Server {
	t.Helper()
	var found *Server
	Eventually(t, "there is a leader", func() bool {
		for _, s := range all {
			if s.mode() == "leader" {
				found = s
			}
		}
		return found != nil
	})
	return found
}

// Addresses are all the servers', separated by commas.
func Addresses(all []*Server) string {
	var list []string
	for _, s := range all {
		list = append(list, s.Address)
	}
	return strings.Join(list, ",")
}

// FreePort is a port that nobody listens on.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func prepare(t testing.TB, port int, members string) *Server {
	t.Helper()
	s := &Server{t: t, dir: t.TempDir(), Address: fmt.Sprintf("127.0.0.1:%d", port)}
	write(t, filepath.Join(s.dir, "zoo.cfg"), fmt.Sprintf("%sdataDir=%s\nclientPort=%d\nclientPortAddress=127.0.0.1\n%s",
		settings, filepath.Join(s.dir, "data"), port, members))
	write(t, filepath.Join(s.dir, "log4j.properties"), "log4j.rootLogger=WARN, out\nlog4j.appender.out=org.apache.log4j.ConsoleAppender\n"+
		"log4j.appender.out.layout=org.apache.log4j.PatternLayout\nlog4j.appender.out.layout.ConversionPattern=%d %p %m%n\n")
	write(t, filepath.Join(s.dir, "data", ".keep"), "")
	t.Cleanup(s.end)
	return s
}

// keep is what the keeper runs: the server, its pid on one line, and its end when standard input ends.
const keep = `"$@" </dev/null >"$LOG" 2>&1 & echo $!; read -r _; kill -9 $!; wait`

// Restart starts the server on its data, without waiting for it.
func (s *Server) Restart() {
	s.t.Helper()
	s.end()
	classpath := strings.Join([]string{s.dir, jars + "/zookeeper.jar", jars + "/slf4j-log4j12.jar", jars + "/log4j-1.2.jar"}, ":")
	s.keeper = exec.Command("sh", "-c", keep, "sh", "java", "-Xms16m", "-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		"-Dzookeeper.jmx.log4j.disable=true", "-Dzookeeper.preAllocSize=1024", "-Dzookeeper.commitLogCount=20", "-Dzookeeper.forceSync=no",
		"-cp", classpath,
		"org.apache.zookeeper.server.quorum.QuorumPeerMain", filepath.Join(s.dir, "zoo.cfg"))
	s.keeper.Env = append(os.Environ(), "LOG="+filepath.Join(s.dir, "log"))
	in, err := s.keeper.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := s.keeper.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.keeper.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.hold = in
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		s.pid, err = strconv.Atoi(strings.TrimSpace(line))
	}
	if err != nil {
		s.t.Fatalf("start ZooKeeper: %q, %v", line, err)
	}
}

// Kill ends the server with SIGKILL and returns when it is gone. It may have ended already.
func (s *Server) Kill() { s.end() }

func (s *Server) end() {
	if s.keeper == nil {
		return
	}
	_ = s.hold.Close()
	_ = s.keeper.Wait() // the server was killed; there is no good end
	s.keeper = nil
}

// Pause stops the server with SIGSTOP and returns when every thread has stopped: its connections stay, and nothing is
// answered.
func (s *Server) Pause() {
	s.t.Helper()
	s.signal(syscall.SIGSTOP)
	Eventually(s.t, "the server is paused", func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.pid))
		for _, path := range threads {
			stat, err := os.ReadFile(path)
			if _, state, ok := strings.Cut(string(stat), ") "); err == nil && ok && !strings.HasPrefix(state, "T") {
				return false
			}
		}
		return len(threads) > 0
	})
}

// Resume lets a paused server go on.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := syscall.Kill(s.pid, sig); err != nil {
		s.t.Fatal(err)
	}
}

// WaitReady waits until the server serves clients.
func (s *Server) WaitReady() {
	s.t.Helper()
	for end := time.Now().Add(Patience); s.mode() == ""; {
		if time.Now().After(end) {
			said, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			s.t.Fatalf("ZooKeeper at %s does not serve:\n%s", s.Address, said)
		}
	}
}

// mode is what the server says it is: standalone, leader, follower; empty while it does not serve.
func (s *Server) mode() string {
	nc, err := net.DialTimeout("tcp", s.Address, time.Second)
	if err != nil {
		return ""
	}
	defer func() { _ = nc.Close() }()
	_ = nc.SetDeadline(time.Now().Add(time.Second))
	if _, err := nc.Write([]byte("srvr")); err != nil {
		return ""
	}
	said, _ := io.ReadAll(nc)
	for line := range strings.Lines(string(said)) {
		if mode, ok := strings.CutPrefix(line, "Mode: "); ok {
			return strings.TrimSpace(mode)
		}
	}
	return ""
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
