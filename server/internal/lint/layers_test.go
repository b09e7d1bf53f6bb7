package lint

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	ruleLayer  = "a package imports what its row allows"
	ruleRow    = "a package has a row in the table of layers"
	ruleModule = "a module stays in the packages that are meant to know it"
	rulePure   = "protocol is pure"
)

// layers says for each package which of ours it may import. An entry stands for itself and everything below it.
var layers = map[string][]string{
	"protocol/errcode":                 {},
	"protocol/record":                  {},
	"protocol/record/codec":            {"protocol/record"},
	"protocol/partition":               {},
	"protocol/kafkalog":                {"protocol/partition", "protocol/record"},
	"protocol/address":                 {"protocol/errcode", "protocol/partition", "protocol/record"},
	"protocol/line":                    {"protocol/errcode", "protocol/record"},
	"protocol/storeframe":              {"protocol/record"},
	"protocol/jetstream":               {"protocol/errcode", "protocol/partition", "protocol/record"},
	"protocol/pluginpb/storage/v1":     {},
	"protocol/pluginpb/partitioner/v1": {},
	"protocol/pluginpb/metadata/v1":    {},

	"plugins/internal/vfs":         {},
	"plugins/internal/vfs/faultfs": {"plugins/internal/vfs"},
	"plugins/internal/vfs/crashfs": {"plugins/internal/vfs"},
	"plugins/internal/handshake":   {},
	"plugins/internal/failpoint":   {},
	"plugins/internal/retention":   {},
	"plugins/storage":              {"protocol"},
	"plugins/partitioner":          {"protocol"},
	"plugins/metadata":             {"protocol"},
	"plugins/metadata/history":     {"plugins/metadata"},

	"plugins/storage/storagerpc":         {"plugins/storage", "protocol"},
	"plugins/partitioner/partitionerrpc": {"plugins/partitioner", "protocol"},
	"plugins/metadata/metadatarpc":       {"plugins/metadata", "protocol"},

	// What ships is written as a third party's plugin is: contract, protocol, and a file system.
	"plugins/storage/filelog":    {"plugins/storage", "protocol", "plugins/internal/vfs", "plugins/internal/retention", "plugins/internal/failpoint"},
	"plugins/storage/archive":    {"plugins/storage", "protocol", "plugins/internal/vfs", "plugins/internal/retention"},
	"plugins/storage/memory":     {"plugins/storage", "protocol", "plugins/internal/vfs"},
	"plugins/partitioner/jump":   {"plugins/partitioner", "protocol", "plugins/internal/vfs"},
	"plugins/partitioner/stated": {"plugins/partitioner", "protocol", "plugins/internal/vfs"},
	"plugins/metadata/embedded":  {"plugins/metadata", "protocol", "plugins/internal/vfs"},
	"plugins/metadata/zookeeper": {"plugins/metadata", "protocol", "plugins/internal/vfs"},

	"plugins/storage/storagetest":         {"plugins/storage", "plugins/storage/stream", "protocol", "plugins/internal/vfs"},
	"plugins/partitioner/partitionertest": {"plugins/partitioner", "protocol"},
	"plugins/metadata/metadatatest":       {"plugins/metadata", "protocol"},
	// It runs servers and knows no client; tests of the whole server use it, too.
	"plugins/metadata/zookeeper/zookeepertest": {},

	"plugins/storage/lend": {"plugins/storage", "plugins/internal/vfs", "plugins/internal/failpoint", "protocol"},
	// It answers lend's errors: who reads and writes a log need not know which kind it is.
	"plugins/storage/stream":       {"plugins/storage", "plugins/storage/lend", "protocol"},
	"plugins/host":                 {"plugins/internal/handshake"},
	"plugins/sdk":                  {"plugins", "protocol"},
	"plugins/sdk/examples/prefix":  {"plugins", "protocol"}, // a module of its own
	"plugins/sdk/examples/onefile": {"plugins", "protocol"},
	"plugins/sdk/plugintest":       {"plugins", "protocol"},

	"clients/internal/scripted": {},
	"clients/go":                {"protocol", "clients/internal"},
	"clients/go/tlfake":         {"protocol"},
	"clients/cli":               {"protocol", "clients/go", "clients/cli", "clients/internal"},
	"clients/cli/format":        {"protocol", "clients/go"},
	"clients/cli/measure":       {"clients/go"},
	"clients/cli/profile":       {},
	"clients/cli/skeleton":      {},
	"clients/cli/together":      {"clients/go"},

	"server/internal/lint":      {},
	"server/internal/config":    {"protocol"},
	"server/internal/datadir":   {},
	"server/internal/httpd":     {},
	"server/internal/console":   {},
	"server/internal/catalog":   {"plugins/metadata", "protocol"},
	"server/internal/setting":   {"protocol"},
	"server/internal/live":      {},
	"server/internal/partition": {"plugins/storage", "plugins/storage/lend", "plugins/storage/stream", "protocol"},
	"server/internal/cursor":    {"plugins/storage", "plugins/storage/lend", "protocol", "server/internal/partition"},
	"server/internal/broker": {"plugins/host", "plugins/metadata", "plugins/metadata/metadatarpc", "plugins/partitioner", "plugins/partitioner/partitionerrpc",
		"plugins/storage", "plugins/storage/lend", "plugins/storage/storagerpc", "plugins/storage/stream", "protocol", "server/internal/catalog", "server/internal/datadir", "server/internal/partition", "server/internal/setting"},
	"server/internal/conn": {"plugins/storage", "plugins/storage/lend", "protocol", "server/internal/broker", "server/internal/cursor", "server/internal/live", "server/internal/partition",
		"server/internal/setting"},
	// The server's main composes, and is the only one that names implementations.
	"server":                     {"plugins", "protocol", "server/internal"},
	"server/test/harness":        {"clients", "protocol"},
	"server/test/harness/kafkad": {"server/test/harness"},
}

