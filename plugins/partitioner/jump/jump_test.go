package jump

import (
	"fmt"
	"testing"
)

// The values are the ones by which other implementations check themselves, such as dgryski/go-jump.
func TestBucketIsWhatOthersCompute(t *testing.T) {
	for _, tt := range []struct {
		key     uint64
		buckets int32
		want    int32
	}{
		{1, 1, 0}, {42, 57, 43}, {0xdead10cc, 1, 0}, {0xdead10cc, 666, 361}, {256, 1024, 520},
	} {
		if got := int32(bucket(tt.key, tt.buckets)); got != tt.want {
			t.Errorf("bucket(%d, %d) = %d, want %d", tt.key, tt.buckets, got, tt.want)
		}
	}
}

func TestGrowingMovesOnlyToNewPartitions(t *testing.T) {
	const keys, from, to = 20_000, 6, 8
	moved := 0
	for i := range keys {
		h := hash(fmt.Appendf(nil, "customer-%d", i))
		before, after := bucket(h, from), bucket(h, to)
		if before == after {
			continue
		}
		moved++
		if after < from {
			t.Fatalf("key %d moves from %d to %d, which was there before", i, before, after)
		}
	}
	if share := float64(moved) / keys; share < 0.22 || share > 0.28 {
		t.Errorf("%.3f of the keys move, want a quarter", share)
	}
}
