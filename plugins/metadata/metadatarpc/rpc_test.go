package metadatarpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	metadatapb "github.com/trunkline-mq/trunkline/protocol/pluginpb/metadata/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// liar answers whatever it is told to.
type liar struct {
	metadatapb.UnimplementedMetadataServer
	describe *metadatapb.DescribeResponse
	get      *metadatapb.GetResponse
	list     []*metadatapb.ListResponse
	commit   *metadatapb.CommitResponse
	watch    []*metadatapb.WatchResponse
	session  []*metadatapb.SessionResponse
	renew    *metadatapb.RenewResponse
	err      error
	hang     bool // answers nothing until the call is given up
}

func (l *liar) outcome(ctx context.Context) error {
	if l.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return l.err
}

func (l *liar) Describe(ctx context.Context, _ *metadatapb.DescribeRequest) (*metadatapb.DescribeResponse, error) {
	return l.describe, l.outcome(ctx)
}

func (l *liar) Get(ctx context.Context, _ *metadatapb.GetRequest) (*metadatapb.GetResponse, error) {
	return l.get, l.outcome(ctx)
}

func (l *liar) Commit(ctx context.Context, _ *metadatapb.CommitRequest) (*metadatapb.CommitResponse, error) {
	return l.commit, l.outcome(ctx)
}

func (l *liar) List(_ *metadatapb.ListRequest, s grpc.ServerStreamingServer[metadatapb.ListResponse]) error {
	for _, r := range l.list {
		if err := s.Send(r); err != nil {
			return err
		}
	}
	return l.outcome(s.Context())
}

func (l *liar) Watch(_ *metadatapb.WatchRequest, s grpc.ServerStreamingServer[metadatapb.WatchResponse]) error {
	for _, r := range l.watch {
		if err := s.Send(r); err != nil {
			return err
		}
	}
	return l.outcome(s.Context())
}

func (l *liar) Session(_ *metadatapb.SessionRequest, s grpc.ServerStreamingServer[metadatapb.SessionResponse]) error {
	for _, r := range l.session {
		if err := s.Send(r); err != nil {
			return err
		}
	}
	return l.outcome(s.Context())
}

func (l *liar) Renew(context.Context, *metadatapb.RenewRequest) (*metadatapb.RenewResponse, error) {
	return l.renew, l.err
}

// connect serves srv's registration over a pipe; stop ends the server before the test does.
func connect(t *testing.T, register func(*grpc.Server)) (c *Client, stop func()) {
	t.Helper()
	lis := bufconn.Listen(1 << 16)
	srv := grpc.NewServer()
	register(srv)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(lis) })
	conn, err := grpc.NewClient("passthrough:///pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		srv.Stop()
		wg.Wait()
	})
	return NewClient(conn), srv.Stop
}

func lying(t *testing.T, l *liar) *Client {
	t.Helper()
	c, _ := connect(t, func(s *grpc.Server) { metadatapb.RegisterMetadataServer(s, l) })
	return c
}

func entry(key string, version, revision int64) *metadatapb.Entry {
	return &metadatapb.Entry{Key: key, Value: []byte("v"), Version: version, Revision: revision}
}

func TestLiesAreFound(t *testing.T) {
	list := func(rs ...*metadatapb.ListResponse) *liar { return &liar{list: rs} }
	entries := func(revision int64, es ...*metadatapb.Entry) *metadatapb.ListResponse {
		return &metadatapb.ListResponse{Revision: revision, Entries: es}
	}
	callGet := func(c *Client) error { _, err := c.Get(context.Background(), "/t/a"); return err }
	callList := func(c *Client) error { _, err := c.List(context.Background(), "/t/"); return err }
	callCommit := func(c *Client) error {
		_, err := c.Commit(context.Background(), metadata.Txn{Puts: []metadata.Put{{Key: "/t/a"}}})
		return err
	}
	callDescribe := func(c *Client) error { _, err := c.Describe(context.Background()); return err }
	for _, tc := range []struct {
		name string
		liar *liar
		call func(*Client) error
	}{
		{"describe without a name", &liar{describe: &metadatapb.DescribeResponse{}}, callDescribe},
		{"describe at length", &liar{describe: &metadatapb.DescribeResponse{Name: strings.Repeat("x", 1000)}}, callDescribe},
		{"get nothing", &liar{get: &metadatapb.GetResponse{}}, callGet},
		{"get another key", &liar{get: &metadatapb.GetResponse{Entry: entry("/t/b", 1, 1)}}, callGet},
		{"get version 0", &liar{get: &metadatapb.GetResponse{Entry: entry("/t/a", 0, 1)}}, callGet},
		{"get revision 0", &liar{get: &metadatapb.GetResponse{Entry: entry("/t/a", 1, 0)}}, callGet},
		{"get too much", &liar{get: &metadatapb.GetResponse{Entry: &metadatapb.Entry{
			Key: "/t/a", Version: 1, Revision: 1, Value: make([]byte, metadata.ValueBytesMax+1),
		}}}, callGet},
		{"commit at revision 0", &liar{commit: &metadatapb.CommitResponse{}}, callCommit},
		{"commit at revision -1", &liar{commit: &metadatapb.CommitResponse{Revision: -1}}, callCommit},
		{"list without an answer", list(), callList},
		{"list at revision -1", list(entries(-1)), callList},
		{"list of two revisions", list(entries(5), entries(6)), callList},
		{"list out of order", list(entries(5, entry("/t/b", 1, 1), entry("/t/a", 1, 1))), callList},
		{"list with a key twice", list(entries(5, entry("/t/a", 1, 1)), entries(5, entry("/t/a", 1, 1))), callList},
		{"list of another prefix", list(entries(5, entry("/u/a", 1, 1))), callList},
		{"list with an illegal key", list(entries(5, entry("/t/../a", 1, 1))), callList},
		{"list from the future", list(entries(5, entry("/t/a", 1, 6))), callList},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.call(lying(t, tc.liar)); !errors.Is(err, ErrBadAnswer) {
				t.Fatalf("believed: %v", err)
			}
		})
	}
}

