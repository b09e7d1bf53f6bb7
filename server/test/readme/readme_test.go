// Package readme runs what README.md shows: its commands in a shell, its Go program as a program, each on the real
// binaries. Its sessions by hand are replayed by the transcript package.
//
// In a console block a line of "$ " is a command, and the lines behind it are what it prints, standard output and
// standard error together; "…" stands for anything. The server's default ports are replaced by those of the test's.
package readme

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

const root = "../../.."

// quickExit is for programs built with the race detector, which otherwise wait a second before they end.
const quickExit = "GORACE=atexit_sleep_ms=0"

// block is a fenced piece of the page.
type block struct{ kind, text string }

var fence = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// blocks returns the page's blocks in order.
func blocks(t *testing.T) []block {
	t.Helper()
	var all []block
	for _, m := range fence.FindAllStringSubmatch(read(t, "README.md"), -1) {
		all = append(all, block{m[1], m[2]})
	}
	return all
}

// step is a command and what it prints.
type step struct{ command, want string }

func steps(t *testing.T, text string) []step {
	t.Helper()
	var all []step
	for row := range strings.Lines(text) {
		command, ok := strings.CutPrefix(row, "$ ")
		switch {
		case ok:
			all = append(all, step{command: strings.TrimSuffix(command, "\n")})
		case len(all) == 0:
			t.Fatalf("the block begins with %q, which no command has printed", row)
		default:
			all[len(all)-1].want += row
		}
	}
	return all
}

// matches compares what was printed with a pattern in which … stands for anything.
func matches(pattern, got string) bool {
	parts := strings.Split(pattern, "…")
	for i, p := range parts {
		parts[i] = regexp.QuoteMeta(p)
	}
	return regexp.MustCompile("(?s)^" + strings.Join(parts, ".*") + "$").MatchString(got)
}

