package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	plan "github.com/trunkline-mq/trunkline/protocol/partition"
)

// oracle answers as a plugin would, by a function.
type oracle struct {
	mu    sync.Mutex
	calls int
	keys  int
	of    func(call, i int, key []byte) plan.ID
	err   error

	blamed []error
}

func (o *oracle) assign(_ context.Context, r partitioner.AssignRequest, to []plan.ID) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls++
	o.keys += r.Keys.Len()
	for i, key := range r.Keys.All() {
		to[i] = o.of(o.calls, i, key)
	}
	return o.err
}

func (o *oracle) blame(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.blamed = append(o.blamed, err)
}

func byLength(_, _ int, key []byte) plan.ID { return plan.ID(len(key) % 3) }

func calledTopic(t *testing.T, o asker, fault *errcode.Error) *Topic {
	t.Helper()
	e, err := plan.NewEvaluator(plan.Plan{Kind: plan.KindCalled, Partitions: 3})
	if err != nil {
		t.Fatal(err)
	}
	return &Topic{Plan: e, called: newCalled("t", 3, o, fault), life: &life{}}
}

func TestCalledKeysGoWhereThePluginSays(t *testing.T) {
	topic := calledTopic(t, &oracle{of: byLength}, nil)
	var keys plan.Keys
	for n := range 50 {
		keys.Append([]byte(strings.Repeat("x", n)))
	}
	to := make([]plan.ID, keys.Len())
	for range 40 {
		if err := topic.ChooseAll(t.Context(), &keys, to); err != nil {
			t.Fatal(err)
		}
		for i, at := range to {
			if at != plan.ID(i%3) {
				t.Errorf("key %d goes to %d", i, at)
			}
		}
		if keys.Len() != 50 || len(keys.Blob) != 49*50/2 {
			t.Fatalf("the keys came back as %d of %d bytes", keys.Len(), len(keys.Blob))
		}
		if at, err := topic.Choose(t.Context(), []byte("four")); err != nil || at != 1 {
			t.Errorf("%d, %v", at, err)
		}
	}
}

func TestAPluginThatWaversIsRefused(t *testing.T) {
	for name, of := range map[string]func(call, i int, key []byte) plan.ID{
		"within a call":  func(_, i int, _ []byte) plan.ID { return plan.ID(i % 3) },
		"between calls":  func(call, _ int, _ []byte) plan.ID { return plan.ID(call % 3) },
		"after a change": func(call, _ int, key []byte) plan.ID { return plan.ID((len(key) + call/30) % 3) },
	} {
		t.Run(name, func(t *testing.T) {
			o := &oracle{of: of}
			topic := calledTopic(t, o, nil)
			for range 100 {
				at, err := topic.Choose(t.Context(), []byte("k"))
				if err == nil {
					continue
				}
				if err.Code != errcode.PartitionerUnavailable || err.Code.Outcome() != errcode.Definite || !errors.Is(err, errUnsteady) || at != plan.None {
					t.Errorf("got %d, %v", at, err)
				}
				if len(o.blamed) != 1 || !errors.Is(o.blamed[0], errUnsteady) {
					t.Errorf("it is blamed for %v", o.blamed)
				}
				return
			}
			t.Error("it was believed a hundred times")
		})
	}
}

func TestAFailingPluginLeavesNoPartition(t *testing.T) {
	broken := errors.New("broken")
	for name, topic := range map[string]*Topic{
		"it fails":      calledTopic(t, &oracle{of: byLength, err: broken}, nil),
		"there is none": calledTopic(t, nil, errcode.Wrap(errcode.BadSetting, broken, "there is none", "")),
	} {
		var keys plan.Keys
		keys.Append([]byte("k"))
		to := []plan.ID{2}
		err := topic.ChooseAll(t.Context(), &keys, to)
		if err == nil || err.Code != errcode.PartitionerUnavailable || !errors.Is(err, broken) || to[0] != plan.None || keys.Len() != 1 {
			t.Errorf("%s: %v, to %v", name, err, to)
		}
	}
}

func TestAheadAsksOnceForAWrite(t *testing.T) {
	o := &oracle{of: byLength}
	topic := calledTopic(t, o, nil)
	var a Ahead
	key := func(i int) []byte { return []byte(strings.Repeat("k", i)) }
	const n = 20
	for i := range n {
		at, err := a.Choose(t.Context(), topic, key(i), func(keys *plan.Keys) {
			for j := i + 1; j < n; j++ {
				keys.Append(key(j))
			}
		})
		if err != nil || at != plan.ID(i%3) {
			t.Errorf("key %d goes to %d, %v", i, at, err)
		}
	}
	if o.calls != 1 || o.keys != n+2 {
		t.Errorf("%d calls for %d keys", o.calls, o.keys)
	}
	// A guess that was wrong, and a plan that has changed since, are asked for again.
	none := func(*plan.Keys) {}
	guess := func(keys *plan.Keys) { keys.Append([]byte("guess")) }
	for _, step := range []struct {
		topic *Topic
		key   string
		calls int
	}{{topic, "a", 2}, {topic, "other", 3}, {topic, "b", 4}, {calledTopic(t, o, nil), "guess", 5}} {
		more := guess
		if step.key == "other" {
			more = none
		}
		at, err := a.Choose(t.Context(), step.topic, []byte(step.key), more)
		if err != nil || at != plan.ID(len(step.key)%3) || o.calls != step.calls {
			t.Errorf("%s: %d, %v, %d calls", step.key, at, err, o.calls)
		}
	}
	o.err = errors.New("broken")
	if at, err := a.Choose(t.Context(), topic, []byte("x"), none); err == nil || at != plan.None {
		t.Errorf("a failure gives %d", at)
	}
	o.err = nil
	if at, err := a.Choose(t.Context(), topic, []byte("x"), none); err != nil || at != 1 {
		t.Errorf("after a failure: %d, %v", at, err)
	}
}

