// Package tlfake is a Trunkline server in memory, for the tests of programs that use one:
//
//	server, err := tlfake.New()
//	…
//	defer server.Close()
//	client, err := trunkline.Dial(ctx, server.Address())
//	server.Fail(errcode.StorageUnavailable, 3) // the next three publishes
//
// It listens on a real socket and speaks the line protocol as the server does: it passes the same recorded sessions. It keeps
// topics, partitions, offsets, keys, headers, times, partition plans and long polls; what it says is durable is as durable as
// the process. It knows neither disks nor plugins: settings about segments, retention and syncs are kept and shown, and have no
// effect. Live subjects are delivered, but without acknowledgements on reply subjects and without notes that nobody listens.
// HELP knows the grammar only.
//
// Faults are had by Fail and FailAfter, Disconnect, CutAfter and Refuse. A Server is safe for concurrent use.
package tlfake

import (
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
)

// Option changes how a Server is.
type Option func(*options)

type options struct {
	partitions int32
	autoCreate bool
	maxPayload int
}

// WithPartitions sets how many partitions a topic has that is made without saying how many, 1 by default.
func WithPartitions(n int) Option { return func(o *options) { o.partitions = int32(max(n, 1)) } }

// WithoutAutoCreate makes publishes to a topic that does not exist fail, as under topics.auto_create: false.
func WithoutAutoCreate() Option { return func(o *options) { o.autoCreate = false } }

// WithMaxPayload sets the largest payload, 1 MiB by default.
func WithMaxPayload(n int) Option { return func(o *options) { o.maxPayload = max(n, 1) } }

const (
	controlLine       = 4096
	maxPayloadDefault = 1 << 20
)

// Server is a server in memory.
type Server struct {
	opt      options
	listener net.Listener
	wg       sync.WaitGroup

	mu      sync.Mutex
	topics  map[string]*topic
	changed chan struct{} // guarded by mu; closed with every change of topics or logs
	conns   map[*conn]struct{}
	nextID  uint64
	ids     int
	floor   int64    // guarded by mu; the highest plan version of a deleted topic: a new one begins above it
	faults  []*fault // guarded by mu
	cuts    int      // guarded by mu; publishes until one whose connection is cut; 0: none
	refuse  bool     // guarded by mu
	closed  bool     // guarded by mu
}

// fault refuses requests.
type fault struct {
	code  errcode.Code
	left  int
	after bool // what was asked is done all the same
	verbs []line.Verb
}

// New starts a server on a free port of the loopback address.
func New(opts ...Option) (*Server, error) {
	s := &Server{
		opt:    options{partitions: 1, autoCreate: true, maxPayload: maxPayloadDefault},
		topics: make(map[string]*topic), changed: make(chan struct{}), conns: make(map[*conn]struct{}),
	}
	for _, opt := range opts {
		opt(&s.opt)
	}
	var err error
	if s.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("fake server: %w", err)
	}
	s.wg.Go(s.accept)
	return s, nil
}

// Address is where the server listens, HOST:PORT.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Close ends the server and its connections, and waits for its goroutines. It is safe to call twice.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	err := s.listener.Close()
	s.Disconnect()
	s.wg.Wait()
	if err != nil && !isClosed(err) {
		return err
	}
	return nil
}

// Fail refuses the next n requests with a code: publishes of every kind, or those of the verbs that are named. They are not
// carried out, whatever the code says of their outcome.
func (s *Server) Fail(code errcode.Code, n int, verbs ...line.Verb) { s.fail(code, n, false, verbs) }

// FailAfter is Fail for requests that are carried out all the same: what a code with an unknown outcome may mean.
func (s *Server) FailAfter(code errcode.Code, n int, verbs ...line.Verb) {
	s.fail(code, n, true, verbs)
}

func (s *Server) fail(code errcode.Code, n int, after bool, verbs []line.Verb) {
	if len(verbs) == 0 {
		verbs = []line.Verb{line.Produce, line.Pub, line.HPub, line.Send}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &fault{code: code, left: n, after: after, verbs: verbs})
}

// Mend ends every Fail, FailAfter and CutAfter that is not used up.
func (s *Server) Mend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults, s.cuts = nil, 0
}

// CutAfter cuts the connection of the n-th publish from now on, which is carried out and not answered.
func (s *Server) CutAfter(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cuts = n
}

// Disconnect cuts every connection there is.
func (s *Server) Disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.cut()
	}
}

// Refuse makes the server hang up on who connects, until it is called with false.
func (s *Server) Refuse(refuse bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = refuse
}

// faultLocked takes the next fault that is meant for a verb; nil where there is none.
func (s *Server) faultLocked(v line.Verb) *fault {
	for i, f := range s.faults {
		if !slices.Contains(f.verbs, v) {
			continue
		}
		if f.left--; f.left <= 0 {
			s.faults = slices.Delete(s.faults, i, i+1)
		}
		return f
	}
	return nil
}

func (f *fault) err() *errcode.Error {
	return errcode.New(f.code, "the test asked for this failure", "see tlfake")
}

// cutLocked reports whether the connection of a publish is to be cut.
func (s *Server) cutLocked() bool {
	if s.cuts == 0 {
		return false
	}
	s.cuts--
	return s.cuts == 0
}

func (s *Server) noteLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) accept() {
	for {
		nc, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.closed || s.refuse {
			s.mu.Unlock()
			_ = nc.Close()
			continue
		}
		s.nextID++
		c := newConn(s, nc, s.nextID)
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		s.wg.Go(c.run)
	}
}
