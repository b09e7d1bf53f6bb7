package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/handshake"
)

// settled is how long an instance must have been ready for its end to count as a first crash again.
const settled = time.Minute

// Supervisor keeps one plugin running. Start comes first, once; then Run, which also ends the plugin.
type Supervisor struct {
	spec     Spec
	opt      Options
	log      *slog.Logger
	versions []int             // of the plugin protocol; immutable
	reloads  chan chan<- error // unbuffered: taken by Run; what is sent has room for the one answer
	over     chan struct{}     // closed when Run has returned, or Start without success

	// Owned by Start, then by Run.
	starter *starter
	inst    *Instance
	number  uint64
	second  bool // which of the two socket directories the newest instance uses
	readyAt time.Time
	crashes []time.Time // those that the breaker counts

	mu      sync.Mutex
	started bool
	status  Status
	blamed  time.Time // when a fault of a running plugin was logged last
}

// New returns a supervisor that has not started anything.
func New(spec Spec, opt Options) *Supervisor {
	opt = opt.withDefaults()
	return &Supervisor{
		spec: spec, opt: opt, log: opt.Logger, versions: handshake.Versions(),
		reloads: make(chan chan<- error), over: make(chan struct{}),
		status: Status{Kind: spec.Kind, Name: spec.Name, State: StateStopped, Since: time.Now()},
	}
}

// Status tells how the plugin is. It may be called at any time.
func (s *Supervisor) Status() Status {
	s.mu.Lock()
	st := s.status
	s.mu.Unlock()
	if st.PID != 0 {
		st.RSS = rss(st.PID)
	}
	return st
}

// rss is the memory that a process has of its own and shares, in bytes; 0 when there is none.
func rss(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0 // it may have ended meanwhile
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

func (s *Supervisor) update(f func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.status.State
	f(&s.status)
	if s.status.State != before {
		s.status.Since = time.Now()
	}
}

// Start starts the plugin and returns when it is ready, OnUp included, or with an error (a *StartError) and nothing
// left behind: the first start is not tried twice. After a nil return Run must be called, if only with a context that
// has ended, or the process is never reaped.
func (s *Supervisor) Start(ctx context.Context) error {
	s.mu.Lock()
	if s.started {
		s.mu.Unlock()
		return fmt.Errorf("%w: started twice", ErrSpec)
	}
	s.started = true
	s.mu.Unlock()
	s.starter = newStarter()
	s.update(func(st *Status) { st.State = StateStarting })
	if err := s.bringUp(ctx); err != nil {
		s.starter.stop()
		close(s.over)
		s.update(func(st *Status) {
			st.State, st.PID = StateStopped, 0
			st.blame(err)
		})
		return err
	}
	return nil
}

// bringUp starts an instance and has it adopted. On error it is gone.
func (s *Supervisor) bringUp(ctx context.Context) error {
	inst, err := s.raise(ctx, s.show)
	if err != nil {
		return err
	}
	s.take(inst)
	return nil
}

// raise starts an instance and has it adopted; started hears of it in between. On error the instance is gone.
func (s *Supervisor) raise(ctx context.Context, started func(*Instance)) (*Instance, error) {
	s.number++
	inst, err := s.launch(ctx, s.number)
	if err != nil {
		var start *StartError
		if !errors.As(err, &start) {
			err = &StartError{Kind: s.spec.Kind, Name: s.spec.Name, Err: err}
		}
		return nil, err
	}
	started(inst)
	inst.watch(s.opt)
	if err := s.adopt(ctx, inst); err != nil {
		return nil, s.discard(inst, err)
	}
	return inst, nil
}

// show makes an instance the one that Status tells of.
func (s *Supervisor) show(inst *Instance) {
	s.update(func(st *Status) {
		st.PID, st.Version, st.Protocol = inst.PID(), inst.version, inst.Protocol()
		if exe := inst.exe; exe != nil {
			st.Path, st.SHA256, st.Interpreter = exe.Path, exe.SHA256, exe.Interpreter
		}
	})
}

// take makes an adopted instance the one that is supervised.
func (s *Supervisor) take(inst *Instance) {
	s.inst, s.readyAt = inst, time.Now()
	s.update(func(st *Status) { st.State = StateReady })
	s.log.Info("plugin is ready", "kind", s.spec.Kind, "name", s.spec.Name, "pid", inst.PID(), "version", inst.version)
}

// adopt runs OnUp under a context that ends with the instance.
func (s *Supervisor) adopt(ctx context.Context, inst *Instance) error {
	if s.spec.OnUp == nil {
		return inst.cause()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-inst.doomed:
			cancel(inst.cause())
		case <-ctx.Done():
		}
	})
	err := s.spec.OnUp(ctx, inst)
	cancel(nil)
	wg.Wait()
	cause := inst.cause()
	switch {
	case err != nil && cause != nil:
		return fmt.Errorf("%w, while it was adopted: %w", cause, err)
	case err != nil:
		return fmt.Errorf("adoption: %w", err)
	case cause != nil:
		s.down(inst, cause)
	}
	return cause
}