// TestWhatWasAskedIsTakenWhileItIsAnswered: two questions are out at once, and nobody waits for the second one's answer but who
// takes of it.
func TestWhatWasAskedIsTakenWhileItIsAnswered(t *testing.T) {
	const n = 100
	var both sync.WaitGroup
	both.Add(2)
	waiting := &meeting{both: &both}
	topic, other := calledTopic(t, waiting, nil), calledTopic(t, waiting, nil)
	asked := []*Asked{NewAsked(topic), NewAsked(other), NewAsked(topic)}
	key := func(i int) []byte { return []byte(strings.Repeat("k", i)) }
	for i := range n {
		asked[i*2/n*2].Add(key(i))
		if i%10 == 0 {
			asked[1].Add(key(i))
		}
	}
	var a Ahead
	a.Expect(asked)
	var wg sync.WaitGroup
	for _, q := range asked[:2] {
		wg.Go(func() { q.Ask(t.Context()) })
	}
	none := func(*plan.Keys) { t.Error("what was asked is asked again") }
	for i := range n / 2 {
		if i%5 == 4 {
			continue // its record was refused before
		}
		at, err := a.Choose(t.Context(), topic, key(i), none)
		if err != nil || at != plan.ID(i%3) {
			t.Fatalf("key %d goes to %d, %v", i, at, err)
		}
		if i%10 == 0 {
			if at, err := a.Choose(t.Context(), other, key(i), none); err != nil || at != plan.ID(i%3) {
				t.Fatalf("key %d of the other topic goes to %d, %v", i, at, err)
			}
		}
	}
	wg.Wait()
	waiting.err = errors.New("broken")
	asked[2].Ask(t.Context())
	for i := n / 2; i < n; i++ { // of one question, which failed: nobody is asked again
		if at, err := a.Choose(t.Context(), topic, key(i), none); err == nil || at != plan.None {
			t.Fatalf("key %d goes to %d", i, at)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	unasked := NewAsked(calledTopic(t, waiting, nil))
	unasked.topic.Meta.Name = "t"
	unasked.Add([]byte("k"))
	a.Expect([]*Asked{unasked})
	if _, err := a.Choose(ended, unasked.topic, []byte("k"), none); err == nil || !errors.Is(err, context.Canceled) {
		t.Errorf("an ended connection: %v", err)
	}
}

// meeting answers the first two calls when both are there.
type meeting struct {
	both *sync.WaitGroup
	mu   sync.Mutex
	came int
	err  error
}

func (m *meeting) assign(_ context.Context, r partitioner.AssignRequest, to []plan.ID) error {
	m.mu.Lock()
	m.came++
	came := m.came
	m.mu.Unlock()
	if came <= 2 {
		m.both.Done()
		m.both.Wait()
	}
	for i, key := range r.Keys.All() {
		to[i] = byLength(0, i, key)
	}
	return m.err
}

func (m *meeting) blame(error) {}

func TestRecentKeysAreABoundedSample(t *testing.T) {
	var r recentKeys
	r.note([]byte(strings.Repeat("x", recentKeyBytesMax+1)))
	for range 3 {
		r.note([]byte("twice"))
	}
	r.note(nil)
	if got := r.distinct(); got.Len() != 2 {
		t.Errorf("%d keys", got.Len())
	}
	for i := range 200 * recentMax {
		r.note(fmt.Appendf(nil, "key %d", i))
	}
	keys := r.distinct()
	late := 0
	for _, key := range keys.All() {
		var n int
		if _, err := fmt.Sscanf(string(key), "key %d", &n); err == nil && n > 50*recentMax {
			late++
		}
	}
	if keys.Len() != recentMax || late < recentMax/2 {
		t.Errorf("%d keys, %d of them late ones", keys.Len(), late)
	}
	if n := testing.AllocsPerRun(2000, func() { r.note([]byte("key 1234")) }); n != 0 {
		t.Errorf("%v allocations a key", n)
	}
}

func BenchmarkChoose(b *testing.B) {
	e, err := plan.NewEvaluator(plan.Plan{Kind: plan.KindMurmur2, Partitions: 64})
	if err != nil {
		b.Fatal(err)
	}
	topic := &Topic{Plan: e, life: &life{}}
	key := []byte("customer-0000042")
	b.Run("kind=murmur2/key=16", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = topic.Choose(context.Background(), key)
		}
	})
}
