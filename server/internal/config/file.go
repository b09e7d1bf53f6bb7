package config

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// fileName is what a configuration file is called where none is named.
const fileName = "trunkline.yaml"

// places are where a configuration file is looked for, in this order, when the command line names none.
func places(env func(string) string) []string {
	var all []string
	if named := env("TRUNKLINE_CONFIG"); named != "" {
		return []string{named} // and nowhere else: a name that is wrong must be told
	}
	all = append(all, fileName)
	switch home := env("HOME"); {
	case env("XDG_CONFIG_HOME") != "":
		all = append(all, filepath.Join(env("XDG_CONFIG_HOME"), "trunkline", fileName))
	case home != "":
		all = append(all, filepath.Join(home, ".config", "trunkline", fileName))
	}
	return append(all, filepath.Join("/etc/trunkline", fileName))
}

// findFile returns the file to read, empty for none.
func findFile(env []string) string {
	lookup := func(name string) string {
		for _, entry := range slices.Backward(env) {
			if value, ok := strings.CutPrefix(entry, name+"="); ok {
				return value
			}
		}
		return ""
	}
	all := places(lookup)
	if lookup("TRUNKLINE_CONFIG") != "" {
		return all[0]
	}
	for _, path := range all {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// fileReader takes the values of one file in.
type fileReader struct {
	*loader
	path string
	line map[string]int // of each key that was met
}

// readFile takes the file's values in. Keys that are not known are faults: a setting that is misspelt must not be one
// that silently does nothing. Every fault has its line.
func (l *loader) readFile(path string) {
	text, err := os.ReadFile(path)
	if err != nil {
		l.fault("configuration file: %v; name another with -c", err)
		return
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		l.fault("%s", syntaxFault(path, err))
		return
	}
	r := &fileReader{loader: l, path: path, line: map[string]int{}}
	switch root := resolved(&document); {
	case document.Kind == 0: // empty
	case root.Kind == yaml.MappingNode:
		r.group("", root)
	case root.Kind == yaml.ScalarNode && root.Tag == "!!null":
	default:
		r.faultAt(root.Line, "the file is no group of keys; write key: value, one a line")
	}
}

// syntaxFault gives what the parser says the form of all other faults.
func syntaxFault(path string, err error) string {
	text := strings.ReplaceAll(strings.TrimPrefix(err.Error(), "yaml: "), "\n", " ")
	if m := regexp.MustCompile(`^line (\d+): (.*)$`).FindStringSubmatch(text); m != nil {
		return fmt.Sprintf("%s:%s: it is no YAML: %s", path, m[1], m[2])
	}
	return fmt.Sprintf("%s: it is no YAML: %s", path, text)
}

func (r *fileReader) faultAt(line int, format string, args ...any) {
	r.fault("%s:%d: %s", r.path, line, fmt.Sprintf(format, args...))
}

// resolved is the node that a document or an alias stands for.
func resolved(n *yaml.Node) *yaml.Node {
	switch {
	case n.Kind == yaml.DocumentNode && len(n.Content) == 1:
		return resolved(n.Content[0])
	case n.Kind == yaml.AliasNode && n.Alias != nil:
		return resolved(n.Alias)
	}
	return n
}

// group reads the keys of a mapping. Its nesting is bounded by that of the keys there are.
func (r *fileReader) group(prefix string, n *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := prefix+strings.ToLower(n.Content[i].Value), resolved(n.Content[i+1])
		line := n.Content[i].Line
		if first, twice := r.line[name]; twice && !r.known(name) && r.isGroup(name) {
			r.faultAt(line, "%s is there twice, first in line %d; put its keys together", name, first)
			continue
		} else if twice {
			r.faultAt(line, "%s is set twice, first in line %d; leave one of them out", name, first)
			continue
		}
		r.line[name] = line
		r.key(name, line, value)
	}
}

// deepest is how deep the keys nest, with one to spare for a fault to be named.
const deepest = 6

func (r *fileReader) key(name string, line int, value *yaml.Node) {
	null := value.Kind == yaml.ScalarNode && value.Tag == "!!null"
	mapping := value.Kind == yaml.MappingNode
	kind, below := strings.CutPrefix(name, "plugins.")
	switch {
	case below && slices.Contains(pluginKinds(), kind):
		r.readPlugins(kind, value)
	case r.known(name) && null:
		r.faultAt(line, "%s has no value; write one, or leave the key out", name)
	case mapping && len(value.Content) > 0 && strings.Count(name, ".") < deepest:
		r.group(name+".", value)
	case r.isGroup(name) && (null || mapping): // all its keys are commented out
	case r.isGroup(name):
		r.faultAt(line, "%s is a group of keys, not a value; write the keys below it, indented", name)
	case !r.known(name):
		r.faultAt(line, "unknown key %s%s", name, r.didYouMean(name))
	default:
		r.value(name, line, value)
	}
}

// value takes a key's value. What YAML takes for a time or a fraction stays as it stands there, to be repeated in a fault.
func (r *fileReader) value(name string, line int, n *yaml.Node) {
	var value any
	if err := n.Decode(&value); err != nil {
		r.faultAt(line, "%s cannot be read: %s", name, strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	if n.Tag == "!!timestamp" || n.Tag == "!!float" {
		value = n.Value
	}
	r.values.Set(name, value)
	r.origin[name] = r.path + ":" + strconv.Itoa(line)
	r.inFile[name] = true
}
