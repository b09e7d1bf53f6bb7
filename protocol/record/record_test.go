package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	kafka "github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// cases are batches worth telling apart; every codec test runs on all of them.
func cases() map[string][]Record {
	rng := rand.New(rand.NewPCG(1, 2))
	blob := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		return p
	}
	many := make([]Record, 3000)
	for i := range many {
		many[i] = Record{Timestamp: 1_700_000_000_000 + int64(rng.IntN(100_000)) - 50_000, Key: blob(rng.IntN(20)), Value: blob(rng.IntN(300))}
	}
	return map[string][]Record{
		"one":             {{Timestamp: 5, Key: []byte("k"), Value: []byte("v")}},
		"null and empty":  {{Key: nil, Value: nil}, {Key: []byte{}, Value: []byte{}}, {Key: nil, Value: []byte{}}},
		"earlier later":   {{Timestamp: 1_700_000_000_000, Value: []byte("a")}, {Timestamp: 0, Value: []byte("b")}, {Timestamp: 1_800_000_000_000, Value: []byte("c")}},
		"headers":         {{Value: []byte("v"), Headers: []Header{{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("a"), Value: nil}, {Key: []byte{}, Value: []byte{}}}}},
		"length 63":       {{Value: blob(63)}, {Value: blob(64)}, {Key: blob(8191), Value: blob(8192)}},
		"large":           {{Key: blob(100), Value: blob(1 << 20)}},
		"many":            many,
		"negative time":   {{Timestamp: -1, Value: []byte("x")}, {Timestamp: -5, Value: []byte("y")}},
		"many headers":    {{Value: []byte("x"), Headers: make200Headers()}},
		"extreme delta":   {{Timestamp: math.MinInt64, Value: []byte("x")}, {Timestamp: math.MaxInt64, Value: []byte("y")}},
		"binary":          {{Key: []byte{0, 255, '\n'}, Value: []byte{13, 10, 0}}},
		"hundred records": many[:100],
	}
}

func make200Headers() []Header {
	h := make([]Header, 200)
	for i := range h {
		h[i] = Header{Key: fmt.Appendf(nil, "name-%d", i), Value: fmt.Appendf(nil, "value %d", i)}
	}
	return h
}

func build(records []Record, base Offset, epoch Epoch) Batch {
	var b Builder
	b.Reset(nil)
	for i := range records {
		b.Append(&records[i])
	}
	return b.Finish(base, epoch)
}

// firstDifference returns the index of the first record that differs, null from empty included, and -1 where none does.
// cmp.Diff would take seconds over a megabyte.
func firstDifference(a, b []Record) int {
	for i := range a {
		if i >= len(b) || a[i].Timestamp != b[i].Timestamp || !same(a[i].Key, b[i].Key) || !same(a[i].Value, b[i].Value) ||
			!slices.EqualFunc(a[i].Headers, b[i].Headers, func(x, y Header) bool { return same(x.Key, y.Key) && same(x.Value, y.Value) }) {
			return i
		}
	}
	if len(b) > len(a) {
		return len(a)
	}
	return -1
}

// walk walks a batch and hands out copies.
func walk(b Batch) (records []Record, offsets []Offset, err error) {
	it := NewIterator(b)
	var r Record
	for {
		off, ok := it.Next(&r)
		if !ok {
			return records, offsets, it.Err()
		}
		c := r
		c.Headers = append([]Header(nil), r.Headers...)
		records, offsets = append(records, c), append(offsets, off)
	}
}

func TestBatchReadsBackAsAppended(t *testing.T) {
	for name, records := range cases() {
		t.Run(name, func(t *testing.T) {
			b := build(records, 1000, 7)
			if err := b.Check(); err != nil {
				t.Fatal(err)
			}
			got, offsets, err := walk(b)
			if err != nil {
				t.Fatal(err)
			}
			if at := firstDifference(records, got); at >= 0 {
				t.Errorf("record %d of %d is not what was appended", at, len(records))
			}
			for i, o := range offsets {
				if o != 1000+Offset(i) {
					t.Fatalf("record %d has offset %d", i, o)
				}
			}
			most := records[0].Timestamp
			for i := range records {
				most = max(most, records[i].Timestamp)
			}
			if b.BaseOffset() != 1000 || b.Epoch() != 7 || b.Size() != len(b) || b.Magic() != 2 || b.MaxTimestamp() != most ||
				b.BaseTimestamp() != records[0].Timestamp || int(b.Count()) != len(records) || b.NextOffset() != 1000+Offset(len(records)) ||
				b.LastOffset() != b.NextOffset()-1 || b.Codec() != CodecNone || b.Control() || b.Transactional() || b.AppendTime() ||
				b.ProducerID() != -1 || b.ProducerEpoch() != -1 || b.BaseSequence() != -1 || b.Attributes() != 0 {
				t.Errorf("header % x", []byte(b[:HeaderBytes]))
			}
		})
	}
}

