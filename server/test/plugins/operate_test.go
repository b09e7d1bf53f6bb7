package plugins

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/internal/broker"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// TestHUPSaysWhichPluginsItLeavesAlone, and what takes each over.
func TestHUPSaysWhichPluginsItLeavesAlone(t *testing.T) {
	shelf := newShelf(t)
	e := shelf.put("partitioner", "prefix", built("prefix"), "")
	shelf.put("partitioner", "spare", built("prefix"), "")
	s := shelf.serve()
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=16 partitioner=prefix", "+OK t")
	// told is what the log says of plugins after a HUP, from when it says that the configuration is reloaded.
	hup := func() (told []string) {
		t.Helper()
		shelf.save()
		const done = `"msg":"configuration reloaded"`
		from := len(s.Stderr())
		if err := syscall.Kill(s.PID(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "it is reloaded", func() bool { return strings.Contains(s.Stderr()[from:], done) })
		ask(t, l, "PING", "PONG")
		_ = syscall.Kill(s.PID(), syscall.SIGHUP) // what is said of the first one is said before the second is read
		harness.Eventually(t, "it is reloaded again", func() bool { return strings.Count(s.Stderr()[from:], done) >= 2 })
		first, _, _ := strings.Cut(strings.SplitN(s.Stderr()[from:], done, 2)[1], done)
		for line := range strings.Lines(first) {
			var said struct{ Level, Msg, Kind, Name, Change, Do string }
			if json.Unmarshal([]byte(line), &said) == nil && strings.HasPrefix(said.Msg, "plugin is not as the configuration") {
				told = append(told, said.Level+" "+said.Kind+"/"+said.Name+" "+said.Change+": "+said.Do)
			}
		}
		return told
	}
	want := func(what string, want ...string) {
		t.Helper()
		if got := hup(); !slices.Equal(got, want) {
			t.Errorf("%s: the log says %q, want %q", what, got, want)
		}
	}
	want("nothing changed")
	shelf.put("storage", "onefile", built("onefile"), "")
	e.config = "{separator: /}"
	shelf.named = slices.DeleteFunc(shelf.named, func(e *entry) bool { return e.name == "spare" })
	added, changed, removed := "WARN storage/onefile added: trunkline plugin reload storage/onefile", "WARN partitioner/prefix changed: trunkline plugin reload partitioner/prefix",
		"WARN partitioner/spare removed: restart the server"
	want("all three", changed, removed, added)
	ask(t, l, "PLUGIN RELOAD storage/onefile", "+OK storage/onefile")
	want("the file was read, and one process replaced", changed)
	ask(t, l, "PLUGIN RELOAD partitioner/prefix", "+OK partitioner/prefix")
	want("all is taken over")
}

func TestReloadTakesTheFileThatIsConfiguredNow(t *testing.T) {
	shelf := newShelf(t)
	e := shelf.put("partitioner", "prefix", built("prefix"), "")
	s := shelf.serve()
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=16 partitioner=prefix", "+OK t")
	before := info(t, l, "partitioner/prefix")
	began := time.Now().Truncate(time.Millisecond)
	sound, err := os.ReadFile(e.path)
	if err != nil {
		t.Fatal(err)
	}
	// Another file than the one that is pinned is not taken, and the old process goes on.
	e.write(t, "#!/bin/sh\nexit 7\n")
	got := l.Ask("PLUGIN RELOAD partitioner/prefix")
	if !strings.HasPrefix(got, "-ERR PLUGIN_NOT_REPLACED ") || !strings.Contains(got, "its sha256 is not the one it is pinned to") {
		t.Errorf("another file: %q", got)
	}
	// Pinned, it is tried, and what does not start is not taken either.
	shelf.save()
	got = l.Ask("PLUGIN RELOAD partitioner/prefix")
	if !strings.HasPrefix(got, "-ERR PLUGIN_NOT_REPLACED ") || !strings.Contains(got, "exit status 7") {
		t.Errorf("a file that does not work: %q", got)
	}
	if now := info(t, l, "partitioner/prefix"); now.PID != before.PID || now.State != "ready" || !strings.Contains(now.LastError, "exit status 7") {
		t.Errorf("%+v became %+v", before, now)
	}
	failed := info(t, l, "partitioner/prefix")
	at, err := time.Parse("2006-01-02T15:04:05.000Z", failed.LastErrorAt)
	if err != nil || at.Before(began) || at.After(time.Now()) || before.LastErrorAt != "" {
		t.Errorf("it failed at %q, after %q; between %s and now", failed.LastErrorAt, before.LastErrorAt, began)
	}
	send(t, l, "SEND t#k x")
	// A configuration with faults changes nothing.
	e.write(t, string(sound))
	e.config = "yes"
	shelf.save()
	if got := l.Ask("PLUGIN RELOAD partitioner/prefix"); !strings.HasPrefix(got, "-ERR BAD_SETTING ") || !strings.Contains(got, "plugins.partitioner.prefix") {
		t.Errorf("a fault in the configuration: %q", got)
	}
	// A new configuration is handed over.
	one, two := where(send(t, l, "SEND t#a/b x")), where(send(t, l, "SEND t#a/d x"))
	if one == two {
		t.Fatalf("%s and %s: the keys do not show anything", one, two)
	}
	e.config = "{separator: /}"
	shelf.save()
	ask(t, l, "PLUGIN RELOAD partitioner/prefix", "+OK partitioner/prefix")
	if now := info(t, l, "partitioner/prefix"); now.PID == before.PID || now.LastError != failed.LastError || now.LastErrorAt != failed.LastErrorAt {
		t.Errorf("after a good reload: %+v; it failed as %+v", now, failed)
	}
	ask(t, l, "TOPIC CREATE u partitions=16 partitioner=prefix", "+OK u") // of t it is known where keys go
	if one, two := where(send(t, l, "SEND u#a/b x")), where(send(t, l, "SEND u#a/d x")); one != two {
		t.Errorf("with the new separator: %s and %s", one, two)
	}
	// What is configured only now can be used at once.
	shelf.put("partitioner", "liar", built("liar"), "{}")
	shelf.save()
	ask(t, l, "PLUGIN RELOAD partitioner/liar", "+OK partitioner/liar")
	ask(t, l, "TOPIC CREATE v partitioner=liar", "+OK v")
}

func TestAnswersThatChangeWithAReloadAreRefused(t *testing.T) {
	shelf := newShelf(t)
	e := shelf.put("partitioner", "prefix", built("prefix"), "")
	s := shelf.serve()
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=16 partitioner=prefix", "+OK t")
	for i := range 16 {
		send(t, l, fmt.Sprintf("SEND t#a/%d x", i))
	}
	e.config = "{separator: /}" // now all of them go to one partition
	shelf.save()
	ask(t, l, "PLUGIN RELOAD partitioner/prefix", "+OK partitioner/prefix")
	harness.Eventually(t, "the change is found", func() bool {
		return strings.Contains(l.Ask("SEND t#a/1 x"), "it gives different partitions for the same key")
	})
}

func TestTheBreakerOpensAndReloadClosesIt(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_PLUGINS_BREAKER_CRASHES=2", "TRUNKLINE_PLUGINS_BREAKER_WINDOW=1h"})
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitioner=jump", "+OK t")
	for range 2 {
		var p told
		harness.Eventually(t, "it runs", func() bool { p = info(t, l, "partitioner/jump"); return p.State == "ready" && harness.Alive(p.PID) })
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "it is felt", func() bool { return info(t, l, "partitioner/jump").PID != p.PID })
	}
	harness.Eventually(t, "it is given up", func() bool {
		p := info(t, l, "partitioner/jump")
		return p.State == "stopped" && strings.Contains(p.LastError, "crashed too often: 2 times within 1h0m0s")
	})
	if got := l.Ask("SEND t#k x"); !strings.HasPrefix(got, "-ERR PARTITIONER_UNAVAILABLE ") {
		t.Error(got)
	}
	ask(t, l, "PLUGIN RELOAD partitioner/jump", "+OK partitioner/jump")
	send(t, l, "SEND t#k x")
}

