package partition

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/segmentio/kafka-go"
)

func evaluator(t testing.TB, kind string, partitions int32) *Evaluator {
	t.Helper()
	e, err := NewEvaluator(Plan{Kind: kind, Partitions: partitions})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestCRC32IsLibrdkafkas(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	theirs := kafka.CRC32Balancer{Consistent: true}
	for _, n := range []int{1, 2, 3, 7, 12, 100, CountMax} {
		e := evaluator(t, KindCRC32, int32(n))
		all := make([]int, n)
		for i := range all {
			all[i] = i
		}
		for i := range 2000 {
			key := make([]byte, 1+i%200)
			for j := range key {
				key[j] = byte(rng.Uint32())
			}
			if got, want := e.ForKey(key), theirs.Balance(kafka.Message{Key: key}, all...); int(got) != want {
				t.Fatalf("key % x of %d partitions: %d, librdkafka says %d", key, n, got, want)
			}
		}
	}
}

// The check value is the one of the catalogue of CRCs for CRC-32/ISO-HDLC.
func TestCRC32OfTheCheckValue(t *testing.T) {
	const sum, n = uint32(0xcbf43926), 1000
	if got := evaluator(t, KindCRC32, n).ForKey([]byte("123456789")); got != ID(sum%n) {
		t.Errorf("got %d", got)
	}
}

func TestCRC32TakesAnEmptyKeyForNone(t *testing.T) {
	e := evaluator(t, KindCRC32, 3)
	for i := range 6 {
		if got := e.ForKey([]byte{}); got != ID(i%3) {
			t.Errorf("step %d goes to %d", i, got)
		}
	}
}

func TestFNV1aIsNATSs(t *testing.T) {
	for _, n := range []int32{1, 2, 3, 10, 64, 1000} {
		e := evaluator(t, KindFNV1a, n)
		theirs, err := server.NewSubjectTransform("k.*", fmt.Sprintf("p.{{partition(%d,1)}}", n))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 1000 {
			key := strings.Repeat("x", i%40) + strconv.Itoa(i)
			to, err := theirs.Match("k." + key)
			if err != nil {
				t.Fatal(err)
			}
			if got := e.ForKey([]byte(key)); fmt.Sprintf("p.%d", got) != to {
				t.Fatalf("key %q of %d partitions: %d, NATS says %s", key, n, got, to)
			}
		}
	}
}

// The values are from the FNV authors' test suite.
func TestFNV1aIsItsAuthors(t *testing.T) {
	for key, want := range map[string]uint32{"": 0x811c9dc5, "a": 0xe40c292c, "foobar": 0xbf9cf968} {
		if got := fnv1a([]byte(key)); got != want {
			t.Errorf("fnv1a(%q) = %#x, want %#x", key, got, want)
		}
	}
}

func TestRoundRobinIgnoresKeys(t *testing.T) {
	e := evaluator(t, KindRoundRobin, 3)
	for i := range 9 {
		if got := e.ForKey([]byte("always the same")); got != ID(i%3) {
			t.Errorf("record %d goes to %d", i, got)
		}
	}
	if got := e.Next(); got != 0 {
		t.Errorf("a batch without keys goes to %d", got)
	}
}

func TestStickyStaysForABatchAndThenMoves(t *testing.T) {
	e := evaluator(t, KindSticky, 5)
	var seen [5]int
	last := None
	for run := range 500 {
		at := e.ForKey([]byte(strconv.Itoa(run)))
		for i := 1; i < StickyRecords; i++ {
			if got := e.ForKey([]byte(strconv.Itoa(i))); got != at {
				t.Fatalf("run %d: record %d goes to %d, not to %d", run, i, got, at)
			}
		}
		if at == last {
			t.Fatalf("run %d stays at %d", run, at)
		}
		last = at
		seen[at]++
	}
	for p, n := range seen {
		if n < 50 || n > 150 {
			t.Errorf("partition %d got %d of 500 runs", p, n)
		}
	}
	for range 20 {
		if got := e.Next(); got == last {
			t.Errorf("a new batch stays at %d", got)
		} else {
			last = got
		}
	}
	if got := e.ForKey(nil); got == last {
		t.Errorf("a record joins the batch without keys at %d", got)
	}
}

func TestStickyWithOnePartitionStays(t *testing.T) {
	e := evaluator(t, KindSticky, 1)
	for range 3 * StickyRecords {
		if got := e.ForKey(nil); got != 0 {
			t.Fatal(got)
		}
	}
}

func TestStickyStaysInRangeAmongCallers(t *testing.T) {
	const callers, records, partitions = 4, 4 * StickyRecords, 3
	e := evaluator(t, KindSticky, partitions)
	var seen [callers][partitions]int
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for range records {
				seen[c][e.ForKey(nil)]++
			}
		})
	}
	wg.Wait()
	for p := range partitions {
		sum := 0
		for c := range callers {
			sum += seen[c][p]
		}
		if sum%StickyRecords != 0 {
			t.Errorf("partition %d got %d records, not whole runs", p, sum)
		}
	}
}