func TestFranzReadsOurBatches(t *testing.T) {
	for name, records := range cases() {
		t.Run(name, func(t *testing.T) {
			var batch kmsg.RecordBatch
			b := build(records, 42, 3)
			if err := batch.ReadFrom(b); err != nil {
				t.Fatal(err)
			}
			if batch.FirstOffset != 42 || batch.PartitionLeaderEpoch != 3 || batch.NumRecords != int32(len(records)) ||
				uint32(batch.CRC) != b.CRC() || batch.MaxTimestamp != b.MaxTimestamp() || batch.ProducerID != -1 || batch.FirstSequence != -1 ||
				batch.ProducerEpoch != -1 || batch.LastOffsetDelta != int32(len(records)-1) || int(batch.Length) != len(b)-12 {
				t.Errorf("header %+v", batch)
			}
			rest := batch.Records
			for i := range records {
				// kmsg reads a record from exactly its own bytes.
				length, n := binary.Varint(rest)
				if n <= 0 || int(length)+n > len(rest) {
					t.Fatalf("record %d: length %d in %d bytes", i, length, len(rest))
				}
				var got kmsg.Record
				if err := got.ReadFrom(rest[:int(length)+n]); err != nil {
					t.Fatalf("record %d: %v", i, err)
				}
				rest = rest[int(length)+n:]
				want := &records[i]
				if !same(got.Key, want.Key) || !same(got.Value, want.Value) || got.OffsetDelta != int32(i) ||
					batch.FirstTimestamp+got.TimestampDelta64 != want.Timestamp || len(got.Headers) != len(want.Headers) {
					t.Fatalf("record %d: %+v", i, got)
				}
				for j, h := range want.Headers {
					if got.Headers[j].Key != string(h.Key) || !same(got.Headers[j].Value, h.Value) {
						t.Fatalf("record %d header %d: %+v", i, j, got.Headers[j])
					}
				}
			}
			if len(rest) != 0 {
				t.Errorf("%d bytes after the last record", len(rest))
			}
		})
	}
}

