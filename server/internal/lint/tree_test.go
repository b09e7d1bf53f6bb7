package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/trunkline-mq/trunkline/"

// root is the repository as seen from this package.
const root = "../../.."

// source is one parsed Go file.
type source struct {
	path      string // from the repository's root, with slashes
	pkg       string // the directory of path
	test      bool
	generated bool
	lines     int
	fset      *token.FileSet
	ast       *ast.File
}

func (s *source) line(p token.Pos) int { return s.fset.Position(p).Line }

// finding is a rule that is broken at a place. Size is 0 for rules that measure nothing.
type finding struct {
	rule  string
	place string // file or file:name, without a line number, so that it stays the same
	size  int
	what  string
}

func parse(t *testing.T, name string, text []byte) *source {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return &source{
		path: name, pkg: path.Dir(name), test: strings.HasSuffix(name, "_test.go"), generated: ast.IsGenerated(f),
		lines: strings.Count(string(text), "\n"), fset: fset, ast: f,
	}
}

// tree parses every Go file of the repository.
func tree(t *testing.T) []*source {
	t.Helper()
	var files []*source
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := filepath.ToSlash(strings.TrimPrefix(strings.TrimPrefix(name, root), string(filepath.Separator)))
		if d.IsDir() {
			if rel != "" && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || rel == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(rel, ".go") {
			text, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			files = append(files, parse(t, rel, text))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("only %d Go files found: the walk is wrong", len(files))
	}
	return files
}

// judge fails for each finding without an exception, for each exception that is larger than it has to be, and for each
// that is not needed.
func judge(t *testing.T, rules []string, found []finding) {
	t.Helper()
	type id struct{ rule, place string }
	allowed := map[id]exception{}
	for _, e := range exceptions {
		for _, r := range rules {
			if e.rule == r {
				allowed[id{e.rule, e.place}] = e
			}
		}
	}
	for _, f := range found {
		e, ok := allowed[id{f.rule, f.place}]
		delete(allowed, id{f.rule, f.place})
		switch {
		case !ok:
			t.Errorf("%s: %s: %s", f.place, f.rule, f.what)
		case f.size > e.size:
			t.Errorf("%s: %s: %s; its exception allows %d, and exceptions only shrink", f.place, f.rule, f.what, e.size)
		case f.size < e.size:
			t.Errorf("%s: %s: it is down to %d: lower its exception from %d", f.place, f.rule, f.size, e.size)
		}
	}
	for _, e := range allowed {
		t.Errorf("%s: %s: the exception is not needed any more: take it out", e.place, e.rule)
	}
}
