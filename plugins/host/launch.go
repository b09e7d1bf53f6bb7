package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/trunkline-mq/trunkline/plugins/internal/handshake"
)

// envPassed lists what a plugin gets of the host's environment: nothing that could be a secret.
var envPassed = []string{"PATH", "TZ", "LANG", "LC_ALL", "TMPDIR", "GOTRACEBACK", "GOMAXPROCS", "GOMEMLIMIT", "GOCOVERDIR"}

const (
	socketPathBytesMax = 107                 // what sockaddr_un holds
	socketNameBytes    = len("/plugin") + 10 // what os.CreateTemp appends to a prefix, at most
)

// launch starts a process and returns it connected and identified, or an error with nothing left behind.
func (s *Supervisor) launch(ctx context.Context, number uint64) (*Instance, error) {
	sockDir, err := s.prepareRunDir()
	if err != nil {
		return nil, err
	}
	exe, err := s.executable()
	if err != nil {
		return nil, err
	}
	files, err := s.inherited()
	if exe != nil {
		files = append(files, exe.file)
	}
	if err != nil {
		return nil, errors.Join(err, closeAll(files))
	}
	cmd, err := s.command(exe, files)
	if err != nil {
		return nil, errors.Join(err, closeAll(files))
	}
	lines := newLineLog(s.log.With("plugin", s.spec.Kind+"/"+s.spec.Name), time.Now)
	proc := newProcess(s.starter, cmd, sockDir, lines)
	for _, v := range s.versions {
		proc.versions = append(proc.versions, strconv.Itoa(v))
	}
	inst := &Instance{number: number, proc: proc, exe: exe, doomed: make(chan struct{})}
	inst.client = plugin.NewClient(s.clientConfig(proc, sockDir))

	ctx, cancel := context.WithTimeoutCause(ctx, s.opt.StartTimeout, ErrStartTimeout)
	defer cancel()
	err = connect(ctx, inst, s.spec)
	if cerr := closeAll(files); err == nil && cerr != nil {
		err = fmt.Errorf("%w: %w", ErrSpec, cerr)
	}
	if err != nil {
		return nil, s.discard(inst, err)
	}
	return inst, nil
}

// discard ends an instance that did not become ready and words its error.
func (s *Supervisor) discard(inst *Instance, err error) error {
	if inst.proc.isStarted() {
		inst.Kill(err)
		<-inst.proc.exited
		<-inst.proc.drained
		inst.release()
	}
	return &StartError{Kind: s.spec.Kind, Name: s.spec.Name, Err: err, Said: inst.proc.lines.said()}
}

// connect runs the steps of a start that can hang, and kills the process when ctx ends first.
func connect(ctx context.Context, inst *Instance, spec Spec) error {
	var (
		wg  sync.WaitGroup
		err error
	)
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		err = handshakeAndDial(ctx, inst)
	})
	select {
	case <-done:
	case <-ctx.Done():
		inst.proc.kill() // go-plugin's calls take no context, but they end with the process
	}
	wg.Wait()
	if err == nil {
		err = inst.proc.died(inst.identify(ctx, spec))
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// died replaces what gRPC says of a connection to a process that has just ended.
func (p *process) died(err error) error {
	if err == nil || errors.Is(err, ErrWrongPlugin) {
		return err
	}
	select {
	case <-p.exited:
		return fmt.Errorf("%w right after its handshake: %s", ErrExited, p.exitStatus())
	case <-time.After(exitGrace):
		return err
	}
}

func handshakeAndDial(ctx context.Context, inst *Instance) error {
	addr, err := inst.client.Start()
	if err != nil {
		return inst.proc.explain(ctx, err)
	}
	protocol, err := inst.client.Client()
	if err != nil {
		return inst.proc.died(fmt.Errorf("connection to the plugin: %w", err))
	}
	raw, err := protocol.Dispense(dispensed)
	if err != nil {
		return fmt.Errorf("connection to the plugin: %w", err)
	}
	inst.conn = raw.(*grpc.ClientConn) // borrowed.GRPCClient returns nothing else
	inst.heart, err = dialHeart(addr)
	return err
}

func dialHeart(addr net.Addr) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///plugin",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, addr.Network(), addr.String())
		}))
	if err != nil {
		return nil, fmt.Errorf("connection for heartbeats: %w", err)
	}
	return conn, nil
}

// explain words why there was no handshake; err is go-plugin's.
func (p *process) explain(ctx context.Context, err error) error {
	if !p.isStarted() {
		return fmt.Errorf("%w: %w", ErrSpec, err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	line := p.stdout.firstLine()
	switch {
	case strings.TrimSpace(line) == "":
		select {
		case <-p.exited:
			return fmt.Errorf("%w before its handshake: %s", ErrExited, p.exitStatus())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	case strings.Count(line, "|") < 3:
		return fmt.Errorf("%w: the plugin printed %q first; it must print nothing before its handshake", ErrHandshake, clean(line, 120))
	case !slices.Contains(p.versions, strings.Split(line, "|")[1]):
		return fmt.Errorf("%w: the plugin speaks version %s, this host speaks %s; build the plugin with another version of the SDK, or use another server",
			ErrProtocol, clean(strings.Split(line, "|")[1], 20), strings.Join(p.versions, " and "))
	}
	return fmt.Errorf("%w: %s", ErrHandshake, clean(err.Error(), saidBytesMax))
}

func (s *Supervisor) clientConfig(proc *process, sockDir string) *plugin.ClientConfig {
	return &plugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			MagicCookieKey:   handshake.CookieKey,
			MagicCookieValue: handshake.CookieValue,
		},
		VersionedPlugins: s.offered(),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		SkipHostEnv:      true,
		// Later than ours, which knows the pid and kills.
		StartTimeout: s.opt.StartTimeout + time.Second,
		Logger:       hclog.NewNullLogger(),
		SyncStdout:   proc.lines,
		SyncStderr:   proc.lines,
		GRPCDialOptions: []grpc.DialOption{
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(handshake.MessageBytesMax), grpc.MaxCallSendMsgSize(handshake.MessageBytesMax)),
			grpc.WithStaticStreamWindowSize(handshake.WindowBytes), grpc.WithStaticConnWindowSize(handshake.WindowBytes),
		},
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: sockDir},
		RunnerFunc: func(_ hclog.Logger, theirs *exec.Cmd, _ string) (runner.Runner, error) {
			proc.cmd.Env = append(proc.cmd.Env, theirs.Env...)
			// The last one counts: go-plugin's own directory would make the path 20 bytes longer.
			proc.cmd.Env = append(proc.cmd.Env, handshake.SocketDirEnv+"="+sockDir)
			return proc, nil
		},
	}
}

