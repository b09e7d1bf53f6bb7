package storagetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Patience is how long the suite waits for any one call.
const Patience = time.Minute

// Part returns the partition that most cases use.
func Part() storage.Partition {
	return storage.Partition{Topic: "orders", TopicID: "0123456789abcdef0123456789abcdef", ID: 2}
}

// Recover returns the request of a core that holds nothing.
func Recover(p storage.Partition, instance string) storage.OpenRequest {
	return storage.OpenRequest{Partition: p, Instance: instance, Epoch: 1, SegmentBytes: 1 << 20, Ceiling: -1}
}

// Creating is Recover of a partition that may not be there yet.
func Creating(p storage.Partition, instance string) storage.OpenRequest {
	r := Recover(p, instance)
	r.Create = true
	return r
}

// Writer is a core in small: it appends to one partition through what it was lent.
type Writer struct {
	t         TB
	store     storage.Store
	part      storage.Partition
	instance  string
	leader    record.Epoch
	lease     storage.Lease
	file      vfs.File
	next      record.Offset
	position  int64
	timestamp int64
	entries   []storage.Entry
	since     int64 // bytes since the last entry's batch began
	pinned    bool  // the store's files last as long as they are open: sealed ones are kept
	sealed    []storage.HeldSegment
}

// NewWriter opens the partition and takes the lease.
func NewWriter(t TB, store storage.Store, r storage.OpenRequest) (*Writer, storage.Opened) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	opened, err := store.Open(ctx, r)
	if err != nil {
		t.Fatalf("open %s: %v", r.Partition, err)
	}
	w := &Writer{t: t, store: store, part: r.Partition, instance: r.Instance, leader: r.Epoch, pinned: isPinned(ctx, t, store)}
	t.Cleanup(w.Let)
	w.take(opened.Lease)
	return w, opened
}

func isPinned(ctx context.Context, t TB, store storage.Store) bool {
	t.Helper()
	d, err := store.Describe(ctx)
	if err != nil {
		t.Fatalf("describe: %v", err)
	}
	if err := d.Canary.Close(); err != nil {
		t.Fatalf("close the canary: %v", err)
	}
	return d.Pinned
}

// take begins to write through a lease, by a description of its own, as the core does.
func (w *Writer) take(l storage.Lease) {
	w.t.Helper()
	if l.File != nil {
		w.keep(l)
		f, err := vfs.OS().Reopen(vfs.FromFd(int(l.File.Fd()), "lent"))
		if err := errors.Join(err, l.File.Close()); err != nil {
			w.t.Fatalf("reopen what was lent: %v", err)
		}
		w.file = f
	}
	info, err := w.file.Stat()
	if err != nil {
		w.t.Fatalf("stat what was lent: %v", err)
	}
	if !info.Regular || info.Dev != l.Dev || info.Ino != l.Ino {
		w.t.Fatalf("lent file is %+v, the lease says %d:%d", info, l.Dev, l.Ino)
	}
	if l.File != nil && info.Size != l.Position {
		w.t.Fatalf("lent file has %d bytes, the lease says %d", info.Size, l.Position)
	}
	w.lease, w.next, w.position = l, l.Next, l.Position
}

// keep puts the file of a segment that was rolled aside where it has to stay open, and closes it where not.
func (w *Writer) keep(next storage.Lease) {
	if !w.pinned || w.file == nil || next.Base <= w.lease.Base {
		w.letActive()
		return
	}
	w.sealed = append(w.sealed, storage.HeldSegment{
		Segment: storage.Segment{Base: w.lease.Base, Next: w.next, Size: w.position, MaxTimestamp: w.timestamp},
		File:    kept{w.file},
	})
	w.file = nil
}

// kept is a file of the writer's as it is handed back.
type kept struct{ file vfs.File }

// Fd is the descriptor.
func (k kept) Fd() uintptr { return uintptr(k.file.Fd()) }

// Close closes it.
func (k kept) Close() error { return k.file.Close() }

// Let closes the writer's descriptors, as a core does that died.
func (w *Writer) Let() {
	w.letActive()
	for _, s := range w.sealed {
		_ = s.File.Close()
	}
	w.sealed = nil
}

