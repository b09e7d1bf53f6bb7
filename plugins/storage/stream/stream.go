// Package stream joins the core and stores without files. A store is written as a storage.StreamPlugin; Serve makes a
// storage.Plugin of it, whose leases and extents are sockets; NewClient is the other end, again a StreamPlugin; and a
// Dir is the core's side of one such store, with a Log for each partition.
//
// A channel is one end of a socket pair that the store lends. A group of batches goes through it in one frame and is
// acknowledged by epoch, base offset and sum. A large one lies in memory that both ends have, if the store's end has taken
// what the core offered, and only its header goes through the socket. When a store's process ends with a group
// unanswered, the Log opens at the successor and sends the same group again; the store knows it by these three if it is
// there already.
//
// Bytes under way are bounded for all partitions together. Every request has a deadline; a store that misses it is
// killed, because only then the outcome can be settled. The package starts no process.
package stream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/storeframe"
)

// What can go wrong on a channel.
var (
	// ErrBroken says that a channel ended, or a deadline passed, before the answer was there: the outcome is open.
	ErrBroken = errors.New("channel to the store is broken")
	// ErrBadAnswer says that a store answered what cannot be true. Nothing of the answer was used.
	ErrBadAnswer = errors.New("store gave an answer that cannot be right")
	// ErrFailed says that the store itself reported a failure that is none of the contract's: the outcome is open.
	ErrFailed = errors.New("store failed")
)

// pair makes the two ends of a channel: the one that is lent, and the one that is served.
func pair() (lent *os.File, served net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair for a channel: %w", os.NewSyscallError("socketpair", err))
	}
	lent = os.NewFile(uintptr(fds[0]), "channel of a store")
	mine := os.NewFile(uintptr(fds[1]), "channel of the core")
	served, err = net.FileConn(mine) // a duplicate, close-on-exec
	if err := errors.Join(err, mine.Close()); err != nil {
		return nil, nil, errors.Join(err, lent.Close())
	}
	return lent, served, nil
}

// channel is the core's end of one. It is used by one request at a time.
type channel struct {
	conn   net.Conn
	header [storeframe.RequestBytes]byte
	parts  [2][]byte // of a frame; kept, so that sending allocates nothing
	frame  net.Buffers
	shared window
}

// dial makes a channel of what was lent, which must be a stream socket. It takes f over.
func dial(f storage.File) (*channel, error) {
	if f == nil {
		return nil, fmt.Errorf("%w: no channel was lent", ErrBadAnswer)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("channel: %w", err)
	}
	file := os.NewFile(uintptr(fd), "channel of a store")
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_STREAM {
		return nil, errors.Join(fmt.Errorf("%w: what was lent is no stream socket", ErrBadAnswer), file.Close())
	}
	conn, err := net.FileConn(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("%w: what was lent is no channel: %w", ErrBadAnswer, err)
	}
	return &channel{conn: conn}, nil
}

// close may be called beside ask: what is under way ends with it, and is open anyway.
func (c *channel) close() {
	_ = c.conn.Close()
	c.shared.close()
}

// ask sends a request with its payload and returns the answer's header and payload, which may lie in into. An error is
// ErrBroken or ErrBadAnswer, and the channel is of no use any more.
func (c *channel) ask(r storeframe.Request, payload, into []byte, patience time.Duration) (storeframe.Answer, []byte, error) {
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return storeframe.Answer{}, nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	if err := c.send(&r, payload); err != nil {
		return storeframe.Answer{}, nil, fmt.Errorf("%w: send: %w", ErrBroken, err)
	}
	head := c.header[:storeframe.AnswerBytes]
	if _, err := io.ReadFull(c.conn, head); err != nil {
		return storeframe.Answer{}, nil, fmt.Errorf("%w: answer: %w", ErrBroken, err)
	}
	a, err := storeframe.ParseAnswer(head)
	switch {
	case err != nil:
		return a, nil, fmt.Errorf("%w: %w", ErrBadAnswer, err)
	case a.Op != r.Op || a.Base != r.Base || a.Epoch != r.Epoch || a.Sum != r.Sum:
		return a, nil, fmt.Errorf("%w: asked for %d@%d/%d/%08x, answered %d@%d/%d/%08x", ErrBadAnswer,
			r.Op, r.Base, r.Epoch, r.Sum, a.Op, a.Base, a.Epoch, a.Sum)
	}
	if !c.shared.answered(a.Window) {
		return a, nil, fmt.Errorf("%w: it took a window that it was not offered", ErrBadAnswer)
	}
	if cap(into) < a.Length {
		into = make([]byte, a.Length)
	}
	into = into[:a.Length]
	if _, err := io.ReadFull(c.conn, into); err != nil {
		return a, nil, fmt.Errorf("%w: payload: %w", ErrBroken, err)
	}
	return a, into, nil
}

// send sends a request and its payload, or puts that into the window.
func (c *channel) send(r *storeframe.Request, payload []byte) error {
	placed, offer, err := c.shared.place(payload)
	if err != nil {
		return err
	}
	if r.Placed = placed; placed {
		payload = nil
	}
	header := r.AppendTo(c.header[:0])
	switch {
	case offer != nil:
		if err = sendWith(c.conn, header, offer); err == nil {
			_, err = c.conn.Write(payload)
		}
	case len(payload) == 0:
		_, err = c.conn.Write(header)
	default:
		c.parts = [2][]byte{header, payload}
		c.frame = c.parts[:]
		_, err = c.frame.WriteTo(c.conn)
		c.parts = [2][]byte{}
	}
	return err
}

// meaning is the contract's error for what a store answered.
func meaning(a storeframe.Answer, text []byte) error {
	var err error
	switch a.Status {
	case storeframe.OK:
		return nil
	case storeframe.Full:
		err = storage.ErrFull
	case storeframe.Stale:
		err = storage.ErrLeaseStale
	case storeframe.Mismatch:
		err = storage.ErrHeldMismatch
	case storeframe.OutOfRange:
		err = storage.ErrOffsetOutOfRange
	case storeframe.NotOpen:
		err = storage.ErrNotOpen
	default:
		err = ErrFailed
	}
	return fmt.Errorf("%w (%q)", err, text) // quoted: it is the store's own words
}

// statusOf is how an error of the contract travels.
func statusOf(err error) storeframe.Status {
	for _, s := range []struct {
		err    error
		status storeframe.Status
	}{
		{storage.ErrFull, storeframe.Full}, {storage.ErrLeaseStale, storeframe.Stale}, {storage.ErrHeldMismatch, storeframe.Mismatch},
		{storage.ErrOffsetOutOfRange, storeframe.OutOfRange}, {storage.ErrNotOpen, storeframe.NotOpen},
	} {
		if errors.Is(err, s.err) {
			return s.status
		}
	}
	if err != nil {
		return storeframe.Failed
	}
	return storeframe.OK
}

// connections are open ones that are closed together, and whoever serves them.
type connections struct {
	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
	tasks  sync.WaitGroup
}

// serve runs f on conn until it returns, and closes conn then; false, and conn is closed, after close.
func (s *connections) serve(conn net.Conn, f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = conn.Close()
		return false
	}
	if s.open == nil {
		s.open = make(map[net.Conn]struct{})
	}
	s.open[conn] = struct{}{}
	s.tasks.Go(func() {
		f()
		_ = conn.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, conn)
	})
	return true
}

// close ends all of them and waits.
func (s *connections) close() {
	s.mu.Lock()
	s.closed = true
	for conn := range s.open {
		_ = conn.Close()
	}
	s.mu.Unlock()
	s.tasks.Wait()
}
