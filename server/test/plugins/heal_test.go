package plugins

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// sick is a server with a topic on a store that opens partitions as it is told.
type sick struct {
	t    *testing.T
	mood string // a file
	s    *harness.Server
	e    *entry
}

// newSick starts one with the topic "t" of two partitions and a record in each, and "other" on another store.
func newSick(t *testing.T) *sick {
	t.Helper()
	k := &sick{t: t, mood: filepath.Join(t.TempDir(), "mood")}
	shelf := newShelf(t)
	k.e = shelf.put("storage", "moody", built("moody"), fmt.Sprintf("{mood: %q}", k.mood))
	k.s = shelf.serve()
	l := k.s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=2 storage=moody", "+OK t")
	ask(t, l, "TOPIC CREATE other", "+OK other")
	ask(t, l, "SEND t/0 zero", "+OK t/0@0 disk")
	ask(t, l, "SEND t/1 one", "+OK t/1@0 disk")
	return k
}

func (k *sick) is(mood string) {
	k.t.Helper()
	if err := os.WriteFile(k.mood, []byte(mood), 0o600); err != nil {
		k.t.Fatal(err)
	}
}

// calls is how often partitions were asked for.
func (k *sick) calls() int {
	text, _ := os.ReadFile(k.mood + ".calls")
	return strings.Count(string(text), "\n")
}

// down waits until partition p of the topic is down for a reason that contains says, and checks what is told of it, and that the
// other topic is served.
func down(t *testing.T, s *harness.Server, topic string, p int, says string) {
	t.Helper()
	l := s.Dial()
	harness.Eventually(t, says, func() bool {
		got := l.Ask(fmt.Sprintf("SEND %s/%d x", topic, p))
		if strings.HasPrefix(got, "+OK") {
			t.Fatalf("published: %s", got)
		}
		return strings.HasPrefix(got, "-ERR STORAGE_UNAVAILABLE ") && strings.Contains(got, says)
	})
	if got := l.Ask(fmt.Sprintf("GET %s/%d", topic, p)); !strings.HasPrefix(got, "-ERR STORAGE_UNAVAILABLE ") {
		t.Errorf("GET: %s", got)
	}
	for _, command := range []string{"TOPIC INFO ", "METADATA "} {
		if got := stateOf(t, l, command+topic)[p]; got.State != "down" || got.Error != "STORAGE_UNAVAILABLE" || !strings.Contains(got.Reason, says) {
			t.Errorf("%s: %+v", command, got)
		}
	}
	if got := l.Ask("SEND other x"); !strings.HasPrefix(got, "+OK other/0@") {
		t.Errorf("another topic: %s", got)
	}
}

type partitionState struct{ State, Error, Reason string }

func stateOf(t *testing.T, l *harness.Line, command string) []partitionState {
	t.Helper()
	if head := l.Ask(command); !strings.HasPrefix(head, "DATA ") {
		t.Fatalf("%s: %s", command, head)
	}
	type topic struct{ Partitions []partitionState }
	var told struct {
		topic
		Topics []topic
	}
	if err := json.Unmarshal([]byte(l.Read()), &told); err != nil {
		t.Fatal(err)
	}
	if len(told.Topics) > 0 {
		return told.Topics[0].Partitions
	}
	return told.Partitions
}

// back waits until partition p is served, with the record that was written first.
func back(t *testing.T, s *harness.Server, topic string, p int, first string) {
	t.Helper()
	l := s.Dial()
	harness.Eventually(t, fmt.Sprintf("%s/%d is served", topic, p), func() bool {
		return strings.HasPrefix(l.Ask(fmt.Sprintf("SEND %s/%d again", topic, p)), fmt.Sprintf("+OK %s/%d@1 disk", topic, p))
	})
	l.Send(fmt.Sprintf("GET %s/%d 2\n", topic, p))
	head := l.Read()
	if !strings.HasPrefix(head, "MSG ") && !strings.HasPrefix(head, "DATA ") && !strings.Contains(head, "@0") {
		t.Errorf("GET: %s", head)
	}
	if got := l.Read(); got != first {
		t.Errorf("the first record is %q, not %q", got, first)
	}
	if got := stateOf(t, s.Dial(), "TOPIC INFO "+topic)[p]; got != (partitionState{}) {
		t.Errorf("TOPIC INFO: %+v", got)
	}
}

// complaints counts what the log says of partitions that are not served.
func complaints(s *harness.Server) int { return strings.Count(s.Stderr(), "partition is not served") }

