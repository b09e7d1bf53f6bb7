package storagerpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/storage"
)

// ChildFd is the descriptor as which a plugin's process inherits its end of the socket: the first of exec's extra files.
const ChildFd = 3

// A message on the socket is the lend id, big endian, with exactly one descriptor.
const messageBytes = 8

// roomDescriptors is how many descriptors a receive has room for. One is legal; more room tells one from several, and
// what arrives too much is closed instead of being lost in the kernel's count.
const roomDescriptors = 8

// sendDeadline bounds a send: the core drains the socket always, so a full one means that it is gone or stopped.
const sendDeadline = 5 * time.Second

// unclaimedSlack is how many descriptors may wait unclaimed beyond one for each call in flight: late ones of calls
// that were given up. A plugin that sends more must not be able to use up the core's descriptors.
const unclaimedSlack = 64

// handedBackMax bounds what a plugin keeps of what the core hands back, until the call that names it: the descriptors of
// a process, and no more.
const handedBackMax = 1 << 16

// Socket carries descriptors between a plugin's process and the core: what is lent one way, what is handed back the
// other; gRPC carries everything else. It is safe for concurrent use.
type Socket struct {
	conn *net.UnixConn
	// trusts: the other end is the core. It names whatever it sends, so nothing is closed for want of a call.
	trusts bool           // immutable once drained
	last   atomic.Uint64  // lend id sent last
	done   sync.WaitGroup // the draining goroutine

	mu      sync.Mutex
	calls   map[uint64]struct{} // in flight, by number
	begun   uint64              // number of the last call begun
	arrived map[uint64]arrival  // by lend id, not yet taken
	wake    chan struct{}       // closed and replaced when something arrives
	err     error               // why nothing more will be handed out
}

// arrival is what came for a lend id.
type arrival struct {
	file  *received
	err   error
	begun uint64 // calls up to this one may be the one it belongs to
}

// SocketPair makes the two ends. The core keeps the first; the second is given to the child as descriptor 3
// and closed by the caller once the child runs. The core's end is drained from now on until Close.
func SocketPair() (core *Socket, child *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair for descriptors: %w", os.NewSyscallError("socketpair", err))
	}
	child = os.NewFile(uintptr(fds[1]), "lend socket of the plugin")
	core, err = newSocket(fds[0])
	if err != nil {
		return nil, nil, errors.Join(err, child.Close())
	}
	core.done.Go(core.drain)
	return core, child, nil
}

// SocketFromFd adopts the plugin's end, which is descriptor 3 in a process that the host started. It is drained from now
// on until Close.
func SocketFromFd(fd int) (*Socket, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is not the lend socket: %w", fd, os.NewSyscallError("getsockopt", err))
	}
	if kind != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("descriptor %d is not the lend socket: type %d", fd, kind)
	}
	s, err := newSocket(fd)
	if err != nil {
		return nil, err
	}
	s.trusts = true
	s.done.Go(s.drain)
	return s, nil
}

// newSocket takes fd over.
func newSocket(fd int) (*Socket, error) {
	f := os.NewFile(uintptr(fd), "lend socket")
	conn, err := net.FileConn(f) // a duplicate, close-on-exec
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("lend socket: %w", err)
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("lend socket is a %T", conn), conn.Close())
	}
	return &Socket{
		conn: unixConn, wake: make(chan struct{}),
		calls: make(map[uint64]struct{}), arrived: make(map[uint64]arrival),
	}, nil
}

