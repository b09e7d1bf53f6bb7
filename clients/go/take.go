package trunkline

import (
	"context"
	"io"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/record/codec"
)

// taker turns chunks into records. It belongs to who iterates.
type taker struct {
	chunk   *chunk
	rest    []byte       // of the chunk: batches that were not begun yet
	open    record.Batch // what reader is in; nil: none
	packed  bool         // open is compressed: what is read of it is void soon
	told    Offset       // behind what was read of the batch begun last
	records []Record
	failed  *CorruptError // behind records; not told yet
	names   names
	reader  codec.Reader
	rec     record.Record
	headers []Header // free ones
	arena   arena    // for unpacked bytes

	// ReuseRecords: what the records that are ready were made in.
	reuse      bool
	ownRecords []Record
	ownHeaders []Header
}

// next returns the next record that is ready, nil where there is none, and moves the partition's position behind it.
func (t *taker) next() *Record {
	if len(t.records) == 0 || t.chunk.part.turn.Load() != t.chunk.turn {
		t.records = nil
		return nil
	}
	r := &t.records[0]
	t.records = t.records[1:]
	t.chunk.part.position.Store(int64(r.Offset) + 1)
	return r
}

// some is next for up to limit records.
func (t *taker) some(limit int) []Record {
	if len(t.records) == 0 || t.chunk.part.turn.Load() != t.chunk.turn {
		t.records = nil
		return nil
	}
	n := min(limit, len(t.records))
	some := t.records[:n:n]
	t.records = t.records[n:]
	t.chunk.part.position.Store(int64(some[n-1].Offset) + 1)
	return some
}

// fill makes records ready, and waits for them. final says that after the error nothing more comes.
func (c *Consumer) fill(ctx context.Context) (final bool, _ error) {
	t := &c.taker
	for {
		select {
		case <-c.stop:
			return true, ErrClosed
		default:
		}
		if err := ctx.Err(); err != nil {
			return true, context.Cause(ctx)
		}
		if t.chunk != nil {
			stale := t.chunk.part.turn.Load() != t.chunk.turn
			if len(t.records) > 0 && !stale {
				return false, nil
			}
			if failed := t.failed; failed != nil && !stale {
				t.failed = nil
				t.chunk.part.position.Store(int64(failed.To))
				return false, failed
			}
			if (len(t.rest) > 0 || t.open != nil) && !stale {
				t.unpack()
				continue
			}
			c.done(t)
		}
		k, err := c.take(ctx)
		if err != nil {
			return true, err
		}
		if k.err != nil {
			return false, k.err
		}
		t.chunk, t.rest = k, k.bytes
	}
}

// done lets go of the chunk that was taken.
func (c *Consumer) done(t *taker) {
	c.mu.Lock()
	c.bytes -= t.chunk.size
	p := t.chunk.part
	if t.chunk.turn == p.turn.Load() { // behind records that are not handed over
		if behind := t.behind(); behind > Offset(p.position.Load()) {
			p.position.Store(int64(behind))
		}
	}
	c.mu.Unlock()
	c.recycle(t.chunk)
	t.chunk, t.rest, t.open, t.records, t.failed = nil, nil, nil, nil, nil
	c.tell(c.nudge)
}

// behind is the offset behind the chunk, or where it ends for this consumer.
func (t *taker) behind() Offset {
	next, _, _, _ := walk(t.chunk.bytes, t.chunk.from) // it was walked before
	if t.chunk.end >= 0 {
		next = min(next, t.chunk.end)
	}
	return next
}

