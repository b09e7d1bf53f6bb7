package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/clients/cli/profile"
	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
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
	server  serverFlags
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

// outputError is standard output that takes nothing more.
type outputError struct{ err error }

func (e *outputError) Error() string { return "write standard output: " + e.err.Error() }
func (e *outputError) Unwrap() error { return e.err }

// output tells a failure of standard output from all others: the same words may come from a socket.
type output struct{ io.Writer }

func (o output) Write(b []byte) (int, error) {
	n, err := o.Writer.Write(b)
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err
	}
	if err != nil {
		err = &outputError{err}
	}
	return n, err
}

// lockedWriter may be written to from several goroutines.
type lockedWriter struct {
	mu sync.Mutex
	io.Writer
}

func (w *lockedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Writer.Write(b)
}

// errUnhealthy says that what was looked at is not well; what is wrong was printed.
var errUnhealthy = errors.New("something is wrong")

// run carries out one command line and returns its exit code. What was printed is flushed before.
func run(ctx context.Context, args []string, s streams) int {
	s.err = &lockedWriter{Writer: s.err}
	a := &app{streams: s, out: bufio.NewWriterSize(output{s.out}, outputBytes)}
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
		a.json = a.json || asksJSON(args) // behind what could not be read
	}
	if ctx.Err() != nil {
		if !errors.Is(err, context.Canceled) && !errors.Is(err, context.Cause(ctx)) { // more than the interruption itself
			a.complain(fmt.Errorf("interrupted: %w", err), exitInterrupted)
		}
		return exitInterrupted
	}
	code := exitCode(err)
	if code != exitClosed && code != exitUnhealthy {
		a.report(err, code)
	}
	return code
}

// asksJSON reports whether a command line that could not be read asks for JSON.
func asksJSON(args []string) (asked bool) {
	for _, arg := range args {
		value, ok := strings.CutPrefix(arg+"=true", "--json=")
		switch {
		case arg == "--":
			return asked
		case ok:
			value, _, _ = strings.Cut(value, "=")
			yes, err := strconv.ParseBool(value)
			asked = yes || err != nil
		}
	}
	return asked
}

// failure is an error as --json prints it, under the key error.
type failure struct {
	Code      errcode.Code `json:"code,omitempty"` // of the protocol; none where the server has no part in it
	Text      string       `json:"text"`
	Cause     string       `json:"cause,omitempty"`
	Fix       string       `json:"fix,omitempty"`
	Retriable bool         `json:"retriable,omitempty"`
	Outcome   string       `json:"outcome,omitempty"` // "unknown": a record may be in the log all the same
	Exit      int          `json:"exit,omitempty"`    // with which the program ends; none where it goes on
}

// explain takes an error apart: what happened, how that comes about, and what to do.
func explain(err error) failure {
	f := failure{Text: err.Error()}
	if errors.Is(err, trunkline.ErrOutcomeUnknown) {
		f.Outcome = "unknown"
	}
	if local, ok := errors.AsType[*errcode.Error](err); ok {
		f.Code, f.Text, f.Fix = local.Code, strings.Replace(f.Text, local.Error(), local.What, 1), local.Hint
	}
	server, ok := errors.AsType[*trunkline.ServerError](err)
	if !ok {
		return f
	}
	f.Code, f.Text, f.Fix, f.Retriable = server.Code, strings.Replace(f.Text, server.Error(), server.What(), 1), fix(server), server.Retriable()
	if !errors.Is(err, trunkline.ErrInvalid) && !errors.Is(err, trunkline.ErrExists) { // of those, what happened has said it, of this one case
		f.Cause = server.Cause()
	}
	return f
}

// report says what the program ends with and, of a server's error, how it comes about and what to do.
func (a *app) report(err error, exit int) {
	server, ok := errors.AsType[*trunkline.ServerError](err)
	if !ok || a.json {
		a.complain(err, exit)
		return
	}
	said := strings.Replace(err.Error(), server.Text, server.What(), 1) // what to do stands in a line of its own
	fmt.Fprintf(a.streams.err, "%s %s\n", a.paint(a.streams.err, red, "trunkline:"), said)
	f := explain(err)
	for _, row := range [][2]string{{"cause", f.Cause}, {"fix", f.Fix}} {
		if row[1] != "" {
			fmt.Fprintf(a.streams.err, "%s: %s\n", row[0], row[1])
		}
	}
}

