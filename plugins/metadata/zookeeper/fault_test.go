package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/metadata/zookeeper/zookeepertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sessionTime is short, so that sessions can be lost; a busy machine keeps it.
const sessionTime = time.Second

func options(servers string) Options {
	return Options{
		Servers: strings.Split(servers, ","), Chroot: "/trunkline", Session: sessionTime, Logger: slog.New(slog.DiscardHandler),
	}
}

func open(t *testing.T, opt Options) *Store {
	t.Helper()
	s, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func put(key, value string) metadata.Txn {
	return metadata.Txn{Puts: []metadata.Put{{Key: key, Value: []byte(value)}}}
}

func mustCommit(t *testing.T, s *Store, txn metadata.Txn) metadata.Revision {
	t.Helper()
	rev, err := s.Commit(t.Context(), txn)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return rev
}

// wantKey waits until key has that version and value, and fails where it has a later version.
func wantKey(t *testing.T, s *Store, key, value string, version metadata.Version) {
	t.Helper()
	e, err := s.Get(t.Context(), key)
	if err != nil || e.Version != version || string(e.Value) != value {
		t.Fatalf("get %s: %+v, %v; want %q at version %d", key, e, err, value, version)
	}
}

func within(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(zookeepertest.Patience):
		t.Fatalf("not within %s: %s", zookeepertest.Patience, what)
	}
}

func watchFrom(t *testing.T, s *Store) metadata.Watcher {
	t.Helper()
	snap, err := s.List(t.Context(), "/")
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Watch(t.Context(), "/", snap.Revision)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// follow reads count events, whose values are to be first, first+1, ….
func follow(t *testing.T, w metadata.Watcher, first, count int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), zookeepertest.Patience)
	defer cancel()
	for next := first; next < first+count; {
		events, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("waiting for %d: %v", next, err)
		}
		for _, ev := range events {
			if string(ev.Value) != fmt.Sprint(next) {
				t.Fatalf("event %+v, want value %d", ev, next)
			}
			next++
		}
	}
}

