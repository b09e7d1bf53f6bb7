package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// entry is a key with its value, as it stands in a file.
type entry struct {
	name     string
	value    any
	comments []string // the lines in front of it
	origin   string   // behind it; empty: nothing
}

// Show returns the configuration that args, env and the file make, as a file; with origin it says of every value where it
// comes from. Secrets are left out. The errors are those of Open.
func Show(args, env []string, origin bool) (string, error) {
	c, l, err := loadAll(args, env)
	if err != nil {
		return "", err
	}
	var all []entry
	for _, k := range l.keys {
		e := entry{name: k.name, value: l.values.Get(k.name)}
		if text, ok := e.value.(string); ok {
			e.value = k.shown(text)
		}
		if origin {
			if e.origin = l.origin[k.name]; e.origin == "" {
				e.origin = "default"
			}
		}
		if k.name == "metadata" && e.value != c.Metadata { // named servers are a wish for it
			e.value = c.Metadata
			if origin {
				e.origin = "zookeeper.servers"
			}
		}
		if k.name == "log.level" {
			all = append(all, l.namedPlugins()...)
		}
		all = append(all, e)
	}
	return render(all)
}

// namedPlugins are the plugins of third parties. Their own configuration may hold secrets, and is left out.
func (l *loader) namedPlugins() []entry {
	var all []entry
	for _, kind := range slices.Sorted(maps.Keys(l.plugins)) {
		for _, name := range slices.Sorted(maps.Keys(l.plugins[kind])) {
			p, e := l.plugins[kind][name], entry{name: "plugins." + kind + "." + name + ".sha256"}
			e.value = p.SHA256
			if len(p.Config) > 0 {
				e.comments = []string{"Its config is not shown."}
			}
			all = append(all, e)
		}
	}
	return all
}

// render writes entries as a file: those of one group stand together.
func render(all []entry) (string, error) {
	var b strings.Builder
	var open []string
	for _, e := range all {
		path := strings.Split(e.name, ".")
		groups, name := path[:len(path)-1], path[len(path)-1]
		same := 0
		for same < len(groups) && same < len(open) && groups[same] == open[same] {
			same++
		}
		if b.Len() > 0 && (len(open) != len(groups) || same != len(groups)) {
			b.WriteString("\n")
		}
		for depth := same; depth < len(groups); depth++ {
			fmt.Fprintf(&b, "%s%s:\n", strings.Repeat("  ", depth), groups[depth])
		}
		open = groups
		indent := strings.Repeat("  ", len(groups))
		for _, c := range e.comments {
			fmt.Fprintf(&b, "%s# %s\n", indent, c)
		}
		text, err := scalar(e.value)
		if err != nil {
			return "", fmt.Errorf("show %s: %w", e.name, err)
		}
		fmt.Fprintf(&b, "%s%s: %s", indent, name, text)
		if e.origin != "" {
			fmt.Fprintf(&b, "  # %s", e.origin)
		}
		b.WriteString("\n")
	}
	return b.String(), nil
}

// scalar writes a value on one line.
func scalar(value any) (string, error) {
	var n yaml.Node
	if err := n.Encode(value); err != nil {
		return "", err
	}
	n.Style |= yaml.FlowStyle
	for _, item := range n.Content {
		item.Style |= yaml.FlowStyle
	}
	text, err := yaml.Marshal(&n)
	return strings.TrimSuffix(string(text), "\n"), err
}
