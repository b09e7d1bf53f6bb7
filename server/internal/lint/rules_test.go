package lint

import (
	"fmt"
	"strings"
	"testing"
)

// TestRulesFindWhatTheyLookFor gives each rule a source that breaks it, so that a rule that has gone blind is noticed.
func TestRulesFindWhatTheyLookFor(t *testing.T) {
	lines := func(n int) string { return strings.Repeat("\t_ = 0\n", n) }
	members := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	const doc = "// Package p is here.\npackage p\n"
	for _, test := range []struct{ name, file, text, want string }{
		{"long function", "p/a.go", doc + "func f() {\n" + lines(99) + "}\n", ruleFunction},
		{"long test", "p/a_test.go", "package p\nfunc f() {\n" + lines(99) + "}\n", ruleFunction},
		{"long file", "p/a.go", doc + strings.Repeat("\n", 800), ruleFile},
		{"wide interface", "p/a.go", doc + "type i interface {\n" + members(9, "m%d()\n") + "}\n", ruleInterface},
		{"wide struct", "p/a.go", doc + "type s struct {\n" + members(21, "f%d int\n") + "}\n", ruleStruct},
		{"many parameters", "p/a.go", doc + "func f(a, b, c, d, e int) {}\n", ruleParams},
		{"no comment", "p/a.go", doc + "func F() {}\n", ruleComment},
		{"no comment on a method", "p/a.go", doc + "// T is one.\ntype T struct{}\nfunc (t *T) M() {}\n", ruleComment},
		{"no comment on a type", "p/a.go", doc + "type T struct{}\n", ruleComment},
		{"no comment on a variable", "p/a.go", doc + "var V = 1\n", ruleComment},
		{"no comment in a group", "p/a.go", doc + "const (\nC = 1\n)\n", ruleComment},
		{"another name", "p/a.go", doc + "// G is another.\nfunc F() {}\n", ruleComment},
		{"no sentence", "p/a.go", doc + "// F without an end\nfunc F() {}\n", ruleComment},
		{"no package comment", "p/a.go", "package p\n", rulePkgDoc},
		{"package comment of another", "p/a.go", "// Package q is here.\npackage p\n", rulePkgDoc},
		{"package without a noun", "util/a.go", "// Package util is here.\npackage util\n", ruleName},
		{"bare go", "p/a.go", doc + "func f() { go f() }\n", ruleGo},
		{"sleeping test", "p/a_test.go", "package p\nimport \"time\"\nfunc f() { time.Sleep(1) }\n", ruleSleep},
		{"unfinished", "p/a.go", doc + "// f does it later: TO" + "DO.\nfunc f() {}\n", ruleTodo},
		{"idle error", "p/a.go", doc + "var e = \"failed to do\"\n", ruleError},
		{"no row", "p/a.go", doc, ruleRow},
		{"outside its row", "protocol/record/a.go", "package record\nimport _ \"" + module + "protocol/line\"\n", ruleLayer},
		{"upwards", "plugins/storage/filelog/a.go", "package filelog\nimport _ \"" + module + "server/internal/conn\"\n", ruleLayer},
		{"upwards in a test", "plugins/host/a_test.go", "package host\nimport _ \"" + module + "server/internal/conn\"\n", ruleLayer},
		{"client to server in a test", "clients/go/a_test.go", "package trunkline\nimport _ \"" + module + "server/internal/conn\"\n", ruleLayer},
		{"protocol to plugin in a test", "protocol/record/a_test.go", "package record\nimport _ \"" + module + "plugins/storage\"\n", ruleLayer},
		{"viper elsewhere", "server/internal/conn/a.go", "package conn\nimport _ \"github.com/spf13/viper\"\n", ruleModule},
		{"gRPC in an implementation", "plugins/storage/filelog/a.go", "package filelog\nimport _ \"google.golang.org/grpc/codes\"\n", ruleModule},
		{"go-plugin in an adapter", "plugins/storage/storagerpc/a.go", "package storagerpc\nimport _ \"github.com/hashicorp/go-plugin\"\n", ruleModule},
		{"generated code outside its adapter", "server/internal/conn/a.go", "package conn\nimport _ \"" + module + "protocol/pluginpb/storage/v1\"\n", ruleModule},
		{"a file in protocol", "protocol/record/a.go", "package record\nimport _ \"os\"\n", rulePure},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := []*source{parse(t, test.file, []byte(test.text))}
			found := append(append(sizes(files), words(files)...), imports(files, layers)...)
			for _, f := range found {
				if f.rule == test.want {
					return
				}
			}
			t.Errorf("found %+v", found)
		})
	}
}

func TestRulesLeaveGoodCodeAlone(t *testing.T) {
	const text = `// Package record is here.
package record

import (
	"context"
	"sync"
)

// A T is one.
type T struct{}

// The group's comment will do.
const (
	A = 1
	B = 2
)

// V is the value: it counts.
var V = 1

// Run runs it.
func (t *T) Run(ctx context.Context, a, b, c, d int) {
	var wg sync.WaitGroup
	wg.Go(func() {})
	wg.Wait()
}

func (t *T) Error() string { return "" }

func (t *T) hidden() {}
`
	files := []*source{parse(t, "protocol/record/a.go", []byte(text))}
	if found := append(append(sizes(files), words(files)...), imports(files, layers)...); len(found) > 0 {
		t.Errorf("found %+v", found)
	}
}
