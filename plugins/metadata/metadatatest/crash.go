package metadatatest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

// Process is a plugin process that Crash may kill.
type Process interface {
	// Store returns a client of the running process, waiting for one.
	Store(ctx context.Context) (metadata.Store, error)
	// Kill sends SIGKILL to the running process and returns when it is gone.
	Kill(ctx context.Context) error
}

// Crash kills the process rounds times in the middle of commits: nothing that was acknowledged is lost, nothing is
// half there, and versions have no gaps.
func Crash(t TB, p Process, rounds int) {
	writers := make([]*writer, 3)
	for i := range writers {
		writers[i] = &writer{keys: [2]string{fmt.Sprintf("/w/%d/left", i), fmt.Sprintf("/w/%d/right", i)}}
	}
	for round := range rounds {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		s, err := p.Store(ctx)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		var wg sync.WaitGroup
		target := writers[0].acked + 1 + rand.IntN(20)
		reached := make(chan struct{})
		for i, w := range writers {
			wg.Go(func() {
				if i == 0 {
					w.run(ctx, t, s, target, reached)
				} else {
					w.run(ctx, t, s, -1, nil)
				}
			})
		}
		select {
		case <-reached:
		case <-ctx.Done():
			t.Fatalf("round %d: no progress", round)
		}
		if err := p.Kill(ctx); err != nil {
			t.Fatalf("round %d: kill: %v", round, err)
		}
		wg.Wait()
		if s, err = p.Store(ctx); err != nil {
			t.Fatalf("round %d: after the kill: %v", round, err)
		}
		verify(ctx, t, s, writers)
		cancel()
	}
}

// writer writes 1, 2, 3 … into both its keys at once.
type writer struct {
	keys  [2]string
	acked int // the newest number whose commit was acknowledged
	tried int // the newest number that was sent
}

// run commits until the store is gone. It closes reached at target.
func (w *writer) run(ctx context.Context, t TB, s metadata.Store, target int, reached chan struct{}) {
	for ctx.Err() == nil {
		w.tried = w.acked + 1
		value := []byte(fmt.Sprint(w.tried))
		guard := metadata.Version(w.acked)
		_, err := s.Commit(ctx, metadata.Txn{
			Guards: []metadata.Guard{{Key: w.keys[0], Version: guard}, {Key: w.keys[1], Version: guard}},
			Puts:   []metadata.Put{{Key: w.keys[0], Value: value}, {Key: w.keys[1], Value: value}},
		})
		var conflict *metadata.ConflictError
		if errors.As(err, &conflict) {
			t.Errorf("%s: only one writes here: %v", w.keys[0], err)
			return
		}
		if err != nil {
			return // killed: the outcome of this one is unknown
		}
		w.acked = w.tried
		if w.acked == target {
			close(reached)
		}
	}
}

// verify compares the store with what the writers know, and resolves what they do not.
func verify(ctx context.Context, t TB, s metadata.Store, writers []*writer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	snap, err := s.List(ctx, "/w/")
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	entries := map[string]metadata.Entry{}
	for _, e := range snap.Entries {
		entries[e.Key] = e
	}
	for _, w := range writers {
		left, right := entries[w.keys[0]], entries[w.keys[1]]
		n := int(left.Version)
		switch {
		case n < w.acked:
			t.Fatalf("%s: %d was acknowledged, %d is there", w.keys[0], w.acked, n)
		case n > w.tried:
			t.Fatalf("%s: %d was never written, at most %d", w.keys[0], n, w.tried)
		case right.Version != left.Version || right.Revision != left.Revision:
			t.Fatalf("half a transaction: %+v and %+v", left, right)
		case n > 0 && (string(left.Value) != fmt.Sprint(n) || string(right.Value) != fmt.Sprint(n)):
			t.Fatalf("version %d holds %q and %q", n, left.Value, right.Value)
		}
		w.acked = n
	}
}
