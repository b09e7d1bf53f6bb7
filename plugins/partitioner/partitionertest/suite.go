// Package partitionertest is the conformance suite of partitioner plugins. An implementation is right when Run passes
// on it directly, through gRPC, and as a process.
//
// The suite assumes nothing about the strategy but that this version of the core can evaluate the plan, or, where plans
// are of the called form, that answers depend on the key alone; whether records are spread well is not its business.
package partitionertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// TB is what the suite needs of a test; *testing.T is one.
type TB interface {
	Helper()
	Context() context.Context
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(f func())
}

// Open returns a partitioner. What it started ends with the test (Cleanup).
type Open func(t TB) partitioner.Partitioner

// Case is one thing that the core relies on.
type Case struct {
	Name string
	Run  func(t TB, open Open)
}

// Run runs every case on t. Who wants them apart ranges over Cases.
func Run(t TB, open Open) {
	for _, c := range Cases() {
		t.Logf("%s", c.Name)
		c.Run(t, open)
	}
}

// Cases returns the suite: each case opens a partitioner of its own.
func Cases() []Case {
	one := func(test func(TB, partitioner.Partitioner)) func(TB, Open) {
		return func(t TB, open Open) { test(t, open(t)) }
	}
	return []Case{
		{"describes itself", one(testDescribe)},
		{"plans fit their topic and can be evaluated", one(testPlan)},
		{"plans are the same each time", one(testDeterminism)},
		{"impossible numbers of partitions are refused", one(testRefused)},
		{"called plans have an answer for every key", one(testAssign)},
		{"answers do not depend on what is asked along", one(testAssignAlone)},
		{"answers are the same each time", one(testAssignAgain)},
		{"answers are the same after a restart", testRestart},
		{"an ended context is respected", one(testContext)},
		{"calls may run concurrently", one(testConcurrent)},
	}
}

func testDescribe(t TB, p partitioner.Partitioner) {
	d, err := p.Describe(t.Context())
	if err != nil || d.Name == "" || d.Version == "" {
		t.Fatalf("describe: %+v, %v", d, err)
	}
}

func testPlan(t TB, p partitioner.Partitioner) {
	for _, count := range []int32{1, 2, 12, partition.CountMax} {
		plan, err := p.Plan(t.Context(), partitioner.PlanRequest{Topic: "orders", Partitions: count})
		if err != nil || plan.Partitions != count || plan.Version != 0 {
			t.Fatalf("plan for %d partitions: %+v, %v", count, plan, err)
		}
		eval, err := partition.NewEvaluator(plan)
		if err != nil {
			t.Fatalf("the plan for %d partitions cannot be evaluated: %v", count, err)
		}
		if plan.Kind == partition.KindCalled {
			continue // its own test
		}
		for _, key := range []string{"", "a", "orders", "\x00\xff"} {
			if id := eval.ForKey([]byte(key)); id < 0 || int32(id) >= count {
				t.Fatalf("key %q of %d partitions goes to %d", key, count, id)
			}
		}
	}
}

func testDeterminism(t TB, p partitioner.Partitioner) {
	r := partitioner.PlanRequest{Topic: "orders", Partitions: 7}
	one, err := p.Plan(t.Context(), r)
	if err != nil {
		t.Fatalf("%v", err)
	}
	two, err := p.Plan(t.Context(), r)
	if err != nil || one != two {
		t.Fatalf("%+v, then %+v, %v", one, two, err)
	}
}

func testRefused(t TB, p partitioner.Partitioner) {
	for _, count := range []int32{-1, 0, partition.CountMax + 1} {
		if _, err := p.Plan(t.Context(), partitioner.PlanRequest{Topic: "orders", Partitions: count}); !errors.Is(err, partitioner.ErrRefused) {
			t.Errorf("%d partitions: %v", count, err)
		}
	}
}

// called returns p as an Assigner, nil where its plans are evaluated by the core.
func called(t TB, p partitioner.Partitioner) partitioner.Assigner {
	t.Helper()
	plan, err := p.Plan(t.Context(), partitioner.PlanRequest{Topic: "orders", Partitions: 7})
	if err != nil {
		t.Fatalf("%v", err)
	}
	if plan.Kind != partition.KindCalled {
		return nil
	}
	a, ok := p.(partitioner.Assigner)
	if !ok {
		t.Fatalf("its plans are called, and it answers no calls")
	}
	return a
}

