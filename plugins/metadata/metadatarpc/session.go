package metadatarpc

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	metadatapb "github.com/trunkline-mq/trunkline/protocol/pluginpb/metadata/v1"
)

// Session begins a session and holds it until the caller is gone or has enough of it.
func (s *service) Session(_ *metadatapb.SessionRequest, stream grpc.ServerStreamingServer[metadatapb.SessionResponse]) (err error) {
	ctx := stream.Context()
	one, err := s.impl.Session(ctx)
	if err != nil {
		return toStatus(err)
	}
	defer one.Close()
	s.mu.Lock()
	s.sessions[one.ID()] = one
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.sessions, one.ID())
	}()
	if err := stream.Send(&metadatapb.SessionResponse{Session: uint64(one.ID())}); err != nil {
		return err
	}
	select {
	case <-one.Lost():
		return toStatus(metadata.ErrSessionLost)
	case <-ctx.Done():
		return toStatus(ctx.Err())
	}
}

func (s *service) Renew(ctx context.Context, r *metadatapb.RenewRequest) (*metadatapb.RenewResponse, error) {
	s.mu.Lock()
	one := s.sessions[metadata.SessionID(r.GetSession())]
	s.mu.Unlock()
	if one == nil {
		return nil, toStatus(metadata.ErrSessionLost)
	}
	until, err := one.Renew(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	// Rounded down by what passes on the way; who asked counts from before it asked.
	return &metadatapb.RenewResponse{Nanoseconds: max(0, int64(time.Until(until)))}, nil
}

// renewMax bounds what is believed of a promise, so that it can be added to any time.
const renewMax = time.Duration(math.MaxInt64 / 4)

// session is one that a plugin holds for us. It is over when the plugin says so, and when the plugin is gone: whether
// it lives on then is nobody's to know, and it is nobody's to renew.
type session struct {
	client *Client
	id     metadata.SessionID
	cancel context.CancelFunc
	lost   chan struct{}
	wg     sync.WaitGroup
}

var _ metadata.Session = (*session)(nil)

// Session begins a session; ctx bounds only that.
func (c *Client) Session(ctx context.Context) (metadata.Session, error) {
	s, first, err := begin(ctx, c.timeout, "session", func(life context.Context) (grpc.ServerStreamingClient[metadatapb.SessionResponse], error) {
		return c.rpc.Session(life, &metadatapb.SessionRequest{})
	})
	if err != nil {
		return nil, err
	}
	id := metadata.SessionID(first.GetSession())
	if id == metadata.NoSession {
		s.cancel()
		return nil, fmt.Errorf("%w: session: it has no id", ErrBadAnswer)
	}
	n := &session{client: c, id: id, cancel: s.cancel, lost: make(chan struct{})}
	n.wg.Go(func() {
		defer close(n.lost)
		defer s.cancel()
		// Whatever comes now, a second answer included, is the end: there is nothing more to say about a session.
		_, _ = s.Recv()
	})
	return n, nil
}

// ID is the session's.
func (n *session) ID() metadata.SessionID { return n.id }

// Lost is closed when the session is over.
func (n *session) Lost() <-chan struct{} { return n.lost }

// Renew asks the plugin. What it promises counts from before it was asked.
func (n *session) Renew(ctx context.Context) (time.Time, error) {
	select {
	case <-n.lost:
		return time.Time{}, fmt.Errorf("%w: %d", metadata.ErrSessionLost, n.id)
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, n.client.timeout)
	defer cancel()
	asked := time.Now()
	resp, err := n.client.rpc.Renew(ctx, &metadatapb.RenewRequest{Session: uint64(n.id)})
	if err != nil {
		return time.Time{}, fromStatus(ctx, "renew", err)
	}
	d := time.Duration(resp.GetNanoseconds())
	if d < 0 || d > renewMax {
		return time.Time{}, fmt.Errorf("%w: renew: %d ns", ErrBadAnswer, resp.GetNanoseconds())
	}
	return asked.Add(d), nil
}

// Close ends the session and returns when its goroutine has. The plugin deletes the session's keys meanwhile.
func (n *session) Close() error {
	n.cancel()
	n.wg.Wait()
	return nil
}
