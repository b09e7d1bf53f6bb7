package filelog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sort"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// indexes is what is known of a segment's two index files. They are caches: read by pread, never believed before the
// batch that an entry speaks of was looked at, and made again where they lie.
type indexes struct {
	offsets, times int64                   // whole entries in the files, as far as they are of use
	last           kafkalog.IndexEntry     // the newest offset entry, where there is one
	stamped        int64                   // the time of the newest time entry; noTime where there is none
	latest         kafkalog.TimeIndexEntry // the latest time of the segment, as far as it is known; noTime where it is not
	pending        []storage.Entry         // noted, and not in the files yet
	// broken: what is in the files is of no use, and is made again from the segment.
	broken bool
}

// noTime is a time index without entries.
const noTime = -1

func noIndexes() indexes {
	return indexes{stamped: noTime, latest: kafkalog.TimeIndexEntry{MaxTimestamp: noTime}}
}

// contradicts reports whether the latest time cannot be that of the segment up to and with b.
func (x *indexes) contradicts(b record.Batch) bool {
	return b.LastOffset() == x.latest.Last && b.MaxTimestamp() != x.latest.MaxTimestamp && x.latest.MaxTimestamp != noTime
}

// pendingMax bounds the entries that wait for their file. More are left out: a lookup then reads a little further.
const pendingMax = 1 << 14

func (x *indexes) note(entries []storage.Entry) {
	room := max(0, pendingMax-len(x.pending))
	x.pending = append(x.pending, entries[:min(room, len(entries))]...)
}

// pendingFloor is the newest waiting entry below off.
func (x *indexes) pendingFloor(off record.Offset) (kafkalog.IndexEntry, bool) {
	at := sort.Search(len(x.pending), func(i int) bool { return x.pending[i].Last >= off })
	if at == 0 {
		return kafkalog.IndexEntry{}, false
	}
	return kafkalog.IndexEntry{Last: x.pending[at-1].Last, Position: x.pending[at-1].Position}, true
}

func indexPath(dir string, base record.Offset) string {
	return filepath.Join(dir, kafkalog.IndexName(base))
}

func timeIndexPath(dir string, base record.Offset) string {
	return filepath.Join(dir, kafkalog.TimeIndexName(base))
}

// indexer writes a segment's index files by Kafka's rules: an entry for a batch with more than indexInterval bytes since
// the last entry's batch, and with it the latest time so far, where it is later than the last entry's; once more the
// latest time when the segment is sealed. The files have exactly the length of their entries.
type indexer struct {
	disk disk
	dir  string
	base record.Offset
	x    indexes
	// bytes since the last entry's batch began.
	bytes         int64
	offsets, time []byte        // entries that are not in the files
	next          record.Offset // after the last batch of a walk
}

// indexInterval is Kafka's index.interval.bytes.
const indexInterval = kafkalog.IndexIntervalBytes

// batch takes the next batch, by its header.
func (w *indexer) batch(b record.Batch, position int64) {
	last := b.LastOffset()
	if t := b.MaxTimestamp(); t > w.x.latest.MaxTimestamp {
		w.x.latest = kafkalog.TimeIndexEntry{MaxTimestamp: t, Last: last}
	}
	if w.bytes > indexInterval {
		w.add(kafkalog.IndexEntry{Last: last, Position: position})
	}
	w.bytes += int64(b.Size())
}

// entry takes an entry that the core made by the same rule. One that the files have already is passed over.
func (w *indexer) entry(e storage.Entry) {
	if e.MaxTimestamp > w.x.latest.MaxTimestamp && e.MaxOffset >= w.base && e.MaxOffset <= e.Last {
		w.x.latest = kafkalog.TimeIndexEntry{MaxTimestamp: e.MaxTimestamp, Last: e.MaxOffset}
	}
	if e.Position == 0 || w.x.offsets > 0 && (e.Last <= w.x.last.Last || e.Position <= w.x.last.Position) {
		return
	}
	w.add(kafkalog.IndexEntry{Last: e.Last, Position: e.Position})
}

// add appends to both files. An entry that Kafka's form cannot express is left out.
func (w *indexer) add(e kafkalog.IndexEntry) {
	offsets, err := kafkalog.AppendIndexEntry(w.offsets, w.base, e)
	if err != nil {
		return
	}
	w.offsets, w.x.last, w.bytes = offsets, e, 0
	w.x.offsets++
	w.stamp()
}

