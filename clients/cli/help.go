package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trunkline-mq/trunkline/clients/cli/profile"
	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

func (a *app) completionCommand() *cobra.Command {
	scripts := map[string]func(root *cobra.Command) error{
		"bash":       func(root *cobra.Command) error { return root.GenBashCompletionV2(a.out, true) },
		"zsh":        func(root *cobra.Command) error { return root.GenZshCompletion(a.out) },
		"fish":       func(root *cobra.Command) error { return root.GenFishCompletion(a.out, true) },
		"powershell": func(root *cobra.Command) error { return root.GenPowerShellCompletionWithDesc(a.out) },
	}
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print the script with which a shell completes commands, flags and the names of topics",
		Long: "Print the script for bash, zsh, fish or powershell. Names of topics and contexts are asked for\n" +
			"while you type, of the server that the command line would speak to.",
		Example: "  source <(trunkline completion bash)\n" +
			"  trunkline completion zsh > \"${fpath[1]}/_trunkline\"\n" +
			"  trunkline completion fish > ~/.config/fish/completions/trunkline.fish",
		Args: argCount(1, 1), ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			script, ok := scripts[args[0]]
			if !ok {
				return usage("no completion for %q; there is one for %s", args[0], strings.Join(shells, ", "))
			}
			a.started = true
			return script(cmd.Root())
		},
	}
}

// completionPatience bounds how long a person who presses tab waits for a server.
const completionPatience = time.Second

// completeTopics completes a topic's name, as the first argument, with those that the server has. Silence is the answer
// where it cannot be asked.
func (a *app) completeTopics(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 || strings.ContainsAny(begun, "/@#") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, _ := a.topicNames(cmd.Context()) // an error has no place between what is typed
	var found []string
	for _, name := range names {
		if strings.HasPrefix(name, begun) {
			found = append(found, name)
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// completeAllTopics is completeTopics for commands that take several addresses.
func (a *app) completeAllTopics(cmd *cobra.Command, _ []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.completeTopics(cmd, nil, begun)
}

func (a *app) topicNames(ctx context.Context) ([]string, error) {
	url, err := a.server.url(a.env)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	c, err := trunkline.Dial(ctx, url, trunkline.WithName("trunkline-cli"))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	topics, err := c.Topics(ctx)
	var names []string
	for _, t := range topics {
		names = append(names, t.Name)
	}
	slices.Sort(names)
	return names, err
}

// completeContexts completes a context's name.
func (a *app) completeContexts(_ *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	store, err := profile.Open(a.env)
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, _ := store.Names() // as above
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, begun) }), cobra.ShellCompDirectiveNoFileComp
}

// errorJSON is a row of the table of errors.
type errorJSON struct {
	Code      errcode.Code `json:"code"`
	Meaning   string       `json:"meaning"`
	Cause     string       `json:"cause"`
	Fix       string       `json:"fix"`
	Retriable bool         `json:"retriable"`
	Outcome   string       `json:"outcome"`
	Closes    bool         `json:"closes"`
}

func newErrorJSON(row errcode.Info) errorJSON {
	advice, _ := row.Code.Advice()
	e := errorJSON{Code: row.Code, Meaning: row.Text, Cause: advice.Cause, Fix: advice.Fix, Retriable: row.Retriable, Outcome: "definite", Closes: row.Closes}
	if row.Outcome == errcode.Unknown {
		e.Outcome = "unknown"
	}
	return e
}

func (a *app) errorsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "errors [CODE]",
		Short: "Explain an error code of the server, or list them",
		Args:  argCount(0, 1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var codes []string
			for _, row := range errcode.Table {
				if len(args) == 0 && strings.HasPrefix(string(row.Code), strings.ToUpper(begun)) {
					codes = append(codes, string(row.Code))
				}
			}
			return codes, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			a.started = true
			if len(args) == 0 {
				return a.listErrors()
			}
			code := errcode.Code(strings.ToUpper(args[0]))
			row, ok := errcode.Lookup(code)
			if !ok {
				return fmt.Errorf("%w%s; trunkline errors lists them", &noCodeError{args[0]}, nearestCode(string(code)))
			}
			if a.json {
				return a.printJSON(newErrorJSON(row))
			}
			text, _ := errcode.Explain(code)
			_, err := a.out.WriteString(text)
			return err
		},
	}
}

// noCodeError is a word that is no code.
type noCodeError struct{ code string }

func (e *noCodeError) Error() string { return fmt.Sprintf("there is no error code %q", e.code) }

func nearestCode(code string) string {
	best, cost := "", len(code)/3+1
	for _, row := range errcode.Table {
		if d := distance(code, string(row.Code)); d < cost {
			best, cost = string(row.Code), d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

func (a *app) listErrors() error {
	if a.json {
		all := make([]errorJSON, len(errcode.Table))
		for i, row := range errcode.Table {
			all[i] = newErrorJSON(row)
		}
		return a.printJSON(map[string][]errorJSON{"errors": all})
	}
	w := a.table()
	w.row("CODE", "RETRY", "MEANING")
	for _, row := range errcode.Table {
		retry := "no"
		if row.Retriable {
			retry = "yes"
		}
		w.row(string(row.Code), retry, row.Text)
	}
	return w.flush()
}
