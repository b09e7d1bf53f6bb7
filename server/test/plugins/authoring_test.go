package plugins

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// page is where authors begin.
const page = root + "/plugins/AUTHORING.md"

var fence = regexp.MustCompile("(?ms)^```(\\w+)(?: ([^\n]*))?\n(.*?)^```$")

// author is somebody who follows the page in an empty directory.
type author struct {
	t   *testing.T
	dir string
	env []string
	wg  sync.WaitGroup
}

func TestThePageForAuthorsIsFollowedWordForWord(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	checkout, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	a := &author{t: t, dir: t.TempDir()}
	address := harness.FreeAddress(t)
	a.env = append(os.Environ(), "TRUNKLINE="+checkout, "PATH="+filepath.Dir(harness.Binary("trunkline"))+":"+os.Getenv("PATH"),
		"TRUNKLINE_URL="+address, "TRUNKLINE_LISTEN="+address, "TRUNKLINE_HTTP=-", "TRUNKLINE_DATA="+t.TempDir(), "GORACE=atexit_sleep_ms=0")
	commands := 0
	for _, m := range fence.FindAllStringSubmatch(string(text), -1) {
		kind, name, body := m[1], m[2], m[3]
		switch {
		case kind == "console":
			commands += a.follow(body)
		case name != "":
			if err := os.WriteFile(filepath.Join(a.dir, name), []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if commands < 12 {
		t.Errorf("the page has only %d commands", commands)
	}
}

func TestThePageForAuthorsShowsTheExample(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile(root + "/plugins/sdk/examples/prefix/main.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, append([]byte("```go main.go\n"), append(code, "```\n"...)...)) {
		t.Error("main.go of the page and plugins/sdk/examples/prefix differ")
	}
}

// follow types the commands of a block and compares what they print.
func (a *author) follow(block string) int {
	a.t.Helper()
	n := 0
	for _, step := range strings.Split("\n"+block, "\n$ ")[1:] {
		command, want, _ := strings.Cut(step, "\n")
		n++
		if background, ok := strings.CutSuffix(command, " &"); ok {
			a.start(background)
			continue
		}
		got := a.run(command)
		if want = strings.TrimSuffix(want, "\n"); !harness.Matches(want, strings.TrimSuffix(got, "\n")) && want != "" {
			a.t.Fatalf("$ %s\nprinted\n%s\nand the page says\n%s", command, got, want)
		}
	}
	return n
}

// run runs a command in a shell, and returns what it printed.
func (a *author) run(command string) string {
	a.t.Helper()
	cmd := exec.Command("bash", "-c", command)
	cmd.Dir, cmd.Env = a.dir, a.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		a.t.Fatalf("$ %s\n%v\n%s", command, err, out)
	}
	return string(out)
}

// start starts a server that ends with the test, and waits until it is ready.
func (a *author) start(command string) {
	a.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "bash", "-c", "exec "+command)
	cmd.Dir, cmd.Env = a.dir, a.env
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = harness.Patience
	said := &transcript{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		cancel()
		a.t.Fatal(err)
	}
	ended := make(chan struct{})
	a.wg.Go(func() {
		defer close(ended)
		_ = cmd.Wait()
	})
	a.t.Cleanup(func() {
		cancel()
		a.wg.Wait()
	})
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(harness.Patience); !strings.Contains(said.text(), "\nready "); {
		if strings.HasPrefix(said.text(), "ready ") {
			return
		}
		select {
		case <-tick.C:
		case <-ended:
			a.t.Fatalf("$ %s\nended:\n%s", command, said.text())
		case <-deadline:
			a.t.Fatalf("$ %s\nis not ready:\n%s", command, said.text())
		}
	}
}

// transcript is what a program has printed so far.
type transcript struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *transcript) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *transcript) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}
