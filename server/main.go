// Command trunkline-server is the broker: it composes the parts and is the only place that knows the shipped plugins.
//
//	trunkline-server [flags]              serves
//	trunkline-server plugin KIND NAME     is a plugin; started by the server itself
package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/trunkline-mq/trunkline/server/internal/config"
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
		return runPlugin(args[1:], stderr)
	}
	cfg, err := config.Load(args, env)
	switch {
	case errors.Is(err, config.ErrHelp):
		_, _ = fmt.Fprint(stderr, config.Usage())
		return exitOK
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "trunkline-server: %v\n", err)
		return exitUsage
	}
	for _, w := range cfg.Warnings {
		_, _ = fmt.Fprintf(stderr, "trunkline-server: warning: %s\n", w)
	}
	if cfg.Test {
		_, _ = fmt.Fprintln(stderr, "configuration is valid")
		return exitOK
	}
	if err := serve(cfg, newLogger(cfg.Log, stderr), stderr); err != nil {
		_, _ = fmt.Fprintf(stderr, "trunkline-server: %v\n", err)
		return exitFailed
	}
	return exitOK
}

func newLogger(c config.Log, w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: c.Level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
