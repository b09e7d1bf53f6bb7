package filelog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// progress is how far one recovery has come.
type progress struct {
	done, total int64
	logged      time.Time
}

// progressEvery is how often a recovery says in the log how far it has come.
const progressEvery = time.Second

// pass counts n bytes as seen.
func (v *recovery) pass(ctx context.Context, n int64) {
	v.progress.done += n
	v.store.scanned.Add(n)
	storage.ReportProgress(ctx, storage.Progress{Done: v.progress.done, Total: v.progress.total})
	now := time.Now()
	if v.progress.logged.IsZero() {
		v.progress.logged = now // the first line comes when it takes long
	}
	if now.Sub(v.progress.logged) >= progressEvery {
		v.progress.logged = now
		v.store.log.Info("recovering", "partition", v.r.Partition.String(),
			"percent", 100*v.progress.done/max(1, v.progress.total), "bytes", v.progress.done, "of", v.progress.total)
	}
}

// scan verifies a segment from the last place that is known to be sound, reading the disk and not the cache: after a
// failed sync the cache may still show bytes that the disk never got. It corrects the size of f to what was read, and
// returns a nil end where all of it is sound. The segment's indexes are made as far as they are not there.
func (v *recovery) scan(ctx context.Context, f *found, sealed bool) (g *segment, e *end, err error) {
	file, err := v.store.disk.fs.Open(segmentPath(v.dir, f.base), vfs.Write)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := file.Sync(); err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	f.size = info.Size
	g = &segment{Segment: storage.Segment{Base: f.base, Next: f.base, MaxTimestamp: -1}}
	w := &indexer{disk: v.store.disk, dir: v.dir, base: f.base, x: noIndexes()}
	v.resume(file, g, w, f.size)
	if err := v.store.disk.fs.DropCache(file, g.Size); err != nil {
		return nil, nil, err
	}
	v.pass(ctx, g.Size)
	if e, err = v.read(ctx, file, g, w, f.size); err != nil {
		return nil, nil, err
	}
	v.reindex(g, w, sealed && e == nil)
	return g, e, file.Sync() // before the end is reported, what was read has to be what is there
}

// resume sets g and w to the newest index entry below the recovery point whose batch lies there. Without one they stay at the
// segment's start.
func (v *recovery) resume(file vfs.File, g *segment, w *indexer, size int64) {
	if !v.known || v.limit <= g.Base {
		return
	}
	x := v.store.disk.loadIndexes(v.dir, g.Base, size, v.limit)
	if x.offsets == 0 {
		return
	}
	header := make([]byte, record.HeaderBytes)
	if n, _ := file.ReadAt(header, x.last.Position); n < len(header) {
		return
	}
	b := record.Batch(header)
	if _, err := record.SizeOf(header); err != nil || b.LastOffset() != x.last.Last || b.BaseOffset() < g.Base || b.LastDelta() < 0 || x.contradicts(b) {
		return
	}
	w.x = x
	g.Size, g.Next, g.MaxTimestamp = x.last.Position, b.BaseOffset(), x.latest.MaxTimestamp
}

// read walks the batches of a file from the end of g on and gathers them in g, up to the first that is bad or above the
// ceiling: that is the end it returns.
func (v *recovery) read(ctx context.Context, f vfs.File, g *segment, w *indexer, size int64) (*end, error) {
	scanner := v.scanner(g, size)
	var batch kafkalog.Found
	for at := g.Size; at < size; {
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
		v.pass(ctx, int64(len(piece)))
		scanner.Feed(piece)
		for {
			for scanner.Next(&batch) {
				if e := v.take(g, w, batch); e != nil {
					return e, nil
				}
			}
			bad := scanner.Bad()
			if bad == nil {
				break
			}
			next, ok := v.gap(f, bad, size)
			if !ok {
				return &end{reason: bad.Err.Error(), err: bad.Err}, nil
			}
			g.Next = next
			scanner = v.scanner(g, size)
			if bad.Position < at-int64(len(piece)) { // it began in an earlier piece, which is gone
				at = bad.Position
				break
			}
			scanner.Feed(piece[bad.Position-(at-int64(len(piece))):])
		}
	}
	if bad := scanner.End(); bad != nil {
		return &end{reason: bad.Err.Error(), err: bad.Err}, nil
	}
	return nil, nil
}

// scanner begins at the end of g.
func (v *recovery) scanner(g *segment, size int64) *kafkalog.Scanner {
	o := kafkalog.ScanOptions{Base: g.Next, Position: g.Size, Size: size}
	if v.known {
		o.EpochFor = v.epochs.EpochFor
	}
	return kafkalog.NewScanner(o)
}

// gap reports the offset at which a compacted log goes on after a batch that does not follow.
func (v *recovery) gap(f vfs.File, bad *kafkalog.BadBatch, size int64) (record.Offset, bool) {
	header := make([]byte, record.HeaderBytes)
	if !errors.Is(bad.Err, kafkalog.ErrBase) || bad.Position+record.HeaderBytes > size {
		return 0, false
	}
	if n, _ := f.ReadAt(header, bad.Position); n < len(header) {
		return 0, false
	}
	base := record.Batch(header).BaseOffset()
	return base, base > bad.Offset && base < v.gaps
}

// take adds a verified batch to g, unless it ends the log.
func (v *recovery) take(g *segment, w *indexer, b kafkalog.Found) *end {
	next := b.Batch.NextOffset()
	if v.r.Ceiling >= 0 && next > v.r.Ceiling {
		return &end{above: true, reason: fmt.Sprintf("above offset %d, the end of what was confirmed", v.r.Ceiling)}
	}
	if !v.known {
		if latest, ok := v.epochs.Latest(); ok && b.Batch.Epoch() < latest.Epoch {
			return &end{reason: fmt.Sprintf("leader epoch %d after %d", b.Batch.Epoch(), latest.Epoch)}
		}
		if b.Batch.Epoch() < 0 {
			return &end{reason: "batch without a leader epoch"}
		}
		v.epochs, _ = v.epochs.Assign(b.Batch.Epoch(), b.Batch.BaseOffset())
	}
	g.Next, g.Size = next, b.Position+int64(len(b.Batch))
	g.MaxTimestamp = max(g.MaxTimestamp, b.Batch.MaxTimestamp())
	w.batch(b.Batch, b.Position)
	return nil
}

// reindex writes what the scan found out. Indexes are caches: where they cannot be written they are made later.
func (v *recovery) reindex(g *segment, w *indexer, sealed bool) {
	if sealed {
		w.stamp()
	}
	x := w.x
	err := v.store.withReserve(func() error {
		again := *w
		return again.flush(sealed)
	})
	if err == nil && sealed {
		err = v.store.disk.fs.SyncDir(v.dir)
	}
	if g.x = x; err != nil {
		v.store.log.Warn("indexes are written later", "partition", v.r.Partition.String(), "segment", g.Base, "err", err)
		g.x = noIndexes()
		g.x.broken = true
	}
}

// gaps reads below which offset a log that came from elsewhere may lack batches.
func (d disk) gaps(dir string) (record.Offset, error) {
	text, err := d.readSmall(filepath.Join(dir, kafkalog.AdoptedBelowName))
	if err != nil {
		return 0, ignoreMissing(err)
	}
	return kafkalog.ParseAdoptedBelow(text)
}
