// Package zookeeper runs a whole server with its metadata in a real ZooKeeper, and takes that away in every way that
// can be thought of: producers to topics that exist must not notice, changes must be refused with the reason, and
// everything must heal by itself. Without Java or ZooKeeper's jar the tests are skipped, and fail where nothing may be
// skipped.
package zookeeper

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/metadata/zookeeper/zookeepertest"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

var outage = flag.Duration("outage", 10*time.Second, "for how long the whole ensemble is away")

// shortSession makes the server notice soon, and lose its session in an outage.
func shortSession() []string { return []string{"TRUNKLINE_ZOOKEEPER_SESSION=1s"} }

func start(t *testing.T, servers string) *harness.Server {
	t.Helper()
	return harness.StartIn(t, shortSession(), "--metadata", "zookeeper", "--zookeeper", servers)
}

func ask(t *testing.T, s *harness.Server, line, want string) {
	t.Helper()
	if got := s.Dial().Ask(line); got != want {
		t.Fatalf("%s: %s", line, got)
	}
}

// refusedWithReason asks for a topic, which must be refused because ZooKeeper is away.
func refusedWithReason(t *testing.T, s *harness.Server, name string) {
	t.Helper()
	began := time.Now()
	got := s.Dial().Ask("TOPIC CREATE " + name)
	if !strings.HasPrefix(got, "-ERR METADATA_UNAVAILABLE '") || !strings.Contains(got, "ZooKeeper at 127.0.0.1:") {
		t.Errorf("without ZooKeeper, TOPIC CREATE %s is answered %q", name, got)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it took %s to be refused", took)
	}
}

// heals waits until topics can be created again.
func heals(t *testing.T, s *harness.Server, name string) {
	t.Helper()
	harness.Eventually(t, "topics can be created again", func() bool {
		got := s.Dial().Ask("TOPIC CREATE " + name)
		return got == "+OK "+name || strings.HasPrefix(got, "-ERR TOPIC_EXISTS")
	})
	c := s.Dial()
	if got := c.Ask("SEND " + name + " hello"); got != "+OK "+name+"/0@0 disk" {
		t.Errorf("publish to the new topic: %s", got)
	}
}

