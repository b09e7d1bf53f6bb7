package kafkalog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// disk is a partition's directory in memory.
type disk struct {
	epochs   []byte // nil: no such file
	segments []diskSegment
}

type diskSegment struct {
	base              record.Offset
	log, index, times []byte // indexes: nil: no such file
}

// newDisk builds segments of batches, each of 20 records, so many that the indexes have entries; epochs change with the
// segment.
func newDisk(t testing.TB, counts ...int) *disk {
	t.Helper()
	d := &disk{}
	var epochs Epochs
	next := record.Offset(100)
	for i, count := range counts {
		epoch := record.Epoch(3 + i)
		epochs, _ = epochs.Assign(epoch, next)
		g := diskSegment{base: next}
		w := NewIndexWriter(next, IndexIntervalBytes)
		for n := range count {
			b := timedBatch(next, epoch, int64(1000*(i+1)+n))
			if err := w.Add(b, int64(len(g.log))); err != nil {
				t.Fatal(err)
			}
			g.log = append(g.log, b...)
			next = b.NextOffset()
		}
		w.Close()
		g.index, g.times = slices.Clone(w.Index()), slices.Clone(w.TimeIndex())
		d.segments = append(d.segments, g)
	}
	d.epochs = epochs.AppendText(nil)
	return d
}

func timedBatch(base record.Offset, epoch record.Epoch, timestamp int64) record.Batch {
	var b record.Builder
	b.Reset(nil)
	for i := range 20 {
		b.Append(&record.Record{Timestamp: timestamp - 5, Key: fmt.Appendf(nil, "%d", i), Value: bytes.Repeat([]byte{'v'}, 40)})
	}
	b.Append(&record.Record{Timestamp: timestamp})
	return b.Finish(base, epoch)
}

// at is where the n-th batch of a segment begins.
func (g *diskSegment) at(n int) int {
	position := 0
	for range n {
		size, _ := record.SizeOf(g.log[position:])
		position += size
	}
	return position
}

func (g *diskSegment) batch(n int) record.Batch {
	at := g.at(n)
	size, _ := record.SizeOf(g.log[at:])
	return record.Batch(g.log[at : at+size])
}

// verify runs a verifier over the directory and returns the findings as "file-suffix position offset fault".
func (d *disk) verify(t testing.TB, o VerifyOptions) (*Verifier, []string) {
	t.Helper()
	var found []string
	v := NewVerifier(o, func(f Finding) {
		if f.What == "" || !strings.Contains(f.String(), f.File) {
			t.Errorf("%+v says nothing", f)
		}
		name := f.File
		if n, ok := strings.CutPrefix(name, "00000000000000000"); ok {
			name = n
		}
		found = append(found, fmt.Sprintf("%s %d %d %s", name, f.Position, f.Offset, f.Fault))
	})
	if d.epochs != nil {
		v.Epochs(d.epochs)
	}
	for _, g := range d.segments {
		s := Segment{Base: g.base, Log: bytes.NewReader(g.log), Size: int64(len(g.log))}
		if g.index != nil {
			s.Index = iotest.OneByteReader(bytes.NewReader(g.index))
		}
		if g.times != nil {
			s.TimeIndex = bytes.NewReader(g.times)
		}
		if err := v.Segment(s); err != nil {
			t.Fatal(err)
		}
	}
	v.End()
	if int(v.Findings()) != len(found) {
		t.Errorf("%d findings counted, %d reported", v.Findings(), len(found))
	}
	return v, found
}

func TestVerifyPassesASoundLog(t *testing.T) {
	d := newDisk(t, 12, 9, 0)
	if len(d.segments[0].index) < 2*IndexEntryBytes || len(d.segments[0].times) < 2*TimeIndexEntryBytes {
		t.Fatalf("indexes of %d and %d bytes", len(d.segments[0].index), len(d.segments[0].times))
	}
	v, found := d.verify(t, VerifyOptions{})
	if len(found) > 0 || v.Batches() != 21 || v.Next() != 100+21*21 {
		t.Errorf("%v, %d batches, next %d", found, v.Batches(), v.Next())
	}
	for i := range d.segments {
		d.segments[i].index, d.segments[i].times = nil, nil
	}
	if _, found := d.verify(t, VerifyOptions{}); len(found) > 0 {
		t.Errorf("without indexes: %v", found)
	}
}

// damage is one way to spoil the directory of newDisk(12, 9): batches have 1038 bytes and 21 offsets, and every fifth has an entry.
type damage struct {
	name  string
	spoil func(d *disk)
	want  func(d *disk) []string
}

