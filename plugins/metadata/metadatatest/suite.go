// Package metadatatest is the conformance suite of metadata plugins. An implementation is right when Run passes on it
// directly, through gRPC, and as a process; Crash needs a process that it may kill.
//
// The suite assumes a fresh store for each Open and knows nothing about how the store keeps its data. It does not
// measure speed.
package metadatatest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

// Open returns a store with nothing in it. What it started ends with the test (t.Cleanup).
type Open func(t *testing.T) metadata.Store

// patience bounds every wait for something that must come.
const patience = 20 * time.Second

// Run runs the suite: each test gets a store of its own.
func Run(t *testing.T, open Open) {
	for _, tc := range []struct {
		name string
		test func(*testing.T, metadata.Store)
	}{
		{"describes itself", testDescribe},
		{"an empty store has nothing", testEmpty},
		{"a put is read back", testPut},
		{"versions count the writes of a key", testVersions},
		{"guards hold or nothing happens", testGuards},
		{"deleting what is not there is no error", testDeleteAbsent},
		{"a transaction that changes nothing has no revision", testNoChange},
		{"lists are ordered and bounded by their prefix", testList},
		{"long lists arrive whole", testLongList},
		{"illegal keys are refused", testBadKeys},
		{"values are bounded", testTooLarge},
		{"an ended context is respected", testContext},
		{"concurrent increments lose nothing", testIncrements},
		{"a watch sees every change in order", testWatch},
		{"a watch starts in the past", testWatchFromPast},
		{"a watch of the future or of too long ago is refused", testWatchRefused},
		{"a watch sees deletions and only its prefix", testWatchPrefix},
		{"a watch ends with Close and with its context", testWatchEnds},
		{"a large transaction is watched whole", testWatchLarge},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.test(t, open(t)) })
	}
}

// put makes a transaction of one write.
func put(key, value string, guards ...metadata.Guard) metadata.Txn {
	return metadata.Txn{Guards: guards, Puts: []metadata.Put{{Key: key, Value: []byte(value)}}}
}

func mustCommit(t *testing.T, s metadata.Store, txn metadata.Txn) metadata.Revision {
	t.Helper()
	rev, err := s.Commit(t.Context(), txn)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return rev
}

func mustGet(t *testing.T, s metadata.Store, key, value string, version metadata.Version) metadata.Entry {
	t.Helper()
	e, err := s.Get(t.Context(), key)
	if err != nil || e.Key != key || string(e.Value) != value || e.Version != version {
		t.Fatalf("get %s: %+v, %v; want %q at version %d", key, e, err, value, version)
	}
	return e
}

func testDescribe(t *testing.T, s metadata.Store) {
	d, err := s.Describe(t.Context())
	if err != nil || d.Name == "" || d.Version == "" {
		t.Fatalf("describe: %+v, %v", d, err)
	}
}

