package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagerpc"
)

// The shipped plugin of each kind.
const (
	// StorageName is the store of every topic in this version.
	StorageName = "filelog"
)

// adoptTimeout bounds the re-adoption of a restarted storage plugin. With Held it scans nothing; after a fence it
// recovers from disk, which takes as long as the disk takes.
const adoptTimeout = 10 * time.Minute

func (b *Broker) supervise(kind, name string, s host.Spec) *host.Supervisor {
	s.Kind, s.Name = kind, name
	s.Command = append(append([]string{}, b.opt.Plugin...), kind, name)
	if len(s.Config) == 0 {
		s.Config, _ = json.Marshal(map[string]string{"data": b.opt.Data.Path}) // cannot fail: a map of strings
	}
	s.RunDir = b.runs
	return host.New(s, host.Options{Logger: b.log})
}

// storagePlugin supervises the store. It inherits the socket that descriptors travel through and the directory's lock.
func (b *Broker) storagePlugin() *host.Supervisor {
	var sock *storagerpc.Socket // of the instance being started or running; touched by the supervisor's goroutine only
	closeSocket := func() {
		if sock != nil {
			_ = sock.Close()
			sock = nil
		}
	}
	config, _ := json.Marshal(map[string]any{"data": b.opt.Data.Path, "reserve": b.opt.Reserve}) // cannot fail: a string and a number
	return b.supervise("storage", StorageName, host.Spec{
		Config: config,
		Files: func() ([]*os.File, error) {
			closeSocket()
			core, child, err := storagerpc.SocketPair()
			if err != nil {
				return nil, fmt.Errorf("make the descriptor socket: %w", err)
			}
			lock, err := b.opt.Data.Inherit()
			if err != nil {
				_, _ = core.Close(), child.Close()
				return nil, err
			}
			sock = core
			return []*os.File{child, lock}, nil
		},
		OnUp: func(ctx context.Context, inst *host.Instance) error {
			ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
			defer cancel()
			plugin := &lend.Plugin{Store: storagerpc.NewClient(inst.Conn(), sock), Kill: inst.Kill}
			if err := b.dir.Adopt(ctx, plugin); err != nil {
				return err
			}
			b.storage.set(inst)
			return nil
		},
		OnDown: func(error) {
			_, _ = b.storage.clear()
			b.dir.Orphan()
			closeSocket()
		},
	})
}

// watchFence kills the storage plugin when the log directory is fenced, so that its descriptors are closed too; its
// successor recovers from disk (STORAGE §3).
func (b *Broker) watchFence(ctx context.Context) error {
	for {
		fenced, recovered := b.dir.Fenced(), b.dir.Recovered()
		select {
		case <-ctx.Done():
			return nil
		case <-fenced:
		}
		inst, err := b.storage.get(ctx)
		if err != nil {
			return nil
		}
		inst.Kill(lend.ErrFenced)
		select {
		case <-ctx.Done():
			return nil
		case <-recovered:
		}
	}
}

// Plugins tells how the plugins are.
func (b *Broker) Plugins() []host.Status {
	var all []host.Status
	for _, kind := range []string{"storage", "metadata"} {
		all = append(all, b.plugins[kind].Status())
	}
	b.lenders.mu.Lock()
	defer b.lenders.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(b.lenders.all)) {
		all = append(all, b.lenders.all[name].supervisor().Status())
	}
	return all
}
