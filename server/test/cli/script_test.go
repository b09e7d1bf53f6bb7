// Package cli runs the programs as people run them in a shell: every command of trunkline and of trunkline-server, with what
// it prints and the code it exits with, and what is done with input that is wrong, cut short or too long.
//
// Each file of testdata is a session at a console, on a server of its own that listens at the default ports as far as the
// session can tell. Where a command's exit code is not 0, its last line says which, as in [2]. "…" stands for anything.
package cli

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

var rewrite = flag.Bool("rewrite", false, "write what commands print into the sessions, where it is not what stands there")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(harness.Main(m))
}

func TestSessions(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d sessions, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { t.Parallel(); play(t, file) })
	}
}

func play(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := harness.Start(t)
	console, here := harness.NewConsole(t, s.Client), s.Ports()
	console.Set("DATA", s.Data)
	console.Set("DENYING", denying(t))
	var out strings.Builder
	for _, step := range harness.Steps(t, string(text)) {
		if step.Code == "" {
			step.Code = "0"
		}
		if !*rewrite {
			console.Play(t, []harness.Step{step}, here)
			continue
		}
		if got, code := console.Run(t, here.Replace(step.Command)); !harness.Matches(here.Replace(step.Want), got) || code != step.Code {
			step.Want, step.Code = back(s).Replace(got), code
		}
		out.WriteString("$ " + strings.ReplaceAll(step.Command, "\n", "\n> ") + "\n" + step.Want)
		if step.Code != "0" {
			out.WriteString("[" + step.Code + "]\n")
		}
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// back turns a server's addresses into the default ones.
func back(s *harness.Server) *strings.Replacer {
	return strings.NewReplacer(s.Client, "127.0.0.1:8765", s.HTTP, "127.0.0.1:8766")
}
