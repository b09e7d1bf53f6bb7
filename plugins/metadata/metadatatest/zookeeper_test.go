package metadatatest

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/metadata/zookeeper"
	"github.com/trunkline-mq/trunkline/plugins/metadata/zookeeper/zookeepertest"
)

// chroots gives each test a chroot of its own on one server.
type chroots struct {
	server *zookeepertest.Server
	next   atomic.Int64
}

func startChroots(t *testing.T) *chroots { return &chroots{server: zookeepertest.Start(t)} }

func (c *chroots) options() zookeeper.Options {
	return zookeeper.Options{
		Servers: []string{c.server.Address}, Chroot: fmt.Sprintf("/suite/%d", c.next.Add(1)), Session: 3 * time.Second,
		Digest: "broker:secret", Logger: slog.New(slog.DiscardHandler),
	}
}

func (c *chroots) open(t *testing.T) *zookeeper.Store {
	t.Helper()
	s, err := zookeeper.Open(c.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (c *chroots) config(t *testing.T) []byte {
	t.Helper()
	opt := c.options()
	raw, err := json.Marshal(childConfig{Servers: opt.Servers, Chroot: opt.Chroot, Session: opt.Session, Digest: opt.Digest})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestZooKeeperDirectly(t *testing.T) {
	c := startChroots(t)
	each(t, func(t *testing.T) metadata.Store { return c.open(t) })
}

func TestZooKeeperThroughPipe(t *testing.T) {
	c := startChroots(t)
	each(t, func(t *testing.T) metadata.Store { return throughPipe(t, c.open(t)) })
}

func TestZooKeeperAsProcess(t *testing.T) {
	c := startChroots(t)
	each(t, func(t *testing.T) metadata.Store { return asProcess(t, zookeeper.Name, c.config(t)) })
}

func TestZooKeeperPluginKilledInTheMiddleOfCommits(t *testing.T) {
	Crash(t, startProcess(t, zookeeper.Name, startChroots(t).config(t)), 5)
}