// Close ends the socket and waits for the goroutine that drains it. What arrived and was not taken is closed. A second
// call does nothing.
func (s *Socket) Close() error {
	err := s.conn.Close()
	s.done.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failLocked(fmt.Errorf("%w: lend socket closed", ErrUnavailable))
	s.dropLocked()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// send passes f's descriptor on and returns the id that names it. The caller still owns f.
func (s *Socket) send(f storage.File) (uint64, error) {
	fd := int(f.Fd())
	if fd < 0 {
		return 0, fmt.Errorf("lend: %w: the file has no descriptor", fs.ErrInvalid)
	}
	id := s.last.Add(1)
	message := binary.BigEndian.AppendUint64(nil, id)
	if err := s.conn.SetWriteDeadline(time.Now().Add(sendDeadline)); err != nil {
		return 0, fmt.Errorf("lend: %w", err)
	}
	if _, _, err := s.conn.WriteMsgUnix(message, unix.UnixRights(fd), nil); err != nil {
		return 0, fmt.Errorf("lend: %w", err)
	}
	return id, nil
}

// drain receives until the socket ends.
func (s *Socket) drain() {
	message := make([]byte, messageBytes+1) // one more, to tell a longer message
	control := make([]byte, unix.CmsgSpace(4*roomDescriptors))
	for {
		n, controlN, flags, _, err := s.conn.ReadMsgUnix(message, control)
		if err != nil {
			s.mu.Lock()
			s.failLocked(fmt.Errorf("%w: lend socket: %w", ErrUnavailable, err))
			s.mu.Unlock()
			return
		}
		fds, err := parseRights(control[:controlN])
		if err != nil || n != messageBytes {
			closeAll(fds)
			s.mu.Lock()
			s.failLocked(fmt.Errorf("%w: message of %d bytes on the lend socket", ErrBadAnswer, n))
			s.mu.Unlock()
			continue // and go on draining: a sender must never block on us
		}
		s.arrive(binary.BigEndian.Uint64(message), fds, flags&unix.MSG_CTRUNC != 0)
	}
}

func parseRights(control []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	var all []int
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return all, err
		}
		all = append(all, fds...)
	}
	return all, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // never used
	}
}

// arrive files what came for id, for the call whose answer will name it.
func (s *Socket) arrive(id uint64, fds []int, truncated bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, twice := s.arrived[id]
	switch {
	case s.err != nil:
		closeAll(fds)
		return
	case id == 0 || twice:
		closeAll(fds)
		s.failLocked(fmt.Errorf("%w: lend id %d used twice", ErrBadAnswer, id))
		return
	case len(s.arrived) >= s.roomLocked():
		closeAll(fds) // the call that names it will say so at its deadline
		return
	}
	a := arrival{begun: s.begun}
	switch {
	case truncated && len(fds) == 0:
		a.err = fmt.Errorf("%w: lend %d: this process has no descriptor left to receive it", ErrDescriptorLost, id)
	case truncated || len(fds) != 1:
		closeAll(fds)
		a.err = fmt.Errorf("%w: lend %d came with %d descriptors or more", ErrBadAnswer, id, len(fds))
	default:
		a.file = &received{fd: fds[0]}
	}
	s.arrived[id] = a
	s.sweepLocked()
	s.wakeLocked()
}

// roomLocked is how many descriptors may wait.
func (s *Socket) roomLocked() int {
	if s.trusts {
		return handedBackMax
	}
	return len(s.calls) + unclaimedSlack
}

// begin registers a call in flight; end must follow.
func (s *Socket) begin() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun++
	s.calls[s.begun] = struct{}{}
	return s.begun
}

// end closes what arrived for calls that are all over and was not taken by them.
func (s *Socket) end(call uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.calls, call)
	s.sweepLocked()
}

func (s *Socket) sweepLocked() {
	if s.trusts {
		return
	}
	oldest := s.begun + 1
	for call := range s.calls {
		oldest = min(oldest, call)
	}
	for id, a := range s.arrived {
		if a.begun < oldest {
			a.drop()
			delete(s.arrived, id)
		}
	}
}

// take waits for the descriptor named id until ctx ends.
func (s *Socket) take(ctx context.Context, id uint64) (storage.File, error) {
	for {
		s.mu.Lock()
		a, ok := s.arrived[id]
		delete(s.arrived, id)
		err, wake := s.err, s.wake
		s.mu.Unlock()
		switch {
		case ok && a.err != nil:
			return nil, a.err
		case ok:
			return a.file, nil
		case err != nil:
			return nil, err
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: lend %d was named and never came: %w", ErrDeadline, id, context.Cause(ctx))
		}
	}
}

// failLocked makes every later take fail with the first reason, and closes what waits.
func (s *Socket) failLocked(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	if !errors.Is(err, ErrUnavailable) { // after the end, what came before it may still be taken
		s.dropLocked()
	}
	s.wakeLocked()
}

func (s *Socket) dropLocked() {
	for id, a := range s.arrived {
		a.drop()
		delete(s.arrived, id)
	}
}

func (s *Socket) wakeLocked() {
	close(s.wake)
	s.wake = make(chan struct{})
}

func (a arrival) drop() {
	if a.file != nil {
		_ = a.file.Close() // never used
	}
}

// received is a descriptor on loan. Nothing closes it but Close.
type received struct {
	fd     int
	closed atomic.Bool
}

func (r *received) Fd() uintptr { return uintptr(r.fd) }

func (r *received) Close() error {
	if r.closed.Swap(true) {
		return fs.ErrClosed
	}
	return os.NewSyscallError("close", unix.Close(r.fd))
}