// TestAStoppedPluginIsReplaced: within four seconds, where the machine is not to blame for more.
func TestAStoppedPluginIsReplaced(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t", "+OK t")
	for _, plugin := range []string{"storage/filelog", "partitioner/murmur2", "metadata/embedded"} {
		before := info(t, l, plugin)
		began := time.Now()
		if err := syscall.Kill(before.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, plugin+" is replaced", func() bool {
			ask(t, l, "TOPIC INFO nothere", l.Ask("TOPIC INFO nothere")) // the server answers
			if got := l.Ask("SEND t x"); !strings.HasPrefix(got, "+OK t/0@") {
				t.Fatalf("a publish meanwhile: %q", got)
			}
			now := info(t, l, plugin)
			return now.State == "ready" && now.PID != before.PID
		})
		t.Logf("%s was replaced after %s", plugin, time.Since(began).Round(time.Millisecond))
		if p := info(t, l, plugin); !strings.Contains(p.LastError, "does not answer its heartbeat") {
			t.Errorf("%+v", p)
		}
		// Not even as a zombie.
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", before.PID)); err == nil {
			t.Errorf("the stopped one is still there: %s", stat)
		}
	}
}

func TestShippedPluginsPassTheirSuites(t *testing.T) {
	for _, kind := range []string{"partitioner", "metadata", "storage"} {
		for _, name := range broker.Shipped(kind) {
			if name == "zookeeper" {
				continue // it needs one; its suite runs beside it
			}
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				out, err := exec.Command(harness.Binary("trunkline"), "plugin", "test", name, "--kind", kind).CombinedOutput()
				if err != nil || !strings.Contains(string(out), "\nok    ") || strings.Contains(string(out), "FAIL") {
					t.Errorf("%v:\n%s", err, out)
				}
			})
		}
	}
}

