package zookeeper

import (
	"encoding/binary"
	"net"
	"sync"
	"time"
)

// ring hands out servers in turn. The library's own resolves names once, at the start; ours leaves that to each dial.
type ring struct {
	mu      sync.Mutex
	servers []string
	current int // -1: none yet
	last    int // the last one that was connected to; -1: none yet
}

// Init takes the servers in.
func (r *ring) Init(servers []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.servers, r.current, r.last = servers, -1, -1
	return nil
}

// Len is how many there are.
func (r *ring) Len() int { return len(r.servers) }

// Next returns the server to try next, and whether all were tried since the last connection.
func (r *ring) Next() (server string, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current = (r.current + 1) % len(r.servers)
	all = r.current == r.last
	if r.last == -1 {
		r.last = 0
	}
	return r.servers[r.current], all
}

// Connected notes that the current one works.
func (r *ring) Connected() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = r.current
}

// greetingBytes is the beginning of the server's first answer, all big-endian:
//
//	length uint32 | protocol version uint32 | session timeout in ms uint32 | …
const greetingBytes = 12

// wire is a connection that gives up sooner than the library would. The library waits for the first answer 6.7 times
// the session's timeout, so that one server that hangs costs the session although others are well; and it waits for
// any later one two thirds of it, which leaves too little for finding another server.
type wire struct {
	net.Conn
	patience time.Duration               // for the first answer
	granted  func(session time.Duration) // gets what the server grants
	head     [greetingBytes]byte         // of what was read
	got      int                         // bytes in head
	waited   bool                        // a deadline for the first answer was set
}

// SetReadDeadline shortens the deadline. To take it away is not heeded: the library sets another before it reads on.
func (w *wire) SetReadDeadline(t time.Time) error {
	if t.IsZero() {
		return nil
	}
	left := time.Until(t)
	if !w.waited {
		w.waited = true
		left = min(left, w.patience)
	} else {
		left -= left / 4 // half the session's timeout; a ping's answer comes every third of it
	}
	return w.Conn.SetReadDeadline(time.Now().Add(left))
}

// Read reads, and looks at the first bytes.
func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if w.got < greetingBytes && n > 0 {
		w.got += copy(w.head[w.got:], b[:n])
		if ms := binary.BigEndian.Uint32(w.head[8:]); w.got == greetingBytes && ms > 0 {
			w.granted(time.Duration(ms) * time.Millisecond)
		}
	}
	return n, err
}
