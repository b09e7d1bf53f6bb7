package step

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const (
	partitions = 6
	// recordsMax is when a topic is replaced: all of it is read after every kill.
	recordsMax = 20_000
	// deathsMax is how many plugins a server survives before it is started again: it waits ever longer before it starts
	// another one.
	deathsMax = 2
)

// served is a server that is killed, and what it was told.
type served struct {
	t      *testing.T
	s      *harness.Server
	fuse   fuse
	golden golden
	dice   *rand.Rand
	load   *harness.Load
	h      *harness.History
	kill   kill
	rounds int
	probes int
	deaths int // of plugins, since the server was started
	tally  struct{ acked, refused, unknown int }
	killed map[string]int
}

func runServed(t *testing.T, g golden, kills []kill, dice *rand.Rand) {
	v := &served{t: t, fuse: newFuse(t), golden: g, dice: dice, killed: map[string]int{}}
	v.s = harness.StartIn(t, []string{v.fuse.env()})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("killed by %q in round %d; the server said\n%s", v.kill, v.rounds, tail(v.s.Stderr()))
		}
	})
	for _, k := range kills {
		v.kill = k
		v.round()
		if t.Failed() {
			t.FailNow()
		}
	}
	v.count()
	t.Logf("%d kills of server and storage at named steps: %v; %d records acknowledged, %d refused, %d without an outcome",
		v.rounds, v.killed, v.tally.acked, v.tally.refused, v.tally.unknown)
}

// tail is the end of what a server said.
func tail(said string) string { return said[max(0, len(said)-6000):] }

// round kills once, and looks at what is left.
func (v *served) round() {
	v.t.Helper()
	if v.deaths > deathsMax {
		v.restart()
	}
	if v.h == nil || len(v.h.Acked) > recordsMax {
		v.renew()
	}
	v.rounds++
	v.killed[v.kill.dies()]++
	v.load = harness.StartLoad(v.t, v.s, v.h.Topic, harness.LoadOptions{Name: fmt.Sprintf("r%d.", v.rounds), Bytes: 200})
	v.load.WaitMore(20)
	var check func()
	switch v.kill.group() {
	case "append", "note", "roll", "spare", "seal", "checkpoint":
		v.fuse.light(v.kill)
	case "readopt":
		v.fuse.light(v.kill)
		v.killPlugin()
	case "open", "create", "delete", "move":
		check = v.makeAndDelete()
	case "adopt":
		check = v.adopt()
	case "recover", "cut":
		v.restartTorn()
	default:
		v.t.Fatalf("no test goes to the steps of %q", v.kill.group())
	}
	harness.Eventually(v.t, "it comes to "+v.kill.step, v.fuse.fired)
	if v.kill.dies() == "storage" {
		v.deaths++
		v.load.WaitMore(20)
	} else if v.kill.group() != "recover" && v.kill.group() != "cut" {
		v.s.Wait()
		v.restart()
	}
	v.h.Add(v.load.End())
	v.h.Check(v.t, v.s, partitions)
	v.takesRecords()
	if check != nil {
		check()
	}
}

// restart ends the server, whether it has ended or not, and starts it again.
func (v *served) restart() {
	v.t.Helper()
	v.s.Kill()
	v.s.Restart()
	v.deaths = 0
}

// renew takes another topic.
func (v *served) renew() {
	v.t.Helper()
	v.count()
	c := v.s.Dial()
	if v.h != nil {
		v.expect(c.Ask("TOPIC DELETE "+v.h.Topic), "+OK "+v.h.Topic)
	}
	v.h = harness.NewHistory(fmt.Sprintf("load-%d", v.rounds))
	v.expect(c.Ask(fmt.Sprintf("TOPIC CREATE %s partitions=%d segment.bytes=64KiB", v.h.Topic, partitions)), "+OK "+v.h.Topic)
}

func (v *served) count() {
	if v.h != nil {
		v.tally.acked += len(v.h.Acked)
		v.tally.refused += len(v.h.Refused)
		v.tally.unknown += v.h.Unknown
	}
}

func (v *served) expect(got, want string) {
	v.t.Helper()
	if got != want {
		v.t.Fatalf("killed by %q: answered %q, want %q", v.kill, got, want)
	}
}

