package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Step is a command as a person types it, and what it prints: standard output and standard error together.
type Step struct {
	Line    int // where it stands, from 1
	Command string
	Want    string // "…" stands for anything
	Code    string // the exit code; "" for any where none is named, "0" in scripts
}

// Steps reads a session at a console: a line of "$ " is a command, "> " goes on with it, the lines behind it are what it
// prints, and a line like "[3]" is the exit code that it ends with.
func Steps(t testing.TB, text string) []Step {
	t.Helper()
	var all []Step
	number := 0
	for row := range strings.Lines(text) {
		number++
		command, ok := strings.CutPrefix(row, "$ ")
		more, goesOn := strings.CutPrefix(row, "> ")
		switch {
		case ok:
			all = append(all, Step{Line: number, Command: strings.TrimSuffix(command, "\n")})
		case len(all) == 0:
			t.Fatalf("line %d, %q, is printed by no command", number, row)
		case goesOn && all[len(all)-1].Want == "":
			all[len(all)-1].Command += "\n" + strings.TrimSuffix(more, "\n")
		case codeLine.MatchString(row):
			all[len(all)-1].Code = codeLine.FindStringSubmatch(row)[1]
		default:
			all[len(all)-1].Want += row
		}
	}
	return all
}

var codeLine = regexp.MustCompile(`^\[(\d+)\]\n?$`)

// Matches compares what was printed with a pattern in which … stands for anything. Bytes that are no text count as one ?.
func Matches(pattern, got string) bool {
	pattern, got = strings.ToValidUTF8(pattern, "?"), strings.ToValidUTF8(got, "?")
	parts := strings.Split(pattern, "…")
	for i, p := range parts {
		parts[i] = regexp.QuoteMeta(p)
	}
	return regexp.MustCompile("(?s)^" + strings.Join(parts, ".*") + "$").MatchString(got)
}

// Ports turns the default addresses of a page into those of s.
func (s *Server) Ports() *strings.Replacer {
	s.t.Helper()
	_, client, err := net.SplitHostPort(s.Client)
	if err != nil {
		s.t.Fatal(err)
	}
	_, web, err := net.SplitHostPort(s.HTTP)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.NewReplacer("8765", client, "8766", web)
}

// Console is where commands are run: a directory of its own, with the binaries in the path and in bin.
type Console struct {
	Dir string
	env []string
}

// NewConsole returns a console whose commands speak to the server at url unless they say otherwise.
func NewConsole(t testing.TB, url string) *Console {
	t.Helper()
	dir, bin := t.TempDir(), filepath.Dir(Binary("trunkline"))
	if err := os.Symlink(bin, filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	return &Console{Dir: dir, env: append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), "TRUNKLINE_URL="+url,
		"XDG_CONFIG_HOME="+filepath.Join(dir, "config"),
		"GORACE=atexit_sleep_ms=0")} // binaries with the race detector otherwise wait a second before they end
}

// Set sets a variable of the environment.
func (c *Console) Set(name, value string) { c.env = append(c.env, name+"="+value) }

// Run runs a command in bash and returns what it printed and its exit code.
func (c *Console) Run(t testing.TB, command string) (out string, code string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", command)
	cmd.Dir, cmd.Env = c.Dir, c.env
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("%s: %v", command, err)
	}
	return string(b), fmt.Sprint(cmd.ProcessState.ExitCode())
}

// Play runs steps one after the other and reports what they print otherwise than they should.
func (c *Console) Play(t testing.TB, steps []Step, here *strings.Replacer) {
	t.Helper()
	for _, step := range steps {
		out, code := c.Run(t, here.Replace(step.Command))
		if want := here.Replace(step.Want); !Matches(want, out) || step.Code != "" && code != step.Code {
			t.Errorf("line %d: $ %s\n%s[%s]\nwant\n%s[%s]", step.Line, step.Command, out, code, want, step.Code)
		}
	}
}
