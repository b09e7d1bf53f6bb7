package trunkline

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/line"
)

// session is a link that is made anew when it has ended, by the first who needs it. Its handler serves one link after the
// other, never two at once.
type session struct {
	client  *Client
	purpose string
	handler handler
	closed  chan struct{}
	shut    sync.Once
	current atomic.Pointer[link] // nil before the first
	server  atomic.Pointer[string]
	turn    chan struct{} // holds a token while somebody connects or closes
	dialer  dialer        // whoever has the token
}

func (c *Client) newSession(purpose string, h handler) *session {
	return &session{
		client: c, purpose: purpose, handler: h, closed: make(chan struct{}), turn: make(chan struct{}, 1),
		dialer: dialer{client: c, purpose: purpose},
	}
}

// living returns the link there is, nil where it is none that lives.
func (s *session) living() *link {
	if l := s.current.Load(); l != nil && !l.dead.Load() {
		return l
	}
	return nil
}

// get returns a link that lives, and makes one where there is none: until ctx ends, or, without retries, never but for
// the first. The error is a *LinkError: nothing was sent.
func (s *session) get(ctx context.Context) (*link, error) {
	l := s.current.Load()
	if l != nil && !l.dead.Load() {
		return l, nil
	}
	if l != nil && s.client.opt.once {
		return nil, &LinkError{Err: l.reason()}
	}
	select {
	case s.turn <- struct{}{}:
	case <-s.closed:
		return nil, &LinkError{Err: ErrClosed}
	case <-ctx.Done():
		return nil, &LinkError{Err: context.Cause(ctx)}
	}
	defer func() { <-s.turn }()
	select {
	case <-s.closed:
		return nil, &LinkError{Err: ErrClosed}
	default:
	}
	if l = s.current.Load(); l != nil {
		if !l.dead.Load() {
			return l, nil // somebody was faster
		}
		l.wg.Wait() // so that what was sent on it has its outcome before anything is sent behind it
	}
	ctx, cancel := until(ctx, s.closed)
	defer cancel()
	conn, parser, address, err := s.dialer.connect(ctx)
	if err != nil {
		return nil, &LinkError{Err: err}
	}
	s.server.Store(&address)
	l = newLink(conn, parser, &watch{handler: s.handler, session: s, address: address}, s.client.opt)
	s.current.Store(l)
	return l, nil
}

// close ends the session and its link, and waits for their goroutines. It is safe to call twice.
func (s *session) close() {
	s.shut.Do(func() { close(s.closed) })
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if l := s.current.Load(); l != nil {
		l.close()
	}
}

// address is where the newest link goes, or the first will.
func (s *session) address() string {
	if a := s.server.Load(); a != nil {
		return *a
	}
	return s.client.opt.servers[0]
}

// watch is a handler that tells of the link's end.
type watch struct {
	handler
	session *session
	address string
}

func (w *watch) ended(err error) {
	if !errors.Is(err, ErrClosed) {
		w.session.client.tellEnd(w.session.purpose, w.address, err)
	}
	w.handler.ended(err)
}

func (c *Client) tellEnd(purpose, address string, err error) {
	c.opt.log.Warn("connection ended", "component", purpose, "server", address, "err", err)
	if f := c.opt.hooks.Disconnected; f != nil {
		f(Disconnected{Purpose: purpose, Address: address, Err: err})
	}
}

// until returns a context that ends with ctx or when stop is closed, with ErrClosed; cancel gives back what that takes.
func until(ctx context.Context, stop <-chan struct{}) (_ context.Context, cancel func()) {
	ctx, end := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-stop:
			end(ErrClosed)
		case <-ctx.Done():
		}
	})
	return ctx, func() { end(nil); wg.Wait() }
}

// dialer makes one connection after the other, to one server after the other.
type dialer struct {
	client  *Client
	purpose string
	server  int // the one to try next
	made    bool
}

// connect tries the servers in turn until one answers, with pauses, until ctx ends; each once before the first connection
// was made, or without retries.
func (d *dialer) connect(ctx context.Context) (net.Conn, *line.FrameParser, string, error) {
	o := d.client.opt
	var last error
	for try := 1; ; try++ {
		address := o.servers[d.server%len(o.servers)]
		conn, parser, err := d.client.connect(ctx, address)
		if err == nil {
			d.made = true
			o.log.Info("connected", "component", d.purpose, "server", address, "tries", try)
			if f := o.hooks.Connected; f != nil {
				f(Connected{Purpose: d.purpose, Address: address, Tries: try})
			}
			return conn, parser, address, nil
		}
		d.server++
		if ctx.Err() == nil || last == nil { // else it says what our own end did to the last try
			last = err
		}
		if (!d.made || o.once) && try >= len(o.servers) || errors.Is(err, ErrNotAllowed) {
			return nil, nil, "", last
		}
		o.log.Debug("cannot connect", "component", d.purpose, "server", address, "tries", try, "err", err)
		if try%len(o.servers) == 0 {
			if err := o.backoff.wait(ctx, try/len(o.servers)); err != nil {
				return nil, nil, "", fmt.Errorf("%w: %w", last, err)
			}
		} else if ctx.Err() != nil {
			return nil, nil, "", fmt.Errorf("%w: %w", last, context.Cause(ctx))
		}
	}
}

// pause is how long to wait after the n-th failure in a row, counted from 1.
func (b backoff) pause(n int) time.Duration {
	d := b.most
	if shift := n - 1; shift < 30 && b.least<<shift < b.most {
		d = b.least << shift
	}
	return d - time.Duration(rand.Int64N(int64(d)/2+1))
}

// wait waits for the pause after the n-th failure, or returns why ctx has ended.
func (b backoff) wait(ctx context.Context, n int) error {
	t := time.NewTimer(b.pause(n))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
