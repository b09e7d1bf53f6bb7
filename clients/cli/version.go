package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
)

// version is what the linker may set.
var version = trunkline.Version

// versionJSON is the protocol's JSON form of a version.
type versionJSON struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Go       string `json:"go"`
	Protocol int    `json:"protocol"`
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print this program's version", Args: argCount(0, 0),
		RunE: func(*cobra.Command, []string) error {
			a.started = true
			v := versionJSON{Version: version, Commit: commit(), Go: runtime.Version(), Protocol: trunkline.ProtocolVersion}
			if a.json {
				return a.printJSON(v)
			}
			_, err := fmt.Fprintf(a.out, "trunkline %s (commit %s, %s, protocol %d)\n", v.Version, v.Commit, v.Go, v.Protocol)
			return err
		},
	}
}

// commit is what the Go tool stamped into the binary; "unknown" where it was built outside a checkout.
func commit() string {
	rev, changed := "unknown", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision" && len(s.Value) >= 12:
				rev = s.Value[:12]
			case s.Key == "vcs.modified" && s.Value == "true":
				changed = "+changes"
			}
		}
	}
	return rev + changed
}
