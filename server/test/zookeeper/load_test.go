package zookeeper

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const loadPartitions = 3

// load publishes one record after another: enough to notice an outage, and little enough to be read back at once.
type load struct {
	t       *testing.T
	stop    atomic.Bool
	acked   atomic.Int64
	task    sync.WaitGroup
	history *harness.History // the task's until it ended
	failed  []string         // likewise
}

func startLoad(t *testing.T, s *harness.Server) *load {
	t.Helper()
	ask(t, s, fmt.Sprintf("TOPIC CREATE load partitions=%d", loadPartitions), "+OK load")
	l := &load{t: t, history: harness.NewHistory("load")}
	c := s.Dial()
	l.task.Go(func() {
		for n := 0; !l.stop.Load(); n++ {
			body := fmt.Sprintf("record %d of load", n)
			if _, err := c.Conn().Write([]byte("SEND load " + body + "\n")); err != nil {
				l.failed = append(l.failed, fmt.Sprintf("%s: %v", body, err))
				return
			}
			answer, err := c.TryRead()
			fields := strings.Fields(answer)
			if err != nil || len(fields) != 3 || fields[0] != "+OK" {
				l.failed = append(l.failed, fmt.Sprintf("%s: %q, %v", body, answer, err))
				return
			}
			l.history.Acked[fields[1]] = body
			l.acked.Add(1)
		}
	})
	t.Cleanup(func() { l.end() })
	l.more(20)
	return l
}

// more waits until n more records are acknowledged.
func (l *load) more(n int64) {
	l.t.Helper()
	goal := l.acked.Load() + n
	harness.Eventually(l.t, fmt.Sprintf("%d more records are acknowledged", n), func() bool { return l.acked.Load() >= goal })
}

func (l *load) end() {
	l.stop.Store(true)
	l.task.Wait()
}

// undisturbed ends the load, of which nothing may have been refused or lost.
func (l *load) undisturbed(s *harness.Server) {
	l.t.Helper()
	l.end()
	if len(l.failed) > 0 {
		l.t.Errorf("none of them needed ZooKeeper: %s", l.failed)
	}
	l.history.Check(l.t, s, loadPartitions)
	s.Kill()
	s.Restart()
	l.history.Check(l.t, s, loadPartitions)
	l.t.Log(l.history)
}
