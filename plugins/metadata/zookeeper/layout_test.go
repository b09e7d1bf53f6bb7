package zookeeper

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/metadata/zookeeper/zookeepertest"
)

// behindItsBack makes one raw call on a store's connection.
func behindItsBack(t *testing.T, s *Store, call func(c *zk.Conn) error) {
	t.Helper()
	if _, err := ask(t.Context(), s.link, func(c *zk.Conn) (struct{}, error) { return struct{}{}, call(c) }); err != nil {
		t.Fatal(err)
	}
}

func TestOnAHealthyServer(t *testing.T) {
	server := zookeepertest.Start(t)
	for name, test := range map[string]func(*testing.T, Options){
		"the log turns to the next generation":             testLogTurnsToTheNextGeneration,
		"a late store sees what is written while it reads": testLateStoreSeesWhatIsWrittenWhileItReads,
		"a digest keeps others out":                        testDigestKeepsOthersOut,
		"what is not ours is left alone":                   testWhatIsNotOursIsLeftAlone,
		"a closed store answers so":                        testClosedStoreAnswersSo,
		"the root is a chroot":                             testRootAsChroot,
		"a key that came back is not reaped":               testKeyThatCameBackIsNotReaped,
	} {
		t.Run(name, func(t *testing.T) {
			opt := options(server.Address)
			opt.Chroot = "/" + strings.ReplaceAll(name, " ", "-")
			test(t, opt)
		})
	}
}

func testRootAsChroot(t *testing.T, opt Options) {
	opt.Chroot = "/"
	s := open(t, opt)
	mustCommit(t, s, put("/topics/a", "v"))
	wantKey(t, s, "/topics/a", "v", 1)
}

// testKeyThatCameBackIsNotReaped: what is to be deleted was looked at before somebody else made the key anew, at the same
// version.
func testKeyThatCameBackIsNotReaped(t *testing.T, opt Options) {
	s := open(t, opt)
	begin := func() metadata.Session {
		n, err := s.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
		txn := metadata.Txn{Puts: []metadata.Put{{Key: "/leader", Session: n.ID()}}}
		var taken *metadata.ConflictError // by the session before, as long as its keys are not deleted
		for {
			if _, err = s.Commit(t.Context(), txn); !errors.As(err, &taken) {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.List(t.Context(), "/"); err != nil { // the mirror is as new
			t.Fatal(err)
		}
		return n
	}
	first := begin()
	owned := s.mirror.owned()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	begin()
	err := s.drop(t.Context(), owned, func(id metadata.SessionID) bool { return id == first.ID() })
	var changed *metadata.ConflictError
	if len(owned) != 1 || !errors.As(err, &changed) {
		t.Errorf("%d keys, %v", len(owned), err)
	}
	wantKey(t, s, "/leader", "", 1)
}

func testLogTurnsToTheNextGeneration(t *testing.T, opt Options) {
	first := open(t, opt)
	mustCommit(t, first, put("/k", "old"))
	const turn = 50
	behindItsBack(t, first, func(c *zk.Conn) error {
		_, err := c.Set(first.layout.format(), fmt.Appendf(nil, `{"format":%d,"turn":%d}`, formatVersion, turn), -1)
		return err
	})
	one, other := open(t, opt), open(t, opt)
	w := watchFrom(t, one)
	const writers, each = 4, 200
	var tasks sync.WaitGroup
	for i := range writers {
		tasks.Go(func() {
			s := []*Store{one, other}[i%2]
			for n := range each {
				if _, err := s.Commit(t.Context(), put(fmt.Sprintf("/w/%d", i), fmt.Sprint(n))); err != nil {
					t.Errorf("commit: %v", err)
				}
			}
		})
	}
	tasks.Wait()
	next := map[string]int{}
	var last metadata.Revision
	for seen := 0; seen < writers*each; {
		events, err := w.Next(t.Context())
		if err != nil {
			t.Fatalf("after %d events: %v", seen, err)
		}
		for _, ev := range events {
			if string(ev.Value) != fmt.Sprint(next[ev.Key]) || ev.Revision <= last {
				t.Fatalf("%+v after revision %d, want value %d", ev, last, next[ev.Key])
			}
			last = ev.Revision
			next[ev.Key]++
			seen++
		}
	}
	if gen := other.mirror.place().gen; gen < writers*each/turn/2 {
		t.Errorf("it is still in generation %d", gen)
	}
	snap, err := first.List(t.Context(), "/w/")
	if err != nil || len(snap.Entries) != writers || snap.Revision != last {
		t.Errorf("who knows of no turns: %+v, %v; want revision %d", snap, err, last)
	}
	again := open(t, opt)
	wantKey(t, again, "/k", "old", 1)
	if snap, err := again.List(t.Context(), "/"); err != nil || len(snap.Entries) != writers+1 || snap.Revision != last {
		t.Errorf("who comes later: %+v, %v", snap, err)
	}
}

func testLateStoreSeesWhatIsWrittenWhileItReads(t *testing.T, opt Options) {
	s := open(t, opt)
	value := strings.Repeat("v", 2*inlineValueMax) // too large for a change
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			txn := metadata.Txn{Puts: []metadata.Put{{Key: "/a", Value: []byte(value + fmt.Sprint(n))}, {Key: "/b", Value: fmt.Append(nil, n)}}}
			if n%3 == 2 {
				txn.Deletes = append(txn.Deletes, "/c")
			} else {
				txn.Puts = append(txn.Puts, metadata.Put{Key: "/c", Value: fmt.Append(nil, n)})
			}
			if _, err := s.Commit(t.Context(), txn); err != nil {
				t.Errorf("commit: %v", err)
				return
			}
		}
	})
	for range 10 {
		late := open(t, opt)
		snap, err := late.List(t.Context(), "/")
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]string{}
		for _, e := range snap.Entries {
			values[e.Key] = strings.TrimPrefix(string(e.Value), value)
		}
		var n int
		if len(snap.Entries) > 0 {
			_, err = fmt.Sscan(values["/b"], &n)
		}
		if err != nil || values["/a"] != values["/b"] || n%3 != 2 && values["/c"] != values["/b"] || n%3 == 2 && values["/c"] != "" {
			t.Fatalf("no state there ever was: %v, %v", values, err)
		}
		if err := late.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	writer.Wait()
}

