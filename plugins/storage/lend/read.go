package lend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// ErrEnd says that a reader has reached the end it was given. More may come later.
var ErrEnd = errors.New("end of what may be read")

// ErrMoved says that the log was re-opened under the reader. A new reader at the same offset goes on.
var ErrMoved = errors.New("log was re-opened; read again")

// CorruptError names bytes that fail their check. The reader can go on behind them with Skip.
type CorruptError struct {
	Partition storage.Partition
	Segment   record.Offset // its base
	Position  int64
	Offset    record.Offset // the first record that cannot be read
	Err       error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s@%d is damaged (segment %020d, position %d): %v", e.Partition, e.Offset, e.Segment, e.Position, e.Err)
}

// Unwrap returns what the check said.
func (e *CorruptError) Unwrap() error { return e.Err }

const (
	// readBytes is how much one pread asks for: large enough to make the system call cheap.
	readBytes = 64 << 10
	// batchBytesMax bounds the memory a length field can claim; a record is at most a payload, a batch 1 MiB or one record.
	batchBytesMax = 64 << 20
)

var readBuffers = sync.Pool{New: func() any { b := make([]byte, readBytes); return &b }}

// Reader walks the batches of a log from an offset on. It is not safe for concurrent use; any number of readers may run
// beside each other and beside the writer.
type Reader struct {
	log *Log
	seg *segment
	pos int64 // of the next batch in seg
	// limit is the size of seg that is confirmed. Bytes above it may still change: they are never read ahead.
	limit int64
	at    record.Offset // base of the batch at pos, or below it in a log with gaps; below next only before the first batch
	gaps  record.Offset // below it, a batch need not begin where the one before ends
	// next is the first offset not yet delivered.
	next record.Offset
	buf  *[]byte // nil while idle
	r, w int     // (*buf)[r:w] are the bytes at pos
	bad  *CorruptError
}

// NewReader returns a reader whose first batch holds from. It asks the plugin only for segments that are not at hand.
// storage.ErrOffsetOutOfRange below the log start.
func (l *Log) NewReader(ctx context.Context, from record.Offset) (*Reader, error) {
	s, err := l.segmentFor(from)
	if err != nil {
		return nil, err
	}
	_, at, err := l.open(ctx, ctx, s, from)
	if err != nil {
		return nil, err
	}
	l.dir.files.release(s)
	return &Reader{log: l, seg: s, pos: at.position, at: at.offset, next: from}, nil
}

// segmentFor finds the segment that holds off; the end of the log belongs to the active one.
func (l *Log) segmentFor(off record.Offset) (*segment, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segments) == 0 {
		return nil, l.down
	}
	if off < l.logStart || off > l.confirmed {
		return nil, fmt.Errorf("read %s@%d, log is [%d, %d): %w", l.part, off, l.logStart, l.confirmed, storage.ErrOffsetOutOfRange)
	}
	i := sort.Search(len(l.segments), func(i int) bool { return l.segments[i].base > off })
	return l.segments[max(0, i-1)], nil
}

// Offset is the first offset that Next has not delivered.
func (r *Reader) Offset() record.Offset { return r.next }

// Next returns the next batch, checked, with offsets below end; it may begin before the first offset asked for. The
// batch is valid until the next call. ErrEnd at end; *CorruptError for damage, again and again until Skip.
func (r *Reader) Next(ctx context.Context, end record.Offset) (record.Batch, error) {
	for {
		if r.bad != nil {
			return nil, r.bad
		}
		if r.next >= end {
			r.Idle()
			return nil, ErrEnd
		}
		if err := r.turn(ctx); err != nil {
			return nil, err
		}
		b, err := r.batch(ctx)
		if err != nil {
			return nil, err
		}
		r.pos += int64(b.Size())
		r.r += b.Size()
		r.at = b.NextOffset()
		if b.NextOffset() <= r.next {
			continue // before what was asked for
		}
		r.next = b.NextOffset()
		return b, nil
	}
}

// turn moves on to the next segment at the end of a sealed one.
func (r *Reader) turn(ctx context.Context) error {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	segments := r.log.segments
	i := sort.Search(len(segments), func(i int) bool { return segments[i].base >= r.seg.base })
	if i == len(segments) || segments[i] != r.seg {
		return ErrMoved
	}
	for r.pos >= segments[i].size && i+1 < len(segments) {
		i++
		r.seg, r.pos, r.at = segments[i], 0, segments[i].base
		r.r, r.w = 0, 0
	}
	r.limit, r.gaps = segments[i].size, min(r.log.gaps, segments[i].next)
	return ctx.Err()
}

