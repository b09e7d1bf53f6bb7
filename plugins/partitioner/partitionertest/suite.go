// Package partitionertest is the conformance suite of partitioner plugins. An implementation is right when Run passes
// on it directly, through gRPC, and as a process.
//
// The suite assumes nothing about the strategy but that this version of the core can evaluate the plan; whether records
// are spread well is not its business.
package partitionertest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// Open returns a partitioner. What it started ends with the test (t.Cleanup).
type Open func(t *testing.T) partitioner.Partitioner

// Run runs the suite.
func Run(t *testing.T, open Open) {
	for _, tc := range []struct {
		name string
		test func(*testing.T, partitioner.Partitioner)
	}{
		{"describes itself", testDescribe},
		{"plans fit their topic and can be evaluated", testPlan},
		{"plans are the same each time", testDeterminism},
		{"impossible numbers of partitions are refused", testRefused},
		{"an ended context is respected", testContext},
		{"calls may run concurrently", testConcurrent},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.test(t, open(t)) })
	}
}

func testDescribe(t *testing.T, p partitioner.Partitioner) {
	d, err := p.Describe(t.Context())
	if err != nil || d.Name == "" || d.Version == "" {
		t.Fatalf("describe: %+v, %v", d, err)
	}
}

func testPlan(t *testing.T, p partitioner.Partitioner) {
	for _, count := range []int32{1, 2, 12, partition.CountMax} {
		plan, err := p.Plan(t.Context(), partitioner.PlanRequest{Topic: "orders", Partitions: count})
		if err != nil || plan.Partitions != count || plan.Version != 0 {
			t.Fatalf("plan for %d partitions: %+v, %v", count, plan, err)
		}
		eval, err := partition.NewEvaluator(plan)
		if err != nil {
			t.Fatalf("the plan for %d partitions cannot be evaluated: %v", count, err)
		}
		for _, key := range []string{"", "a", "orders", "\x00\xff"} {
			if id := eval.ForKey([]byte(key)); id < 0 || int32(id) >= count {
				t.Fatalf("key %q of %d partitions goes to %d", key, count, id)
			}
		}
	}
}

func testDeterminism(t *testing.T, p partitioner.Partitioner) {
	r := partitioner.PlanRequest{Topic: "orders", Partitions: 7}
	one, err := p.Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	two, err := p.Plan(t.Context(), r)
	if err != nil || one != two {
		t.Fatalf("%+v, then %+v, %v", one, two, err)
	}
}

func testRefused(t *testing.T, p partitioner.Partitioner) {
	for _, count := range []int32{-1, 0, partition.CountMax + 1} {
		if _, err := p.Plan(t.Context(), partitioner.PlanRequest{Topic: "orders", Partitions: count}); !errors.Is(err, partitioner.ErrRefused) {
			t.Errorf("%d partitions: %v", count, err)
		}
	}
}

func testContext(t *testing.T, p partitioner.Partitioner) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Plan(ctx, partitioner.PlanRequest{Topic: "orders", Partitions: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("plan: %v", err)
	}
	if _, err := p.Describe(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("describe: %v", err)
	}
}

func testConcurrent(t *testing.T, p partitioner.Partitioner) {
	var wg sync.WaitGroup
	for i := range int32(8) {
		wg.Go(func() {
			for range 20 {
				plan, err := p.Plan(t.Context(), partitioner.PlanRequest{Topic: "orders", Partitions: i + 1})
				if err != nil || plan.Partitions != i+1 {
					t.Errorf("plan for %d partitions: %+v, %v", i+1, plan, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
