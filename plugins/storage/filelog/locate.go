package filelog

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Locate implements storage.Store. In the active segment it goes as far as notes tell.
func (s *Store) Locate(ctx context.Context, r storage.LocateRequest) (storage.Extent, error) {
	p, err := s.find(r.Partition)
	if err != nil {
		return storage.Extent{}, err
	}
	g, found, from, err := p.segmentOf(r)
	if err != nil {
		return storage.Extent{}, fmt.Errorf("locate %s@%d: %w", p.name, r.Offset, err)
	}
	f, err := s.disk.fs.Open(segmentPath(s.disk.partition(p.name), found.Base), vfs.Read)
	if err != nil {
		return storage.Extent{}, fmt.Errorf("locate %s@%d: %w", p.name, r.Offset, err)
	}
	e := storage.Extent{Segment: found, Position: found.Size, Offset: found.Next}
	if r.Offset < found.Next {
		w := walk{file: f, segment: found}
		e.Position, e.Offset, err = w.find(ctx, from, r.Offset)
		if err != nil && from > 0 && ctx.Err() == nil {
			// The index is a cache and may lie; the segment's start cannot.
			s.log.Warn("index entry of no use", "partition", p.name, "segment", found.Base, "position", from, "err", err)
			w.passed = nil
			e.Position, e.Offset, err = w.find(ctx, 0, r.Offset)
		}
		p.learn(g, w.passed)
	}
	if err != nil {
		return storage.Extent{}, fmt.Errorf("locate %s@%d: %w", p.name, r.Offset, errors.Join(err, f.Close()))
	}
	e.File = &Lent{file: f}
	return e, nil
}

// segmentOf finds the segment that holds an offset, as it is now, and where in it to begin to look.
func (p *part) segmentOf(r storage.LocateRequest) (*segment, storage.Segment, int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &p.state
	if len(st.segments) == 0 || st.topicID != r.Partition.TopicID {
		return nil, storage.Segment{}, 0, storage.ErrNotOpen
	}
	after := sort.Search(len(st.segments), func(i int) bool { return st.segments[i].Base > r.Offset })
	if after == 0 || after == len(st.segments) && !st.held {
		return nil, storage.Segment{}, 0, storage.ErrOffsetOutOfRange
	}
	g := st.segments[after-1]
	return g, g.Segment, g.floor(r.Offset), nil
}

// learn adds what a walk passed to the index of the segment it walked.
func (p *part) learn(g *segment, passed []storage.Entry) {
	if len(passed) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	g.addEntries(passed)
}

// walkBytes is how much a walk reads at once: enough to pass an index interval in one or two reads.
const walkBytes = 64 << 10

// walk goes from batch header to batch header. It checks no checksum: who reads the batch does.
type walk struct {
	file    vfs.File
	segment storage.Segment
	buf     []byte
	at      int64           // position of buf[0]
	passed  []storage.Entry // for the index
}

// find returns the batch that holds off, from the batch at position on.
func (w *walk) find(ctx context.Context, position int64, off record.Offset) (int64, record.Offset, error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		b, err := w.header(position)
		if err != nil {
			return 0, 0, fmt.Errorf("batch header at position %d of segment %d: %w", position, w.segment.Base, err)
		}
		if b.BaseOffset() < w.segment.Base || b.BaseOffset() > off || b.LastDelta() < 0 {
			return 0, 0, fmt.Errorf("batch at position %d of segment %d has base offset %d", position, w.segment.Base, b.BaseOffset())
		}
		if b.LastOffset() >= off {
			return position, b.BaseOffset(), nil
		}
		if n := len(w.passed); n == 0 || position-w.passed[n-1].Position >= indexBytes {
			w.passed = append(w.passed, storage.Entry{Last: b.LastOffset(), Position: position, MaxTimestamp: b.MaxTimestamp()})
		}
		position += int64(b.Size())
	}
}

// header returns the header of the batch at position, valid until the next call.
func (w *walk) header(position int64) (record.Batch, error) {
	if position+record.HeaderBytes > w.segment.Size {
		return nil, record.ErrShort
	}
	if lo := position - w.at; lo < 0 || lo+record.HeaderBytes > int64(len(w.buf)) {
		if cap(w.buf) == 0 {
			w.buf = make([]byte, walkBytes)
		}
		w.buf = w.buf[:min(walkBytes, w.segment.Size-position)]
		if n, err := w.file.ReadAt(w.buf, position); n < len(w.buf) {
			w.buf = w.buf[:0]
			return nil, err
		}
		w.at = position
	}
	b := w.buf[position-w.at:]
	if _, err := record.SizeOf(b); err != nil {
		return nil, err
	}
	return record.Batch(b), nil
}
