package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Plugins says where plugins of third parties lie, which of them may be started, and when a plugin is given up.
type Plugins struct {
	Dir            string // empty: there are none
	BreakerCrashes int    // 0: a plugin is never given up
	BreakerWindow  time.Duration
	Named          map[string]map[string]Plugin // by kind and name
}

// Plugin is a plugin of a third party.
type Plugin struct {
	SHA256 []string        // what its executable may be, in hexadecimal
	Config json.RawMessage // a JSON object; empty: none
}

// pluginKinds are the kinds of plugins there are.
func pluginKinds() []string { return []string{"storage", "partitioner", "metadata"} }

// pluginName bounds a name: it is part of a file's name, of a socket's path, and of a topic's setting.
func pluginName() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,23}$`) }

func sha256Text() *regexp.Regexp { return regexp.MustCompile(`^[0-9a-fA-F]{64}$`) }

// pluginKeys are the keys of plugins that are the same for everybody. What is below plugins.<kind>.<name> stands in the
// file alone.
func pluginKeys() []key {
	return []key{
		{"plugins.dir", "", "", "Where executables of third parties lie, trunkline-plugin-<kind>-<name>; each is started only if plugins.<kind>.<name>.sha256 says which file it is, and gets what stands below plugins.<kind>.<name>.config.",
			parsed("a directory or empty", func(c *Config, s string) error {
				c.Plugins.Dir = s
				if strings.ContainsRune(s, 0) {
					return errors.New("is no directory's name")
				}
				return nil
			})},
		{"plugins.breaker_crashes", 0, "", "After so many crashes within plugins.breaker_window a plugin stays stopped until it is reloaded; 0 never gives it up, but starts it less and less often.",
			count(func(c *Config) *int { return &c.Plugins.BreakerCrashes }, 0, 1000)},
		{"plugins.breaker_window", "1m", "", "The time within which crashes are counted.",
			span(func(c *Config) *time.Duration { return &c.Plugins.BreakerWindow }, time.Second, 24*time.Hour)},
	}
}

// readPlugins reads what the file says below plugins.<kind>. A plugin's configuration is its own, and the case of its keys
// matters.
func (r *fileReader) readPlugins(kind string, group *yaml.Node) {
	var named map[string]yaml.Node
	if err := group.Decode(&named); err != nil {
		r.faultAt(group.Line, "plugins.%s is to be a group of plugins by name", kind)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		p, err := readPlugin(name, named[name])
		if err != nil {
			r.faultAt(named[name].Line, "plugins.%s.%s: %v", kind, clipped(name), err)
			continue
		}
		if r.plugins[kind] == nil {
			r.plugins[kind] = map[string]Plugin{}
		}
		r.plugins[kind][name] = p
	}
}

func clipped(s string) string { return fmt.Sprintf("%.64s", s) }

func readPlugin(name string, node yaml.Node) (Plugin, error) {
	var p Plugin
	if !pluginName().MatchString(name) {
		return p, errors.New("a plugin's name has 1 to 24 small letters, digits, - and _, and does not begin with one of the latter two")
	}
	raw, err := yaml.Marshal(&node)
	if err != nil {
		return p, err
	}
	var said struct {
		SHA256 yaml.Node      `yaml:"sha256"`
		Config map[string]any `yaml:"config"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&said); err != nil && !errors.Is(err, io.EOF) {
		return p, errors.New("it has sha256, a text or a list of texts, and config, a group, and nothing else")
	}
	if p.SHA256, err = readPins(said.SHA256); err != nil {
		return p, err
	}
	if said.Config != nil {
		if p.Config, err = json.Marshal(said.Config); err != nil {
			return p, fmt.Errorf("config cannot be handed over as JSON: %w", err)
		}
	}
	return p, nil
}

// readPins reads one hash or several: while an executable is being exchanged, the old and the new one are right.
func readPins(node yaml.Node) ([]string, error) {
	if node.IsZero() {
		return nil, errors.New("sha256 is missing; trunkline plugin verify FILE shows what to write")
	}
	var pins []string
	if node.Kind == yaml.ScalarNode {
		pins = []string{node.Value}
	} else if err := node.Decode(&pins); err != nil || len(pins) == 0 {
		return nil, errors.New("sha256 is neither a text nor a list of texts")
	}
	for _, pin := range pins {
		if !sha256Text().MatchString(pin) {
			return nil, fmt.Errorf("sha256 %s is not 64 hexadecimal digits; trunkline plugin verify FILE shows what to write", clipped(pin))
		}
	}
	return pins, nil
}

// applyPlugins hands over what was read of named plugins.
func (l *loader) applyPlugins(c *Config) {
	if len(l.plugins) == 0 {
		return
	}
	c.Plugins.Named = l.plugins
	if c.Plugins.Dir == "" {
		l.fault("plugins of third parties are configured, and plugins.dir does not say where they lie")
	}
}

// Reread returns the plugins as the configuration file names them now; everything else of them is as it was. The error
// is an *Error with every fault of the file.
func (c Config) Reread() (Plugins, error) {
	p := c.Plugins
	if c.File == "" {
		return p, nil
	}
	l := newLoader()
	l.readFile(c.File)
	p.Named = l.plugins
	if len(p.Named) > 0 && p.Dir == "" {
		l.fault("plugins of third parties are configured, and plugins.dir did not say where they lie when the server was started")
	}
	if len(l.faults) > 0 {
		return Plugins{}, &Error{Faults: l.faults}
	}
	return p, nil
}