// takesRecords publishes to every partition: none may be left behind out of order.
func (v *served) takesRecords() {
	v.t.Helper()
	c := v.s.Dial()
	for p := range partitions {
		harness.Eventually(v.t, fmt.Sprintf("partition %d takes records", p), func() bool {
			v.probes++ // a body stands for one record: of one without an outcome, there may be one
			body := fmt.Sprintf("record %d of probe%d", v.probes, p)
			fields := strings.Fields(c.Ask(fmt.Sprintf("SEND %s/%d %s", v.h.Topic, p, body)))
			if len(fields) != 3 || fields[0] != "+OK" || fields[2] != "disk" {
				return false
			}
			v.h.Acked[fields[1]] = body
			return true
		})
	}
}

func (v *served) killPlugin() {
	v.t.Helper()
	pid := 0
	harness.Eventually(v.t, "the storage plugin runs", func() bool { pid = v.s.Plugin("storage", "filelog"); return pid != 0 })
	_ = syscall.Kill(pid, syscall.SIGKILL) // it may have been killed by the fuse
	v.deaths++
}

// restartTorn kills the server, leaves behind what a write that was cut off would, and starts it again: then the kill
// is one in recovery.
func (v *served) restartTorn() {
	v.t.Helper()
	v.s.Kill()
	segments, err := filepath.Glob(filepath.Join(v.s.Data, "logs", v.h.Topic+"-0", "*.log"))
	if err != nil || len(segments) == 0 {
		v.t.Fatalf("segments of %s: %v, %v", v.h.Topic, segments, err)
	}
	f, err := os.OpenFile(slices.Max(segments), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		v.t.Fatal(err)
	}
	torn := make([]byte, 1+v.dice.IntN(300))
	for i := range torn {
		torn[i] = byte(v.dice.Uint32())
	}
	if _, err := f.Write(torn); err != nil {
		v.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		v.t.Fatal(err)
	}
	v.fuse.light(v.kill)
	v.deaths = 0
	err = v.s.Launch()
	if v.kill.dies() == "server" {
		if err == nil && !v.fuse.fired() {
			v.t.Fatalf("the server is ready, and has not come to %s", v.kill.step)
		}
		harness.Eventually(v.t, "it comes to "+v.kill.step, v.fuse.fired)
		v.s.Wait()
		v.restart()
	} else if err != nil {
		v.t.Fatal(err)
	}
	v.h.Add(v.load.End())
	v.load = harness.StartLoad(v.t, v.s, v.h.Topic, harness.LoadOptions{Name: fmt.Sprintf("r%d.torn.", v.rounds), Bytes: 200})
}

// ask sends a line; not ok: the server ended before it answered.
func ask(c *harness.Line, text string) (answer string, ok bool) {
	if _, err := c.Conn().Write([]byte(text + "\n")); err != nil {
		return "", false
	}
	answer, err := c.TryRead()
	return answer, err == nil
}

const side = "side"

// makeAndDelete creates and deletes a topic until it is killed. What is returned checks that the topic is what the
// answers said.
func (v *served) makeAndDelete() (check func()) {
	v.t.Helper()
	c := v.s.Dial()
	v.fuse.light(v.kill)
	// What is known of it: whether it is there, and what it holds.
	there, gone, body := false, true, ""
	for n := 0; !v.fuse.fired() && n < 100; n++ {
		there, gone, body = false, false, ""
		if answer, ok := ask(c, "TOPIC CREATE "+side+" partitions=2"); !ok || answer != "+OK "+side {
			break
		}
		there = true
		text := fmt.Sprintf("side %d", n)
		if answer, ok := ask(c, "SEND "+side+"/1 "+text); !ok || answer != "+OK "+side+"/1@0 disk" {
			break
		}
		body = text
		there = false // from here on it may be gone
		if answer, ok := ask(c, "TOPIC DELETE "+side); !ok || answer != "+OK "+side {
			break
		}
		gone = true
	}
	return func() { v.checkSide(there, gone, body) }
}

