// Package config makes one checked Config out of flags, environment, a YAML file and defaults, in this order of
// precedence. Load reports every fault at once, so that an operator mends a file in one round.
//
// It is the only package that knows viper. It reads the configuration file and nothing else: whether a directory can be
// written or a port is free, the server finds out.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// Config is a checked configuration.
type Config struct {
	File string // the file that was read; empty without one
	Test bool   // check the configuration and exit

	Data      string
	Listen    string
	HTTP      string // empty: no HTTP
	Advertise string // empty: the address the client reached
	BrokerID  int32
	Metadata  string // MetadataEmbedded or MetadataZookeeper
	Zookeeper Zookeeper

	Topics       Topics
	LiveSubjects []string
	Limits       Limits
	Storage      Storage
	Log          Log

	Warnings []string // what does not stop the server but an operator should hear
}

// The metadata stores there are.
const (
	MetadataEmbedded  = "embedded"
	MetadataZookeeper = "zookeeper"
)

// Zookeeper says where ZooKeeper is and what is ours in it.
type Zookeeper struct {
	Servers []string // HOST:PORT each
	Chroot  string
	Session time.Duration
	Digest  string // "user:password"; empty: everybody may read and write
}

// Topics are the settings of topics nobody made settings for.
type Topics struct {
	AutoCreate    bool
	AutoCreateMax int // no topic is made by a publish when there are so many
	Partitions    int32
}

// Limits bound what peers may cost. Sizes are in bytes.
type Limits struct {
	Connections    int
	ControlLine    int
	Payload        int
	Pending        int
	WriteDeadline  time.Duration
	PublishTimeout time.Duration
	Subscriptions  int // of one connection; 0: any number
	PingInterval   time.Duration
	LameDuck       LameDuck
}

// LameDuck says how a server that is to go lets its clients go.
type LameDuck struct {
	Grace  time.Duration // for going by themselves
	Spread time.Duration // over which those that are left are closed
}

// Storage bounds what the log may take of the machine.
type Storage struct {
	SyncParallel int
	OpenFiles    int   // 0: half of what the process's own limit leaves
	Reserve      int64 // bytes; -1: the store decides
}

// Log says what is logged and how.
type Log struct {
	Level  slog.Level
	Format string // "text" or "json"
}

// Error lists what is wrong with a command line or a configuration. It means exit code 2.
type Error struct{ Faults []string }

func (e *Error) Error() string { return strings.Join(e.Faults, "\n") }

// ErrHelp says that the command line asks for Usage.
var ErrHelp = errors.New("help is asked for")

// envPrefix begins the names of our variables.
const envPrefix = "TRUNKLINE_"

// loader gathers values and faults from all sources.
type loader struct {
	keys     []key
	values   *viper.Viper
	origin   map[string]string // of a value, by key
	faults   []string
	warnings []string
}

func (l *loader) fault(format string, args ...any) {
	l.faults = append(l.faults, fmt.Sprintf(format, args...))
}

// Load reads args, the command line without the program's name, env, as os.Environ gives it, and the file that they
// name. The error is ErrHelp or an *Error.
func Load(args, env []string) (Config, error) {
	l := &loader{keys: keys(), values: viper.New(), origin: map[string]string{}}
	for _, k := range l.keys {
		l.values.SetDefault(k.name, k.def)
	}
	flags, opt := l.flagSet()
	if err := flags.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return Config{}, ErrHelp
	} else if err != nil {
		return Config{}, &Error{Faults: []string{err.Error() + "; --help shows what there is"}}
	}
	for _, arg := range flags.Args() {
		l.fault("unexpected argument %q; --help shows what there is", arg)
	}
	c := Config{File: *opt.file, Test: *opt.test}
	if flags.Changed("config") {
		l.readFile(c.File)
	}
	l.readEnv(env)
	l.readFlags(flags)
	l.apply(&c)
	c.Warnings = l.warnings
	if len(l.faults) > 0 {
		return Config{}, &Error{Faults: l.faults}
	}
	return c, nil
}

