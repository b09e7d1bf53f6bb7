package plugins

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// where is the partition that a record went to.
func where(answer string) string {
	at, _, _ := strings.Cut(answer, "@")
	return at
}

// send publishes until the machine is quick enough for a called partitioner.
func send(t *testing.T, l *harness.Line, text string) string {
	t.Helper()
	var got string
	harness.Eventually(t, text+" is answered", func() bool {
		got = l.Ask(text)
		return !strings.HasPrefix(got, "-ERR PARTITIONER_UNAVAILABLE ")
	})
	return got
}

func TestAThirdPartysPartitionerServes(t *testing.T) {
	shelf := newShelf(t)
	e := shelf.put("partitioner", "prefix", built("prefix"), `{separator: "/"}`)
	s := shelf.serve()
	l := s.Dial()
	if p := info(t, l, "partitioner/prefix"); p.State != "stopped" || p.PID != 0 || p.Shipped {
		t.Errorf("before anybody needs it: %+v", p)
	}
	ask(t, l, "TOPIC CREATE t partitions=16 partitioner=prefix", "+OK t")
	for _, name := range []string{"anna", "bob", "carla", "dirk"} {
		one := where(send(t, l, "SEND t#"+name+"/cart x"))
		if two := where(send(t, l, "SEND t#"+name+"/orders x")); one != two || !strings.HasPrefix(one, "+OK t/") {
			t.Errorf("%s: %s and %s", name, one, two)
		}
	}
	p := info(t, l, "partitioner/prefix")
	if p.State != "ready" || p.Version != "1.0.0" || p.Protocol != 1 || p.SHA256 != e.sha256 || p.Path != e.path || p.Shipped || p.Restarts != 0 ||
		p.RSS < 1<<20 || p.PID == 0 || p.LastError != "" || p.Interpreter != "" {
		t.Errorf("%+v", p)
	}
	if since, err := time.Parse(time.RFC3339, p.Since); err != nil || time.Since(since) > time.Hour {
		t.Errorf("since %q, %v", p.Since, err)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID))
	if err != nil || strings.Contains(string(env), "HOME=") || strings.Contains(string(env), "TRUNKLINE_PLUGIN_DATA") {
		t.Errorf("its environment is %q, %v", env, err)
	}
	// It dies and hangs as any other, and is replaced.
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		before := info(t, l, "partitioner/prefix")
		if err := syscall.Kill(before.PID, signal); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "another process serves", func() bool {
			now := info(t, l, "partitioner/prefix")
			return now.State == "ready" && now.PID != before.PID && now.Restarts == before.Restarts+1 && now.LastError != ""
		})
		if harness.Alive(before.PID) {
			t.Error("the one before lives")
		}
		send(t, l, "SEND t#anna/cart x")
	}
	pid := info(t, l, "partitioner/prefix").PID
	s.Kill()
	harness.Eventually(t, "it ends with the server", func() bool { return !harness.Alive(pid) })
	s.Restart()
	send(t, s.Dial(), "SEND t#anna/cart x")
}

// TestExecutablesThatAreNotStarted: each fault has its name, in the answer to who needs the plugin, and in PLUGIN INFO; the
// server and other topics go on.
func TestExecutablesThatAreNotStarted(t *testing.T) {
	shelf := newShelf(t)
	sound := func(name string) *entry { return shelf.put("partitioner", name, built("prefix"), "") }
	says := map[string]string{
		"absent": "there is no such executable", "group": "others could change it: it has mode 0775", "link": "symbolic link",
		"plain": "right to be executed", "changed": "its sha256 is not the one it is pinned to", "alias": "process is another plugin: it is partitioner prefix",
		"config": `separator "xx" is not one byte long`, "typo": "unknown field", "garbage": `the plugin printed "hello, world" first`,
		"version": "the plugin speaks version 99, this host speaks 1", "crash": "exit status 7 (its last words: the flux capacitor is missing)",
		"hang": "no working connection in time", "elsewhere": "not in its socket directory", "nothing": "exec format error",
	}
	if err := os.Remove(sound("absent").path); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(sound("group").path, 0o775); err != nil {
		t.Fatal(err)
	}
	link := sound("link")
	if err := os.Rename(link.path, link.path+"-there"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(link.path+"-there", link.path); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(sound("plain").path, 0o644); err != nil {
		t.Fatal(err)
	}
	sound("changed").sha256 = strings.Repeat("0", 64)
	sound("alias")
	shelf.put("partitioner", "config", built("prefix"), `{separator: xx}`)
	shelf.put("partitioner", "typo", built("prefix"), `{seperator: x}`)
	for name, script := range map[string]string{
		"garbage": "echo hello, world; exec sleep 600", "version": "echo '1|99|unix|/nowhere/plugin1|grpc|'; exec sleep 600",
		"crash": "echo the flux capacitor is missing >&2; exit 7", "hang": "exec sleep 600", "elsewhere": "echo '1|1|unix|/nowhere/plugin1|grpc|'; exec sleep 600",
	} {
		shelf.putText("partitioner", name, "#!/bin/sh\n"+script+"\n", "")
	}
	shelf.putText("partitioner", "nothing", "\x00\x01", "")
	s := shelf.serve()
	l := s.Dial()
	ask(t, l, "TOPIC CREATE other", "+OK other")
	for name, why := range says {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := s.Dial()
			got := l.Ask("TOPIC CREATE t-" + name + " partitioner=" + name)
			if !strings.HasPrefix(got, "-ERR PARTITIONER_UNAVAILABLE ") {
				t.Errorf("TOPIC CREATE: %q", got)
			}
			var p told
			harness.Eventually(t, "the fault is told", func() bool {
				p = info(t, l, "partitioner/"+name)
				return strings.Contains(p.LastError, why)
			})
			if p.State == "ready" || p.PID != 0 && p.State != "starting" || p.Shipped {
				t.Errorf("%+v", p)
			}
			if got := l.Ask("SEND other#k x"); !strings.HasPrefix(got, "+OK other/0@") {
				t.Errorf("another topic: %q", got)
			}
		})
	}
}

