// Package config makes one checked Config out of flags, environment, a YAML file and defaults, in this order of
// precedence. Open reports every fault at once, so that an operator mends a file in one round.
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
	Metadata  string // MetadataEmbedded, MetadataZookeeper, or the name of a third party's plugin
	Zookeeper Zookeeper

	Topics       Topics
	LiveSubjects []string
	Limits       Limits
	Storage      Storage
	Plugins      Plugins
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
	OpenFiles    int   // descriptors for segments; 0: what connections leave of the process's own limit
	Reserve      int64 // bytes; -1: the store decides
	Memory       int64 // bytes that topics in memory may hold together
}

// Log says what is logged and how.
type Log struct {
	Level  slog.Level
	Format string // "auto", "console", "json" or "text"
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
	inFile   map[string]bool   // its origin is FILE:LINE
	bad      map[string]bool   // keys whose value is a fault
	plugins  map[string]map[string]Plugin
	faults   []string
	warnings []string
}

func newLoader() *loader {
	return &loader{keys: keys(), values: viper.New(), origin: map[string]string{}, inFile: map[string]bool{}, bad: map[string]bool{},
		plugins: map[string]map[string]Plugin{}}
}

func (l *loader) fault(format string, args ...any) {
	l.faults = append(l.faults, fmt.Sprintf(format, args...))
}

func loadAll(args, env []string) (Config, *loader, error) {
	l := newLoader()
	for _, k := range l.keys {
		l.values.SetDefault(k.name, k.def)
	}
	flags, opt := l.flagSet()
	if err := flags.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return Config{}, l, ErrHelp
	} else if err != nil {
		return Config{}, l, &Error{Faults: []string{err.Error() + l.nearestFlag(flags, err) + "; --help shows what there is"}}
	}
	for _, arg := range flags.Args() {
		l.fault("unexpected argument %q; --help shows what there is", arg)
	}
	c := Config{File: *opt.file, Test: *opt.test}
	if !flags.Changed("config") {
		c.File = findFile(env)
	}
	if c.File != "" || flags.Changed("config") {
		l.readFile(c.File)
	}
	l.readEnv(env)
	l.readFlags(flags)
	l.apply(&c)
	c.Warnings = l.warnings
	if len(l.faults) > 0 {
		return Config{}, l, &Error{Faults: l.faults}
	}
	return c, l, nil
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
			l.set(name, value, variable)
		case variable == "TRUNKLINE_CONFIG": // names the file
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
			l.set(k.name, flags.Lookup(k.flag).Value.String(), "--"+k.flag)
		}
	}
}

// set takes a value that does not come from the file.
func (l *loader) set(name string, value any, origin string) {
	l.values.Set(name, value)
	l.origin[name] = origin
	delete(l.inFile, name)
}

// faultOf is a fault of a key's value, with where it stands.
func (l *loader) faultOf(name, format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	if l.inFile[name] {
		l.fault("%s: %s %s", l.origin[name], name, what)
		return
	}
	l.fault("%s%s: %s", name, l.from(name), what)
}

// sound reports whether none of the keys has a fault of its own, so that they can be held against each other.
func (l *loader) sound(names ...string) bool {
	return !slices.ContainsFunc(names, func(name string) bool { return l.bad[name] })
}

// apply checks each value by itself, and then those that depend on each other.
func (l *loader) apply(c *Config) {
	for _, k := range l.keys {
		if err := k.set(c, l.values.Get(k.name)); err != nil {
			l.bad[k.name] = true
			l.faultOf(k.name, "%v", err)
		}
	}
	l.applyPlugins(c)
	if l.sound("metadata", "zookeeper.servers") {
		l.applyMetadata(c)
	}
	if l.sound("limits.pending", "limits.payload") && c.Limits.Pending < c.Limits.Payload {
		l.fault("limits.pending%s is less than limits.payload%s: a connection could never be sent the largest payload; raise the one or lower the other",
			l.from("limits.pending"), l.from("limits.payload"))
	}
	if l.sound("listen", "http") && c.HTTP == c.Listen && !strings.HasSuffix(c.Listen, ":0") {
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
	case c.Metadata != MetadataZookeeper && named:
		l.fault("metadata%s is %s, and zookeeper.servers%s names some, which would do nothing; leave one of them out",
			l.from("metadata"), c.Metadata, l.from("zookeeper.servers"))
	case c.Metadata == MetadataZookeeper, c.Metadata == MetadataEmbedded:
	default:
		if _, ok := c.Plugins.Named["metadata"][c.Metadata]; !ok {
			l.fault("metadata%s: %q is not one of %s, %s, and no plugins.metadata.%s is configured", l.from("metadata"), c.Metadata,
				MetadataEmbedded, MetadataZookeeper, clipped(c.Metadata))
		}
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

// nearestFlag names the flag that was probably meant.
func (l *loader) nearestFlag(flags *pflag.FlagSet, err error) string {
	unknown, ok := strings.CutPrefix(err.Error(), "unknown flag: --")
	best, cost := "", len(unknown)/3+1
	flags.VisitAll(func(f *pflag.Flag) {
		if d := distance(unknown, f.Name); ok && d < cost {
			best, cost = f.Name, d
		}
	})
	if best == "" {
		return ""
	}
	return "; did you mean --" + best + "?"
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
