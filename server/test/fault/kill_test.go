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
	l := startLoad(t, s, "load")
	for round := range 3 {
		for _, kind := range []string{"storage", "metadata", "partitioner"} {
			l.waitMore(500)
			pid := s.Plugins()[kind]
			if pid == 0 {
				t.Fatalf("no %s plugin is running", kind)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			l.waitMore(500)
			harness.Eventually(t, kind+" is back", func() bool { p := s.Plugins()[kind]; return p != 0 && p != pid })
			// What needs the plugin waits for it, and works.
			name := fmt.Sprintf("made-%d-%s", round, kind)
			if got := c.Ask("TOPIC CREATE " + name); got != "+OK "+name {
				t.Errorf("after %s was killed: %s", kind, got)
			}
		}
	}
	l.end()
	if l.failures > 0 || l.unknown > 0 {
		t.Errorf("%d publishes refused, %d without outcome; none of them needed a plugin", l.failures, l.unknown)
	}
	l.check(s, 6)
	s.Kill()
	s.Restart()
	l.check(s, 6)
}

func TestStoppedPluginIsReplacedWhileProducersGoOn(t *testing.T) {
	s := harness.Start(t)
	l := startLoad(t, s, "load")
	for _, kind := range []string{"storage", "metadata", "partitioner"} {
		l.waitMore(200)
		pid := s.Plugins()[kind]
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "hung "+kind+" is replaced", func() bool { p := s.Plugins()[kind]; return p != 0 && p != pid })
		l.waitMore(200)
	}
	l.end()
	if l.failures > 0 || l.unknown > 0 {
		t.Errorf("%d publishes refused, %d without outcome", l.failures, l.unknown)
	}
	l.check(s, 1)
}

func TestKilledServerLosesNothingAcknowledged(t *testing.T) {
	s := harness.Start(t)
	if got := s.Dial().Ask("TOPIC CREATE load partitions=3"); got != "+OK load" {
		t.Fatal(got)
	}
	for range 5 {
		l := startLoad(t, s, "load")
		l.waitMore(1000)
		s.Kill()
		l.end()
		s.Restart()
		l.checkAcked(s)
	}
}

// checkAcked is check for a topic that holds earlier loads too.
func (l *load) checkAcked(s *harness.Server) {
	l.t.Helper()
	found := 0
	for p := range 3 {
		readAll(s, fmt.Sprintf("%s/%d", l.topic, p), func(addr, text string) {
			if want, ok := l.acked[addr]; ok {
				found++
				if want != text {
					l.t.Errorf("%s holds %q, acknowledged was %q", addr, text, want)
				}
			}
		})
	}
	if found != len(l.acked) {
		l.t.Errorf("%d of %d acknowledged records are there", found, len(l.acked))
	}
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
