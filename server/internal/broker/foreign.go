package broker

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

// Foreign says which plugins of third parties may be started.
type Foreign struct {
	Dir   string                              // where their executables lie; absolute
	Named map[string]map[string]ForeignPlugin // by kind and name
}

// ForeignPlugin is a plugin of a third party.
type ForeignPlugin struct {
	SHA256 []string        // what its executable may be
	Config json.RawMessage // a JSON object, handed over as it is; empty: none
}

// Breaker says when a plugin that crashes again and again is left stopped. Without Crashes it never is.
type Breaker struct {
	Crashes int
	Window  time.Duration
}

// The kinds of plugins.
const (
	kindStorage     = "storage"
	kindPartitioner = "partitioner"
	kindMetadata    = "metadata"
)

// Shipped are the names of the plugins of a kind that live in the server's binary.
func Shipped(kind string) []string {
	switch kind {
	case kindStorage:
		return shippedStores()
	case kindPartitioner:
		return shippedPartitioners()
	case kindMetadata:
		return []string{defaultMetadata, "zookeeper"}
	}
	return nil
}

// foreigners are the plugins of third parties, as the configuration last said.
type foreigners struct {
	read func() (Foreign, error) // nil: there are none

	mu   sync.Mutex
	now  Foreign
	used map[[2]string]ForeignPlugin // by kind and name: as each was when a process was last made
}

// refresh reads the configuration again. On error everything stays as it was.
func (f *foreigners) refresh() error {
	if f.read == nil {
		return nil
	}
	now, err := f.read()
	if err != nil {
		return err
	}
	for kind, named := range now.Named {
		for name := range named {
			if slices.Contains(Shipped(kind), name) {
				return fmt.Errorf("plugins.%s.%s: the server ships a plugin of that name; choose another name for yours", kind, name)
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = now
	return nil
}

func (f *foreigners) get(kind, name string) (ForeignPlugin, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.now.Named[kind][name]
	return p, ok
}

// open opens the executable of a plugin that may be started.
func (f *foreigners) open(kind, name string) (*host.Executable, error) {
	f.mu.Lock()
	dir, p := f.now.Dir, f.now.Named[kind][name]
	f.mu.Unlock()
	exe, err := host.OpenExecutable(filepath.Join(dir, host.ExecutableName(kind, name)))
	if err != nil {
		return nil, err
	}
	if err := exe.Matches(p.SHA256); err != nil {
		return nil, errors.Join(err, exe.Close())
	}
	exe.Config = p.Config
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.used == nil {
		f.used = make(map[[2]string]ForeignPlugin)
	}
	f.used[[2]string{kind, name}] = p
	return exe, nil
}

// PluginChange is a plugin of a third party of which a configuration says something else than what the broker goes by.
type PluginChange struct {
	Kind, Name string
	What       string // "added", "changed" or "removed"
}

// PluginChanges tells, by kind and name, how a configuration differs from what the broker goes by until ReloadPlugin.
func (b *Broker) PluginChanges(next Foreign) []PluginChange {
	f := &b.foreign
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []PluginChange
	for kind, named := range next.Named {
		for name, p := range named {
			now, known := f.now.Named[kind][name]
			if used, ok := f.used[[2]string{kind, name}]; ok {
				now = used
			}
			switch {
			case !known:
				all = append(all, PluginChange{kind, name, "added"})
			case !slices.Equal(now.SHA256, p.SHA256) || !bytes.Equal(now.Config, p.Config):
				all = append(all, PluginChange{kind, name, "changed"})
			}
		}
	}
	for kind, named := range f.now.Named {
		for name := range named {
			if _, ok := next.Named[kind][name]; !ok {
				all = append(all, PluginChange{kind, name, "removed"})
			}
		}
	}
	slices.SortFunc(all, func(a, b PluginChange) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) })
	return all
}

// available are the names of the plugins of a kind that may be started, in order.
func (b *Broker) available(kind string) []string {
	names := Shipped(kind)
	b.foreign.mu.Lock()
	defer b.foreign.mu.Unlock()
	for name := range b.foreign.now.Named[kind] {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// mustBeAvailable refuses the name of a plugin that there is none of.
func (b *Broker) mustBeAvailable(kind, what, name string) *errcode.Error {
	names := b.available(kind)
	if slices.Contains(names, name) {
		return nil
	}
	return errcode.New(errcode.BadSetting, fmt.Sprintf("there is no %s %q", what, name[:min(len(name), 64)]), "choose "+strings.Join(names, ", "))
}

// supervise makes the supervisor of a plugin, shipped or of a third party.
func (b *Broker) supervise(kind, name string, s host.Spec) *host.Supervisor {
	s.Kind, s.Name, s.RunDir = kind, name, b.runs
	if kind != kindPartitioner {
		s.Data = b.opt.Data.Path
	}
	if _, ok := b.foreign.get(kind, name); ok {
		s.Executable = func() (*host.Executable, error) { return b.foreign.open(kind, name) }
		s.Config = nil // what is handed over comes with the executable
	} else {
		s.Command = append(slices.Clone(b.opt.Plugin), kind, name)
		if len(s.Config) == 0 {
			s.Config, _ = json.Marshal(map[string]string{"data": b.opt.Data.Path}) // cannot fail: a map of strings
		}
	}
	return host.New(s, host.Options{Logger: b.log, BreakerCrashes: b.opt.Breaker.Crashes, BreakerWindow: b.opt.Breaker.Window})
}