// stamp appends the latest time, unless it is there.
func (w *indexer) stamp() {
	if w.x.latest.MaxTimestamp <= w.x.stamped {
		return
	}
	times, err := kafkalog.AppendTimeIndexEntry(w.time, w.base, w.x.latest)
	if err != nil {
		return
	}
	w.time, w.x.stamped = times, w.x.latest.MaxTimestamp
	w.x.times++
}

// flush writes what was added, and cuts off what lies beyond. With sync it is durable, but for the files' names.
func (w *indexer) flush(sync bool) error {
	at := w.x.offsets*kafkalog.IndexEntryBytes - int64(len(w.offsets))
	err := w.disk.extend(indexPath(w.dir, w.base), at, w.offsets, sync)
	if err == nil {
		at = w.x.times*kafkalog.TimeIndexEntryBytes - int64(len(w.time))
		err = w.disk.extend(timeIndexPath(w.dir, w.base), at, w.time, sync)
	}
	w.offsets, w.time = w.offsets[:0], w.time[:0]
	return err
}

// errIndexShort is an index file that became shorter than it was.
var errIndexShort = errors.New("index file is shorter than its entries")

// extend makes the file at path end with b at position at. It is made where it is missing.
func (d disk) extend(path string, at int64, b []byte, sync bool) (err error) {
	if len(b) == 0 && !sync {
		if info, err := d.fs.Stat(path); err == nil && info.Size == at || at == 0 && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	f, err := d.fs.Open(path, vfs.Write)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = d.fs.Open(path, vfs.Create)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size < at {
		return fmt.Errorf("%s: %w: %d bytes of %d", path, errIndexShort, info.Size, at)
	}
	if info.Size > at {
		if err := f.Truncate(at); err != nil {
			return err
		}
	}
	if len(b) > 0 {
		if _, err := f.WriteAt(b, at); err != nil {
			return err
		}
	}
	if !sync {
		return nil
	}
	return f.Sync()
}

// removeIndexes removes both index files of a segment, where they are.
func (d disk) removeIndexes(dir string, base record.Offset) error {
	return errors.Join(d.removeQuietly(indexPath(dir, base)), d.removeQuietly(timeIndexPath(dir, base)))
}

// loadIndexes reads what an earlier process left of a segment's indexes, as far as it is in order, speaks of offsets
// below next and positions below size, and tells the latest time up to its last entry. What is not there is none.
//
// The two files are not synced while the segment is written, so one of them may have lost more than the other. The
// newest time tells how far both can be believed: at the last offset entry not above it, the newest time entry not above
// that one is the latest time of the segment so far.
func (d disk) loadIndexes(dir string, base record.Offset, size int64, next record.Offset) indexes {
	x := noIndexes()
	var newest kafkalog.TimeIndexEntry
	d.eachTime(dir, base, func(e kafkalog.TimeIndexEntry) bool {
		if e.Last >= next {
			return false
		}
		newest = e
		return true
	})
	d.eachOffset(dir, base, func(e kafkalog.IndexEntry) bool {
		if e.Last > newest.Last || e.Last >= next || e.Position >= size {
			return false
		}
		x.offsets++
		x.last = e
		return true
	})
	if x.offsets == 0 {
		return noIndexes()
	}
	d.eachTime(dir, base, func(e kafkalog.TimeIndexEntry) bool {
		if e.Last > x.last.Last {
			return false
		}
		x.times++
		x.latest, x.stamped = e, e.MaxTimestamp
		return true
	})
	if x.times == 0 {
		return noIndexes()
	}
	return x
}

// eachOffset reads an offset index up to the first entry that is out of order, or that use refuses.
func (d disk) eachOffset(dir string, base record.Offset, use func(kafkalog.IndexEntry) bool) {
	last := kafkalog.IndexEntry{Last: base - 1}
	d.each(indexPath(dir, base), kafkalog.IndexEntryBytes, func(raw []byte) bool {
		e, err := kafkalog.ParseIndexEntry(raw, base)
		if err != nil || e.Last <= last.Last || e.Position <= last.Position {
			return false
		}
		last = e
		return use(e)
	})
}

func (d disk) eachTime(dir string, base record.Offset, use func(kafkalog.TimeIndexEntry) bool) {
	last := kafkalog.TimeIndexEntry{MaxTimestamp: noTime, Last: base - 1}
	d.each(timeIndexPath(dir, base), kafkalog.TimeIndexEntryBytes, func(raw []byte) bool {
		e, err := kafkalog.ParseTimeIndexEntry(raw, base)
		if err != nil || e.MaxTimestamp <= last.MaxTimestamp || e.Last <= last.Last {
			return false
		}
		last = e
		return use(e)
	})
}

// entriesAtOnce is how many entries are read at a time.
const entriesAtOnce = 4096

// each reads the whole entries of an index file. A file that cannot be read has none: an index can be made again.
func (d disk) each(path string, size int64, use func([]byte) bool) {
	f, err := d.fs.Open(path, vfs.Read)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }() // only read
	buf := make([]byte, entriesAtOnce*size)
	for at := int64(0); ; at += int64(len(buf)) {
		n, err := f.ReadAt(buf, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return
		}
		for raw := buf[:n]; int64(len(raw)) >= size; raw = raw[size:] {
			if !use(raw[:size]) {
				return
			}
		}
		if n < len(buf) {
			return
		}
	}
}

