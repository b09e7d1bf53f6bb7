package metadatatest

import (
	"errors"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

func mustSession(t TB, s metadata.Store) metadata.Session {
	t.Helper()
	n, err := s.Session(t.Context())
	if err != nil {
		t.Fatalf("session: %v", err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close session: %v", err)
		}
	})
	return n
}

func owned(key, value string, n metadata.Session, guards ...metadata.Guard) metadata.Txn {
	return metadata.Txn{Guards: guards, Puts: []metadata.Put{{Key: key, Value: []byte(value), Session: n.ID()}}}
}

func mustBeLost(t TB, n metadata.Session) {
	t.Helper()
	select {
	case <-n.Lost():
	case <-time.After(patience):
		t.Fatalf("session %d is over, and nobody is told", n.ID())
	}
}

func testSession(t TB, s metadata.Store) {
	one, other := mustSession(t, s), mustSession(t, s)
	if one.ID() == metadata.NoSession || one.ID() == other.ID() {
		t.Fatalf("sessions %d and %d", one.ID(), other.ID())
	}
	before := time.Now()
	if until, err := one.Renew(t.Context()); err != nil || !until.After(before) {
		t.Fatalf("renewed until %s from %s, %v", until, before, err)
	}
	w := mustWatch(t, s, "/live/", now(t, s))
	mustCommit(t, s, metadata.Txn{Puts: []metadata.Put{
		{Key: "/live/one", Value: []byte("v"), Session: one.ID()},
		{Key: "/live/other", Value: []byte("v"), Session: other.ID()},
		{Key: "/live/stays", Value: []byte("v")},
	}})
	if e := mustGet(t, s, "/live/one", state{"v", 1}); e.Session != one.ID() {
		t.Errorf("it belongs to %d, not to %d", e.Session, one.ID())
	}
	collect(t, w, 3)
	select {
	case <-one.Lost():
		t.Fatalf("a living session is lost")
	default:
	}
	for range 2 {
		if err := one.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	mustBeLost(t, one)
	if ev := collect(t, w, 1)[0]; ev.Key != "/live/one" || !ev.Deleted {
		t.Fatalf("the end of a session is told as %+v", ev)
	}
	if _, err := s.Get(t.Context(), "/live/one"); !errors.Is(err, metadata.ErrNotFound) {
		t.Errorf("the key of a session that is over: %v", err)
	}
	snap, err := s.List(t.Context(), "/live/")
	if err != nil || len(snap.Entries) != 2 || snap.Entries[0].Session != other.ID() || snap.Entries[1].Session != metadata.NoSession {
		t.Errorf("what is left: %+v, %v", snap.Entries, err)
	}
	third := mustSession(t, s)
	mustCommit(t, s, owned("/live/one", "again", third, metadata.Guard{Key: "/live/one", Version: metadata.Absent}))
	mustGet(t, s, "/live/one", state{"again", 1})
}

func testSessionKeys(t TB, s metadata.Store) {
	one, other := mustSession(t, s), mustSession(t, s)
	mustCommit(t, s, put("/nobodys", "v"))
	mustCommit(t, s, owned("/ones", "v", one))
	mustCommit(t, s, owned("/ones", "w", one, metadata.Guard{Key: "/ones", Version: 1}))
	for name, txn := range map[string]metadata.Txn{
		"another session's": owned("/ones", "x", other), "made nobody's": put("/ones", "x"), "made somebody's": owned("/nobodys", "x", one),
	} {
		var conflict *metadata.ConflictError
		if _, err := s.Commit(t.Context(), txn); !errors.As(err, &conflict) || conflict.Key != txn.Puts[0].Key {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustGet(t, s, "/ones", state{"w", 2})
	mustGet(t, s, "/nobodys", state{"v", 1})
	mustCommit(t, s, metadata.Txn{Deletes: []string{"/ones"}}) // by anybody
	mustCommit(t, s, put("/ones", "v"))
	if err := one.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	mustCommit(t, s, owned("/others", "v", other))
	if e := mustGet(t, s, "/ones", state{"v", 1}); e.Session != metadata.NoSession {
		t.Errorf("made anew by nobody, it belongs to %d", e.Session)
	}
}

func testSessionLost(t TB, s metadata.Store) {
	n := mustSession(t, s)
	mustCommit(t, s, owned("/k", "v", n))
	if err := n.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	mustBeLost(t, n)
	if _, err := n.Renew(t.Context()); !errors.Is(err, metadata.ErrSessionLost) {
		t.Errorf("renew: %v", err)
	}
	gone := func() bool {
		_, err := s.Get(t.Context(), "/k")
		return errors.Is(err, metadata.ErrNotFound)
	}
	for end := time.Now().Add(patience); !gone(); {
		if time.Now().After(end) {
			t.Fatalf("its key stays")
		}
	}
	txn := owned("/k", "v", n)
	txn.Puts = append(txn.Puts, metadata.Put{Key: "/beside"})
	if _, err := s.Commit(t.Context(), txn); !errors.Is(err, metadata.ErrSessionLost) {
		t.Errorf("commit: %v", err)
	}
	for _, key := range []string{"/k", "/beside"} {
		if _, err := s.Get(t.Context(), key); !errors.Is(err, metadata.ErrNotFound) {
			t.Errorf("%s was written: %v", key, err)
		}
	}
}
