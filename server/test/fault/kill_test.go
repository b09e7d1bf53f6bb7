// Package fault kills what can be killed, for real, and checks that nothing acknowledged is lost, nothing refused
// appears, and what needed no plugin was not refused.
//
// Found by these tests: see README.md beside this file.
package fault

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

func TestKilledPluginLosesNothingAndRefusesNothing(t *testing.T) {
	s := harness.Start(t)
	c := s.Dial()
	if got := c.Ask("TOPIC CREATE load partitions=6"); got != "+OK load" {
		t.Fatal(got)
	}
	l := harness.StartLoad(t, s, "load", harness.LoadOptions{})
	for round := range 3 {
		for _, kind := range []string{"storage", "metadata", "partitioner"} {
			l.WaitMore(500)
			pid := s.Plugins()[kind]
			if pid == 0 {
				t.Fatalf("no %s plugin is running", kind)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			l.WaitMore(500)
			harness.Eventually(t, kind+" is back", func() bool { p := s.Plugins()[kind]; return p != 0 && p != pid })
			// What needs the plugin waits for it, and works.
			name := fmt.Sprintf("made-%d-%s", round, kind)
			if got := c.Ask("TOPIC CREATE " + name); got != "+OK "+name {
				t.Errorf("after %s was killed: %s", kind, got)
			}
		}
	}
	h := l.End()
	if len(h.Refused) > 0 || h.Unknown > 0 {
		t.Errorf("%s; none of them needed a plugin", h)
	}
	h.Check(t, s, 6)
	s.Kill()
	s.Restart()
	h.Check(t, s, 6)
	t.Log(h)
}

func TestStoppedPluginIsReplacedWhileProducersGoOn(t *testing.T) {
	s := harness.Start(t)
	l := harness.StartLoad(t, s, "load", harness.LoadOptions{})
	for _, kind := range []string{"storage", "metadata", "partitioner"} {
		l.WaitMore(200)
		pid := s.Plugins()[kind]
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "hung "+kind+" is replaced", func() bool { p := s.Plugins()[kind]; return p != 0 && p != pid })
		l.WaitMore(200)
	}
	h := l.End()
	if len(h.Refused) > 0 || h.Unknown > 0 {
		t.Errorf("%s; none of them needed a plugin", h)
	}
	h.Check(t, s, 1)
	t.Log(h)
}

func TestKilledServerLosesNothingAcknowledged(t *testing.T) {
	s := harness.Start(t)
	if got := s.Dial().Ask("TOPIC CREATE load partitions=3"); got != "+OK load" {
		t.Fatal(got)
	}
	h := harness.NewHistory("load")
	for life := range 5 {
		l := harness.StartLoad(t, s, "load", harness.LoadOptions{Name: fmt.Sprintf("%d.", life)})
		l.WaitMore(1000)
		s.Kill()
		h.Add(l.End())
		s.Restart()
		h.Check(t, s, 3)
	}
	t.Log(h)
}

func TestPluginsDieWithTheServer(t *testing.T) {
	s := harness.Start(t)
	plugins := s.Plugins()
	if len(plugins) != 3 {
		t.Fatalf("running plugins: %v", plugins)
	}
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for kind, pid := range plugins {
		harness.Eventually(t, kind+" is gone", func() bool { return !harness.Alive(pid) })
	}
}
