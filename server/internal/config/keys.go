package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// key is one setting: where it is named, what it is without being set, what it may be and what it does.
type key struct {
	name   string
	def    any    // as it would stand in a file
	flag   string // empty: no flag
	effect string
	kind
}

// kind is how a value is read and what it may be.
type kind struct {
	bounds string
	set    func(c *Config, value any) error
}

func (k *key) envName() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(k.name, ".", "_"))
}

// keys lists every key there is, in the order of the full configuration file.
func keys() []key {
	return slices.Concat([]key{
		{"data", "./trunkline-data", "data", "The directory that holds everything the server keeps. One server at a time.",
			path(func(c *Config) *string { return &c.Data })},
		{"listen", "127.0.0.1:8765", "listen", "Where clients connect. Port 0 picks a free one.",
			socket(func(c *Config) *string { return &c.Listen }, false)},
		{"http", "127.0.0.1:8766", "http", "Where health is asked for over HTTP. \"-\" turns it off; port 0 picks a free one.",
			socket(func(c *Config) *string { return &c.HTTP }, true)},
		{"advertise", "", "advertise", "What clients are told to connect to; empty: the address they reached.", advertised()},
		{"broker_id", 1, "broker-id", "This broker's number.",
			count(func(c *Config) *int32 { return &c.BrokerID }, 0, 1<<31-1)},
		{"metadata", MetadataEmbedded, "metadata", "Where topics and their settings are kept: embedded is a file in the data directory; zookeeper is taken when its servers are named.",
			parsed(MetadataEmbedded+", "+MetadataZookeeper+", or a plugin's name", func(c *Config, s string) error { c.Metadata = s; return nil })},

		{"zookeeper.servers", []string{}, "zookeeper", "The ZooKeeper ensemble, version 3.5 or newer. A server that starts waits 30s for it.", servers()},
		{"zookeeper.chroot", "/trunkline", "", "Where in ZooKeeper everything is kept; made where it is missing.", chroot()},
		{"zookeeper.session", "10s", "", "How long ZooKeeper waits for a broker that is silent before it takes it for dead; the ensemble sets limits, too.",
			span(func(c *Config) *time.Duration { return &c.Zookeeper.Session }, time.Second, time.Minute)},
		{"zookeeper.digest", "", "", "Who may read and change what is kept there; empty: everybody who reaches ZooKeeper.", digest()},

		{"topics.auto_create", true, "", "Whether a publish without reply-to makes the topic it names.",
			boolean(func(c *Config) *bool { return &c.Topics.AutoCreate })},
		{"topics.auto_create_max", 10000, "", "With so many topics, a publish makes no further one.",
			count(func(c *Config) *int { return &c.Topics.AutoCreateMax }, 0, 1_000_000)},
		{"topics.defaults.partitions", 1, "", "The number of partitions of a topic that is made without saying.",
			count(func(c *Config) *int32 { return &c.Topics.Partitions }, 1, partition.CountMax)},

		{"subjects.live", []string{}, "", "Patterns of subjects that are never topics, such as [\"live.>\"].", subjects()},

		{"limits.connections", 10000, "", "The number of client connections at a time.",
			count(func(c *Config) *int { return &c.Limits.Connections }, 1, 1_000_000)},
		{"limits.subscriptions", 0, "", "The number of subscriptions of one connection; 0 sets no bound.",
			count(func(c *Config) *int { return &c.Limits.Subscriptions }, 0, 100_000_000)},
		{"limits.control_line", "4KiB", "", "The length of a control line; NATS clients expect no less than 4KiB.",
			size(func(c *Config) *int { return &c.Limits.ControlLine }, 1<<10, 1<<20)},
		{"limits.payload", "1MiB", "", "The size of a payload, headers included.",
			size(func(c *Config) *int { return &c.Limits.Payload }, 1<<10, 64<<20)},
		{"limits.pending", "8MiB", "", "What waits to be sent on one connection before reading for it pauses, or, of live subjects, it is cut off; not below limits.payload.",
			size(func(c *Config) *int { return &c.Limits.Pending }, 64<<10, 1<<30)},
		{"limits.write_deadline", "10s", "", "How long a peer may accept nothing of what waits for it before it is cut off.",
			span(func(c *Config) *time.Duration { return &c.Limits.WriteDeadline }, 100*time.Millisecond, time.Hour)},
		{"limits.publish_timeout", "10s", "", "How long a publish may wait for its outcome.",
			span(func(c *Config) *time.Duration { return &c.Limits.PublishTimeout }, 10*time.Millisecond, time.Hour)},
		{"limits.ping_interval", "2m", "", "How long a client may say nothing before it is sent a PING; after two without an answer it is closed.",
			span(func(c *Config) *time.Duration { return &c.Limits.PingInterval }, 50*time.Millisecond, 24*time.Hour)},
		{"limits.lame_duck_grace", "10s", "", "How long clients may take to go elsewhere when the server is sent USR2.",
			span(func(c *Config) *time.Duration { return &c.Limits.LameDuck.Grace }, time.Millisecond, time.Hour)},
		{"limits.lame_duck_spread", "2m", "", "Over how long those that are left are then closed, one after the other.",
			span(func(c *Config) *time.Duration { return &c.Limits.LameDuck.Spread }, time.Millisecond, 24*time.Hour)},

		{"storage.sync_parallel", 64, "", "How many partitions are synced at a time.",
			count(func(c *Config) *int { return &c.Storage.SyncParallel }, 1, 1024)},
		{"storage.open_files", 0, "", "How many segments of all stores may be open, active and sealed ones; beyond it, idle partitions are parked. 0 takes what limits.connections leaves of the process's limit, at most half of that and at least 64.",
			count(func(c *Config) *int { return &c.Storage.OpenFiles }, 0, 10_000_000)},
		{"storage.reserve", "auto", "", "What is kept free for the store's own files when the disk is full; auto is 64MiB or 1/16 of the file system, whichever is less; 0 is none.",
			reserve()},
		{"storage.memory", "256MiB", "", "What topics with storage=memory may hold together. A segment that does not fit is refused: STORAGE_FULL.",
			size(func(c *Config) *int64 { return &c.Storage.Memory }, 1<<20, 1<<40)},
	}, pluginKeys(), []key{
		{"log.level", "info", "", "What is logged to stderr: this and what is graver.", level()},
		{"log.format", "auto", "", "How it is logged: console is for people, json and text are for programs; auto is console on a terminal, else json.",
			word(func(c *Config) *string { return &c.Log.Format }, "auto", "console", "json", "text")},
	})
}

