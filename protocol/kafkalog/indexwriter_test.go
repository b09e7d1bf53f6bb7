package kafkalog

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// extent is a batch as an index sees it.
type extent struct {
	last record.Offset
	time int64
	size int64
}

func TestIndexWriterFollowsKafkasRules(t *testing.T) {
	for _, test := range []struct {
		name  string
		in    []extent
		index []IndexEntry
		times []TimeIndexEntry
	}{
		{"nothing", nil, nil, nil},
		{"one", []extent{{10, 5, 9000}}, nil, []TimeIndexEntry{{5, 10}}},
		{"the interval has to be passed", []extent{{10, 5, 4096}, {11, 6, 1}, {12, 7, 1}},
			[]IndexEntry{{12, 4097}}, []TimeIndexEntry{{7, 12}}},
		{"the batch that is indexed counts for the next entry", []extent{{10, 5, 4097}, {12, 4, 4097}, {13, 9, 1}, {14, 1, 1}},
			[]IndexEntry{{12, 4097}, {13, 8194}}, []TimeIndexEntry{{5, 10}, {9, 13}}},
		{"a time that is there already is not repeated", []extent{{10, 9, 5000}, {11, 8, 5000}, {12, 9, 5000}, {13, 1, 1}},
			[]IndexEntry{{11, 5000}, {12, 10000}, {13, 15000}}, []TimeIndexEntry{{9, 10}}},
		{"the last time comes on close", []extent{{10, 1, 5000}, {11, 2, 10}, {12, 3, 10}},
			[]IndexEntry{{11, 5000}}, []TimeIndexEntry{{2, 11}, {3, 12}}},
		{"no time", []extent{{10, -1, 5000}, {11, -1, 10}}, []IndexEntry{{11, 5000}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := NewIndexWriter(1, 1)
			w.Reset(10, IndexIntervalBytes)
			at := int64(0)
			for _, e := range test.in {
				if err := w.AddExtent(IndexEntry{Last: e.last, Position: at}, e.time, e.size); err != nil {
					t.Fatal(err)
				}
				at += e.size
			}
			w.Close()
			w.Close()
			var index, times []byte
			for _, e := range test.index {
				index, _ = AppendIndexEntry(index, 10, e)
			}
			for _, e := range test.times {
				times, _ = AppendTimeIndexEntry(times, 10, e)
			}
			if !slices.Equal(w.Index(), index) || !slices.Equal(w.TimeIndex(), times) {
				t.Errorf("index % x instead of % x, times % x instead of % x", w.Index(), index, w.TimeIndex(), times)
			}
		})
	}
}

func TestIndexWriterInPieces(t *testing.T) {
	whole, pieces := NewIndexWriter(0, 100), NewIndexWriter(0, 100)
	var index, times []byte
	at := int64(0)
	for i := range 50 {
		b := timedBatch(record.Offset(21*i), 0, int64(i%7+i/9))
		if err := errors.Join(whole.Add(b, at), pieces.Add(b[:record.HeaderBytes], at)); err != nil {
			t.Fatal(err)
		}
		at += int64(len(b))
		index, times = append(index, pieces.Index()...), append(times, pieces.TimeIndex()...)
		pieces.Forget()
	}
	whole.Close()
	pieces.Close()
	times = append(times, pieces.TimeIndex()...)
	if !slices.Equal(index, whole.Index()) || !slices.Equal(times, whole.TimeIndex()) || len(index) != 49*IndexEntryBytes {
		t.Errorf("%d and %d bytes of index, %d and %d of times", len(index), len(whole.Index()), len(times), len(whole.TimeIndex()))
	}
}

func TestIndexWriterRefusesWhatAnIndexCannotSay(t *testing.T) {
	for name, e := range map[string]IndexEntry{
		"offset too far": {Last: 1 << 31}, "offset below": {Last: -1}, "position too far": {Last: 2, Position: math.MaxInt32 + 1},
	} {
		w := NewIndexWriter(0, 0)
		if err := w.AddExtent(IndexEntry{Last: 1}, 1, 1); err != nil {
			t.Fatal(err)
		}
		if err := w.AddExtent(e, 2, 1); !errors.Is(err, ErrIndex) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIndexWriterDoesNotAllocatePerBatch(t *testing.T) {
	b := timedBatch(0, 0, 1)
	w := NewIndexWriter(0, 1<<20)
	if n := testing.AllocsPerRun(100, func() { _ = w.Add(b, 0) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestFindOffset(t *testing.T) {
	text := "0\n3\norders 0 17\nor-ders 1 9223372036854775807\norders 1 4\n"
	for _, test := range []struct {
		topic string
		id    partition.ID
		want  record.Offset
		ok    bool
	}{{"orders", 0, 17, true}, {"orders", 1, 4, true}, {"or-ders", 1, math.MaxInt64, true}, {"orders", 2, 0, false}, {"o", 0, 0, false}} {
		if got, ok, err := FindOffset([]byte(text), test.topic, test.id); got != test.want || ok != test.ok || err != nil {
			t.Errorf("%s-%d: %d, %v, %v", test.topic, test.id, got, ok, err)
		}
	}
	for _, bad := range []string{"", "1\n0\n", "0\n", "0\nx\n", "0\n1\n", "0\n0\na 0 1\n", "0\n1\na 0\n", "0\n1\na 0 1 2\n", "0\n1\na 0 -1\n", "0\n1\na 0 x\n"} {
		if o, ok, err := FindOffset([]byte(bad), "a", 0); !errors.Is(err, ErrOffsets) || ok {
			t.Errorf("%q: %d, %v, %v", bad, o, ok, err)
		}
	}
}

func ExampleFinding() {
	fmt.Println(Finding{File: SegmentName(0), Position: 61, Offset: 7, Fault: FaultCRC, What: "its bytes are others"})
	fmt.Println(FaultCRC.InIndex(), FaultRagged.InIndex())
	// Output:
	// 00000000000000000000.log position 61 offset 7: crc: its bytes are others
	// false true
}
