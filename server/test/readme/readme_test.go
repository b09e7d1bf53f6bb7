// Package readme runs what README.md shows: its commands in a shell, its Go program as a program, each on the real
// binaries. Its sessions by hand are replayed by the transcript package.
//
// In a console block a line of "$ " is a command, and the lines behind it are what it prints, standard output and
// standard error together; "…" stands for anything. The server's default ports are replaced by those of the test's. A YAML
// block is a file, trunkline.yaml, for the commands behind it.
package readme

import (
	"context"
	"encoding/json"
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

// pages are what people read first, with everything on them run.
var pages = []string{"README.md", "conf/README.md", "clients/FROM-KAFKA.md", "clients/FROM-NATS.md"}

// blocks returns the blocks of a page in order.
func blocks(t *testing.T, page string) []block {
	t.Helper()
	var all []block
	for _, m := range fence.FindAllStringSubmatch(read(t, page), -1) {
		all = append(all, block{m[1], m[2]})
	}
	return all
}

func TestEveryBlockIsOfAKindThatIsRun(t *testing.T) {
	for _, page := range pages {
		count := map[string]int{}
		for _, b := range blocks(t, page) {
			count[b.kind]++
			if !slices.Contains([]string{"console", "nc", "go", "text", "yaml"}, b.kind) {
				t.Errorf("%s: a block of kind %q:\n%s", page, b.kind, b.text)
			}
		}
		if page == "README.md" && (count["console"] < 2 || count["nc"] == 0 || count["go"] != 1) || count["console"] == 0 {
			t.Errorf("%s has %v", page, count)
		}
	}
}

// serverLine is a command that runs as long as the server does: what it starts is running.
var serverLine = regexp.MustCompile(`^(make run|bin/trunkline-server)\b`)

func TestCommands(t *testing.T) {
	for _, page := range pages {
		t.Run(page, func(t *testing.T) { t.Parallel(); playPage(t, page) })
	}
}

// playPage runs what a page shows, on a server of its own.
func playPage(t *testing.T, page string) {
	s := harness.Start(t)
	console, here := harness.NewConsole(t, s.Client), s.Ports()
	started := false
	for _, b := range blocks(t, page) {
		if b.kind == "yaml" { // as the file that the next commands name
			if err := os.WriteFile(filepath.Join(console.Dir, "trunkline.yaml"), []byte(b.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if b.kind != "console" {
			continue
		}
		for _, step := range harness.Steps(t, b.text) {
			if serverLine.MatchString(step.Command) && strings.Contains(step.Want, "ready client=") {
				started = true
				if want, got := here.Replace(step.Want), s.Stderr(); !harness.Matches(want, got) {
					t.Errorf("the server says\n%swant\n%s", got, want)
				}
				continue
			}
			console.Play(t, []harness.Step{step}, here)
		}
	}
	if page == "README.md" && !started {
		t.Error("the page does not say how to start")
	}
}

// exampleAsProgram turns the example of the Go client's documentation into the program that the page shows.
func exampleAsProgram(t *testing.T) string {
	t.Helper()
	return strings.NewReplacer("package trunkline_test\n", "package main\n", "func Example() {\n", "func main() {\n").
		Replace(read(t, "clients/go/example_test.go"))
}

func TestTheGoProgramRuns(t *testing.T) {
	all := blocks(t, "README.md")
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
		"test":  {"TRUNKLINE_TEST_REQUIRE=1", "go test -race -count=1 -timeout 30m ./..."},
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

func TestPathsOnThePagesExist(t *testing.T) {
	found := 0
	var text strings.Builder
	for _, name := range pages {
		text.WriteString(fence.ReplaceAllString(read(t, name), ""))
	}
	page := text.String()
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
