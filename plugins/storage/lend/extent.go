package lend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sort"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Extent is a run of whole batches as they lie in one segment, ready to be sent without being read.
type Extent struct {
	Base, Next record.Offset // of its first batch; after its last
	Size       int64         // bytes

	log      *Log
	segment  *segment
	file     vfs.File
	position int64
}

// Extent returns the batches from the one that holds off on: as many as fit into limit bytes, but at least one, of one
// segment, all below end. ErrEnd when there is none, ErrCrowded when too many are held already. Release must follow.
//
// Nothing of it is checked but its batches' headers: who receives the bytes checks them.
func (l *Log) Extent(ctx context.Context, off, end record.Offset, limit int64) (*Extent, error) {
	for {
		if off >= end {
			return nil, ErrEnd
		}
		s, err := l.segmentFor(off)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		next, size, n := s.next, s.size, len(l.segments) // none, where it was surrendered just now
		last := n > 0 && s == l.segments[n-1]
		l.mu.Unlock()
		if off == next && !last { // between two segments
			return nil, fmt.Errorf("read %s@%d: %w", l.part, off, ErrMoved)
		}
		e, err := l.extent(ctx, s, size, bounds{off: off, end: end, limit: limit})
		if errors.Is(err, ErrEnd) && !last {
			off = next // compaction took the segment's last batches
			continue
		}
		return e, err
	}
}

// crowdedWait is how long an extent waits for a descriptor. Who asks for many holds those it has meanwhile, and is
// served with these first.
const crowdedWait = 100 * time.Millisecond

func (l *Log) extent(ctx context.Context, s *segment, size int64, b bounds) (*Extent, error) {
	room, cancel := context.WithTimeout(ctx, crowdedWait)
	defer cancel()
	file, at, err := l.open(ctx, room, s, b.off)
	if err != nil {
		return nil, err
	}
	e := &Extent{log: l, segment: s, file: file}
	if err := e.measure(at, size, b); err != nil {
		e.Release()
		return nil, err
	}
	l.mu.Lock()
	s.ended(e.Next, e.position+e.Size)
	l.mu.Unlock()
	return e, nil
}

// bounds are what an extent may hold.
type bounds struct {
	off, end record.Offset
	limit    int64
}

// measure walks batch headers from a known place: to the batch that holds off, and then as far as the bounds allow.
// Where the core knows a later place it jumps there.
func (e *Extent) measure(at place, size int64, b bounds) error {
	e.position, e.Base = -1, at.offset
	for pos := at.position; pos < size; {
		h, err := e.header(pos)
		if err != nil && e.Size > 0 {
			return nil // what lies before the damage is whole; who comes for the next batch hears of it
		}
		if err != nil {
			return err
		}
		next := h.NextOffset()
		switch after := pos + int64(h.Size()); {
		case next <= b.off:
		case h.BaseOffset() >= b.end, e.position >= 0 && after-e.position > b.limit:
			return e.found(b.off)
		default:
			if e.position < 0 {
				e.position, e.Base = pos, h.BaseOffset()
			}
			e.Size, e.Next = after-e.position, next
		}
		pos += int64(h.Size())
		if e.position >= 0 {
			if jump, ok := e.log.placeBetween(e.segment, pos, e.position+b.limit); ok && jump.offset < b.end {
				e.Size, e.Next = jump.position-e.position, jump.offset
				pos = jump.position
			}
		}
	}
	return e.found(b.off)
}

func (e *Extent) found(off record.Offset) error {
	if e.position < 0 {
		return fmt.Errorf("read %s@%d: %w", e.log.part, off, ErrEnd)
	}
	return nil
}

// header reads and checks the header of the batch at pos.
func (e *Extent) header(pos int64) (record.Batch, error) {
	var h [record.HeaderBytes]byte
	_, err := e.file.ReadAt(h[:], pos)
	if err == nil {
		_, err = record.SizeOf(h[:])
	}
	if err != nil {
		return nil, &CorruptError{Partition: e.log.part, Segment: e.segment.base, Position: pos, Offset: e.Next, Err: err}
	}
	return record.Batch(h[:]), nil
}

// placeBetween is the last known place in (after, upTo], and false where none is known.
func (l *Log) placeBetween(s *segment, after, upTo int64) (place, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := sort.Search(len(s.index), func(i int) bool { return s.index[i].position > upTo })
	if i == 0 || s.index[i-1].position <= after {
		return place{}, false
	}
	return s.index[i-1], true
}

// Place is the base offset of the first batch, and the size in bytes.
func (e *Extent) Place() (record.Offset, int64) { return e.Base, e.Size }

// Release lets the segment's descriptor go.
func (e *Extent) Release() {
	if e.file != nil {
		e.log.dir.files.release(e.segment)
		e.file = nil
	}
}

// SendTo sends the extent to a TCP connection by sendfile, at explicit offsets: the descriptor is shared by many
// readers. It is Send.
func (e *Extent) SendTo(nc syscall.Conn, progress func() error) error {
	return Send(nc, e.Size, progress, func(sock int, at, n int64) (int, error) {
		off := e.position + at
		return unix.Sendfile(sock, e.file.Fd(), &off, int(n))
	})
}

// sendPiece bounds what is sent at once, so that a slow peer shows progress between two.
const sendPiece = 1 << 20

// Send sends size bytes to a TCP connection by put, a system call that sends up to n of them from at on. progress is
// called before each piece; it sets the write deadline. Bytes that run out before size are io.ErrUnexpectedEOF: the peer
// has a part by then, and the connection must be closed.
func Send(nc syscall.Conn, size int64, progress func() error, put func(sock int, at, n int64) (int, error)) error {
	raw, err := nc.SyscallConn()
	if err != nil {
		return err
	}
	for at := int64(0); at < size; {
		if err := progress(); err != nil {
			return err
		}
		next, err := sendRange(raw, at, min(size, at+sendPiece), put)
		if err != nil {
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() || next == at {
				return err
			}
		}
		at = next
	}
	return nil
}

// sendRange sends bytes [at, end), waits for the socket where it must, and returns how far it came.
func sendRange(raw syscall.RawConn, at, end int64, put func(sock int, at, n int64) (int, error)) (next int64, err error) {
	waitErr := raw.Write(func(sock uintptr) bool {
		for at < end {
			n, e := put(int(sock), at, end-at)
			switch {
			case n > 0:
				at += int64(n)
			case errors.Is(e, unix.EAGAIN):
				return false
			case errors.Is(e, unix.EINTR):
			case e != nil:
				err = e
				return true
			default:
				err = io.ErrUnexpectedEOF
				return true
			}
		}
		return true
	})
	if err == nil {
		err = waitErr
	}
	return at, err
}
