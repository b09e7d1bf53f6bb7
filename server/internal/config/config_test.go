package config

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestMain takes the flag -rewrite, which writes the full configuration anew from the keys.
func TestMain(m *testing.M) {
	rewriteFull := flag.Bool("rewrite", false, "write conf/trunkline-full.yaml anew")
	flag.Parse()
	if *rewriteFull {
		if err := os.WriteFile(fullFile, []byte(fullYAML()), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

const (
	fullFile    = "../../../conf/trunkline-full.yaml"
	minimalFile = "../../../conf/trunkline.yaml"
)

func defaults() Config {
	return Config{
		Data: "./trunkline-data", Listen: "127.0.0.1:8765", HTTP: "127.0.0.1:8766", BrokerID: 1, Metadata: "embedded",
		Zookeeper: Zookeeper{Chroot: "/trunkline", Session: 10 * time.Second},
		Topics:    Topics{AutoCreate: true, AutoCreateMax: 10000, Partitions: 1},
		Limits: Limits{Connections: 10000, ControlLine: 4096, Payload: 1 << 20, Pending: 8 << 20, WriteDeadline: 10 * time.Second, PublishTimeout: 10 * time.Second,
			PingInterval: 2 * time.Minute, LameDuck: LameDuck{Grace: 10 * time.Second, Spread: 2 * time.Minute}},
		Storage: Storage{SyncParallel: 64, Reserve: -1, Memory: 256 << 20},
		Plugins: Plugins{BreakerWindow: time.Minute},
		Log:     Log{Level: slog.LevelInfo, Format: "auto"},
	}
}

func open(args, env []string) (Config, error) {
	c, _, err := Open(args, env)
	return c, err
}

// load loads from args, env and a file with the given text; an empty text is no file.
func load(t *testing.T, file string, args, env []string) (Config, error) {
	t.Helper()
	if file != "" {
		path := filepath.Join(t.TempDir(), "t.conf") // the name's end says nothing
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"-c", path}, args...)
	}
	return open(args, env)
}

func TestDefaults(t *testing.T) {
	got, err := open(nil, []string{"PATH=/bin", "HOME=/"})
	if diff := cmp.Diff(defaults(), got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestConfFilesSayTheDefaults(t *testing.T) {
	for _, file := range []string{fullFile, minimalFile} {
		want := defaults()
		want.File = file
		got, err := open([]string{"-c", file}, nil)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", file, err, diff)
		}
	}
}

func TestFullFileListsEveryKey(t *testing.T) {
	got, err := os.ReadFile(fullFile)
	if diff := cmp.Diff(fullYAML(), string(got)); diff != "" || err != nil {
		t.Errorf("write it anew with go test ./server/internal/config -rewrite: %v\n%s", err, diff)
	}
}

// fullYAML is the full configuration, made from the keys.
func fullYAML() string {
	var all []entry
	for _, k := range keys() {
		e := entry{name: k.name, value: k.def, comments: []string{k.effect}}
		about := "Range: " + k.bounds + "."
		if k.flag != "" {
			about += " Flag: --" + k.flag + "."
		}
		if slices.Contains(reloadable(), k.name) {
			about += " HUP changes it."
		} else {
			about += " Needs a restart."
		}
		e.comments = append(e.comments, about)
		all = append(all, e)
	}
	text, err := render(all)
	if err != nil {
		panic(err)
	}
	return "# Every key there is: what it does, its range, its default, and whether a running server that is sent HUP takes a change\n" +
		"# over. A file needs only what it changes. In the environment a key is TRUNKLINE_ and its name in capitals, with _ for\n" +
		"# each dot: TRUNKLINE_LIMITS_PAYLOAD. Sizes and times have units: 64KiB, 500ms.\n\n" + text
}

func TestPrecedence(t *testing.T) {
	const file = "listen: 127.0.0.1:1\nlimits:\n  payload: 2MiB\n"
	env := []string{"TRUNKLINE_LISTEN=127.0.0.1:2", "TRUNKLINE_LIMITS_PENDING=16MiB"}
	for _, test := range []struct {
		name       string
		file       string
		env, args  []string
		wantListen string
	}{
		{"default", "", nil, nil, "127.0.0.1:8765"},
		{"file over default", file, nil, nil, "127.0.0.1:1"},
		{"environment over file", file, env, nil, "127.0.0.1:2"},
		{"flag over all", file, env, []string{"--listen", "127.0.0.1:3"}, "127.0.0.1:3"},
		{"flag that repeats the default", file, env, []string{"--listen=127.0.0.1:8765"}, "127.0.0.1:8765"},
		{"environment over default", "", env, nil, "127.0.0.1:2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := load(t, test.file, test.args, test.env)
			if err != nil || got.Listen != test.wantListen {
				t.Errorf("listens on %s, %v", got.Listen, err)
			}
			if test.file != "" && got.Limits.Payload != 2<<20 || test.env != nil && got.Limits.Pending != 16<<20 {
				t.Errorf("limits %+v", got.Limits)
			}
		})
	}
}

func TestEveryKeyCanBeSetEverywhere(t *testing.T) {
	const file = `
data: /d
listen: "[::1]:0"
http: "-"
advertise: broker.example:8765
broker_id: 7
metadata: zookeeper
zookeeper: {servers: ["zk1:2181", "zk2:2181"], chroot: /a/b, session: 3s, digest: "user:pass:word"}
topics: {auto_create: false, auto_create_max: 5, defaults: {partitions: 6}}
subjects: {live: ["live.>", "a.*"]}
limits: {connections: 10, control_line: 8KiB, payload: 64KiB, pending: 1MiB, write_deadline: 500ms, publish_timeout: 1m, subscriptions: 7, ping_interval: 1s, lame_duck_grace: 2s, lame_duck_spread: 3s}
storage: {sync_parallel: 2, open_files: 4096, reserve: 1MiB, memory: 1GiB}
plugins: {dir: /p, breaker_crashes: 5, breaker_window: 30s}
log: {level: debug, format: json}
`
	want := Config{
		Data: "/d", Listen: "[::1]:0", Advertise: "broker.example:8765", BrokerID: 7, Metadata: "zookeeper",
		Zookeeper: Zookeeper{Servers: []string{"zk1:2181", "zk2:2181"}, Chroot: "/a/b", Session: 3 * time.Second, Digest: "user:pass:word"},
		Topics:    Topics{AutoCreateMax: 5, Partitions: 6}, LiveSubjects: []string{"live.>", "a.*"},
		Limits: Limits{Connections: 10, ControlLine: 8 << 10, Payload: 64 << 10, Pending: 1 << 20, WriteDeadline: 500 * time.Millisecond, PublishTimeout: time.Minute,
			Subscriptions: 7, PingInterval: time.Second, LameDuck: LameDuck{Grace: 2 * time.Second, Spread: 3 * time.Second}},
		Storage: Storage{SyncParallel: 2, OpenFiles: 4096, Reserve: 1 << 20, Memory: 1 << 30}, Plugins: Plugins{Dir: "/p", BreakerCrashes: 5, BreakerWindow: 30 * time.Second},
		Log: Log{Level: slog.LevelDebug, Format: "json"},
	}
	ignore := cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "File" }, cmp.Ignore())
	got, err := load(t, file, nil, nil)
	if diff := cmp.Diff(want, got, ignore); diff != "" || err != nil {
		t.Errorf("file: %v\n%s", err, diff)
	}
	env := []string{"TRUNKLINE_DATA=/d", "TRUNKLINE_LISTEN=[::1]:0", "TRUNKLINE_HTTP=", "TRUNKLINE_ADVERTISE=broker.example:8765", "TRUNKLINE_BROKER_ID=7",
		"TRUNKLINE_METADATA=zookeeper", "TRUNKLINE_ZOOKEEPER_SERVERS=zk1:2181, zk2:2181", "TRUNKLINE_ZOOKEEPER_CHROOT=/a/b", "TRUNKLINE_ZOOKEEPER_SESSION=3s",
		"TRUNKLINE_ZOOKEEPER_DIGEST=user:pass:word", "TRUNKLINE_TOPICS_AUTO_CREATE=false", "TRUNKLINE_TOPICS_AUTO_CREATE_MAX=5", "TRUNKLINE_TOPICS_DEFAULTS_PARTITIONS=6",
		"TRUNKLINE_SUBJECTS_LIVE=live.>, a.*", "TRUNKLINE_LIMITS_CONNECTIONS=10", "TRUNKLINE_LIMITS_CONTROL_LINE=8KiB", "TRUNKLINE_LIMITS_PAYLOAD=64KiB",
		"TRUNKLINE_LIMITS_PENDING=1MiB", "TRUNKLINE_LIMITS_WRITE_DEADLINE=500ms", "TRUNKLINE_LIMITS_PUBLISH_TIMEOUT=1m", "TRUNKLINE_LIMITS_SUBSCRIPTIONS=7",
		"TRUNKLINE_LIMITS_PING_INTERVAL=1s", "TRUNKLINE_LIMITS_LAME_DUCK_GRACE=2s", "TRUNKLINE_LIMITS_LAME_DUCK_SPREAD=3s", "TRUNKLINE_STORAGE_SYNC_PARALLEL=2",
		"TRUNKLINE_STORAGE_OPEN_FILES=4096", "TRUNKLINE_STORAGE_RESERVE=1MiB", "TRUNKLINE_STORAGE_MEMORY=1GiB", "TRUNKLINE_PLUGINS_DIR=/p", "TRUNKLINE_PLUGINS_BREAKER_CRASHES=5", "TRUNKLINE_PLUGINS_BREAKER_WINDOW=30s",
		"TRUNKLINE_LOG_LEVEL=debug", "TRUNKLINE_LOG_FORMAT=json"}
	if len(env) != len(keys()) {
		t.Errorf("%d variables for %d keys", len(env), len(keys()))
	}
	got, err = open(nil, env)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("environment: %v\n%s", err, diff)
	}
	got, err = open([]string{"-t", "--data", "/d", "--listen", "[::1]:0", "--http", "-", "--advertise", "broker.example:8765", "--broker-id", "7", "--metadata", "zookeeper", "--zookeeper", "zk1:2181,zk2:2181"}, env[7:])
	want.Test = true
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("flags: %v\n%s", err, diff)
	}
}

