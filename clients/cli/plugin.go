package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/clients/cli/skeleton"
	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/address"
)

// serverProgram is the program that knows plugins.
const serverProgram = "trunkline-server"

func (a *app) pluginCommand() *cobra.Command {
	cmd := a.group("plugin", "List, describe, reload, begin, test, verify and install plugins")
	cmd.AddCommand(&cobra.Command{
		Use: "ls", Short: "List the server's plugins", Args: argCount(0, 0), RunE: a.connected(a.listPlugins),
	}, &cobra.Command{
		Use: "info KIND/NAME", Short: "Describe a plugin and its process", Args: pluginArg, RunE: a.connected(a.describePlugin),
	}, &cobra.Command{
		Use: "reload KIND/NAME", Short: "Replace a plugin's process by a new one", Args: pluginArg, RunE: a.connected(a.reloadPlugin),
	}, &cobra.Command{
		Use: "verify FILE", Short: "Show what to configure for an executable, and who could change it",
		DisableFlagParsing: true, DisableFlagsInUseLine: true, RunE: a.byServer("verify"),
	}, &cobra.Command{
		Use: "test FILE [--kind KIND] [--name NAME] [--config JSON]", Short: "Run the conformance suite on an executable",
		DisableFlagParsing: true, DisableFlagsInUseLine: true, RunE: a.byServer("test"),
	}, &cobra.Command{
		Use: "install FILE --dir DIR [--kind KIND] [--name NAME] [--config JSON]", Short: "Put an executable into the plugin directory, if it starts as that plugin",
		Long: "Copy FILE into the plugin directory DIR, which the server's configuration names as plugins.dir, as\n" +
			"trunkline-plugin-KIND-NAME, and print what to write into the configuration. The copy is looked at as the\n" +
			"server looks at it: who may change it, whether it starts, which kind, name and version it says it is.\n" +
			"Where one is there already, the new file takes its place in one step, and both hashes are printed.",
		DisableFlagParsing: true, DisableFlagsInUseLine: true, RunE: a.byServer("install"),
	}, a.newPluginCommand())
	return cmd
}

// newPluginCommand writes files by itself and needs no server.
func (a *app) newPluginCommand() *cobra.Command {
	var dir, checkout string
	cmd := &cobra.Command{
		Use: "new KIND NAME [--dir DIR] [--checkout DIR]", Short: "Begin a plugin: write a Go module that works, to be changed",
		Long: "Write a Go module for a plugin of KIND, partitioner or storage: it compiles and passes trunkline plugin test.\n" +
			"Its README.md says how to build, test and install it.",
		Args: argCount(2, 2), ValidArgs: skeleton.Kinds(), DisableFlagsInUseLine: true,
	}
	cmd.Flags().StringVar(&dir, "dir", "", "write into `DIR`, which is empty or not there; default is trunkline-plugin-KIND-NAME")
	cmd.Flags().StringVar(&checkout, "checkout", "", "a `DIR` with Trunkline's source, which the module is built against")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		p := skeleton.Plugin{Kind: args[0], Name: args[1]}
		if err := p.Check(); err != nil {
			return &usageError{err}
		}
		a.started = true
		if checkout != "" {
			whole, err := filepath.Abs(checkout)
			if err != nil {
				return err
			}
			if _, err := os.Stat(filepath.Join(whole, "plugins", "sdk")); err != nil {
				return fmt.Errorf("--checkout %s is no source of Trunkline: %w", checkout, err)
			}
			p.Checkout = whole
		}
		if dir == "" {
			dir = "trunkline-plugin-" + p.Kind + "-" + p.Name
		}
		files, err := p.Write(dir)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]any{"kind": p.Kind, "name": p.Name, "dir": dir, "files": files})
		}
		_, err = fmt.Fprintf(a.out, "%s: %s\n", dir, strings.Join(files, ", "))
		return err
	}
	return cmd
}