func TestVerifyNamesEachFault(t *testing.T) {
	pos := func(d *disk, format string, g, n int) []string {
		return []string{fmt.Sprintf(format, d.segments[g].at(n))}
	}
	fixed := func(want ...string) func(*disk) []string { return func(*disk) []string { return want } }
	tests := []damage{
		{"magic", func(d *disk) { d.segments[0].log[d.segments[0].at(2)+16] = 1 }, func(d *disk) []string { return pos(d, "100.log %d 142 magic", 0, 2) }},
		{"length too small", func(d *disk) { binary.BigEndian.PutUint32(d.segments[0].batch(3)[8:], 7) }, func(d *disk) []string { return pos(d, "100.log %d 163 length", 0, 3) }},
		{"length beyond the segment", func(d *disk) { d.segments[0].batch(3)[8] = 0x70 }, func(d *disk) []string { return pos(d, "100.log %d 163 length", 0, 3) }},
		{"torn batch", func(d *disk) { g := &d.segments[1]; g.log = g.log[:len(g.log)-1] }, func(d *disk) []string {
			return []string{fmt.Sprintf("352.log %d 520 length", d.segments[1].at(8))}
		}},
		{"torn header", func(d *disk) { g := &d.segments[1]; g.log = g.log[:g.at(8)+30] }, func(d *disk) []string {
			return []string{fmt.Sprintf("352.log %d 520 length", d.segments[1].at(8))}
		}},
		{"few bytes of a header", func(d *disk) { g := &d.segments[1]; g.log = g.log[:g.at(8)+10] }, func(d *disk) []string {
			return []string{fmt.Sprintf("352.log %d 520 length", d.segments[1].at(8))}
		}},
		{"crc", func(d *disk) { b := d.segments[0].batch(4); b[len(b)-3] ^= 1 }, func(d *disk) []string { return pos(d, "100.log %d 184 crc", 0, 4) }},
		{"crc of two batches", func(d *disk) {
			d.segments[0].batch(0)[70] ^= 1
			d.segments[1].batch(8)[70] ^= 0x80
		}, func(d *disk) []string {
			return append(pos(d, "100.log %d 100 crc", 0, 0), pos(d, "352.log %d 520 crc", 1, 8)...)
		}},
		{"codec", func(d *disk) { restamp(d.segments[0].batch(5), func(b record.Batch) { b[22] = 7 }) }, func(d *disk) []string { return pos(d, "100.log %d 205 codec", 0, 5) }},
		{"count", func(d *disk) { restamp(d.segments[0].batch(5), func(b record.Batch) { b[60]++ }) }, func(d *disk) []string { return pos(d, "100.log %d 205 count", 0, 5) }},
		{"base above", func(d *disk) { b := d.segments[0].batch(11); b.SetBase(b.BaseOffset() + 7) }, func(d *disk) []string {
			return append(pos(d, "100.log %d 331 offset", 0, 11), fmt.Sprintf("100.log %d 331 epoch", d.segments[0].at(11)), "352.log 0 359 overlap", "100.timeindex "+fmt.Sprint(len(d.segments[0].times)-12)+" 351 entry")
		}},
		{"base below", func(d *disk) { d.segments[0].batch(1).SetBase(100) }, func(d *disk) []string {
			return append(pos(d, "100.log %d 121 offset", 0, 1), pos(d, "100.log %d 121 offset", 0, 2)...)
		}},
		{"name", func(d *disk) {
			d.segments = d.segments[1:]
			d.segments[0].base = 351
			d.segments[0].index, d.segments[0].times = nil, nil
		}, func(d *disk) []string {
			return []string{"351.log 0 351 name"}
		}},
		{"missing segment", func(d *disk) {
			d.segments = slices.Delete(d.segments, 0, 1)
			d.segments = append(newDisk(t, 3).segments, d.segments...)
		},
			fixed("352.log 0 163 missing")},
		{"overlapping segment", func(d *disk) { d.segments[1].base = 340; d.segments[1].index, d.segments[1].times = nil, nil }, fixed("340.log 0 352 overlap", "340.log 0 340 name")},
		{"epoch of a batch", func(d *disk) { d.segments[0].batch(6).SetEpoch(2) }, func(d *disk) []string { return pos(d, "100.log %d 226 epoch", 0, 6) }},
		{"epoch before the first", func(d *disk) { d.epochs = []byte("0\n2\n3 121\n4 352\n") }, fixed("100.log 0 100 epoch")},
		{"epoch within a batch", func(d *disk) { d.epochs = []byte("0\n2\n3 100\n4 353\n") }, fixed("352.log 0 352 epoch")},
		{"checkpoint missing", func(d *disk) { d.epochs = nil }, fixed("leader-epoch-checkpoint 0 100 checkpoint")},
		{"checkpoint unreadable", func(d *disk) { d.epochs = []byte("0\n1\n") }, fixed("leader-epoch-checkpoint 0 -1 checkpoint")},
		{"checkpoint beyond the log", func(d *disk) { d.epochs = append([]byte("0\n3\n"), "3 100\n4 352\n5 542\n"...) }, fixed("leader-epoch-checkpoint 0 542 checkpoint")},
	}
	runDamage(t, tests)
}