// complain says in a line what went wrong: what the program ends with or, where exit is 0, goes on after.
func (a *app) complain(err error, exit int) {
	if !a.json {
		prefix := "trunkline:"
		if exit != 0 && exit != exitInterrupted {
			prefix = a.paint(a.streams.err, red, prefix)
		}
		fmt.Fprintf(a.streams.err, "%s %v\n", prefix, err)
		return
	}
	f := explain(err)
	f.Exit = exit
	_ = encodeTo(a.streams.err, map[string]failure{"error": f}) // there is nobody to tell
}

// fix is what to do about a server's error: the server's advice on the one case, or what is known of the code.
func fix(e *trunkline.ServerError) string {
	hint := e.Hint()
	if hint == "" || inVerbs(e.Code) && e.Fix() != "" {
		return e.Fix()
	}
	return hint
}

// inVerbs reports whether the server's advice on a code names verbs of the protocol, where this program has commands.
func inVerbs(c errcode.Code) bool {
	switch c {
	case errcode.UnknownTopic, errcode.UnknownPartition, errcode.UnknownPlugin, errcode.PluginNotReplaced, errcode.MetadataUnavailable:
		return true
	}
	return false
}

// The exit codes of failures.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnconnected = 3
	exitNotAllowed  = 4
	exitNotFound    = 5
	exitUnhealthy   = 10
	exitInterrupted = 130
	exitClosed      = 128 + int(syscall.SIGPIPE)
)

// exitCode is the same for the same mistake, whether it was found out here or by the server.
func exitCode(err error) int {
	_, wrong := errors.AsType[*usageError](err)
	_, unconnected := errors.AsType[*connectError](err)
	_, noCode := errors.AsType[*noCodeError](err)
	_, closed := errors.AsType[*outputError](err)
	server, answered := errors.AsType[*trunkline.ServerError](err)
	switch {
	case closed && errors.Is(err, syscall.EPIPE):
		return exitClosed
	case wrong:
		return exitUsage
	case errors.Is(err, errUnhealthy):
		return exitUnhealthy
	case errors.Is(err, trunkline.ErrNotAllowed):
		return exitNotAllowed
	case unconnected:
		return exitUnconnected
	case answered && strings.HasPrefix(string(server.Code), "UNKNOWN_"), errors.Is(err, profile.ErrUnknown), noCode:
		return exitNotFound
	case errors.Is(err, trunkline.ErrInvalid):
		return exitUsage
	}
	return exitFailed
}

// command builds the tree of commands.
func (a *app) command() *cobra.Command {
	root := a.group("trunkline", "Publish to, read from and look after a Trunkline server")
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	a.server.declare(root)
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON, one object a line for streams; errors too, on standard error")
	root.AddCommand(a.topicCommand(), a.pubCommand(), a.subCommand(), a.getCommand(), a.benchCommand(), a.logCommand(),
		a.contextCommand(), a.pluginCommand(), a.doctorCommand(), a.errorsCommand(), a.completionCommand(), a.versionCommand())
	return root
}

// group is a command that does nothing by itself. It names the commands below it to who names none, or one that is not
// there.
func (a *app) group(name, short string) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short, SuggestionsMinimumDistance: 2,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			near := ""
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				near = fmt.Sprintf("; did you mean %s?", s[0])
			}
			return usage("unknown command %q%s; %s --help lists what there is", args[0], near, cmd.CommandPath())
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			var names []string
			for _, c := range cmd.Commands() {
				if c.IsAvailableCommand() && c.Name() != "help" {
					names = append(names, c.Name())
				}
			}
			slices.Sort(names)
			return usage("name a command: %s; %s --help explains them", strings.Join(names, ", "), cmd.CommandPath())
		},
	}
}

// flagError names the flag that was probably meant.
func flagError(cmd *cobra.Command, err error) error {
	if value, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return fmt.Errorf("--%s %q is not %s; %s --help explains it", value.GetFlag().Name, value.GetValue(), kindOf(value.GetFlag()), cmd.CommandPath())
	}
	unknown, ok := strings.CutPrefix(err.Error(), "unknown flag: --")
	if !ok {
		return fmt.Errorf("%w; %s --help lists the flags", err, cmd.CommandPath())
	}
	best, cost := "", len(unknown)/3+2
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if d := distance(unknown, f.Name); d < cost {
			best, cost = f.Name, d
		}
	})
	if best != "" {
		return fmt.Errorf("%w; did you mean --%s?", err, best)
	}
	return fmt.Errorf("%w; %s --help lists the flags", err, cmd.CommandPath())
}

// kindOf is what a flag's value has to be.
func kindOf(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "bool":
		return "true or false"
	case "int":
		return "a whole number"
	case "float64":
		return "a number"
	}
	return f.Value.Type()
}

// distance is the number of insertions, deletions and changes between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// connected wraps what a command does with a client that is dialled before and closed after it. Such a client tries
// everything once: who runs a command knows best whether to run it again.
func (a *app) connected(do func(ctx context.Context, c *trunkline.Client, args []string) error) func(*cobra.Command, []string) error {
	return a.dialled(do, trunkline.WithoutRetry())
}

// dialled is connected with options of the client's.
func (a *app) dialled(do func(ctx context.Context, c *trunkline.Client, args []string) error, opts ...trunkline.Option) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		url, err := a.server.url(a.env)
		if err != nil {
			return err
		}
		a.started = true
		c, err := dial(cmd.Context(), url, opts...)
		if err != nil {
			return err
		}
		defer c.Close()
		return do(cmd.Context(), c, args)
	}
}

// dial tries for connectPatience: the server may be starting.
func dial(ctx context.Context, url string, opts ...trunkline.Option) (*trunkline.Client, error) {
	limit, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	var first error
	for {
		c, err := trunkline.Dial(limit, url, append(opts, trunkline.WithName("trunkline-cli"))...)
		switch {
		case err == nil:
			return c, nil
		case errors.Is(err, trunkline.ErrInvalid):
			return nil, &usageError{err}
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !errors.Is(err, trunkline.ErrConnect) && limit.Err() == nil:
			return nil, &connectError{err}
		case !errors.Is(err, trunkline.ErrConnect): // our own deadline
			err = fmt.Errorf("%w within %v", trunkline.ErrConnect, connectPatience)
		}
		if timeout, ok := errors.AsType[net.Error](err); first == nil || limit.Err() == nil && !(ok && timeout.Timeout()) {
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

func (a *app) printJSON(v any) error { return encodeTo(a.out, v) }

func encodeTo(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// note prints to standard error, behind what was printed before.
func (a *app) note(format string, args ...any) {
	a.out.Flush() // its error stays in the writer and is reported at the end
	fmt.Fprintf(a.streams.err, format+"\n", args...)
}

// warn is complain for what a command goes on after, behind what was printed before.
func (a *app) warn(err error) {
	a.out.Flush() // as in note
	a.complain(err, 0)
}

// table prints columns for people.
type table struct{ w *tabwriter.Writer }

func (a *app) table() table { return table{tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)} }

func (t table) row(cells ...string) { fmt.Fprintln(t.w, strings.Join(cells, "\t")) }

func (t table) flush() error { return t.w.Flush() }

// terminal reports whether a stream is one.
func (a *app) terminal(stream any) bool {
	if w, ok := stream.(*lockedWriter); ok {
		stream = w.Writer
	}
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// The colours that are used, as terminals take them.
const (
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
)

// paint colours text for a stream that is a terminal, unless NO_COLOR or a dumb terminal says otherwise.
func (a *app) paint(stream any, colour, text string) string {
	if a.env("NO_COLOR") != "" || a.env("TERM") == "dumb" || !a.terminal(stream) {
		return text
	}
	return colour + text + plain
}

// confirm asks on a terminal before something is destroyed; where nobody can be asked, the command line is the answer.
func (a *app) confirm(ctx context.Context, yes bool, question string) error {
	if yes || !a.terminal(a.in) || !a.terminal(a.streams.err) {
		return nil
	}
	a.out.Flush()
	fmt.Fprintf(a.streams.err, "%s [y/N] ", question)
	answer, err := bufio.NewReader(waiting(ctx, a.in)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if s := strings.ToLower(strings.TrimSpace(answer)); s != "y" && s != "yes" {
		return errors.New("not confirmed; nothing was changed")
	}
	return nil
}
