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
	rest    []byte // of the chunk: batches that were not unpacked yet
	records []Record
	failed  *CorruptError // behind records; not told yet
	names   names
	reader  codec.Reader
	rec     record.Record
	headers []Header // free ones
	arena   arena    // for unpacked bytes
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
			if len(t.rest) > 0 && !stale {
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
	t.chunk, t.rest, t.records, t.failed = nil, nil, nil, nil
	c.tell(c.nudge)
}

// behind is the offset behind the chunk, or where it ends for this consumer.
func (t *taker) behind() Offset {
	next, _, err := walk(t.chunk.bytes, t.chunk.from)
	if err != nil {
		return -1
	}
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
		if p.end < 0 || p.next < p.end || p.position.Load() < int64(p.end) {
			return false
		}
	}
	return true
}

// recordsAtOnce is how many records are unpacked before they are handed over: enough that what is allocated for them counts
// for little, few enough that they are in the processor's cache.
const recordsAtOnce = 512

// unpack makes the records of the next batches ready, up to one that is damaged.
func (t *taker) unpack() {
	count, size := 0, 0
	for rest := t.rest; len(rest) > 0 && count < recordsAtOnce; {
		n := record.Batch(rest).Size() // walk has seen that it is whole
		count += int(record.Batch(rest).Count())
		size += n
		rest = rest[n:]
	}
	t.records = make([]Record, 0, min(max(count, 0), size/recordBytesLeast+1, 8*recordsAtOnce))
	for size > 0 && t.failed == nil {
		b := record.Batch(t.rest[:record.Batch(t.rest).Size()])
		t.rest, size = t.rest[len(b):], size-len(b)
		if err := t.unpackBatch(b); err != nil {
			p := t.chunk.part
			t.failed = &CorruptError{Topic: p.topic, Partition: p.id, From: b.BaseOffset(), To: b.NextOffset(), Err: err}
		}
	}
}

// recordBytesLeast is the least that a record takes in a batch that is not compressed.
const recordBytesLeast = 7

func (t *taker) unpackBatch(b record.Batch) error {
	if err := b.Check(); err != nil {
		return err
	}
	if b.Control() {
		return nil
	}
	whole := len(t.records)
	t.reader.Reset(b, int(codec.BatchLimit(len(b))))
	for {
		o, ok := t.reader.Next(&t.rec)
		if !ok {
			break
		}
		if o < t.chunk.from || t.chunk.end >= 0 && o >= t.chunk.end {
			continue
		}
		t.records = append(t.records, Record{})
		t.set(&t.records[len(t.records)-1], o, b.Codec() != record.CodecNone)
	}
	if err := t.reader.Err(); err != nil {
		t.records = t.records[:whole]
		return err
	}
	return nil
}

// set fills r from the record that was read; packed says that its bytes are void soon.
func (t *taker) set(r *Record, o Offset, packed bool) {
	in := &t.rec
	r.Topic, r.Partition, r.Offset = t.chunk.part.topic, t.chunk.part.id, o
	r.Timestamp = time.UnixMilli(in.Timestamp).UTC()
	r.Key, r.Value = in.Key, in.Value
	if packed {
		r.Key, r.Value = t.arena.keep(in.Key), t.arena.keep(in.Value)
	}
	if len(in.Headers) == 0 {
		return
	}
	if len(t.headers) < len(in.Headers) {
		t.headers = make([]Header, max(len(in.Headers), recordsAtOnce))
	}
	n := len(in.Headers)
	r.Headers, t.headers = t.headers[:n:n], t.headers[n:]
	for i, h := range in.Headers {
		r.Headers[i].Name, r.Headers[i].Value = t.names.of(h.Key), h.Value
		if packed {
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
