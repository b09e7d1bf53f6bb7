package broker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

// Plugin is what an operator sees of a plugin. One that nobody needed yet is stopped.
type Plugin struct {
	host.Status
	Shipped bool // it lives in the server's binary, and SHA256 is that one's
}

// Plugins tells how the plugins are, those that may be started among them, ordered by kind and name.
func (b *Broker) Plugins() []Plugin {
	var all []Plugin
	for _, kind := range []string{kindStorage, kindPartitioner, kindMetadata} {
		for _, name := range b.available(kind) {
			if kind == kindMetadata && name != b.metadataName() {
				continue // it can never be started beside the one there is
			}
			all = append(all, b.tell(kind, name))
		}
	}
	return all
}

// Plugin tells how one plugin is.
func (b *Broker) Plugin(kind, name string) (Plugin, *errcode.Error) {
	for _, p := range b.Plugins() {
		if p.Kind == kind && p.Name == name {
			return p, nil
		}
	}
	return Plugin{}, errUnknownPlugin(kind, name)
}

func errUnknownPlugin(kind, name string) *errcode.Error {
	return errcode.New(errcode.UnknownPlugin, fmt.Sprintf("there is no plugin %.16s/%.64s", kind, name), "PLUGIN LIST shows what there is")
}

func (b *Broker) tell(kind, name string) Plugin {
	p := Plugin{Status: host.Status{Kind: kind, Name: name, State: host.StateStopped}}
	if sup := b.supervisor(kind, name); sup != nil {
		p.Status = sup.Status()
	}
	if _, ok := b.foreign.get(kind, name); !ok {
		p.Shipped, p.SHA256 = true, b.ownHash()
	}
	return p
}

// supervisor returns the newest supervisor of a plugin, nil where nobody needed it yet.
func (b *Broker) supervisor(kind, name string) *host.Supervisor {
	switch kind {
	case kindStorage:
		b.stores.mu.Lock()
		defer b.stores.mu.Unlock()
		if s := b.stores.all[name]; s != nil {
			return s.supervisor()
		}
	case kindPartitioner:
		b.lenders.mu.Lock()
		defer b.lenders.mu.Unlock()
		if l := b.lenders.all[name]; l != nil {
			return l.supervisor()
		}
	case kindMetadata:
		return b.metadataSup
	}
	return nil
}

// hashOwn takes the hash of the running binary; empty where it cannot be read.
func hashOwn() string {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}

// reloadTimeout bounds the wait for a reload: a start, the end of the old process, and an adoption.
const reloadTimeout = 30 * time.Second

// ReloadPlugin reads the configuration of third parties' plugins again and replaces a plugin's process. No publish is
// refused by it: a partitioner's successor is up before its predecessor goes, and the others are not needed for a publish
// while they are being replaced. On return the new process is ready. One that nobody needed yet is started.
func (b *Broker) ReloadPlugin(ctx context.Context, kind, name string) *errcode.Error {
	if err := b.foreign.refresh(); err != nil {
		return errcode.Wrap(errcode.BadSetting, err, fmt.Sprintf("the configuration has faults: %v", err), "nothing was changed; mend it, then try again")
	}
	if _, fault := b.Plugin(kind, name); fault != nil {
		return fault
	}
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	var err error
	switch kind {
	case kindStorage:
		err = b.reloadStore(ctx, name)
	case kindPartitioner:
		err = b.reloadLender(ctx, name)
	default:
		err = b.metadataSup.Reload(ctx)
	}
	if err != nil {
		return errcode.Wrap(errcode.PluginNotReplaced, err, fmt.Sprintf("plugin %s/%s was not replaced: %v", kind, name, err), "PLUGIN INFO tells how it is now")
	}
	b.log.Info("plugin is replaced", "kind", kind, "name", name)
	return nil
}

// onDemand starts a plugin that a topic wants, again and again until it has been up; then its supervisor restarts it.
type onDemand struct {
	log   *slog.Logger
	fresh func() *host.Supervisor                               // makes one that has not started anything
	tend  func(ctx context.Context, sup *host.Supervisor) error // runs what was started until ctx ends
	again chan chan<- error                                     // unbuffered: wakes keep between two tries; the answer has room

	mu    sync.Mutex
	sup   *host.Supervisor // the newest
	fault error            // why the first start of the newest did not work
}

const (
	// startAgainMin and startAgainMax bound the pause between tries to start a plugin that did not start at all.
	startAgainMin = 500 * time.Millisecond
	startAgainMax = 30 * time.Second
)

// renew puts a supervisor in place that has not started anything.
func (d *onDemand) renew() *host.Supervisor {
	sup := d.fresh()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sup, d.fault = sup, nil
	return sup
}

func (d *onDemand) supervisor() *host.Supervisor {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sup
}

// why says why the plugin did not start, and err where that is not known.
func (d *onDemand) why(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return cmp.Or(d.fault, err)
}

// keep runs the plugin until ctx ends.
func (d *onDemand) keep(ctx context.Context) error {
	sup, pause := d.supervisor(), startAgainMin
	var answer chan<- error
	for {
		err := sup.Start(ctx)
		if answer != nil {
			answer <- err
			pause = startAgainMin // somebody is at work on it
		}
		if err == nil {
			return d.tend(ctx, sup)
		}
		if ctx.Err() != nil {
			return nil
		}
		d.log.Warn("plugin did not start; tried again", "err", err)
		d.mu.Lock()
		d.fault = err
		d.mu.Unlock()
		var goOn bool
		if answer, goOn = pauseOr(ctx, pause, d.again); !goOn {
			return nil
		}
		pause = min(2*pause, startAgainMax)
		sup = d.renew()
	}
}

// lookAgain is how long a reload waits before it looks again for who starts the plugin.
const lookAgain = 20 * time.Millisecond

// reload replaces the process of the plugin.
func (d *onDemand) reload(ctx context.Context) error {
	for {
		err := d.supervisor().Reload(ctx)
		if !errors.Is(err, host.ErrStopped) {
			return err
		}
		answer := make(chan error, 1)
		timer := time.NewTimer(lookAgain)
		select {
		case d.again <- answer:
			timer.Stop()
			select {
			case err := <-answer:
				return err
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case <-timer.C: // it is being started
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// pauseOr waits before another try to start a plugin; whoever asks for a reload ends the wait and is answered. It
// returns false when ctx ended.
func pauseOr(ctx context.Context, pause time.Duration, again <-chan chan<- error) (chan<- error, bool) {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case answer := <-again:
		return answer, true
	case <-t.C:
		return nil, ctx.Err() == nil
	case <-ctx.Done():
		return nil, false
	}
}

func (b *Broker) reloadStore(ctx context.Context, name string) error {
	fresh := b.supervisor(kindStorage, name) == nil
	s, fault := b.store(name)
	switch {
	case fault != nil:
		return fault
	case fresh: // it is being started
		_, err := s.get(ctx)
		return err
	}
	return s.reload(ctx)
}

func (b *Broker) reloadLender(ctx context.Context, name string) error {
	fresh := b.supervisor(kindPartitioner, name) == nil
	l, fault := b.lender(name)
	switch {
	case fault != nil:
		return fault
	case fresh:
		_, err := l.get(ctx)
		return err
	}
	return l.reload(ctx)
}
