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

// TestAWildcardSubscriptionTakesUpWhatHeals: of a topic that is down in part it delivers what can be read, and the rest from
// where it would have been.
func TestAWildcardSubscriptionTakesUpWhatHeals(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE shop.orders partitions=3", "+OK shop.orders")
	ask(t, l, "TOPIC CREATE shop.returns", "+OK shop.returns")
	ask(t, l, "SEND shop.orders/0 a", "+OK shop.orders/0@0 disk")
	for n, text := range []string{"one", "two", "three"} {
		ask(t, l, "SEND shop.orders/1 "+text, fmt.Sprintf("+OK shop.orders/1@%d disk", n))
	}
	if code := s.Term(); code != 0 {
		t.Fatal(code)
	}
	away := t.TempDir()
	for p := 1; p <= 2; p++ {
		dir := fmt.Sprintf("shop.orders-%d", p)
		if err := os.Rename(filepath.Join(s.Data, "logs", dir), filepath.Join(away, dir)); err != nil {
			t.Fatal(err)
		}
	}
	s.Restart()
	l = s.Dial()
	listeners := map[string]*harness.Line{}
	for _, position := range []string{"", "@latest", "@-2", "@earliest", "@1h", "@1"} {
		at := "shop.*/1" + position
		if position == "" {
			at = "shop.*" // of all partitions
		}
		c := s.Dial()
		ask(t, c, "SUB "+at+" 7", "+OK")
		listeners[position] = c
		got := c.Read()
		for position != "" && strings.HasPrefix(got, "-ERR ASYNC UNKNOWN_PARTITION ") { // of shop.returns
			got = c.Read()
		}
		if !strings.HasPrefix(got, "-ERR ASYNC STORAGE_UNAVAILABLE 'SUB "+at+": partition shop.orders/1 is not served: ") ||
			!strings.HasSuffix(got, "; the subscription takes it up when it is served again'") || strings.Contains(got, "(and 1 more of its topic)") != (position == "") {
			t.Errorf("%q is told %s", position, got)
		}
	}
	delivered := func(position, address, text string) {
		t.Helper()
		c := listeners[position]
		got := c.Read()
		for strings.HasPrefix(got, "-ERR ASYNC UNKNOWN_PARTITION ") {
			got = c.Read()
		}
		if want := fmt.Sprintf("MSG %s 7 %d", address, len(text)); got != want {
			t.Fatalf("%q: %s, want %s", position, got, want)
		}
		if got := c.Read(); got != text {
			t.Errorf("%q: %s is %q, want %q", position, address, got, text)
		}
	}
	ask(t, l, "SEND shop.orders/0 b", "+OK shop.orders/0@1 disk")
	delivered("", "shop.orders/0@1", "b")
	if err := os.Rename(filepath.Join(away, "shop.orders-1"), filepath.Join(s.Data, "logs", "shop.orders-1")); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "shop.orders/1 takes a record", func() bool { return l.Ask("SEND shop.orders/1 four") == "+OK shop.orders/1@3 disk" })
	for position, first := range map[string]int{"": 3, "@latest": 3, "@-2": 1, "@earliest": 0, "@1h": 0, "@1": 1} {
		for n, text := range []string{"one", "two", "three", "four"} {
			if n >= first {
				delivered(position, fmt.Sprintf("shop.orders/1@%d", n), text)
			}
		}
	}
	ask(t, l, "SEND shop.orders/0 c", "+OK shop.orders/0@2 disk")
	delivered("", "shop.orders/0@2", "c")
	ask(t, l, "SEND shop.orders/1 five", "+OK shop.orders/1@4 disk")
	delivered("@-2", "shop.orders/1@4", "five")
	ask(t, l, "TOPIC DELETE shop.orders", "+OK shop.orders") // while another partition is away
	if got := listeners["@earliest"].Read(); got != "MSG shop.orders/1@4 7 4" {
		t.Error(got)
	}
	listeners["@earliest"].Read()
	if got := listeners["@earliest"].Read(); !strings.HasPrefix(got, "-ERR ASYNC TOPIC_DELETED ") {
		t.Error(got)
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
	// Whoever subscribes by a wildcard hears of it when it is back.
	now, first := k.s.Dial(), k.s.Dial()
	for c, sub := range map[*harness.Line]string{now: "SUB */1 7", first: "SUB */1@earliest 7"} {
		ask(t, c, sub, "+OK")
		for told := false; !told; { // the other topic has no such partition
			told = strings.HasPrefix(c.Read(), "-ERR ASYNC STORAGE_UNAVAILABLE ")
		}
	}
	k.is("well")
	harness.Eventually(t, "t/0 goes on", func() bool { return strings.HasPrefix(l.Ask("SEND t/0 then"), "+OK t/0@2 disk") })
	harness.Eventually(t, "t/1 goes on", func() bool { return strings.HasPrefix(l.Ask("SEND t/1 then"), "+OK t/1@1 disk") })
	for c, want := range map[*harness.Line]string{now: "MSG t/1@1 7 4", first: "MSG t/1@0 7 3"} {
		got := c.Read()
		for strings.HasPrefix(got, "-ERR ASYNC UNKNOWN_PARTITION ") {
			got = c.Read()
		}
		if got != want {
			t.Errorf("delivered %s, want %s", got, want)
		}
	}
	asked, err := os.ReadFile(k.mood + ".calls")
	if err != nil || strings.Count(string(asked), "recover") != 2 || strings.Count(string(asked), "adopt") < 4 {
		t.Errorf("the store was asked, %v:\n%s", err, asked)
	}
}