func testDigestKeepsOthersOut(t *testing.T, opt Options) {
	opt.Digest = "broker:secret"
	owner := open(t, opt)
	mustCommit(t, owner, put("/k", "v"))
	for name, digest := range map[string]string{"another password": "broker:guess", "no digest": ""} {
		opt.Digest = digest
		s := open(t, opt)
		if _, err := s.Get(t.Context(), "/k"); !errors.Is(err, ErrDenied) || strings.Contains(err.Error(), "guess") {
			t.Errorf("%s: get: %v", name, err)
		}
		if _, err := s.Commit(t.Context(), put("/k", "w")); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: commit: %v", name, err)
		}
	}
	opt.Digest = "broker:secret"
	wantKey(t, open(t, opt), "/k", "v", 1)
}

func testWhatIsNotOursIsLeftAlone(t *testing.T, opt Options) {
	s := open(t, opt)
	mustCommit(t, s, put("/k", "v"))
	world := zk.WorldACL(zk.PermAll)
	for name, prepare := range map[string]func(c *zk.Conn, root string) error{
		"something else": func(c *zk.Conn, root string) error { _, err := c.Create(root+"/keys", nil, 0, world); return err },
		"a newer format": func(c *zk.Conn, root string) error {
			_, err := c.Create(root+"/format", []byte(`{"format":2,"turn":5}`), 0, world)
			return err
		},
		"no format": func(c *zk.Conn, root string) error { _, err := c.Create(root+"/format", nil, 0, world); return err },
	} {
		root := opt.Chroot + "-" + strings.ReplaceAll(name, " ", "-")
		behindItsBack(t, s, func(c *zk.Conn) error {
			_, err := c.Create(root, nil, 0, world)
			return errors.Join(err, prepare(c, root))
		})
		other := opt
		other.Chroot = root
		if _, err := open(t, other).Commit(t.Context(), put("/k", "v")); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), root) {
			t.Errorf("%s: %v", name, err)
		}
	}
	behindItsBack(t, s, func(c *zk.Conn) error { _, err := c.Set(s.layout.key("/k"), []byte("?"), -1); return err })
	if _, err := s.Get(t.Context(), "/k"); !errors.Is(err, ErrFormat) {
		t.Errorf("a damaged key: %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"no server":         func(o *Options) { o.Servers = nil },
		"no port":           func(o *Options) { o.Servers = []string{"zk1"} },
		"an illegal chroot": func(o *Options) { o.Chroot = "trunkline" },
		"a long chroot":     func(o *Options) { o.Chroot = "/" + strings.Repeat("x", rootBytesMax) },
		"half a digest":     func(o *Options) { o.Digest = "user" },
		"no password":       func(o *Options) { o.Digest = "user:" },
		"a tiny session":    func(o *Options) { o.Session = time.Millisecond },
	} {
		opt := options("127.0.0.1:1")
		change(&opt)
		if s, err := Open(opt); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				_ = s.Close()
			}
		}
	}
}

