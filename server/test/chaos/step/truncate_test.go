package step

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// account is what has to be in a log, by the words of who wrote it. Each record is a batch of its own: the index is the
// offset.
type account struct {
	durable []string
	pending string // is being appended
	cutting int    // is being truncated to there; -1: not
	found   []string
}

// hear takes in a line.
func (a *account) hear(t *testing.T, line string) {
	t.Helper()
	what, rest, _ := strings.Cut(line, " ")
	switch what {
	case "a":
		a.pending = rest
	case "A":
		a.durable = append(a.durable, a.pending)
		a.pending = ""
	case "T":
		a.cutting, _ = strconv.Atoi(rest)
	case "D":
		a.durable, a.cutting = a.durable[:a.cutting], -1
	case "R":
		a.found = append(a.found, rest)
	case "READY":
		a.judge(t)
		a.durable, a.found, a.pending, a.cutting = a.found, nil, "", -1
	case "E":
	default:
		t.Errorf("it said %q", line)
	}
}

// judge compares what was found with what has to be there.
func (a *account) judge(t *testing.T) {
	t.Helper()
	least, may := len(a.durable), slices.Clone(a.durable)
	if a.pending != "" {
		may = append(may, a.pending)
	}
	if a.cutting >= 0 {
		least = min(least, a.cutting)
	}
	if len(a.found) < least || len(a.found) > len(may) || !slices.Equal(a.found, may[:len(a.found)]) {
		t.Errorf("found %d records %q\nof which %d had to be there, and these could: %q", len(a.found), a.found, least, may)
	}
}

// runTruncated kills a core that truncates its log, and its plugin.
func runTruncated(t *testing.T, kills []kill) {
	data, program, f := t.TempDir(), buildCore(t), newFuse(t)
	a, killed, epochs := &account{cutting: -1}, map[string]int{}, 0
	var c *core
	var now kill
	t.Cleanup(func() {
		if t.Failed() && c != nil {
			c.end()
			t.Logf("killed by %q; the core said\n%s", now, tail(c.stderr.String()))
		}
	})
	for _, k := range kills {
		now = k
		killed[k.dies()]++
		if c == nil {
			epochs += 1_000_000 // above what the one before came to
			c = startCore(t, a, f, exec.Command(program, data, harness.Binary("trunkline-server"), strconv.Itoa(epochs)))
		}
		c.waitMore("READY", 0)
		turns := c.said("D")
		f.light(k)
		harness.Eventually(t, "it comes to "+k.step, func() bool { return f.fired() || c.gone() })
		if k.dies() == "server" {
			harness.Eventually(t, "the core is gone", c.gone)
		} else {
			c.waitMore("D", turns+3)
		}
		if k.dies() == "server" || c.said("E") > deathsMax || c.gone() {
			c.end()
			c = nil
		}
		if !f.fired() {
			t.Errorf("it did not come to %s", k.step)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	if c == nil {
		c = startCore(t, a, f, exec.Command(program, data, harness.Binary("trunkline-server"), strconv.Itoa(epochs+1_000_000)))
	}
	c.waitMore("READY", 0)
	c.end()
	t.Logf("%d kills in truncation: %v", len(kills), killed)
}

func buildCore(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "core")
	args := []string{"build", "-tags", "failpoint", "-o", program}
	if harness.Race() {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "./testdata/core")...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// core is the running program of testdata/core.
type core struct {
	t      *testing.T
	cmd    *exec.Cmd
	reader sync.WaitGroup
	stderr strings.Builder // to be read when it has ended

	mu    sync.Mutex
	words map[string]int // how many lines begin with it
	over  bool
}

func startCore(t *testing.T, a *account, f fuse, cmd *exec.Cmd) *core {
	t.Helper()
	c := &core{t: t, cmd: cmd, words: map[string]int{}}
	c.cmd.Env = append(os.Environ(), f.env())
	c.cmd.Stderr = &c.stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.end)
	c.reader.Go(func() { c.listen(a, out) })
	return c
}

func (c *core) listen(a *account, out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		a.hear(c.t, lines.Text())
		what, _, _ := strings.Cut(lines.Text(), " ")
		c.mu.Lock()
		c.words[what]++
		c.mu.Unlock()
	}
	_ = c.cmd.Wait()
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
}

// said tells how many lines of a kind were heard.
func (c *core) said(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.words[what]
}

func (c *core) gone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.over
}

// waitMore waits for more than n lines of a kind; of who has ended there come no more.
func (c *core) waitMore(what string, n int) {
	c.t.Helper()
	harness.Eventually(c.t, "it says "+what, func() bool { return c.said(what) > n || c.gone() })
	if c.said(what) <= n {
		c.end()
		c.t.Fatalf("it ended and did not say %s:\n%s", what, tail(c.stderr.String()))
	}
}

// end kills it, if it runs, and hears the rest.
func (c *core) end() {
	_ = c.cmd.Process.Kill()
	c.reader.Wait()
	for _, bad := range []string{"DATA RACE", "\npanic: ", "fatal error: "} {
		if strings.Contains(c.stderr.String(), bad) {
			c.t.Errorf("it said %q:\n%s", bad, tail(c.stderr.String()))
		}
	}
}