func (s *Supervisor) down(inst *Instance, err error) {
	if s.spec.OnDown != nil {
		s.spec.OnDown(inst, err)
	}
}

// Run supervises what Start started until ctx ends: it restarts the plugin when it dies, hangs or is killed, as often
// as it takes, or until the breaker opens. It returns nil when ctx has ended and the last process is reaped; it asks that
// one to end by itself before it kills it. Calling it without a Start that returned nil is an error.
func (s *Supervisor) Run(ctx context.Context) error {
	if s.inst == nil {
		return fmt.Errorf("%w: run without a start", ErrSpec)
	}
	defer func() {
		s.starter.stop()
		s.update(func(st *Status) { st.State, st.PID = StateStopped, 0 })
		close(s.over)
	}()
	failures := 0 // in a row
	for {
		if s.inst != nil {
			select {
			case <-ctx.Done():
				s.end()
				return nil
			case answer := <-s.reloads:
				failures, s.crashes = 0, nil
				answer <- s.replace(ctx)
			case <-s.inst.doomed:
				if time.Since(s.readyAt) >= settled {
					failures = 0
				}
				s.bury(s.inst.cause())
			}
			if s.inst != nil {
				continue
			}
		}
		failures++
		answer, again := s.pause(ctx, failures)
		if !again {
			return nil
		}
		if answer != nil {
			failures, s.crashes = 0, nil
		}
		s.update(func(st *Status) { st.Restarts++ })
		err := s.bringUp(ctx)
		if err != nil && ctx.Err() == nil {
			s.note(err)
		}
		if answer != nil {
			answer <- err
		}
	}
}

// Reload replaces the process by a new one and returns when that one is ready. Where the plugin may overlap, or its
// executable is refused, the running process stays until there is a better one; else it is ended before its successor
// starts, which is then tried again as after a crash. A plugin that waits to be restarted is started at once, and one
// that the breaker stopped, too. ctx ends the wait, not the work. ErrStopped when the supervisor does not run.
func (s *Supervisor) Reload(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case s.reloads <- answer:
	case <-s.over:
		return ErrStopped
	case <-ctx.Done():
		return fmt.Errorf("reload: the plugin is being started already: %w", context.Cause(ctx))
	}
	select {
	case err := <-answer:
		return err
	case <-s.over:
		return ErrStopped
	case <-ctx.Done():
		return fmt.Errorf("reload: the new process is not ready yet: %w", context.Cause(ctx))
	}
}

// replace ends the running instance for a successor. On return s.inst is nil only if there is none.
func (s *Supervisor) replace(ctx context.Context) error {
	s.log.Info("plugin is reloaded", "kind", s.spec.Kind, "name", s.spec.Name, "pid", s.inst.PID())
	if s.spec.Overlap {
		return s.overlap(ctx)
	}
	exe, err := s.executable()
	if err != nil {
		return err // what runs goes on
	}
	if exe != nil {
		_ = exe.Close() // it was only looked at
	}
	old := s.inst
	s.inst = nil
	s.retire(old, ErrReloaded)
	s.update(func(st *Status) { st.State, st.PID, st.Restarts = StateStarting, 0, st.Restarts+1 })
	if err := s.bringUp(ctx); err != nil {
		s.note(err)
		return err
	}
	return nil
}

