package partition

import (
	"context"
	"syscall"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/plugins/storage/stream"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Log is what a partition needs of its log, whatever store keeps it: lend.Log as Lent wraps it, stream.Log as Streamed
// does. One goroutine appends; everything else may run beside it. Errors are lend's.
type Log interface {
	Tail
	Upkeep
}

// Tail is a log as it is written and read.
type Tail interface {
	// Append writes a group at the end; on a nil return readers see it, and it is as durable as the settings promise.
	Append(ctx context.Context, g lend.Group) error
	// End is the offset of the next record.
	End() record.Offset
	// Durable is the end of what is synced. Invariant: Durable() <= End().
	Durable() record.Offset
	// Epoch is the leader epoch of the batches to come.
	Epoch() record.Epoch
	// Stats is the log's extent as of now.
	Stats() lend.Stats
	// FirstSince is an offset at or below the first record whose timestamp is not below ms.
	FirstSince(ms int64) record.Offset
	// Reader returns a reader whose first batch holds from.
	Reader(ctx context.Context, from record.Offset) (Reader, error)
	// Extent returns whole batches from the one that holds off on, all below end, of limit bytes or one batch.
	Extent(ctx context.Context, off, end record.Offset, limit int64) (Extent, error)
}

// Upkeep is what happens to a log beside being written and read.
type Upkeep interface {
	// Alter changes the settings. What they promise of the past is true on return.
	Alter(s lend.Settings) error
	// Aged reports whether RollAged has something to do.
	Aged() bool
	// RollAged ends a segment that has taken records for long enough. Only the log's writer may call it.
	RollAged(ctx context.Context) error
	// Expire has retention take what is too old or too much, below limit, and returns the log start.
	Expire(ctx context.Context, age time.Duration, bytes int64, limit record.Offset) (record.Offset, error)
	// Trim moves the log start up to at least to and returns where it is.
	Trim(ctx context.Context, to record.Offset) (record.Offset, error)
	// Close gives the log back to its store.
	Close(ctx context.Context) error
}

// Reader walks batches. It belongs to one goroutine.
type Reader interface {
	// Next returns the next batch with offsets below end, checked and valid until the next call; lend.ErrEnd at end.
	Next(ctx context.Context, end record.Offset) (record.Batch, error)
	// Offset is the first offset that Next has not delivered.
	Offset() record.Offset
	// Skip moves on behind damage that Next reported, and returns to where.
	Skip(ctx context.Context) record.Offset
	// Idle gives buffers back until the next call.
	Idle()
}

// Extent is a run of whole batches, ready to be sent as it lies.
type Extent interface {
	// Place is the base offset of the first batch, and the size in bytes.
	Place() (record.Offset, int64)
	// SendTo sends the bytes to a connection. progress is called before each piece.
	SendTo(nc syscall.Conn, progress func() error) error
	// Release lets go of what the extent holds. It is called once.
	Release()
}

// Lent is a log in files that its store has lent.
func Lent(l *lend.Log) Log { return lent{l} }

type lent struct{ *lend.Log }

func (l lent) Reader(ctx context.Context, from record.Offset) (Reader, error) {
	r, err := l.NewReader(ctx, from)
	if err != nil {
		return nil, err // and not a nil *lend.Reader in it
	}
	return r, nil
}

func (l lent) Extent(ctx context.Context, off, end record.Offset, limit int64) (Extent, error) {
	e, err := l.Log.Extent(ctx, off, end, limit)
	if err != nil {
		return nil, err
	}
	return e, nil
}

// Expire asks for a log of more than one segment only: retention takes whole segments, and never the active one.
func (l lent) Expire(ctx context.Context, age time.Duration, bytes int64, limit record.Offset) (record.Offset, error) {
	if s := l.Stats(); s.Segments < 2 {
		return s.LogStart, nil
	}
	return l.Log.Expire(ctx, age, bytes, limit)
}

// Streamed is a log in a store without files.
func Streamed(l *stream.Log) Log { return streamed{l} }

type streamed struct{ *stream.Log }

func (l streamed) Reader(ctx context.Context, from record.Offset) (Reader, error) {
	r, err := l.NewReader(ctx, from)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (l streamed) Extent(ctx context.Context, off, end record.Offset, limit int64) (Extent, error) {
	e, err := l.Log.Extent(ctx, off, end, limit)
	if err != nil {
		return nil, err
	}
	return e, nil
}