// take returns the next chunk, or io.EOF at the end of UntilLatest.
func (c *Consumer) take(ctx context.Context) (*chunk, error) {
	for {
		c.mu.Lock()
		if len(c.queue) > 0 {
			k := c.queue[0]
			c.queue[0] = nil
			c.queue = c.queue[1:]
			if k.err != nil && k.part != nil && k.part.turn.Load() == k.turn {
				if gap, ok := k.err.(*GapError); ok {
					k.part.position.Store(int64(gap.To))
				}
			}
			c.mu.Unlock()
			return k, nil
		}
		final := c.final
		if final == nil && c.opt.untilLatest && c.reachedLocked() {
			final = io.EOF
		}
		c.mu.Unlock()
		if final != nil {
			return nil, final
		}
		select {
		case <-c.ready:
		case <-c.stop:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (c *Consumer) reachedLocked() bool {
	for _, p := range c.parts {
		if p.stuck { // take has told why
			continue
		}
		if p.end < 0 || p.next < p.end || p.position.Load() < int64(p.end) {
			return false
		}
	}
	return true
}

// recordsAtOnce is how many records are unpacked before they are handed over: enough that what is allocated for them counts
// for little, few enough that they are in the processor's cache, and their memory is of a size that the allocator has ready.
const recordsAtOnce = 240

// unpack makes the next records ready, up to a batch that is damaged.
func (t *taker) unpack() {
	left := 0 // the most that there can be
	if t.open != nil {
		left = int(t.open.Count())
	}
	for rest := t.rest; len(rest) > 0 && left < recordsAtOnce; { // walk has seen that they are whole
		b := record.Batch(rest)
		left, rest = left+max(min(int(b.Count()), b.Size()/recordBytesLeast+1), 1), rest[b.Size():]
	}
	t.records = t.room(min(left, recordsAtOnce))
	for t.failed == nil && len(t.records) < cap(t.records) {
		if t.open == nil {
			if len(t.rest) == 0 {
				return
			}
			t.openBatch()
			continue
		}
		t.unpackBatch()
	}
}

// room returns memory for n records.
func (t *taker) room(n int) []Record {
	if !t.reuse {
		return make([]Record, 0, n)
	}
	if t.ownRecords == nil {
		t.ownRecords = make([]Record, recordsAtOnce)
	}
	clear(t.ownRecords)
	clear(t.ownHeaders)
	t.headers, t.arena.buf = t.ownHeaders, t.arena.buf[:0]
	return t.ownRecords[:0:n]
}

// recordBytesLeast is the least that a record takes in a batch that is not compressed.
const recordBytesLeast = 7

// openBatch begins the next batch.
func (t *taker) openBatch() {
	b := record.Batch(t.rest[:record.Batch(t.rest).Size()])
	t.rest, t.told = t.rest[len(b):], b.BaseOffset()
	if err := b.Check(); err != nil {
		t.fail(b, err)
		return
	}
	if !b.Control() {
		t.open, t.packed = b, b.Codec() != record.CodecNone
		t.reader.Reset(b, int(codec.BatchLimit(len(b))))
	}
}

// unpackBatch takes records of the open batch while there is room for them.
func (t *taker) unpackBatch() {
	from, end := t.chunk.from, t.chunk.end
	for n := len(t.records); n < cap(t.records); {
		o, ok := t.reader.Next(&t.rec)
		if !ok {
			b := t.open
			t.open = nil
			if err := t.reader.Err(); err != nil {
				t.fail(b, err)
			}
			return
		}
		t.told = o + 1
		if o < from || end >= 0 && o >= end {
			continue
		}
		t.records = t.records[:n+1]
		t.set(&t.records[n], o)
		n++
	}
}

// fail leaves out what was not told of a batch.
func (t *taker) fail(b record.Batch, err error) {
	p := t.chunk.part
	t.failed = &CorruptError{Topic: p.topic, Partition: p.id, From: max(t.told, t.chunk.from), To: b.NextOffset(), Err: err}
}

// set fills r, which is empty, from the record that was read.
func (t *taker) set(r *Record, o Offset) {
	in := &t.rec
	r.Topic, r.Partition, r.Offset = t.chunk.part.topic, t.chunk.part.id, o
	r.Timestamp = time.UnixMilli(in.Timestamp).UTC()
	if t.packed {
		r.Key, r.Value = t.arena.keep(in.Key), t.arena.keep(in.Value)
	} else {
		r.Key, r.Value = in.Key, in.Value
	}
	if len(in.Headers) == 0 {
		return
	}
	if len(t.headers) < len(in.Headers) {
		t.headers = make([]Header, max(len(in.Headers), recordsAtOnce))
		if t.reuse {
			t.ownHeaders = t.headers
		}
	}
	n := len(in.Headers)
	r.Headers, t.headers = t.headers[:n:n], t.headers[n:]
	for i, h := range in.Headers {
		r.Headers[i].Name, r.Headers[i].Value = t.names.of(h.Key), h.Value
		if t.packed {
			r.Headers[i].Value = t.arena.keep(h.Value)
		}
	}
}

// arenaBytes is the memory that small records share.
const arenaBytes = 64 << 10

// arena is memory that records share.
type arena struct{ buf []byte }

// keep copies bytes into it; nil stays nil, and empty empty.
func (a *arena) keep(b []byte) []byte {
	switch {
	case b == nil:
		return nil
	case len(b) == 0:
		return []byte{} // a piece of b would hold all of its memory
	}
	if cap(a.buf)-len(a.buf) < len(b) {
		if len(b) > arenaBytes/4 {
			return append(make([]byte, 0, len(b)), b...)
		}
		a.buf = make([]byte, 0, arenaBytes)
	}
	start := len(a.buf)
	a.buf = append(a.buf, b...)
	return a.buf[start:len(a.buf):len(a.buf)]
}

// namesMax bounds the header names that are kept to be reused.
const namesMax = 256

// names are header names that records share.
type names map[string]string

func (n names) of(b []byte) string {
	if name, ok := n[string(b)]; ok {
		return name
	}
	name := string(b)
	if len(n) < namesMax {
		n[name] = name
	}
	return name
}