func TestFaults(t *testing.T) {
	for _, test := range []struct {
		name, file string
		args, env  []string
		want       string
	}{
		{"unknown key", "limits:\n  paylod: 1MiB\n", nil, nil, "unknown key limits.paylod; did you mean limits.payload?"},
		{"unknown key far from all", "xyzzyplugh: 1\n", nil, nil, "unknown key xyzzyplugh"},
		{"a key with a dash", "broker-id: 1\n", nil, nil, "did you mean broker_id?"},
		{"a group as a value", "limits: 5\n", nil, nil, "limits is a group of keys"},
		{"a value as a group", "data:\n  dir: /x\n", nil, nil, "unknown key data.dir"},
		{"a key that is not built", "zookeeper: {tls: true}\n", nil, nil, "unknown key zookeeper.tls"},
		{"no value", "data:\n", nil, nil, "data has no value"},
		{"no YAML", "listen: [1\n", nil, nil, ":1: it is no YAML: "},
		{"a key twice", "listen: a:1\nlisten: a:2\n", nil, nil, ":2: listen is set twice, first in line 1"},
		{"a group twice", "log: {level: info}\nlimits: {payload: 2MiB}\nlog: {format: json}\n", nil, nil, ":3: log is there twice, first in line 1"},
		{"a list as the file", "- listen\n", nil, nil, "no group of keys"},
		{"a fraction", "limits: {connections: 1.50}\n", nil, nil, `"1.50" is not a whole number`},
		{"a time where a number belongs", "broker_id: 2026-11-22\n", nil, nil, `"2026-11-22" is not`},
		{"a size without unit", "limits: {payload: 1048576}\n", nil, nil, `size "1048576" has no unit; write`},
		{"a time without unit", "limits: {write_deadline: 10}\n", nil, nil, `time "10" has no unit; write`},
		{"a size out of range", "limits: {payload: 1GiB}\n", nil, nil, "not a size from 1KiB to 64MiB"},
		{"a time out of range", "limits: {publish_timeout: 1ns}\n", nil, nil, "not a time from 10ms to 1h"},
		{"a number out of range", "topics: {defaults: {partitions: 2049}}\n", nil, nil, "not a whole number from 1 to 2048"},
		{"no whole number", "limits: {connections: 1.5}\n", nil, nil, "not a whole number"},
		{"no truth", "topics: {auto_create: maybe}\n", nil, nil, "neither true nor false"},
		{"a list as a value", "data: [a, b]\n", nil, nil, "where one value belongs"},
		{"a value as a list", "subjects: {live: 5}\n", nil, nil, "is no list"},
		{"a number as a subject", "subjects: {live: [5]}\n", nil, nil, "not a subject"},
		{"no subject", "subjects: {live: [\"a..b\"]}\n", nil, nil, "is no subject"},
		{"no level", "log: {level: loud}\n", nil, nil, "not one of debug, info, warn, error"},
		{"no format", "log: {format: xml}\n", nil, nil, "not one of auto, console, json, text"},
		{"pending below payload", "limits: {pending: 512KiB}\n", nil, nil, "less than limits.payload"},
		{"no such file", "", []string{"-c", "/nonexistent/t.yaml"}, nil, "/nonexistent/t.yaml"},
		{"an empty file name", "", []string{"-c", ""}, nil, "configuration file"},
		{"unknown flag", "", []string{"--lisen", "x"}, nil, "unknown flag: --lisen; did you mean --listen?"},
		{"a flag without its value", "", []string{"--listen"}, nil, "needs an argument"},
		{"an argument", "", []string{"start"}, nil, `unexpected argument "start"`},
		{"no port", "", []string{"--listen", "localhost"}, nil, "is no address"},
		{"port by name", "", []string{"--listen", "localhost:http"}, nil, "is no address"},
		{"port too large", "", []string{"--http", ":65536"}, nil, "is no address"},
		{"one port for two", "", []string{"--http", "127.0.0.1:8765"}, nil, "the same address"},
		{"no listener", "", []string{"--listen", "-"}, nil, "is no address"},
		{"advertised without host", "", []string{"--advertise", ":8765"}, nil, "names no host"},
		{"advertised port 0", "", []string{"--advertise", "h:0"}, nil, "from 1 to 65535"},
		{"broker number", "", []string{"--broker-id", "-1"}, nil, "not a whole number"},
		{"no data directory", "", []string{"--data", ""}, nil, "no directory"},
		{"zookeeper nowhere", "", []string{"--metadata", "zookeeper"}, nil, "write --zookeeper HOST:PORT"},
		{"zookeeper for nothing", "", []string{"--metadata", "embedded", "--zookeeper", "zk1:2181"}, nil, "leave one of them out"},
		{"other metadata", "", []string{"--metadata", "etcd"}, nil, `"etcd" is not one of embedded, zookeeper`},
		{"a server without port", "", []string{"--zookeeper", "zk1:2181,zk2"}, nil, `"zk2" is no server`},
		{"a server at port 0", "", []string{"--zookeeper", "zk1:0"}, nil, "is no address"},
		{"a server without host", "", []string{"--zookeeper", ":2181"}, nil, `":2181" is no server`},
		{"a chroot without slash", "zookeeper: {chroot: trunkline}\n", nil, nil, "is no path"},
		{"a chroot with a slash too many", "zookeeper: {chroot: /trunkline/}\n", nil, nil, "is no path"},
		{"a chroot that leads up", "zookeeper: {chroot: /a/..}\n", nil, nil, "is no path"},
		{"a digest without password", "zookeeper: {digest: user}\n", nil, nil, "not USER:PASSWORD"},
		{"in the environment", "", nil, []string{"TRUNKLINE_LOG_LEVEL=loud"}, "log.level (from TRUNKLINE_LOG_LEVEL)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := load(t, test.file, test.args, test.env)
			var e *Error
			if !errors.As(err, &e) || len(e.Faults) != 1 || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("got %v, want one fault with %q", err, test.want)
			}
			if diff := cmp.Diff(Config{}, c); diff != "" {
				t.Errorf("beside an error came\n%s", diff)
			}
		})
	}
}

