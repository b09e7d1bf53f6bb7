// Package skeleton writes the beginning of a plugin: a Go module that compiles and passes the conformance suite of its kind,
// for an author to change. Its texts are the examples of plugins/sdk/examples under another name, which a test compares.
//
// It writes files and runs nothing. It knows the kinds for which a beginning is of use: a partitioner, and a store of the
// form that is handed batches.
package skeleton

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

//go:embed partitioner storage go.mod.txt README.md.txt
var texts embed.FS

// Kinds are the kinds of plugins there is a skeleton for.
func Kinds() []string { return []string{"partitioner", "storage"} }

// The errors of what cannot be begun.
var (
	// ErrKind is the error for a kind without a skeleton.
	ErrKind = errors.New("there is a skeleton of a partitioner and of storage")
	// ErrName is the error for a name that a plugin cannot have.
	ErrName = errors.New("a plugin's name has 1 to 24 small letters, digits, - and _, and does not begin with one of the latter two")
	// ErrNotEmpty is the error for a directory that has files in it.
	ErrNotEmpty = errors.New("the directory is not empty; name a new one with --dir")
)

// name is what the server's configuration takes.
func name() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,23}$`) }

// Plugin says what is begun.
type Plugin struct {
	Kind, Name string
	Checkout   string // of Trunkline, absolute; empty: the module is found as any other
}

// Check returns ErrKind or ErrName for what cannot be begun.
func (p *Plugin) Check() error {
	switch {
	case !slices.Contains(Kinds(), p.Kind):
		return fmt.Errorf("%w, not of %q", ErrKind, p.Kind)
	case !name().MatchString(p.Name):
		return fmt.Errorf("%q: %w", p.Name, ErrName)
	}
	return nil
}

// Write writes the module into dir, which is made where it is missing and must be empty, and returns the names of the files.
func (p *Plugin) Write(dir string) ([]string, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = os.MkdirAll(dir, 0o755)
	case err == nil && len(entries) > 0:
		err = fmt.Errorf("%s: %w", dir, ErrNotEmpty)
	}
	if err != nil {
		return nil, err
	}
	code, err := fs.Glob(texts, p.Kind+"/*.txt")
	if err != nil {
		return nil, err
	}
	var written []string
	for _, from := range append([]string{"go.mod.txt", "README.md.txt"}, code...) {
		text, err := fs.ReadFile(texts, from)
		if err != nil {
			return nil, err
		}
		to := strings.TrimSuffix(path.Base(from), ".txt")
		if err := os.WriteFile(filepath.Join(dir, to), []byte(p.fill(string(text))), 0o644); err != nil {
			return nil, err
		}
		written = append(written, to)
	}
	return written, nil
}

// fill puts the plugin's own words into a text.
func (p *Plugin) fill(text string) string {
	replace := ""
	if p.Checkout != "" {
		replace = fmt.Sprintf("\nreplace github.com/trunkline-mq/trunkline => %s\n", modPath(p.Checkout))
	}
	return strings.NewReplacer("@KIND@", p.Kind, "@NAME@", p.Name, "@REPLACE@\n", replace).Replace(text)
}

// modPath is a path as go.mod takes it.
func modPath(p string) string {
	if strings.ContainsAny(p, " \t\"'`(),") {
		return fmt.Sprintf("%q", p)
	}
	return p
}