func TestWholeLife(t *testing.T) {
	t.Parallel() // they mostly wait
	zk := zookeepertest.Start(t)
	s := harness.StartIn(t, []string{"TRUNKLINE_ZOOKEEPER_DIGEST=broker:secret"}, "--zookeeper", zk.Address)
	ask(t, s, "TOPIC CREATE orders partitions=2", "+OK orders")
	ask(t, s, "TOPIC CREATE gone", "+OK gone")
	ask(t, s, "SEND orders/1 one", "+OK orders/1@0 disk")
	ask(t, s, "TOPIC ALTER orders retention.time=1d", "+OK orders")
	ask(t, s, "TOPIC DELETE gone", "+OK gone")
	ask(t, s, "SEND fresh first", "+OK fresh/0@0 disk")
	if _, err := os.Stat(s.Data + "/meta/embedded.db"); !os.IsNotExist(err) {
		t.Errorf("there is an embedded store: %v", err)
	}
	plugin := s.Plugins()["metadata"]
	if err := syscall.Kill(plugin, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the plugin is back", func() bool { p := s.Plugins()["metadata"]; return p != 0 && p != plugin })
	ask(t, s, "TOPIC CREATE after", "+OK after")
	for range 2 {
		s.Kill()
		s.Restart()
		c := s.Dial()
		c.Send("GET orders/1\n")
		if got := c.Read() + c.Read() + c.Read(); !strings.HasPrefix(got, "MSG orders/1@0 0 3one+OK ") {
			t.Errorf("after a restart: %q", got)
		}
		if got := c.Ask("SEND gone x"); got != "+OK gone/0@0 disk" && !strings.HasPrefix(got, "+OK gone/0@1 ") {
			t.Errorf("the deleted topic's name: %s", got)
		}
	}
	if code := s.Term(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.Restart()
	ask(t, s, "TOPIC CREATE orders", "-ERR TOPIC_EXISTS 'topic orders exists; use it, or choose another name'")
	refusesOthers(t, zk.Address)
}

// refusesOthers starts servers that must not come up on this metadata.
func refusesOthers(t *testing.T, servers string) {
	t.Helper()
	for want, digest := range map[string]string{"belongs to another data directory": "broker:secret", "ZooKeeper denies access": "broker:guess"} {
		began := time.Now()
		code, said := run(t, digest, servers)
		if code != 1 || !strings.Contains(said, want) || strings.Contains(said, "guess") {
			t.Errorf("a server that should hear %q: exit code %d after %s, %s", want, code, time.Since(began), said)
		}
	}
}

// run runs a server that is to end by itself.
func run(t *testing.T, digest, servers string) (code int, said string) {
	t.Helper()
	cmd := exec.Command(harness.Binary("trunkline-server"), "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--http", "-", "--zookeeper", servers)
	cmd.Env = append(os.Environ(), "TRUNKLINE_ZOOKEEPER_DIGEST="+digest)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func TestEnsembleAway(t *testing.T) {
	t.Parallel() // they mostly wait
	all := zookeepertest.StartEnsemble(t)
	s := start(t, zookeepertest.Addresses(all))
	l := startLoad(t, s)
	for _, zk := range all {
		zk.Kill()
	}
	for back := time.Now().Add(*outage); time.Now().Before(back); {
		refusedWithReason(t, s, "away")
		l.more(20)
	}
	if got := s.Dial().Ask("TOPIC DELETE load"); !strings.HasPrefix(got, "-ERR METADATA_UNAVAILABLE ") {
		t.Errorf("TOPIC DELETE without ZooKeeper: %s", got)
	}
	for _, zk := range all {
		zk.Restart()
	}
	heals(t, s, "back")
	l.more(20)
	l.undisturbed(s)
}

func TestLeaderKilled(t *testing.T) {
	t.Parallel() // they mostly wait
	all := zookeepertest.StartEnsemble(t)
	s := start(t, zookeepertest.Addresses(all))
	l := startLoad(t, s)
	leader := zookeepertest.Leader(t, all)
	leader.Kill()
	heals(t, s, "elected")
	leader.Restart()
	leader.WaitReady()
	for i := range 5 {
		name := fmt.Sprintf("again%d", i)
		ask(t, s, "TOPIC CREATE "+name, "+OK "+name)
	}
	l.more(20)
	l.undisturbed(s)
}

func TestServerPaused(t *testing.T) {
	t.Parallel() // they mostly wait
	zk := zookeepertest.Start(t)
	s := start(t, zk.Address)
	l := startLoad(t, s)
	zk.Pause()
	refusedWithReason(t, s, "paused")
	l.more(20)
	zk.Resume()
	heals(t, s, "resumed")
	heals(t, s, "paused") // whatever became of it
	l.more(20)
	l.undisturbed(s)
}

func TestConnectionCutOneWay(t *testing.T) {
	t.Parallel() // they mostly wait
	zk := zookeepertest.Start(t)
	proxy := zookeepertest.NewProxy(t, zk.Address)
	s := start(t, proxy.Address)
	l := startLoad(t, s)
	for name, way := range map[string]int{"to-client": zookeepertest.ToClient, "to-server": zookeepertest.ToServer} {
		proxy.Cut(way)
		refusedWithReason(t, s, name)
		l.more(20)
		proxy.Drop()
		proxy.Heal()
		heals(t, s, name)
	}
	// What was refused may have happened all the same; either way it can be had.
	proxy.Cut(zookeepertest.ToClient)
	refusedWithReason(t, s, "unknown")
	proxy.Drop()
	proxy.Heal()
	heals(t, s, "after")
	heals(t, s, "unknown")
	l.undisturbed(s)
}

func TestSessionExpired(t *testing.T) {
	t.Parallel() // they mostly wait
	zk := zookeepertest.Start(t)
	proxy := zookeepertest.NewProxy(t, zk.Address)
	s := start(t, proxy.Address)
	l := startLoad(t, s)
	proxy.Cut(zookeepertest.ToServer)
	proxy.Cut(zookeepertest.ToClient)
	for over := time.Now().Add(3 * time.Second); time.Now().Before(over); {
		l.more(20)
	}
	proxy.Drop()
	proxy.Heal()
	heals(t, s, "expired")
	l.more(20)
	l.undisturbed(s)
}

func TestStartWaitsForZooKeeper(t *testing.T) {
	t.Parallel() // they mostly wait
	zk := zookeepertest.Start(t)
	zk.Kill()
	cmd := exec.Command(harness.Binary("trunkline-server"), "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--http", "-", "--zookeeper", zk.Address)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := newReader(out)
	lines.until(t, "waiting for the metadata backend")
	zk.Restart()
	lines.until(t, "ready client=")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	lines.end()
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestStartThatWaitsCanBeEnded(t *testing.T) {
	t.Parallel() // they mostly wait
	zookeepertest.Require(t)
	cmd := exec.Command(harness.Binary("trunkline-server"), "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--http", "-",
		"--zookeeper", fmt.Sprintf("127.0.0.1:%d", zookeepertest.FreePort(t)))
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := newReader(out)
	lines.until(t, "waiting for the metadata backend")
	began := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	lines.end()
	if err := cmd.Wait(); err != nil || time.Since(began) > time.Minute {
		t.Errorf("it ended after %s with %v", time.Since(began), err)
	}
}

func TestStartWithoutZooKeeperTellsWhatToDo(t *testing.T) {
	t.Parallel() // they mostly wait
	zookeepertest.Require(t)
	began := time.Now()
	code, said := run(t, "", fmt.Sprintf("127.0.0.1:%d", zookeepertest.FreePort(t)))
	if code != 1 || !strings.Contains(said, "start ZooKeeper there, or name other servers with --zookeeper") {
		t.Errorf("exit code %d: %s", code, said)
	}
	if took := time.Since(began); took < 20*time.Second || took > 2*time.Minute {
		t.Errorf("it waited %s", took)
	}
}
