package plugins

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// client runs the client in a directory and returns what it printed and its exit code.
func client(t *testing.T, dir string, args ...string) (out string, code int) {
	t.Helper()
	cmd := exec.Command(harness.Binary("trunkline"), args...)
	cmd.Dir = dir
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// TestANewPluginPassesItsSuite begins a plugin of each kind and does what its README says: it is built against this
// checkout, runs the conformance suite, and is installed.
func TestANewPluginPassesItsSuite(t *testing.T) {
	checkout, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"partitioner", "storage"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			a := &author{t: t, dir: filepath.Join(t.TempDir(), "begun")}
			a.env = append(os.Environ(), "PATH="+filepath.Dir(harness.Binary("trunkline"))+":"+os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0")
			if out, code := client(t, filepath.Dir(a.dir), "plugin", "new", kind, "mine", "--dir", "begun", "--checkout", checkout); code != 0 {
				t.Fatalf("[%d] %s", code, out)
			}
			text, err := os.ReadFile(filepath.Join(a.dir, "README.md"))
			if err != nil {
				t.Fatal(err)
			}
			commands := 0
			for _, m := range fence.FindAllStringSubmatch(string(text), -1) {
				commands += a.follow(m[3])
			}
			if commands < 5 {
				t.Errorf("the README has only %d commands", commands)
			}
			if out, code := client(t, filepath.Dir(a.dir), "plugin", "new", kind, "mine", "--dir", "begun"); code != 1 || !strings.Contains(out, "is not empty") {
				t.Errorf("a second time: [%d] %s", code, out)
			}
		})
	}
}

// TestANewPluginIsTheExample compares what is written with the examples, which are tested by themselves.
func TestANewPluginIsTheExample(t *testing.T) {
	for kind, name := range map[string]string{"partitioner": "prefix", "storage": "onefile"} {
		dir := t.TempDir()
		out, code := client(t, dir, "plugin", "new", kind, name, "--json")
		var said struct {
			Dir   string
			Files []string
		}
		if err := json.Unmarshal([]byte(out), &said); err != nil || code != 0 || said.Dir != "trunkline-plugin-"+kind+"-"+name {
			t.Fatalf("[%d] %s: %v", code, out, err)
		}
		example := filepath.Join(root, "plugins", "sdk", "examples", name)
		entries, err := os.ReadDir(example)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"go.mod", "README.md"}
		for _, e := range entries {
			text, err := os.ReadFile(filepath.Join(example, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(filepath.Join(dir, said.Dir, e.Name())); err != nil || !bytes.Equal(got, text) {
				t.Errorf("clients/cli/skeleton/%s/%s.txt differs from %s: %v", kind, e.Name(), filepath.Join(example, e.Name()), err)
			}
			want = append(want, e.Name())
		}
		slices.Sort(want)
		slices.Sort(said.Files)
		if !slices.Equal(want, said.Files) {
			t.Errorf("%s has %q, the example %q", kind, said.Files, want)
		}
	}
}

func TestWhatCannotBeBegunIsRefused(t *testing.T) {
	for args, want := range map[string]string{
		"metadata mine": "there is a skeleton of a partitioner and of storage, not of", "partitioner Mine": "small letters", "partitioner ../mine": "small letters",
		"partitioner -mine": "--help", "storage": "1 arguments",
	} {
		dir := t.TempDir()
		out, code := client(t, dir, append([]string{"plugin", "new"}, strings.Fields(args)...)...)
		if entries, err := os.ReadDir(dir); code != 2 || !strings.Contains(out, want) || err != nil || len(entries) > 0 {
			t.Errorf("%s: [%d] %s, and %d files, %v", args, code, out, len(entries), err)
		}
	}
	if out, code := client(t, t.TempDir(), "plugin", "new", "storage", "mine", "--checkout", "."); code != 1 || !strings.Contains(out, "is no source of Trunkline") {
		t.Errorf("[%d] %s", code, out)
	}
}

// installed is what plugin install prints as JSON.
type installed struct{ Kind, Name, Version, Path, SHA256, Replaces string }

func install(t *testing.T, args ...string) installed {
	t.Helper()
	out, code := client(t, t.TempDir(), append(append([]string{"plugin", "install"}, args...), "--json")...)
	var i installed
	if err := json.Unmarshal([]byte(out), &i); err != nil || code != 0 {
		t.Fatalf("[%d] %s: %v", code, out, err)
	}
	return i
}

// TestAnInstalledPluginIsWhatTheServerStarts installs a plugin, and another file in its place while the server runs.
func TestAnInstalledPluginIsWhatTheServerStarts(t *testing.T) {
	shelf := newShelf(t)
	i := install(t, built("prefix"), "--kind", "partitioner", "--name", "prefix", "--dir", shelf.dir)
	e := &entry{kind: "partitioner", name: "prefix", path: i.Path, sha256: i.SHA256}
	if i.Version != "1.0.0" || i.Kind != "partitioner" || i.Name != "prefix" || i.Replaces != "" || i.Path != filepath.Join(shelf.dir, "trunkline-plugin-partitioner-prefix") {
		t.Errorf("%+v", i)
	}
	shelf.named = append(shelf.named, e)
	s := shelf.serve()
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitioner=prefix", "+OK t")
	if p := info(t, l, "partitioner/prefix"); p.SHA256 != i.SHA256 || p.Path != i.Path {
		t.Errorf("%+v", p)
	}
	text, err := os.ReadFile(built("prefix"))
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "trunkline-plugin-partitioner-prefix")
	if err := os.WriteFile(other, append(text, 0), 0o600); err != nil { // which still runs; the right to is given to the copy
		t.Fatal(err)
	}
	if again := install(t, other, "--dir", shelf.dir); again.Replaces != i.SHA256 || again.SHA256 == i.SHA256 {
		t.Errorf("%+v", again)
	} else {
		e.sha256 = "[" + again.Replaces + ", " + again.SHA256 + "]"
		shelf.save()
		ask(t, l, "PLUGIN RELOAD partitioner/prefix", "+OK partitioner/prefix")
		if p := info(t, l, "partitioner/prefix"); p.SHA256 != again.SHA256 {
			t.Errorf("%+v", p)
		}
	}
	if again := install(t, other, "--dir", shelf.dir); again.Replaces != "" {
		t.Errorf("the same file: %+v", again)
	}
}

