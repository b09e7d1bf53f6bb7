package kafkalog

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// segment builds batches of the given record counts from offset base on, all of one epoch, and tells where each begins.
func segment(base record.Offset, epoch record.Epoch, counts ...int) (data []byte, starts []int64) {
	var b record.Builder
	for _, count := range counts {
		b.Reset(nil)
		for i := range count {
			b.Append(&record.Record{Timestamp: int64(i), Key: fmt.Appendf(nil, "key %d", base), Value: bytes.Repeat([]byte{byte(i)}, 40)})
		}
		starts = append(starts, int64(len(data)))
		batch := b.Finish(base, epoch)
		data = append(data, batch...)
		base = batch.NextOffset()
	}
	return data, starts
}

// scan feeds data in pieces of n bytes, each in memory that is overwritten before the next one, and returns where the
// batches begin.
func scan(t testing.TB, opt ScanOptions, data []byte, n int) (*Scanner, []int64) {
	t.Helper()
	s := NewScanner(opt)
	var starts []int64
	var f Found
	piece := make([]byte, n)
	for from := 0; from < len(data); from += n {
		s.Feed(piece[:copy(piece, data[from:])])
		for s.Next(&f) {
			if want := data[f.Position-opt.Position:][:len(f.Batch)]; !bytes.Equal(f.Batch, want) {
				t.Fatalf("in pieces of %d: the batch at %d is not what lies there", n, f.Position)
			}
			starts = append(starts, f.Position)
		}
	}
	s.End()
	return s, starts
}

func TestScannerFindsBatchesHoweverCut(t *testing.T) {
	data, want := segment(100, 3, 1, 5, 1, 40, 2)
	for n := 1; n <= len(data)+1; n++ {
		s, got := scan(t, ScanOptions{Base: 100, Size: int64(len(data))}, data, n)
		if fmt.Sprint(got) != fmt.Sprint(want) || s.Bad() != nil || s.Position() != int64(len(data)) || s.NextOffset() != 149 {
			t.Fatalf("in pieces of %d: %v instead of %v, position %d, next %d, %v", n, got, want, s.Position(), s.NextOffset(), s.Bad())
		}
	}
}

func TestScannerStartsInTheMiddle(t *testing.T) {
	data, starts := segment(0, 0, 2, 3, 4)
	at := starts[1]
	s, got := scan(t, ScanOptions{Base: 2, Position: at, Size: int64(len(data))}, data[at:], 50)
	if fmt.Sprint(got) != fmt.Sprint(starts[1:]) || s.Bad() != nil || s.NextOffset() != 9 {
		t.Errorf("got %v, next %d, %v", got, s.NextOffset(), s.Bad())
	}
}

func TestScannerKeepsAPrefixOfATornSegment(t *testing.T) {
	data, starts := segment(0, 0, 2, 3, 4)
	ends := append(starts[1:], int64(len(data)))
	for size := range len(data) {
		whole := 0
		for whole < len(ends) && ends[whole] <= int64(size) {
			whole++
		}
		for _, n := range []int{7, 64, 1 << 20} {
			s, got := scan(t, ScanOptions{Size: int64(size)}, data[:size], n)
			atEdge := size == 0 || whole > 0 && ends[whole-1] == int64(size)
			if len(got) != whole || atEdge != (s.Bad() == nil) {
				t.Fatalf("cut at %d: %d batches instead of %d, %v", size, len(got), whole, s.Bad())
			}
			if !atEdge && (!errors.Is(s.Bad(), record.ErrShort) || s.Bad().Position != s.Position() || s.Bad().Offset != s.NextOffset()) {
				t.Fatalf("cut at %d: %v", size, s.Bad())
			}
		}
	}
}

func TestScannerFindsEveryFlippedBit(t *testing.T) {
	data, starts := segment(0, 1, 2, 3, 1)
	epochs := Epochs{{Epoch: 1, Start: 0}}
	opt := ScanOptions{Size: int64(len(data)), EpochFor: epochs.EpochFor}
	for at := range data {
		before := 0
		for before+1 < len(starts) && starts[before+1] <= int64(at) {
			before++
		}
		for _, bit := range []byte{0, 3, 7} {
			bad := bytes.Clone(data)
			bad[at] ^= 1 << bit
			s, got := scan(t, opt, bad, 100)
			if len(got) != before || s.Bad() == nil || s.Bad().Position != starts[before] {
				t.Fatalf("bit %d of byte %d: %d batches instead of %d, %v", bit, at, len(got), before, s.Bad())
			}
		}
	}
}