func TestAPartitionThatWasRefusedIsOpenedAgain(t *testing.T) {
	t.Parallel()
	k := newSick(t)
	if code := k.s.Term(); code != 0 {
		t.Fatal(code)
	}
	k.is("error")
	k.s.Restart()
	before := complaints(k.s)
	down(t, k.s, "t", 0, "the moon is full")
	down(t, k.s, "t", 1, "the moon is full")
	// Whoever waits for it is told, and hears when it is back.
	waiting := k.s.Dial()
	if got := waiting.Ask("SUB t/0@earliest 1"); !strings.HasPrefix(got, "-ERR STORAGE_UNAVAILABLE ") {
		t.Errorf("SUB: %s", got)
	}
	calls := k.calls()
	harness.Eventually(t, "it is tried three times more", func() bool { return k.calls() >= calls+6 })
	if n := complaints(k.s) - before; n > 2 {
		t.Errorf("the log says %d times that two partitions are not served:\n%s", n, k.s.Stderr())
	}
	k.is("well")
	back(t, k.s, "t", 0, "zero")
	back(t, k.s, "t", 1, "one")
	calls = k.calls()
	ask(t, k.s.Dial(), "TOPIC ALTER t sync=interval:1s", "+OK t")
	ask(t, k.s.Dial(), "SEND t/1 more", "+OK t/1@2 page")
	k.s.Kill()
	k.is("error")
	k.s.Restart()
	down(t, k.s, "t", 1, "the moon is full")
	k.is("well")
	// At once, when its plugin is replaced.
	ask(t, k.s.Dial(), "PLUGIN RELOAD storage/moody", "+OK storage/moody")
	l := k.s.Dial()
	harness.Eventually(t, "t/1 goes on", func() bool { return strings.HasPrefix(l.Ask("SEND t/1 end"), "+OK t/1@3 ") })
}

func TestAStoreThatComesLateServes(t *testing.T) {
	t.Parallel()
	k := newSick(t)
	ask(t, k.s.Dial(), "TOPIC CREATE gone storage=moody", "+OK gone")
	if code := k.s.Term(); code != 0 {
		t.Fatal(code)
	}
	if err := os.Rename(k.e.path, k.e.path+".away"); err != nil {
		t.Fatal(err)
	}
	k.s.Restart()
	down(t, k.s, "t", 0, "there is no such executable")
	if got := k.s.Dial().Ask("PLUGIN RELOAD storage/moody"); !strings.HasPrefix(got, "-ERR PLUGIN_NOT_REPLACED ") {
		t.Errorf("PLUGIN RELOAD: %s", got)
	}
	ask(t, k.s.Dial(), "TOPIC DELETE gone", "+OK gone")
	if err := os.Rename(k.e.path+".away", k.e.path); err != nil {
		t.Fatal(err)
	}
	back(t, k.s, "t", 0, "zero")
	back(t, k.s, "t", 1, "one")
	harness.Eventually(t, "what was deleted meanwhile is removed", func() bool {
		_, err := os.Stat(filepath.Join(k.s.Data, "moody", "logs", "gone-0"))
		return os.IsNotExist(err)
	})
}

