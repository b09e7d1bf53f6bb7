package main

import (
	"fmt"
	"io"
	"path/filepath"

	"github.com/trunkline-mq/trunkline/plugins/metadata/embedded"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/murmur2"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
)

// pluginConfig is what the server hands to a shipped plugin.
type pluginConfig struct {
	Data string `json:"data"` // the data directory, absolute
}

// runPlugin is the whole of a shipped plugin's process. It uses no shortcut that a third party's could not.
func runPlugin(args []string, stderr io.Writer) int {
	if len(args) != 2 {
		_, _ = fmt.Fprintln(stderr, "usage: trunkline-server plugin KIND NAME (started by the server, not by hand)")
		return exitUsage
	}
	kind, name := args[0], args[1]
	p := sdk.Plugin{Kind: kind, Name: name, Version: version}
	var cfg pluginConfig
	err := sdk.Config(&cfg)
	if err == nil {
		err = compose(&p, cfg)
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "plugin %s/%s: %v\n", kind, name, err)
		return exitFailed
	}
	sdk.Serve(p)
	return exitOK
}

// compose puts the implementation into p.
func compose(p *sdk.Plugin, cfg pluginConfig) (err error) {
	switch p.Kind + "/" + p.Name {
	case "storage/filelog":
		p.Storage, err = filelog.New(filelog.Options{Data: cfg.Data, Logger: sdk.Logger()})
	case "metadata/embedded":
		p.Metadata, err = embedded.Open(embedded.Options{Path: filepath.Join(cfg.Data, "meta", "embedded.db"), Logger: sdk.Logger()})
	case "partitioner/murmur2":
		p.Partitioner = murmur2.New()
	default:
		return fmt.Errorf("no such plugin is shipped")
	}
	return err
}
