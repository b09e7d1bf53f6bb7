package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// TestKilledProcessesLoseNothingAcknowledged kills server and plugins at random moments, one or all.
func TestKilledProcessesLoseNothingAcknowledged(t *testing.T) {
	r := dice(t)
	s := harness.Start(t)
	h := harness.NewHistory("load")
	create(t, s, h.Topic, "")
	kills, lives := map[string]int{}, 1
	var sum tally
	load := func() *harness.Load {
		return harness.StartLoad(t, s, h.Topic, harness.LoadOptions{Name: fmt.Sprintf("l%d.", lives), Bytes: 200})
	}
	kinds := []string{"server", "storage", "metadata", "partitioner", "all plugins"}
	l := load()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for end := time.Now().Add(*timeFlag); time.Now().Before(end) && !t.Failed(); {
		pause.Reset(time.Duration(r.IntN(300)) * time.Millisecond)
		<-pause.C
		kind := kinds[r.IntN(len(kinds))]
		kills[kind]++
		if kind != "server" {
			for running, pid := range s.Plugins() { // one that is not there is being started again
				if running == kind || kind == "all plugins" {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			continue
		}
		s.Kill()
		lost := l.End()
		sum.add(lost)
		h.Add(lost)
		s.Restart()
		h.Check(t, s, partitions)
		lives++
		if len(h.Acked) > 100_000 { // reading all of it would take the time
			if got := s.Dial().Ask("TOPIC DELETE " + h.Topic); got != "+OK "+h.Topic {
				t.Fatal(got)
			}
			h = harness.NewHistory(fmt.Sprintf("load-%d", lives))
			create(t, s, h.Topic, "")
		}
		l = load()
	}
	l.WaitMore(100)
	last := l.End()
	sum.add(last)
	h.Add(last)
	h.Check(t, s, partitions)
	var counts []string
	for _, kind := range slices.Sorted(maps.Keys(kills)) {
		counts = append(counts, fmt.Sprintf("%s %d", kind, kills[kind]))
	}
	t.Logf("SIGKILL for %s: %s; %s", *timeFlag, strings.Join(counts, ", "), sum)
}
