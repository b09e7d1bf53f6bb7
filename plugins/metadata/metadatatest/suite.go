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
	"time"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

// TB is what the suite needs of a test; *testing.T is one.
type TB interface {
	Helper()
	Context() context.Context
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(f func())
}

// Open returns a store with nothing in it. What it started ends with the test (Cleanup).
type Open func(t TB) metadata.Store

// patience bounds every wait for something that must come.
const patience = time.Minute

// Case is one thing that the core relies on.
type Case struct {
	Name string
	Run  func(t TB, open Open)
}

// Run runs every case on t. Who wants them apart ranges over Cases.
func Run(t TB, open Open) {
	for _, c := range Cases() {
		t.Logf("%s", c.Name)
		c.Run(t, open)
	}
}

// Cases returns the suite: each case opens a store of its own.
func Cases() []Case {
	one := func(test func(TB, metadata.Store)) func(TB, Open) {
		return func(t TB, open Open) { test(t, open(t)) }
	}
	return []Case{
		{"describes itself", one(testDescribe)},
		{"an empty store has nothing", one(testEmpty)},
		{"a put is read back", one(testPut)},
		{"versions count the writes of a key", one(testVersions)},
		{"guards hold or nothing happens", one(testGuards)},
		{"guards on keys that are not written hold too", one(testGuardsAlone)},
		{"deleting what is not there is no error", one(testDeleteAbsent)},
		{"a transaction that changes nothing has no revision", one(testNoChange)},
		{"lists are ordered and bounded by their prefix", one(testList)},
		{"long lists arrive whole", one(testLongList)},
		{"illegal keys are refused", one(testBadKeys)},
		{"values and transactions are bounded", one(testTooLarge)},
		{"an ended context is respected", one(testContext)},
		{"concurrent increments lose nothing", one(testIncrements)},
		{"writes without guards all happen", one(testUnguarded)},
		{"a watch sees every change in order", one(testWatch)},
		{"a watch starts in the past", one(testWatchFromPast)},
		{"a watch of the future or of too long ago is refused", one(testWatchRefused)},
		{"a watch sees deletions and only its prefix", one(testWatchPrefix)},
		{"a watch ends with Close and with its context", one(testWatchEnds)},
		{"large values are watched whole", one(testWatchLarge)},
		{"a session's keys go with it", one(testSession)},
		{"a key stays with its session, or with none", one(testSessionKeys)},
		{"sessions that are over own nothing", one(testSessionLost)},
	}
}

// put makes a transaction of one write.
func put(key, value string, guards ...metadata.Guard) metadata.Txn {
	return metadata.Txn{Guards: guards, Puts: []metadata.Put{{Key: key, Value: []byte(value)}}}
}

func mustCommit(t TB, s metadata.Store, txn metadata.Txn) metadata.Revision {
	t.Helper()
	rev, err := s.Commit(t.Context(), txn)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return rev
}

// state is what a key is to be.
type state struct {
	value   string
	version metadata.Version
}

func mustGet(t TB, s metadata.Store, key string, want state) metadata.Entry {
	t.Helper()
	e, err := s.Get(t.Context(), key)
	if err != nil || e.Key != key || string(e.Value) != want.value || e.Version != want.version {
		t.Fatalf("get %s: %+v, %v; want %+v", key, e, err, want)
	}
	return e
}

func testDescribe(t TB, s metadata.Store) {
	d, err := s.Describe(t.Context())
	if err != nil || d.Name == "" || d.Version == "" {
		t.Fatalf("describe: %+v, %v", d, err)
	}
}

func testEmpty(t TB, s metadata.Store) {
	if _, err := s.Get(t.Context(), "/a"); !errors.Is(err, metadata.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	snap, err := s.List(t.Context(), "/")
	if err != nil || len(snap.Entries) != 0 {
		t.Errorf("list: %+v, %v", snap, err)
	}
}

func testPut(t TB, s metadata.Store) {
	binary := string([]byte{0, 255, '\n', 0})
	rev := mustCommit(t, s, metadata.Txn{Puts: []metadata.Put{
		{Key: "/topics/orders", Value: []byte(binary)}, {Key: "/topics/empty"},
	}})
	if rev < 1 {
		t.Errorf("revision %d", rev)
	}
	if e := mustGet(t, s, "/topics/orders", state{binary, 1}); e.Revision != rev {
		t.Errorf("written at %d, says %d", rev, e.Revision)
	}
	mustGet(t, s, "/topics/empty", state{"", 1})
	if _, err := s.Get(t.Context(), "/topics"); !errors.Is(err, metadata.ErrNotFound) {
		t.Errorf("a key above a key is not a key: %v", err)
	}
}

func testVersions(t TB, s metadata.Store) {
	var last metadata.Revision
	for i := 1; i <= 5; i++ {
		rev := mustCommit(t, s, put("/k", fmt.Sprint(i)))
		if rev <= last {
			t.Fatalf("revision %d after %d", rev, last)
		}
		last = rev
		mustGet(t, s, "/k", state{fmt.Sprint(i), metadata.Version(i)})
		mustCommit(t, s, put("/other", "x"))
	}
	mustCommit(t, s, metadata.Txn{Deletes: []string{"/k"}})
	if _, err := s.Get(t.Context(), "/k"); !errors.Is(err, metadata.ErrNotFound) {
		t.Fatalf("deleted, and get says %v", err)
	}
	mustCommit(t, s, put("/k", "again"))
	mustGet(t, s, "/k", state{"again", 1})
}

func testGuards(t TB, s metadata.Store) {
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
			mustGet(t, s, "/made", state{tc.name, 1})
		case !errors.As(err, &conflict) || conflict.Key != tc.guard.Key:
			t.Fatalf("%s: %v", tc.name, err)
		default:
			mustGet(t, s, "/k", state{"one", 1})
			if _, err := s.Get(t.Context(), "/made"); !errors.Is(err, metadata.ErrNotFound) {
				t.Fatalf("%s: half of it happened: %v", tc.name, err)
			}
		}
	}
}