func TestVerifyNamesEachFaultOfAnIndex(t *testing.T) {
	fixed := func(want ...string) func(*disk) []string { return func(*disk) []string { return want } }
	index := func(d *disk) []byte { return d.segments[0].index }
	times := func(d *disk) []byte { return d.segments[0].times }
	runDamage(t, []damage{
		{"offset", func(d *disk) { index(d)[8+3]-- }, fixed("100.index 8 287 entry")},
		{"position between batches", func(d *disk) { index(d)[7]++ }, fixed("100.index 0 204 entry")},
		{"negative position", func(d *disk) { index(d)[4] = 0x80 }, fixed("100.index 0 -1 entry")},
		{"position beyond the end", func(d *disk) { index(d)[8+4] = 1 }, fixed("100.index 8 288 beyond")},
		{"order", func(d *disk) { copy(index(d)[8:], index(d)[:8]) }, fixed("100.index 8 204 order")},
		{"ragged", func(d *disk) { d.segments[0].index = append(index(d), 1, 2, 3) }, fixed("100.index 16 -1 ragged")},
		{"zeros at the end", func(d *disk) { d.segments[0].index = append(index(d), make([]byte, 8<<10)...) }, fixed("100.index 16 -1 order")},
		{"of nothing", func(d *disk) {
			d.segments[0] = diskSegment{base: 352, index: index(d)}
			d.segments = d.segments[:1]
			d.epochs = []byte("0\n0\n")
		},
			fixed("352.index 0 456 beyond", "352.index 8 540 beyond")},

		{"time", func(d *disk) { times(d)[7]-- }, fixed("100.timeindex 0 204 entry")},
		{"time's offset", func(d *disk) { times(d)[11]-- }, fixed("100.timeindex 0 203 entry")},
		{"time's negative offset", func(d *disk) { times(d)[8] = 0x80 }, fixed("100.timeindex 0 -1 entry")},
		{"time beyond the end", func(d *disk) { times(d)[2*12+9]++ }, fixed("100.timeindex 24 65887 beyond")},
		{"order of times", func(d *disk) { copy(times(d)[12:20], times(d)[:8]) }, fixed("100.timeindex 12 288 order")},
		{"order of the times' offsets", func(d *disk) { copy(times(d)[20:24], times(d)[8:12]) }, fixed("100.timeindex 12 204 order")},
		{"ragged times", func(d *disk) { d.segments[0].times = times(d)[:13] }, fixed("100.timeindex 12 -1 ragged")},
		{"zeros at the end of times", func(d *disk) { d.segments[0].times = append(times(d), make([]byte, 1200)...) }, fixed("100.timeindex 36 -1 order")},
		{"a later time before", func(d *disk) {
			restamp(d.segments[0].batch(1), func(b record.Batch) { binary.BigEndian.PutUint64(b[35:], 5000) })
		}, fixed("100.timeindex 0 204 entry", "100.timeindex 12 288 entry", "100.timeindex 24 351 entry")},
	})
}

