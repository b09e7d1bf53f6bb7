package plugintest

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
)

// tester is what a suite takes for a test, outside of go test.
type tester struct {
	ctx context.Context

	mu       sync.Mutex
	failures []string
	cleanups []func()
}

// run runs one case to its end, what it cleans up included, and returns what is wrong.
func run(ctx context.Context, test func(*tester)) []string {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := &tester{ctx: ctx}
	// A goroutine of its own: Fatalf ends it, as in a test.
	t.apart(func() { test(t) })
	cancel()
	for {
		t.mu.Lock()
		n := len(t.cleanups)
		if n == 0 {
			t.mu.Unlock()
			break
		}
		last := t.cleanups[n-1]
		t.cleanups = t.cleanups[:n-1]
		t.mu.Unlock()
		t.apart(last)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failures
}

// apart runs f and waits for its end, whatever way it ends.
func (t *tester) apart(f func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				t.Errorf("the suite panics: %v\n%s", p, debug.Stack())
			}
		}()
		f()
	})
	wg.Wait()
}

// Helper does nothing: failures tell no lines.
func (t *tester) Helper() {}

// Context ends with the case, before what it cleans up.
func (t *tester) Context() context.Context { return t.ctx }

// Logf says nothing: a case that passes has nothing to say.
func (t *tester) Logf(string, ...any) {}

// Errorf notes a failure.
func (t *tester) Errorf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures = append(t.failures, fmt.Sprintf(format, args...))
}

// Fatalf notes a failure and ends the goroutine.
func (t *tester) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

// Cleanup calls f after the case, the last one first.
func (t *tester) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

// TempDir is a directory that is removed after the case.
func (t *tester) TempDir() string {
	dir, err := os.MkdirTemp("", "tl")
	if err != nil {
		t.Fatalf("make a directory: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // what is left there is only in the way
	return dir
}