func TestWhatIsNoPluginIsNotInstalled(t *testing.T) {
	dir := t.TempDir()
	shelf := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // past the umask
			t.Fatal(err)
		}
		return path
	}
	good, open := shelf("good", 0o755), shelf("open", 0o777)
	script := filepath.Join(dir, "trunkline-plugin-partitioner-script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	sound := []string{built("prefix"), "--kind", "partitioner"}
	for what, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"a script that ends":            {[]string{script, "--dir", good}, 1, "exit status 7"},
		"another name":                  {append(sound, "--name", "other", "--dir", good), 1, "does not start as this plugin"},
		"another kind":                  {[]string{built("prefix"), "--kind", "storage", "--name", "prefix", "--dir", good}, 1, "does not start as this plugin"},
		"a bad configuration":           {append(sound, "--name", "prefix", "--dir", good, "--config", `{"separator":"two"}`), 1, "is not one byte long"},
		"a configuration that is none":  {append(sound, "--name", "prefix", "--dir", good, "--config", `{`), 2, "is no JSON"},
		"no kind there is":              {append(sound[:1:1], "--kind", "bridge", "--name", "prefix", "--dir", good), 2, "storage, partitioner or metadata"},
		"a directory others may change": {append(sound, "--name", "prefix", "--dir", open), 1, "mode 0777"},
		"no directory":                  {append(sound, "--name", "prefix", "--dir", filepath.Join(dir, "nowhere")), 1, "no such file or directory"},
		"no directory named":            {append(sound, "--name", "prefix"), 2, "--dir"},
		"no name":                       {append(sound, "--dir", good), 2, "--name"},
		"no file":                       {[]string{filepath.Join(dir, "trunkline-plugin-partitioner-none"), "--dir", good}, 1, "no such file"},
		"a directory for a file":        {[]string{good, "--kind", "partitioner", "--name", "prefix", "--dir", good}, 1, "no regular file"},
	} {
		out, code := client(t, dir, append([]string{"plugin", "install"}, c.args...)...)
		if code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%s: [%d] %s", what, code, out)
		}
	}
	for _, d := range []string{good, open} {
		if entries, err := os.ReadDir(d); err != nil || len(entries) > 0 {
			t.Errorf("%s has %v, %v", d, entries, err)
		}
	}
}
