package lint

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	ruleComment = "an exported thing has a comment of full sentences that starts with its name"
	rulePkgDoc  = "a package has one package comment that starts with its name"
	ruleName    = "a package's name says what it is for"
	ruleGo      = "a goroutine has an owner: no bare go statement"
	ruleSleep   = "a test waits for a condition: no time.Sleep"
	ruleTodo    = "what is in the tree is finished: no TODO"
	ruleError   = "an error says what happened: no \"failed to\""
)

func TestWords(t *testing.T) {
	judge(t, []string{ruleComment, rulePkgDoc, ruleName, ruleGo, ruleSleep, ruleTodo, ruleError}, words(tree(t)))
}

func words(files []*source) []finding {
	var found []finding
	documented := map[string]int{}
	for _, s := range files {
		if s.generated {
			continue
		}
		found = append(found, s.statements()...)
		found = append(found, s.todos()...)
		if s.test {
			continue
		}
		if slices.Contains([]string{"util", "utils", "common", "base", "helper", "helpers", "misc"}, s.ast.Name.Name) {
			found = append(found, finding{rule: ruleName, place: s.pkg, what: s.ast.Name.Name})
		}
		documented[s.pkg] += 0
		if s.ast.Doc != nil {
			documented[s.pkg]++
			if text := s.ast.Doc.Text(); s.ast.Name.Name != "main" && !strings.HasPrefix(text, "Package "+s.ast.Name.Name+" ") {
				found = append(found, finding{rule: rulePkgDoc, place: s.path, what: "it starts otherwise"})
			}
		}
		found = append(found, s.comments()...)
	}
	for pkg, n := range documented {
		if n != 1 {
			found = append(found, finding{rule: rulePkgDoc, place: pkg, what: fmt.Sprintf("it has %d", n)})
		}
	}
	return found
}

// statements finds go statements, sleeping tests and idle words in errors.
func (s *source) statements() []finding {
	var found []finding
	ast.Inspect(s.ast, func(n ast.Node) bool {
		at := func() string { return fmt.Sprintf("line %d", s.line(n.Pos())) }
		switch n := n.(type) {
		case *ast.GoStmt:
			if !s.test {
				found = append(found, finding{rule: ruleGo, place: s.path, what: at()})
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && s.test && x.Name == "time" && n.Sel.Name == "Sleep" {
				found = append(found, finding{rule: ruleSleep, place: s.path, what: at()})
			}
		case *ast.BasicLit:
			if text, err := strconv.Unquote(n.Value); n.Kind == token.STRING && err == nil && !s.test && strings.HasPrefix(text, "failed to ") {
				found = append(found, finding{rule: ruleError, place: s.path, what: at()})
			}
		}
		return true
	})
	return found
}

func (s *source) todos() []finding {
	var found []finding
	for _, group := range s.ast.Comments {
		for _, word := range []string{"TO" + "DO", "FIX" + "ME", "XX" + "X"} {
			if strings.Contains(group.Text(), word) {
				found = append(found, finding{rule: ruleTodo, place: s.path, what: fmt.Sprintf("line %d", s.line(group.Pos()))})
			}
		}
	}
	return found
}

// comments finds exported things without a comment that will do.
func (s *source) comments() []finding {
	var found []finding
	need := func(name string, docs ...*ast.CommentGroup) {
		what := "it has none"
		for _, doc := range docs {
			if doc == nil {
				continue
			}
			if what = unfit(name, doc.Text()); what == "" {
				return
			}
		}
		found = append(found, finding{rule: ruleComment, place: s.path + ":" + name, what: what})
	}
	for _, d := range s.ast.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			r := receiver(d)
			if d.Name.IsExported() && (r == "" || ast.IsExported(r)) && !spokenFor(d) {
				need(funcName(d), d.Doc)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					if spec.Name.IsExported() {
						need(spec.Name.Name, spec.Doc, d.Doc)
					}
				case *ast.ValueSpec:
					// A group has one comment for all, or each member its own.
					if spec.Names[0].IsExported() && !(d.Lparen.IsValid() && (d.Doc != nil || spec.Comment != nil)) {
						need(spec.Names[0].Name, spec.Doc, d.Doc)
					}
				}
			}
		}
	}
	return found
}

// spokenFor reports whether a method is one that every Go programmer knows by its name.
func spokenFor(d *ast.FuncDecl) bool {
	return d.Recv != nil && slices.Contains([]string{"Error", "Unwrap", "Is", "As", "String", "MarshalJSON", "UnmarshalJSON", "Len", "Less", "Swap"}, d.Name.Name)
}

// unfit says why a comment will not do; empty where it does.
func unfit(name, text string) string {
	name = name[strings.LastIndexByte(name, '.')+1:]
	first, _, _ := strings.Cut(strings.TrimSpace(text), "\n\n")
	first = strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(first, "A "), "An "), "The ")
	rest, ok := strings.CutPrefix(first, name)
	switch {
	case !ok || rest != "" && !strings.ContainsRune(" ,.:'(", rune(rest[0])):
		return "it starts otherwise"
	case !slices.Contains([]byte(".:?!"), first[len(first)-1]):
		return "it is no full sentence"
	}
	return ""
}

func TestEveryPackageIsAWord(t *testing.T) {
	for _, s := range tree(t) {
		base := path.Base(s.pkg)
		if s.ast.Name.Name != "main" && !s.test && strings.ContainsAny(base, "_-") {
			t.Errorf("%s: a package is one short noun", s.pkg)
		}
	}
}