func (w *Writer) letActive() {
	if w.file != nil {
		_ = w.file.Close()
		w.file = nil
	}
}

// Batch encodes values as one batch.
func Batch(base record.Offset, leader record.Epoch, timestamp int64, values ...string) record.Batch {
	var b record.Builder
	b.Reset(nil)
	for _, v := range values {
		b.Append(&record.Record{Timestamp: timestamp, Value: []byte(v)})
	}
	return b.Finish(base, leader)
}

// indexInterval is how many bytes lie between two entries of a note at least, as in a core.
const indexInterval = 4096

// Append writes and syncs values as one batch.
func (w *Writer) Append(values ...string) {
	w.t.Helper()
	w.timestamp++
	batch := Batch(w.next, w.leader, w.timestamp, values...)
	w.Raw(batch, w.position)
	if w.since > indexInterval {
		w.since = 0
		w.entries = append(w.entries, storage.Entry{
			Last: batch.LastOffset(), Position: w.position, MaxTimestamp: batch.MaxTimestamp(), MaxOffset: batch.LastOffset(),
		})
	}
	w.since += int64(len(batch))
	w.position += int64(len(batch))
	w.next = batch.NextOffset()
}

// Raw writes bytes at a position and syncs them; the writer's end stays where it is.
func (w *Writer) Raw(p []byte, at int64) {
	w.t.Helper()
	if _, err := w.file.WriteAt(p, at); err != nil {
		w.t.Fatalf("write: %v", err)
	}
	if err := w.file.Sync(); err != nil {
		w.t.Fatalf("sync: %v", err)
	}
}

// Next is the offset after the last record written.
func (w *Writer) Next() record.Offset { return w.next }

// Position is the end of what was written.
func (w *Writer) Position() int64 { return w.position }

// Lease is the newest lease.
func (w *Writer) Lease() storage.Lease { return w.lease }

// Held is what a living core says it holds.
func (w *Writer) Held() *storage.Held {
	h := &storage.Held{
		Lease: w.lease.Epoch, Base: w.lease.Base, Position: w.position, Next: w.next, Dev: w.lease.Dev, Ino: w.lease.Ino,
	}
	if w.pinned {
		h.File, h.Sealed, h.MaxTimestamp = kept{w.file}, w.sealed, w.timestamp
		if len(w.sealed) > 0 {
			h.LogStart = w.sealed[0].Base
		} else {
			h.LogStart = h.Base
		}
	}
	return h
}

// Readopt goes on with another instance of the store, holding what it held.
func (w *Writer) Readopt(store storage.Store) storage.Opened {
	w.t.Helper()
	r := Recover(w.part, w.instance)
	r.Epoch, r.Held = w.leader, w.Held()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	opened, err := store.Open(ctx, r)
	if err != nil {
		w.t.Fatalf("re-adopt %s: %v", w.part, err)
	}
	if opened.Lease.Epoch <= w.lease.Epoch {
		w.t.Fatalf("re-adopted under lease %d, held %d", opened.Lease.Epoch, w.lease.Epoch)
	}
	w.store = store
	w.take(opened.Lease)
	return opened
}

// NoteRequest says what was written since the last note.
func (w *Writer) NoteRequest() storage.Note {
	return storage.Note{
		Partition: w.part, Instance: w.instance, Lease: w.lease.Epoch, Position: w.position, Next: w.next, Entries: w.entries,
	}
}

// Note sends NoteRequest.
func (w *Writer) Note() {
	w.t.Helper()
	if err := w.store.Note(context.Background(), w.NoteRequest()); err != nil {
		w.t.Fatalf("note: %v", err)
	}
	w.entries = nil
}

// RollRequest seals what was written.
func (w *Writer) RollRequest() storage.RollRequest {
	return storage.RollRequest{
		Partition: w.part, Instance: w.instance, Lease: w.lease.Epoch,
		Position: w.position, Next: w.next, MaxTimestamp: w.timestamp,
	}
}

// Roll goes on in the next segment.
func (w *Writer) Roll() {
	w.t.Helper()
	if err := w.TryRoll(); err != nil {
		w.t.Fatalf("roll: %v", err)
	}
}

