// Package host starts and supervises plugin processes: one Supervisor for one process at a time. It starts the plugin
// from a thread of its own with a clean environment, waits for its handshake, watches its heartbeat, kills it by pid
// when it hangs, reaps it, and starts a successor with back-off.
//
// Use: New, Start (once, synchronous), then Run until the context ends. What the plugin is for is the business of
// OnUp, which gets the connection and returns nil when the plugin is ready; OnDown takes it back.
//
// It assumes Linux: Pdeathsig, process groups, waitid. It knows no contract of any kind of plugin and sets no deadlines on
// calls other than its own (the …rpc packages do). Unless a breaker is set, it never gives a plugin up: restarts only
// grow rarer.
package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"
)

// Spec says what to run.
type Spec struct {
	Kind, Name string   // "storage", "filelog"
	Command    []string // absolute path and arguments; of a third party's plugin Executable says it
	// Executable opens a third party's plugin, looked at and compared with what it is pinned to. It is called for each
	// start, and on a reload before the running process is touched; the host closes what it got. Nil: Command is run.
	Executable func() (*Executable, error)
	// Config is a JSON object, handed over in the environment. Empty: none.
	Config []byte
	// Data is the data directory, for plugins that keep something there; handed over in the environment. Empty: none.
	Data string
	// RunDir is where sockets live, below a directory of kind and name that is made 0700 and swept at each start. Two
	// supervisors of one kind and name must not share it. A socket's path has at most 107 bytes, so keep it short.
	RunDir string
	// Files gives the descriptors the child inherits, from 3 on. It is called for each start; the host closes the
	// files it got, started or not. Nil: none.
	Files func() ([]*os.File, error)
	// OnUp adopts an instance, which is ready when it returned nil. ctx ends when the instance does, and when OnUp
	// returns. An error kills the instance. Nil: ready at once.
	OnUp func(ctx context.Context, inst *Instance) error
	// OnDown is called once for each OnUp that returned nil, when that instance is gone or being killed, or a successor
	// that overlaps it has taken over. Without Overlap it has returned before a successor starts. Nil: nobody wants to know.
	OnDown func(inst *Instance, err error)
	// Overlap allows a reload to start the successor, OnUp included, while the predecessor still serves. Plugins that
	// own something, a directory or a session, must not.
	Overlap bool
}

// Options are the clocks of supervision. The zero value is the defaults.
type Options struct {
	// StartTimeout bounds a start up to the first good health check; OnUp is not part of it. Default 5 s.
	StartTimeout time.Duration
	// HeartbeatEvery, HeartbeatTimeout and HeartbeatMisses say when a plugin hangs: that many health checks in a row
	// without an answer within the timeout. Defaults 500 ms, 1 s, 2.
	HeartbeatEvery   time.Duration
	HeartbeatTimeout time.Duration
	HeartbeatMisses  int
	// BackoffMin doubles with each crash up to BackoffMax, and starts over when an instance was ready for a minute.
	// Defaults 100 ms, 30 s.
	BackoffMin, BackoffMax time.Duration
	// BreakerCrashes and BreakerWindow say when a plugin is left stopped until it is reloaded: that many crashes, failed
	// starts among them, within that time. Defaults 0, which is never, and a minute.
	BreakerCrashes int
	BreakerWindow  time.Duration
	// ShutdownTimeout is what a plugin has for ending by itself. Default 5 s.
	ShutdownTimeout time.Duration
	// Logger gets the host's own lines and the plugin's. Default slog.Default().
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	setDuration(&o.StartTimeout, 5*time.Second)
	setDuration(&o.HeartbeatEvery, 500*time.Millisecond)
	setDuration(&o.HeartbeatTimeout, time.Second)
	setDuration(&o.BackoffMin, 100*time.Millisecond)
	setDuration(&o.BackoffMax, 30*time.Second)
	setDuration(&o.BreakerWindow, time.Minute)
	setDuration(&o.ShutdownTimeout, 5*time.Second)
	if o.HeartbeatMisses <= 0 {
		o.HeartbeatMisses = 2
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

func setDuration(d *time.Duration, byDefault time.Duration) {
	if *d <= 0 {
		*d = byDefault
	}
}

// Why an instance did not start or ended.
var (
	// ErrStartTimeout says that the plugin was not ready to talk within Options.StartTimeout.
	ErrStartTimeout = errors.New("no working connection in time")
	// ErrHandshake says that what the plugin printed first is no handshake.
	ErrHandshake = errors.New("handshake is wrong")
	// ErrProtocol says that host and plugin have no version of the plugin protocol in common.
	ErrProtocol = errors.New("plugin protocol does not fit")
	// ErrExited says that the process ended by itself, or by a hand that is not ours.
	ErrExited = errors.New("plugin process ended")
	// ErrHung says that heartbeats were missed.
	ErrHung = errors.New("plugin does not answer its heartbeat")
	// ErrWrongPlugin says that the process is another plugin than the one asked for.
	ErrWrongPlugin = errors.New("process is another plugin")
	// ErrStopped says that the supervisor was told to stop.
	ErrStopped = errors.New("supervisor stops")
	// ErrReloaded says that the instance was replaced because somebody asked for it.
	ErrReloaded = errors.New("plugin was reloaded")
	// ErrBreaker says that the plugin crashed too often to be started again without being told to.
	ErrBreaker = errors.New("crashed too often")
	// ErrSpec says that a Spec cannot be run, whatever the plugin does.
	ErrSpec = errors.New("plugin cannot be set up")
)

// StartError is a plugin that did not become ready.
type StartError struct {
	Kind, Name string
	Err        error
	// Said is the plugin's last line of complaint, cleaned; empty when it made none.
	Said string
}

func (e *StartError) Error() string {
	s := fmt.Sprintf("%s plugin %s did not start: %v", e.Kind, e.Name, e.Err)
	if e.Said != "" {
		s += fmt.Sprintf(" (its last words: %s)", e.Said)
	}
	return s
}

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Err }

// The states of a supervised plugin.
const (
	StateStarting   = "starting"
	StateReady      = "ready"
	StateRestarting = "restarting"
	StateStopped    = "stopped"
)

// Status is what an operator sees of a plugin.
type Status struct {
	Kind, Name string
	State      string    // one of the State constants
	Since      time.Time // when it came to be in that state
	PID        int       // 0 when no process runs
	RSS        int64     // memory of the process, in bytes; 0 when no process runs
	Restarts   int       // starts after the first
	LastError  string    // why the last instance ended or did not start, or what the running one did wrong; kept after a good restart
	ErrorAt    time.Time // when LastError happened; zero where there is none
	Version    string    // what the running plugin says of itself; empty when it says nothing
	Protocol   int       // version of the plugin protocol that is spoken; 0 before the first handshake
	// Path and SHA256 are of the executable that was started last; empty for what lives in the host's own binary.
	Path, SHA256 string
	// Interpreter is the program that runs a script; nobody checked that one. Empty: there is none.
	Interpreter string
}

// blame notes an error of now.
func (st *Status) blame(err error) {
	st.LastError, st.ErrorAt = clean(err.Error(), lineBytesMax), time.Now()
}
