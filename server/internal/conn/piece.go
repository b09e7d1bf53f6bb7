package conn

import (
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
)

// piece is a part of a FETCH's answer: a line, and batches that go from the file to the socket without being read.
type piece struct {
	head   []byte
	extent *lend.Extent // nil: the line is all
}

// piecesLocked reports whether the oldest request is a FETCH that is due.
func (b *outbox) piecesLocked() bool {
	return b.head != nil && b.head.settled && b.head.pieces != nil
}

// writePiecesLocked sends the pieces of the oldest request. It lets the lock go; the request stays the oldest until its
// literal has followed.
func (b *outbox) writePiecesLocked(nc net.Conn) error {
	a := b.head
	pieces := a.pieces
	b.mu.Unlock()
	err := b.sendPieces(nc, pieces)
	release(pieces)
	b.mu.Lock()
	a.pieces = nil
	if err != nil {
		b.dead = true
		b.freeLocked()
	}
	b.mu.Unlock()
	return err
}

func (b *outbox) sendPieces(nc net.Conn, pieces []piece) error {
	progress := func() error { return nc.SetWriteDeadline(time.Now().Add(b.deadline)) }
	for _, p := range pieces {
		if err := b.send(nc, p.head); err != nil {
			return err
		}
		if p.extent == nil {
			continue
		}
		file, ok := nc.(syscall.Conn)
		if !ok {
			return errors.New("connection takes no files")
		}
		// A failure in the middle leaves the peer with a part: the connection ends.
		if err := p.extent.SendTo(file, progress); err != nil {
			return err
		}
		if err := b.send(nc, []byte("\r\n")); err != nil {
			return err
		}
	}
	return nil
}

func release(pieces []piece) {
	for _, p := range pieces {
		if p.extent != nil {
			p.extent.Release()
		}
	}
}

// abandonLocked lets go of what will not be sent any more.
func (b *outbox) abandonLocked() {
	for a := b.head; a != nil; a = a.next {
		release(a.pieces)
		a.pieces = nil
	}
}

// settlePieces is the answer of a FETCH. On a dead connection nothing will send it.
func (a *answer) settlePieces(pieces []piece, literal []byte) {
	b := a.box
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dead {
		release(pieces)
		pieces = nil
	}
	a.pieces, a.literal, a.settled = pieces, append(a.literal, literal...), true
	b.ready.Signal()
	b.freeLocked()
}

// waitOldest blocks until every request before a has its answer.
func (b *outbox) waitOldest(a *answer, stop <-chan struct{}) bool {
	return b.wait(stop, func() bool { return b.head == a })
}