// TestDirectoriesThatArePutBackAreServed: what is missing is never made anew, and asked for seldom, until it is there.
func TestDirectoriesThatArePutBackAreServed(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=3", "+OK t")
	ask(t, l, "TOPIC CREATE other", "+OK other")
	for p, text := range []string{"zero", "one", "two"} {
		ask(t, l, fmt.Sprintf("SEND t/%d %s", p, text), fmt.Sprintf("+OK t/%d@0 disk", p))
	}
	l.Ask("TOPIC INFO t")
	var topic struct{ ID string }
	if err := json.Unmarshal([]byte(l.Read()), &topic); err != nil {
		t.Fatal(err)
	}
	if code := s.Term(); code != 0 {
		t.Fatal(code)
	}
	at := func(dir string, p int) string { return filepath.Join(s.Data, dir, fmt.Sprintf("t-%d", p)) }
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	aside := at("quarantine", 0) + "." + topic.ID
	away := filepath.Join(t.TempDir(), "t-1")
	newer := filepath.Join(at("logs", 2), "partition.metadata")
	metadata, err := os.ReadFile(newer)
	if err != nil {
		t.Fatal(err)
	}
	move(at("logs", 0), aside)
	move(at("logs", 1), away)
	if err := os.WriteFile(newer, []byte("version: 99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	for p, says := range []string{"QUARANTINED", "DATA_MISSING", "FORMAT"} {
		down(t, s, "t", p, says)
	}
	// An operator who restarts the plugin changes nothing of that.
	ask(t, s.Dial(), "PLUGIN RELOAD storage/filelog", "+OK storage/filelog")
	s.KillPlugin("storage", "filelog", syscall.SIGKILL)
	for p, says := range []string{"QUARANTINED", "DATA_MISSING", "FORMAT"} {
		down(t, s, "t", p, says)
	}
	for p := range 2 {
		if _, err := os.Stat(at("logs", p)); !os.IsNotExist(err) {
			t.Errorf("partition %d was made anew: %v", p, err)
		}
	}
	if n := complaints(s); n != 3 {
		t.Errorf("the log says %d times that three partitions are not served:\n%s", n, s.Stderr())
	}
	move(aside, at("logs", 0))
	move(away, at("logs", 1))
	if err := os.WriteFile(newer, metadata, 0o600); err != nil {
		t.Fatal(err)
	}
	for p, text := range []string{"zero", "one", "two"} {
		back(t, s, "t", p, text)
	}
}

func TestATopicIsDeletedWhileItsPartitionsAreTried(t *testing.T) {
	t.Parallel()
	for _, mood := range []string{"error", "hang"} {
		t.Run(mood, func(t *testing.T) {
			t.Parallel()
			k := newSick(t)
			if code := k.s.Term(); code != 0 {
				t.Fatal(code)
			}
			k.is("error")
			k.s.Restart()
			down(t, k.s, "t", 0, "the moon is full")
			calls := k.calls()
			k.is(mood)
			harness.Eventually(t, "it is tried again", func() bool { return k.calls() > calls })
			ask(t, k.s.Dial(), "TOPIC DELETE t", "+OK t")
			k.is("well")
			harness.Eventually(t, "its directories are gone", func() bool {
				dirs, err := filepath.Glob(filepath.Join(k.s.Data, "moody", "logs", "t-*"))
				return err == nil && len(dirs) == 0
			})
			l := k.s.Dial()
			ask(t, l, "TOPIC CREATE t partitions=2 storage=moody", "+OK t")
			ask(t, l, "SEND t/0 anew", "+OK t/0@0 disk")
			ask(t, l, "SEND t/1 anew", "+OK t/1@0 disk")
			calls = k.calls()
			k.s.Kill()
			k.s.Restart() // and nothing of the old one is left in metadata
			ask(t, k.s.Dial(), "SEND t/0 anew", "+OK t/0@1 disk")
		})
	}
}

func TestAServerEndsWhilePartitionsAreTried(t *testing.T) {
	t.Parallel()
	k := newSick(t)
	if code := k.s.Term(); code != 0 {
		t.Fatal(code)
	}
	k.is("error")
	k.s.Restart()
	down(t, k.s, "t", 0, "the moon is full")
	calls := k.calls()
	k.is("hang")
	harness.Eventually(t, "it is tried again", func() bool { return k.calls() > calls })
	if code := k.s.Term(); code != 0 {
		t.Errorf("it ends with %d:\n%s", code, k.s.Stderr())
	}
	k.is("well")
	k.s.Restart()
	back(t, k.s, "t", 0, "zero")
}

// TestALogThatHasNoAnswerInReadoptionComesBack: it takes no records meanwhile, keeps its lease, and needs nobody's help.
func TestALogThatHasNoAnswerInReadoptionComesBack(t *testing.T) {
	t.Parallel()
	k := newSick(t)
	l := k.s.Dial()
	calls, pid := k.calls(), info(t, l, "storage/moody").PID
	k.is("hang")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "a successor is asked", func() bool { return k.calls() >= calls+2 })
	if got := l.Ask("SEND t/0 meanwhile"); got != "+OK t/0@1 disk" {
		t.Errorf("a publish while the successor is asked: %s", got)
	}
	harness.Eventually(t, "they are given up", func() bool {
		now := stateOf(t, l, "TOPIC INFO t")
		return now[0].State == "down" && now[1].State == "down"
	})
	down(t, k.s, "t", 0, "did not answer in time")
	k.is("well")
	harness.Eventually(t, "t/0 goes on", func() bool { return strings.HasPrefix(l.Ask("SEND t/0 then"), "+OK t/0@2 disk") })
	harness.Eventually(t, "t/1 goes on", func() bool { return strings.HasPrefix(l.Ask("SEND t/1 then"), "+OK t/1@1 disk") })
	asked, err := os.ReadFile(k.mood + ".calls")
	if err != nil || strings.Count(string(asked), "recover") != 2 || strings.Count(string(asked), "adopt") < 4 {
		t.Errorf("the store was asked, %v:\n%s", err, asked)
	}
}
