package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/sdk/plugintest"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
)

const pluginUsage = `usage:
  trunkline-server plugin test FILE [--kind KIND] [--name NAME] [--config JSON] [--match TEXT] [--verbose] [--json]
      runs the conformance suite of KIND (storage, partitioner, metadata) on an executable, in processes of its own;
      FILE may be the name of a shipped plugin. Kind and name are read from a file's name, trunkline-plugin-KIND-NAME.
      --match runs the cases whose names contain the text. In JSON, ${CASE} becomes a word of its own for each case, and ${DATA} the directory it may use.
  trunkline-server plugin verify FILE [--json]
      checks who may change the file, and shows what to write into the configuration
  trunkline-server plugin install FILE --dir DIR [--kind KIND] [--name NAME] [--config JSON] [--json]
      copies an executable into the plugin directory under its name, if it starts as that plugin, in one step, and shows
      what to write into the configuration
  trunkline-server plugin KIND NAME
      is a shipped plugin; started by the server, not by hand
`

// pluginCommand is trunkline-server plugin.
func pluginCommand(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		switch args[0] {
		case "test":
			return testPlugin(args[1:], stdout, stderr)
		case "verify":
			return verifyPlugin(args[1:], stdout, stderr)
		case "install":
			return installPlugin(args[1:], stdout, stderr)
		}
	}
	if len(args) != 2 {
		_, _ = fmt.Fprint(stderr, pluginUsage)
		return exitUsage
	}
	return runPlugin(args[0], args[1], stderr)
}

// pluginFlags are the flags of the commands a person runs.
type pluginFlags struct {
	kind, name, config, match string
	verbose, json             bool
	file, dir                 string
	command                   string
	stderr                    io.Writer
}