func runDamage(t *testing.T, tests []damage) {
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := newDisk(t, 12, 9)
			whole := newDisk(t, 12, 9)
			test.spoil(d)
			_, found := d.verify(t, VerifyOptions{})
			want := test.want(whole)
			slices.Sort(found)
			slices.Sort(want)
			if !slices.Equal(found, want) {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(found, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// restamp changes bytes under the checksum and makes that right again.
func restamp(b record.Batch, change func(record.Batch)) {
	change(b)
	binary.BigEndian.PutUint32(b[17:], castagnoli(b[21:]))
}

func TestVerifyOfACompactedLog(t *testing.T) {
	d := newDisk(t, 12, 9)
	g := &d.segments[0]
	restamp(g.batch(5), func(b record.Batch) { b[60] = 5 }) // records were taken out
	g.log = slices.Delete(g.log, g.at(1), g.at(3))          // and whole batches
	g.index, g.times = nil, nil
	d.segments[1].base, d.segments[1].index, d.segments[1].times = 355, nil, nil // and the name is where the cleaned segment began
	d.segments[1].log = slices.Delete(d.segments[1].log, 0, d.segments[1].at(1))
	if _, found := d.verify(t, VerifyOptions{Compacted: true}); len(found) > 0 {
		t.Errorf("found %v", found)
	}
	if _, found := d.verify(t, VerifyOptions{GapsBelow: 1 << 40}); len(found) > 0 {
		t.Errorf("with gaps below an offset beyond its end: %v", found)
	}
	if _, found := d.verify(t, VerifyOptions{GapsBelow: 60}); len(found) == 0 {
		t.Error("gaps above the offset that they are allowed below are not found")
	}
	if _, found := d.verify(t, VerifyOptions{}); len(found) != 4 { // an offset, a count, a missing segment, a name
		t.Errorf("as a log that was not compacted: %v", found)
	}
	d.segments[0].batch(1).SetBase(90)
	if _, found := d.verify(t, VerifyOptions{Compacted: true}); len(found) == 0 {
		t.Error("a base that goes down is not found")
	}
}

func TestVerifyBelowTheLogStart(t *testing.T) {
	d := newDisk(t, 12, 9)
	d.epochs = []byte("0\n2\n3 130\n4 352\n") // as a trim up to 130 leaves it
	if _, found := d.verify(t, VerifyOptions{LogStart: 130}); len(found) > 0 {
		t.Errorf("found %v", found)
	}
	if _, found := d.verify(t, VerifyOptions{LogStart: 120}); len(found) == 0 {
		t.Error("epochs are missing above the log start, and nothing was found")
	}
	empty := &disk{epochs: []byte("0\n1\n4 900\n"), segments: []diskSegment{{base: 352}}}
	if _, found := empty.verify(t, VerifyOptions{LogStart: 900}); len(found) > 0 {
		t.Errorf("an empty log at its start: %v", found)
	}
}

// TestVerifyFindsEveryFlippedBit flips each bit of a small log, each with its indexes beside it.
func TestVerifyFindsEveryFlippedBit(t *testing.T) {
	d := &disk{epochs: []byte("0\n1\n1 0\n")}
	data, starts := segment(0, 1, 2, 1, 1)
	d.segments = []diskSegment{{log: data}}
	for at := range data {
		last := 0
		for _, start := range starts {
			if start <= int64(at) {
				last = int(start)
			}
		}
		for bit := range 8 {
			data[at] ^= 1 << bit
			_, found := d.verify(t, VerifyOptions{})
			if len(found) == 0 || !strings.HasPrefix(found[0], fmt.Sprintf("000.log %d ", last)) {
				t.Fatalf("bit %d of byte %d: found %v", bit, at, found)
			}
			data[at] ^= 1 << bit
		}
	}
}

func TestVerifyReturnsReadErrors(t *testing.T) {
	data, _ := segment(0, 0, 1, 1)
	broken := errors.New("broken")
	for name, s := range map[string]Segment{
		"log":       {Log: iotest.ErrReader(broken), Size: 100},
		"log later": {Log: io.MultiReader(bytes.NewReader(data[:80]), iotest.ErrReader(broken)), Size: int64(len(data))},
		"index":     {Log: bytes.NewReader(data), Size: int64(len(data)), Index: iotest.ErrReader(broken)},
		"timeindex": {Log: bytes.NewReader(data), Size: int64(len(data)), TimeIndex: iotest.ErrReader(broken)},
	} {
		v := NewVerifier(VerifyOptions{}, func(Finding) {})
		if err := v.Segment(s); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	v := NewVerifier(VerifyOptions{}, func(Finding) {})
	if err := v.Segment(Segment{Log: bytes.NewReader(data[:80]), Size: int64(len(data))}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("fewer bytes than announced: %v", err)
	}
}

func FuzzVerifier(f *testing.F) {
	d := newDisk(f, 8)
	f.Add(d.segments[0].log, d.segments[0].index, d.segments[0].times, d.epochs)
	f.Add([]byte{}, []byte{1}, []byte{2}, []byte("0\n0\n"))
	f.Fuzz(func(t *testing.T, log, index, times, epochs []byte) {
		d := disk{epochs: epochs, segments: []diskSegment{{base: 100, log: log, index: index, times: times}}}
		_, found := d.verify(t, VerifyOptions{})
		s, _ := scan(t, ScanOptions{Base: 100, Size: int64(len(log))}, log, len(log)+1)
		if s.Bad() != nil && len(found) == 0 {
			t.Fatalf("a scan ends with %v, and nothing was found", s.Bad())
		}
	})
}