func testClosedStoreAnswersSo(t *testing.T, opt Options) {
	s := open(t, opt)
	w := watchFrom(t, s)
	n, err := s.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	within(t, "the session ends with the store", n.Lost())
	if _, err := w.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("next: %v", err)
	}
	if _, err := s.Get(t.Context(), "/k"); !errors.Is(err, ErrClosed) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Commit(t.Context(), put("/k", "v")); !errors.Is(err, ErrClosed) {
		t.Errorf("commit: %v", err)
	}
	if _, err := s.Session(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("session: %v", err)
	}
}

func TestPathsOfKeysAreReversible(t *testing.T) {
	y := layout{root: "/t"}
	seen := map[string]string{}
	for _, key := range []string{"/a", "/a/b", "/a.b", "/a-b", "/a_b", "/a/b/c", "/...", "/A"} {
		path := y.key(key)
		if other, twice := seen[path]; twice {
			t.Errorf("%s and %s have one path", key, other)
		}
		seen[path] = key
		if got := keyOf(path[strings.LastIndex(path, "/")+1:]); got != key {
			t.Errorf("%s became %s", key, got)
		}
	}
	for name, want := range map[string]int64{"c-0000000000": 0, "c-0000000042": 42, "c-": -1, "0000000001": -1, "c-x": -1} {
		if n, ok := changeNumber(name); ok != (want >= 0) || ok && n != want {
			t.Errorf("%s is %d, %v", name, n, ok)
		}
	}
}

func TestDamagedChangesAreReported(t *testing.T) {
	for _, raw := range []string{"", "{", `{"events":[{"k":"a","v":1}]}`, `{"events":[{"k":"/a","v":0}]}`, `{"events":[{"k":"/a/../b","v":1}]}`} {
		if c, err := decodeChange([]byte(raw)); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %+v, %v", raw, c, err)
		}
	}
}

func TestRingTriesEveryServerBeforeItPauses(t *testing.T) {
	r := &ring{}
	if err := r.Init([]string{"a", "b", "c"}); err != nil {
		t.Fatal(err)
	}
	next := func() string {
		server, all := r.Next()
		return fmt.Sprint(server, all)
	}
	got := []string{next(), next(), next(), next()}
	r.Connected() // to a, again
	got = append(got, next(), next(), next())
	if want := "afalse bfalse cfalse atrue bfalse cfalse atrue"; strings.Join(got, " ") != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestWireGivesUpOnASilentServer(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	var granted time.Duration
	w := &wire{Conn: near, patience: 20 * time.Millisecond, granted: func(d time.Duration) { granted = d }}
	defer w.Close()
	if err := w.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := w.SetReadDeadline(time.Time{}); err != nil { // as the library does between reads
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := w.Read(make([]byte, 4)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("read: %v", err)
	}
	if err := w.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	var writer sync.WaitGroup
	writer.Go(func() { _, _ = far.Write([]byte{0, 0, 0, 36, 0, 0, 0, 0, 0, 0, 0x0f, 0xa0, 9, 9}) })
	for _, n := range []int{4, 10} { // in pieces, as the library reads
		if _, err := io.ReadFull(w, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	writer.Wait()
	if granted != 4*time.Second {
		t.Errorf("granted %s", granted)
	}
}