func testEmpty(t *testing.T, s metadata.Store) {
	if _, err := s.Get(t.Context(), "/a"); !errors.Is(err, metadata.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	snap, err := s.List(t.Context(), "/")
	if err != nil || len(snap.Entries) != 0 {
		t.Errorf("list: %+v, %v", snap, err)
	}
}

func testPut(t *testing.T, s metadata.Store) {
	binary := string([]byte{0, 255, '\n', 0})
	rev := mustCommit(t, s, metadata.Txn{Puts: []metadata.Put{
		{Key: "/topics/orders", Value: []byte(binary)}, {Key: "/topics/empty"},
	}})
	if rev < 1 {
		t.Errorf("revision %d", rev)
	}
	if e := mustGet(t, s, "/topics/orders", binary, 1); e.Revision != rev {
		t.Errorf("written at %d, says %d", rev, e.Revision)
	}
	mustGet(t, s, "/topics/empty", "", 1)
	if _, err := s.Get(t.Context(), "/topics"); !errors.Is(err, metadata.ErrNotFound) {
		t.Errorf("a key above a key is not a key: %v", err)
	}
}

func testVersions(t *testing.T, s metadata.Store) {
	var last metadata.Revision
	for i := 1; i <= 5; i++ {
		rev := mustCommit(t, s, put("/k", fmt.Sprint(i)))
		if rev <= last {
			t.Fatalf("revision %d after %d", rev, last)
		}
		last = rev
		mustGet(t, s, "/k", fmt.Sprint(i), metadata.Version(i))
		mustCommit(t, s, put("/other", "x"))
	}
	mustCommit(t, s, metadata.Txn{Deletes: []string{"/k"}})
	if _, err := s.Get(t.Context(), "/k"); !errors.Is(err, metadata.ErrNotFound) {
		t.Fatalf("deleted, and get says %v", err)
	}
	mustCommit(t, s, put("/k", "again"))
	mustGet(t, s, "/k", "again", 1)
}

func testGuards(t *testing.T, s metadata.Store) {
	absent := metadata.Guard{Key: "/k", Version: metadata.Absent}
	mustCommit(t, s, put("/k", "one", absent))
	for _, tc := range []struct {
		name  string
		guard metadata.Guard
		ok    bool
	}{
		{"absent, and it is there", absent, false},
		{"too low on another key", metadata.Guard{Key: "/other", Version: 1}, false},
		{"too high", metadata.Guard{Key: "/k", Version: 2}, false},
		{"right", metadata.Guard{Key: "/k", Version: 1}, true},
	} {
		txn := metadata.Txn{
			Guards:  []metadata.Guard{tc.guard},
			Puts:    []metadata.Put{{Key: "/made", Value: []byte(tc.name)}},
			Deletes: []string{"/k"},
		}
		_, err := s.Commit(t.Context(), txn)
		var conflict *metadata.ConflictError
		switch {
		case tc.ok && err != nil:
			t.Fatalf("%s: %v", tc.name, err)
		case tc.ok:
			mustGet(t, s, "/made", tc.name, 1)
		case !errors.As(err, &conflict) || conflict.Key != tc.guard.Key:
			t.Fatalf("%s: %v", tc.name, err)
		default:
			mustGet(t, s, "/k", "one", 1)
			if _, err := s.Get(t.Context(), "/made"); !errors.Is(err, metadata.ErrNotFound) {
				t.Fatalf("%s: half of it happened: %v", tc.name, err)
			}
		}
	}
}

func testDeleteAbsent(t *testing.T, s metadata.Store) {
	before := mustCommit(t, s, put("/k", "v"))
	if rev := mustCommit(t, s, metadata.Txn{Deletes: []string{"/never"}}); rev != before {
		t.Fatalf("nothing happened, and the revision went from %d to %d", before, rev)
	}
	after := mustCommit(t, s, metadata.Txn{Deletes: []string{"/never", "/k"}})
	if after <= before {
		t.Fatalf("revision %d after %d", after, before)
	}
}

func testNoChange(t *testing.T, s metadata.Store) {
	before := mustCommit(t, s, put("/k", "v"))
	guard := metadata.Guard{Key: "/k", Version: 1}
	if rev := mustCommit(t, s, metadata.Txn{Guards: []metadata.Guard{guard}}); rev != before {
		t.Fatalf("revision %d, not %d", rev, before)
	}
	guard.Version = 2
	var conflict *metadata.ConflictError
	if _, err := s.Commit(t.Context(), metadata.Txn{Guards: []metadata.Guard{guard}}); !errors.As(err, &conflict) {
		t.Fatalf("a guard alone is not checked: %v", err)
	}
}

func testList(t *testing.T, s metadata.Store) {
	var txn metadata.Txn
	for _, key := range []string{"/b/z", "/a", "/b/a/deep", "/b-c/x", "/b/M", "/b", "/c/x"} {
		txn.Puts = append(txn.Puts, metadata.Put{Key: key, Value: []byte(key)})
	}
	rev := mustCommit(t, s, txn)
	for prefix, want := range map[string]string{
		"/":     "/a /b /b-c/x /b/M /b/a/deep /b/z /c/x",
		"/b/":   "/b/M /b/a/deep /b/z",
		"/b/a/": "/b/a/deep",
		"/d/":   "",
	} {
		snap, err := s.List(t.Context(), prefix)
		if err != nil || snap.Revision != rev {
			t.Fatalf("list %s: revision %d, %v; want %d", prefix, snap.Revision, err, rev)
		}
		var keys []string
		for _, e := range snap.Entries {
			keys = append(keys, e.Key)
			if string(e.Value) != e.Key || e.Version != 1 || e.Revision != rev {
				t.Errorf("list %s: %+v", prefix, e)
			}
		}
		if got := strings.Join(keys, " "); got != want {
			t.Errorf("list %s: %q, want %q", prefix, got, want)
		}
	}
}

func testLongList(t *testing.T, s metadata.Store) {
	const count, valueBytes = 3000, 2000 // 6 MB: more than fits into one message of the usual 4 MiB
	value := []byte(strings.Repeat("v", valueBytes))
	for from := 0; from < count; from += 500 {
		var txn metadata.Txn
		for i := from; i < from+500; i++ {
			txn.Puts = append(txn.Puts, metadata.Put{Key: fmt.Sprintf("/long/%06d", i), Value: value})
		}
		mustCommit(t, s, txn)
	}
	snap, err := s.List(t.Context(), "/long/")
	if err != nil || len(snap.Entries) != count {
		t.Fatalf("%d entries, %v", len(snap.Entries), err)
	}
	for i, e := range snap.Entries {
		if e.Key != fmt.Sprintf("/long/%06d", i) || len(e.Value) != valueBytes {
			t.Fatalf("entry %d is %s with %d bytes", i, e.Key, len(e.Value))
		}
	}
}

func testBadKeys(t *testing.T, s metadata.Store) {
	for _, key := range []string{
		"", "/", "a", "//", "/a/", "/a//b", "/.", "/a/..", "/a b", "/ä", "/a\x00b", "/a\nb",
		"/" + strings.Repeat("k", metadata.KeyBytesMax),
	} {
		if _, err := s.Get(t.Context(), key); !errors.Is(err, metadata.ErrBadKey) {
			t.Errorf("get %.40q: %v", key, err)
		}
		for name, txn := range map[string]metadata.Txn{
			"put": put(key, "v"), "delete": {Deletes: []string{key}}, "guard": {Guards: []metadata.Guard{{Key: key}}},
		} {
			if _, err := s.Commit(t.Context(), txn); !errors.Is(err, metadata.ErrBadKey) {
				t.Errorf("%s %.40q: %v", name, key, err)
			}
		}
	}
	for _, prefix := range []string{"", "a/", "/a", "//", "/a//", "/../"} {
		if _, err := s.List(t.Context(), prefix); !errors.Is(err, metadata.ErrBadKey) {
			t.Errorf("list %q: %v", prefix, err)
		}
		if _, err := s.Watch(t.Context(), prefix, 0); !errors.Is(err, metadata.ErrBadKey) {
			t.Errorf("watch %q: %v", prefix, err)
		}
	}
	twice := metadata.Txn{Puts: []metadata.Put{{Key: "/k"}}, Deletes: []string{"/k"}}
	if _, err := s.Commit(t.Context(), twice); !errors.Is(err, metadata.ErrBadKey) {
		t.Errorf("a key written twice: %v", err)
	}
	if snap, err := s.List(t.Context(), "/"); err != nil || len(snap.Entries) != 0 || snap.Revision != 0 {
		t.Errorf("something was written: %+v, %v", snap, err)
	}
}

func testTooLarge(t *testing.T, s metadata.Store) {
	largest := strings.Repeat("x", metadata.ValueBytesMax)
	mustCommit(t, s, put("/k", largest))
	if _, err := s.Commit(t.Context(), put("/k", largest+"x")); !errors.Is(err, metadata.ErrTooLarge) {
		t.Fatalf("commit: %v", err)
	}
	mustGet(t, s, "/k", largest, 1)
}

func testContext(t *testing.T, s metadata.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Get(ctx, "/k"); !errors.Is(err, context.Canceled) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Commit(ctx, put("/k", "v")); !errors.Is(err, context.Canceled) {
		t.Errorf("commit: %v", err)
	}
	if _, err := s.Watch(ctx, "/", 0); !errors.Is(err, context.Canceled) {
		t.Errorf("watch: %v", err)
	}
	if _, err := s.Get(t.Context(), "/k"); !errors.Is(err, metadata.ErrNotFound) {
		t.Errorf("it was written: %v", err)
	}
}

func testIncrements(t *testing.T, s metadata.Store) {
	const workers, each = 4, 10
	mustCommit(t, s, put("/counter", "0"))
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				if err := increment(t.Context(), s, "/counter"); err != nil {
					t.Errorf("increment: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	e := mustGet(t, s, "/counter", fmt.Sprint(workers*each), workers*each+1)
	if e.Revision != workers*each+1 {
		t.Errorf("%d commits made %d revisions", workers*each+1, e.Revision)
	}
}

// increment reads and writes under a guard until the guard holds.
func increment(ctx context.Context, s metadata.Store, key string) error {
	for {
		e, err := s.Get(ctx, key)
		if err != nil {
			return err
		}
		var n int
		if _, err := fmt.Sscan(string(e.Value), &n); err != nil {
			return err
		}
		_, err = s.Commit(ctx, put(key, fmt.Sprint(n+1), metadata.Guard{Key: key, Version: e.Version}))
		var conflict *metadata.ConflictError
		if !errors.As(err, &conflict) {
			return err
		}
	}
}