func TestLiesInAWatchAreFound(t *testing.T) {
	event := func(e *metadatapb.Entry, deleted bool) *metadatapb.Event {
		return &metadatapb.Event{Entry: e, Deleted: deleted}
	}
	for _, tc := range []struct {
		name   string
		events []*metadatapb.Event
	}{
		{"not after what was asked", []*metadatapb.Event{event(entry("/t/a", 1, 4), false)}},
		{"back in time", []*metadatapb.Event{event(entry("/t/a", 1, 7), false), event(entry("/t/a", 2, 6), false)}},
		{"a key twice in a revision", []*metadatapb.Event{event(entry("/t/a", 1, 7), false), event(entry("/t/a", 2, 7), false)}},
		{"another prefix", []*metadatapb.Event{event(entry("/u/a", 1, 7), false)}},
		{"version 0", []*metadatapb.Event{event(entry("/t/a", 0, 7), false)}},
		{"an illegal key", []*metadatapb.Event{event(entry("/t//a", 0, 7), true)}},
		{"deleted with a value", []*metadatapb.Event{event(entry("/t/a", 1, 7), true)}},
		{"nothing at all", []*metadatapb.Event{{}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := lying(t, &liar{watch: []*metadatapb.WatchResponse{{}, {Events: tc.events}}, hang: true})
			w, err := c.Watch(t.Context(), "/t/", 4)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if events, err := w.Next(t.Context()); !errors.Is(err, ErrBadAnswer) {
				t.Fatalf("believed: %+v, %v", events, err)
			}
		})
	}
	first := &liar{watch: []*metadatapb.WatchResponse{{Events: []*metadatapb.Event{event(entry("/t/a", 1, 7), false)}}}}
	if _, err := lying(t, first).Watch(t.Context(), "/t/", 4); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("events before the watch was established: %v", err)
	}
	if _, err := lying(t, &liar{}).Watch(t.Context(), "/t/", 4); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("a watch that ends at once: %v", err)
	}
}

// each makes every call and reports its error.
func each(t *testing.T, ctx context.Context, c *Client, check func(name string, err error)) {
	t.Helper()
	_, err := c.Describe(ctx)
	check("describe", err)
	_, err = c.Get(ctx, "/k")
	check("get", err)
	_, err = c.List(ctx, "/")
	check("list", err)
	_, err = c.Commit(ctx, metadata.Txn{Puts: []metadata.Put{{Key: "/k"}}})
	check("commit", err)
	_, err = c.Watch(ctx, "/", 0)
	check("watch", err)
	_, err = c.Session(ctx)
	check("session", err)
}