// offered is a set of go-plugin's for each version that this host speaks.
func (s *Supervisor) offered() map[int]plugin.PluginSet {
	sets := make(map[int]plugin.PluginSet, len(s.versions))
	for _, v := range s.versions {
		sets[v] = plugin.PluginSet{dispensed: borrowed{}}
	}
	return sets
}

// executable opens a third party's plugin; nil where a command is run.
func (s *Supervisor) executable() (*Executable, error) {
	if s.spec.Executable == nil {
		return nil, nil
	}
	exe, err := s.spec.Executable()
	if err != nil {
		return nil, err
	}
	if exe.Interpreter != "" {
		s.log.Warn("plugin is a script; its interpreter is not verified", "kind", s.spec.Kind, "name", s.spec.Name, "interpreter", exe.Interpreter)
	}
	return exe, nil
}

// command is the child without what go-plugin adds. An executable is the last of files.
func (s *Supervisor) command(exe *Executable, files []*os.File) (*exec.Cmd, error) {
	argv := s.spec.Command
	if exe != nil {
		argv = []string{exe.Path}
	}
	if len(argv) == 0 || !filepath.IsAbs(argv[0]) {
		return nil, fmt.Errorf("%w: command %q is not an absolute path", ErrSpec, argv)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	if exe != nil {
		// The descriptor that was hashed, at the number it has in the child, where it stays open: a script's interpreter
		// reads the script through the same name.
		cmd.Path = fmt.Sprintf("/proc/self/fd/%d", 2+len(files))
	}
	cmd.Env = []string{}
	for _, key := range envPassed {
		if v, ok := os.LookupEnv(key); ok {
			cmd.Env = append(cmd.Env, key+"="+v)
		}
	}
	if s.spec.Data != "" {
		cmd.Env = append(cmd.Env, handshake.DataEnv+"="+s.spec.Data)
	}
	config := s.spec.Config
	if exe != nil && exe.Config != nil {
		config = exe.Config
	}
	if len(config) > 0 {
		cmd.Env = append(cmd.Env, handshake.ConfigEnv+"="+string(config))
	}
	cmd.ExtraFiles = files
	return cmd, nil
}

func (s *Supervisor) inherited() ([]*os.File, error) {
	if s.spec.Files == nil {
		return nil, nil
	}
	files, err := s.spec.Files()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: descriptors to inherit: %w", ErrSpec, err), closeAll(files))
	}
	return files, nil
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// prepareRunDir makes the socket directory, empty and private. Whoever used it before is reaped.
func (s *Supervisor) prepareRunDir() (string, error) {
	dir := filepath.Join(s.spec.RunDir, s.spec.Kind+"-"+s.spec.Name)
	if s.second {
		dir += "~" // the predecessor is using the other one
	}
	if !filepath.IsAbs(dir) {
		return "", fmt.Errorf("%w: run directory %q is not an absolute path", ErrSpec, s.spec.RunDir)
	}
	if len(dir)+socketNameBytes > socketPathBytesMax {
		return "", fmt.Errorf("%w: run directory %q is too long for a socket's path; choose one at most %d bytes shorter",
			ErrSpec, s.spec.RunDir, len(dir)+socketNameBytes-socketPathBytesMax)
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("%w: sweep run directory: %w", ErrSpec, err)
	}
	if err := os.MkdirAll(s.spec.RunDir, 0o700); err != nil {
		return "", fmt.Errorf("%w: make run directory: %w", ErrSpec, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(s.spec.RunDir, &st); err != nil {
		return "", fmt.Errorf("%w: look at run directory %s: %w", ErrSpec, s.spec.RunDir, err)
	}
	if st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
		return "", fmt.Errorf("%w: run directory %s can be written by others; take that right away", ErrSpec, s.spec.RunDir)
	}
	// Mkdir and not MkdirAll: somebody else's directory of that name is an error, not a place for our socket.
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("%w: make socket directory: %w", ErrSpec, err)
	}
	return dir, nil
}

// dispensed is the one entry of go-plugin's plugin set: what is behind it is the whole connection.
const dispensed = "connection"

// borrowed hands out go-plugin's connection as it is.
type borrowed struct{ plugin.NetRPCUnsupportedPlugin }

var _ plugin.GRPCPlugin = borrowed{}

// GRPCClient returns the connection.
func (borrowed) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

// GRPCServer is the SDK's side.
func (borrowed) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error {
	return errors.New("a host serves no plugin")
}
