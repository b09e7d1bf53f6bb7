package main

import (
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/metadata/embedded"
	"github.com/trunkline-mq/trunkline/plugins/metadata/zookeeper"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/crc32"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/fnv1a"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/jump"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/murmur2"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/roundrobin"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/sticky"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
)

// pluginConfig is what the server hands to a shipped plugin.
type pluginConfig struct {
	Data      string          `json:"data,omitempty"`    // the data directory, absolute
	Reserve   int64           `json:"reserve,omitempty"` // bytes a store keeps free; -1: it decides
	Zookeeper zookeeperConfig `json:"zookeeper,omitzero"`
}

type zookeeperConfig struct {
	Servers []string      `json:"servers"`
	Chroot  string        `json:"chroot"`
	Session time.Duration `json:"session"`
	Digest  string        `json:"digest,omitempty"`
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
		p.Storage, err = filelog.New(filelog.Options{Data: cfg.Data, Reserve: cfg.Reserve, Logger: sdk.Logger()})
	case "metadata/embedded":
		p.Metadata, err = embedded.Open(embedded.Options{Path: filepath.Join(cfg.Data, "meta", "embedded.db"), Logger: sdk.Logger()})
	case "metadata/zookeeper":
		z := cfg.Zookeeper
		p.Metadata, err = zookeeper.Open(zookeeper.Options{
			Servers: z.Servers, Chroot: z.Chroot, Session: z.Session, Digest: z.Digest, Logger: sdk.Logger(),
		})
	case "partitioner/murmur2":
		p.Partitioner = murmur2.New()
	case "partitioner/crc32":
		p.Partitioner = crc32.New()
	case "partitioner/fnv1a":
		p.Partitioner = fnv1a.New()
	case "partitioner/roundrobin":
		p.Partitioner = roundrobin.New()
	case "partitioner/sticky":
		p.Partitioner = sticky.New()
	case "partitioner/jump":
		p.Partitioner = jump.New()
	default:
		return fmt.Errorf("no such plugin is shipped")
	}
	return err
}