func TestExpiredSessionIsToldOnceAndLosesItsKeys(t *testing.T) {
	server := zookeepertest.Start(t)
	proxy := zookeepertest.NewProxy(t, server.Address)
	behind, beside := open(t, options(proxy.Address)), open(t, options(server.Address))
	n, err := behind.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	mustCommit(t, behind, metadata.Txn{Puts: []metadata.Put{{Key: "/live/1", Session: n.ID()}, {Key: "/stays", Value: []byte("v")}}})
	if _, err := n.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := watchFrom(t, beside)
	proxy.Cut(zookeepertest.ToServer)
	proxy.Cut(zookeepertest.ToClient)
	events, err := w.Next(t.Context()) // the others learn it from ZooKeeper
	if err != nil || len(events) != 1 || events[0].Key != "/live/1" || !events[0].Deleted {
		t.Fatalf("%+v, %v", events, err)
	}
	select {
	case <-n.Lost(): // nobody can know yet
		t.Error("a session that cannot ask is told that it is over")
	default:
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := n.Renew(short); !errors.Is(err, metadata.ErrUnavailable) {
		t.Errorf("renew without ZooKeeper: %v", err)
	}
	proxy.Heal()
	within(t, "the session is told to be lost", n.Lost())
	if _, err := n.Renew(t.Context()); !errors.Is(err, metadata.ErrSessionLost) {
		t.Errorf("renew: %v", err)
	}
	if _, err := behind.Commit(t.Context(), metadata.Txn{Puts: []metadata.Put{{Key: "/live/1", Session: n.ID()}}}); !errors.Is(err, metadata.ErrSessionLost) {
		t.Errorf("commit: %v", err)
	}
	again, err := behind.Session(t.Context())
	if err != nil || again.ID() == n.ID() {
		t.Fatalf("the next session: %v", err)
	}
	defer again.Close()
	mustCommit(t, behind, metadata.Txn{Puts: []metadata.Put{{Key: "/live/1", Value: []byte("w"), Session: again.ID()}}})
	wantKey(t, beside, "/live/1", "w", 1)
	wantKey(t, beside, "/stays", "v", 1)
}

func TestPausedServerIsUnavailableAndHeals(t *testing.T) {
	server := zookeepertest.Start(t)
	s := open(t, options(server.Address))
	mustCommit(t, s, put("/k", "0"))
	w := watchFrom(t, s)
	server.Pause()
	for name, call := range map[string]func(context.Context) error{
		"get":     func(ctx context.Context) error { _, err := s.Get(ctx, "/k"); return err },
		"list":    func(ctx context.Context) error { _, err := s.List(ctx, "/"); return err },
		"watch":   func(ctx context.Context) error { _, err := s.Watch(ctx, "/", 1); return err },
		"session": func(ctx context.Context) error { _, err := s.Session(ctx); return err },
	} {
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := call(ctx)
		if !errors.Is(err, metadata.ErrUnavailable) || ctx.Err() != nil || !strings.Contains(err.Error(), server.Address) {
			t.Errorf("%s: %v after %s", name, err, time.Since(began))
		}
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := s.Commit(ctx, metadata.Txn{Guards: []metadata.Guard{{Key: "/k", Version: 1}}, Puts: []metadata.Put{{Key: "/k", Value: []byte("1")}}})
	if !errors.Is(err, metadata.ErrUnknown) && !errors.Is(err, metadata.ErrUnavailable) {
		t.Fatalf("commit: %v", err)
	}
	server.Resume()
	// It may happen now, or not at all, but never after this.
	_, err = s.Commit(t.Context(), metadata.Txn{Guards: []metadata.Guard{{Key: "/k", Version: 1}}, Puts: []metadata.Put{{Key: "/k", Value: []byte("1")}}})
	var conflict *metadata.ConflictError
	if err != nil && !errors.As(err, &conflict) {
		t.Fatalf("after the pause: %v", err)
	}
	wantKey(t, s, "/k", "1", 2)
	mustCommit(t, s, put("/k", "2"))
	follow(t, w, 1, 2)
}

func TestCommitWhoseAnswerIsLostHappensOnce(t *testing.T) {
	server := zookeepertest.Start(t)
	proxy := zookeepertest.NewProxy(t, server.Address)
	s, beside := open(t, options(proxy.Address)), open(t, options(server.Address))
	mustCommit(t, s, put("/k", "0"))
	for i := 1; i <= 5; i++ {
		if err := s.refresh(t.Context()); err != nil { // so that the first attempt is right
			t.Fatal(err)
		}
		proxy.Cut(zookeepertest.ToClient) // the server gets it, and its answer goes nowhere
		var task sync.WaitGroup
		var err error
		task.Go(func() { _, err = s.Commit(t.Context(), put("/k", fmt.Sprint(i))) })
		zookeepertest.Eventually(t, fmt.Sprintf("the server has commit %d", i), func() bool {
			e, err := beside.Get(t.Context(), "/k")
			return err == nil && string(e.Value) == fmt.Sprint(i)
		})
		proxy.Drop()
		proxy.Heal()
		task.Wait()
		if err != nil {
			t.Fatalf("commit %d: %v", i, err)
		}
		wantKey(t, s, "/k", fmt.Sprint(i), metadata.Version(i+1))
	}
	if err := s.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	proxy.Cut(zookeepertest.ToClient)
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := s.Commit(short, put("/k", "6")); !errors.Is(err, metadata.ErrUnknown) {
		t.Errorf("a commit that nobody knows about: %v", err)
	}
	proxy.Drop()
	proxy.Heal()
	wantKey(t, s, "/k", "6", 7)
}

func TestCommitThatNeverArrivesHappensOnce(t *testing.T) {
	server := zookeepertest.Start(t)
	proxy := zookeepertest.NewProxy(t, server.Address)
	s := open(t, options(proxy.Address))
	mustCommit(t, s, put("/k", "0"))
	proxy.Cut(zookeepertest.ToServer)
	var task sync.WaitGroup
	var err error
	task.Go(func() { _, err = s.Commit(t.Context(), put("/k", "1")) })
	zookeepertest.Eventually(t, "the client gives the connection up", func() bool {
		s.link.mu.Lock()
		defer s.link.mu.Unlock()
		return !s.link.connected
	})
	proxy.Drop() // and with it what waited
	proxy.Heal()
	task.Wait()
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	wantKey(t, s, "/k", "1", 2)
}

func TestLeaderOfTheEnsembleKilled(t *testing.T) {
	all := zookeepertest.StartEnsemble(t)
	opt := options(zookeepertest.Addresses(all))
	opt.Session = 4 * time.Second
	s, other := open(t, opt), open(t, opt)
	n, err := s.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	mustCommit(t, s, metadata.Txn{Puts: []metadata.Put{{Key: "/live", Session: n.ID()}}})
	w := watchFrom(t, other)
	const each = 20
	next := 0
	write := func() {
		for range each {
			ctx, cancel := context.WithTimeout(t.Context(), zookeepertest.Patience)
			if _, err := s.Commit(ctx, metadata.Txn{
				Guards: []metadata.Guard{{Key: "/k", Version: metadata.Version(next)}},
				Puts:   []metadata.Put{{Key: "/k", Value: []byte(fmt.Sprint(next))}},
			}); err != nil {
				t.Fatalf("commit %d: %v", next, err)
			}
			cancel()
			next++
		}
	}
	write()
	leader := zookeepertest.Leader(t, all)
	leader.Kill()
	write()
	leader.Restart()
	leader.WaitReady()
	write()
	follow(t, w, 0, 3*each)
	wantKey(t, other, "/k", fmt.Sprint(3*each-1), 3*each)
	if _, err := n.Renew(t.Context()); err != nil {
		t.Errorf("the session: %v", err)
	}
	wantKey(t, other, "/live", "", 1)
}

func TestStoreThatOpensBeforeItsServer(t *testing.T) {
	server := zookeepertest.Start(t)
	server.Kill()
	s := open(t, options(server.Address))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.Commit(ctx, put("/k", "v")); !errors.Is(err, metadata.ErrUnavailable) || errors.Is(err, metadata.ErrUnknown) {
		t.Errorf("commit: %v", err)
	}
	if d, err := s.Describe(t.Context()); err != nil || d.Name != Name || !d.Shared {
		t.Errorf("describe: %+v, %v", d, err)
	}
	server.Restart()
	zookeepertest.Eventually(t, "it serves", func() bool {
		_, err := s.Commit(t.Context(), put("/k", "v"))
		return err == nil
	})
}

func TestStoreThatFellBehindReadsAnew(t *testing.T) {
	server := zookeepertest.Start(t)
	proxy := zookeepertest.NewProxy(t, server.Address)
	behind, beside := open(t, options(proxy.Address)), open(t, options(server.Address))
	mustCommit(t, behind, put("/deleted", "v"))
	w := watchFrom(t, behind)
	proxy.Cut(zookeepertest.ToServer)
	proxy.Cut(zookeepertest.ToClient)
	mustCommit(t, beside, metadata.Txn{Deletes: []string{"/deleted"}})
	var writers sync.WaitGroup
	const count = changesKept + 3*trimEvery
	for i := range 8 {
		writers.Go(func() {
			for n := range count / 8 {
				if _, err := beside.Commit(t.Context(), put(fmt.Sprintf("/k/%d/%d", i, n), "v")); err != nil {
					t.Errorf("commit: %v", err)
				}
			}
		})
	}
	writers.Wait()
	zookeepertest.Eventually(t, "old changes are gone", func() bool {
		mustCommit(t, beside, put("/more", "v"))
		names, err := beside.readChildren(t.Context(), beside.layout.generation(0))
		return err == nil && len(names) < changesKept+2*trimEvery
	})
	proxy.Drop()
	proxy.Heal()
	if events, err := w.Next(t.Context()); !errors.Is(err, metadata.ErrCompacted) {
		t.Fatalf("a watch that missed something: %+v, %v", events, err)
	}
	snap, err := behind.List(t.Context(), "/k/")
	if err != nil || len(snap.Entries) != count {
		t.Errorf("%d keys, %v; want %d", len(snap.Entries), err, count)
	}
	if snap, err := behind.List(t.Context(), "/"); err != nil || len(snap.Entries) != count+1 {
		t.Errorf("%d keys in all, %v; want %d", len(snap.Entries), err, count+1)
	}
	w = watchFrom(t, behind)
	mustCommit(t, beside, put("/k", "0"))
	follow(t, w, 0, 1)
}
