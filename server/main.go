// Command trunkline-server is the broker: it composes the parts and is the only place that knows the shipped plugins.
//
//	trunkline-server [flags]              serves
//	trunkline-server config show [flags]  prints the configuration it would have
//	trunkline-server plugin KIND NAME     is a plugin; started by the server itself
//	trunkline-server plugin test FILE     tests a plugin, shipped or not
//	trunkline-server plugin verify FILE   shows what to configure for a plugin of a third party
package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/server/internal/config"
	"github.com/trunkline-mq/trunkline/server/internal/console"
)

// Exit codes of the server (user documentation: README).
const (
	exitOK     = 0
	exitFailed = 1 // port, lock, permissions, disk format
	exitUsage  = 2 // flags or configuration
)

func main() { os.Exit(run(os.Args[1:], os.Environ(), os.Stderr)) }

func run(args, env []string, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "plugin" {
		return pluginCommand(args[1:], os.Stdout, stderr)
	}
	if len(args) > 0 && args[0] == "config" {
		return showConfig(args[1:], env, os.Stdout, stderr)
	}
	cfg, source, err := config.Open(args, env)
	if errors.Is(err, config.ErrHelp) {
		_, _ = fmt.Fprint(os.Stdout, config.Usage())
		return exitOK
	}
	if err != nil {
		return refuse(err, stderr)
	}
	for _, w := range cfg.Warnings {
		_, _ = fmt.Fprintf(stderr, "trunkline-server: warning: %s\n", w)
	}
	if cfg.Test {
		from := "no file, the defaults"
		if cfg.File != "" {
			from = cfg.File
		}
		_, _ = fmt.Fprintf(stderr, "configuration is valid (%s)\n", from)
		return exitOK
	}
	p := program{cfg: cfg, source: source, level: new(slog.LevelVar), stderr: stderr}
	p.level.Set(cfg.Log.Level)
	p.log = newLogger(cfg.Log.Format, p.level, stderr)
	if cfg.File != "" {
		p.log.Info("configuration read", "file", cfg.File)
	}
	if err := p.serve(); err != nil {
		_, _ = fmt.Fprintf(stderr, "trunkline-server: %v\n", err)
		return exitFailed
	}
	return exitOK
}

// refuse tells every fault of a command line or a configuration, help that was asked for in vain among them.
func refuse(err error, stderr io.Writer) int {
	faults := []string{err.Error()}
	if e, ok := errors.AsType[*config.Error](err); ok {
		faults = e.Faults
	}
	for _, fault := range faults {
		_, _ = fmt.Fprintf(stderr, "trunkline-server: %s\n", fault)
	}
	return exitUsage
}

// showConfig prints the configuration that a server with the same flags would have.
func showConfig(args, env []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || args[0] != "show" {
		_, _ = fmt.Fprintln(stderr, "usage: trunkline-server config show [--origin] [flags of the server]")
		return exitUsage
	}
	origin := slices.Contains(args, "--origin")
	text, err := config.Show(slices.DeleteFunc(args[1:], func(s string) bool { return s == "--origin" }), env, origin)
	if err != nil {
		return refuse(err, stderr)
	}
	if _, err := io.WriteString(stdout, text); err != nil {
		_, _ = fmt.Fprintf(stderr, "trunkline-server: %v\n", err)
		return exitFailed
	}
	return exitOK
}

// newLogger logs for people on a terminal, and for programs everywhere else, unless it is told how.
func newLogger(format string, level slog.Leveler, w io.Writer) *slog.Logger {
	person := isTerminal(w)
	if format == "auto" {
		format = "json"
		if person {
			format = "console"
		}
	}
	switch format {
	case "console":
		return slog.New(console.New(w, level, person && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"))
	case "text":
		return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: utc}))
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: utc}))
}

// utc makes the time of a record one that can be compared with those of other machines.
func utc(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		a.Value = slog.StringValue(a.Value.Time().UTC().Format(line.TimeLayout))
	}
	return a
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
