package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// shapesFile has, of each command, every key that it prints with --json and the kinds of values that it may have. Programs
// rely on them: a key may be added, and neither go nor change.
const shapesFile = "testdata/shapes.golden"

// jsonCase is a command line whose JSON is looked at.
type jsonCase struct {
	command string // as the help lists it
	typed   string // all of it, where there is more to it; printed more than once, all objects count
}

// jsonCases has every command that prints JSON, in an order in which they work.
func jsonCases() []jsonCase {
	return []jsonCase{
		{"topic create", "topic create t --partitions 2"},
		{"pub", "pub t/0 text --key k -H n:1"},
		{"get", `pub t/0 "$(printf '\xff')" --key "$(printf '\xff')" > /dev/null; trunkline pub t/0 --null > /dev/null; trunkline get t/0 --json`},
		{"sub", "sub t/0@earliest --exit"},
		{"topic ls", "topic ls"},
		{"topic info", "topic info t"},
		{"topic alter", "topic alter t --set retention.time=-1"},
		{"topic trim", "topic trim t/0@1 --dry-run --json; trunkline topic trim t/0@1"},
		{"log verify", `log verify "$DATA/logs/t-0" --json; cp -r "$DATA/logs/t-0" x-0; printf x | dd of=x-0/00000000000000000000.log bs=1 seek=60 conv=notrunc; trunkline log verify x-0`},
		{"log dump", `log dump "$DATA/logs/t-0" --records --json; trunkline log dump x-0`},
		{"log export", `log export "$DATA/logs/t-0" --to exported`},
		{"bench produce", "bench produce t --count 10"},
		{"bench consume", "bench consume t/0@earliest --count 1"},
		{"bench pubsub", "bench pubsub t --count 10"},
		{"bench latency", "bench latency t --count 10"},
		{"plugin ls", "plugin ls"},
		{"plugin info", "plugin info storage/filelog"},
		{"plugin reload", "plugin reload partitioner/murmur2"},
		{"plugin verify", "plugin verify mine/trunkline-plugin-partitioner-mine"},
		{"plugin install", "plugin install trunkline-plugin-partitioner-murmur2 --dir mine --json; printf '\n' >> trunkline-plugin-partitioner-murmur2; trunkline plugin install trunkline-plugin-partitioner-murmur2 --dir mine"},
		{"plugin new", "plugin new partitioner begun"},
		{"plugin test", "plugin test murmur2 --kind partitioner --match 'says what it is'"},
		{"doctor", `doctor --http - --data "$DATA" --json; trunkline doctor --http - --data nowhere`},
		{"context add", "context add here 127.0.0.1:8765 --description mine"},
		{"context ls", "context ls"},
		{"context show", "context show here"},
		{"context select", "context select here"},
		{"context rm", "context rm here"},
		{"errors", "errors STORAGE_FULL --json; trunkline errors"},
		{"version", "version"},
		{"topic rm", "topic rm t --dry-run --json; trunkline topic rm t"},
	}
}

// noJSON are the commands that print something else.
func noJSON() []string { return []string{"completion"} }

// failures are command lines that fail in different ways; what they say on standard error is one shape, "error".
func failures() []string {
	return []string{"topic info nosuch", "topic create t", "topic nosuch", "pub t/7 x", "get t/0@99 --nosuch", `pub "t@1" x`, "topic ls -s 127.0.0.1:1", `topic ls -s "$DENYING"`,
		"errors NOSUCH", "log verify nowhere", "context show nosuch", "plugin verify nowhere", "plugin install nowhere --dir mine", "plugin test nowhere", "sub nosuch.*@earliest --exit"}
}

