package chaos

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestFullDiskRefusesWithCertaintyAndHeals(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			d := newDisk(t, kind)
			s := harness.StartOn(t, filepath.Join(d.at, "data"))
			rounds := max(2, *roundsFlag/50)
			var sum tally
			for round := range rounds {
				h := harness.NewHistory(fmt.Sprintf("load-%d", round)) // one topic for all would fill the disk by itself
				create(t, s, h.Topic, "")
				fillUnder(t, s, d, h)
				h.Check(t, s, partitions)
				s.Kill()
				s.Restart()
				h.Check(t, s, partitions)
				if got := s.Dial().Ask("TOPIC DELETE " + h.Topic); t.Failed() || got != "+OK "+h.Topic {
					t.Fatalf("in round %d; the topic's end: %s", round, got)
				}
				sum.add(h)
			}
			t.Logf("full disk on %s: %d rounds, each with a SIGKILL, %s", kind, rounds, sum)
		})
	}
}

// fillUnder fills the disk under a load, makes room again, and waits until records are taken. What came of the load is
// added to the topic's history.
func fillUnder(t *testing.T, s *harness.Server, d *disk, h *harness.History) {
	t.Helper()
	free := d.fill(6 << 20)
	l := harness.StartLoad(t, s, h.Topic, harness.LoadOptions{Name: h.Topic + ".", Bytes: 4000})
	harness.Eventually(t, "the disk is full", func() bool { return l.Refusals() > 0 })
	s.ReadAll(h.Topic+"/0", func(_, _ string) {}) // consumers go on
	c := s.Dial()
	if got := c.Ask("PING"); got != "PONG" {
		t.Errorf("ping on a full disk: %q", got)
	}
	free()
	harness.Eventually(t, "records are taken again", func() bool {
		return strings.HasPrefix(c.Ask("SEND "+h.Topic+" record 0 of healing"), "+OK ")
	})
	l.WaitMore(500)
	h.Add(l.End())
	if h.Unknown > 0 {
		t.Errorf("%d publishes without an outcome; a full disk is a certain failure", h.Unknown)
	}
	for body, answer := range h.Refused {
		if !strings.HasPrefix(answer, "-ERR STORAGE_FULL") {
			t.Errorf("%s was refused with %q", body, answer)
		}
	}
}