// readFile takes the file's values in. Keys that are not known are faults: a setting that is misspelt must not be one
// that silently does nothing.
func (l *loader) readFile(path string) {
	file := viper.New()
	file.SetConfigFile(path)
	file.SetConfigType("yaml")
	if err := file.ReadInConfig(); err != nil {
		l.fault("configuration file %s: %s", path, strings.ReplaceAll(err.Error(), "\n", " "))
		return
	}
	found := file.AllKeys()
	slices.Sort(found)
	for _, name := range found {
		value := file.Get(name)
		switch {
		case l.known(name) && value == nil:
			l.fault("%s: %s has no value; write one, or leave the key out", path, name)
		case l.known(name):
			l.values.Set(name, value)
			l.origin[name] = path
		case value == nil && l.isGroup(name): // all its keys are commented out
		case l.isGroup(name):
			l.fault("%s: %s is a group of keys, not a value; write the keys below it, indented", path, name)
		default:
			l.fault("%s: unknown key %s%s", path, name, l.didYouMean(name))
		}
	}
}

func (l *loader) readEnv(env []string) {
	names := map[string]string{}
	for _, k := range l.keys {
		names[k.envName()] = k.name
	}
	for _, entry := range env {
		variable, value, _ := strings.Cut(entry, "=")
		switch name, known := names[variable]; {
		case !strings.HasPrefix(variable, envPrefix):
		case known:
			l.values.Set(name, value)
			l.origin[name] = variable
		case variable == "TRUNKLINE_URL", variable == "TRUNKLINE_CONTEXT", strings.HasPrefix(variable, "TRUNKLINE_TEST_"):
			// the client's, and the tests' own
		default:
			guess := strings.ToLower(strings.TrimPrefix(variable, envPrefix))
			l.warnings = append(l.warnings, fmt.Sprintf("environment variable %s is not known and changes nothing%s", variable, l.didYouMean(guess)))
		}
	}
}

func (l *loader) readFlags(flags *pflag.FlagSet) {
	for _, k := range l.keys {
		if k.flag != "" && flags.Changed(k.flag) {
			l.values.Set(k.name, flags.Lookup(k.flag).Value.String())
			l.origin[k.name] = "--" + k.flag
		}
	}
}

// apply checks each value by itself, and then those that depend on each other.
func (l *loader) apply(c *Config) {
	for _, k := range l.keys {
		if err := k.set(c, l.values.Get(k.name)); err != nil {
			l.fault("%s%s: %v", k.name, l.from(k.name), err)
		}
	}
	if len(l.faults) > 0 {
		return
	}
	l.applyMetadata(c)
	if c.Limits.Pending < c.Limits.Payload {
		l.fault("limits.pending%s is less than limits.payload%s: a connection could never be sent the largest payload; raise the one or lower the other",
			l.from("limits.pending"), l.from("limits.payload"))
	}
	if c.HTTP == c.Listen && !strings.HasSuffix(c.Listen, ":0") {
		l.fault("listen%s and http%s are the same address %s; give each its own port", l.from("listen"), l.from("http"), c.Listen)
	}
}

// applyMetadata takes named servers for a wish for ZooKeeper, unless metadata says something else.
func (l *loader) applyMetadata(c *Config) {
	named := len(c.Zookeeper.Servers) > 0
	if named && l.origin["metadata"] == "" {
		c.Metadata = MetadataZookeeper
	}
	switch {
	case c.Metadata == MetadataZookeeper && !named:
		l.fault("metadata%s is zookeeper, and zookeeper.servers names none; write --zookeeper HOST:PORT", l.from("metadata"))
	case c.Metadata == MetadataEmbedded && named:
		l.fault("metadata%s is embedded, and zookeeper.servers%s names some, which would do nothing; leave one of them out",
			l.from("metadata"), l.from("zookeeper.servers"))
	}
}

// from names a value's origin, and nothing where it is the default.
func (l *loader) from(name string) string {
	if origin := l.origin[name]; origin != "" {
		return " (from " + origin + ")"
	}
	return ""
}

func (l *loader) known(name string) bool {
	return slices.ContainsFunc(l.keys, func(k key) bool { return k.name == name })
}

func (l *loader) isGroup(name string) bool {
	return slices.ContainsFunc(l.keys, func(k key) bool { return strings.HasPrefix(k.name, name+".") })
}

// didYouMean names the key nearest to name, compared without regard to dots, where one is near.
func (l *loader) didYouMean(name string) string {
	flat := func(s string) string { return strings.NewReplacer(".", "", "_", "", "-", "").Replace(s) }
	best, cost := "", len(name)/3+1
	for _, k := range l.keys {
		if d := distance(flat(name), flat(k.name)); d < cost {
			best, cost = k.name, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

// distance is the number of insertions, deletions and changes between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
