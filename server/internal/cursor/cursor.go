// Package cursor walks one partition's log record by record, from any position up to the high watermark: what a GET or a
// subscription reads by.
//
// Batches that clients compressed are unpacked in a stream, within bounds. It reads what the partition lends and checks
// nothing twice: damage comes out as a lend.CorruptError, which a reader
// reports and passes over by Skip. A Cursor belongs to one goroutine; the package starts none.
package cursor

import (
	"context"
	"errors"
	"fmt"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/record/codec"
	"github.com/trunkline-mq/trunkline/server/internal/partition"
)

// Cursor walks one partition.
type Cursor struct {
	part   *partition.Partition
	reader partition.Reader // nil before the first read, and after the log was re-opened
	next   record.Offset
	falls  uint64 // of the partition, when the cursor last looked
	batch  codec.Reader
	in     bool // batch is being walked
}

// New returns a cursor whose first record is the one at offset next, or the first one after it.
func New(p *partition.Partition, next record.Offset) Cursor {
	return Cursor{part: p, next: next, falls: p.Falls()}
}

// Partition is what the cursor walks.
func (c *Cursor) Partition() *partition.Partition { return c.part }

// Offset is where the next record is looked for.
func (c *Cursor) Offset() record.Offset { return c.next }

// Record returns the next record below the high watermark, and false where there is none now. It aliases the cursor's
// buffer until the next call. A *partition.FellError comes once, where the log has become shorter than what the cursor
// has passed; then it stands at the log's end.
func (c *Cursor) Record(ctx context.Context, end record.Offset, r *record.Record) (record.Offset, bool, error) {
	if n := c.part.Falls(); n != c.falls {
		if err := c.fall(n); err != nil {
			return 0, false, err
		}
		end = min(end, c.part.HighWatermark())
	}
	for {
		if c.in {
			off, ok := c.batch.Next(r)
			if ok && off < c.next {
				continue
			}
			if ok && off >= end {
				return 0, false, nil
			}
			if ok {
				c.next = off + 1
				return off, true, nil
			}
			c.in = false
			if err := c.batch.Err(); err != nil {
				return 0, false, &lend.CorruptError{Partition: c.part.Name, Offset: c.next, Err: err}
			}
			c.next = max(c.next, c.reader.Offset())
		}
		if c.next >= end {
			if c.reader != nil {
				c.reader.Idle()
			}
			c.batch.Close()
			return 0, false, c.standAt(c.part.HighWatermark()) // it may have been made just when the log became shorter
		}
		if err := c.fetch(ctx, end); err != nil {
			return 0, false, err
		}
	}
}

// fall looks at what has become of the log since the cursor last looked. What was read before is void.
func (c *Cursor) fall(n uint64) error {
	end, _ := c.part.FellSince(c.falls)
	c.falls = n
	c.Rest()
	return c.standAt(end)
}

// standAt takes a cursor that stands beyond the log's end back to it, and says so.
func (c *Cursor) standAt(end record.Offset) error {
	if c.next <= end {
		return nil
	}
	err := &partition.FellError{Partition: c.part.Name, End: end, Stood: c.next}
	c.next = end
	return err
}

func (c *Cursor) fetch(ctx context.Context, end record.Offset) error {
	if c.reader == nil {
		r, err := c.part.Records(ctx, c.next)
		if errors.Is(err, lend.ErrMoved) {
			return nil
		}
		if err != nil {
			return err
		}
		c.reader = r
	}
	b, err := c.reader.Next(ctx, end)
	switch {
	case errors.Is(err, lend.ErrMoved):
		c.reader = nil
		return nil
	case err != nil:
		return err
	}
	if b.Control() { // Kafka's markers are no records
		c.next = max(c.next, b.NextOffset())
		return nil
	}
	c.batch.Reset(b, c.part.MessageBytes())
	c.in = true
	return nil
}

