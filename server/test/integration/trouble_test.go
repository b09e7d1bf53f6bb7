package integration

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// refused runs a server that must not start, and returns what it says.
func refused(t *testing.T, code int, args ...string) string {
	t.Helper()
	cmd := exec.Command(harness.Binary("trunkline-server"), args...)
	out, err := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d, want %d (%v)\n%s", got, code, err, out)
	}
	return string(out)
}

func wants(t *testing.T, out string, parts ...string) {
	t.Helper()
	last := strings.TrimSpace(out)
	last = last[strings.LastIndexByte(last, '\n')+1:]
	for _, p := range parts {
		if !strings.Contains(last, p) {
			t.Errorf("the last line does not mention %q:\n%s", p, out)
		}
	}
}

func TestPortInUseIsSaidInOneLine(t *testing.T) {
	s := harness.Start(t)
	out := refused(t, 1, "--data", t.TempDir(), "--listen", s.Client, "--http", "-")
	wants(t, out, s.Client, "in use", "--listen")
}

func TestLockedDirectoryNamesItsHolder(t *testing.T) {
	s := harness.Start(t)
	out := refused(t, 1, "--data", s.Data, "--listen", "127.0.0.1:0", "--http", "-")
	wants(t, out, s.Data, fmt.Sprintf("pid %d", s.PID()), "--data")
}

func TestNewerFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	props := filepath.Join(dir, "meta.properties")
	if err := os.WriteFile(props, []byte("format=2\ncluster.id=c\nbroker.id=1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := refused(t, 1, "--data", dir, "--listen", "127.0.0.1:0", "--http", "-")
	wants(t, out, "format 2", "newer version")
}

func TestOtherBrokersDirectoryIsRefused(t *testing.T) {
	s := harness.Start(t)
	if code := s.Term(); code != 0 {
		t.Fatal(code)
	}
	out := refused(t, 1, "--data", s.Data, "--listen", "127.0.0.1:0", "--http", "-", "--broker-id", "7")
	wants(t, out, "belongs to broker 1", "--broker-id 1")
}

// TestReadOnlyDirectoryIsRefused needs a real read-only mount: root is not stopped by modes.
func TestReadOnlyDirectoryIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		harness.Missing(t, "bind mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	out := refused(t, 1, "--data", dir, "--listen", "127.0.0.1:0", "--http", "-")
	wants(t, out, dir, "read-only", "--data")
}

func TestBadConfigurationIsUsage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("lisen: here\ntopics: {auto_create: maybe}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := refused(t, 2, "-c", file, "-t")
	for _, want := range []string{"lisen", "listen", "topics.auto_create"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not mentioned:\n%s", want, out)
		}
	}
	refused(t, 2, "--metadata", "zookeeper")
	refused(t, 2, "--frob")
	refused(t, 2, "frob")
	refused(t, 0, "-t")
	refused(t, 0, "--help")
}

func TestTermAnswersWhatIsQueuedAndExitsWithZero(t *testing.T) {
	s := harness.Start(t)
	busy, idle := s.Dial(), s.Dial()
	var b strings.Builder
	const n = 2000
	for i := range n {
		fmt.Fprintf(&b, "SEND t record %d\n", i)
	}
	busy.Send(b.String())
	busy.Read() // the first answer: the rest is being handled
	start := time.Now()
	if code := s.Term(); code != 0 {
		t.Errorf("exit code %d\n%s", code, s.Stderr())
	}
	if took := time.Since(start); took > time.Minute {
		t.Errorf("took %s", took)
	}
	acked := 1
	for {
		got, err := busy.TryRead()
		if err != nil {
			break
		}
		if strings.HasPrefix(got, "+OK t/0@") {
			acked++
		}
	}
	if got, err := idle.TryRead(); !strings.HasPrefix(got, "-ERR ASYNC SHUTTING_DOWN") {
		t.Errorf("idle connection heard %q, %v", got, err)
	}
	s.Restart()
	l := s.Dial()
	l.Send("GET t/0@latest\n")
	end := l.Read()
	var have int
	if _, err := fmt.Sscanf(end, "+OK t/0@%d", &have); err != nil || have < acked {
		t.Errorf("%d records acknowledged, log ends with %q", acked, end)
	}
}

func TestHealthIsToldOverHTTP(t *testing.T) {
	s := harness.Start(t)
	for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/": 404} {
		resp, err := http.Get("http://" + s.HTTP + path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s answers %d, want %d", path, resp.StatusCode, want)
		}
	}
}

func TestMissingDirectoryOfALiveTopicIsNotAnEmptyLog(t *testing.T) {
	s := harness.Start(t)
	s.Dial().Ask("SEND gone x")
	s.Dial().Ask("SEND here x")
	s.Kill()
	if err := os.RemoveAll(filepath.Join(s.Data, "logs", "gone-0")); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	l := s.Dial()
	if got := l.Ask("SEND gone y"); !strings.HasPrefix(got, "-ERR STORAGE_UNAVAILABLE") || !strings.Contains(got, "DATA_MISSING") {
		t.Errorf("got %q", got)
	}
	if got := l.Ask("SEND here y"); got != "+OK here/0@1 disk" {
		t.Errorf("got %q", got)
	}
}

func TestDeletedNameStartsAfresh(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	for i := range 20 {
		if got := l.Ask(fmt.Sprintf("SEND again round %d", i)); got != "+OK again/0@0 disk" {
			t.Fatalf("round %d: %q", i, got)
		}
		if got := l.Ask("TOPIC DELETE again"); got != "+OK again" {
			t.Fatal(got)
		}
	}
	if got := l.Ask("TOPIC CREATE a.b"); got != "+OK a.b" {
		t.Fatal(got)
	}
	if got := l.Ask("TOPIC CREATE a_b"); !strings.HasPrefix(got, "-ERR NAME_COLLISION") {
		t.Error(got)
	}
	if got := l.Ask("SEND a_b x"); !strings.HasPrefix(got, "-ERR NAME_COLLISION") {
		t.Error(got)
	}
}
