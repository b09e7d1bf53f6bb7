// Package conn serves the line protocol: it accepts connections, reads commands, routes records to partitions, answers
// in order, and feeds subscriptions from the log.
//
// A connection has a reader (the goroutine that serves it), a writer, and one goroutine for each topic of a subscription
// and for each FETCH. The path of a
// published record through it is accept, read, publish, and, after the commit, answer.
package conn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
	"github.com/trunkline-mq/trunkline/server/internal/live"
)

// Options configure a Server.
type Options struct {
	Broker       *broker.Broker
	Tuning       Tuning // until Tune says otherwise
	Limits       line.Limits
	Publish      time.Duration // how long a publish may wait for its outcome; 0: for ever
	Live         []string      // patterns of subjects that are never topics
	PingInterval time.Duration // how long a client may be silent before it is asked whether it is there; 0: for ever
	Identity     Identity
	Logger       *slog.Logger
}

// Tuning is what of the options a running server can be told anew. What bounds a connection holds for those that are
// accepted from then on.
type Tuning struct {
	Connections   int           // at once
	Pending       int           // bytes waiting for a peer
	WriteDeadline time.Duration // how long a peer may accept nothing
	AutoCreate    bool          // a publish without reply-to makes the topic it names
	Subscriptions int           // of one connection; 0: any number
}

// Identity is what INFO says of the server.
type Identity struct {
	ServerID  string
	Name      string
	Version   string
	Cluster   string
	Broker    int
	Advertise string // HOST:PORT, or empty for the address the client reached
	HTTP      string // HOST:PORT where HTTP is answered, or empty
}

// Server accepts connections until it is shut down.
type Server struct {
	opt    Options
	tuned  atomic.Pointer[Tuning] // goes before opt
	lastID atomic.Uint64

	live    *live.Router // who hears what is published to live subjects
	waiting *live.Router // which subscriptions want which topics, should they appear

	mu      sync.Mutex
	conns   map[*conn]struct{}
	closing bool
	serving sync.WaitGroup
}

// NewServer returns a server that is not listening yet.
func NewServer(o Options) *Server {
	s := &Server{opt: o, conns: make(map[*conn]struct{}), live: live.NewRouter(), waiting: live.NewRouter()}
	s.Tune(o.Tuning)
	return s
}

// Tune changes what of the options can be changed.
func (s *Server) Tune(t Tuning) { s.tuned.Store(&t) }

// acceptRetry is the pause after an accept that failed for want of descriptors.
const acceptRetry = 50 * time.Millisecond

// Serve accepts connections from l until l is closed; then it returns nil.
func (s *Server) Serve(l net.Listener) error {
	ctx, stop := context.WithCancel(context.Background())
	var watches sync.WaitGroup
	watches.Go(func() { s.expireAll(ctx) })
	watches.Go(func() { s.beatAll(ctx) })
	watches.Go(func() { s.watchTopics(ctx) })
	defer func() {
		s.serving.Wait() // connections may outlive the listener, and their publishes still expire
		stop()
		watches.Wait()
	}()
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			s.serving.Go(func() { s.serve(nc) })
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED):
			s.opt.Logger.Warn("connection not accepted", "err", err)
			time.Sleep(acceptRetry)
		default:
			return fmt.Errorf("accept: %w", err)
		}
	}
}

// serve runs one connection from its first byte to its last.
func (s *Server) serve(nc net.Conn) {
	c := newConn(s, nc)
	if err := s.add(c); err != nil {
		refuse(nc, err)
		return
	}
	defer s.remove(c)
	c.run()
}

func (s *Server) add(c *conn) *errcode.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errcode.New(errcode.ShuttingDown, "the server is going down", "connect again later")
	}
	if len(s.conns) >= s.tuned.Load().Connections {
		return errcode.New(errcode.LimitExceeded, fmt.Sprintf("the server has %d connections", len(s.conns)),
			"close one, or raise limits.connections")
	}
	s.conns[c] = struct{}{}
	return nil
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// lingerTime is how long a connection that was told why it is closed may take to hear it.
const lingerTime = 2 * time.Second

// refuse tells a connection that is not served why.
func refuse(nc net.Conn, e *errcode.Error) {
	_ = nc.SetDeadline(time.Now().Add(lingerTime))
	if _, err := nc.Write(line.AppendErr(nil, e)); err == nil {
		linger(nc, lingerTime)
	}
	_ = nc.Close()
}

// linger ends our side and reads on until the peer ends its own: closing with unread input would send a reset, which
// may swallow what was written last.
func linger(nc net.Conn, patience time.Duration) {
	if half, ok := nc.(interface{ CloseWrite() error }); ok {
		if half.CloseWrite() != nil {
			return
		}
	}
	_ = nc.SetReadDeadline(time.Now().Add(patience))
	_, _ = io.Copy(io.Discard, nc) // ends with the peer or the deadline
}

// Shutdown makes every connection answer what it has queued and close, and cuts off those that are still there when
// ctx ends. It returns when the last one is gone. The listener is the caller's to close, before.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	all := s.everyone()
	for _, c := range all {
		c.shutdown()
	}
	gone := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() { s.serving.Wait(); close(gone) })
	select {
	case <-gone:
	case <-ctx.Done():
		for _, c := range all {
			c.cut()
		}
	}
	wait.Wait()
}

// Retire makes the server a lame duck: it tells every client to go elsewhere, gives them grace for it, and then closes
// those that are left one after the other, spread over the time given for that, so that they do not all arrive at the
// next server at once. It returns when nobody is left, or when ctx ends. The listener is the caller's to close, before.
func (s *Server) Retire(ctx context.Context, grace, spread time.Duration) {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	for _, c := range s.everyone() {
		if c.pulse.kind.Load() != kindUnknown { // who has not connected yet expects other things now
			c.box.frame(func(dst []byte) []byte { return c.appendInfoOf(dst, leaving) })
		}
	}
	if !s.untilAlone(ctx, grace) {
		return
	}
	left := s.everyone()
	for i, c := range left {
		c.shutdown()
		if !s.untilAlone(ctx, spread/time.Duration(len(left))) || i == len(left)-1 {
			return
		}
	}
}

// aloneEvery is how often a retiring server looks whether its clients have gone.
const aloneEvery = 20 * time.Millisecond

// untilAlone waits for d; false when there is no connection left, or ctx has ended.
func (s *Server) untilAlone(ctx context.Context, d time.Duration) bool {
	over := time.NewTimer(d)
	defer over.Stop()
	look := time.NewTicker(aloneEvery)
	defer look.Stop()
	for {
		if s.Connections() == 0 {
			return false
		}
		select {
		case <-over.C:
			return true
		case <-ctx.Done():
			return false
		case <-look.C:
		}
	}
}

// everyone is the connections there are now.
func (s *Server) everyone() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	return all
}

// Connections tells how many connections there are.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}
