package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// settled is how long an instance must have been ready for its end to count as a first crash again.
const settled = time.Minute

// Supervisor keeps one plugin running. Start comes first, once; then Run, which also ends the plugin.
type Supervisor struct {
	spec Spec
	opt  Options
	log  *slog.Logger

	// Owned by Start, then by Run.
	starter *starter
	inst    *Instance
	number  uint64
	readyAt time.Time

	mu      sync.Mutex
	started bool
	status  Status
}

// New returns a supervisor that has not started anything.
func New(spec Spec, opt Options) *Supervisor {
	opt = opt.withDefaults()
	return &Supervisor{
		spec: spec, opt: opt, log: opt.Logger,
		status: Status{Kind: spec.Kind, Name: spec.Name, State: StateStopped},
	}
}

// Status tells how the plugin is. It may be called at any time.
func (s *Supervisor) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *Supervisor) update(f func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.status)
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
		s.update(func(st *Status) { st.State, st.PID, st.LastError = StateStopped, 0, clean(err.Error(), lineBytesMax) })
		return err
	}
	return nil
}

// bringUp starts an instance and has it adopted. On error it is gone.
func (s *Supervisor) bringUp(ctx context.Context) error {
	s.number++
	inst, err := s.launch(ctx, s.number)
	if err != nil {
		var start *StartError
		if !errors.As(err, &start) {
			err = &StartError{Kind: s.spec.Kind, Name: s.spec.Name, Err: err}
		}
		return err
	}
	s.update(func(st *Status) { st.PID, st.Version = inst.PID(), inst.version })
	inst.watch(s.opt)
	if err := s.adopt(ctx, inst); err != nil {
		return s.discard(inst, err)
	}
	s.inst, s.readyAt = inst, time.Now()
	s.update(func(st *Status) { st.State = StateReady })
	s.log.Info("plugin is ready", "kind", s.spec.Kind, "name", s.spec.Name, "pid", inst.PID(), "version", inst.version)
	return nil
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
		s.down(cause)
	}
	return cause
}

func (s *Supervisor) down(err error) {
	if s.spec.OnDown != nil {
		s.spec.OnDown(err)
	}
}

// Run supervises what Start started until ctx ends: it restarts the plugin when it dies, hangs or is killed, as often
// as it takes. It returns nil when ctx has ended and the last process is reaped; it asks that one to end by itself
// before it kills it. Calling it without a Start that returned nil is an error.
func (s *Supervisor) Run(ctx context.Context) error {
	if s.inst == nil {
		return fmt.Errorf("%w: run without a start", ErrSpec)
	}
	defer func() {
		s.starter.stop()
		s.update(func(st *Status) { st.State, st.PID = StateStopped, 0 })
	}()
	crashes := 0
	for {
		if s.inst != nil {
			select {
			case <-ctx.Done():
				s.end()
				return nil
			case <-s.inst.doomed:
				if time.Since(s.readyAt) >= settled {
					crashes = 0
				}
				s.bury(s.inst.cause())
			}
		}
		crashes++
		if !s.pause(ctx, crashes) {
			return nil
		}
		s.update(func(st *Status) { st.Restarts++ })
		if err := s.bringUp(ctx); err != nil && ctx.Err() == nil {
			s.note(err)
		}
	}
}

// bury gives a doomed instance back and waits for its end.
func (s *Supervisor) bury(cause error) {
	inst := s.inst
	s.inst = nil
	s.note(cause)
	s.down(cause)
	inst.release()
	s.update(func(st *Status) { st.PID = 0 })
}

// note records why there is no ready instance.
func (s *Supervisor) note(err error) {
	s.log.Warn("plugin is down", "kind", s.spec.Kind, "name", s.spec.Name, "err", err)
	s.update(func(st *Status) {
		st.State, st.PID, st.LastError = StateRestarting, 0, clean(err.Error(), lineBytesMax)
	})
}

// end shuts the running instance down.
func (s *Supervisor) end() {
	inst := s.inst
	s.inst = nil
	s.down(ErrStopped)
	inst.shutdown(s.opt.ShutdownTimeout)
	inst.release()
	s.log.Info("plugin is stopped", "kind", s.spec.Kind, "name", s.spec.Name, "status", inst.proc.exitStatus())
}

// pause waits before a restart; false when ctx ended.
func (s *Supervisor) pause(ctx context.Context, crashes int) bool {
	t := time.NewTimer(backoff(s.opt, crashes, rand.Float64()))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
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