// batch returns the batch at pos, whole and checked.
func (r *Reader) batch(ctx context.Context) (record.Batch, error) {
	if err := r.fill(ctx, record.HeaderBytes); err != nil {
		return nil, err
	}
	size, err := record.SizeOf((*r.buf)[r.r:r.w])
	if err == nil && size > batchBytesMax {
		err = fmt.Errorf("batch claims %d bytes", size)
	}
	if err != nil {
		return nil, r.damaged(err)
	}
	if err := r.fill(ctx, size); err != nil {
		return nil, err
	}
	b := record.Batch((*r.buf)[r.r : r.r+size])
	if err := b.Check(); err != nil {
		return nil, r.damaged(err)
	}
	if base := b.BaseOffset(); base != r.at && (base < r.at || base >= r.gaps) {
		return nil, r.damaged(fmt.Errorf("batch begins at offset %d, expected %d", b.BaseOffset(), r.at))
	}
	return b, nil
}

// fill makes at least n bytes at pos available.
func (r *Reader) fill(ctx context.Context, n int) error {
	if r.w-r.r >= n {
		return nil
	}
	if missing := r.pos + int64(n) - r.limit; missing > 0 {
		return r.damaged(fmt.Errorf("segment ends %d bytes early", missing))
	}
	if r.buf == nil {
		r.buf, r.r, r.w = readBuffers.Get().(*[]byte), 0, 0
	}
	buf := *r.buf
	copy(buf, buf[r.r:r.w])
	r.r, r.w = 0, r.w-r.r
	if n > len(buf) {
		grown := make([]byte, n)
		copy(grown, buf[:r.w])
		buf = grown
		r.buf = &buf
	}
	file, _, err := r.log.open(ctx, ctx, r.seg, r.seg.base)
	if err != nil {
		return err
	}
	defer r.log.dir.files.release(r.seg)
	from := r.pos + int64(r.w)
	m, err := file.ReadAt(buf[r.w:min(int64(len(buf)), r.limit-r.pos)], from)
	r.w += m
	switch {
	case r.w >= n:
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return r.damaged(fmt.Errorf("file ends %d bytes early", n-r.w))
	default:
		return r.damaged(err)
	}
}

func (r *Reader) damaged(err error) error {
	r.bad = &CorruptError{Partition: r.log.part, Segment: r.seg.base, Position: r.pos, Offset: max(r.at, r.next), Err: err}
	return r.bad
}

// Skip moves on behind the damage Next reported: to the next batch that the damaged one's length leads to, if one is
// there, else to the next segment, else to the end of the log. It returns the offset at which reading goes on.
func (r *Reader) Skip(ctx context.Context) record.Offset {
	if r.bad == nil {
		return r.next
	}
	r.bad = nil
	if r.r+record.HeaderBytes <= r.w {
		if size, err := record.SizeOf((*r.buf)[r.r:r.w]); err == nil && size <= batchBytesMax {
			behind := Reader{log: r.log, seg: r.seg, pos: r.pos + int64(size), limit: r.limit, next: r.next}
			if b, err := behind.peek(ctx); err == nil && b > r.next {
				r.pos, r.at, r.next, r.r, r.w = behind.pos, b, b, 0, 0
				return r.next
			}
		}
	}
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	r.pos, r.r, r.w = r.seg.size, 0, 0
	r.at = max(r.at, r.seg.next)
	r.next = max(r.next, r.seg.next)
	return r.next
}

// peek returns the base offset of the batch at pos if its header is sound.
func (r *Reader) peek(ctx context.Context) (record.Offset, error) {
	defer r.Idle()
	if err := r.fill(ctx, record.HeaderBytes); err != nil {
		return 0, err
	}
	if _, err := record.SizeOf((*r.buf)[r.r:r.w]); err != nil {
		return 0, err
	}
	return record.Batch((*r.buf)[r.r:r.w]).BaseOffset(), nil
}

// Idle gives the reader's buffer back until the next call. A reader that waits for records holds no memory.
func (r *Reader) Idle() {
	if r.buf != nil && len(*r.buf) == readBytes {
		readBuffers.Put(r.buf)
	}
	r.buf, r.r, r.w = nil, 0, 0
}
