package lint

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// requireEnv, when set, turns "a tool is missing" from a skip into a failure.
const requireEnv = "TRUNKLINE_TEST_REQUIRE"

// needs gives a tool's path, and ends the test where it is not installed.
func needs(t *testing.T, tool string) string {
	t.Helper()
	name, err := exec.LookPath(tool)
	if err == nil {
		return name
	}
	if os.Getenv(requireEnv) != "" {
		t.Fatalf("%s is needed and not installed; make test installs it", tool)
	}
	t.Skipf("%s is not installed; make test installs it", tool)
	return ""
}

// TestGeneratedCodeIsFresh makes all generated code anew, as make proto does, and compares.
func TestGeneratedCodeIsFresh(t *testing.T) {
	needs(t, "protoc")
	needs(t, "make")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out := t.TempDir()
	if text, err := run(ctx, "proto-tools"); err != nil {
		if os.Getenv(requireEnv) == "" {
			t.Skipf("the generators of protoc cannot be installed: %v", err)
		}
		t.Fatalf("make proto-tools: %v\n%s", err, text)
	}
	if text, err := run(ctx, "proto", "PROTO_OUT="+out); err != nil {
		t.Fatalf("make proto: %v\n%s", err, text)
	}
	fresh, committed := generated(t, out), generated(t, root)
	for name, text := range fresh {
		if diff := cmp.Diff(text, committed[name]); diff != "" {
			t.Errorf("%s is stale; run make proto\n%s", name, diff)
		}
	}
	for name := range committed {
		if _, ok := fresh[name]; !ok {
			t.Errorf("%s comes from no .proto file; remove it", name)
		}
	}
	if len(fresh) < 6 {
		t.Errorf("only %d files were made", len(fresh))
	}
}

func run(ctx context.Context, targets ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "make", append([]string{"--no-print-directory", "-C", root}, targets...)...)
	return cmd.CombinedOutput()
}

// generated reads the generated files below dir, but for the line that names the version of protoc: it is whatever the
// machine has.
func generated(t *testing.T, dir string) map[string]string {
	t.Helper()
	protoc := regexp.MustCompile(`(?m)^// (\t|- )protoc +\(?v.*\n`)
	files := map[string]string{}
	below := filepath.Join(dir, "protocol", "pluginpb")
	err := filepath.WalkDir(below, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".pb.go") {
			return err
		}
		text, err := os.ReadFile(name)
		files[strings.TrimPrefix(name, below)] = string(bytes.TrimSpace(protoc.ReplaceAll(text, nil)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