// same tells nil from empty.
func same(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

func TestKafkaGoReadsOurBatches(t *testing.T) {
	for name, records := range cases() {
		t.Run(name, func(t *testing.T) {
			b := build(records, 42, 3)
			var set kafka.RecordSet
			framed := append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
			if _, err := set.ReadFrom(bytes.NewReader(framed)); err != nil {
				t.Fatal(err)
			}
			for i := range records {
				got, err := set.Records.ReadRecord()
				if err != nil {
					t.Fatalf("record %d: %v", i, err)
				}
				want := &records[i]
				key, value := readAll(t, got.Key), readAll(t, got.Value)
				if !bytes.Equal(key, want.Key) || !bytes.Equal(value, want.Value) || got.Offset != int64(42+i) || len(got.Headers) != len(want.Headers) {
					t.Fatalf("record %d: offset %d, %d bytes", i, got.Offset, len(value))
				}
				for j, h := range want.Headers {
					if got.Headers[j].Key != string(h.Key) || !bytes.Equal(got.Headers[j].Value, h.Value) {
						t.Fatalf("record %d header %d: %+v", i, j, got.Headers[j])
					}
				}
			}
			if _, err := set.Records.ReadRecord(); !errors.Is(err, io.EOF) {
				t.Errorf("after the last record: %v", err)
			}
		})
	}
}

func readAll(t *testing.T, b kafka.Bytes) []byte {
	t.Helper()
	if b == nil {
		return nil
	}
	p, err := kafka.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestIteratorReadsFranzBatches(t *testing.T) {
	rec := kmsg.Record{TimestampDelta64: 9, Key: []byte("k"), Value: []byte("v"), Headers: []kmsg.Header{{Key: "h", Value: []byte("1")}}}
	rec.Length = int32(len(rec.AppendTo(nil)) - 1) // a length below 64 takes one byte, as the zero it replaces does
	body := rec.AppendTo(nil)
	raw := (&kmsg.RecordBatch{
		FirstOffset: 8, Length: int32(len(body) + 49), PartitionLeaderEpoch: -1, Magic: 2, FirstTimestamp: 100, MaxTimestamp: 500,
		Attributes: attributeTransactional, ProducerID: 4, ProducerEpoch: 5, FirstSequence: 6, NumRecords: 1, Records: body,
	}).AppendTo(nil)
	b := Batch(raw)
	binary.BigEndian.PutUint32(b[crcAt:], checksum(b))
	if err := b.Check(); err != nil {
		t.Fatal(err)
	}
	got, offsets, err := walk(b)
	want := []Record{{Timestamp: 109, Key: []byte("k"), Value: []byte("v"), Headers: []Header{{Key: []byte("h"), Value: []byte("1")}}}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil || offsets[0] != 8 {
		t.Errorf("offsets %v, %v:\n%s", offsets, err, diff)
	}
	if !b.Transactional() || b.ProducerID() != 4 || b.ProducerEpoch() != 5 || b.BaseSequence() != 6 || b.Epoch() != -1 {
		t.Errorf("header % x", []byte(b[:HeaderBytes]))
	}
	binary.BigEndian.PutUint16(b[attributesAt:], attributeAppendTime)
	if got, _, _ := walk(b); got[0].Timestamp != 500 {
		t.Errorf("with the time of append: %d", got[0].Timestamp)
	}
}

func TestStampingLeavesTheChecksumAlone(t *testing.T) {
	b := build([]Record{{Value: []byte("v")}}, 0, -1)
	b.SetBase(1 << 40)
	b.SetEpoch(12)
	if err := b.Check(); err != nil || b.BaseOffset() != 1<<40 || b.Epoch() != 12 {
		t.Errorf("base %d, epoch %d: %v", b.BaseOffset(), b.Epoch(), err)
	}
}

func TestCheckFindsEveryFlippedBit(t *testing.T) {
	good := build([]Record{{Timestamp: 1, Key: []byte("key"), Value: []byte("value")}, {Timestamp: 2, Value: []byte("w")}}, 5, 1)
	for at := range good {
		if at < lengthAt || at >= epochAt && at < magicAt {
			continue // base offset and epoch: the log knows them, the checksum does not
		}
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[at] ^= 1 << bit
			if err := Batch(bad).Check(); err == nil {
				t.Errorf("bit %d of byte %d flipped and not found", bit, at)
			}
		}
	}
}

func TestCheckNamesTheFault(t *testing.T) {
	good := build([]Record{{Value: []byte("value")}, {Value: []byte("w")}}, 5, 1)
	put32 := func(at int, v uint32) func(Batch) Batch {
		return func(b Batch) Batch {
			binary.BigEndian.PutUint32(b[at:], v)
			binary.BigEndian.PutUint32(b[crcAt:], checksum(b))
			return b
		}
	}
	attributes := func(v byte) func(Batch) Batch {
		return func(b Batch) Batch {
			b[attributesAt+1] = v
			binary.BigEndian.PutUint32(b[crcAt:], checksum(b))
			return b
		}
	}
	tests := map[string]struct {
		change func(Batch) Batch
		want   error
	}{
		"nothing":             {func(b Batch) Batch { return nil }, ErrShort},
		"16 bytes":            {func(b Batch) Batch { return b[:16] }, ErrShort},
		"header only":         {func(b Batch) Batch { return b[:HeaderBytes] }, ErrShort},
		"a byte missing":      {func(b Batch) Batch { return b[:len(b)-1] }, ErrShort},
		"a byte too many":     {func(b Batch) Batch { return append(b, 0) }, ErrLength},
		"magic 1":             {func(b Batch) Batch { b[magicAt] = 1; return b }, ErrMagic},
		"zeros":               {func(b Batch) Batch { return make(Batch, 100) }, ErrMagic},
		"negative length":     {put32(lengthAt, 1<<31), ErrLength},
		"length 48":           {put32(lengthAt, 48), ErrLength},
		"length above int":    {put32(lengthAt, math.MaxInt32-11), ErrLength},
		"no records":          {put32(countAt, 0), ErrCount},
		"negative records":    {put32(countAt, 1<<31), ErrCount},
		"three of two":        {put32(countAt, 3), ErrCount},
		"negative delta":      {put32(lastDeltaAt, math.MaxUint32), ErrCount},
		"negative base":       {func(b Batch) Batch { b.SetBase(-1); return b }, ErrCount},
		"last base":           {func(b Batch) Batch { b.SetBase(math.MaxInt64 - 1); return b }, ErrCount},
		"codec 5":             {attributes(5), ErrCodec},
		"another checksum":    {func(b Batch) Batch { b[crcAt] ^= 1; return b }, ErrCRC},
		"more than fit":       {func(b Batch) Batch { return put32(lastDeltaAt, 99)(put32(countAt, 100)(b)) }, ErrCount},
		"compressed too many": {func(b Batch) Batch { return put32(countAt, 3)(attributes(4)(b)) }, ErrCount},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if err := test.change(Batch(bytes.Clone(good))).Check(); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	for name, change := range map[string]func(Batch) Batch{
		"compressed":                  attributes(4),
		"a record was compacted away": put32(lastDeltaAt, 2),
		"all records were": func(b Batch) Batch {
			return put32(lengthAt, HeaderBytes-lengthOverhead)(put32(countAt, 0)(b[:HeaderBytes]))
		},
		"all records of a packed one ": func(b Batch) Batch { return put32(countAt, 0)(attributes(4)(b)) },
	} {
		if err := change(Batch(bytes.Clone(good))).Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIteratorRefusesWhatItCannotWalk(t *testing.T) {
	good := build([]Record{{Value: []byte("value")}, {Value: []byte("w"), Headers: []Header{{Key: []byte("h")}}}}, 5, 1)
	tests := map[string]struct {
		change func(Batch) Batch
		want   error
	}{
		"cut":              {func(b Batch) Batch { return b[:len(b)-1] }, ErrShort},
		"too long":         {func(b Batch) Batch { return append(b, 1) }, ErrLength},
		"magic":            {func(b Batch) Batch { b[magicAt] = 0; return b }, ErrMagic},
		"compressed":       {func(b Batch) Batch { b[attributesAt+1] = 1; return b }, ErrCompressed},
		"one record fewer": {func(b Batch) Batch { b[countAt+3] = 1; return b }, ErrRecord},
		"one record more":  {func(b Batch) Batch { b[countAt+3] = 3; return b }, ErrRecord},
		"record length":    {func(b Batch) Batch { b[HeaderBytes] += 2; return b }, ErrRecord},
		"negative length":  {func(b Batch) Batch { b[HeaderBytes] = 1; return b }, ErrRecord},
		"offset twice":     {func(b Batch) Batch { b[HeaderBytes+3] = 2; return b }, ErrRecord},
		"key beyond":       {func(b Batch) Batch { b[HeaderBytes+4] = 0x7e; return b }, ErrRecord},
		"key length -2":    {func(b Batch) Batch { b[HeaderBytes+4] = 3; return b }, ErrRecord},
		"null header name": {func(b Batch) Batch { b[len(b)-3] = 1; return b }, ErrRecord},
		"headers beyond":   {func(b Batch) Batch { b[len(b)-4] = 0x7e; return b }, ErrRecord},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, _, err := walk(test.change(Batch(bytes.Clone(good)))); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestEncodedBoundIsABound(t *testing.T) {
	for name, records := range cases() {
		var b Builder
		b.Reset(nil)
		for i := range records {
			before := b.Size()
			b.Append(&records[i])
			if added, bound := b.Size()-before, EncodedBound(&records[i]); added > bound || added+recordOverheadMax+headerOverheadMax*len(records[i].Headers) < bound {
				t.Fatalf("%s: record %d took %d bytes, bound %d", name, i, added, bound)
			}
		}
	}
}

func TestBuilderStartsAfreshAfterReset(t *testing.T) {
	var b Builder
	buf := make([]byte, 0, 4096)
	b.Reset(buf)
	if got := b.Finish(0, 0); got != nil {
		t.Errorf("a batch without records has %d bytes", len(got))
	}
	b.Append(&Record{Timestamp: 900, Value: bytes.Repeat([]byte{0xff}, 1000)})
	b.Finish(1, 1)
	b.Reset(buf)
	if b.Size() != HeaderBytes || b.Count() != 0 || b.MaxTimestamp() != 0 {
		t.Errorf("size %d, count %d, time %d after Reset", b.Size(), b.Count(), b.MaxTimestamp())
	}
	b.Append(&Record{Timestamp: 3, Value: []byte("v")})
	got := b.Finish(2, 2)
	if want := build([]Record{{Timestamp: 3, Value: []byte("v")}}, 2, 2); !bytes.Equal(got, want) {
		t.Errorf("got  % x\nwant % x", []byte(got), []byte(want))
	}
}

func TestAppendAndNextDoNotAllocate(t *testing.T) {
	headers := []Header{{Key: []byte("a"), Value: []byte("b")}}
	r := Record{Timestamp: 7, Key: []byte("key"), Value: make([]byte, 100), Headers: headers}
	var b Builder
	var it Iterator
	var out Record
	buf := make([]byte, 0, 64<<10)
	n := testing.AllocsPerRun(100, func() {
		b.Reset(buf)
		for range 100 {
			b.Append(&r)
		}
		it.Reset(b.Finish(0, 0))
		for {
			if _, ok := it.Next(&out); !ok {
				break
			}
		}
	})
	if n != 0 || it.Err() != nil {
		t.Errorf("%v allocations for 100 records, %v", n, it.Err())
	}
}

func FuzzIterator(f *testing.F) {
	for _, records := range cases() {
		if b := build(records, 0, 0); len(b) < 4096 {
			f.Add([]byte(b))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b := Batch(data)
		checked := b.Check() == nil
		records, offsets, err := walk(b)
		if err != nil || !checked {
			return
		}
		// What reads well writes well: the same records in a batch of our own read the same.
		if int32(len(records)) != b.Count() || b.AppendTime() {
			return
		}
		again, _, err := walk(build(records, offsets[0], b.Epoch()))
		if at := firstDifference(records, again); at >= 0 || err != nil {
			t.Fatalf("record %d reads differently: %v", at, err)
		}
	})
}

func FuzzBuilder(f *testing.F) {
	f.Add(int64(1), []byte("key"), []byte("value"), []byte("h"), uint8(3))
	f.Fuzz(func(t *testing.T, ts int64, key, value, header []byte, shape uint8) {
		r := Record{Timestamp: ts, Key: append([]byte{}, key...), Value: append([]byte{}, value...)}
		if shape&1 != 0 {
			r.Key = nil
		}
		if shape&2 != 0 {
			r.Value = nil
		}
		if shape&4 != 0 {
			r.Headers = []Header{{Key: append([]byte{}, header...)}, {Key: []byte("x"), Value: append([]byte{}, header...)}}
		}
		want := []Record{r, {Timestamp: -ts, Value: append([]byte{}, value...)}}
		b := build(want, 9, 2)
		got, _, err := walk(b)
		if diff := cmp.Diff(want, got); diff != "" || err != nil || b.Check() != nil {
			t.Fatalf("%v, %v\n%s", err, b.Check(), diff)
		}
	})
}

func BenchmarkBuilder(b *testing.B) {
	for _, size := range []int{100, 1024} {
		b.Run(fmt.Sprintf("batch=100/size=%dB", size), func(b *testing.B) {
			r := Record{Timestamp: 1_700_000_000_000, Value: make([]byte, size)}
			buf := make([]byte, 0, 1<<20)
			var builder Builder
			b.ReportAllocs()
			b.SetBytes(int64(100 * size))
			for b.Loop() {
				builder.Reset(buf)
				for range 100 {
					builder.Append(&r)
				}
				builder.Finish(0, 0)
			}
		})
	}
}

func BenchmarkIterator(b *testing.B) {
	records := make([]Record, 100)
	for i := range records {
		records[i] = Record{Timestamp: 1_700_000_000_000, Value: make([]byte, 100)}
	}
	batch := build(records, 0, 0)
	var it Iterator
	var r Record
	b.ReportAllocs()
	b.SetBytes(int64(len(batch)))
	for b.Loop() {
		it.Reset(batch)
		for ok := true; ok; {
			_, ok = it.Next(&r)
		}
	}
}