// lateMax is how often a plugin may miss its 50 ms before the suite takes it for too slow, and not the machine for busy.
const lateMax = 50

// assign asks again when the answer is late.
func assign(ctx context.Context, a partitioner.Assigner, r partitioner.AssignRequest, to []partition.ID) error {
	var err error
	for range lateMax {
		if err = a.Assign(ctx, r, to); !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	return err
}

// manyKeys are short and long ones, an empty one among them.
func manyKeys(n int) *partition.Keys {
	var keys partition.Keys
	for i := range n {
		key := fmt.Appendf(nil, "%d customer", i*7919)
		keys.Append(bytes.Repeat(key, i%5))
	}
	return &keys
}

func testAssign(t TB, p partitioner.Partitioner) {
	a := called(t, p)
	if a == nil {
		return
	}
	for _, count := range []int32{1, 7, partition.CountMax} {
		for _, n := range []int{0, 1, 256, 4096} {
			keys := manyKeys(n)
			to := make([]partition.ID, n)
			for i := range to {
				to[i] = partition.None
			}
			if err := assign(t.Context(), a, partitioner.AssignRequest{Topic: "orders", Partitions: count, Keys: keys}, to); err != nil {
				t.Fatalf("%d keys for %d partitions: %v", n, count, err)
			}
			for i, key := range keys.All() {
				if to[i] < 0 || int32(to[i]) >= count {
					t.Fatalf("key %q of %d partitions goes to %d", key, count, to[i])
				}
			}
		}
	}
}

func testAssignAlone(t TB, p partitioner.Partitioner) {
	a := called(t, p)
	if a == nil {
		return
	}
	keys := manyKeys(100)
	together := make([]partition.ID, keys.Len())
	if err := assign(t.Context(), a, partitioner.AssignRequest{Topic: "orders", Partitions: 7, Keys: keys}, together); err != nil {
		t.Fatalf("%v", err)
	}
	var wg sync.WaitGroup
	for i, key := range keys.All() {
		wg.Go(func() {
			var alone partition.Keys
			alone.Append(key)
			to := []partition.ID{partition.None}
			err := assign(t.Context(), a, partitioner.AssignRequest{Topic: "orders", Partitions: 7, Keys: &alone}, to)
			if err != nil || to[0] != together[i] {
				t.Errorf("key %q goes to %d, and alone to %d, %v", key, together[i], to[0], err)
			}
		})
	}
	wg.Wait()
}

// ask asks for the partitions of many keys.
func ask(t TB, a partitioner.Assigner) []partition.ID {
	t.Helper()
	keys := manyKeys(100)
	to := make([]partition.ID, keys.Len())
	if err := assign(t.Context(), a, partitioner.AssignRequest{Topic: "orders", Partitions: 7, Keys: keys}, to); err != nil {
		t.Fatalf("assign: %v", err)
	}
	return to
}

func testAssignAgain(t TB, p partitioner.Partitioner) {
	a := called(t, p)
	if a == nil {
		return
	}
	first := ask(t, a)
	for range 20 {
		if again := ask(t, a); !slices.Equal(first, again) {
			t.Fatalf("the same keys go to %v, and then to %v", first, again)
		}
	}
}

func testRestart(t TB, open Open) {
	one, two := open(t), open(t)
	before, after := called(t, one), called(t, two)
	if before == nil || after == nil {
		return
	}
	if first, then := ask(t, before), ask(t, after); !slices.Equal(first, then) {
		t.Errorf("the same keys go to %v, and by another process to %v", first, then)
	}
}

func testContext(t TB, p partitioner.Partitioner) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Plan(ctx, partitioner.PlanRequest{Topic: "orders", Partitions: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("plan: %v", err)
	}
	if _, err := p.Describe(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("describe: %v", err)
	}
	if a, ok := p.(partitioner.Assigner); ok {
		one := manyKeys(1)
		err := a.Assign(ctx, partitioner.AssignRequest{Topic: "orders", Partitions: 1, Keys: one}, make([]partition.ID, 1))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("assign: %v", err)
		}
	}
}

func testConcurrent(t TB, p partitioner.Partitioner) {
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
