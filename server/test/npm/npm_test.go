// Package npm drives a server with the NATS client of npm, unmodified: connect, publish, queue groups, requests, headers,
// acknowledgements, a restart of the server, and drain. The client is fetched once, at the version of package-lock.json.
package npm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

const (
	downloadPatience = 5 * time.Minute
	runPatience      = 3 * time.Minute
)

// modules returns a directory with the client and what it needs. It is filled under another name, so that it is whole when
// it is there; its name has the lock file's digest, so that another version is fetched anew.
func modules(t *testing.T) (string, error) {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", errors.New("npm is not installed; make test installs it")
	}
	lock, err := os.ReadFile("package-lock.json")
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "trunkline-test")
	into := filepath.Join(cache, fmt.Sprintf("npm-%x", sha256.Sum256(lock))[:20])
	if _, err := os.Stat(into); err == nil {
		return filepath.Join(into, "node_modules"), nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	fresh, err := os.MkdirTemp(cache, "fetching-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(fresh) }()
	for _, name := range []string{"package.json", "package-lock.json"} {
		b, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(fresh, name), b, 0o644)
		}
		if err != nil {
			return "", err
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), downloadPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = fresh
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm ci: %w\n%s", err, out)
	}
	if err := os.Rename(fresh, into); err != nil {
		if _, there := os.Stat(into); there != nil { // nobody else was faster
			return "", err
		}
	}
	return filepath.Join(into, "node_modules"), nil
}

// steps are what the program says, in this order.
func steps() []string {
	return []string{"connect", "queue group", "request and reply", "topics and headers", "JetStream publish", "reconnect", "drain"}
}

func TestTheClientOfNPMWorksUnmodified(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		harness.Missing(t, "node is not installed; make test installs it")
	}
	dir, err := modules(t)
	if err != nil {
		harness.Missing(t, "%v", err)
	}
	s := harness.Start(t, "--listen", harness.FreeAddress(t)) // one to be started on again
	ctx, cancel := context.WithTimeout(t.Context(), runPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, "client.cjs", s.Client)
	cmd.Env = append(os.Environ(), "NODE_PATH="+dir)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := follow(t, s, in, out)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v after %q\n%s\n%s", err, done, complaint.String(), s.Stderr())
	}
	if !slices.Equal(done, steps()) {
		t.Errorf("done is %q, want %q", done, steps())
	}
}

// follow reads what the program says until it ends, and restarts the server when it is asked to.
func follow(t *testing.T, s *harness.Server, in io.Writer, out io.Reader) (done []string) {
	t.Helper()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		step, ok := strings.CutPrefix(lines.Text(), "done ")
		switch {
		case ok:
			done = append(done, step)
		case lines.Text() == "restart":
			s.Kill()
			s.Restart()
			if _, err := fmt.Fprintln(in, "restarted"); err != nil {
				t.Error(err)
			}
		default:
			t.Errorf("the program says %q", lines.Text())
		}
	}
	return done
}
