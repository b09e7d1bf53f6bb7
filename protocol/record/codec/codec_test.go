package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/snappy/xerial"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// packer is a way to compress a batch's records.
type packer struct {
	name  string
	codec record.Codec
	pack  func(t testing.TB, b []byte) []byte
}

func packers() []packer {
	closing := func(t testing.TB, out *bytes.Buffer, w io.WriteCloser, b []byte) []byte {
		_, err := w.Write(b)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	return []packer{
		{"none", record.CodecNone, func(_ testing.TB, b []byte) []byte { return b }},
		{"gzip", record.CodecGzip, func(t testing.TB, b []byte) []byte {
			var out bytes.Buffer
			return closing(t, &out, gzip.NewWriter(&out), b)
		}},
		{"snappy", record.CodecSnappy, func(_ testing.TB, b []byte) []byte { return snappy.Encode(nil, b) }},
		{"snappy in frames", record.CodecSnappy, func(_ testing.TB, b []byte) []byte { return xerial.Encode(nil, b) }},
		{"lz4", record.CodecLZ4, func(t testing.TB, b []byte) []byte {
			var out bytes.Buffer
			return closing(t, &out, lz4.NewWriter(&out), b)
		}},
		{"zstd", record.CodecZstd, func(t testing.TB, b []byte) []byte {
			var out bytes.Buffer
			w, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			return closing(t, &out, w, b)
		}},
	}
}

// packed is plain with its records, or other bytes in their place, compressed.
func (p packer) packed(t testing.TB, plain record.Batch, records []byte) record.Batch {
	t.Helper()
	return rebuilt(plain, p.codec, p.pack(t, records))
}

func rebuilt(plain record.Batch, c record.Codec, body []byte) record.Batch {
	b := record.Batch(append(slices.Clone([]byte(plain[:record.HeaderBytes])), body...))
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	b[22] = b[22]&^7 | byte(c)
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func build(base record.Offset, records ...record.Record) record.Batch {
	var b record.Builder
	b.Reset(nil)
	for i := range records {
		b.Append(&records[i])
	}
	return b.Finish(base, 1)
}

func sample() []record.Record {
	records := []record.Record{
		{Timestamp: 1000, Key: []byte("k"), Value: []byte("v")},
		{Timestamp: 900},
		{Timestamp: 1001, Key: []byte{}, Value: []byte{}},
		{Timestamp: 1002, Value: bytes.Repeat([]byte("big "), 60_000), Headers: []record.Header{{Key: []byte("h"), Value: []byte("1")}, {Key: []byte("h")}, {Key: []byte{}, Value: []byte{0xff}}}},
	}
	for i := range 2000 {
		records = append(records, record.Record{Timestamp: int64(2000 + i), Value: fmt.Appendf(nil, "value %d", i*i)})
	}
	return records
}

// walk reads a batch to its end, and copies what it has.
func walk(r *Reader, b record.Batch, most int) (offsets []record.Offset, records []record.Record, err error) {
	r.Reset(b, most)
	var rec record.Record
	for {
		o, ok := r.Next(&rec)
		if !ok {
			return offsets, records, r.Err()
		}
		c := record.Record{Timestamp: rec.Timestamp, Key: bytes.Clone(rec.Key), Value: bytes.Clone(rec.Value)}
		for _, h := range rec.Headers {
			c.Headers = append(c.Headers, record.Header{Key: bytes.Clone(h.Key), Value: bytes.Clone(h.Value)})
		}
		offsets, records = append(offsets, o), append(records, c)
	}
}

func same(a, b record.Record) bool {
	return a.Timestamp == b.Timestamp && equal(a.Key, b.Key) && equal(a.Value, b.Value) &&
		slices.EqualFunc(a.Headers, b.Headers, func(x, y record.Header) bool { return equal(x.Key, y.Key) && equal(x.Value, y.Value) })
}

func equal(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

func TestReaderReadsEveryCodec(t *testing.T) {
	want := sample()
	plain := build(70, want...)
	var r Reader
	defer r.Close()
	for range 2 { // the second time with what the first has left
		for _, p := range packers() {
			b := p.packed(t, plain, plain[record.HeaderBytes:])
			if err := b.Check(); err != nil {
				t.Fatal(err)
			}
			if p.codec != record.CodecNone && len(b) > len(plain)/2 {
				t.Fatalf("%s: %d bytes of %d", p.name, len(b), len(plain))
			}
			offsets, got, err := walk(&r, b, 1<<20)
			if err != nil || !slices.EqualFunc(got, want, same) || offsets[0] != 70 || offsets[len(offsets)-1] != b.LastOffset() {
				t.Errorf("%s: %d records of %d, %v", p.name, len(got), len(want), err)
			}
			if _, ok := r.Next(new(record.Record)); ok || r.Err() != nil {
				t.Errorf("%s: it goes on behind its end, %v", p.name, r.Err())
			}
		}
	}
}

func TestReaderKeepsGapsAndAppendTimes(t *testing.T) {
	plain := build(0, record.Record{Timestamp: 1}, record.Record{Timestamp: 2}, record.Record{Timestamp: 3})
	first := plain[record.HeaderBytes : record.HeaderBytes+7]
	last := plain[len(plain)-7:]
	plain.SetAppendTime(99)
	binary.BigEndian.PutUint32(plain[57:], 2) // the one in the middle was compacted away
	var r Reader
	defer r.Close()
	for _, p := range packers()[1:] {
		offsets, got, err := walk(&r, p.packed(t, plain, append(slices.Clone([]byte(first)), last...)), 100)
		if err != nil || !slices.Equal(offsets, []record.Offset{0, 2}) || got[0].Timestamp != 99 || got[1].Timestamp != 99 {
			t.Errorf("%s: %v, %v, %v", p.name, offsets, got, err)
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	plain := build(5, record.Record{Value: []byte("one")}, record.Record{Value: []byte("two")}, record.Record{Value: bytes.Repeat([]byte{'x'}, 3000)})
	body := []byte(plain[record.HeaderBytes:])
	size := 1 + int(body[0]/2) // of the first record
	twice := append(append(slices.Clone(body[:size]), body[:size]...), body[2*size:]...)
	spoilt := slices.Clone(body)
	spoilt[5] = 0x7f // the first record's value reaches beyond it
	for _, test := range []struct {
		name string
		body []byte
		most int
		good int
		want error
	}{
		{"bytes behind the last record", append(slices.Clone(body), 0), 4000, 3, record.ErrRecord},
		{"the end within a record", body[:len(body)-1], 4000, 2, ErrUnpack},
		{"the end between records", body[:size], 4000, 1, ErrUnpack},
		{"nothing", nil, 4000, 0, ErrUnpack},
		{"a negative length", append([]byte{1}, body...), 4000, 0, record.ErrRecord},
		{"a length beyond all", append(binary.AppendVarint(nil, 1<<40), body...), 4000, 0, record.ErrRecord},
		{"a length that is none", bytes.Repeat([]byte{0xff}, 20), 4000, 0, ErrUnpack},
		{"offsets twice", twice, 4000, 1, record.ErrRecord},
		{"a field beyond its record", spoilt, 4000, 0, record.ErrRecord},
		{"a record above the limit", body, 1500, 2, ErrTooLarge},
		{"a length above the limit", append(binary.AppendVarint(nil, 1<<30), body...), 4000, 0, ErrTooLarge},
	} {
		var r Reader
		for _, p := range packers()[1:] {
			if _, got, err := walk(&r, p.packed(t, plain, test.body), test.most); !errors.Is(err, test.want) || len(got) != test.good {
				t.Errorf("%s, %s: %d records, %v", test.name, p.name, len(got), err)
			}
		}
		r.Close()
	}
}

func TestReaderRefusesWhatCannotBeUnpacked(t *testing.T) {
	plain := build(0, sample()...)
	var r Reader
	defer r.Close()
	for _, p := range packers()[1:] {
		body := p.pack(t, plain[record.HeaderBytes:])
		for name, spoilt := range map[string][]byte{
			"garbage": bytes.Repeat([]byte{0xa5}, 100), "nothing": {}, "half": body[:len(body)/2], "no end": body[:len(body)-1],
		} {
			if _, _, err := walk(&r, rebuilt(plain, p.codec, spoilt), 1<<20); !errors.Is(err, ErrUnpack) {
				t.Errorf("%s, %s: %v", p.name, name, err)
			}
		}
		// And it reads a good one afterwards.
		if _, got, err := walk(&r, rebuilt(plain, p.codec, body), 1<<20); err != nil || len(got) != int(plain.Count()) {
			t.Errorf("%s, afterwards: %d records, %v", p.name, len(got), err)
		}
	}
	for _, frame := range []string{xerialMagic, xerialMagic + "\x00\x00\x00\x01\x00\x00\x00\x01\x00", xerialMagic + "\x00\x00\x00\x01\x00\x00\x00\x01\xff\xff\xff\xff"} {
		if _, _, err := walk(&r, rebuilt(plain, record.CodecSnappy, []byte(frame)), 1<<20); !errors.Is(err, ErrUnpack) {
			t.Errorf("%q: %v", frame, err)
		}
	}
	claim := append(binary.AppendUvarint(nil, 32<<20), "nothing of that kind"...)
	if _, _, err := walk(&r, rebuilt(plain, record.CodecSnappy, claim), 1<<20); !errors.Is(err, ErrUnpack) || cap(r.unpack.snappy.block) > 16<<20 {
		t.Errorf("a block that claims what it cannot have: %v, %d bytes taken", err, cap(r.unpack.snappy.block))
	}
	unknown := rebuilt(plain, 6, []byte("some"))
	if _, _, err := walk(&r, unknown, 1<<20); !errors.Is(err, record.ErrCodec) {
		t.Errorf("codec 6: %v", err)
	}
	if _, _, err := walk(&r, unknown[:62], 1<<20); !errors.Is(err, record.ErrShort) && !errors.Is(err, record.ErrLength) {
		t.Errorf("cut short: %v", err)
	}
}

// TestReaderStopsABatchThatExplodes has records below the limit that unpack together to more than BatchLimit.
func TestReaderStopsABatchThatExplodes(t *testing.T) {
	big := record.Record{Value: make([]byte, 1<<20)}
	plain := build(0, slices.Repeat([]record.Record{big}, 70)...)
	var r Reader
	defer r.Close()
	for _, p := range packers()[1:] {
		if p.codec == record.CodecSnappy { // it cannot pack as much: 22 to 1 at most
			continue
		}
		b := p.packed(t, plain, plain[record.HeaderBytes:])
		if BatchLimit(len(b)) > 65<<20 {
			t.Fatalf("%s: %d bytes are too many for the test", p.name, len(b))
		}
		r.Reset(b, 1<<20)
		n := 0
		for rec := (record.Record{}); ; n++ {
			if _, ok := r.Next(&rec); !ok {
				break
			}
		}
		if !errors.Is(r.Err(), ErrTooLarge) || n > 64 {
			t.Errorf("%s: %d bytes, %d records, %v", p.name, len(b), n, r.Err())
		}
		if cap(r.one) > 4<<20 {
			t.Errorf("%s: %d bytes in memory", p.name, cap(r.one))
		}
	}
}

func TestReaderDoesNotAllocatePerRecord(t *testing.T) {
	plain := build(0, slices.Repeat([]record.Record{{Key: []byte("key"), Value: make([]byte, 100), Headers: []record.Header{{Key: []byte("a"), Value: []byte("b")}}}}, 1000)...)
	var r Reader
	defer r.Close()
	for _, p := range packers() {
		b := p.packed(t, plain, plain[record.HeaderBytes:])
		rec := record.Record{Headers: make([]record.Header, 0, 4)}
		n := testing.AllocsPerRun(10, func() {
			r.Reset(b, 1<<20)
			for _, ok := r.Next(&rec); ok; _, ok = r.Next(&rec) {
			}
			if r.Err() != nil {
				t.Fatal(r.Err())
			}
		})
		if n > 20 {
			t.Errorf("%s: %v allocations for 1000 records", p.name, n)
		}
	}
}

func FuzzReader(f *testing.F) {
	plain := build(0, sample()[:3]...)
	for _, p := range packers() {
		f.Add(uint8(p.codec), int32(3), p.pack(f, plain[record.HeaderBytes:]))
	}
	f.Fuzz(func(t *testing.T, c uint8, count int32, body []byte) {
		b := rebuilt(plain, record.Codec(c%8), body)
		binary.BigEndian.PutUint32(b[57:], uint32(count))
		var r Reader
		defer r.Close()
		r.Reset(b, 1000)
		var rec record.Record
		last := record.Offset(-1)
		for o, ok := r.Next(&rec); ok; o, ok = r.Next(&rec) {
			if o <= last || o > b.LastOffset() {
				t.Fatalf("offset %d after %d", o, last)
			}
			last = o
		}
	})
}

func BenchmarkReader(b *testing.B) {
	plain := build(0, slices.Repeat([]record.Record{{Key: []byte("key"), Value: []byte("a hundred bytes of text that is not quite the same all over, as it is with most records in real life.")}}, 5000)...)
	for _, p := range packers() {
		b.Run(p.name, func(b *testing.B) {
			batch := p.packed(b, plain, plain[record.HeaderBytes:])
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			var r Reader
			defer r.Close()
			var rec record.Record
			for b.Loop() {
				r.Reset(batch, 1<<20)
				for _, ok := r.Next(&rec); ok; _, ok = r.Next(&rec) {
				}
				if r.Err() != nil {
					b.Fatal(r.Err())
				}
			}
		})
	}
}