// TestLiesAreFound: a partitioner that breaks its contract refuses the publishes that need it, by name, and no other.
func TestLiesAreFound(t *testing.T) {
	for lie, says := range map[string]string{
		"range": "partition 4 of 4", "count": "answers to", "unsteady": "different partitions for the same key", "error": "the moon is full",
		"late": "did not answer in time", "hang": "did not answer in time", "crash": "plugin",
	} {
		t.Run(lie, func(t *testing.T) {
			t.Parallel()
			shelf := newShelf(t)
			shelf.put("partitioner", "liar", built("liar"), fmt.Sprintf("{lie: %s}", lie))
			s := shelf.serve()
			l := s.Dial()
			ask(t, l, "TOPIC CREATE other", "+OK other")
			ask(t, l, "TOPIC CREATE t partitions=4 partitioner=liar", "+OK t")
			harness.Eventually(t, "the lie is found", func() bool {
				got := l.Ask("SEND t#k x")
				if !strings.HasPrefix(got, "-ERR PARTITIONER_UNAVAILABLE ") {
					// Nothing else is wrong with the first answers of some.
					if lie != "unsteady" || !strings.HasPrefix(got, "+OK t/") {
						t.Fatal(got)
					}
				}
				return strings.Contains(got, says)
			})
			for _, text := range []string{"SEND other#k x", "SEND t/3 x", "SEND t x"} {
				if got := l.Ask(text); !strings.HasPrefix(got, "+OK ") {
					t.Errorf("%s: %q", text, got)
				}
			}
			if lie != "late" && lie != "hang" && lie != "crash" { // of which one answer may be an accident
				if p := info(t, l, "partitioner/liar"); p.State != "ready" || !strings.Contains(p.LastError, "topic t: ") || !strings.Contains(p.LastError, says) {
					t.Errorf("the operator is told %+v", p)
				}
				if log := s.Stderr(); strings.Count(log, "plugin is at fault") != 1 || !strings.Contains(log, says) {
					t.Errorf("the log says\n%s", log)
				}
			}
			if lie == "hang" { // and a process that hangs in its calls is replaced, although its heart beats
				harness.Eventually(t, "it is replaced", func() bool {
					l.Ask("SEND t#k x")
					return strings.Contains(info(t, l, "partitioner/liar").LastError, "calls in a row")
				})
			}
			// Somebody mends it, and no restart of the server is needed.
			shelf.byName["liar"].config = "{}"
			shelf.save()
			if lie != "count" { // that one speaks the protocol by itself
				ask(t, l, "PLUGIN RELOAD partitioner/liar", "+OK partitioner/liar")
				ask(t, l, "TOPIC CREATE u partitions=4 partitioner=liar", "+OK u")
				if got := send(t, l, "SEND u#k x"); !strings.HasPrefix(got, "+OK u/0@") {
					t.Error(got)
				}
			}
		})
	}
}

func TestAPlanOfItsOwnIsRefused(t *testing.T) {
	shelf := newShelf(t)
	shelf.put("partitioner", "liar", built("liar"), "{lie: plan}")
	l := shelf.serve().Dial()
	if got := l.Ask("TOPIC CREATE t partitioner=liar"); !strings.HasPrefix(got, "-ERR PARTITIONER_UNAVAILABLE ") || !strings.Contains(got, `kind "mine" is not known`) {
		t.Error(got)
	}
}

func TestAScriptIsAPluginAndItsInterpreterIsNotVerified(t *testing.T) {
	shelf := newShelf(t)
	program := filepath.Join(t.TempDir(), "prefix")
	if err := os.Symlink(built("prefix"), program); err != nil {
		t.Fatal(err)
	}
	shelf.putText("partitioner", "prefix", "#!/bin/sh\nexec "+program+"\n", "")
	s := shelf.serve()
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitioner=prefix", "+OK t")
	send(t, l, "SEND t#k x")
	if p := info(t, l, "partitioner/prefix"); p.Interpreter != "/bin/sh" || p.State != "ready" {
		t.Errorf("%+v", p)
	}
	if said := s.Stderr(); !strings.Contains(said, "its interpreter is not verified") {
		t.Errorf("nothing is said of it:\n%s", said)
	}
}

func TestConfigurationThatCannotBe(t *testing.T) {
	shelf := newShelf(t)
	shelf.put("partitioner", "murmur2", built("prefix"), "")
	shelf.save()
	for _, test := range []struct{ rest, says string }{
		{"", "the server ships a plugin of that name"},
		{"metadata: raft\n", "no plugins.metadata.raft is configured"},
	} {
		shelf.rest = test.rest
		shelf.save()
		out, err := exec.Command(harness.Binary("trunkline-server"), "-c", shelf.file, "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--http", "-").CombinedOutput()
		if err == nil || !strings.Contains(string(out), test.says) {
			t.Errorf("%q: %v, %s", test.rest, err, out)
		}
	}
}
