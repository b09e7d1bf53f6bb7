package fault

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// segmentOf is the first segment of a topic's only partition.
func segmentOf(s *harness.Server, topic string) string {
	return filepath.Join(s.Data, "logs", topic+"-0", "00000000000000000000.log")
}

// lose takes the end of a segment away, as a disk does that forgets what was not synced.
func lose(t *testing.T, path string, bytes int64) {
	t.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, info.Size()-bytes)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fence makes the next append to a topic end in the unknown: its segment is not what its writer left.
func fence(t *testing.T, s *harness.Server, l *harness.Line, topic string, spoil func(path string)) {
	t.Helper()
	spoil(segmentOf(s, topic))
	if got := l.Ask("SEND " + topic + " spoilt"); !strings.HasPrefix(got, "-ERR STORAGE_UNKNOWN") {
		t.Fatalf("append to a spoilt segment: %q", got)
	}
}

// sendWhenRecovered sends until the directory takes records again, and returns the answer.
func sendWhenRecovered(t *testing.T, l *harness.Line, topic, text string) (answer string) {
	t.Helper()
	harness.Eventually(t, topic+" takes records again", func() bool {
		answer = l.Ask("SEND " + topic + " " + text)
		return strings.HasPrefix(answer, "+OK ")
	})
	return answer
}

func TestReaderBeyondTheRecoveredEndIsTold(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	if got := l.Ask("TOPIC CREATE lazy sync=never"); got != "+OK lazy" {
		t.Fatal(got)
	}
	const n = 10
	for i := range n {
		if got := l.Ask(fmt.Sprintf("SEND lazy record %d", i)); got != fmt.Sprintf("+OK lazy/0@%d page", i) {
			t.Fatal(got)
		}
	}
	sub, get, poll := s.Dial(), s.Dial(), s.Dial()
	sub.Send("SUB lazy/0@earliest 1\n")
	sub.Read()
	for i := range n {
		if got := sub.Read(); !strings.HasPrefix(got, fmt.Sprintf("MSG lazy/0@%d 1 ", i)) {
			t.Fatalf("record %d: %q", i, got)
		}
		sub.Read()
	}
	poll.Send(fmt.Sprintf("FETCH lazy/0@%d wait=5m\n", n))
	fence(t, s, l, "lazy", func(path string) { lose(t, path, 1) })
	answer := sendWhenRecovered(t, l, "lazy", "new")
	if answer != fmt.Sprintf("+OK lazy/0@%d page", n-1) {
		t.Fatalf("after the loss of one record: %q", answer)
	}
	if got := sub.Read(); !strings.HasPrefix(got, "-ERR ASYNC OFFSET_OUT_OF_RANGE 'SUB lazy") || !strings.Contains(got, "lazy/0@9 ends there") {
		t.Errorf("the subscription heard %q", got)
	}
	if got := sub.Read(); got != "MSG lazy/0@9 1 3" {
		t.Errorf("then %q", got)
	}
	if got := poll.Read(); !strings.HasPrefix(got, "PART lazy/0 ") || !strings.HasSuffix(got, " OFFSET_OUT_OF_RANGE") {
		t.Errorf("the poll heard %q", got)
	}
	if got := get.Ask("GET lazy/0@latest"); got != fmt.Sprintf("+OK lazy/0@%d", n) {
		t.Errorf("the end is %q", got)
	}
}

// TestHighWatermarkFallsWithoutAnotherCommit looks at it before anything else is written.
func TestHighWatermarkFallsWithoutAnotherCommit(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	l.Ask("TOPIC CREATE lazy sync=never")
	for i := range 4 {
		l.Ask(fmt.Sprintf("SEND lazy record %d", i))
	}
	fence(t, s, l, "lazy", func(path string) { lose(t, path, 1) })
	harness.Eventually(t, "the high watermark falls", func() bool { return l.Ask("GET lazy/0@latest") == "+OK lazy/0@3" })
	if got := l.Ask("GET lazy/0@4"); !strings.HasPrefix(got, "-ERR OFFSET_OUT_OF_RANGE") {
		t.Errorf("beyond it: %q", got)
	}
}

// spoil leaves bytes in a segment that its writer did not write.
func spoil(t *testing.T) func(path string) {
	return func(path string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString("not a batch")
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnOfflineDirectoryIsSaidAtOnce fails the directory twice, which gives it up.
func TestAnOfflineDirectoryIsSaidAtOnce(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	for _, topic := range []string{"a", "b", "c"} {
		l.Ask("SEND " + topic + " x")
	}
	fence(t, s, l, "a", spoil(t))
	sendWhenRecovered(t, l, "a", "y")
	fence(t, s, l, "b", spoil(t))
	harness.Eventually(t, "the directory is given up", func() bool { return strings.Contains(s.Stderr(), "offline") })
	if got := l.Ask("SEND c z"); !strings.HasPrefix(got, "-ERR STORAGE_UNAVAILABLE") {
		t.Errorf("a publish is answered %q", got)
	}
	if got := l.Ask("TOPIC CREATE d"); !strings.HasPrefix(got, "-ERR STORAGE_UNAVAILABLE") {
		t.Errorf("a creation is answered %q", got)
	}
	restartPlugin(t, s, "metadata") // and topics are compared with it
	if code := s.Term(); code != 0 {
		t.Errorf("exit code %d\n%s", code, s.Stderr())
	}
}

func restartPlugin(t *testing.T, s *harness.Server, kind string) {
	t.Helper()
	before := s.Plugins()[kind]
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, kind+" is back", func() bool {
		now := s.Plugins()[kind]
		return now != 0 && now != before
	})
}

// TestTermDoesNotWaitForAStoreThatDoesNotComeBack has a change of topics, and the comparison with metadata behind it,
// wait for a store that can no longer start.
func TestTermDoesNotWaitForAStoreThatDoesNotComeBack(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	l.Ask("SEND a x")
	if err := os.WriteFile(filepath.Join(s.Data, "logs", ".generation"), []byte("no number\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.Plugins()["storage"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.Send("TOPIC DELETE a\n")
	other := s.Dial()
	harness.Eventually(t, "the topic is gone", func() bool { return strings.HasPrefix(other.Ask("GET a"), "-ERR UNKNOWN_TOPIC") })
	restartPlugin(t, s, "metadata")
	// The comparison with metadata has no deadline of its own.
	if code := s.Term(); code != 0 {
		t.Errorf("exit code %d\n%s", code, s.Stderr())
	}
}