func testDeleteAbsent(t TB, s metadata.Store) {
	before := mustCommit(t, s, put("/k", "v"))
	if rev := mustCommit(t, s, metadata.Txn{Deletes: []string{"/never"}}); rev != before {
		t.Fatalf("nothing happened, and the revision went from %d to %d", before, rev)
	}
	after := mustCommit(t, s, metadata.Txn{Deletes: []string{"/never", "/k"}})
	if after <= before {
		t.Fatalf("revision %d after %d", after, before)
	}
}

func testNoChange(t TB, s metadata.Store) {
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

func testList(t TB, s metadata.Store) {
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

func testLongList(t TB, s metadata.Store) {
	const count, each, valueBytes = 3000, 250, 2000 // 6 MB: more than fits into one message of the usual 4 MiB
	value := []byte(strings.Repeat("v", valueBytes))
	for from := 0; from < count; from += each {
		var txn metadata.Txn
		for i := from; i < from+each; i++ {
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

func testBadKeys(t TB, s metadata.Store) {
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
	for name, txn := range map[string]metadata.Txn{
		"written": {Puts: []metadata.Put{{Key: "/k"}}, Deletes: []string{"/k"}},
		"guarded": {Guards: []metadata.Guard{{Key: "/k"}, {Key: "/k"}}, Puts: []metadata.Put{{Key: "/k"}}},
	} {
		if _, err := s.Commit(t.Context(), txn); !errors.Is(err, metadata.ErrBadKey) {
			t.Errorf("a key %s twice: %v", name, err)
		}
	}
	if snap, err := s.List(t.Context(), "/"); err != nil || len(snap.Entries) != 0 {
		t.Errorf("something was written: %+v, %v", snap, err)
	}
}

func testTooLarge(t TB, s metadata.Store) {
	largest := strings.Repeat("x", metadata.ValueBytesMax)
	mustCommit(t, s, put("/k", largest))
	if _, err := s.Commit(t.Context(), put("/k", largest+"x")); !errors.Is(err, metadata.ErrTooLarge) {
		t.Fatalf("commit: %v", err)
	}
	mustGet(t, s, "/k", state{largest, 1})
	var txn metadata.Txn
	for i := range 2 {
		txn.Puts = append(txn.Puts, metadata.Put{Key: fmt.Sprintf("/two/%d", i), Value: []byte(largest)})
	}
	if _, err := s.Commit(t.Context(), txn); !errors.Is(err, metadata.ErrTooLarge) {
		t.Fatalf("commit of two: %v", err)
	}
	txn.Puts = nil
	for i := 0; txn.Size() <= metadata.TxnBytesMax; i++ {
		txn.Puts = append(txn.Puts, metadata.Put{Key: fmt.Sprintf("/full/%d", i), Value: []byte("v")})
	}
	if _, err := s.Commit(t.Context(), txn); !errors.Is(err, metadata.ErrTooLarge) {
		t.Fatalf("commit of one too many: %v", err)
	}
	txn.Puts = txn.Puts[:len(txn.Puts)-1]
	mustCommit(t, s, txn)
	mustGet(t, s, txn.Puts[len(txn.Puts)-1].Key, state{"v", 1})
}

func testContext(t TB, s metadata.Store) {
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

func testIncrements(t TB, s metadata.Store) {
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
	mustGet(t, s, "/counter", state{fmt.Sprint(workers * each), workers*each + 1})
}

func testUnguarded(t TB, s metadata.Store) {
	const workers, each = 4, 10
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for n := range each {
				txn := put("/shared", fmt.Sprint(i, n))
				if n%3 == 2 {
					txn = metadata.Txn{Deletes: []string{"/shared"}, Puts: []metadata.Put{{Key: fmt.Sprintf("/own/%d", i)}}}
				}
				if _, err := s.Commit(t.Context(), txn); err != nil {
					t.Errorf("commit: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for i := range workers {
		mustGet(t, s, fmt.Sprintf("/own/%d", i), state{"", 3})
	}
}

func testGuardsAlone(t TB, s metadata.Store) {
	mustCommit(t, s, put("/there", "v"))
	for _, tc := range []struct {
		name  string
		guard metadata.Guard
		ok    bool
	}{
		{"absent, and it is", metadata.Guard{Key: "/gone", Version: metadata.Absent}, true},
		{"there, and it is not", metadata.Guard{Key: "/gone", Version: 1}, false},
		{"there, and it is", metadata.Guard{Key: "/there", Version: 1}, true},
		{"absent, and it is not", metadata.Guard{Key: "/there", Version: metadata.Absent}, false},
		{"newer than it is", metadata.Guard{Key: "/there", Version: 3}, false},
	} {
		var conflict *metadata.ConflictError
		_, err := s.Commit(t.Context(), put("/made", tc.name, tc.guard))
		if tc.ok && err != nil || !tc.ok && (!errors.As(err, &conflict) || conflict.Key != tc.guard.Key) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	mustGet(t, s, "/made", state{"there, and it is", 2})
	mustGet(t, s, "/there", state{"v", 1})
	if _, err := s.Get(t.Context(), "/gone"); !errors.Is(err, metadata.ErrNotFound) {
		t.Errorf("a guard made its key: %v", err)
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
