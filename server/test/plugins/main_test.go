// Package plugins tests plugins on the whole system: those of third parties, built with the SDK alone, those that break
// their contract, and what an operator does with any of them.
package plugins

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const root = "../../.."

// built is where the tests' plugins are.
const builtEnv = "TRUNKLINE_TEST_PLUGINS"

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "trunkline-plugins-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for _, args := range [][]string{
		{"build", "-C", root + "/plugins/sdk/examples", "-o", dir + "/", "./..."}, // a module of its own
		{"build", "-o", dir + "/", "./testdata/liar", "./testdata/keeper", "./testdata/counter", "./testdata/moody"},
	} {
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go %s: %v\n%s", strings.Join(args, " "), err, out)
			return 1
		}
	}
	if err := os.Setenv(builtEnv, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return harness.Main(m)
}

// built is a program that was built for the tests.
func built(name string) string { return filepath.Join(os.Getenv(builtEnv), name) }

// shelf is a plugin directory and what a configuration says of it.
type shelf struct {
	t      *testing.T
	dir    string
	file   string // the configuration
	rest   string // of the configuration
	named  []*entry
	byName map[string]*entry
}

// entry is a plugin of a shelf.
type entry struct {
	kind, name, path string
	sha256, config   string
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "plugins")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &shelf{t: t, dir: dir, file: filepath.Join(t.TempDir(), "trunkline.yaml"), byName: map[string]*entry{}}
}

// put copies a program onto the shelf.
func (s *shelf) put(kind, name, program, config string) *entry {
	s.t.Helper()
	text, err := os.ReadFile(program)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.putText(kind, name, string(text), config)
}

// putText puts a file with that text onto the shelf.
func (s *shelf) putText(kind, name, text, config string) *entry {
	s.t.Helper()
	e := &entry{kind: kind, name: name, path: filepath.Join(s.dir, "trunkline-plugin-"+kind+"-"+name), config: config}
	e.write(s.t, text)
	s.named = append(s.named, e)
	s.byName[name] = e
	return e
}

// write puts another file into the place of the one there is, and pins it.
func (e *entry) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(e.path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(e.path+".new", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(e.path+".new", e.path); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(text))
	e.sha256 = hex.EncodeToString(sum[:])
}

// save writes the configuration.
func (s *shelf) save() {
	s.t.Helper()
	var b strings.Builder
	b.WriteString(s.rest + "plugins:\n  dir: " + s.dir + "\n")
	kind := ""
	for _, e := range s.named {
		if e.kind != kind {
			kind = e.kind
			fmt.Fprintf(&b, "  %s:\n", kind)
		}
		fmt.Fprintf(&b, "    %s: {sha256: %s", e.name, e.sha256)
		if e.config != "" {
			fmt.Fprintf(&b, ", config: %s", e.config)
		}
		b.WriteString("}\n")
	}
	if err := os.WriteFile(s.file, []byte(b.String()), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// serve starts a server with what is on the shelf.
func (s *shelf) serve(args ...string) *harness.Server {
	s.t.Helper()
	s.save()
	return harness.Start(s.t, append([]string{"-c", s.file}, args...)...)
}

// told is what PLUGIN INFO says that these tests look at.
type told struct {
	Kind, Name, Version, State, SHA256, Path string
	PID, Restarts, Protocol                  int
	RSS                                      int64
	LastError                                string `json:"last_error"`
	LastErrorAt                              string `json:"last_error_at"`
	Since                                    string
	Shipped                                  bool
	Interpreter                              string `json:"unverified_interpreter"`
}

func info(t *testing.T, l *harness.Line, plugin string) told {
	t.Helper()
	if head := l.Ask("PLUGIN INFO " + plugin); !strings.HasPrefix(head, "DATA ") {
		t.Fatalf("PLUGIN INFO %s: %q", plugin, head)
	}
	var p told
	if err := json.Unmarshal([]byte(l.Read()), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func ask(t *testing.T, l *harness.Line, text, want string) {
	t.Helper()
	if got := l.Ask(text); got != want {
		t.Fatalf("%s: %q, want %q", text, got, want)
	}
}
