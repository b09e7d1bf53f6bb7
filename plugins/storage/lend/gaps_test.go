package lend_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// sparse is a batch that holds some of the offsets [base, next), as compaction leaves it.
func sparse(base, next record.Offset, holds ...record.Offset) record.Batch {
	var b record.Builder
	b.Reset(nil)
	for _, off := range holds {
		b.Append(&record.Record{Timestamp: 1, Value: fmt.Appendf(nil, "v%d", off)})
	}
	if len(holds) == 0 {
		b.Append(&record.Record{Timestamp: 1}) // and taken out again
	}
	batch := b.Finish(base, 0)
	at := record.HeaderBytes
	for _, off := range holds { // the builder counts up; every delta here is one byte, as its varint is
		length, n := binary.Varint(batch[at:])
		batch[at+n+2] = byte((off - base) << 1)
		at += n + int(length)
	}
	binary.BigEndian.PutUint32(batch[23:], uint32(next-base-1))
	if len(holds) == 0 {
		batch = slices.Clip(batch[:record.HeaderBytes])
		binary.BigEndian.PutUint32(batch[8:], record.HeaderBytes-12)
		binary.BigEndian.PutUint32(batch[57:], 0)
	}
	binary.BigEndian.PutUint32(batch[17:], crc32.Checksum(batch[21:], crc32.MakeTable(crc32.Castagnoli)))
	return batch
}

// adoptGaps puts a compacted log where it can be adopted and opens it. It holds offsets 1, 5, 31, 32, 60 and 70.
func (b *bench) adoptGaps() *lend.Log {
	b.t.Helper()
	dir := filepath.Join(b.data, "adopt", "t-0")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	for base, batches := range map[record.Offset][]record.Batch{
		0:  {sparse(0, 4, 1), sparse(5, 6, 5)},       // 4 is missing between them, 6 to 19 behind
		20: {},                                       // all of it is gone
		30: {sparse(31, 40, 31, 32), sparse(45, 50)}, // nothing is left of the last batch
		60: {sparse(60, 61, 60), sparse(70, 71, 70)},
	} {
		var file []byte
		for _, batch := range batches {
			file = append(file, batch...)
		}
		if err := os.WriteFile(filepath.Join(dir, kafkalog.SegmentName(base)), file, 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
	l, _, err := b.dir.Open(context.Background(), part, lend.OpenOptions{
		Create: true, Adopt: true, Epoch: 1, Settings: lend.Settings{SegmentBytes: 1 << 20},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return l
}

var gapsHeld = []record.Offset{1, 5, 31, 32, 60, 70}

// heldFrom are the offsets that a read from off on finds.
func heldFrom(off record.Offset) []record.Offset {
	at, _ := slices.BinarySearch(gapsHeld, off)
	return gapsHeld[at:]
}

// offsets adds the records of a batch from off on.
func offsets(got []record.Offset, batch record.Batch, off record.Offset) []record.Offset {
	var r record.Record
	for it := record.NewIterator(batch); ; {
		o, ok := it.Next(&r)
		if !ok {
			return got
		}
		if o >= off && string(r.Value) == fmt.Sprintf("v%d", o) {
			got = append(got, o)
		}
	}
}

func TestCompactedLogIsReadFromEveryOffset(t *testing.T) {
	b := newBench(t)
	l := b.adoptGaps()
	ctx := context.Background()
	check := func(t *testing.T) {
		t.Helper()
		for off := range record.Offset(71) {
			r, err := l.NewReader(ctx, off)
			if err != nil {
				t.Fatalf("from %d: %v", off, err)
			}
			var got []record.Offset
			for {
				batch, err := r.Next(ctx, 71)
				if errors.Is(err, lend.ErrEnd) {
					break
				}
				if err != nil {
					t.Fatalf("from %d: %v", off, err)
				}
				got = offsets(got, batch, off)
			}
			if !slices.Equal(got, heldFrom(off)) {
				t.Errorf("from %d: %v", off, got)
			}
		}
	}
	check(t)
	mustAdd(t, l, "v71")
	b.restartStore()
	check(t)
	if err := l.Close(ctx); err != nil {
		t.Fatal(err)
	}
	l, _, err := b.dir.Open(ctx, part, lend.OpenOptions{Epoch: 2, Settings: lend.Settings{SegmentBytes: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	check(t)
	want(t, read(t, l, 71), "v71")
}

func TestCompactedLogIsFetchedFromEveryOffset(t *testing.T) {
	b := newBench(t)
	l := b.adoptGaps()
	ctx := context.Background()
	for _, limit := range []int64{1, 1 << 20} {
		for off := range record.Offset(71) {
			var got []record.Offset
			for at := off; ; {
				e, err := l.Extent(ctx, at, 71, limit)
				if errors.Is(err, lend.ErrEnd) {
					break
				}
				if err != nil {
					t.Fatalf("from %d: %v", at, err)
				}
				if e.Next <= at {
					t.Fatalf("from %d: [%d, %d)", at, e.Base, e.Next)
				}
				for _, o := range gapsHeld {
					if o >= max(at, e.Base) && o < e.Next {
						got = append(got, o)
					}
				}
				at = e.Next
				e.Release()
			}
			if !slices.Equal(got, heldFrom(off)) {
				t.Errorf("limit %d, from %d: %v", limit, off, got)
			}
		}
	}
}

// TestGapsAboveTheAdoptedLogAreDamage moves a batch up that was written here.
func TestGapsAboveTheAdoptedLogAreDamage(t *testing.T) {
	b := newBench(t)
	l := b.adoptGaps()
	at := l.Stats().Bytes
	mustAdd(t, l, "a")
	mustAdd(t, l, "b")
	path := filepath.Join(b.data, "logs", "t-0", kafkalog.SegmentName(60))
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, base := range []record.Offset{0, 30} {
		at -= fileSize(t, filepath.Join(b.data, "logs", "t-0", kafkalog.SegmentName(base)))
	}
	record.Batch(file[at:]).SetBase(72)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(file[at:], at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := l.NewReader(context.Background(), 70)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(context.Background(), l.End()); err != nil {
		t.Fatal(err)
	}
	var damage *lend.CorruptError
	if _, err := r.Next(context.Background(), l.End()); !errors.As(err, &damage) || damage.Offset != 71 {
		t.Errorf("got %v", err)
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
