package host

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestReloadReplacesTheProcess(t *testing.T) {
	for _, overlap := range []bool{false, true} {
		spec := specOf("probe", shortDir(t))
		spec.Overlap = overlap
		r := start(t, spec, Options{})
		first := r.latest()
		for n := uint64(2); n <= 4; n++ {
			if err := r.Reload(t.Context()); err != nil {
				t.Fatal(err)
			}
			if st := r.Status(); st.State != StateReady || st.PID != r.latest().PID() || st.Restarts != int(n-1) || st.LastError != "" {
				t.Fatalf("overlap %v: status %+v", overlap, st)
			}
			ask(t, r.ready(t, n), "env")
		}
		if alive(first.PID()) {
			t.Error("the first instance lives")
		}
		want := "up 1, down, up 2, down, up 3, down, up 4"
		if overlap {
			want = "up 1, up 2, down, up 3, down, up 4, down"
		}
		if got := r.events(); got != want || !errors.Is(r.lastDown(), ErrReloaded) {
			t.Errorf("overlap %v: diary %q, last %v", overlap, got, r.lastDown())
		}
		r.latest().Kill(errors.New("by hand"))
		r.ready(t, 5) // it is restarted as any other
	}
}

func TestReloadThatFailsKeepsWhatOverlaps(t *testing.T) {
	var wrong error
	spec := specOf("probe", shortDir(t))
	spec.Overlap = true
	spec.OnUp = func(context.Context, *Instance) error { return wrong }
	r := start(t, spec, Options{})
	first := r.latest()
	wrong = errors.New("not this one")
	if err := r.Reload(t.Context()); !errors.Is(err, wrong) {
		t.Fatalf("reload says %v", err)
	}
	ask(t, first, "env")
	if st := r.Status(); st.State != StateReady || st.PID != first.PID() || !strings.Contains(st.LastError, "not this one") {
		t.Errorf("status %+v", st)
	}
	if got := r.events(); got != "up 1" {
		t.Errorf("diary %q", got)
	}
}

func TestReloadThatFailsElseIsTriedAgain(t *testing.T) {
	var mu sync.Mutex
	failures := 0
	spec := specOf("probe", shortDir(t))
	spec.OnUp = func(context.Context, *Instance) error {
		mu.Lock()
		defer mu.Unlock()
		if failures--; failures >= 0 {
			return errors.New("not yet")
		}
		return nil
	}
	r := start(t, spec, Options{})
	mu.Lock()
	failures = 2
	mu.Unlock()
	if err := r.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "not yet") {
		t.Fatalf("reload says %v", err)
	}
	r.ready(t, 4)
}

func TestReloadStartsWhatWaitsAtOnce(t *testing.T) {
	r := start(t, specOf("probe", shortDir(t)), Options{BackoffMin: time.Hour, BackoffMax: time.Hour})
	r.latest().Kill(errors.New("by hand"))
	eventually(t, "it waits", func() bool { return r.Status().State == StateRestarting && r.Status().PID == 0 })
	if err := r.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.ready(t, 2)
}

func TestReloadEndsWithItsContextAndWithTheSupervisor(t *testing.T) {
	r := start(t, specOf("probe", shortDir(t)), Options{})
	if err := syscall.Kill(r.latest().PID(), syscall.SIGSTOP); err != nil { // its end takes longer than the caller waits
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.Reload(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("reload says %v", err)
	}
	r.ready(t, 2) // the work goes on
	r.stop()
	if err := r.Reload(t.Context()); !errors.Is(err, ErrStopped) {
		t.Fatalf("after the end it says %v", err)
	}
}

func TestTheBreakerStopsWhatCrashesTooOften(t *testing.T) {
	r := start(t, specOf("probe", shortDir(t)), Options{BackoffMin: time.Millisecond, BackoffMax: time.Millisecond, BreakerCrashes: 3, BreakerWindow: time.Hour})
	for n := uint64(1); n <= 3; n++ {
		r.ready(t, n).Kill(errors.New("by hand"))
	}
	eventually(t, "it is given up", func() bool { return r.Status().State == StateStopped })
	if st := r.Status(); st.PID != 0 || !strings.Contains(st.LastError, ErrBreaker.Error()+": 3 times within 1h0m0s; the last: by hand") {
		t.Errorf("status %+v", st)
	}
	if err := r.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.ready(t, 4).Kill(errors.New("once more"))
	r.ready(t, 5) // it counts from the reload on
}

func TestTheBreakerForgetsWhatIsLongAgo(t *testing.T) {
	r := start(t, specOf("probe", shortDir(t)), Options{BackoffMin: time.Millisecond, BackoffMax: time.Millisecond, BreakerCrashes: 2, BreakerWindow: time.Nanosecond})
	for n := uint64(1); n <= 4; n++ {
		r.ready(t, n).Kill(errors.New("by hand"))
	}
	r.ready(t, 5)
}

func TestTheNewestCommonProtocolIsSpoken(t *testing.T) {
	for _, test := range []struct {
		mode string
		host []int
		says string // empty: it starts
	}{
		{"probe", []int{2, 1}, ""}, // the plugin is a version behind
		{"version", []int{2, 1}, "the plugin speaks version 99, this host speaks 2 and 1;"},
		{"probe", []int{3, 2}, "the plugin speaks version 1, this host speaks 3 and 2;"},
	} {
		s := New(specOf(test.mode, shortDir(t)), Options{Logger: quiet()})
		s.versions = test.host
		err := s.Start(t.Context())
		if test.says != "" {
			if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v: start says %v", test.host, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if st := s.Status(); st.Protocol != 1 || st.RSS < 1<<20 || time.Since(st.Since) > time.Hour {
			t.Errorf("status %+v", st)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	}
}

func TestTheDataDirectoryIsTold(t *testing.T) {
	spec := specOf("probe", shortDir(t))
	spec.Data = "/var/lib/somewhere"
	if got := ask(t, start(t, spec, Options{}).latest(), "data"); !strings.Contains(got, "/var/lib/somewhere") {
		t.Error(got)
	}
	if got := ask(t, start(t, specOf("probe", shortDir(t)), Options{}).latest(), "data"); strings.Contains(got, os.TempDir()) {
		t.Error(got)
	}
}
