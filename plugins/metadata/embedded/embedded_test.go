package embedded

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(Options{Path: path, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func put(t *testing.T, s *Store, key, value string) metadata.Revision {
	t.Helper()
	rev, err := s.Commit(t.Context(), metadata.Txn{Puts: []metadata.Put{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func TestEverythingIsThereAfterReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "embedded.db")
	s := open(t, path)
	put(t, s, "/k", "one")
	rev := put(t, s, "/k", "two")
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, path)
	e, err := s.Get(t.Context(), "/k")
	if err != nil || string(e.Value) != "two" || e.Version != 2 || e.Revision != rev {
		t.Fatalf("%+v, %v", e, err)
	}
	if next := put(t, s, "/k", "three"); next != rev+1 {
		t.Fatalf("revision %d after %d", next, rev)
	}
	for _, dir := range []string{"a", "a/b"} {
		st, err := os.Stat(filepath.Join(path, "../../..", dir))
		if err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, st.Mode(), err)
		}
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v", st.Mode(), err)
	}
}

func TestWatchAcrossReopeningListsAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "embedded.db")
	s := open(t, path)
	first := put(t, s, "/k", "one")
	last := put(t, s, "/k", "two")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if _, err := s.Watch(t.Context(), "/", first); !errors.Is(err, metadata.ErrCompacted) {
		t.Fatalf("watch of what was before: %v", err)
	}
	w, err := s.Watch(t.Context(), "/", last)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "/k", "three")
	events, err := w.Next(t.Context())
	if err != nil || len(events) != 1 || string(events[0].Value) != "three" {
		t.Fatalf("%+v, %v", events, err)
	}
}

func TestLockedFileIsAClearError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "embedded.db")
	open(t, path)
	if _, err := Open(Options{Path: path}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Fatalf("open: %v", err)
	}
}

func TestFileThatIsNotOursIsAClearError(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		name  string
		build func(path string) error
		is    error
	}{
		{"text", func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("text ", 5000)), 0o600) }, ErrFormat},
		{"empty", func(p string) error { return os.WriteFile(p, nil, 0o600) }, ErrFormat},
		{"cut off", func(p string) error { return os.WriteFile(p, make([]byte, 100), 0o600) }, nil},
		{"newer", func(p string) error {
			return change(p, func(tx *bbolt.Tx) error {
				return tx.Bucket(bucketMeta()).Put(keyFormat(), binary.BigEndian.AppendUint32(nil, formatVersion+1))
			})
		}, ErrFormat},
		{"without a revision", func(p string) error {
			return change(p, func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta()).Delete(keyRevision()) })
		}, ErrFormat},
		{"a directory", func(p string) error { return os.Mkdir(p, 0o700) }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(tc.name, " ", "-"))
			if err := tc.build(path); err != nil {
				t.Fatal(err)
			}
			s, err := Open(Options{Path: path, Logger: slog.New(slog.DiscardHandler)})
			if err == nil {
				t.Fatal(s.Close())
			}
			if tc.is != nil && !errors.Is(err, tc.is) || !strings.Contains(err.Error(), path) {
				t.Fatalf("open: %v", err)
			}
		})
	}
	blocked := filepath.Join(dir, "text", "meta", "embedded.db") // below a file
	if _, err := Open(Options{Path: blocked}); err == nil {
		t.Fatal("a file was taken for a directory")
	}
}

// change makes a store at path and changes it behind its back.
func change(path string, f func(*bbolt.Tx) error) error {
	if err := create(path); err != nil {
		return err
	}
	db, err := openFile(path)
	if err != nil {
		return err
	}
	return errors.Join(db.Update(f), db.Close())
}

func TestDamagedEntryIsReported(t *testing.T) {
	path := filepath.Join(t.TempDir(), "embedded.db")
	if err := change(path, func(tx *bbolt.Tx) error { return tx.Bucket(bucketKeys()).Put([]byte("/k"), []byte("short")) }); err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	if _, err := s.Get(t.Context(), "/k"); !errors.Is(err, ErrFormat) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.List(t.Context(), "/"); !errors.Is(err, ErrFormat) {
		t.Errorf("list: %v", err)
	}
	_, err := s.Commit(t.Context(), metadata.Txn{Guards: []metadata.Guard{{Key: "/k"}}, Puts: []metadata.Put{{Key: "/x"}}})
	if !errors.Is(err, ErrFormat) {
		t.Errorf("commit: %v", err)
	}
}

func TestHalfMadeFileIsMadeAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "embedded.db")
	if err := os.WriteFile(path+".new", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	put(t, open(t, path), "/k", "v")
	if _, err := os.Lstat(path + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the half-made file is still there: %v", err)
	}
}

func TestClosedStoreAnswersSo(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "embedded.db"))
	w, err := s.Watch(t.Context(), "/", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "/k"); !errors.Is(err, ErrClosed) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Commit(t.Context(), metadata.Txn{Puts: []metadata.Put{{Key: "/k"}}}); !errors.Is(err, ErrClosed) {
		t.Errorf("commit: %v", err)
	}
	if _, err := w.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("next: %v", err)
	}
	if _, err := s.Watch(t.Context(), "/", 0); !errors.Is(err, ErrClosed) {
		t.Errorf("watch: %v", err)
	}
}

func TestCommitThatWaitsForItsTurnCanBeGivenUp(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "embedded.db"))
	s.turn <- struct{}{} // somebody is writing
	waiting, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if _, err := s.Commit(waiting, metadata.Txn{Puts: []metadata.Put{{Key: "/k"}}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("commit: %v", err)
	}
	<-s.turn
	put(t, s, "/other", "v")
	if _, err := s.Get(t.Context(), "/k"); !errors.Is(err, metadata.ErrNotFound) {
		t.Fatalf("it was written: %v", err)
	}
}

func TestFullDiskBreaksTheStoreAndLosesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		if os.Getenv("TRUNKLINE_TEST_REQUIRE") != "" {
			t.Fatalf("mount: %v", err)
		}
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "embedded.db")
	s := open(t, path)
	acked := 0
	var failure error
	for failure == nil && acked < 1000 {
		_, failure = s.Commit(t.Context(), metadata.Txn{Puts: []metadata.Put{
			{Key: fmt.Sprintf("/k/%04d", acked), Value: make([]byte, 16<<10)},
		}})
		if failure == nil {
			acked++
		}
	}
	if !errors.Is(failure, ErrBroken) || !errors.Is(failure, metadata.ErrUnknown) || !errors.Is(failure, unix.ENOSPC) || acked == 0 {
		t.Fatalf("after %d commits: %v", acked, failure)
	}
	select {
	case <-s.Failed():
	default:
		t.Error("Failed is open")
	}
	if _, err := s.Commit(t.Context(), metadata.Txn{Puts: []metadata.Put{{Key: "/small"}}}); !errors.Is(err, ErrBroken) {
		t.Errorf("the next commit: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=4m"); err != nil {
		t.Fatal(err)
	}
	snap, err := open(t, path).List(t.Context(), "/k/")
	if err != nil || len(snap.Entries) < acked || len(snap.Entries) > acked+1 {
		t.Fatalf("%d acknowledged, %d there, %v", acked, len(snap.Entries), err)
	}
}

func TestSessionsEndWithTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "embedded.db")
	s := open(t, path)
	n, err := s.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rev, err := s.Commit(t.Context(), metadata.Txn{Puts: []metadata.Put{{Key: "/live", Session: n.ID()}, {Key: "/stays"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil { // as a crash: nobody closed the session
		t.Fatal(err)
	}
	select {
	case <-n.Lost():
	default:
		t.Error("the session outlives its store")
	}
	if _, err := n.Renew(t.Context()); !errors.Is(err, metadata.ErrSessionLost) {
		t.Errorf("renew: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := s.Session(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("a session of a closed store: %v", err)
	}
	s = open(t, path)
	snap, err := s.List(t.Context(), "/")
	if err != nil || len(snap.Entries) != 1 || snap.Entries[0].Key != "/stays" || snap.Revision <= rev {
		t.Errorf("after the process: %+v, %v", snap, err)
	}
	next, err := s.Session(t.Context())
	if err != nil || next.ID() <= n.ID() {
		t.Errorf("the next session is %v after %d, %v", next, n.ID(), err)
	}
	again := snap.Revision
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if snap, err := open(t, path).List(t.Context(), "/"); err != nil || snap.Revision != again {
		t.Errorf("opening it changed something: %+v, %v", snap, err)
	}
}

func TestFileOfAnOlderVersionIsTakenOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "embedded.db")
	if err := change(path, func(*bbolt.Tx) error { return nil }); err != nil { // it has no owners yet
		t.Fatal(err)
	}
	s := open(t, path)
	n, err := s.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), metadata.Txn{Puts: []metadata.Put{{Key: "/live", Session: n.ID()}}}); err != nil {
		t.Fatal(err)
	}
}
