package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// TestDirectoriesAreAdopted carries a topic's directories from one server to another.
func TestDirectoriesAreAdopted(t *testing.T) {
	from, to := harness.Start(t), harness.Start(t)
	l := from.Dial()
	ask(t, l, "TOPIC CREATE t partitions=2", "+OK t")
	ask(t, l, "SEND t/0 a", "+OK t/0@0 disk")
	ask(t, l, "SEND t/1 b", "+OK t/1@0 disk")
	if code := from.Term(); code != 0 {
		t.Fatal(code)
	}
	for _, dir := range []string{"t-0", "t-1"} {
		target := filepath.Join(to.Data, "adopt", dir)
		if err := os.CopyFS(target, os.DirFS(filepath.Join(from.Data, "logs", dir))); err != nil {
			t.Fatal(err)
		}
	}
	l = to.Dial()
	if got := l.Ask("TOPIC CREATE t adopt=true partitions=3"); !strings.HasPrefix(got, "-ERR BAD_SETTING") {
		t.Error(got)
	}
	ask(t, l, "TOPIC CREATE t adopt=true", "+OK t")
	l.Send("GET t\n")
	for _, want := range []string{"MSG t/0@0 0 1", "a", "MSG t/1@0 0 1", "b", "+OK t/0@1 t/1@1"} {
		if got := l.Read(); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	ask(t, l, "SEND t/1 c", "+OK t/1@1 disk")
	if got := l.Ask("TOPIC CREATE other adopt=true"); !strings.HasPrefix(got, "-ERR BAD_SETTING") || !strings.Contains(got, "adopt") {
		t.Error(got)
	}
	to.Kill()
	to.Restart()
	ask(t, to.Dial(), "SEND t/1 d", "+OK t/1@2 disk")
}