// pluginArg takes one plugin, by kind and name.
func pluginArg(cmd *cobra.Command, args []string) error {
	if err := argCount(1, 1)(cmd, args); err != nil {
		return err
	}
	if kind, name, ok := strings.Cut(args[0], "/"); !ok || kind == "" || name == "" || strings.Contains(name, "/") {
		return usage("%q is not KIND/NAME, such as partitioner/murmur2; trunkline plugin ls lists them", args[0])
	}
	return nil
}

func (a *app) listPlugins(ctx context.Context, c *trunkline.Client, _ []string) error {
	plugins, err := c.Plugins(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string][]trunkline.Plugin{"plugins": plugins})
	}
	t := a.table()
	t.row("PLUGIN", "VERSION", "STATE", "PID", "RESTARTS", "MEMORY", "")
	for _, p := range plugins {
		origin := ""
		if !p.Shipped {
			origin = "third party"
		}
		t.row(p.Kind+"/"+p.Name, p.Version, p.State, orNothing(int64(p.PID), strconv.Itoa(p.PID)), strconv.Itoa(p.Restarts),
			orNothing(p.RSS, address.FormatBytes(p.RSS>>10<<10)), origin)
	}
	return t.flush()
}

// orNothing leaves a cell empty where there is nothing to count.
func orNothing(n int64, text string) string {
	if n == 0 {
		return ""
	}
	return text
}

func (a *app) describePlugin(ctx context.Context, c *trunkline.Client, args []string) error {
	p, err := c.PluginInfo(ctx, args[0])
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(p)
	}
	fmt.Fprintf(a.out, "plugin %s/%s\n", p.Kind, p.Name)
	t := a.table()
	for _, row := range [][2]string{
		{"version", p.Version}, {"protocol", orNothing(int64(p.Protocol), strconv.Itoa(p.Protocol))}, {"state", p.State}, {"since", p.Since},
		{"pid", orNothing(int64(p.PID), strconv.Itoa(p.PID))}, {"restarts", strconv.Itoa(p.Restarts)}, {"memory", orNothing(p.RSS, address.FormatBytes(p.RSS>>10<<10))},
		{"last error", p.LastError}, {"last error at", p.LastErrorAt}, {"file", p.Path}, {"sha256", p.SHA256}, {"interpreter, not verified", p.Interpreter},
	} {
		if row[1] != "" {
			t.row("  "+row[0], row[1])
		}
	}
	return t.flush()
}

func (a *app) reloadPlugin(ctx context.Context, c *trunkline.Client, args []string) error {
	if err := c.ReloadPlugin(ctx, args[0]); err != nil {
		return err
	}
	return a.describePlugin(ctx, c, args)
}

// byServer hands the rest of the command line over to the server's program, which takes the place of this process.
func (a *app) byServer(command string) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		for _, arg := range args {
			if arg == "--help" || arg == "-h" {
				return cmd.Help()
			}
		}
		a.json = a.json || asksJSON(args) // the flags behind the command are the server's to read
		args = slices.DeleteFunc(args, func(arg string) bool { return arg == "--json" })
		if len(args) == 0 {
			return usage("no file is named; use %s", cmd.UseLine())
		}
		if a.json {
			args = append([]string{"--json"}, args...)
		}
		a.started = true
		program, err := findServer()
		if err != nil {
			return err
		}
		err = unix.Exec(program, append([]string{serverProgram, "plugin", command}, args...), os.Environ())
		return fmt.Errorf("run %s: %w", program, err)
	}
}

// findServer returns the server's program that lies beside this one, or else the first in PATH.
func findServer() (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), serverProgram)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside, nil
		}
	}
	program, err := exec.LookPath(serverProgram)
	if err != nil {
		return "", errors.Join(fmt.Errorf("%s does not lie beside this program, and not in PATH: it is what tests plugins", serverProgram), err)
	}
	return program, nil
}