func TestCalledPlansChooseNothingForAKey(t *testing.T) {
	e := evaluator(t, KindCalled, 3)
	if got := e.ForKey([]byte("k")); got != None {
		t.Errorf("got %d", got)
	}
	if a, b := e.Next(), e.Next(); a != 0 || b != 1 {
		t.Errorf("got %d, %d", a, b)
	}
}

func TestPlansSayWhetherKeysStay(t *testing.T) {
	for _, tt := range []struct {
		from, to Plan
		want     bool
	}{
		{Plan{Kind: KindMurmur2, Partitions: 3}, Plan{Kind: KindMurmur2, Partitions: 3, Version: 9}, true},
		{Plan{Kind: KindMurmur2, Partitions: 3}, Plan{Kind: KindMurmur2, Partitions: 3, Partitioner: "other"}, true},
		{Plan{Kind: KindMurmur2, Partitions: 3}, Plan{Kind: KindMurmur2, Partitions: 4}, false},
		{Plan{Kind: KindMurmur2, Partitions: 3}, Plan{Kind: KindCRC32, Partitions: 3}, false},
		{Plan{Kind: KindMurmur2, Partitions: 1}, Plan{Kind: KindCRC32, Partitions: 1}, true},
		{Plan{Kind: KindSticky, Partitions: 3}, Plan{Kind: KindSticky, Partitions: 3}, false},
		{Plan{Kind: KindCalled, Partitions: 3, Partitioner: "a"}, Plan{Kind: KindCalled, Partitions: 3, Partitioner: "a"}, true},
		{Plan{Kind: KindCalled, Partitions: 3, Partitioner: "a"}, Plan{Kind: KindCalled, Partitions: 3, Partitioner: "b"}, false},
	} {
		if got := tt.from.Places(tt.to); got != tt.want {
			t.Errorf("%+v to %+v: %v", tt.from, tt.to, got)
		}
	}
	if (Plan{Kind: KindRoundRobin}).Keyed() || (Plan{Kind: KindSticky}).Keyed() || !(Plan{Kind: KindCalled}).Keyed() {
		t.Error("which strategies keep keys together is wrong")
	}
	if (Plan{Kind: "a"}).By() != "a" || (Plan{Kind: "a", Partitioner: "b"}).By() != "b" {
		t.Error("whose plan it is is wrong")
	}
}

func BenchmarkForKey(b *testing.B) {
	for _, kind := range []string{KindMurmur2, KindCRC32, KindFNV1a, KindRoundRobin, KindSticky} {
		b.Run("kind="+kind+"/key=16", func(b *testing.B) {
			e := evaluator(b, kind, 64)
			key := []byte("customer-0000042")
			b.ReportAllocs()
			for b.Loop() {
				e.ForKey(key)
			}
		})
	}
}
