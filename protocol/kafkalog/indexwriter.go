package kafkalog

import (
	"fmt"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// IndexIntervalBytes is Kafka's default for how many bytes of a segment lie between two index entries.
const IndexIntervalBytes = 4096

// noTimestamp is Kafka's mark of a batch without a time; it is in no time index.
const noTimestamp = -1

// IndexWriter makes both indexes of a segment by Kafka's rules. An entry is due when more than the interval lies between
// the last entry's batch and the batch that comes, which the entry is then about: its last offset and its position. The
// time index gets, at the same moment, the latest time so far and the last offset of the batch that has it, unless it has
// that time already; and once more on Close, so that the segment's latest time is always in it.
//
//	for each batch { w.Add(batch, position) }
//	w.Close()
//	… w.Index(), w.TimeIndex() …
//
// It is not safe for concurrent use.
type IndexWriter struct {
	base     record.Offset
	interval int64
	bytes    int64 // of the segment since the last entry
	latest   TimeIndexEntry
	written  int64 // the time of the last entry of the time index
	index    []byte
	times    []byte
}

// NewIndexWriter returns a writer for the segment that begins at base, with an entry every interval bytes;
// IndexIntervalBytes is Kafka's default.
func NewIndexWriter(base record.Offset, interval int) *IndexWriter {
	w := &IndexWriter{}
	w.Reset(base, interval)
	return w
}

// Reset makes it a writer for another segment; its memory is kept, and what Index and TimeIndex returned is void.
func (w *IndexWriter) Reset(base record.Offset, interval int) {
	*w = IndexWriter{
		base: base, interval: int64(interval),
		latest: TimeIndexEntry{MaxTimestamp: noTimestamp, Last: base}, written: noTimestamp,
		index: w.index[:0], times: w.times[:0],
	}
}

// Add takes the next batch and where it begins. Its header is enough. ErrIndex where the batch lies beyond what an index
// can express: the segment should have ended before it.
func (w *IndexWriter) Add(batch record.Batch, position int64) error {
	return w.AddExtent(IndexEntry{Last: batch.LastOffset(), Position: position}, batch.MaxTimestamp(), int64(batch.Size()))
}

// AddExtent is Add for who knows of the batch only its last offset, its position, its latest time and its size.
func (w *IndexWriter) AddExtent(e IndexEntry, maxTimestamp, size int64) error {
	if _, err := relativeTo(w.base, e.Last); err != nil {
		return fmt.Errorf("index the batch at position %d: %w", e.Position, err)
	}
	if maxTimestamp > w.latest.MaxTimestamp {
		w.latest = TimeIndexEntry{MaxTimestamp: maxTimestamp, Last: e.Last}
	}
	if w.bytes > w.interval {
		index, err := AppendIndexEntry(w.index, w.base, e)
		if err != nil {
			return fmt.Errorf("index the batch at position %d: %w", e.Position, err)
		}
		w.index, w.bytes = index, 0
		w.stamp()
	}
	w.bytes += size
	return nil
}

// Close adds the last entry of the time index. It may be called again.
func (w *IndexWriter) Close() { w.stamp() }

func (w *IndexWriter) stamp() {
	if w.latest.MaxTimestamp <= w.written {
		return
	}
	times, err := AppendTimeIndexEntry(w.times, w.base, w.latest)
	if err != nil {
		panic(err) // Add has judged the offset
	}
	w.times, w.written = times, w.latest.MaxTimestamp
}

// Index is the offset index's bytes since the beginning, or since the last Forget. They are valid until the next call of
// any method but Index and TimeIndex.
func (w *IndexWriter) Index() []byte { return w.index }

// TimeIndex is Index for the time index.
func (w *IndexWriter) TimeIndex() []byte { return w.times }

// Forget drops the bytes that Index and TimeIndex have returned, when they lie in their files.
func (w *IndexWriter) Forget() { w.index, w.times = w.index[:0], w.times[:0] }
