package partition

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

func TestForKeyIsKafkasDefault(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	theirs := kgo.StickyKeyPartitioner(nil).ForTopic("t")
	for _, n := range []int{1, 2, 3, 6, 7, 12, 100, CountMax} {
		e, err := NewEvaluator(Plan{Kind: KindMurmur2, Partitions: int32(n)})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5000 {
			key := make([]byte, i%300) // every remainder of four, and the empty key
			for j := range key {
				key[j] = byte(rng.Uint32())
			}
			if got, want := e.ForKey(key), theirs.Partition(&kgo.Record{Key: key}, n); int(got) != want {
				t.Fatalf("key % x of %d partitions: %d, Kafka says %d", key, n, got, want)
			}
		}
	}
}

// The values are those of Kafka's own UtilsTest.
func TestMurmur2IsKafkas(t *testing.T) {
	for key, want := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		if got := int32(murmur2([]byte(key))); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", key, got, want)
		}
	}
}

func TestNextGoesRound(t *testing.T) {
	e, err := NewEvaluator(Plan{Kind: KindMurmur2, Partitions: 3})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 7 {
		if got := e.Next(); got != ID(i%3) {
			t.Errorf("step %d goes to %d", i, got)
		}
	}
}

func TestNextSpreadsEvenlyAmongCallers(t *testing.T) {
	const callers, steps, partitions = 8, 600, 6
	e, err := NewEvaluator(Plan{Kind: KindMurmur2, Partitions: partitions})
	if err != nil {
		t.Fatal(err)
	}
	var seen [callers][partitions]int
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for range steps {
				seen[c][e.Next()]++
			}
		})
	}
	wg.Wait()
	for p := range partitions {
		sum := 0
		for c := range callers {
			sum += seen[c][p]
		}
		if sum != callers*steps/partitions {
			t.Errorf("partition %d was chosen %d times", p, sum)
		}
	}
}

func TestEvaluatorRefusesPlans(t *testing.T) {
	for _, p := range []Plan{{}, {Kind: "murmur3", Partitions: 1}, {Kind: KindMurmur2}, {Kind: KindMurmur2, Partitions: -1}, {Kind: KindMurmur2, Partitions: CountMax + 1}} {
		t.Run(fmt.Sprintf("%s %d", p.Kind, p.Partitions), func(t *testing.T) {
			if e, err := NewEvaluator(p); !errors.Is(err, ErrPlan) || e != nil {
				t.Errorf("got %v, %v", e, err)
			}
		})
	}
	e, err := NewEvaluator(Plan{Version: 4, Kind: KindMurmur2, Partitions: CountMax})
	if err != nil || e.Plan().Version != 4 {
		t.Errorf("got %v", err)
	}
}

func TestForKeyDoesNotAllocate(t *testing.T) {
	e, err := NewEvaluator(Plan{Kind: KindMurmur2, Partitions: 12})
	if err != nil {
		t.Fatal(err)
	}
	key := []byte("customer-42")
	if n := testing.AllocsPerRun(100, func() { e.ForKey(key); e.Next() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
