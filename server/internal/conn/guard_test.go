package conn

import (
	"bufio"
	"bytes"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/server/internal/live"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// said is a log that may be read while it is written.
type said struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// brokerless is a server that has no broker: every verb that wants one panics, for real, in the goroutine that reads.
func brokerless(log io.Writer) *Server {
	return NewServer(Options{
		Tuning: Tuning{Connections: 10, Pending: 1 << 20, WriteDeadline: patience},
		Limits: line.Limits{ControlLine: 4096, Payload: 1 << 20},
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
}

// join lets s serve a new connection, and returns the client's end.
func join(t *testing.T, s *Server) (net.Conn, *bufio.Reader) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = peer.Close(), l.Close() })
	s.serving.Go(func() { s.serve(nc) })
	_ = peer.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(peer)
	expect(t, r, "INFO {")
	return peer, r
}

func write(t *testing.T, peer net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(peer, text); err != nil {
		t.Fatal(err)
	}
}

func TestAPanicEndsItsConnectionWholeAndNoOther(t *testing.T) {
	var log said
	s := brokerless(&log)
	before := runtime.NumGoroutine()
	victim, heard := join(t, s)
	other, answers := join(t, s)
	// A subscription with a live subject, and one in the trie of those who wait for topics.
	write(t, victim, "SUB _INBOX.x 1\r\nPING\r\n")
	expect(t, heard, "+OK")
	expect(t, heard, "PONG")
	if s.live.Len() != 1 {
		t.Fatalf("%d subscriptions", s.live.Len())
	}
	write(t, victim, "TOPIC LIST\r\nPING\r\n")
	if rest, err := io.ReadAll(heard); len(rest) > 0 { // the end, or a reset: no word that could be taken for an answer
		t.Errorf("after the panic it hears %q, %v", rest, err)
	}
	eventually(t, "the connection is forgotten", func() bool { return s.Connections() == 1 })
	if n := s.live.Len(); n != 0 {
		t.Errorf("%d subscriptions of it are left", n)
	}
	for _, part := range []string{"connection failed", "nil pointer", "stack=", "handleTopic"} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("the log does not say %q:\n%s", part, log.String())
		}
	}
	for range 3 {
		write(t, other, "SUB _INBOX.x 1\r\nPING\r\n")
		expect(t, answers, "+OK")
		expect(t, answers, "PONG")
	}
	write(t, other, "QUIT\r\n")
	if _, err := io.ReadAll(answers); err != nil {
		t.Error(err)
	}
	_ = other.Close()
	s.serving.Wait() // nothing of either is left
	eventually(t, "every goroutine has ended", func() bool { return runtime.NumGoroutine() <= before })
}

// TestAPanicWithTheOutboxInHandLeavesItUsable: whoever delivers to a connection must not be stuck behind it.
func TestAPanicWithTheOutboxInHandLeavesItUsable(t *testing.T) {
	c, sub := listener(t, 1<<20)
	if c.guard(func() { sub.Deliver(&live.Message{Subject: []byte("_INBOX.a"), From: "no speaker"}) }) {
		t.Fatal("it did not panic")
	}
	if c.guard(func() { c.box.frame(func([]byte) []byte { panic("encoder") }) }) {
		t.Fatal("it did not panic")
	}
	if !c.box.mu.TryLock() {
		t.Fatal("the outbox is locked for good")
	}
	defer c.box.mu.Unlock()
	if !c.box.dead {
		t.Error("the connection goes on")
	}
}

func TestAPanicInATaskEndsTheConnection(t *testing.T) {
	var log said
	c := newConn(brokerless(&log), quietConn{})
	c.task(func() { panic("a subscription fell over") })
	c.tasks.Wait()
	select {
	case <-c.stop:
	default:
		t.Error("the connection goes on")
	}
	if !strings.Contains(log.String(), "a subscription fell over") {
		t.Errorf("the log says %q", log.String())
	}
}

// quietConn is a connection that says nothing.
type quietConn struct{ net.Conn }

func (quietConn) RemoteAddr() net.Addr { return &net.TCPAddr{} }
func (quietConn) Close() error         { return nil }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("not within %s: %s", patience, what)
}