func (v *served) checkSide(there, gone bool, body string) {
	v.t.Helper()
	c := v.s.Dial()
	answer := v.s.Dial().Ask("TOPIC INFO " + side) // more follows, which nobody reads
	known := !strings.HasPrefix(answer, "-ERR UNKNOWN_TOPIC")
	if there && !known || gone && known {
		v.t.Errorf("after %q, created %v, deleted %v, the topic: %s", v.kill, there, gone, answer)
	}
	if known && body != "" {
		found := 0
		v.s.ReadAll(side+"/1", func(_, text string) {
			if text == body {
				found++
			}
		})
		if found != 1 {
			v.t.Errorf("after %q: %q is there %d times", v.kill, body, found)
		}
	}
	v.removeTopic(side)
	v.expect(c.Ask("TOPIC CREATE "+side), "+OK "+side) // under the same name, empty
	v.expect(c.Ask("SEND "+side+" x"), "+OK "+side+"/0@0 disk")
	v.removeTopic(side)
}

// removeTopic deletes a topic and waits until nothing is left of it on disk.
func (v *served) removeTopic(topic string) {
	v.t.Helper()
	c := v.s.Dial()
	harness.Eventually(v.t, topic+" is deleted", func() bool {
		answer := c.Ask("TOPIC DELETE " + topic)
		return answer == "+OK "+topic || strings.HasPrefix(answer, "-ERR UNKNOWN_TOPIC")
	})
	for _, left := range []string{"logs/" + topic + "-*", "trash/*", "tmp/*"} {
		harness.Eventually(v.t, left+" is empty", func() bool {
			names, err := filepath.Glob(filepath.Join(v.s.Data, left))
			return err == nil && len(names) == 0
		})
	}
}

// golden is a topic's directories, ready to be adopted.
type golden struct {
	topic string
	dir   string
	holds map[string]string // address to body
}

func newGolden(t *testing.T) golden {
	t.Helper()
	g := golden{topic: "adopted", dir: t.TempDir(), holds: map[string]string{}}
	s := harness.Start(t)
	c := s.Dial()
	if got := c.Ask("TOPIC CREATE " + g.topic + " partitions=2 segment.bytes=64KiB"); got != "+OK "+g.topic {
		t.Fatal(got)
	}
	for i := range 40 {
		body := fmt.Sprintf("record %d%s", i, strings.Repeat(".", 5000))
		fields := strings.Fields(c.Ask(fmt.Sprintf("SEND %s/%d %s", g.topic, i%2, body)))
		if len(fields) != 3 || fields[2] != "disk" {
			t.Fatal(fields)
		}
		g.holds[fields[1]] = body
	}
	if code := s.Term(); code != 0 {
		t.Fatal(code)
	}
	if err := os.CopyFS(g.dir, os.DirFS(filepath.Join(s.Data, "logs"))); err != nil {
		t.Fatal(err)
	}
	return g
}

// adopt adopts a topic and is killed over it. What is returned checks that all of it is there.
func (v *served) adopt() (check func()) {
	v.t.Helper()
	for p := range 2 {
		name := fmt.Sprintf("%s-%d", v.golden.topic, p)
		if err := os.CopyFS(filepath.Join(v.s.Data, "adopt", name), os.DirFS(filepath.Join(v.golden.dir, name))); err != nil {
			v.t.Fatal(err)
		}
	}
	v.fuse.light(v.kill)
	request := "TOPIC CREATE " + v.golden.topic + " adopt=true"
	answer, ok := ask(v.s.Dial(), request)
	return func() {
		v.t.Helper()
		c := v.s.Dial()
		harness.Eventually(v.t, "the topic is adopted", func() bool {
			again := c.Ask(request)
			return again == "+OK "+v.golden.topic || strings.HasPrefix(again, "-ERR TOPIC_EXISTS")
		})
		found := map[string]string{}
		for p := range 2 {
			v.s.ReadAll(fmt.Sprintf("%s/%d", v.golden.topic, p), func(addr, body string) { found[addr] = body })
		}
		if !maps.Equal(found, v.golden.holds) {
			v.t.Errorf("after %q, answered %q (%v): %d records of %d: %v", v.kill, answer, ok, len(found), len(v.golden.holds), found)
		}
		v.removeTopic(v.golden.topic)
	}
}
