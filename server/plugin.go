package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/metadata/embedded"
	"github.com/trunkline-mq/trunkline/plugins/metadata/zookeeper"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/jump"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/stated"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/plugins/storage/archive"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/memory"
	"github.com/trunkline-mq/trunkline/plugins/storage/stream"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
	"github.com/trunkline-mq/trunkline/server/internal/config"
)

// pluginConfig is what the server hands to a shipped plugin.
type pluginConfig struct {
	Data      string          `json:"data,omitempty"`    // the data directory, absolute
	Reserve   int64           `json:"reserve,omitempty"` // bytes a store keeps free; -1: it decides
	Memory    int64           `json:"memory,omitempty"`  // bytes that a store in memory may take
	Zookeeper zookeeperConfig `json:"zookeeper,omitzero"`
}

type zookeeperConfig struct {
	Servers []string      `json:"servers"`
	Chroot  string        `json:"chroot"`
	Session time.Duration `json:"session"`
	Digest  string        `json:"digest,omitempty"`
}

// foreign tells the broker of third parties' plugins, as the configuration file names them when it asks.
func foreign(cfg config.Config) func() (broker.Foreign, error) {
	return func() (broker.Foreign, error) {
		now, err := cfg.Reread()
		if err != nil {
			return broker.Foreign{}, err
		}
		f := broker.Foreign{Named: map[string]map[string]broker.ForeignPlugin{}}
		if now.Dir != "" {
			if f.Dir, err = filepath.Abs(now.Dir); err != nil {
				return f, fmt.Errorf("plugins.dir %s: %w", now.Dir, err)
			}
		}
		for kind, named := range now.Named {
			f.Named[kind] = map[string]broker.ForeignPlugin{}
			for name, p := range named {
				f.Named[kind][name] = broker.ForeignPlugin{SHA256: p.SHA256, Config: p.Config}
			}
		}
		return f, nil
	}
}

// runPlugin is the whole of a shipped plugin's process. It uses no shortcut that a third party's could not.
func runPlugin(kind, name string, stderr io.Writer) int {
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
	case "storage/archive":
		var a *archive.Store
		if a, err = archive.New(archive.Options{Data: cfg.Data, Logger: sdk.Logger()}); err == nil {
			p.Storage = stream.Serve(a)
		}
	case "storage/memory":
		p.Storage, err = memory.New(memory.Options{Data: cfg.Data, Cap: cfg.Memory})
	case "metadata/embedded":
		p.Metadata, err = embedded.Open(embedded.Options{Path: filepath.Join(cfg.Data, "meta", "embedded.db"), Logger: sdk.Logger()})
	case "metadata/zookeeper":
		z := cfg.Zookeeper
		p.Metadata, err = zookeeper.Open(zookeeper.Options{
			Servers: z.Servers, Chroot: z.Chroot, Session: z.Session, Digest: z.Digest, Logger: sdk.Logger(),
		})
	case "partitioner/jump":
		p.Partitioner = jump.New()
	default:
		s, ok := stated.New(p.Name)
		if !ok || p.Kind != sdk.KindPartitioner {
			return errors.New("no such plugin is shipped")
		}
		p.Partitioner = s
	}
	return err
}
