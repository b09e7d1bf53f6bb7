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
			h := harness.NewHistory("load")
			create(t, s, h.Topic, "")
			rounds := max(2, *roundsFlag/50)
			for round := range rounds {
				free := d.fill(6 << 20)
				l := harness.StartLoad(t, s, h.Topic, harness.LoadOptions{Name: fmt.Sprintf("r%d.", round), Bytes: 4000})
				harness.Eventually(t, "the disk is full", func() bool { return l.Refusals() > 0 })
				s.ReadAll(h.Topic+"/0", func(_, _ string) {}) // consumers go on
				c := s.Dial()
				if got := c.Ask("PING"); got != "PONG" {
					t.Errorf("ping on a full disk: %q", got)
				}
				free()
				harness.Eventually(t, "records are taken again", func() bool {
					return strings.HasPrefix(c.Ask(fmt.Sprintf("SEND %s record %d of healing%d", h.Topic, 0, round)), "+OK ")
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
				h.Check(t, s, partitions)
			}
			s.Kill()
			s.Restart()
			h.Check(t, s, partitions)
			t.Logf("full disk on %s: %d rounds, %s", kind, rounds, h)
		})
	}
}
