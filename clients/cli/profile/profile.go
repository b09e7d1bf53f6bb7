// Package profile keeps the servers a person works with under names of their choice: one YAML file each in
// $XDG_CONFIG_HOME/trunkline/context, readable by its owner alone, and the name of the one that is selected beside them.
//
// It knows nothing of servers and connects to none.
package profile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ErrUnknown is the error for a context that does not exist.
var ErrUnknown = errors.New("no such context")

// ErrExists is the error for a name that is taken.
var ErrExists = errors.New("exists already")

// Context is a server under a name.
type Context struct {
	URL         string `yaml:"url" json:"url"`
	Description string `yaml:"description,omitempty" json:"description"`
}

// Store is the directory that holds the contexts.
type Store struct {
	dir string // with a directory context in it; made when something is written
}

// Open returns the store of the user whose environment is read by env. Nothing needs to be there.
func Open(env func(string) string) (Store, error) {
	dir := env("XDG_CONFIG_HOME")
	if dir == "" {
		home := env("HOME")
		if home == "" {
			return Store{}, errors.New("neither XDG_CONFIG_HOME nor HOME says where contexts are kept; set one of them")
		}
		dir = filepath.Join(home, ".config")
	}
	return Store{filepath.Join(dir, "trunkline")}, nil
}

// CheckName refuses what is no name of a context.
func CheckName(name string) error {
	if !regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`).MatchString(name) {
		return fmt.Errorf("%q is no name of a context; use letters, digits, _ . and -", name)
	}
	return nil
}

const suffix = ".yaml"

func (s Store) file(name string) string { return filepath.Join(s.dir, "context", name+suffix) }

func (s Store) selectedFile() string { return filepath.Join(s.dir, "selected") }

// Names lists the contexts in order.
func (s Store) Names() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "context"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok && CheckName(name) == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// Get reads a context. ErrUnknown where there is none of that name.
func (s Store) Get(name string) (Context, error) {
	if err := CheckName(name); err != nil {
		return Context{}, err
	}
	text, err := os.ReadFile(s.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return Context{}, fmt.Errorf("%w: %s; trunkline context ls lists them", ErrUnknown, name)
	}
	if err != nil {
		return Context{}, err
	}
	var c Context
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil {
		return Context{}, fmt.Errorf("context file %s cannot be read: %s; mend it, or make the context again", s.file(name), plain(err))
	}
	if c.URL == "" {
		return Context{}, fmt.Errorf("context file %s has no url; mend it, or make the context again", s.file(name))
	}
	return c, nil
}

// plain puts what the parser says on one line, without the names of this program's types.
func plain(err error) string {
	text := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "yaml: "), "unmarshal errors:\n")
	text = regexp.MustCompile(` (in|into) (type )?\S*profile\.\w+`).ReplaceAllString(text, "")
	return strings.Join(strings.Fields(text), " ")
}

// Add keeps a new context. ErrExists where the name is taken.
func (s Store) Add(name string, c Context) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if _, err := os.Lstat(s.file(name)); err == nil {
		return fmt.Errorf("context %s %w; remove it first, or choose another name", name, ErrExists)
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	return s.write(s.file(name), text)
}

// Remove forgets a context; selected is whether it was the selected one. ErrUnknown where there is none of that name.
func (s Store) Remove(name string) (selected bool, err error) {
	if err := CheckName(name); err != nil {
		return false, err
	}
	err = os.Remove(s.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("%w: %s; trunkline context ls lists them", ErrUnknown, name)
	}
	if err != nil {
		return false, err
	}
	now, err := s.Selected()
	if err != nil || now != name {
		return false, err
	}
	return true, os.Remove(s.selectedFile())
}

// Select makes a context the one that is used where none is named. ErrUnknown where there is none of that name.
func (s Store) Select(name string) error {
	if _, err := s.Get(name); err != nil {
		return err
	}
	return s.write(s.selectedFile(), []byte(name+"\n"))
}

// Selected is the name of the selected context, empty where none is.
func (s Store) Selected() (string, error) {
	text, err := os.ReadFile(s.selectedFile())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}

// write replaces a file as a whole.
func (s Store) write(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // readable by its owner alone
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
