package fault

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const (
	fewDescriptors = 256
	wide           = 600 // partitions: more than twice what may be open
)

// TestManyPartitionsLiveOnFewDescriptors has more partitions than descriptors: all of them take records and are read,
// while a plugin and then the server are killed.
func TestManyPartitionsLiveOnFewDescriptors(t *testing.T) {
	s := harness.StartLimited(t, fewDescriptors)
	c := s.Dial()
	if got := c.Ask(fmt.Sprintf("TOPIC CREATE wide partitions=%d segment.bytes=64KiB", wide)); got != "+OK wide" {
		t.Fatal(got)
	}
	first := map[string]string{}
	var lines strings.Builder
	for p := range wide {
		fmt.Fprintf(&lines, "SEND wide/%d record 0 of first-%d\n", p, p)
		first[fmt.Sprintf("wide/%d@0", p)] = fmt.Sprintf("record 0 of first-%d", p)
	}
	c.Send(lines.String())
	for p := range wide {
		if got, want := c.Read(), fmt.Sprintf("+OK wide/%d@0 disk", p); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	fetchAll(t, s)

	l := harness.StartLoad(t, s, "wide", harness.LoadOptions{Bytes: 2000}) // so that segments are rolled
	l.WaitMore(500)
	pid := s.Plugins()["storage"]
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the storage plugin is back", func() bool { p := s.Plugins()["storage"]; return p != 0 && p != pid })
	l.WaitMore(500)
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h := l.End()
	s.Kill()
	if len(h.Refused) > 0 {
		t.Errorf("%s", h)
	}
	for addr, body := range first {
		h.Acked[addr] = body
	}
	s.Restart()
	h.Check(t, s, wide)
	fetchAll(t, s)
	c = s.Dial()
	if got := c.Ask("SEND wide/0 last"); !strings.HasPrefix(got, "+OK wide/0@") {
		t.Error(got)
	}
	if said := s.Stderr(); strings.Contains(said, "too many open files") {
		t.Errorf("the server said that it ran out of descriptors:\n%s", said)
	}
	t.Log(h)
}

// fetchAll asks for the first batch of every partition at once, and again for those of which none came: a server that
// cannot have all segments open serves some of them first.
func fetchAll(t *testing.T, s *harness.Server) {
	t.Helper()
	c := s.Dial()
	missing := map[string]bool{}
	for p := range wide {
		missing[fmt.Sprintf("wide/%d@0", p)] = true
	}
	for rounds := 0; len(missing) > 0; rounds++ {
		if rounds == wide {
			t.Fatalf("%d partitions are never served", len(missing))
		}
		var asked []string
		for addr := range missing {
			topic, rest, _ := strings.Cut(addr, "/")
			p, _, _ := strings.Cut(rest, "@")
			asked = append(asked, fmt.Sprintf(`{"topic":%q,"partition":%s,"offset":0}`, topic, p))
		}
		ask := fmt.Sprintf(`{"max":1048576,"partitions":[%s]}`, strings.Join(asked, ","))
		c.Send(fmt.Sprintf("FETCH %d\n%s\n", len(ask), ask))
		for {
			head := c.Read()
			if head == "+OK" {
				break
			}
			var addr string
			var hw, start, size int
			if _, err := fmt.Sscanf(head, "BATCH %s %d %d %d", &addr, &hw, &start, &size); err != nil {
				t.Fatalf("FETCH was answered %q", head)
			}
			c.ReadN(size)
			c.Read()
			delete(missing, addr)
		}
	}
}