// Rest gives back the memory in which the cursor reads, until it goes on. What Record returned before is void.
func (c *Cursor) Rest() {
	if c.reader != nil {
		c.reader.Idle()
	}
	c.batch.Close()
	c.reader, c.in = nil, false
}

// Advance moves on to off, if that is ahead: what lay before is gone.
func (c *Cursor) Advance(off record.Offset) {
	if off > c.next {
		c.Rest()
		c.next = off
	}
}

// Skip moves on behind damage.
func (c *Cursor) Skip(ctx context.Context) {
	c.in = false
	if c.reader != nil {
		c.next = max(c.next, c.reader.Skip(ctx))
	}
}

// Seek resolves a position in a partition; none stands for the position to use where none is given.
func Seek(ctx context.Context, p *partition.Partition, pos address.Position, none address.PositionKind, nowMS int64) (record.Offset, *errcode.Error) {
	if pos.Kind == address.None {
		pos.Kind = none
	}
	return SeekBelow(ctx, p, pos, p.HighWatermark(), nowMS)
}

// SeekBelow resolves a position as it was when the partition ended at end.
func SeekBelow(ctx context.Context, p *partition.Partition, pos address.Position, end record.Offset, nowMS int64) (record.Offset, *errcode.Error) {
	stats := p.Log().Stats()
	if stats.Down != nil {
		return 0, errcode.Wrap(errcode.StorageUnavailable, stats.Down, fmt.Sprintf("%s cannot be read now", p.Address()), "try again")
	}
	switch pos.Kind {
	case address.Earliest:
		return stats.LogStart, nil
	case address.Latest:
		return end, nil
	case address.LastN:
		return max(stats.LogStart, end-record.Offset(pos.N)), nil
	case address.Offset:
		if off := record.Offset(pos.N); off >= stats.LogStart && off <= end {
			return off, nil
		}
		return 0, pos.OutOfRange(p.Address(), stats.LogStart, end)
	case address.Ago:
		return seekTime(ctx, p, nowMS-pos.Ago.Milliseconds(), end)
	default:
		return seekTime(ctx, p, pos.N, end)
	}
}

// seekTime finds the first record not older than ms by reading: whole segments are passed over by their largest
// timestamp, the rest is scanned.
func seekTime(ctx context.Context, p *partition.Partition, ms int64, end record.Offset) (record.Offset, *errcode.Error) {
	cur := New(p, p.Log().FirstSince(ms))
	var r record.Record
	for {
		off, ok, err := cur.Record(ctx, end, &r)
		var damage *lend.CorruptError
		switch {
		case errors.As(err, &damage):
			cur.Skip(ctx)
		case err != nil:
			return 0, ReadFailed(p, err)
		case !ok:
			return end, nil
		case r.Timestamp >= ms:
			return off, nil
		}
	}
}

// ReadFailed gives a failed read its code.
func ReadFailed(p *partition.Partition, err error) *errcode.Error {
	var damage *lend.CorruptError
	var fell *partition.FellError
	switch {
	case errors.As(err, &fell):
		end := address.AppendAddress(nil, p.Name.Topic, p.Name.ID, fell.End)
		return errcode.Wrap(errcode.OffsetOutOfRange, err,
			fmt.Sprintf("%s ends there since its disk failed; offsets %d to %d were not synced and are gone", end, fell.End, fell.Stood-1),
			fmt.Sprintf("go on at %s", end))
	case errors.As(err, &damage):
		return errcode.Wrap(errcode.Corrupt, err,
			fmt.Sprintf("%s is damaged", address.AppendAddress(nil, p.Name.Topic, p.Name.ID, damage.Offset)),
			"read from a later offset")
	case errors.Is(err, storage.ErrOffsetOutOfRange):
		return errcode.Wrap(errcode.OffsetOutOfRange, err, fmt.Sprintf("%s does not hold that offset", p.Address()), "read from @earliest or @latest")
	}
	return errcode.Wrap(errcode.StorageUnavailable, err, fmt.Sprintf("%s cannot be read now", p.Address()), "try again")
}