// cli runs the command line client.
func cli(t *testing.T, s *harness.Server, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(harness.Binary("trunkline"), args...)
	if s != nil {
		cmd.Env = append(os.Environ(), "TRUNKLINE_URL="+s.Client)
	}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestPluginsFromTheCommandLine(t *testing.T) {
	shelf := newShelf(t)
	e := shelf.put("partitioner", "prefix", built("prefix"), "")
	s := shelf.serve()
	ask(t, s.Dial(), "TOPIC CREATE t partitioner=prefix", "+OK t")
	for _, test := range []struct {
		args []string
		says string
		code int
	}{
		{[]string{"plugin", "ls"}, "partitioner/prefix", 0},
		{[]string{"plugin", "info", "partitioner/prefix"}, e.sha256, 0},
		{[]string{"plugin", "reload", "partitioner/prefix"}, "ready", 0},
		{[]string{"plugin", "info", "partitioner/nothere"}, "UNKNOWN_PLUGIN", 5},
		{[]string{"plugin", "reload", "nothere"}, "is not KIND/NAME", 2},
		{[]string{"plugin", "verify", e.path}, "      sha256: " + e.sha256, 0},
		{[]string{"plugin", "verify", e.path + "x"}, "there is no such executable", 1},
		{[]string{"plugin", "verify"}, "no file is named", 2},
		{[]string{"plugin", "test", e.path, "--match", "describes"}, "all 2 cases passed", 0},
		{[]string{"plugin", "test", e.path, "--config", `{"separator":"xx"}`}, "is not one byte long", 1},
		{[]string{"plugin", "test", e.path, "--config", `{`}, "is no JSON", 2},
		{[]string{"plugin", "test", e.path, "--kind", "nothing"}, "a plugin is of kind", 2},
		{[]string{"plugin", "test", "--nothing", e.path}, "unknown flag", 2},
		{[]string{"plugin", "test", built("prefix")}, "add --kind and --name", 2},
	} {
		out, errs, code := cli(t, s, test.args...)
		if code != test.code || !strings.Contains(out+errs, test.says) {
			t.Errorf("%q: code %d, %s%s", test.args, code, out, errs)
		}
	}
	out, _, _ := cli(t, s, "plugin", "ls", "--json")
	var list struct{ Plugins []told }
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Plugins) < 9 {
		t.Errorf("%v: %s", err, out)
	}
	out, _, _ = cli(t, s, "--json", "plugin", "test", e.path, "--match", "describes")
	if !strings.Contains(out, `{"case":"describes itself","ok":true,`) {
		t.Error(out)
	}
}