// overlap starts the successor beside the running instance.
func (s *Supervisor) overlap(ctx context.Context) error {
	s.second = !s.second
	next, err := s.raise(ctx, func(*Instance) {})
	if err != nil {
		s.second = !s.second
		s.log.Warn("plugin is not replaced; the one before goes on", "kind", s.spec.Kind, "name", s.spec.Name, "err", err)
		s.update(func(st *Status) { st.blame(err) })
		return err
	}
	old := s.inst
	s.show(next)
	s.update(func(st *Status) { st.Restarts++ })
	s.take(next)
	s.retire(old, ErrReloaded)
	return nil
}

// bury gives a doomed instance back and waits for its end.
func (s *Supervisor) bury(cause error) {
	inst := s.inst
	s.inst = nil
	s.note(cause)
	s.down(inst, cause)
	inst.release()
	s.update(func(st *Status) { st.PID = 0 })
}

// note records why there is no ready instance.
func (s *Supervisor) note(err error) {
	s.log.Warn("plugin is down", "kind", s.spec.Kind, "name", s.spec.Name, "err", err)
	s.crashes = append(s.crashes, time.Now())
	s.update(func(st *Status) {
		st.State, st.PID = StateRestarting, 0
		st.blame(err)
	})
}

// blameEvery is how often a running plugin's faults are logged at most.
const blameEvery = time.Minute

// Blame notes what a plugin that goes on running did wrong, as its last error and, now and then, in the log. It may be
// called at any time.
func (s *Supervisor) Blame(err error) {
	s.mu.Lock()
	s.status.blame(err)
	now := time.Now()
	tell := now.Sub(s.blamed) >= blameEvery
	if tell {
		s.blamed = now
	}
	s.mu.Unlock()
	if tell {
		s.log.Warn("plugin is at fault, and goes on", "kind", s.spec.Kind, "name", s.spec.Name, "err", err)
	}
}

// retire gives an instance back, asks its process to end, and waits until it has.
func (s *Supervisor) retire(inst *Instance, cause error) {
	s.down(inst, cause)
	inst.shutdown(s.opt.ShutdownTimeout)
	inst.release()
}

// end shuts the running instance down for good.
func (s *Supervisor) end() {
	inst := s.inst
	s.inst = nil
	s.retire(inst, ErrStopped)
	s.log.Info("plugin is stopped", "kind", s.spec.Kind, "name", s.spec.Name, "status", inst.proc.exitStatus())
}

// pause waits before a restart, for ever if the breaker is open. It returns false when ctx ended, and whoever must be
// told how the restart went when it is a reload.
func (s *Supervisor) pause(ctx context.Context, failures int) (chan<- error, bool) {
	var due <-chan time.Time
	if !s.broken() {
		t := time.NewTimer(backoff(s.opt, failures, rand.Float64()))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
		return nil, false
	case answer := <-s.reloads:
		return answer, true
	case <-due:
		return nil, ctx.Err() == nil
	}
}

// broken reports whether there were too many crashes lately, and then says so.
func (s *Supervisor) broken() bool {
	if s.opt.BreakerCrashes <= 0 {
		s.crashes = nil
		return false
	}
	begin := time.Now().Add(-s.opt.BreakerWindow)
	for len(s.crashes) > 0 && s.crashes[0].Before(begin) {
		s.crashes = s.crashes[1:]
	}
	if len(s.crashes) < s.opt.BreakerCrashes {
		return false
	}
	s.log.Error("plugin stays stopped until it is reloaded", "kind", s.spec.Kind, "name", s.spec.Name,
		"crashes", len(s.crashes), "within", s.opt.BreakerWindow.String())
	s.update(func(st *Status) {
		st.State = StateStopped
		st.LastError = clean(fmt.Sprintf("%v: %d times within %s; the last: %s", ErrBreaker, len(s.crashes), s.opt.BreakerWindow, st.LastError), lineBytesMax)
	})
	return true
}

// backoff is BackoffMin doubled for each crash after the first, at most BackoffMax, and then up to a quarter less, so
// that plugins which fell together do not rise together. jitter is in [0, 1).
func backoff(opt Options, crashes int, jitter float64) time.Duration {
	d := opt.BackoffMin
	for range crashes - 1 {
		if d >= opt.BackoffMax {
			break
		}
		d *= 2
	}
	d = min(d, opt.BackoffMax)
	return d - time.Duration(jitter*float64(d)/4)
}
