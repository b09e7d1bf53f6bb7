package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNamedPluginsAreReadFromTheFile(t *testing.T) {
	a, b := strings.Repeat("0a", 32), strings.Repeat("BF", 32)
	got, err := load(t, `
metadata: raft
plugins:
  dir: /usr/lib/trunkline
  partitioner:
    region:
      sha256: `+a+`
      config:
        fallBack: true
        Regions: [eu, us]
        weights: {eu: 2}
    plain: {sha256: [`+a+`, `+b+`]}
  metadata:
    raft: {sha256: `+b+`}
`, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]Plugin{
		"partitioner": {
			"region": {SHA256: []string{a}, Config: []byte(`{"Regions":["eu","us"],"fallBack":true,"weights":{"eu":2}}`)},
			"plain":  {SHA256: []string{a, b}},
		},
		"metadata": {"raft": {SHA256: []string{b}}},
	}
	if diff := cmp.Diff(want, got.Plugins.Named); diff != "" {
		t.Error(diff)
	}
	if got.Plugins.Dir != "/usr/lib/trunkline" || got.Metadata != "raft" {
		t.Errorf("%+v", got)
	}
}

func TestFaultsOfNamedPluginsAreAllTold(t *testing.T) {
	pin := strings.Repeat("0", 64)
	for name, test := range map[string]struct{ file, says string }{
		"no directory":         {"plugins: {partitioner: {a: {sha256: " + pin + "}}}", "plugins.dir does not say where"},
		"no hash":              {"plugins: {dir: /p, partitioner: {a: {config: {x: 1}}}}", "plugins.partitioner.a: sha256 is missing"},
		"nothing at all":       {"plugins: {dir: /p, partitioner: {a: }}", "sha256 is missing"},
		"a hash too short":     {"plugins: {dir: /p, partitioner: {a: {sha256: abc}}}", "not 64 hexadecimal digits"},
		"a hash of other type": {"plugins: {dir: /p, partitioner: {a: {sha256: {x: y}}}}", "neither a text nor a list"},
		"an empty list":        {"plugins: {dir: /p, partitioner: {a: {sha256: []}}}", "neither a text nor a list"},
		"another key":          {"plugins: {dir: /p, partitioner: {a: {sha256: " + pin + ", path: /x}}}", "and nothing else"},
		"config no group":      {"plugins: {dir: /p, partitioner: {a: {sha256: " + pin + ", config: yes}}}", "a group, and nothing else"},
		"a name with a path":   {"plugins: {dir: /p, partitioner: {../../x: {sha256: " + pin + "}}}", "a plugin's name has"},
		"a name too long":      {"plugins: {dir: /p, partitioner: {" + strings.Repeat("x", 25) + ": {sha256: " + pin + "}}}", "a plugin's name has"},
		"a kind misspelt":      {"plugins: {dir: /p, partitoner: {a: {sha256: " + pin + "}}}", "unknown key plugins.partitoner"},
		"a kind of no plugins": {"plugins: {dir: /p, partitioner: mine}", "group"},
		"in one line":          {"plugins.partitioner.a: {sha256: " + pin + "}", "unknown key plugins.partitioner.a"},
		"in capitals":          {"Plugins: {Partitioner: {a: {sha256: abc}}}", "plugins.partitioner.a: sha256 abc is not"},
		"metadata not there":   {"metadata: raft", "no plugins.metadata.raft is configured"},
	} {
		if _, err := load(t, test.file, nil, nil); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	two := "plugins:\n  dir: /p\n  partitioner:\n    a: {sha256: x}\n    b: {}\n"
	if _, err := load(t, two, nil, nil); err == nil || !strings.Contains(err.Error(), ":4: plugins.partitioner.a") || !strings.Contains(err.Error(), ":5: plugins.partitioner.b") {
		t.Errorf("two faults: %v", err)
	}
}
