package metadatatest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

// now is the store's revision.
func now(t TB, s metadata.Store) metadata.Revision {
	t.Helper()
	snap, err := s.List(t.Context(), "/no/such/")
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	return snap.Revision
}

func mustWatch(t TB, s metadata.Store, prefix string, after metadata.Revision) metadata.Watcher {
	t.Helper()
	w, err := s.Watch(t.Context(), prefix, after)
	if err != nil {
		t.Fatalf("watch %s after %d: %v", prefix, after, err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("close watch: %v", err)
		}
	})
	return w
}

// collect reads until it has count events.
func collect(t TB, w metadata.Watcher, count int) []metadata.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all []metadata.Event
	for len(all) < count {
		events, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("after %d of %d events: %v", len(all), count, err)
		}
		if len(events) == 0 {
			t.Fatalf("Next returned nothing")
		}
		all = append(all, events...)
	}
	if len(all) != count {
		t.Fatalf("%d events, want %d", len(all), count)
	}
	return all
}

func testWatch(t TB, s metadata.Store) {
	const writers, each = 3, 20
	w := mustWatch(t, s, "/w/", now(t, s))
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for n := range each {
				if _, err := s.Commit(t.Context(), put(fmt.Sprintf("/w/%d", i), fmt.Sprint(n))); err != nil {
					t.Errorf("commit: %v", err)
				}
			}
		})
	}
	events := collect(t, w, writers*each)
	wg.Wait()
	next := map[string]int{}
	var last metadata.Revision
	for i, ev := range events {
		if ev.Revision <= last {
			t.Fatalf("event %d has revision %d, after %d", i, ev.Revision, last)
		}
		last = ev.Revision
		if string(ev.Value) != fmt.Sprint(next[ev.Key]) || int(ev.Version) != next[ev.Key]+1 || ev.Deleted {
			t.Fatalf("event %d is %+v, write %d of %s", i, ev, next[ev.Key], ev.Key)
		}
		next[ev.Key]++
	}
}

func testWatchFromPast(t TB, s metadata.Store) {
	var revs []metadata.Revision
	for i := range 5 {
		revs = append(revs, mustCommit(t, s, put("/k", fmt.Sprint(i))))
	}
	events := collect(t, mustWatch(t, s, "/", revs[1]), 3)
	for i, ev := range events {
		if string(ev.Value) != fmt.Sprint(i+2) || ev.Revision != revs[i+2] {
			t.Fatalf("event %d is %+v", i, ev)
		}
	}
	w := mustWatch(t, s, "/", revs[4])
	mustCommit(t, s, put("/k", "new"))
	if ev := collect(t, w, 1)[0]; string(ev.Value) != "new" {
		t.Fatalf("the first event after the present is %+v", ev)
	}
}

func testWatchRefused(t TB, s metadata.Store) {
	rev := mustCommit(t, s, put("/k", "v"))
	for _, after := range []metadata.Revision{rev + 1, rev + 1000, -1} {
		if _, err := s.Watch(t.Context(), "/", after); !errors.Is(err, metadata.ErrCompacted) {
			t.Errorf("watch after %d of %d: %v", after, rev, err)
		}
	}
}

func testWatchPrefix(t TB, s metadata.Store) {
	w := mustWatch(t, s, "/a/", now(t, s))
	mustCommit(t, s, metadata.Txn{Puts: []metadata.Put{{Key: "/a/2"}, {Key: "/b/1"}, {Key: "/a/1", Value: []byte("v")}, {Key: "/a"}}})
	mustCommit(t, s, put("/b/2", "v"))
	rev := mustCommit(t, s, metadata.Txn{Deletes: []string{"/a/1", "/b/1"}})
	events := collect(t, w, 3)
	if events[0].Key != "/a/1" || events[1].Key != "/a/2" || events[0].Revision != events[1].Revision {
		t.Fatalf("a transaction's events: %+v", events[:2])
	}
	gone := events[2]
	if gone.Key != "/a/1" || !gone.Deleted || len(gone.Value) != 0 || gone.Revision != rev {
		t.Fatalf("the deletion is told as %+v", gone)
	}
}

func testWatchEnds(t TB, s metadata.Store) {
	w := mustWatch(t, s, "/", now(t, s))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("next with a context that ended: %v", err)
	}
	mustCommit(t, s, put("/k", "v"))
	if ev := collect(t, w, 1)[0]; ev.Key != "/k" {
		t.Fatalf("after a Next that was given up: %+v", ev)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := w.Next(t.Context()); err == nil {
			t.Errorf("Next returned events of a closed watch")
		}
	})
	for range 2 {
		if err := w.Close(); err != nil {
			t.Fatalf("%v", err)
		}
	}
	wg.Wait()
	if _, err := w.Next(t.Context()); err == nil {
		t.Fatalf("Next works after Close")
	}
}

func testWatchLarge(t TB, s metadata.Store) {
	w := mustWatch(t, s, "/big/", now(t, s))
	var revs []metadata.Revision
	for i := range 10 {
		revs = append(revs, mustCommit(t, s, metadata.Txn{Puts: []metadata.Put{
			{Key: fmt.Sprintf("/big/%d", i), Value: []byte(strings.Repeat("x", metadata.ValueBytesMax-i))},
		}}))
	}
	for i, ev := range collect(t, w, 10) {
		if ev.Key != fmt.Sprintf("/big/%d", i) || ev.Revision != revs[i] || len(ev.Value) != metadata.ValueBytesMax-i {
			t.Fatalf("event %d: %s at %d with %d bytes", i, ev.Key, ev.Revision, len(ev.Value))
		}
	}
}