// implementations are reached through their contract by everyone but who composes.
var implementations = []string{"plugins/storage/filelog", "plugins/storage/memory", "plugins/storage/archive", "plugins/partitioner/jump",
	"plugins/partitioner/stated", "plugins/metadata/embedded",
	"plugins/metadata/zookeeper"}

// knows says which packages may import a module, beside tests. An entry ending in * is a beginning, one beginning with *
// an end.
var knows = map[string][]string{
	"github.com/spf13/viper":                {"server/internal/config"},
	"github.com/hashicorp/go-plugin":        {"plugins/host", "plugins/sdk", "plugins/internal/handshake"},
	"github.com/go-zookeeper":               {"plugins/metadata/zookeeper"},
	"github.com/nats-io/nats.go":            {"plugins/bridge/nats"},
	"github.com/nats-io/nats-server":        {},
	"github.com/twmb/franz-go":              {},
	"github.com/segmentio/kafka-go":         {},
	"go.etcd.io/bbolt":                      {"plugins/metadata/embedded"},
	"google.golang.org/grpc":                {"*rpc", "plugins/host", "plugins/sdk", "protocol/pluginpb/*"},
	"google.golang.org/protobuf":            {"*rpc", "plugins/host", "plugins/sdk", "protocol/pluginpb/*"},
	module + "protocol/pluginpb":            {"*rpc"},
	module + "plugins/internal/vfs/faultfs": {"plugins/storage/storagetest"},
	module + "plugins/internal/vfs/crashfs": {},
}

// impure are the packages that reach the world outside, which protocol must not.
var impure = []string{"os", "os/exec", "net", "net/http", "log", "log/slog", "syscall", "path/filepath"}

func TestLayers(t *testing.T) {
	judge(t, []string{ruleLayer, ruleRow, ruleModule, rulePure}, imports(tree(t), layers))
}

func TestEveryRowHasAPackage(t *testing.T) {
	there := map[string]bool{}
	for _, s := range tree(t) {
		there[s.pkg] = true
	}
	for pkg := range layers {
		if !there[pkg] {
			t.Errorf("%s has a row and does not exist", pkg)
		}
	}
}

func imports(files []*source, layers map[string][]string) []finding {
	var found []finding
	report := func(rule, place, format string, args ...any) {
		found = append(found, finding{rule: rule, place: place, what: fmt.Sprintf(format, args...)})
	}
	missing := map[string]bool{}
	for _, s := range files {
		row, ok := layers[s.pkg]
		if !ok && !s.test && !missing[s.pkg] {
			missing[s.pkg] = true
			report(ruleRow, s.pkg, "it has none")
		}
		for _, spec := range s.ast.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				report(ruleLayer, s.path, "%s cannot be read", spec.Path.Value)
				continue
			}
			ours, isOurs := strings.CutPrefix(name, module)
			switch {
			case isOurs && s.test:
				if !testMay(s.pkg, ours) {
					report(ruleLayer, s.path, "its test imports %s", ours)
				}
			case isOurs && ok && ours != s.pkg && !slices.ContainsFunc(row, func(r string) bool { return below(ours, r) }):
				report(ruleLayer, s.path, "it imports %s", ours)
			case isOurs && s.pkg != "server" && s.pkg != "plugins/sdk" && !s.test && slices.Contains(implementations, ours):
				report(ruleLayer, s.path, "it imports the implementation %s", ours)
			}
			if !s.test && !mayKnow(s.pkg, name) {
				report(ruleModule, s.path, "it imports %s", name)
			}
			if !s.test && !s.generated && below(s.pkg, "protocol") && slices.Contains(impure, name) {
				report(rulePure, s.path, "it imports %s", name)
			}
		}
	}
	return found
}

// testMay holds for tests: the sides stay apart, but within a side a test may take what it needs.
func testMay(pkg, imported string) bool {
	switch {
	case below(pkg, "protocol"):
		return below(imported, "protocol")
	case below(pkg, "clients"):
		return below(imported, "clients") || below(imported, "protocol")
	case below(pkg, "plugins"):
		return !below(imported, "server") && !below(imported, "clients")
	}
	return true
}

func mayKnow(pkg, name string) bool {
	for mod, who := range knows {
		if !below(name, mod) || below(module+pkg, mod) {
			continue
		}
		if !slices.ContainsFunc(who, func(w string) bool {
			if end, ok := strings.CutPrefix(w, "*"); ok {
				return strings.HasSuffix(pkg, end)
			}
			if beginning, ok := strings.CutSuffix(w, "/*"); ok {
				return below(pkg, beginning)
			}
			return pkg == w
		}) {
			return false
		}
	}
	return true
}

// below reports whether a path is dir or lies in it.
func below(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }
