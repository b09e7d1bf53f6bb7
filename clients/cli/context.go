package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"github.com/trunkline-mq/trunkline/clients/cli/profile"
	trunkline "github.com/trunkline-mq/trunkline/clients/go"
)

// serverFlags say which server is meant.
type serverFlags struct{ named, context string }

func (f *serverFlags) declare(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVarP(&f.named, "server", "s", "", "server's `URL`, HOST[:PORT]; default $TRUNKLINE_URL, the selected context, or 127.0.0.1:8765")
	cmd.PersistentFlags().StringVar(&f.context, "context", "", "use the server of the context `NAME`; default $TRUNKLINE_CONTEXT")
}

// url is the server that is meant: what the command line says goes before the environment, and this before the context
// that is selected. Empty is the client's default.
func (f *serverFlags) url(env func(string) string) (string, error) {
	switch {
	case f.named != "" && f.context != "":
		return "", usage("-s and --context both name a server; leave one of them out")
	case f.named != "":
		return f.named, nil
	case f.context == "" && env("TRUNKLINE_URL") != "":
		return env("TRUNKLINE_URL"), nil
	}
	store, err := profile.Open(env)
	name := f.context
	if name == "" {
		name = env("TRUNKLINE_CONTEXT")
	}
	if name == "" {
		if err != nil { // nowhere to keep contexts: none is selected
			return "", nil
		}
		if name, err = store.Selected(); err != nil || name == "" {
			return "", err
		}
	}
	if err != nil {
		return "", &usageError{err}
	}
	c, err := store.Get(name)
	if err != nil {
		return "", &usageError{err}
	}
	return c.URL, nil
}

func (a *app) contextCommand() *cobra.Command {
	cmd := a.group("context", "Keep servers under names, and select one")
	cmd.Long = "Keep servers under names. Which server a command speaks to says, in this order: -s, --context, TRUNKLINE_URL,\n" +
		"TRUNKLINE_CONTEXT, the selected context, and 127.0.0.1:8765. Contexts lie in $XDG_CONFIG_HOME/trunkline/context,\n" +
		"or ~/.config/trunkline/context, readable by their owner alone."
	var description string
	add := &cobra.Command{
		Use: "add NAME URL [--description TEXT]", Short: "Keep a server under a name", Args: argCount(2, 2), DisableFlagsInUseLine: true,
		RunE: a.withContexts(func(s profile.Store, args []string) error { return a.addContext(s, args, description) }),
	}
	add.Flags().StringVar(&description, "description", "", "a `TEXT` that ls shows")
	var yes bool
	rm := &cobra.Command{
		Use: "rm NAME [--yes]", Short: "Forget a context", Args: argCount(1, 1), DisableFlagsInUseLine: true, ValidArgsFunction: a.completeContexts,
	}
	rm.Flags().BoolVar(&yes, "yes", false, "do not ask")
	rm.RunE = func(cmd *cobra.Command, args []string) error {
		return a.withContexts(func(s profile.Store, args []string) error {
			if err := a.confirm(cmd.Context(), yes, "Forget the context "+args[0]+"?"); err != nil {
				return err
			}
			return a.removeContext(s, args[0])
		})(cmd, args)
	}
	cmd.AddCommand(add, rm, &cobra.Command{
		Use: "ls", Short: "List the contexts", Args: argCount(0, 0), RunE: a.withContexts(a.listContexts),
	}, &cobra.Command{
		Use: "show [NAME]", Short: "Show a context, or the one that is in use", Args: argCount(0, 1), RunE: a.withContexts(a.showContext), ValidArgsFunction: a.completeContexts,
	}, &cobra.Command{
		Use: "select NAME", Short: "Use a context from now on", Args: argCount(1, 1), RunE: a.withContexts(a.selectContext), ValidArgsFunction: a.completeContexts,
	})
	return cmd
}

// withContexts opens the store for what a command does. A context that does not exist is "not found" here, where it is
// what the command is about.
func (a *app) withContexts(do func(s profile.Store, args []string) error) func(*cobra.Command, []string) error {
	return func(_ *cobra.Command, args []string) error {
		a.started = true
		s, err := profile.Open(a.env)
		if err != nil {
			return &usageError{err}
		}
		for _, name := range args[:min(len(args), 1)] {
			if err := profile.CheckName(name); err != nil {
				return &usageError{err}
			}
		}
		return do(s, args)
	}
}

// contextJSON is a context as --json prints it.
type contextJSON struct {
	Name string `json:"name"`
	profile.Context
	Selected bool `json:"selected"`
}

func (a *app) addContext(s profile.Store, args []string, description string) error {
	if err := checkURL(args[1]); err != nil {
		return &usageError{err}
	}
	added := profile.Context{URL: args[1], Description: description}
	if err := s.Add(args[0], added); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(contextJSON{args[0], added, false})
	}
	_, err := fmt.Fprintf(a.out, "context %s is %s\n", args[0], args[1])
	return err
}

// errNotDialled keeps checkURL from the network.
var errNotDialled = errors.New("not dialled")

// checkURL asks the client whether it would take a URL.
func checkURL(url string) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	nowhere := func(context.Context, string, string) (net.Conn, error) { return nil, errNotDialled }
	c, err := trunkline.Dial(ctx, url, trunkline.WithDialer(nowhere))
	if err == nil {
		return c.Close()
	}
	if errors.Is(err, trunkline.ErrInvalid) {
		return err
	}
	return nil
}

func (a *app) removeContext(s profile.Store, name string) error {
	selected, err := s.Remove(name)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"name": name, "selected": selected})
	}
	fmt.Fprintf(a.out, "context %s is forgotten\n", name)
	if selected {
		a.note("it was the selected one; none is selected now")
	}
	return nil
}

func (a *app) listContexts(s profile.Store, _ []string) error {
	names, err := s.Names()
	if err != nil {
		return err
	}
	selected, err := s.Selected()
	if err != nil {
		return err
	}
	all, faults := []contextJSON{}, error(nil)
	for _, name := range names {
		c, err := s.Get(name)
		if err != nil {
			faults = errors.Join(faults, err)
			continue
		}
		all = append(all, contextJSON{name, c, name == selected})
	}
	if a.json {
		return errors.Join(a.printJSON(map[string]any{"contexts": all}), faults)
	}
	w := a.table()
	w.row("CONTEXT", "SELECTED", "URL", "DESCRIPTION")
	for _, c := range all {
		mark := ""
		if c.Selected {
			mark = "yes"
		}
		w.row(c.Name, mark, c.URL, c.Description)
	}
	return errors.Join(w.flush(), faults)
}

func (a *app) showContext(s profile.Store, args []string) error {
	selected, err := s.Selected()
	if err != nil {
		return err
	}
	name := selected
	if len(args) == 1 {
		name = args[0]
	}
	if name == "" {
		return fmt.Errorf("%w is selected; trunkline context select NAME selects one", profile.ErrUnknown)
	}
	c, err := s.Get(name)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(contextJSON{name, c, name == selected})
	}
	fmt.Fprintf(a.out, "%s  %s\n", name, c.URL)
	if c.Description != "" {
		fmt.Fprintln(a.out, c.Description)
	}
	return nil
}

func (a *app) selectContext(s profile.Store, args []string) error {
	if err := s.Select(args[0]); err != nil {
		return err
	}
	if a.json {
		c, err := s.Get(args[0])
		if err != nil {
			return err
		}
		return a.printJSON(contextJSON{args[0], c, true})
	}
	_, err := fmt.Fprintf(a.out, "context %s is used from now on\n", args[0])
	return err
}