func TestNamedServersAreAWishForZookeeper(t *testing.T) {
	c, err := open([]string{"--zookeeper", "zk1:2181"}, nil)
	if err != nil || c.Metadata != MetadataZookeeper {
		t.Errorf("metadata is %q, %v", c.Metadata, err)
	}
	_, err = load(t, "zookeeper: {digest: \"secret\"}\n", nil, nil)
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a password is repeated: %v", err)
	}
}

func TestAllFaultsAreReportedAtOnceWithTheirLines(t *testing.T) {
	const file = "listn: x\nlog: {level: loud}\n\n# a comment\nlimits:\n  payload: 7\n  pending: 100KiB\n  connections: 0\nsubjects:\n  live: [a..b]\nfoo: {bar: 1}\n"
	_, err := load(t, file, []string{"--broker-id", "x", "extra"}, []string{"TRUNKLINE_HTTP=nowhere", "TRUNKLINE_LIMITS_PAYLOAD=1MiB"})
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatal(err)
	}
	want := []string{`unexpected argument "extra"`, "t.conf:1: unknown key listn; did you mean listen?", "t.conf:11: unknown key foo.bar", "http (from TRUNKLINE_HTTP): ",
		"broker_id (from --broker-id): ", "t.conf:10: subjects.live ", "t.conf:8: limits.connections ", "t.conf:2: log.level ", "limits.pending (from "}
	for i, fault := range e.Faults {
		if i >= len(want) || !strings.Contains(fault, want[i]) {
			t.Errorf("fault %d is %q", i, fault)
		}
	}
	if len(e.Faults) != len(want) {
		t.Errorf("%d faults, want %d", len(e.Faults), len(want))
	}
}