func TestScannerNamesTheFault(t *testing.T) {
	one, _ := segment(10, 1, 2)
	two, _ := segment(12, 2, 2)
	epochs := Epochs{{Epoch: 1, Start: 10}, {Epoch: 2, Start: 12}}
	late := Epochs{{Epoch: 1, Start: 11}}
	inside := Epochs{{Epoch: 1, Start: 10}, {Epoch: 2, Start: 11}}
	tests := map[string]struct {
		data   []byte
		base   record.Offset
		epochs Epochs
		want   error
	}{
		"sound":                 {append(bytes.Clone(one), two...), 10, epochs, nil},
		"nothing":               {nil, 10, epochs, nil},
		"another base":          {one, 9, nil, ErrBase},
		"a gap":                 {append(bytes.Clone(one), one...), 10, nil, ErrBase},
		"no epoch yet":          {one, 10, late, ErrEpoch},
		"an old epoch":          {two, 12, Epochs{{Epoch: 3, Start: 0}}, ErrEpoch},
		"an epoch from nowhere": {two, 12, Epochs{{Epoch: 1, Start: 0}}, ErrEpoch},
		"a batch over an edge":  {one, 10, inside, ErrEpoch},
		"zeros":                 {make([]byte, 200), 0, nil, record.ErrMagic},
		"few zeros":             {make([]byte, 20), 0, nil, record.ErrShort},
		"zeros after a batch":   {append(bytes.Clone(one), make([]byte, 4096)...), 10, nil, record.ErrMagic},
	}
	for name, test := range tests {
		for _, n := range []int{1, 61, 1 << 16} {
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				opt := ScanOptions{Base: test.base, Size: int64(len(test.data))}
				if test.epochs != nil {
					opt.EpochFor = test.epochs.EpochFor
				}
				s, _ := scan(t, opt, test.data, n)
				if test.want == nil && s.Bad() == nil {
					return
				}
				if test.want == nil || s.Bad() == nil || !errors.Is(s.Bad(), test.want) {
					t.Errorf("got %v, want %v", s.Bad(), test.want)
				}
			})
		}
	}
}

func TestScannerGathersNothingForALengthThatLeadsBeyondTheSegment(t *testing.T) {
	data, _ := segment(0, 0, 1, 1)
	data[8] = 0x7f // two gigabytes
	s, got := scan(t, ScanOptions{Size: int64(len(data))}, data, 70)
	if len(got) != 0 || !errors.Is(s.Bad(), record.ErrShort) || cap(s.held) > 1<<10 {
		t.Errorf("%d batches, %v, %d bytes held", len(got), s.Bad(), cap(s.held))
	}
}

func TestScannerStaysAtABadBatch(t *testing.T) {
	bad, _ := segment(5, 0, 1)
	good, _ := segment(0, 0, 1)
	s := NewScanner(ScanOptions{Size: 1 << 20})
	var f Found
	s.Feed(bad)
	if s.Next(&f) {
		t.Fatal("a batch of another offset was taken")
	}
	first := s.Bad()
	s.Feed(good)
	if s.Next(&f) || s.End() != first || first.Position != 0 {
		t.Errorf("after a bad batch: %v", s.Bad())
	}
}

func TestScannerDoesNotAllocatePerBatch(t *testing.T) {
	data, _ := segment(0, 0, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10)
	var f Found
	n := testing.AllocsPerRun(20, func() {
		s := Scanner{opt: ScanOptions{Size: int64(len(data))}}
		s.Feed(data)
		for s.Next(&f) {
		}
	})
	if n > 0 {
		t.Errorf("%v allocations for ten batches", n)
	}
}

func FuzzScanner(f *testing.F) {
	data, _ := segment(0, 0, 1, 3)
	f.Add(data, uint16(7))
	f.Add(data[:len(data)-5], uint16(100))
	f.Add(make([]byte, 300), uint16(61))
	f.Fuzz(func(t *testing.T, data []byte, n uint16) {
		opt := ScanOptions{Size: int64(len(data))}
		whole, want := scan(t, opt, data, len(data)+1)
		cut, got := scan(t, opt, data, int(n)+1)
		if fmt.Sprint(want) != fmt.Sprint(got) || whole.Position() != cut.Position() || fmt.Sprint(whole.Bad()) != fmt.Sprint(cut.Bad()) {
			t.Fatalf("in one piece %v, %v; in pieces of %d %v, %v", want, whole.Bad(), n+1, got, cut.Bad())
		}
	})
}

func BenchmarkScanner(b *testing.B) {
	for _, count := range []int{1, 1000} {
		counts := make([]int, 4<<20/(150+50*count))
		for i := range counts {
			counts[i] = count
		}
		data, _ := segment(0, 0, counts...)
		epochs := Epochs{{Epoch: 0, Start: 0}, {Epoch: 4, Start: 1 << 40}}
		b.Run(fmt.Sprintf("piece=1MiB/batch=%d", count), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			var f Found
			for b.Loop() {
				s := NewScanner(ScanOptions{Size: int64(len(data)), EpochFor: epochs.EpochFor})
				for from := 0; from < len(data); from += 1 << 20 {
					s.Feed(data[from:min(from+1<<20, len(data))])
					for s.Next(&f) {
					}
				}
				if s.End() != nil {
					b.Fatal(s.Bad())
				}
			}
		})
	}
}
