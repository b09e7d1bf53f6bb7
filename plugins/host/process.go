package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"
)

const (
	// drainTime is how long output is still read after the process is gone: its last words are in the pipe already, and
	// whoever else holds the pipe open (a grandchild) does not get to delay anything.
	drainTime = 50 * time.Millisecond
	// exitGrace is how long a plugin that closed its standard output is given to end by itself, so that its exit
	// status can be told instead of our kill.
	exitGrace = 200 * time.Millisecond
	// headBytesMax is how much of standard output is remembered to say what came instead of a handshake.
	headBytesMax = 256
)

// process is the child: go-plugin's runner, but for standard error, which goes to lines, and for waiting, which
// depends on the process alone and never on its pipes.
type process struct {
	starter *starter
	cmd     *exec.Cmd
	sockDir string
	lines   *lineLog
	// versions of the plugin protocol that the host speaks, for what it says of a handshake that does not fit.
	versions []string

	stdout  *headReader
	stderr  *os.File
	exited  chan struct{} // closed when reaped
	drained chan struct{} // closed when standard error was read to its end; comes after exited
	wg      sync.WaitGroup

	mu        sync.Mutex
	started   bool
	condemned bool // killed before it was started
	reaped    bool
	status    string // how it ended; set with reaped
}

var _ runner.Runner = (*process)(nil)

// newProcess prepares cmd, whose pipes it makes.
func newProcess(s *starter, cmd *exec.Cmd, sockDir string, lines *lineLog) *process {
	return &process{
		starter: s, cmd: cmd, sockDir: sockDir, lines: lines,
		exited: make(chan struct{}), drained: make(chan struct{}),
	}
}

// Start forks the child. On error nothing is left behind.
func (p *process) Start(context.Context) error {
	outR, outW, err := os.Pipe()
	if err != nil {
		return err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return errors.Join(err, outR.Close(), outW.Close())
	}
	p.cmd.Stdout, p.cmd.Stderr = outW, errW
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // its children die with it, and a terminal's Ctrl-C is for the host
	}
	p.starter.do(func() { err = p.cmd.Start() })
	_ = outW.Close() // the child has its own
	_ = errW.Close()
	if err != nil {
		return errors.Join(err, outR.Close(), errR.Close())
	}
	p.stdout, p.stderr = &headReader{f: outR}, errR
	p.mu.Lock()
	p.started = true
	condemned := p.condemned
	p.mu.Unlock()
	if condemned {
		p.kill()
	}
	p.wg.Go(p.reap)
	p.wg.Go(func() {
		defer close(p.drained)
		p.lines.readAll(errR)
		_ = errR.Close()
	})
	return nil
}

// reap waits for the process, takes what is left of its group along, and only then gives the pid back.
func (p *process) reap() {
	for {
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	// The zombie keeps the group's number from being used again, so this cannot hit a stranger.
	_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	err := p.cmd.Wait()
	p.reaped = true
	p.status = "exit status 0"
	if err != nil {
		p.status = err.Error()
	}
	p.mu.Unlock()
	deadline := time.Now().Add(drainTime)
	_ = p.stdout.f.SetReadDeadline(deadline)
	_ = p.stderr.SetReadDeadline(deadline)
	close(p.exited)
}

// kill sends SIGKILL, also to the group. It does not wait and may be called at any time; a process that is only being
// started does not survive its start.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.started || p.reaped {
		p.condemned = true
		return
	}
	_ = p.cmd.Process.Kill()
	_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
}

// join waits until the process is reaped and its pipes are closed. A process that never started is joined at once.
func (p *process) join() {
	p.wg.Wait()
	if p.stdout != nil {
		_ = p.stdout.Close()
	}
}

func (p *process) isStarted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.started
}

func (p *process) exitStatus() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// Wait returns when the process is reaped.
func (p *process) Wait(context.Context) error {
	<-p.exited
	return nil
}

// Kill is go-plugin's way to end a start that went wrong.
func (p *process) Kill(context.Context) error {
	if p.isStarted() && p.stdout.ended() {
		select {
		case <-p.exited:
			return nil
		case <-time.After(exitGrace):
		}
	}
	p.kill()
	return nil
}

// Stdout is where the handshake comes from.
func (p *process) Stdout() io.ReadCloser { return p.stdout }

// Stderr is empty: the host reads the real one itself.
func (p *process) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name is the program's path.
func (p *process) Name() string { return p.cmd.Path }

// ID is the pid, empty when nothing was started.
func (p *process) ID() string {
	if !p.isStarted() {
		return ""
	}
	return strconv.Itoa(p.cmd.Process.Pid)
}

// Diagnose adds nothing: the host words its own errors.
func (p *process) Diagnose(context.Context) string { return "" }

// PluginToHost accepts the plugin's address only where the host told it to listen.
func (p *process) PluginToHost(network, addr string) (string, string, error) {
	if network != "unix" || filepath.Dir(addr) != p.sockDir {
		return "", "", fmt.Errorf("plugin listens on %s %q, not in its socket directory", clean(network, 20), clean(addr, 200))
	}
	return network, addr, nil
}

// HostToPlugin is the identity: both see one file system.
func (p *process) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}

// headReader remembers the beginning of what is read through it, and whether the end was met.
type headReader struct {
	f *os.File

	mu   sync.Mutex
	head []byte
	eof  bool
}

func (h *headReader) Read(p []byte) (int, error) {
	n, err := h.f.Read(p)
	h.mu.Lock()
	defer h.mu.Unlock()
	if room := headBytesMax - len(h.head); room > 0 {
		h.head = append(h.head, p[:min(n, room)]...)
	}
	if err != nil {
		h.eof = true
	}
	return n, err
}

func (h *headReader) Close() error { return h.f.Close() }

func (h *headReader) ended() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.eof
}

func (h *headReader) firstLine() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	line, _, _ := strings.Cut(string(h.head), "\n")
	return line
}
