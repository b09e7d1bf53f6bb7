package filelog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// groupBytes is the most that the core writes before it syncs, but for a single batch that is larger: so much at the
// end of a log may be torn without anything acknowledged being lost. Zeros count like other bytes: a file system may
// keep the length of a group whose bytes it lost, but never more than that group's.
const groupBytes = 1 << 20

// scanBytes is how much of a segment is read at once.
const scanBytes = 1 << 20

// recovery is one Open without Held.
type recovery struct {
	store  *Store
	dir    string
	r      storage.OpenRequest
	epochs kafkalog.Epochs
	known  bool // epochs were read; else they are gathered from the batches
	buf    []byte

	content  content
	segments []*segment // verified so far
	next     record.Offset
}

// end is where a log stops being sound, and why.
type end struct {
	at     int // index of the segment in content.segments
	size   int64
	offset record.Offset
	reason string
	above  bool  // it is the ceiling that ends the log, not damage
	whole  int64 // size of the batch that begins there, by its own word; 0 when that cannot be believed
}

// recover finds the end of a log by scanning it from its start, and cuts it there (STORAGE §6). Every byte below the
// end is on disk when it returns.
func (s *Store) recover(ctx context.Context, r storage.OpenRequest) (storage.Opened, state, error) {
	if err := s.identify(r); err != nil {
		return storage.Opened{}, state{}, err
	}
	v := &recovery{store: s, dir: s.disk.partition(r.Partition.String()), r: r, buf: make([]byte, scanBytes)}
	var err error
	if v.content, err = s.disk.list(v.dir); err != nil {
		return storage.Opened{}, state{}, err
	}
	if len(v.content.segments) == 0 {
		return storage.Opened{}, state{}, fmt.Errorf("%w: %s holds no segment", storage.ErrDataMissing, v.dir)
	}
	old, known, err := s.epochs(v.dir)
	if err != nil {
		return storage.Opened{}, state{}, err
	}
	v.epochs, v.known = old, known
	cut, err := v.run(ctx)
	if err != nil {
		return storage.Opened{}, state{}, err
	}
	at := kafkalog.EpochEntry{Epoch: r.Epoch, Start: v.next}
	if err := s.begin(v.dir, old, v.epochs.ClipEnd(v.next), at); err != nil {
		return storage.Opened{}, state{}, err
	}
	if v.content.pending {
		if err := v.donePending(); err != nil {
			return storage.Opened{}, state{}, err
		}
	}
	opened, st, err := s.grant(r, v.segments, v.content.spare)
	opened.Cut = cut
	return opened, st, err
}

// run scans and cuts. Afterwards segments and next are what the log holds.
func (v *recovery) run(ctx context.Context) (*storage.Cut, error) {
	v.next = v.content.segments[0].base
	for i := 0; i < len(v.content.segments); i++ {
		f := v.content.segments[i]
		if i > 0 && f.size == 0 && f.base < v.next {
			// Made ready for a roll whose answer the core never got: it went on in the segment before.
			if err := v.store.disk.fs.Remove(segmentPath(v.dir, f.base)); err != nil {
				return nil, err
			}
			v.content.segments = slices.Delete(v.content.segments, i, i+1)
			i--
			continue
		}
		e, err := v.visit(ctx, i)
		if err != nil {
			return nil, fmt.Errorf("scan segment %d: %w", f.base, err)
		}
		if e != nil {
			return v.finish(ctx, *e)
		}
	}
	last := v.segments[len(v.segments)-1]
	return v.finish(ctx, end{at: len(v.content.segments) - 1, size: last.Size, offset: v.next})
}

// visit takes the i-th segment in, and says where the log ends when it ends there.
func (v *recovery) visit(ctx context.Context, i int) (*end, error) {
	f := &v.content.segments[i]
	if i > 0 && f.base != v.next {
		return &end{
			at: i - 1, size: v.segments[i-1].Size, offset: v.next,
			reason: fmt.Sprintf("segment %d follows offset %d", f.base, v.next),
		}, nil
	}
	g, e, err := v.scan(ctx, f)
	if err != nil {
		return nil, err
	}
	v.segments = append(v.segments, g)
	v.next = g.Next
	if e == nil {
		return nil, nil
	}
	e.at, e.size, e.offset = i, g.Size, g.Next
	e.whole = v.announced(g)
	return e, nil
}

// announced is the size of the batch at the end of g by its own header, where that header fits its place.
func (v *recovery) announced(g *segment) int64 {
	f, err := v.store.disk.fs.Open(segmentPath(v.dir, g.Base), vfs.Read)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }() // only read
	header := make([]byte, record.HeaderBytes)
	if n, _ := f.ReadAt(header, g.Size); n < len(header) {
		return 0
	}
	size, err := record.SizeOf(header)
	if err != nil || record.Batch(header).BaseOffset() != g.Next {
		return 0
	}
	return int64(size)
}

// scan verifies a segment from its start, reading the disk and not the cache: after a failed sync the cache may still
// show bytes that the disk never got. It corrects the size of f to what was read, and returns a nil end where all of it
// is sound.
func (v *recovery) scan(ctx context.Context, f *found) (g *segment, e *end, err error) {
	file, err := v.store.disk.fs.Open(segmentPath(v.dir, f.base), vfs.Write)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := file.Sync(); err != nil {
		return nil, nil, err
	}
	if err := v.store.disk.fs.DropCache(file, 0); err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	f.size = info.Size
	g = &segment{Segment: storage.Segment{Base: f.base, Next: f.base, MaxTimestamp: -1}}
	if e, err = v.read(ctx, file, g, f.size); err != nil {
		return nil, nil, err
	}
	return g, e, file.Sync() // before the end is reported, what was read has to be what is there
}