// TryRoll is Roll from a store that may be dying: where it fails, the writer stays in the segment it has.
func (w *Writer) TryRoll() error {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	lease, err := w.store.Roll(ctx, w.RollRequest())
	if err != nil {
		return err
	}
	if lease.Base != w.next || lease.Epoch <= w.lease.Epoch {
		w.t.Fatalf("rolled to %+v from offset %d under lease %d", lease, w.next, w.lease.Epoch)
	}
	w.entries, w.since = nil, 0
	w.take(lease)
	return nil
}

// Surrender gives the lease back.
func (w *Writer) Surrender() {
	w.t.Helper()
	err := w.store.Close(context.Background(), storage.CloseRequest{
		Partition: w.part, Instance: w.instance, Lease: w.lease.Epoch, Position: w.position, Next: w.next,
	})
	if err != nil {
		w.t.Fatalf("close: %v", err)
	}
	w.Let()
}

// Reopen takes the lease again after Surrender.
func (w *Writer) Reopen() storage.Opened {
	w.t.Helper()
	r := Recover(w.part, w.instance)
	r.Epoch = w.leader
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	opened, err := w.store.Open(ctx, r)
	if err != nil {
		w.t.Fatalf("open %s again: %v", w.part, err)
	}
	w.Resume(opened)
	return opened
}

// Resume goes on with a lease that came another way.
func (w *Writer) Resume(o storage.Opened) {
	w.t.Helper()
	w.entries, w.since = nil, 0
	w.take(o.Lease)
}

// Read returns the values of a log from offset 0 up to end, by Locate, and checks every batch.
func Read(t TB, store storage.Store, p storage.Partition, end record.Offset) []string {
	t.Helper()
	return ReadFrom(t, store, p, Span{End: end})
}

// Span is offsets [From, End).
type Span struct{ From, End record.Offset }

// ReadFrom is Read of a span that begins with a batch.
func ReadFrom(t TB, store storage.Store, p storage.Partition, s Span) []string {
	t.Helper()
	var values []string
	for off := s.From; off < s.End; {
		batch := batchAt(t, store, p, off)
		if batch.BaseOffset() != off {
			t.Fatalf("batch for %s@%d begins at %d", p, off, batch.BaseOffset())
		}
		it := record.NewIterator(batch)
		var r record.Record
		for {
			if _, ok := it.Next(&r); !ok {
				break
			}
			values = append(values, string(r.Value))
		}
		if err := it.Err(); err != nil {
			t.Fatalf("records of %s@%d: %v", p, off, err)
		}
		off = batch.NextOffset()
	}
	return values
}

// batchAt returns the checked batch that holds off.
func batchAt(t TB, store storage.Store, p storage.Partition, off record.Offset) record.Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	e, err := store.Locate(ctx, storage.LocateRequest{Partition: p, Offset: off})
	if err != nil {
		t.Fatalf("locate %s@%d: %v", p, off, err)
	}
	defer func() { _ = e.File.Close() }() // only read
	batch, err := readBatch(vfs.FromFd(int(e.File.Fd()), "lent"), e.Position)
	if err != nil {
		t.Fatalf("batch of %s@%d at position %d of segment %d: %v", p, off, e.Position, e.Base, err)
	}
	if batch.BaseOffset() != e.Offset || batch.LastOffset() < off {
		t.Fatalf("batch for %s@%d holds [%d, %d), the extent says %d", p, off, batch.BaseOffset(), batch.NextOffset(), e.Offset)
	}
	return batch
}

func readBatch(f vfs.File, at int64) (record.Batch, error) {
	header := make([]byte, record.HeaderBytes)
	if _, err := f.ReadAt(header, at); err != nil {
		return nil, err
	}
	size, err := record.SizeOf(header)
	if err != nil {
		return nil, err
	}
	batch := make(record.Batch, size)
	if n, err := f.ReadAt(batch, at); n < size {
		if errors.Is(err, io.EOF) {
			err = record.ErrShort
		}
		return nil, fmt.Errorf("%d of %d bytes: %w", n, size, err)
	}
	return batch, batch.Check()
}
