package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadingAgainTellsWhatChanged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "t.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("zookeeper: {servers: [a:1], digest: \"me:first\"}\n")
	c, source, err := Open([]string{"-c", file, "--broker-id", "3"}, []string{"TRUNKLINE_LIMITS_PAYLOAD=2MiB"})
	if err != nil || c.BrokerID != 3 {
		t.Fatal(c, err)
	}
	write("zookeeper: {servers: [a:1], digest: \"me:second\"}\nlog: {level: debug}\nlimits: {payload: 4MiB}\nbroker_id: 9\n")
	r, err := source.Read()
	want := []Change{{"zookeeper.digest", "(hidden)", "(hidden)", true}, {"log.level", "info", "debug", false}}
	if diff := cmp.Diff(want, r.Changes); diff != "" || err != nil { // flags and variables go before the file
		t.Errorf("%v\n%s", err, diff)
	}
	if again, err := source.Read(); len(again.Changes) != 2 || err != nil {
		t.Errorf("what was not accepted is no change any more: %v, %v", again.Changes, err)
	}
	source.Accept(r)
	if again, err := source.Read(); len(again.Changes) != 0 || err != nil {
		t.Errorf("what was accepted is a change still: %v, %v", again.Changes, err)
	}
	write("log: {level: loud}\nlisten: x\n")
	if _, err := source.Read(); err == nil || len(err.(*Error).Faults) != 2 {
		t.Errorf("faults: %v", err)
	}
}

func TestEveryReloadableKeyIsOne(t *testing.T) {
	l := newLoader()
	for _, name := range reloadable() {
		if !l.known(name) {
			t.Errorf("%s is no key", name)
		}
	}
}

func TestShownConfigurationIsOneThatCanBeRead(t *testing.T) {
	const file = "zookeeper: {servers: [a:1], digest: \"me:secret\"}\nsubjects: {live: [\"a.>\"]}\nplugins: {dir: /p, partitioner: {mine: {sha256: %, config: {Key: secret}}}}\n"
	path := filepath.Join(t.TempDir(), "t.yaml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(file, "%", strings.Repeat("ab", 32))), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := Show([]string{"-c", path, "--http", "-"}, []string{"TRUNKLINE_LOG_LEVEL=warn"}, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"http: '-'  # --http\n", "  level: warn  # TRUNKLINE_LOG_LEVEL\n", "metadata: zookeeper  # zookeeper.servers\n", "  live: [a.>]  # " + path + ":2\n",
		"  digest: (hidden)  # " + path + ":1\n", "limits:\n", "broker_id: 1  # default\n", "      sha256: [", "# Its config is not shown."} {
		if !strings.Contains(text, want) {
			t.Errorf("it has no %q", want)
		}
	}
	if strings.Contains(text, "secret") {
		t.Error("it tells a secret")
	}
	want, err := open([]string{"-c", path, "--http", "-"}, []string{"TRUNKLINE_LOG_LEVEL=warn"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := load(t, strings.ReplaceAll(text, "(hidden)", "me:secret"), nil, nil)
	want.File, got.File = "", ""
	want.Plugins.Named, got.Plugins.Named = nil, nil
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("read back it is another one: %v\n%s\n%s", err, diff, text)
	}
	_, err = Show([]string{"--listen", "nowhere"}, nil, false)
	if _, ok := errors.AsType[*Error](err); !ok {
		t.Error(err)
	}
}
