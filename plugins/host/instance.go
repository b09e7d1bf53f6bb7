package host

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/trunkline-mq/trunkline/plugins/internal/handshake"
)

// Instance is one running process of a plugin. Its methods may be called at any time, from any goroutine.
type Instance struct {
	number  uint64
	proc    *process
	client  *plugin.Client
	conn    *grpc.ClientConn // go-plugin's; for calls
	heart   *grpc.ClientConn // of its own, so that a call that fills the other one does not look like a hang
	version string
	exe     *Executable   // what was started; nil: the command. Its descriptor is closed
	doomed  chan struct{} // closed when it is being killed or has ended
	stop    context.CancelFunc
	wg      sync.WaitGroup // heartbeat and death watch

	mu     sync.Mutex
	reason error // why doomed; set before doomed is closed
}

// Conn is the connection to the plugin. It fails when the instance is gone; it never leads to a successor.
func (i *Instance) Conn() grpc.ClientConnInterface { return i.conn }

// PID is the process id. It may belong to somebody else once Done is closed.
func (i *Instance) PID() int { return i.proc.cmd.Process.Pid }

// Number counts the instances of a supervisor, from 1.
func (i *Instance) Number() uint64 { return i.number }

// Done is closed when the process is gone and reaped.
func (i *Instance) Done() <-chan struct{} { return i.proc.exited }

// Kill ends the process with SIGKILL and does not wait for it. Use it when a call's outcome is unknown: after Done
// nothing more happens. The first reason is the one that is told; later calls do nothing.
func (i *Instance) Kill(reason error) {
	i.doom(reason)
	i.proc.kill()
}

func (i *Instance) doom(reason error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.reason == nil {
		i.reason = reason
		close(i.doomed)
	}
}

// Version is what the plugin says of itself; empty when it says nothing.
func (i *Instance) Version() string { return i.version }

// Protocol is the version of the plugin protocol that is spoken with it.
func (i *Instance) Protocol() int { return i.client.NegotiatedVersion() }

// cause is why the instance is doomed, nil while it is not.
func (i *Instance) cause() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.reason
}

// watch starts the goroutines that notice death and hanging.
func (i *Instance) watch(opt Options) {
	ctx, cancel := context.WithCancel(context.Background())
	i.stop = cancel
	i.wg.Go(func() {
		<-i.proc.exited
		i.doom(fmt.Errorf("%w: %s", ErrExited, i.proc.exitStatus()))
		cancel()
	})
	i.wg.Go(func() { i.beat(ctx, opt) })
}

func (i *Instance) beat(ctx context.Context, opt Options) {
	tick := time.NewTicker(opt.HeartbeatEvery)
	defer tick.Stop()
	misses := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := i.ping(ctx, opt.HeartbeatTimeout)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			misses = 0
			continue
		}
		if misses++; misses >= opt.HeartbeatMisses {
			i.Kill(fmt.Errorf("%w: %d in a row, the last: %w", ErrHung, misses, err))
			return
		}
	}
}

func (i *Instance) ping(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := i.health(ctx)
	return err
}

var errNotServing = errors.New("plugin says that it is not serving")

// health asks the plugin and returns the headers of its answer.
func (i *Instance) health(ctx context.Context) (metadata.MD, error) {
	var md metadata.MD
	req := &grpc_health_v1.HealthCheckRequest{Service: handshake.HealthService}
	resp, err := grpc_health_v1.NewHealthClient(i.heart).Check(ctx, req, grpc.Header(&md))
	if err != nil {
		return nil, err
	}
	if resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return nil, errNotServing
	}
	return md, nil
}

// identify makes the first health check and compares what the plugin says of itself with what was asked for.
func (i *Instance) identify(ctx context.Context, spec Spec) error {
	md, err := i.health(ctx)
	if err != nil {
		return fmt.Errorf("first health check: %w", err)
	}
	first := func(key, otherwise string) string {
		if v := md.Get(key); len(v) > 0 {
			return clean(v[0], 80)
		}
		return otherwise
	}
	kind, name := first(handshake.HeaderKind, spec.Kind), first(handshake.HeaderName, spec.Name)
	if kind != spec.Kind || name != spec.Name {
		return fmt.Errorf("%w: it is %s %s", ErrWrongPlugin, kind, name)
	}
	i.version = first(handshake.HeaderVersion, "")
	return nil
}

// shutdown asks the process to end, then kills it, and returns when it is reaped.
func (i *Instance) shutdown(timeout time.Duration) {
	i.stop() // a plugin that closes its store answers no heartbeat
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	// The plugin's server stops before it can answer; only the end of the process tells that it worked.
	_ = i.conn.Invoke(ctx, handshake.ShutdownMethod, &emptypb.Empty{}, &emptypb.Empty{})
	select {
	case <-i.Done():
	case <-ctx.Done():
		i.Kill(fmt.Errorf("%w: still there %v after it was asked to end", ErrHung, timeout))
		<-i.Done()
	}
}

// release waits for the process and everything that was started for it.
func (i *Instance) release() {
	<-i.Done()
	if i.stop != nil {
		i.stop()
	}
	i.wg.Wait()
	if i.heart != nil {
		_ = i.heart.Close() // nothing can be done about a connection to a dead process
	}
	i.client.Kill() // the process is gone: this closes connections and waits for go-plugin's goroutines
	i.proc.join()
}
