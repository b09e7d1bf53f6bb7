package plugintest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagerpc"
)

// endTimeout is what a plugin has for ending by itself.
const endTimeout = 10 * time.Second

// bench starts processes of the plugin under test.
type bench struct {
	o           Options
	number      atomic.Int64
	description storage.Description // of a store, as the first case found it
}

func (b *bench) unique() string {
	return fmt.Sprintf("case%d-%d-%d", b.number.Add(1), os.Getpid(), time.Now().UnixNano())
}

// process is a running process of the plugin.
type process struct {
	sup  *host.Supervisor
	inst *host.Instance
	sock *storagerpc.Socket // the core's end; nil where nothing is lent
	down error              // why it is gone; read after stop or kill

	once   sync.Once
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// start starts a process that ends with the case at the latest.
func (b *bench) start(t *tester, dir string) *process { return b.startAs(t, dir, b.unique()) }

func (b *bench) startAs(t *tester, dir, unique string) *process {
	t.Helper()
	p := &process{}
	spec := host.Spec{Kind: b.o.Kind, Name: b.o.Name, Command: b.o.Command, RunDir: filepath.Join(t.TempDir(), "run")}
	if b.o.Kind != sdk.KindPartitioner {
		spec.Data = dir
	}
	if b.o.Config != nil {
		spec.Config = b.o.Config(dir, unique)
	}
	if b.o.File != "" {
		spec.Executable = func() (*host.Executable, error) { return host.OpenExecutable(b.o.File) }
	}
	if b.o.Kind == sdk.KindStorage {
		spec.Files = p.lendSocket
	}
	spec.OnUp = func(_ context.Context, inst *host.Instance) error {
		if p.inst == nil { // a restart is not looked at
			p.inst = inst
		}
		return nil
	}
	spec.OnDown = func(inst *host.Instance, err error) {
		if inst == p.inst {
			p.down = err
		}
	}
	p.sup = host.New(spec, host.Options{
		Logger: b.o.Logger, StartTimeout: patience, HeartbeatTimeout: patience, ShutdownTimeout: endTimeout,
		BackoffMin: time.Hour, BackoffMax: time.Hour, // one that is gone stays gone
	})
	if err := p.sup.Start(t.Context()); err != nil {
		p.closeSocket()
		t.Fatalf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.wg.Go(func() { _ = p.sup.Run(ctx) }) // a supervisor that was started returns no error
	t.Cleanup(p.kill)
	return p
}

// lendSocket makes the pair of sockets that descriptors travel through. Where the broker hands its directory's lock down
// there is nothing to lock.
func (p *process) lendSocket() ([]*os.File, error) {
	core, child, err := storagerpc.SocketPair()
	if err != nil {
		return nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, errors.Join(err, core.Close(), child.Close())
	}
	p.sock = core
	return []*os.File{child, null}, nil
}

func (p *process) closeSocket() {
	if p.sock != nil {
		_ = p.sock.Close()
	}
}

// stop asks the process to end and returns when it is gone. Later calls do nothing, and neither do calls of kill.
func (p *process) stop() {
	p.once.Do(func() {
		p.cancel()
		p.wg.Wait()
		p.closeSocket()
	})
}

// kill ends the process at once.
func (p *process) kill() {
	p.once.Do(func() {
		p.inst.Kill(errors.New("the suite kills it"))
		<-p.inst.Done()
		p.cancel()
		p.wg.Wait()
		p.closeSocket()
	})
}

// storage starts a store on a directory.
func (b *bench) storage(t *tester, dir string) (storage.Plugin, func()) {
	p := b.start(t, dir)
	return storagerpc.NewClient(p.inst.Conn(), p.sock), p.kill
}
