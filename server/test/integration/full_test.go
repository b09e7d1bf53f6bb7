package integration

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// TestFullDiskRefusesRecordsAndHealsByItself fills a real, small file system.
func TestFullDiskRefusesRecordsAndHealsByItself(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=24m"); err != nil {
		harness.Missing(t, "mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	s := harness.StartOn(t, filepath.Join(disk, "data"))
	l, reader := s.Dial(), s.Dial()
	ask(t, l, "TOPIC CREATE t", "+OK t")
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	body := strings.Repeat("x", 200_000)
	acked := 0
	for ; ; acked++ {
		got := l.Ask("SEND t " + body)
		if strings.HasPrefix(got, "-ERR STORAGE_FULL '") {
			break
		}
		if want := fmt.Sprintf("+OK t/0@%d memory", acked); got != want || acked > 200 {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	if got := l.Ask("SEND t small"); !strings.HasPrefix(got, "-ERR STORAGE_FULL '") {
		t.Errorf("while the disk is full: %q", got)
	}
	if code, text := get(t, s, "/readyz"); code != 503 || !strings.HasPrefix(text, "STORAGE_FULL: the disk of the store filelog is full: publishing is refused until there is room, reading goes on (") {
		t.Errorf("/readyz says %d, %q", code, text)
	}
	if code, text := get(t, s, "/livez"); code != 200 || text != "ok\n" {
		t.Errorf("/livez says %d, %q", code, text)
	}
	// Consumers and metadata go on.
	reader.Send("GET t/0@-1 1\n")
	if got := reader.Read(); got != fmt.Sprintf("MSG t/0@%d 0 200000", acked-1) {
		t.Errorf("reading: %.100q", got)
	}
	ask(t, l, "PING", "PONG")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "records are taken again", func() bool {
		return l.Ask("SEND t small") == fmt.Sprintf("+OK t/0@%d memory", acked)
	})
	if code, text := get(t, s, "/readyz"); code != 200 || text != "ok\n" {
		t.Errorf("with room again, /readyz says %d, %q", code, text)
	}
	s.Kill()
	s.Restart()
	l = s.Dial()
	ask(t, l, "SEND t more", fmt.Sprintf("+OK t/0@%d memory", acked+1))
}

// get asks the server over HTTP.
func get(t *testing.T, s *harness.Server, path string) (code int, text string) {
	t.Helper()
	client := http.Client{Timeout: harness.Patience}
	answer, err := client.Get("http://" + s.HTTP + path)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(b)
}