// TestJSONKeepsItsKeys runs every command with --json.
func TestJSONKeepsItsKeys(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	console := harness.NewConsole(t, s.Client)
	console.Set("DATA", s.Data)
	console.Run(t, `printf '#!/bin/sh\nexec trunkline-server plugin partitioner murmur2\n' > trunkline-plugin-partitioner-murmur2; mkdir -m 755 mine; printf '#!/bin/sh\n' > mine/trunkline-plugin-partitioner-mine; chmod 755 mine/*`)
	console.Set("DENYING", denying(t))
	left := commands(t, console)
	shapes := map[string]shape{}
	for _, c := range jsonCases() {
		out, _ := console.Run(t, "(trunkline "+c.typed+" --json) 2>said")
		found, err := shapeOf(out)
		if err != nil || len(found) == 0 {
			said, _ := console.Run(t, "cat said")
			t.Fatalf("trunkline %s printed %q, %v\n%s", c.typed, out, err, said)
		}
		maps.DeleteFunc(found, func(path string, _ []string) bool { return strings.Contains(path, "last_error") }) // of a plugin that was restarted: on a slow machine
		shapes[c.command] = found
		left = slices.DeleteFunc(left, func(name string) bool { return name == c.command })
	}
	console.Run(t, "trunkline topic create t")
	shapes["error"] = shape{}
	for _, typed := range failures() {
		out, code := console.Run(t, "trunkline --json "+typed+" 2>&1 >printed")
		found, err := shapeOf(out)
		if err != nil || len(found) == 0 || code == "0" || strings.Count(out, "\n") != 1 || !strings.Contains(out, `"exit":`+code+"}}") {
			t.Errorf("trunkline %s ends with %s and says %q, %v", typed, code, out, err)
		}
		for path, kinds := range found {
			shapes["error"][path] = kinds
		}
		if printed, _ := console.Run(t, "cat printed"); printed != "" {
			t.Errorf("trunkline %s prints %q", typed, printed)
		}
	}
	if !slices.Equal(left, noJSON()) {
		t.Errorf("commands that are not looked at: %q; write into jsonCases what they print", left)
	}
	got := textOf(shapes)
	if *rewrite {
		if err := os.WriteFile(shapesFile, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(shapesFile)
	if err != nil {
		t.Fatal(err)
	}
	was, is := strings.Split(string(want), "\n"), strings.Split(got, "\n")
	for _, line := range was {
		if !slices.Contains(is, line) {
			t.Errorf("it is not printed any more: %s", line)
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			t.Errorf("%s has no line %s; write it with -rewrite, if the protocol says so", shapesFile, line)
		}
	}
	checkContract(t, shapes)
}

// contract is what the protocol's page promises of JSON, by the commands that print the same objects.
func contract() map[string][]string {
	topic := keys("name id settings plan.version plan.kind partitions[].partition partitions[].leader partitions[].epoch partitions[].replicas[] partitions[].isr[]")
	log := keys("partitions[].log_start partitions[].high_watermark partitions[].log_end partitions[].bytes partitions[].segments")
	plugin := keys("kind name version protocol state pid restarts rss sha256 shipped")
	record := keys("topic partition offset timestamp key value headers key_base64 value_base64")
	return map[string][]string{
		"topic ls": under("topics[].", topic), "topic info": append(topic, log...), "plugin ls": under("plugins[].", plugin), "plugin info": plugin,
		"get": record, "sub": record, "version": keys("version commit go protocol"),
	}
}

func keys(list string) []string { return strings.Fields(list) }

func under(prefix string, list []string) []string {
	var all []string
	for _, key := range list {
		all = append(all, prefix+key)
	}
	return all
}

func checkContract(t *testing.T, shapes map[string]shape) {
	t.Helper()
	for command, want := range contract() {
		for _, key := range want {
			if shapes[command][key] == nil && !slices.ContainsFunc(slices.Collect(maps.Keys(shapes[command])), func(k string) bool { return strings.HasPrefix(k, key+".") }) {
				t.Errorf("trunkline %s --json has no %s, which the protocol promises", command, key)
			}
		}
	}
}

// shape is what JSON is made of: the kinds of values there are at each path of keys.
type shape map[string][]string

// shapeOf reads objects one behind the other.
func shapeOf(text string) (shape, error) {
	found := shape{}
	d := json.NewDecoder(strings.NewReader(text))
	for {
		var v any
		switch err := d.Decode(&v); {
		case errors.Is(err, io.EOF):
			return found, nil
		case err != nil:
			return nil, err
		}
		if _, ok := v.(map[string]any); !ok {
			return nil, fmt.Errorf("%v is no object", v)
		}
		found.add("", v)
	}
}

var plainKey = regexp.MustCompile(`^\w+$`)

func (s shape) add(path string, v any) {
	kind := ""
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if !plainKey.MatchString(key) {
				key = fmt.Sprintf("%q", key)
			}
			s.add(strings.TrimPrefix(path+"."+key, "."), value)
		}
		if len(v) > 0 {
			return
		}
		kind = "object"
	case []any:
		for _, item := range v {
			s.add(path+"[]", item)
		}
		if len(v) > 0 {
			return
		}
		kind = "array"
	case string:
		kind = "string"
	case float64:
		kind = "number"
	case bool:
		kind = "bool"
	case nil:
		kind = "null"
	}
	if !slices.Contains(s[path], kind) {
		s[path] = append(s[path], kind)
	}
}

// textOf writes shapes as lines, each of a command, a path and its kinds.
func textOf(shapes map[string]shape) string {
	var b bytes.Buffer
	for _, command := range slices.Sorted(maps.Keys(shapes)) {
		for _, path := range slices.Sorted(maps.Keys(shapes[command])) {
			fmt.Fprintf(&b, "%s: %s %s\n", command, path, strings.Join(slices.Sorted(slices.Values(shapes[command][path])), "|"))
		}
	}
	return b.String()
}