func text(value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case bool, int, int64, uint64, float64:
		return fmt.Sprint(v), nil
	}
	return "", fmt.Errorf("is a %T where one value belongs", value)
}

// parsed is a kind for which one text says everything.
func parsed(bounds string, parse func(c *Config, s string) error) kind {
	return kind{bounds, func(c *Config, value any) error {
		s, err := text(value)
		if err != nil {
			return err
		}
		return parse(c, s)
	}}
}

func path(at func(*Config) *string) kind {
	return parsed("a directory", func(c *Config, s string) error {
		if s == "" || strings.ContainsRune(s, 0) {
			return errors.New("is no directory's name; name one")
		}
		*at(c) = s
		return nil
	})
}

func splitAddress(s string, portMin int) error {
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		var n int
		if n, err = strconv.Atoi(port); err == nil && n >= portMin && n <= 65535 {
			return nil
		}
	}
	return fmt.Errorf("%q is no address; write HOST:PORT with a port from %d to 65535, such as 127.0.0.1:8765", s, portMin)
}

func socket(at func(*Config) *string, mayBeOff bool) kind {
	bounds := "HOST:PORT"
	if mayBeOff {
		bounds += " or \"-\""
	}
	return parsed(bounds, func(c *Config, s string) error {
		if mayBeOff && (s == "" || s == "-") {
			*at(c) = ""
			return nil
		}
		*at(c) = s
		return splitAddress(s, 0)
	})
}

func advertised() kind {
	return parsed("HOST:PORT or empty", func(c *Config, s string) error {
		c.Advertise = s
		if s == "" {
			return nil
		}
		if host, _, _ := net.SplitHostPort(s); host == "" {
			return fmt.Errorf("%q names no host that a client could reach; write HOST:PORT", s)
		}
		return splitAddress(s, 1)
	})
}

// servers are a list in a file, and separated by commas elsewhere.
func servers() kind {
	return kind{"a list of HOST:PORT", func(c *Config, value any) error {
		all, err := list(value, "server", `["zk1:2181", "zk2:2181"]`)
		if err != nil {
			return err
		}
		c.Zookeeper.Servers = nil
		for _, s := range all {
			host, _, err := net.SplitHostPort(s)
			if err != nil || host == "" {
				return fmt.Errorf("%q is no server; write HOST:PORT, as in zk1:2181", s)
			}
			if err := splitAddress(s, 1); err != nil {
				return err
			}
			c.Zookeeper.Servers = append(c.Zookeeper.Servers, s)
		}
		return nil
	}}
}

// chrootBytesMax is what the store allows.
const chrootBytesMax = 100

func chroot() kind {
	return parsed("a path of letters, digits, . _ and -; / for the root", func(c *Config, s string) error {
		c.Zookeeper.Chroot = s
		if s == "/" {
			return nil
		}
		if !chrootPattern().MatchString(s) || len(s) > chrootBytesMax {
			return fmt.Errorf("%q is no path of at most %d bytes; write one like /trunkline", s, chrootBytesMax)
		}
		return nil
	})
}

