package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/metadata/metadatarpc"
)

// Metadata says which metadata plugin the broker uses.
type Metadata struct {
	Name   string          // of a plugin, shipped or not; empty: embedded
	Config json.RawMessage // for it; empty: the data directory is all it needs
}

const (
	// backendPatience is how long a start waits for the metadata's backend. The configuration file tells operators.
	backendPatience = 30 * time.Second
	// clusterKey says whose the metadata is.
	clusterKey = "/cluster/id"
	// settleEvery is the pause between attempts to find out what became of a change.
	settleEvery = time.Second
)

// errOtherCluster says that the metadata is another data directory's.
var errOtherCluster = errors.New("the metadata belongs to another data directory")

// defaultMetadata is the plugin of a broker that is told of no other.
const defaultMetadata = "embedded"

func (b *Broker) metadataName() string { return cmp.Or(b.opt.Metadata.Name, defaultMetadata) }

func (b *Broker) metadataPlugin() *host.Supervisor {
	claimed := false // touched by the supervisor's goroutine only
	return b.supervise(kindMetadata, b.metadataName(), host.Spec{
		Config: b.opt.Metadata.Config,
		Files: func() ([]*os.File, error) {
			lock, err := b.opt.Data.Inherit()
			if err != nil {
				return nil, err
			}
			return []*os.File{lock}, nil
		},
		OnUp: func(ctx context.Context, inst *host.Instance) error {
			store := metadatarpc.NewClient(inst.Conn())
			d, err := store.Describe(ctx)
			if err != nil {
				return err
			}
			if d.Shared && !claimed {
				if err := b.claim(ctx, store); err != nil {
					return err
				}
			}
			// From here on the broker runs, with its backend or without.
			claimed = true
			b.meta.set(settling{store, b.unsettle})
			b.reconcileLater()
			return nil
		},
		OnDown: func(*host.Instance, error) { b.meta.clear() },
	})
}

// claim waits for the backend and writes into it that it is this broker's, unless that is said already. Two servers
// that took one catalog for theirs would delete each other's topics.
func (b *Broker) claim(ctx context.Context, store metadata.Store) error {
	ctx, cancel := context.WithTimeout(ctx, backendPatience)
	defer cancel()
	mine := b.opt.Data.ClusterID
	for warned := false; ; {
		e, err := store.Get(ctx, clusterKey)
		if errors.Is(err, metadata.ErrNotFound) {
			_, err = store.Commit(ctx, metadata.Txn{
				Guards: []metadata.Guard{{Key: clusterKey, Version: metadata.Absent}},
				Puts:   []metadata.Put{{Key: clusterKey, Value: []byte(mine)}},
			})
			if err == nil {
				return nil
			}
			var conflict *metadata.ConflictError
			if errors.As(err, &conflict) {
				continue
			}
		}
		switch {
		case err == nil && string(e.Value) == mine:
			return nil
		case err == nil:
			return fmt.Errorf("%w: it is of cluster %.40q, and %s of %q; choose another chroot, or the data directory that it came with",
				errOtherCluster, e.Value, b.opt.Data.Path, mine)
		case !mayCome(err):
			return err
		}
		if !warned {
			warned = true
			b.log.Warn("waiting for the metadata backend", "at most", backendPatience.String(), "err", err)
		}
		if !wait(ctx, settleEvery/4) {
			return fmt.Errorf("%w (waited %s; start ZooKeeper there, or name other servers with --zookeeper)", err, backendPatience)
		}
	}
}

// mayCome reports whether waiting may mend err.
func mayCome(err error) bool {
	return errors.Is(err, metadata.ErrUnavailable) || errors.Is(err, metadata.ErrUnknown) || errors.Is(err, metadatarpc.ErrDeadline)
}

// wait waits; false when ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// settling is a store that notes when a change has no known outcome, or did not get through where it was needed.
type settling struct {
	metadata.Store
	unsettle func()
}

// Commit commits, and notes what came of it.
func (s settling) Commit(ctx context.Context, t metadata.Txn) (metadata.Revision, error) {
	rev, err := s.Store.Commit(ctx, t)
	if mayCome(err) {
		s.unsettle()
	}
	return rev, err
}

// unsettle has topics compared with metadata in the background.
func (b *Broker) unsettle() {
	select {
	case b.unsettled <- struct{}{}:
	default: // one is enough
	}
}

// settle compares topics with metadata after changes of unknown outcome, and when a plugin has come back, as soon as
// metadata can be read again.
func (b *Broker) settle(ctx context.Context) error {
	select {
	case <-b.ready:
	case <-ctx.Done():
		return nil
	}
	for {
		select {
		case <-b.unsettled:
		case <-ctx.Done():
			return nil
		}
		for warned := false; ; {
			err := b.reconcile(ctx)
			if err == nil {
				b.log.Info("topics are compared with metadata")
				break
			}
			if !warned {
				warned = true
				b.log.Warn("topics not compared with metadata; tried again", "err", err)
			}
			if !wait(ctx, settleEvery) {
				return nil
			}
		}
	}
}

// because is what a client should hear of err beside that metadata did not work: the backend's own words.
func because(err error) string {
	if mayCome(err) {
		return " (" + err.Error() + ")"
	}
	return ""
}