// parsePlugin reads a command line that names one file; ok is false where it does not, and that was told.
func parsePlugin(command string, args []string, stderr io.Writer) (f pluginFlags, ok bool) {
	set := pflag.NewFlagSet(command, pflag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.BoolVar(&f.json, "json", false, "")
	if command == "install" {
		set.StringVar(&f.dir, "dir", "", "")
	}
	if command == "test" || command == "install" {
		set.StringVar(&f.kind, "kind", "", "")
		set.StringVar(&f.name, "name", "", "")
		set.StringVar(&f.config, "config", "", "")
	}
	if command == "test" {
		set.StringVar(&f.match, "match", "", "")
		set.BoolVar(&f.verbose, "verbose", false, "")
	}
	err := set.Parse(args)
	if err == nil && set.NArg() != 1 {
		err = fmt.Errorf("%d files are named, and not one", set.NArg())
	}
	f.command, f.stderr = command, stderr
	if err != nil && !errors.Is(err, pflag.ErrHelp) {
		f.json = f.json || slices.Contains(args, "--json") // behind what could not be read
		f.fail(exitUsage, "%v", err)
	}
	if err != nil {
		if !f.json || errors.Is(err, pflag.ErrHelp) {
			_, _ = fmt.Fprint(stderr, pluginUsage)
		}
		return f, false
	}
	f.file = set.Arg(0)
	return f, true
}

// fail says why the command ends with an exit code, which it returns; with --json as the client does.
func (f *pluginFlags) fail(exit int, format string, args ...any) int {
	said := fmt.Sprintf(format, args...)
	if !f.json {
		_, _ = fmt.Fprintf(f.stderr, "trunkline-server plugin %s: %s\n", f.command, said)
		return exit
	}
	line, _ := json.Marshal(map[string]failureJSON{"error": {"plugin " + f.command + ": " + said, exit}}) // cannot fail: a text and a number
	_, _ = fmt.Fprintf(f.stderr, "%s\n", line)
	return exit
}

// failureJSON is an error as the client prints it.
type failureJSON struct {
	Text string `json:"text"`
	Exit int    `json:"exit"`
}

// namedBy takes kind and name out of a file's name, where they stand in it.
func namedBy(file string) (kind, name string) {
	if rest, ok := strings.CutPrefix(filepath.Base(file), host.ExecutablePrefix); ok {
		kind, name, _ = strings.Cut(rest, "-")
	}
	return kind, name
}

// testPlugin is trunkline-server plugin test.
func testPlugin(args []string, stdout, stderr io.Writer) int {
	f, ok := parsePlugin("test", args, stderr)
	if !ok {
		return exitUsage
	}
	o := plugintest.Options{Kind: f.kind, Name: f.name, Match: f.match}
	if isShipped(f.kind, f.file) {
		o.Name, o.Command = f.file, []string{"/proc/self/exe", "plugin", f.kind, f.file}
	} else {
		kind, name := namedBy(f.file)
		o.File, o.Kind, o.Name = f.file, cmp.Or(o.Kind, kind), cmp.Or(o.Name, name)
	}
	if o.Kind == "" || o.Name == "" {
		return f.fail(exitUsage, "%s does not say kind and name; add --kind and --name", f.file)
	}
	if f.config != "" && !json.Valid([]byte(f.config)) {
		return f.fail(exitUsage, "--config is no JSON")
	}
	o.Config = f.configure
	if f.verbose {
		o.Logger = slog.New(slog.NewTextHandler(stderr, nil))
	}
	show := report{out: stdout, json: f.json}
	o.Report = show.tell
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	_, err := plugintest.Run(ctx, o)
	switch {
	case errors.Is(err, plugintest.ErrKind):
		return f.fail(exitUsage, "%v", err)
	case err != nil:
		return f.fail(exitFailed, "%v", err)
	case show.failed > 0 && f.json:
		return f.fail(exitFailed, "%s/%s: %d of %d cases failed", o.Kind, o.Name, show.failed, show.all)
	case show.failed > 0:
		_, _ = fmt.Fprintf(stderr, "%s/%s: %d of %d cases failed\n", o.Kind, o.Name, show.failed, show.all)
		return exitFailed
	}
	_, _ = fmt.Fprintf(stderr, "%s/%s: all %d cases passed\n", o.Kind, o.Name, show.all)
	return exitOK
}

// configure is a process's configuration; a shipped plugin is told its data directory in it.
func (f *pluginFlags) configure(dir, unique string) []byte {
	text := f.config
	if text == "" && isShipped(f.kind, f.file) {
		text = `{"data":"${DATA}","memory":1073741824}`
	}
	return []byte(strings.NewReplacer("${CASE}", unique, "${DATA}", dir).Replace(text))
}

// report prints what came of each case.
type report struct {
	out         io.Writer
	json        bool
	all, failed int
}

type resultJSON struct {
	Case     string   `json:"case"`
	OK       bool     `json:"ok"`
	Millis   int64    `json:"ms"`
	Failures []string `json:"failures,omitempty"`
}

func (r *report) tell(result plugintest.Result) {
	r.all++
	ok := len(result.Failures) == 0
	if !ok {
		r.failed++
	}
	if r.json {
		line, _ := json.Marshal(resultJSON{result.Case, ok, result.Took.Milliseconds(), result.Failures}) // cannot fail: texts and numbers
		_, _ = fmt.Fprintf(r.out, "%s\n", line)
		return
	}
	word := map[bool]string{true: "ok  ", false: "FAIL"}[ok]
	_, _ = fmt.Fprintf(r.out, "%s  %s (%s)\n", word, result.Case, result.Took.Round(time.Millisecond))
	for _, f := range result.Failures {
		_, _ = fmt.Fprintf(r.out, "      %s\n", strings.ReplaceAll(f, "\n", "\n      "))
	}
}

// verifyPlugin is trunkline-server plugin verify.
func verifyPlugin(args []string, stdout, stderr io.Writer) int {
	f, ok := parsePlugin("verify", args, stderr)
	if !ok {
		return exitUsage
	}
	path, err := filepath.Abs(f.file)
	if err != nil {
		return f.fail(exitFailed, "%v", err)
	}
	found, err := lookAt(path)
	if err != nil {
		return f.fail(exitFailed, "%v", err)
	}
	found.Kind, found.Name = namedBy(path)
	found.print(stdout, stderr, f.json)
	if found.Kind == "" || found.Name == "" {
		_, _ = fmt.Fprintf(stderr, "warning: the server looks for a file named %sKIND-NAME\n", host.ExecutablePrefix)
	}
	return exitOK
}

// looked is what there is to know of a plugin's file.
type looked struct {
	Kind        string `json:"kind"`
	Name        string `json:"name"`
	Version     string `json:"version,omitempty"` // where it was started
	Path        string `json:"path"`
	SHA256      string `json:"sha256"`
	Replaces    string `json:"replaces,omitempty"` // the hash of the file that it took the place of
	Interpreter string `json:"unverified_interpreter"`
}

// lookAt looks at a file as the server does before it starts it.
func lookAt(path string) (looked, error) {
	exe, err := host.OpenExecutable(path)
	if err != nil {
		return looked{}, err
	}
	defer func() { _ = exe.Close() }() // only read
	return looked{Path: path, SHA256: exe.SHA256, Interpreter: exe.Interpreter}, nil
}

// print shows what to write into the configuration. Where a file took another's place, both hashes are good until all
// servers have the new one.
func (l *looked) print(stdout, stderr io.Writer, asJSON bool) {
	if asJSON {
		line, _ := json.Marshal(l) // cannot fail: texts
		_, _ = fmt.Fprintf(stdout, "%s\n", line)
	} else {
		pins := l.SHA256
		if l.Replaces != "" {
			pins = "[" + l.Replaces + ", " + l.SHA256 + "]"
		}
		_, _ = fmt.Fprintf(stdout, "plugins:\n  dir: %q\n  %s:\n    %s:\n      sha256: %s\n", filepath.Dir(l.Path), cmp.Or(l.Kind, "KIND"), cmp.Or(l.Name, "NAME"), pins)
	}
	if l.Interpreter != "" {
		_, _ = fmt.Fprintf(stderr, "warning: the file is a script, and its interpreter, %s, is not verified\n", l.Interpreter)
	}
}

// isShipped reports whether a plugin lives in this binary.
func isShipped(kind, name string) bool { return slices.Contains(broker.Shipped(kind), name) }