// chrootPattern has no segment that begins with a dot, so none that is . or ..
func chrootPattern() *regexp.Regexp { return regexp.MustCompile(`^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$`) }

const digestBytesMax = 128

// digest does not repeat what it is given: it holds a password.
func digest() kind {
	return parsed("USER:PASSWORD or empty", func(c *Config, s string) error {
		c.Zookeeper.Digest = s
		user, password, _ := strings.Cut(s, ":")
		if s != "" && (user == "" || password == "" || len(s) > digestBytesMax) {
			return fmt.Errorf("it is not USER:PASSWORD of at most %d bytes", digestBytesMax)
		}
		return nil
	})
}

func boolean(at func(*Config) *bool) kind {
	return parsed("true or false", func(c *Config, s string) error {
		if s != "true" && s != "false" {
			return fmt.Errorf("%q is neither true nor false", s)
		}
		*at(c) = s == "true"
		return nil
	})
}

func count[T int | int32](at func(*Config) *T, lo, hi int64) kind {
	bounds := fmt.Sprintf("%d to %d", lo, hi)
	return parsed(bounds, func(c *Config, s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < lo || n > hi {
			return fmt.Errorf("%q is not a whole number from %s", s, bounds)
		}
		*at(c) = T(n)
		return nil
	})
}

func size[T int | int64](at func(*Config) *T, lo, hi int64) kind {
	bounds := address.FormatBytes(lo) + " to " + address.FormatBytes(hi)
	return parsed(bounds, func(c *Config, s string) error {
		n, err := address.ParseBytes(s)
		if err != nil {
			return plain(err)
		}
		if n < lo || n > hi {
			return fmt.Errorf("%q is not a size from %s", s, bounds)
		}
		*at(c) = T(n)
		return nil
	})
}

// reserveAuto stands for a reserve that the store measures by itself.
const reserveAuto = "auto"

// reserve reads a size, or "auto", which is -1.
func reserve() kind {
	return parsed("auto, or 0B to 1TiB", func(c *Config, s string) error {
		if s == reserveAuto {
			c.Storage.Reserve = -1
			return nil
		}
		n, err := address.ParseBytes(s)
		if err != nil {
			return plain(err)
		}
		if n < 0 || n > 1<<40 {
			return fmt.Errorf("%q is not auto or a size from 0B to 1TiB", s)
		}
		c.Storage.Reserve = n
		return nil
	})
}

func span(at func(*Config) *time.Duration, lo, hi time.Duration) kind {
	bounds := address.FormatDuration(lo) + " to " + address.FormatDuration(hi)
	return parsed(bounds, func(c *Config, s string) error {
		d, err := address.ParseDuration(s)
		if err != nil {
			return plain(err)
		}
		if d < lo || d > hi {
			return fmt.Errorf("%q is not a time from %s", s, bounds)
		}
		*at(c) = d
		return nil
	})
}

// plain leaves a wire code out, which says nothing to who edits a file.
func plain(err error) error { return errors.New(errcode.From(err, errcode.BadSetting).Text()) }

func word(at func(*Config) *string, allowed ...string) kind {
	bounds := strings.Join(allowed, ", ")
	return parsed(bounds, func(c *Config, s string) error {
		*at(c) = s
		if !slices.Contains(allowed, s) {
			return fmt.Errorf("%q is not one of %s", s, bounds)
		}
		return nil
	})
}

func level() kind {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	const bounds = "debug, info, warn, error"
	return parsed(bounds, func(c *Config, s string) error {
		at, ok := levels[s]
		if !ok {
			return fmt.Errorf("%q is not one of %s", s, bounds)
		}
		c.Log.Level = at
		return nil
	})
}

// list reads several values: a list in a file, separated by commas elsewhere.
func list(value any, what, example string) ([]string, error) {
	var all []string
	switch v := value.(type) {
	case []string:
		all = v
	case string:
		if v != "" {
			all = strings.Split(v, ",")
		}
	case []any:
		for _, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, fmt.Errorf("%v is a %T, not a %s; write it in quotes", item, item, what)
			}
			all = append(all, s)
		}
	default:
		return nil, fmt.Errorf("is no list; write %s", example)
	}
	trimmed := make([]string, len(all))
	for i, s := range all {
		trimmed[i] = strings.TrimSpace(s)
	}
	return trimmed, nil
}

func subjects() kind {
	return kind{"a list of subjects, * and > allowed", func(c *Config, value any) error {
		all, err := list(value, "subject", `["live.>"]`)
		if err != nil {
			return err
		}
		c.LiveSubjects = nil
		for _, s := range all {
			if !address.ValidSubject(s) {
				return fmt.Errorf("%q is no subject; write tokens joined by dots, * for one token, > at the end for the rest", s)
			}
			c.LiveSubjects = append(c.LiveSubjects, s)
		}
		return nil
	}}
}
