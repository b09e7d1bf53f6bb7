package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/address"
)

// serverProgram is the program that knows plugins.
const serverProgram = "trunkline-server"

func (a *app) pluginCommand() *cobra.Command {
	cmd := a.group("plugin", "List, describe, reload, verify and test plugins")
	cmd.AddCommand(&cobra.Command{
		Use: "ls", Short: "List the server's plugins", Args: argCount(0, 0), RunE: a.connected(a.listPlugins),
	}, &cobra.Command{
		Use: "info KIND/NAME", Short: "Describe a plugin and its process", Args: argCount(1, 1), RunE: a.connected(a.describePlugin),
	}, &cobra.Command{
		Use: "reload KIND/NAME", Short: "Replace a plugin's process by a new one", Args: argCount(1, 1), RunE: a.connected(a.reloadPlugin),
	}, &cobra.Command{
		Use: "verify FILE", Short: "Show what to configure for an executable, and who could change it",
		DisableFlagParsing: true, RunE: a.byServer("verify"),
	}, &cobra.Command{
		Use: "test FILE [--kind KIND] [--name NAME] [--config JSON]", Short: "Run the conformance suite on an executable",
		DisableFlagParsing: true, RunE: a.byServer("test"),
	})
	return cmd
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
		{"last error", p.LastError}, {"file", p.Path}, {"sha256", p.SHA256}, {"interpreter, not verified", p.Interpreter},
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
		if len(args) == 0 {
			return usage("no file is named; use %s", cmd.UseLine())
		}
		if a.json { // it stood before the command
			args = append(args, "--json")
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
