package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/address"
)

// streams are what a command has of its surroundings.
type streams struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
}

// app is one run of the program.
type app struct {
	streams
	out     *bufio.Writer
	url     string
	json    bool
	started bool // a command has begun: what fails from now on is no wrong usage
}

const (
	connectPatience = 5 * time.Second
	connectPause    = 100 * time.Millisecond
	outputBytes     = 64 << 10
)

// usageError is a command line that cannot be carried out.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usage(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// connectError is a connection that was not made, whatever the reason.
type connectError struct{ err error }

func (e *connectError) Error() string { return e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// run carries out one command line and returns its exit code. What was printed is flushed before.
func run(ctx context.Context, args []string, s streams) int {
	a := &app{streams: s, out: bufio.NewWriterSize(s.out, outputBytes)}
	root := a.command()
	root.SetArgs(args)
	root.SetOut(s.out)
	root.SetErr(s.err)
	err := root.ExecuteContext(ctx)
	if flushed := a.out.Flush(); err == nil {
		err = flushed
	}
	if err == nil {
		return 0
	}
	if !a.started {
		err = &usageError{err}
	}
	if ctx.Err() == nil {
		fmt.Fprintf(s.err, "trunkline: %v\n", err)
		return exitCode(err)
	}
	if !errors.Is(err, context.Canceled) && !errors.Is(err, context.Cause(ctx)) { // more than the interruption itself
		fmt.Fprintf(s.err, "trunkline: interrupted: %v\n", err)
	}
	return exitInterrupted
}

// The exit codes of failures.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnconnected = 3
	exitNotAllowed  = 4
	exitNotFound    = 5
	exitInterrupted = 130
)

func exitCode(err error) int {
	var wrong *usageError
	var unconnected *connectError
	var server *trunkline.ServerError
	switch {
	case errors.As(err, &wrong):
		return exitUsage
	case errors.Is(err, trunkline.ErrNotAllowed):
		return exitNotAllowed
	case errors.As(err, &unconnected):
		return exitUnconnected
	case errors.As(err, &server):
		if strings.HasPrefix(string(server.Code), "UNKNOWN_") {
			return exitNotFound
		}
	case errors.Is(err, trunkline.ErrInvalid): // found out on this side
		return exitUsage
	}
	return exitFailed
}

// command builds the tree of commands.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:               "trunkline",
		Short:             "Publish to, read from and look after a Trunkline server",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usage("name a command; trunkline --help lists them")
		},
	}
	root.PersistentFlags().StringVarP(&a.url, "server", "s", a.env("TRUNKLINE_URL"),
		"server's `URL`, HOST[:PORT]; default $TRUNKLINE_URL or 127.0.0.1:8765")
	root.PersistentFlags().Lookup("server").DefValue = ""
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON, one object a line for streams")
	root.AddCommand(a.topicCommand(), a.pubCommand(), a.subCommand(), a.getCommand(), a.versionCommand(), a.benchCommand())
	root.AddCommand(a.logCommand())
	return root
}

// connected wraps what a command does with a client that is dialled before and closed after it.
func (a *app) connected(do func(ctx context.Context, c *trunkline.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		c, err := a.dial(cmd.Context())
		if err != nil {
			return err
		}
		defer c.Close()
		return do(cmd.Context(), c, args)
	}
}

// dial tries for connectPatience: the server may be starting.
func (a *app) dial(ctx context.Context) (*trunkline.Client, error) {
	limit, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	var first error
	for {
		c, err := trunkline.Dial(limit, a.url, trunkline.WithName("trunkline-cli"))
		switch {
		case err == nil:
			return c, nil
		case errors.Is(err, trunkline.ErrInvalid):
			return nil, &usageError{err}
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !errors.Is(err, trunkline.ErrConnect):
			return nil, &connectError{err}
		}
		if first == nil || limit.Err() == nil {
			first = err // and not what our own deadline did to the last try
		}
		select {
		case <-time.After(connectPause):
		case <-limit.Done():
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, &connectError{fmt.Errorf("%w; start a server, or name another with -s", first)}
		}
	}
}

// checkAddress refuses what the protocol could not mean before anything is connected or read.
func checkAddress(text string, forUse func(*address.Address) error) (address.Address, error) {
	addr, err := address.Parse([]byte(text))
	if err == nil {
		err = forUse(&addr)
	}
	if err == nil && strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		err = fmt.Errorf("address %q has a blank or control byte in it", text)
	}
	if err != nil {
		return addr, &usageError{err}
	}
	return addr, nil
}

// argCount is cobra.RangeArgs with the command's own line in the message.
func argCount(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < low || len(args) > high {
			return fmt.Errorf("%d arguments; use %s", len(args), cmd.UseLine())
		}
		return nil
	}
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// note prints to standard error, behind what was printed before.
func (a *app) note(format string, args ...any) {
	a.out.Flush() // its error stays in the writer and is reported at the end
	fmt.Fprintf(a.streams.err, format+"\n", args...)
}
