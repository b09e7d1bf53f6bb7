package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

const (
	// readBytes is how much a reader asks for at a time.
	readBytes = 256 << 10
	// extentBytesMax bounds an extent: it is held in memory until the peer has it.
	extentBytesMax = 1 << 20
)

var readBuffers = sync.Pool{New: func() any { b := make([]byte, readBytes); return &b }}

// read asks for batches from the one that holds off on. A store that is replaced meanwhile is asked anew, until ctx ends.
func (l *Log) read(ctx context.Context, off record.Offset, limit int64, into []byte) ([]byte, error) {
	for {
		l.mu.Lock()
		start, end, down := l.start, l.end, l.down
		l.mu.Unlock()
		if errors.Is(down, lend.ErrClosed) {
			return nil, down
		}
		if off < start || off >= end {
			return nil, fmt.Errorf("read %s@%d, log is [%d, %d): %w", l.part, off, start, end, storage.ErrOffsetOutOfRange)
		}
		up, err := l.dir.instanceUp(ctx)
		if err != nil {
			return nil, err
		}
		batches, err := up.client.Read(ctx, storage.ReadRequest{Partition: l.part, Offset: off, Limit: limit, Into: into})
		switch {
		case err == nil:
			return batches, nil
		case storage.IsAnswer(err), errors.Is(err, ErrFailed), errors.Is(err, ErrBadAnswer), ctx.Err() != nil:
			return nil, err
		}
		l.dir.log.Warn("store is replaced; it is read again", "partition", l.part.String(), "offset", int64(off), "err", err)
		l.dir.replace(up, err)
	}
}

// Reader walks the batches of a log. It is not safe for concurrent use; any number of readers may run beside each other
// and beside the writer.
type Reader struct {
	log  *Log
	next record.Offset // the first offset not yet delivered
	buf  *[]byte       // nil while idle
	rest []byte        // of what was read, in *buf; it begins with a batch
	bad  *lend.CorruptError
	over record.Offset // where to go on behind the damage
}

// NewReader returns a reader whose first batch holds from. storage.ErrOffsetOutOfRange below the log start and above the
// end.
func (l *Log) NewReader(_ context.Context, from record.Offset) (*Reader, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.down, lend.ErrClosed) {
		return nil, l.down
	}
	if from < l.start || from > l.end {
		return nil, fmt.Errorf("read %s@%d, log is [%d, %d): %w", l.part, from, l.start, l.end, storage.ErrOffsetOutOfRange)
	}
	return &Reader{log: l, next: from}, nil
}

// Offset is the first offset that Next has not delivered.
func (r *Reader) Offset() record.Offset { return r.next }

// Next returns the next batch, checked, with offsets below end; it may begin before the first offset asked for. The
// batch is valid until the next call. lend.ErrEnd at end; *lend.CorruptError for damage, again and again until Skip.
func (r *Reader) Next(ctx context.Context, end record.Offset) (record.Batch, error) {
	for asked := false; ; {
		if r.bad != nil {
			return nil, r.bad
		}
		if r.next >= end {
			r.Idle()
			return nil, lend.ErrEnd
		}
		if len(r.rest) == 0 {
			if asked { // and all that came lies before it: so it would again
				r.Idle()
				return nil, fmt.Errorf("%w: read %s@%d, got nothing of it", ErrBadAnswer, r.log.part, r.next)
			}
			if err := r.fetch(ctx); err != nil {
				return nil, err
			}
			asked = true
		}
		b, err := r.take()
		if err != nil {
			return nil, r.damaged(b, err)
		}
		if b.NextOffset() <= r.next {
			continue // before what was asked for
		}
		r.next = b.NextOffset()
		return b, nil
	}
}

func (r *Reader) fetch(ctx context.Context) error {
	if r.buf == nil {
		r.buf = readBuffers.Get().(*[]byte)
	}
	batches, err := r.log.read(ctx, r.next, readBytes, *r.buf)
	if err != nil {
		r.Idle()
		return err
	}
	if cap(batches) > len(*r.buf) { // one batch that is larger
		r.buf = &batches
	}
	r.rest = batches
	return nil
}

