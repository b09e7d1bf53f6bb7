package filelog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Locate implements storage.Store. In the active segment it goes as far as notes tell.
func (s *Store) Locate(ctx context.Context, r storage.LocateRequest) (storage.Extent, error) {
	p, err := s.find(r.Partition)
	if err != nil {
		return storage.Extent{}, err
	}
	g, found, err := p.segmentOf(r)
	if err != nil {
		return storage.Extent{}, fmt.Errorf("locate %s@%d: %w", p.name, r.Offset, err)
	}
	f, err := s.disk.fs.Open(segmentPath(s.disk.partition(p.name), found.Base), vfs.Read)
	if err != nil {
		return storage.Extent{}, fmt.Errorf("locate %s@%d: %w", p.name, r.Offset, err)
	}
	e := storage.Extent{Segment: found, Position: found.Size, Offset: found.Next}
	if r.Offset < found.Next {
		e.Position, e.Offset, err = s.search(ctx, place{part: p, segment: g, known: found}, f, r.Offset)
	}
	if err != nil {
		return storage.Extent{}, fmt.Errorf("locate %s@%d: %w", p.name, r.Offset, errors.Join(err, f.Close()))
	}
	e.File = &Lent{file: f}
	return e, nil
}

// place is a segment and what was known of it when it was looked up.
type place struct {
	part    *part
	segment *segment
	known   storage.Segment
}

// search looks in f for the batch that holds off, from the nearest index entry on.
func (s *Store) search(ctx context.Context, in place, f vfs.File, off record.Offset) (int64, record.Offset, error) {
	from := s.nearest(in, off)
	w := walk{file: f, segment: in.known}
	position, base, err := w.find(ctx, from, off)
	if err == nil || from.Position == 0 || ctx.Err() != nil {
		return position, base, err
	}
	// The index is a cache and may lie; the segment's start cannot.
	s.log.Warn("index entry of no use", "partition", in.part.name, "segment", in.known.Base, "position", from.Position, "err", err)
	in.part.breakIndex(in.segment)
	s.tidying.push(in.part.name)
	return w.find(ctx, kafkalog.IndexEntry{}, off)
}

// nearest is the newest index entry below off; the zero entry where there is none.
func (s *Store) nearest(in place, off record.Offset) kafkalog.IndexEntry {
	in.part.mu.Lock()
	x := &in.segment.x
	e, ok := x.pendingFloor(off)
	n := x.offsets
	if x.broken {
		n = 0
	}
	in.part.mu.Unlock()
	if ok {
		return e
	}
	e, _ = s.disk.floor(s.disk.partition(in.part.name), in.known.Base, off, n)
	return e
}

// breakIndex says that g's indexes lie and have to be made again.
func (p *part) breakIndex(g *segment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g.x.broken, g.x.pending = true, nil
}

// segmentOf finds the segment that holds an offset, as it is now.
func (p *part) segmentOf(r storage.LocateRequest) (*segment, storage.Segment, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &p.state
	if len(st.segments) == 0 || st.which.TopicID != r.Partition.TopicID {
		return nil, storage.Segment{}, storage.ErrNotOpen
	}
	after := sort.Search(len(st.segments), func(i int) bool { return st.segments[i].Base > r.Offset })
	if after == 0 || r.Offset < st.logStart || after == len(st.segments) && !st.held {
		return nil, storage.Segment{}, storage.ErrOffsetOutOfRange
	}
	g := st.segments[after-1]
	return g, g.Segment, nil
}

// walkBytes is how much a walk reads at once among small batches, and walkStepBytes among large ones, of which it needs
// the headers only.
const (
	walkBytes     = 64 << 10
	walkStepBytes = 4 << 10
)

// walk goes from batch header to batch header. It checks no checksum: who reads the batch does.
type walk struct {
	file    vfs.File
	segment storage.Segment
	buf     []byte
	at      int64 // position of buf[0]
	jump    bool  // the last batch was larger than a step
}

var errIndexLies = errors.New("index entry speaks of another batch")

// find returns the batch that holds off, from an index entry or, with the zero entry, from the segment's start on. Where
// compaction left no batch with off, it is the one before, or the segment's start.
func (w *walk) find(ctx context.Context, from kafkalog.IndexEntry, off record.Offset) (int64, record.Offset, error) {
	before, base := int64(0), w.segment.Base
	for position := from.Position; ; {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		if position == w.segment.Size && position > from.Position {
			return before, base, nil // the last offsets of the segment are gone
		}
		b, err := w.header(position)
		if err != nil {
			return 0, 0, fmt.Errorf("batch header at position %d of segment %d: %w", position, w.segment.Base, err)
		}
		switch {
		case position > 0 && position == from.Position && b.LastOffset() != from.Last:
			return 0, 0, fmt.Errorf("%w: at position %d of segment %d offset %d ends, not %d", errIndexLies, position, w.segment.Base, b.LastOffset(), from.Last)
		case b.BaseOffset() < base || b.BaseOffset() >= w.segment.Next || b.LastDelta() < 0:
			return 0, 0, fmt.Errorf("batch at position %d of segment %d has base offset %d", position, w.segment.Base, b.BaseOffset())
		case b.BaseOffset() > off:
			return before, base, nil
		case b.LastOffset() >= off:
			return position, b.BaseOffset(), nil
		}
		before, base = position, b.BaseOffset()
		position += int64(b.Size())
	}
}

// header returns the header of the batch at position, valid until the next call.
func (w *walk) header(position int64) (record.Batch, error) {
	if position+record.HeaderBytes > w.segment.Size {
		return nil, record.ErrShort
	}
	if lo := position - w.at; lo < 0 || lo+record.HeaderBytes > int64(len(w.buf)) {
		size := int64(walkBytes)
		if w.jump {
			size = walkStepBytes
		}
		size = min(size, w.segment.Size-position)
		w.buf = slices.Grow(w.buf[:0], int(size))[:size]
		if n, err := w.file.ReadAt(w.buf, position); n < len(w.buf) {
			w.buf = w.buf[:0]
			return nil, err
		}
		w.at = position
	}
	b := w.buf[position-w.at:]
	size, err := record.SizeOf(b)
	if err != nil {
		return nil, err
	}
	w.jump = size > walkStepBytes
	return record.Batch(b), nil
}