func TestEveryCallHasADeadline(t *testing.T) {
	c := lying(t, &liar{hang: true})
	c.timeout = 30 * time.Millisecond
	each(t, t.Context(), c, func(name string, err error) {
		if !errors.Is(err, ErrDeadline) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	})
	c.timeout = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := c.Get(ctx, "/k"); !errors.Is(err, ErrDeadline) {
		t.Errorf("get with the caller's deadline: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(30*time.Millisecond, cancel)
	if _, err := c.Watch(ctx, "/", 0); !errors.Is(err, context.Canceled) || errors.Is(err, ErrDeadline) {
		t.Errorf("watch that was given up: %v", err)
	}
}

func TestGonePluginIsUnavailable(t *testing.T) {
	c, stop := connect(t, func(s *grpc.Server) {
		metadatapb.RegisterMetadataServer(s, &liar{watch: []*metadatapb.WatchResponse{{}}, hang: true})
	})
	w, err := c.Watch(t.Context(), "/", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	stop()
	if _, err := w.Next(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("next: %v", err)
	}
	each(t, t.Context(), c, func(name string, err error) {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	})
}

// failing is a store that fails with one error.
type failing struct{ err error }

func (f failing) Describe(context.Context) (metadata.Description, error) {
	return metadata.Description{}, f.err
}

func (f failing) Get(context.Context, string) (metadata.Entry, error) {
	return metadata.Entry{}, f.err
}

func (f failing) List(context.Context, string) (metadata.Snapshot, error) {
	return metadata.Snapshot{}, f.err
}

func (f failing) Commit(context.Context, metadata.Txn) (metadata.Revision, error) {
	return 0, f.err
}

func (f failing) Watch(context.Context, string, metadata.Revision) (metadata.Watcher, error) {
	return nil, f.err
}

func (f failing) Session(context.Context) (metadata.Session, error) {
	return nil, f.err
}

func TestErrorsKeepTheirIdentity(t *testing.T) {
	for _, sentinel := range []error{metadata.ErrNotFound, metadata.ErrCompacted, metadata.ErrBadKey, metadata.ErrTooLarge,
		metadata.ErrUnknown, metadata.ErrUnavailable, metadata.ErrSessionLost} {
		c, _ := connect(t, func(s *grpc.Server) { Register(s, failing{fmt.Errorf("%w: the details\n", sentinel)}) })
		each(t, t.Context(), c, func(name string, err error) {
			if !errors.Is(err, sentinel) || err.Error() != sentinel.Error()+": the details?" || sentinel != metadata.ErrUnknown && errors.Is(err, metadata.ErrUnknown) {
				t.Errorf("%s: %v became %v", name, sentinel, err)
			}
		})
	}
	c, _ := connect(t, func(s *grpc.Server) { Register(s, failing{fmt.Errorf("x: %w", &metadata.ConflictError{Key: "/k"})}) })
	each(t, t.Context(), c, func(name string, err error) {
		var conflict *metadata.ConflictError
		if !errors.As(err, &conflict) || conflict.Key != "/k" {
			t.Errorf("%s: %v", name, err)
		}
	})
	c, _ = connect(t, func(s *grpc.Server) { Register(s, failing{errors.New(strings.Repeat("disk\x1b on fire ", 1000))}) })
	each(t, t.Context(), c, func(name string, err error) {
		if !errors.Is(err, ErrPlugin) || len(err.Error()) > 2*messageBytesMax || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%s: %.200q", name, err)
		}
	})
}

func TestStrangersReasonsAreNotOurs(t *testing.T) {
	c := lying(t, &liar{err: status.Error(codes.NotFound, "NOT_FOUND: no such key")})
	if _, err := c.Get(t.Context(), "/k"); errors.Is(err, metadata.ErrNotFound) || !errors.Is(err, ErrPlugin) {
		t.Fatalf("an error without our reason became %v", err)
	}
}

func TestLiesAboutSessionsAreFound(t *testing.T) {
	if _, err := lying(t, &liar{session: []*metadatapb.SessionResponse{{}}, hang: true}).Session(t.Context()); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("a session without id: %v", err)
	}
	if _, err := lying(t, &liar{}).Session(t.Context()); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("a session that ends at once: %v", err)
	}
	for _, ns := range []int64{-1, 1<<63 - 1} {
		c := lying(t, &liar{session: []*metadatapb.SessionResponse{{Session: 7}}, renew: &metadatapb.RenewResponse{Nanoseconds: ns}, hang: true})
		n, err := c.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		if until, err := n.Renew(t.Context()); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("a promise of %d ns is believed: %v, %v", ns, until, err)
		}
	}
}

func TestSessionEndsWithItsPlugin(t *testing.T) {
	c, stop := connect(t, func(s *grpc.Server) {
		metadatapb.RegisterMetadataServer(s, &liar{session: []*metadatapb.SessionResponse{{Session: 7}}, hang: true})
	})
	n, err := c.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	stop()
	select {
	case <-n.Lost():
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was told")
	}
	if _, err := n.Renew(t.Context()); !errors.Is(err, metadata.ErrSessionLost) {
		t.Errorf("renew: %v", err)
	}
}

func TestTransactionsWithoutAnswerAreUnknown(t *testing.T) {
	txn := metadata.Txn{Puts: []metadata.Put{{Key: "/k"}}}
	c, stop := connect(t, func(s *grpc.Server) { metadatapb.RegisterMetadataServer(s, &liar{hang: true}) })
	c.timeout = 30 * time.Millisecond
	if _, err := c.Commit(t.Context(), txn); !errors.Is(err, metadata.ErrUnknown) || !errors.Is(err, ErrDeadline) {
		t.Errorf("no answer in time: %v", err)
	}
	stop()
	if _, err := c.Commit(t.Context(), txn); !errors.Is(err, metadata.ErrUnknown) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("no plugin: %v", err)
	}
	if _, err := lying(t, &liar{commit: &metadatapb.CommitResponse{}}).Commit(t.Context(), txn); !errors.Is(err, metadata.ErrUnknown) {
		t.Errorf("a bad answer: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Commit(ended, txn); !errors.Is(err, context.Canceled) || errors.Is(err, metadata.ErrUnknown) {
		t.Errorf("never sent: %v", err)
	}
}
