package integration

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func ask(t *testing.T, l *harness.Line, text, want string) {
	t.Helper()
	if got := l.Ask(text); got != want {
		t.Fatalf("%s: %q, want %q", text, got, want)
	}
}

func TestAcksSayWhatWasReached(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t sync=never", "+OK t")
	ask(t, l, "SEND t a", "+OK t/0@0 page")
	ask(t, l, "TOPIC ALTER t sync=batch", "+OK t")
	ask(t, l, "SEND t b", "+OK t/0@1 disk")
	ask(t, l, "TOPIC ALTER t sync=interval:50ms message.bytes=1KiB", "+OK t")
	ask(t, l, "SEND t c", "+OK t/0@2 page")
	if got := l.Ask("SEND t " + strings.Repeat("x", 1025)); !strings.HasPrefix(got, "-ERR TOO_LARGE") {
		t.Errorf("got %.100q", got)
	}
	ask(t, l, "SEND t "+strings.Repeat("x", 1024), "+OK t/0@3 page")
	l.Send("TOPIC INFO t\n")
	l.Read()
	info := l.Read()
	for _, want := range []string{`"sync":"interval:50ms"`, `"message.bytes":1024`, `"retention.time":"7d"`, `"high_watermark":4`} {
		if !strings.Contains(info, want) {
			t.Errorf("INFO has no %s: %s", want, info)
		}
	}
	if code := s.Term(); code != 0 {
		t.Fatal(code)
	}
	s.Restart()
	l = s.Dial()
	ask(t, l, "SEND t d", "+OK t/0@4 page") // settings and records outlive the server
}

func TestAppendTimeOverridesTheClients(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t timestamps=append", "+OK t")
	block := "NATS/1.0\r\nTimestamp: 2001-01-01T00:00:00Z\r\n\r\n"
	l.Send(fmt.Sprintf("HPUB t %d %d\r\n%sx\r\n", len(block), len(block)+1, block))
	if got := l.Read(); got != "+OK t/0@0 disk" {
		t.Fatal(got)
	}
	ask(t, l, "GET t@1m 1", "MSG t/0@0 0 1")
}

func TestSmallSegmentsRollUnderTheirPlugin(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t segment.bytes=64KiB", "+OK t")
	body := strings.Repeat("x", 20000)
	for i := range 30 {
		ask(t, l, "SEND t "+body, fmt.Sprintf("+OK t/0@%d disk", i))
	}
	l.Send("TOPIC INFO t\n")
	l.Read()
	if info := l.Read(); !strings.Contains(info, `"segments":10`) {
		t.Errorf("INFO: %s", info)
	}
	s.Kill()
	s.Restart()
	l = s.Dial()
	ask(t, l, "SEND t more", "+OK t/0@30 disk")
	l.Send("GET t/0@29 2\n")
	if got := l.Read(); got != "MSG t/0@29 0 20000" {
		t.Error(got)
	}
}

func TestTopicsAreAlteredAndTrimmedByTheCommandLine(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t segment.bytes=64KiB", "+OK t")
	for i := range 20 {
		ask(t, l, "SEND t "+strings.Repeat("x", 10000), fmt.Sprintf("+OK t/0@%d disk", i))
	}
	run := func(want int, args ...string) string {
		t.Helper()
		cmd := exec.Command(harness.Binary("trunkline"), append([]string{"-s", s.Client}, args...)...)
		out, err := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Fatalf("%v: exit code %d (%v)\n%s", args, got, err, out)
		}
		return string(out)
	}
	if out := run(0, "topic", "alter", "t", "--set", "retention.time=1h"); !strings.Contains(out, "1h") {
		t.Error(out)
	}
	if out := run(0, "topic", "trim", "t/0@12"); !strings.HasPrefix(out, "t/0@12 ") {
		t.Error(out)
	}
	ask(t, l, "GET t/0@11 1", `-ERR OFFSET_OUT_OF_RANGE 't/0 holds offsets 12 to 20, not 11; read from one of these, or from @earliest or @latest'`)
	run(2, "topic", "alter", "t")
	run(5, "topic", "alter", "nothere", "--set", "sync=never")
	run(2, "topic", "alter", "t", "--set", "colour=red")
	run(1, "topic", "trim", "t/0@99")
	s.Kill()
	s.Restart()
	l = s.Dial()
	l.Send("GET t 1\n")
	if got := l.Read(); got != "MSG t/0@12 0 10000" {
		t.Error(got)
	}
}

func TestRetentionTakesOldSegments(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t segment.bytes=64KiB retention.time=1s", "+OK t")
	for i := range 20 {
		ask(t, l, "SEND t "+strings.Repeat("x", 10000), fmt.Sprintf("+OK t/0@%d disk", i))
	}
	harness.Eventually(t, "retention takes the sealed segments", func() bool {
		l.Send("GET t 1\n")
		got := l.Read()
		if strings.HasPrefix(got, "MSG") {
			l.Read()
			l.Read()
		}
		return got == "MSG t/0@18 0 10000"
	})
}
