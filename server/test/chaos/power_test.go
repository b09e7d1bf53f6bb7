package chaos

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// roundsATopic bounds what is read after every loss.
const roundsATopic = 20

func TestPowerLossLosesNothingAcknowledged(t *testing.T) {
	for kind, rounds := range map[string]int{"ext4": (*roundsFlag*2 + 2) / 3, "xfs": *roundsFlag / 3} {
		t.Run(kind, func(t *testing.T) {
			d, r := newDisk(t, kind), dice(t)
			s := harness.StartOn(t, filepath.Join(d.at, "data"))
			var sum tally
			var h *harness.History
			for round := range rounds {
				if round%roundsATopic == 0 {
					if h != nil && s.Dial().Ask("TOPIC DELETE "+h.Topic) != "+OK "+h.Topic {
						t.Fatalf("%s cannot be deleted", h.Topic)
					}
					h = harness.NewHistory(fmt.Sprintf("load-%d", round))
					create(t, s, h.Topic, "")
				}
				sum.add(lose(t, s, d, fire{harness.LoadOptions{Name: fmt.Sprintf("r%d.", round), Bytes: 200}, 1 + r.IntN(recordsMax), h}))
				if h.Check(t, s, partitions); t.Failed() {
					t.Fatalf("in round %d", round)
				}
			}
			t.Logf("power loss on %s: %d rounds, %s", kind, rounds, sum)
		})
	}
}

// tally counts publishes by what came of them.
type tally struct{ acked, refused, unknown int }

func (s *tally) add(h *harness.History) {
	s.acked += len(h.Acked)
	s.refused += len(h.Refused)
	s.unknown += h.Unknown
}

func (s tally) String() string {
	return fmt.Sprintf("%d records acknowledged, %d refused, %d without an outcome", s.acked, s.refused, s.unknown)
}

// fire is a load, and how many of its records are acknowledged before the fault.
type fire struct {
	harness.LoadOptions
	records int
	history *harness.History // of the topic
}

// recordsMax bounds the records that are acknowledged before a fault.
const recordsMax = 2000

// lose takes the power away under a load, and starts the server again on what is left.
// What came of the load is returned, and added to the topic's history.
func lose(t *testing.T, s *harness.Server, d *disk, under fire) *harness.History {
	t.Helper()
	h := under.history
	l := harness.StartLoad(t, s, h.Topic, under.LoadOptions)
	l.WaitMore(under.records)
	probe := s.Dial()
	thaw := freeze(t, s)
	d.powerLoss()
	thaw()
	acknowledgesNothing(t, probe, h.Topic)
	s.Kill()
	lost := l.End()
	h.Add(lost)
	d.remount()
	s.Restart()
	return lost
}

// acknowledgesNothing publishes to a server whose disk is gone. What was under way may be answered first.
func acknowledgesNothing(t *testing.T, l *harness.Line, topic string) {
	t.Helper()
	for p := range partitions {
		got := l.Ask(fmt.Sprintf("SEND %s/%d probe", topic, p))
		if !strings.HasPrefix(got, "-ERR STORAGE_UNKNOWN") && !strings.HasPrefix(got, "-ERR STORAGE_UNAVAILABLE") {
			t.Errorf("without a disk, a publish is answered %q", got)
		}
	}
}

// TestPowerLossIsNoticed shows that the tests above would see a loss: without syncs there is one.
func TestPowerLossIsNoticed(t *testing.T) {
	d, r := newDisk(t, "ext4"), dice(t)
	s := harness.StartOn(t, filepath.Join(d.at, "data"))
	for round := range 20 {
		h := harness.NewHistory(fmt.Sprintf("load-%d", round))
		create(t, s, h.Topic, "sync=never")
		lose(t, s, d, fire{harness.LoadOptions{Ack: "page", Bytes: 200}, 1 + r.IntN(recordsMax), h})
		if f := h.Compare(t, s, partitions); len(f.Missing) > 0 {
			t.Logf("%d of %d records that were acknowledged without a sync are missing", len(f.Missing), len(h.Acked))
			return
		}
	}
	t.Error("nothing was ever missing")
}

func TestAbortedJournalAcknowledgesNothing(t *testing.T) {
	d, r := newDisk(t, "ext4"), dice(t)
	s := harness.StartOn(t, filepath.Join(d.at, "data"))
	h := harness.NewHistory("load")
	create(t, s, h.Topic, "")
	var sum tally
	rounds := max(3, *roundsFlag/20)
	for round := range rounds {
		l := harness.StartLoad(t, s, h.Topic, harness.LoadOptions{Name: fmt.Sprintf("r%d.", round), Bytes: 200})
		l.WaitMore(1 + r.IntN(recordsMax))
		probe := s.Dial()
		d.abortJournal() // under load: the canary has to catch the syncs that succeed for nothing
		acknowledgesNothing(t, probe, h.Topic)
		s.Kill()
		lost := l.End()
		sum.add(lost)
		h.Add(lost)
		d.remount()
		s.Restart()
		h.Check(t, s, partitions)
	}
	t.Logf("journal abort on ext4: %d rounds, %s", rounds, sum)
}
