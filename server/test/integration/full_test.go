package integration

import (
	"fmt"
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
	s.Kill()
	s.Restart()
	l = s.Dial()
	ask(t, l, "SEND t more", fmt.Sprintf("+OK t/0@%d memory", acked+1))
}