func TestFileIsFoundWhereNoneIsNamed(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write := func(path, listen string) string {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("listen: "+listen+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	home := []string{"HOME=" + filepath.Join(dir, "home")}
	if c, err := open(nil, home); c.File != "" || err != nil {
		t.Errorf("read %q, %v", c.File, err)
	}
	steps := []struct{ path, listen string }{
		{write(filepath.Join(dir, "home", ".config", "trunkline", "trunkline.yaml"), "h:1"), "h:1"},
		{write(filepath.Join(dir, "xdg", "trunkline", "trunkline.yaml"), "h:2"), "h:2"},
	}
	xdg := append([]string{"XDG_CONFIG_HOME=" + filepath.Join(dir, "xdg")}, home...)
	for i, env := range [][]string{home, xdg} {
		if c, err := open(nil, env); c.File != steps[i].path || c.Listen != steps[i].listen || err != nil {
			t.Errorf("read %q: %+v, %v", c.File, c.Listen, err)
		}
	}
	write("trunkline.yaml", "h:3")
	if c, err := open(nil, xdg); c.File != "trunkline.yaml" || c.Listen != "h:3" || err != nil {
		t.Errorf("read %q, %v", c.File, err)
	}
	named := append([]string{"TRUNKLINE_CONFIG=" + write(filepath.Join(dir, "other.yaml"), "h:4")}, xdg...)
	if c, err := open(nil, named); c.Listen != "h:4" || err != nil || len(c.Warnings) != 0 {
		t.Errorf("read %q, %v, %q", c.File, err, c.Warnings)
	}
	if c, err := open([]string{"-c", write(filepath.Join(dir, "flag.yaml"), "h:5")}, named); c.Listen != "h:5" || err != nil {
		t.Errorf("read %q, %v", c.File, err)
	}
	if _, err := open(nil, []string{"TRUNKLINE_CONFIG=" + filepath.Join(dir, "gone.yaml")}); err == nil || !strings.Contains(err.Error(), "gone.yaml") {
		t.Error(err)
	}
}

func TestAGroupWithoutKeysIsNothing(t *testing.T) {
	if _, err := load(t, "limits:\n  # payload: 1MiB\nlog: {}\n", nil, nil); err != nil {
		t.Error(err)
	}
}

func TestUnknownVariablesWarn(t *testing.T) {
	c, err := open(nil, []string{"TRUNKLINE_URL=x", "TRUNKLINE_CONTEXT=x", "TRUNKLINE_TEST_REQUIRE=1", "TRUNKLINE_LISTN=secret", "TRUNKLINE_", "TRUNKLINEX=1", "OTHER_LISTEN=1"})
	if err != nil || len(c.Warnings) != 2 || !strings.Contains(c.Warnings[0], "TRUNKLINE_LISTN is not known") || !strings.Contains(c.Warnings[0], "listen?") ||
		strings.Contains(strings.Join(c.Warnings, ""), "secret") {
		t.Errorf("%q, %v", c.Warnings, err)
	}
}

func TestHelp(t *testing.T) {
	for _, arg := range []string{"-h", "--help"} {
		if _, err := open([]string{arg}, nil); !errors.Is(err, ErrHelp) {
			t.Errorf("%s: %v", arg, err)
		}
	}
	usage := Usage()
	for _, want := range []string{"-c, --config FILE", "-t, --test", "--data", "--listen", "--http", "--advertise", "--broker-id", "--metadata", "127.0.0.1:8765"} {
		if !strings.Contains(usage, want) {
			t.Errorf("usage lacks %q:\n%s", want, usage)
		}
	}
}