// read walks the batches of a file of that size and gathers them in g, up to the first that is bad or above the
// ceiling: that is the end it returns.
func (v *recovery) read(ctx context.Context, f vfs.File, g *segment, size int64) (*end, error) {
	o := kafkalog.ScanOptions{Base: g.Base, Size: size}
	if v.known {
		o.EpochFor = v.epochs.EpochFor
	}
	scanner := kafkalog.NewScanner(o)
	var batch kafkalog.Found
	for at := int64(0); at < size && scanner.Bad() == nil; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		piece := v.buf[:min(int64(len(v.buf)), size-at)]
		if n, err := f.ReadAt(piece, at); n < len(piece) {
			if errors.Is(err, io.EOF) {
				err = errUnexpectedEnd
			}
			return nil, err
		}
		at += int64(len(piece))
		scanner.Feed(piece)
		for scanner.Next(&batch) {
			if e := v.take(g, batch); e != nil {
				return e, nil
			}
		}
	}
	if bad := scanner.End(); bad != nil {
		return &end{reason: bad.Err.Error()}, nil
	}
	return nil, nil
}

// take adds a verified batch to g, unless it ends the log.
func (v *recovery) take(g *segment, b kafkalog.Found) *end {
	next := b.Batch.NextOffset()
	if v.r.Ceiling >= 0 && next > v.r.Ceiling {
		return &end{above: true, reason: fmt.Sprintf("above offset %d, the end of what was confirmed", v.r.Ceiling)}
	}
	if !v.known {
		if latest, ok := v.epochs.Latest(); ok && b.Batch.Epoch() < latest.Epoch {
			return &end{reason: fmt.Sprintf("leader epoch %d after %d", b.Batch.Epoch(), latest.Epoch)}
		}
		v.epochs, _ = v.epochs.Assign(b.Batch.Epoch(), b.Batch.BaseOffset())
	}
	g.Next, g.Size = next, b.Position+int64(len(b.Batch))
	g.MaxTimestamp = max(g.MaxTimestamp, b.Batch.MaxTimestamp())
	g.addEntries([]storage.Entry{{Last: next - 1, Position: b.Position, MaxTimestamp: b.Batch.MaxTimestamp()}})
	return nil
}

// finish judges what lies beyond e and takes it off.
func (v *recovery) finish(ctx context.Context, e end) (*storage.Cut, error) {
	later := v.content.segments[e.at+1:]
	file := v.content.segments[e.at]
	dropped := file.size - e.size
	empty := true // every later segment
	for _, f := range later {
		dropped += f.size
		empty = empty && f.size == 0
	}
	ceiling := v.r.Ceiling
	unconfirmed := e.above || ceiling >= 0 && e.offset >= ceiling // whatever lies beyond may go
	if !empty && !unconfirmed {
		valid, err := v.anyValid(ctx, later)
		if err != nil {
			return nil, err
		}
		if valid {
			return nil, v.store.setAside(v.r.Partition, fmt.Sprintf("damage in segment %d at position %d, offset %d, with records after it: %s",
				file.base, e.size, e.offset, e.reason))
		}
	}
	// An empty segment at or below the end was made ready for a roll that never came about. One above it says that
	// records were there: a segment is sealed only when it is on disk.
	lost := !empty || len(later) > 0 && later[len(later)-1].base > e.offset
	cut := storage.Cut{Offset: e.offset, Bytes: dropped, Reason: e.reason}
	switch {
	case ceiling >= 0:
		cut.Dirty = e.offset < ceiling
	default:
		cut.Dirty = lost || dropped > max(groupBytes, e.whole)
	}
	if cut.Dirty && cut.Reason == "" {
		cut.Reason = fmt.Sprintf("the log ends below offset %d, which was there", max(ceiling, e.offset+1))
	}
	cut.Dirty = cut.Dirty || v.content.pending
	if dropped > 0 || len(later) > 0 {
		if err := v.cut(&cut, file, e.size, later); err != nil {
			return nil, err
		}
	}
	if dropped == 0 && !cut.Dirty {
		return nil, nil
	}
	if cut.Reason == "" {
		cut.Reason = "an earlier cut was not finished"
	}
	v.store.log.Warn("log cut", "partition", v.r.Partition.String(), "offset", cut.Offset, "bytes", cut.Bytes,
		"reason", cut.Reason, "dirty", cut.Dirty, "saved", cut.SavedAs)
	return &cut, nil
}

// anyValid reports whether one of the segments begins with a sound batch of its own.
func (v *recovery) anyValid(ctx context.Context, segments []found) (bool, error) {
	for _, f := range segments {
		valid, err := v.beginsValid(ctx, f)
		if valid || err != nil {
			return valid, err
		}
	}
	return false, nil
}

func (v *recovery) beginsValid(ctx context.Context, f found) (bool, error) {
	file, err := v.store.disk.fs.Open(segmentPath(v.dir, f.base), vfs.Read)
	if err != nil {
		return false, err
	}
	defer func() { _ = file.Close() }() // only read
	scanner := kafkalog.NewScanner(kafkalog.ScanOptions{Base: f.base, Size: f.size})
	var batch kafkalog.Found
	for at := int64(0); at < f.size && scanner.Bad() == nil; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		piece := v.buf[:min(int64(len(v.buf)), f.size-at)]
		if n, err := file.ReadAt(piece, at); n < len(piece) {
			return false, err
		}
		at += int64(len(piece))
		scanner.Feed(piece)
		if scanner.Next(&batch) {
			return true, nil
		}
	}
	return false, nil
}

func (v *recovery) donePending() error {
	if err := v.store.disk.fs.Remove(filepath.Join(v.dir, pendingName)); err != nil {
		return err
	}
	return v.store.disk.fs.SyncDir(v.dir)
}