// take cuts the next batch off the rest, and checks it and that it follows.
func (r *Reader) take() (record.Batch, error) {
	b, err := first(r.rest)
	if err != nil {
		return nil, err
	}
	if err := b.Check(); err != nil {
		return b, err
	}
	if b.BaseOffset() > r.next {
		return b, fmt.Errorf("batch begins at offset %d, expected %d", b.BaseOffset(), r.next)
	}
	r.rest = r.rest[len(b):]
	return b, nil
}

// first is the batch that begins what was read, not checked.
func first(batches []byte) (record.Batch, error) {
	size, err := record.SizeOf(batches)
	if err == nil && size > len(batches) {
		err = record.ErrShort
	}
	if err != nil {
		return nil, err
	}
	return record.Batch(batches[:size]), nil
}

// damaged remembers what is wrong, and where to go on: behind the batch, as far as its header can be believed.
func (r *Reader) damaged(b record.Batch, err error) error {
	end := r.log.End()
	r.over = end
	switch {
	case len(b) < record.HeaderBytes:
	case b.BaseOffset() > r.next: // something is missing before it
		r.over = min(b.BaseOffset(), end)
	case b.NextOffset() > r.next:
		r.over = min(b.NextOffset(), end)
	}
	r.bad = &lend.CorruptError{Partition: r.log.part, Segment: r.next, Offset: r.next, Err: err}
	return r.bad
}

// Skip moves on behind the damage Next reported, and returns the offset at which reading goes on.
func (r *Reader) Skip(context.Context) record.Offset {
	if r.bad == nil {
		return r.next
	}
	r.next = max(r.next, r.over)
	r.bad = nil
	r.Idle()
	return r.next
}

// Idle gives the reader's buffer back until the next call.
func (r *Reader) Idle() {
	if r.buf != nil && len(*r.buf) == readBytes {
		readBuffers.Put(r.buf)
	}
	r.buf, r.rest = nil, nil
}

// Extent is a run of whole batches, held in memory.
type Extent struct {
	base  record.Offset
	bytes []byte
}

// Extent returns the batches from the one that holds off on, all below end: as many as fit into limit bytes and into
// 1 MiB, but at least one. lend.ErrEnd when there is none. Nothing of it is checked but its batches' headers.
func (l *Log) Extent(ctx context.Context, off, end record.Offset, limit int64) (*Extent, error) {
	if off >= end {
		return nil, lend.ErrEnd
	}
	batches, err := l.read(ctx, off, max(1, min(limit, extentBytesMax)), nil)
	if err != nil {
		return nil, err
	}
	e := &Extent{base: -1}
	from, to := 0, 0
	for at := 0; at < len(batches); {
		b, err := first(batches[at:])
		if err != nil && e.base >= 0 {
			break // what lies before the damage is whole; who comes for the next batch hears of it
		}
		if err != nil {
			return nil, &lend.CorruptError{Partition: l.part, Segment: off, Position: int64(at), Offset: off, Err: err}
		}
		if b.BaseOffset() >= end {
			break
		}
		at += len(b)
		switch {
		case e.base < 0 && b.NextOffset() <= off:
			from = at
			continue
		case e.base < 0 && b.BaseOffset() > off:
			return nil, fmt.Errorf("%w: read %s@%d, got the batch of %d", ErrBadAnswer, l.part, off, b.BaseOffset())
		case e.base < 0:
			e.base = b.BaseOffset()
		}
		to = at
	}
	if e.base < 0 {
		return nil, fmt.Errorf("%w: read %s@%d, got nothing of it", ErrBadAnswer, l.part, off)
	}
	e.bytes = batches[from:to]
	return e, nil
}

// Place is the base offset of the first batch, and the size.
func (e *Extent) Place() (record.Offset, int64) { return e.base, int64(len(e.bytes)) }

// Release does nothing: the memory goes with the extent.
func (e *Extent) Release() {}

// SendTo writes the extent to a connection, as lend.Send does.
func (e *Extent) SendTo(nc syscall.Conn, progress func() error) error {
	return lend.Send(nc, int64(len(e.bytes)), progress, func(sock int, at, n int64) (int, error) {
		return unix.Write(sock, e.bytes[at:at+n])
	})
}
