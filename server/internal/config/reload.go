package config

import (
	"fmt"
	"slices"
)

// reloadable lists the keys that a running server takes over when it is sent HUP. All others need a restart.
func reloadable() []string {
	return []string{
		"topics.auto_create", "topics.auto_create_max", "topics.defaults.partitions",
		"limits.connections", "limits.subscriptions", "limits.pending", "limits.write_deadline",
		"limits.lame_duck_grace", "limits.lame_duck_spread", "log.level",
	}
}

// Source is where a configuration came from: it can be read again.
type Source struct {
	args, env []string
	said      map[string]string // every key's value, as it was written
}

// Change is a key whose value is another one than before. Values that are secret are not told.
type Change struct {
	Key, Old, New string
	Restart       bool // a running server cannot take it over
}

// Reading is a configuration that was read again.
type Reading struct {
	Config  Config
	Changes []Change // in the order of the keys
	said    map[string]string
}

// Open reads args, the command line without the program's name, env, as os.Environ gives it, and the file that they name.
// The Source reads the same again. The error is ErrHelp or an *Error.
func Open(args, env []string) (Config, *Source, error) {
	c, l, err := loadAll(args, env)
	if err != nil {
		return c, nil, err
	}
	return c, &Source{args: args, env: env, said: l.said()}, nil
}

// Read reads the configuration again and tells how it differs from what was last accepted. The error is an *Error with
// every fault; then nothing is to be changed.
func (s *Source) Read() (Reading, error) {
	c, l, err := loadAll(s.args, s.env)
	if err != nil {
		return Reading{}, err
	}
	r := Reading{Config: c, said: l.said()}
	for _, k := range l.keys {
		old, now := s.said[k.name], r.said[k.name]
		if old != now {
			r.Changes = append(r.Changes, Change{k.name, k.shown(old), k.shown(now), !slices.Contains(reloadable(), k.name)})
		}
	}
	return r, nil
}

// Accept makes a reading what later ones are held against.
func (s *Source) Accept(r Reading) { s.said = r.said }

// said is every key's value as it was written, or its default.
func (l *loader) said() map[string]string {
	all := make(map[string]string, len(l.keys))
	for _, k := range l.keys {
		all[k.name] = fmt.Sprint(l.values.Get(k.name))
	}
	return all
}

// hidden stands for a value that is secret.
const hidden = "(hidden)"

// shown is a value as it may be printed and logged.
func (k *key) shown(value string) string {
	if k.name == "zookeeper.digest" && value != "" {
		return hidden
	}
	return value
}