// sealedIndexes reads the ends of a sealed segment's indexes: they were synced before the recovery point left it.
func (d disk) sealedIndexes(dir string, g storage.Segment) (indexes, error) {
	x := noIndexes()
	raw, n, err := d.lastEntry(indexPath(dir, g.Base), kafkalog.IndexEntryBytes)
	if err != nil {
		return x, err
	}
	if x.offsets = n; n > 0 {
		if x.last, err = kafkalog.ParseIndexEntry(raw, g.Base); err != nil {
			return x, err
		}
	}
	if raw, n, err = d.lastEntry(timeIndexPath(dir, g.Base), kafkalog.TimeIndexEntryBytes); err != nil {
		return x, err
	}
	if n == 0 {
		return x, fmt.Errorf("%w: no time of a sealed segment", kafkalog.ErrIndex)
	}
	x.times = n
	if x.latest, err = kafkalog.ParseTimeIndexEntry(raw, g.Base); err != nil {
		return x, err
	}
	x.stamped = x.latest.MaxTimestamp
	if x.offsets > 0 && (x.last.Last >= g.Next || x.last.Position >= g.Size || x.last.Position == 0) || x.latest.Last >= g.Next {
		return x, fmt.Errorf("%w: its last entry lies outside the segment", kafkalog.ErrIndex)
	}
	return x, nil
}

// lastEntry reads the last entry of an index file, and how many there are.
func (d disk) lastEntry(path string, size int64) ([]byte, int64, error) {
	f, err := d.fs.Open(path, vfs.Read)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil || info.Size == 0 {
		return nil, 0, err
	}
	if info.Size%size != 0 {
		return nil, 0, fmt.Errorf("%w: %d bytes", kafkalog.ErrIndex, info.Size)
	}
	raw := make([]byte, size)
	if _, err := f.ReadAt(raw, info.Size-size); err != nil {
		return nil, 0, err
	}
	return raw, info.Size / size, nil
}

// floor finds the newest of the first n entries of an offset index that is below off, by bisection.
func (d disk) floor(dir string, base, off record.Offset, n int64) (kafkalog.IndexEntry, bool) {
	if n == 0 {
		return kafkalog.IndexEntry{}, false
	}
	f, err := d.fs.Open(indexPath(dir, base), vfs.Read)
	if err != nil {
		return kafkalog.IndexEntry{}, false // the segment's start will do
	}
	defer func() { _ = f.Close() }() // only read
	raw := make([]byte, kafkalog.IndexEntryBytes)
	entry := func(i int) (e kafkalog.IndexEntry, ok bool) {
		if k, _ := f.ReadAt(raw, int64(i)*kafkalog.IndexEntryBytes); k < len(raw) {
			return e, false
		}
		e, err := kafkalog.ParseIndexEntry(raw, base)
		return e, err == nil
	}
	at := sort.Search(int(n), func(i int) bool {
		e, ok := entry(i)
		return !ok || e.Last >= off
	})
	if at == 0 {
		return kafkalog.IndexEntry{}, false
	}
	return entry(at - 1)
}
