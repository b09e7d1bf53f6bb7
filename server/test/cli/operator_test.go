package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// logged counts the log's records with a message.
func logged(s *harness.Server, message string) int {
	return strings.Count(s.Stderr(), fmt.Sprintf("%q:%q", "msg", message))
}

// TestHUPTakesAllOrNothingOver changes the configuration of a running server: well, with faults, and in what it cannot
// change.
func TestHUPTakesAllOrNothingOver(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "t.yaml")
	write(t, file, "log: {level: info}\n")
	s := harness.Start(t, "-c", file)
	reload := func(text, message string) {
		t.Helper()
		before := logged(s, message)
		write(t, file, text)
		if err := syscall.Kill(s.PID(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, message, func() bool { return logged(s, message) > before })
	}
	l := s.Dial()
	if got := l.Ask("SEND made x"); got != "+OK made/0@0 disk" {
		t.Fatal(got)
	}
	const reloaded, refused = "configuration reloaded", "configuration not reloaded, nothing was changed: it has faults"
	reload("topics: {auto_create: false}\nlimits: {subscriptions: 1}\nlog: {level: debug}\n", reloaded)
	for _, want := range []string{`"key":"topics.auto_create","old":"true","new":"false"`, `"key":"limits.subscriptions","old":"0","new":"1"`, `"key":"log.level","old":"info","new":"debug"`} {
		harness.Eventually(t, "the log has "+want, func() bool { return strings.Contains(s.Stderr(), want) })
	}
	if got := l.Ask("SEND other x"); !strings.HasPrefix(got, "-ERR UNKNOWN_TOPIC") {
		t.Errorf("a topic is made: %q", got)
	}
	if got := l.Ask("SUB a 1"); got != "+OK" {
		t.Error(got)
	}
	if got := l.Ask("SUB b 2"); !strings.HasPrefix(got, "-ERR LIMIT_EXCEEDED") {
		t.Errorf("a second subscription: %q", got)
	}
	_ = s.Dial().Conn().Close() // which is told to who wants to know everything
	harness.Eventually(t, "debug is logged", func() bool { return strings.Contains(s.Stderr(), `"level":"DEBUG"`) })

	reload("topics: {auto_create: true, auto_crate_max: 3}\nlog: {level: loud}\n", refused)
	for _, want := range []string{"t.yaml:1: unknown key topics.auto_crate_max; did you mean topics.auto_create_max?", "t.yaml:2: log.level "} {
		harness.Eventually(t, "the log has "+want, func() bool { return strings.Contains(s.Stderr(), want) })
	}
	if got := l.Ask("SEND other x"); !strings.HasPrefix(got, "-ERR UNKNOWN_TOPIC") {
		t.Errorf("half of a faulty file was taken over: %q", got)
	}

	reload("topics: {auto_create: true}\nlimits: {payload: 2MiB}\n", "configuration not reloaded, nothing was changed: these keys need a restart")
	if !strings.Contains(s.Stderr(), `"keys":"limits.payload"`) {
		t.Errorf("the log does not name the key:\n%s", s.Stderr())
	}
	if got := l.Ask("SEND other x"); !strings.HasPrefix(got, "-ERR UNKNOWN_TOPIC") {
		t.Errorf("half of a change was taken over: %q", got)
	}

	reload("topics: {auto_create: true}\n", reloaded)
	if got := l.Ask("SEND other x"); got != "+OK other/0@0 disk" {
		t.Error(got)
	}
}

// TestLogsAreJSONWithStableKeys reads every line that a server logs to what is no terminal.
func TestLogsAreJSONWithStableKeys(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	if code := s.Term(); code != 0 {
		t.Fatal(code)
	}
	lines := 0
	for line := range strings.Lines(s.Stderr()) {
		if strings.HasPrefix(line, "ready ") {
			continue
		}
		var record struct{ Time, Level, Msg string }
		if err := json.Unmarshal([]byte(line), &record); err != nil || record.Msg == "" || !slices.Contains([]string{"INFO", "WARN"}, record.Level) {
			t.Errorf("%q: %v", line, err)
		}
		if at, err := time.Parse("2006-01-02T15:04:05.000Z", record.Time); err != nil || time.Since(at).Abs() > time.Hour {
			t.Errorf("%q has the time %q", line, record.Time)
		}
		lines++
	}
	if lines < 3 {
		t.Errorf("%d lines:\n%s", lines, s.Stderr())
	}
}

// TestSecondServerSaysWhatItWaitsFor, in its log at once and to whoever asks over HTTP. It does not wait for its end, and begins
// anew where the second server has given up before it was asked.
func TestSecondServerSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	harness.Eventually(t, "the second server is asked while it waits", func() bool { return askedWhileItWaits(t, s) })
}

func askedWhileItWaits(t *testing.T, s *harness.Server) bool {
	t.Helper()
	second := exec.CommandContext(t.Context(), harness.Binary("trunkline-server"), "--data", s.Data, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
	out, err := second.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = second.Process.Kill()
		_ = second.Wait()
	}()
	first, err := bufio.NewReader(out).ReadString('\n')
	var said struct{ Msg, Holder, HTTP string }
	if err != nil || json.Unmarshal([]byte(first), &said) != nil || !strings.HasPrefix(said.Msg, "waiting for the data directory") || said.Holder != fmt.Sprintf("pid %d", s.PID()) {
		t.Fatalf("%v, it says %q", err, first)
	}
	for path, want := range map[string]string{
		"/livez":  "200 ok\n",
		"/readyz": fmt.Sprintf("503 waiting for the data directory %s: another server has it (pid %d)\n", s.Data, s.PID()),
	} {
		client := http.Client{Timeout: harness.Patience}
		answer, err := client.Get("http://" + said.HTTP + path)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return false // it has given up
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if got := fmt.Sprintf("%d %s", answer.StatusCode, text); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		return false
	}
	_ = second.Wait()
	return second.ProcessState.ExitCode() == 0 // it ended the wait
}

// TestALameDuckIsNotReady: whoever sends clients to it is to send them elsewhere.
func TestALameDuckIsNotReady(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "t.yaml")
	write(t, file, "limits: {lame_duck_grace: 1m, lame_duck_spread: 1m}\n")
	s := harness.Start(t, "-c", file)
	s.Dial() // it stays, and is waited for
	if err := syscall.Kill(s.PID(), syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	client := http.Client{Timeout: harness.Patience}
	harness.Eventually(t, "/readyz says so", func() bool {
		answer, err := client.Get("http://" + s.HTTP + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		return err == nil && answer.StatusCode == 503 && string(text) == "going down: clients are told to go elsewhere\n"
	})
	if code := s.Term(); code != 0 {
		t.Errorf("it ends with %d", code)
	}
}