// ports turns the default addresses of the page into those of s.
func ports(t *testing.T, s *harness.Server) *strings.Replacer {
	t.Helper()
	_, client, err := net.SplitHostPort(s.Client)
	if err != nil {
		t.Fatal(err)
	}
	_, web, err := net.SplitHostPort(s.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer("8765", client, "8766", web)
}

// checkout is a directory that looks as the repository does after make build.
func checkout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(filepath.Dir(harness.Binary("trunkline")), filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestEveryBlockIsOfAKindThatIsRun(t *testing.T) {
	count := map[string]int{}
	for _, b := range blocks(t) {
		count[b.kind]++
		if !slices.Contains([]string{"console", "nc", "go", "text"}, b.kind) {
			t.Errorf("a block of kind %q:\n%s", b.kind, b.text)
		}
	}
	if count["console"] < 2 || count["nc"] == 0 || count["go"] != 1 {
		t.Errorf("the page has %v", count)
	}
}

func TestCommands(t *testing.T) {
	s := harness.Start(t)
	dir, here := checkout(t), ports(t, s)
	run, started := 0, false
	for _, b := range blocks(t) {
		if b.kind != "console" {
			continue
		}
		for _, c := range steps(t, b.text) {
			if c.command == "make run" { // its recipe is another test's; what it starts is running
				started = true
				if got := s.Stderr(); !matches(here.Replace(c.want), got) {
					t.Errorf("the server says\n%swant\n%s", got, here.Replace(c.want))
				}
				continue
			}
			cmd := exec.CommandContext(t.Context(), "sh", "-c", here.Replace(c.command))
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "TRUNKLINE_URL="+s.Client, quickExit)
			out, _ := cmd.CombinedOutput() // a code that matters is printed
			if !matches(here.Replace(c.want), string(out)) {
				t.Errorf("$ %s\n%swant\n%s", c.command, out, c.want)
			}
			run++
		}
	}
	if run == 0 || !started {
		t.Errorf("%d commands run, make run shown: %t", run, started)
	}
}

// exampleAsProgram turns the example of the Go client's documentation into the program that the page shows.
func exampleAsProgram(t *testing.T) string {
	t.Helper()
	return strings.NewReplacer("package trunkline_test\n", "package main\n", "func Example() {\n", "func main() {\n").
		Replace(read(t, "clients/go/example_test.go"))
}

func TestTheGoProgramRuns(t *testing.T) {
	all := blocks(t)
	at := slices.IndexFunc(all, func(b block) bool { return b.kind == "go" })
	if at < 0 || at+1 >= len(all) || all[at+1].kind != "text" {
		t.Fatal("the page has no Go program with what it prints behind it")
	}
	if all[at].text != exampleAsProgram(t) {
		t.Error("it is not the example in clients/go/example_test.go")
	}
	s := harness.Start(t)
	cmd := exec.CommandContext(t.Context(), build(t, all[at].text))
	cmd.Env = append(os.Environ(), "TRUNKLINE_URL="+s.Client, quickExit)
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != all[at+1].text {
		t.Errorf("%v\n%swant\n%s", err, out, all[at+1].text)
	}
}

// build compiles a program as if it lay in the module, and returns the binary's path.
func build(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	source, list, binary := filepath.Join(dir, "main.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "program")
	home, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(home, "clients", "shown", "main.go"): source}})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{source: []byte(program), list: overlay} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-overlay", list, "-o", binary, "./clients/shown")
	cmd.Dir = home
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// TestMakeHasWhatThePageNames asks make what it would do, without doing it.
func TestMakeHasWhatThePageNames(t *testing.T) {
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("make ([a-z]+)`|\\$ make ([a-z]+)").FindAllStringSubmatch(read(t, "README.md"), -1) {
		named[m[1]+m[2]] = true
	}
	for target, wants := range map[string][]string{
		"build": {"go build", "-o bin/trunkline-server ./server", "-o bin/trunkline ./clients/cli"},
		"run":   {"-o bin/trunkline-server ./server", "exec bin/trunkline-server"},
		"test":  {"TRUNKLINE_TEST_REQUIRE=1", "go test -race -count=1 ./..."},
	} {
		if !named[target] {
			t.Errorf("make %s is not on the page", target)
		}
		delete(named, target)
		recipe := dry(t, target)
		for _, want := range wants {
			if !strings.Contains(recipe, want) {
				t.Errorf("make %s does not do %q:\n%s", target, want, recipe)
			}
		}
	}
	for target := range named {
		dry(t, target)
	}
}

// dry returns the recipe of a target.
func dry(t *testing.T, target string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "make", "-n", target)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make -n %s: %v\n%s", target, err, out)
	}
	return string(out)
}

// TestTheVerbsOnThePageAreOffered asks the server about each.
func TestTheVerbsOnThePageAreOffered(t *testing.T) {
	list := regexp.MustCompile("(?m)^\\* the verbs `([^`]+)`").FindStringSubmatch(read(t, "README.md"))
	if list == nil {
		t.Fatal("the page lists no verbs")
	}
	l := harness.Start(t).Dial()
	for _, verb := range strings.Fields(list[1]) {
		verb, subs, _ := strings.Cut(verb, "|")
		if subs != "" { // of the verb before
			continue
		}
		if got := l.Ask("HELP " + verb); !strings.HasPrefix(got, "DATA ") {
			t.Errorf("%s: %s", verb, got)
			continue
		}
		for l.Read() != "" {
		}
	}
}

func TestPathsOnThePageExist(t *testing.T) {
	page := fence.ReplaceAllString(read(t, "README.md"), "")
	found := 0
	for _, m := range regexp.MustCompile("`((?:conf|server|plugins|protocol|clients)/[A-Za-z0-9_./-]*|LICENSE)`").FindAllStringSubmatch(page, -1) {
		found++
		if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
			t.Error(err)
		}
	}
	if found == 0 {
		t.Error("no paths found: the search is wrong")
	}
}
