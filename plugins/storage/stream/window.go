package stream

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// windowBytes is how much a window holds: a group, unless that is a record or a batch of somebody's own making that is
	// larger. Only what was ever written to takes memory.
	windowBytes = 1 << 20
	// windowMin is from where on a group goes through a window. Less is no burden to the socket, and a partition that never
	// has more needs no memory for it.
	windowMin = 16 << 10
)

// errWindow says that what should be a window is none.
var errWindow = errors.New("not a window")

// window is the core's side of the memory that a channel to append through may have besides its socket. The group under
// way lies there: it is copied once instead of into the socket and out of it again. As there is one group at a time,
// nothing has to be kept in order. Once the channel is closed nothing is written there any more, so that a store that
// still reads it, too late, sees the group that it was sent.
type window struct {
	mu     sync.Mutex // held over a copy in memory, so that nothing is unmapped under it; never over I/O
	state  windowState
	memory []byte   // mapped while offered or taken
	file   *os.File // while offered; afterwards the mapping is enough
	closed bool
}

type windowState uint8

const (
	windowNone    windowState = iota // no group was large enough
	windowOffered                    // its descriptor goes with the group under way
	windowTaken
	windowRefused // by the system, or by a store that knows no windows
)

// place puts a group into the window, if there is one and it has room. Otherwise the group has to be sent, and with it
// what place offers, if that is not nil.
func (w *window) place(group []byte) (placed bool, offer *os.File, err error) {
	if len(group) < windowMin || len(group) > windowBytes {
		return false, nil, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closed:
		return false, nil, net.ErrClosed
	case w.state == windowTaken:
		copy(w.memory, group)
		return true, nil, nil
	case w.state == windowNone:
		w.offerLocked()
	}
	return false, w.file, nil
}

// offerLocked makes a window. Where that is not possible the socket carries everything.
func (w *window) offerLocked() {
	var err error
	if w.file, err = newWindow(); err == nil {
		w.memory, err = mapWindow(int(w.file.Fd()))
	}
	if w.state = windowOffered; err != nil {
		w.refuseLocked()
	}
}

// answered hears what an answer says of the window that was offered. It reports whether an answer may say so.
func (w *window) answered(taken bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state != windowOffered {
		return !taken
	}
	if !taken {
		w.refuseLocked()
		return true
	}
	w.state = windowTaken
	if w.file != nil { // else it was closed meanwhile
		_ = w.file.Close() // memory
		w.file = nil
	}
	return true
}

func (w *window) refuseLocked() {
	w.state = windowRefused
	w.dropLocked()
}

func (w *window) dropLocked() {
	if w.file != nil {
		_ = w.file.Close() // memory
	}
	if w.memory != nil {
		_ = unix.Munmap(w.memory) // it was mapped
	}
	w.file, w.memory = nil, nil
}

// close ends it: nothing is placed any more.
func (w *window) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.dropLocked()
}

// newWindow makes memory whose size nobody can change: whoever maps it may touch all of it.
func newWindow() (*os.File, error) {
	fd, err := unix.MemfdCreate("trunkline window", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("window: %w", os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), "window of a channel")
	err = f.Truncate(windowBytes)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("window: %w", err), f.Close())
	}
	return f, nil
}

// mapWindow maps memory of the right size that cannot shrink under whoever uses it; errWindow if fd is anything else.
func mapWindow(fd int) ([]byte, error) {
	const fixed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&fixed != fixed {
		return nil, fmt.Errorf("%w: its seals are %#x", errWindow, seals)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size != windowBytes {
		return nil, fmt.Errorf("%w: it has %d bytes", errWindow, st.Size)
	}
	memory, err := unix.Mmap(fd, 0, windowBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("window: %w", os.NewSyscallError("mmap", err))
	}
	return memory, nil
}

// sendWith sends a header, and with its first byte a descriptor. A socket that carries none, which a store may have lent,
// takes the header alone.
func sendWith(conn net.Conn, header []byte, f *os.File) error {
	to, ok := conn.(*net.UnixConn)
	if !ok {
		_, err := conn.Write(header)
		return err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent int
	var sending error
	err = raw.Control(func(fd uintptr) { // f stays open meanwhile, whoever closes it
		sent, _, sending = to.WriteMsgUnix(header, unix.UnixRights(int(fd)), nil)
	})
	if err == nil {
		err = sending
	}
	if err == nil && sent < len(header) {
		_, err = to.Write(header[sent:])
	}
	return err
}

// descriptorsMax is how many descriptors a receive has room for. One is legal; more room tells one from several.
const descriptorsMax = 4

// intake is a reader of what arrives on a channel to append through. It takes the window that comes with it.
type intake struct {
	conn   net.Conn
	window []byte // mapped; nil while there is none
	untold bool   // it was taken since the last answer
	room   [64]byte
}

func (i *intake) Read(p []byte) (int, error) {
	from, ok := i.conn.(*net.UnixConn)
	if i.window != nil || !ok {
		return i.conn.Read(p) // drops descriptors
	}
	n, rights, _, _, err := from.ReadMsgUnix(p, i.room[:unix.CmsgSpace(4*descriptorsMax)])
	if err != nil {
		return 0, err
	}
	if rights > 0 {
		i.take(i.room[:rights])
	}
	return n, nil
}

// take maps what arrived if it is one window, and closes every descriptor: the mapping is enough. Anything else is not
// taken, which the answer then says.
func (i *intake) take(rights []byte) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return // no descriptors
	}
	var fds []int
	for _, m := range messages {
		if some, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, some...)
		}
	}
	if len(fds) == 1 {
		if memory, err := mapWindow(fds[0]); err == nil {
			i.window, i.untold = memory, true
		}
	}
	for _, fd := range fds {
		_ = unix.Close(fd) // only mapped
	}
}

// tell reports, once, that a window was taken.
func (i *intake) tell() bool {
	untold := i.untold
	i.untold = false
	return untold
}

// unmap gives the window back. Nobody may use what lay in it any more.
func (i *intake) unmap() {
	if i.window != nil {
		_ = unix.Munmap(i.window) // it was mapped
		i.window = nil
	}
}
