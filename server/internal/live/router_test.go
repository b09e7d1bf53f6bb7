package live

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
)

// ear is a sink that remembers what it heard, under the lock that a real one has too.
type ear struct {
	mu     sync.Mutex
	quota  Quota
	deaf   bool // takes nothing
	heard  []string
	enough func()
}

func (e *ear) Deliver(m *Message) bool {
	e.mu.Lock()
	if e.deaf {
		e.mu.Unlock()
		return false
	}
	ok, last := e.quota.Claim()
	if ok {
		e.heard = append(e.heard, fmt.Sprintf("%s %s %s %s", m.Subject, m.Reply, m.Header, m.Payload))
	}
	e.mu.Unlock()
	if last {
		e.enough()
	}
	return ok
}

func (e *ear) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.heard)
}

func listen(r *Router, pattern, group string) (*ear, *Sub) {
	e := &ear{}
	s := NewSub(Options{Pattern: pattern, Group: group, Sink: e})
	e.enough = func() { r.Remove(s) }
	r.Add(s)
	return e, s
}

func say(r *Router, subject string) int {
	var c Cache
	return r.Publish(&c, &Message{Subject: []byte(subject)})
}

func TestPatterns(t *testing.T) {
	for _, test := range []struct {
		pattern, subject string
		want             bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a", "a.b", false}, {"a.b", "a", false},
		{"*", "a", true}, {"*", "a.b", false}, {"a.*", "a.b", true}, {"a.*", "a", false}, {"*.b", "a.b", true}, {"a.*.c", "a.b.c", true},
		{">", "a", true}, {">", "a.b.c", true}, {"a.>", "a.b", true}, {"a.>", "a.b.c", true}, {"a.>", "a", false}, {"*.>", "a.b", true}, {"*.>", "a", false},
		{"a.b*", "a.b*", true}, {"a.b*", "a.bc", false}, {"a.>b", "a.>b", true},
		{">", "", false}, {">", "a..b", false}, {">", ".a", false}, {">", "a.", false}, {"*", "", false},
		{"a.*", "a.*", true}, {"a.b", "a.*", false}, {"a.>", "a.>", true}, // a subject that looks like a pattern is one subject
	} {
		r := NewRouter()
		e, _ := listen(r, test.pattern, "")
		if n := say(r, test.subject); (n == 1) != test.want || e.count() != n {
			t.Errorf("%q on %q: delivered to %d", test.subject, test.pattern, n)
		}
	}
}

func TestMessageArrivesWhole(t *testing.T) {
	r := NewRouter()
	e, _ := listen(r, "a", "")
	var c Cache
	r.Publish(&c, &Message{Subject: []byte("a"), Reply: []byte("re"), Header: []byte("head"), Payload: []byte("body")})
	if want := []string{"a re head body"}; !slices.Equal(e.heard, want) {
		t.Errorf("heard %q", e.heard)
	}
}

func TestGroupGetsEachMessageOnceWhateverItsPatterns(t *testing.T) {
	r := NewRouter()
	a, _ := listen(r, "x.y", "g")
	b, _ := listen(r, "x.*", "g")
	other, _ := listen(r, "x.*", "h")
	plain, _ := listen(r, ">", "")
	for range 300 {
		if n := say(r, "x.y"); n != 3 {
			t.Fatalf("delivered to %d", n)
		}
	}
	if a.count()+b.count() != 300 || a.count() == 0 || b.count() == 0 || other.count() != 300 || plain.count() != 300 {
		t.Errorf("members heard %d and %d, the other group %d, the plain one %d", a.count(), b.count(), other.count(), plain.count())
	}
	b.deaf = true
	before := a.count()
	for range 100 {
		say(r, "x.y")
	}
	if a.count() != before+100 {
		t.Errorf("what one member does not take reaches the other %d times of 100", a.count()-before)
	}
}

func TestQuotaIsExactAmongManyPublishers(t *testing.T) {
	r := NewRouter()
	e, _ := listen(r, "a", "")
	if e.quota.Limit(500) {
		t.Fatal("the limit is reached before the first message")
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var c Cache
			for range 200 {
				r.Publish(&c, &Message{Subject: []byte("a")})
			}
		})
	}
	wg.Wait()
	if e.count() != 500 || r.Len() != 0 {
		t.Errorf("heard %d of 500, %d subscriptions are left", e.count(), r.Len())
	}
	if !e.quota.Limit(500) || !e.quota.Limit(0) || e.quota.Limit(501) {
		t.Error("a limit that was reached, or not, is told wrongly")
	}
}

func TestOwnMessagesArePassedBy(t *testing.T) {
	r, me := NewRouter(), new(int)
	e := &ear{}
	r.Add(NewSub(Options{Pattern: "a", Sink: e, NotFrom: me}))
	var c Cache
	if n := r.Publish(&c, &Message{Subject: []byte("a"), From: me}); n != 0 {
		t.Errorf("own message delivered to %d", n)
	}
	if n := r.Publish(&c, &Message{Subject: []byte("a"), From: new(int)}); n != 1 || e.count() != 1 {
		t.Errorf("another's message delivered to %d", n)
	}
}

func TestCacheSeesEveryChange(t *testing.T) {
	r := NewRouter()
	var c Cache
	m := &Message{Subject: []byte("a")}
	for round := range 3 {
		if n := r.Publish(&c, m); n != 0 {
			t.Fatalf("round %d: delivered to %d before anybody listens", round, n)
		}
		_, s := listen(r, "a", "")
		_, all := listen(r, ">", "")
		if n := r.Publish(&c, m); n != 2 {
			t.Fatalf("round %d: delivered to %d of 2", round, n)
		}
		r.Remove(s)
		r.Remove(s) // twice is safe
		if n := r.Publish(&c, m); n != 1 {
			t.Fatalf("round %d: delivered to %d of 1", round, n)
		}
		r.Remove(all)
	}
	listen(r, "*", "")
	for i := range 3 * cacheMax { // more subjects than it remembers
		if n := r.Publish(&c, &Message{Subject: fmt.Appendf(nil, "s%d", i)}); n != 1 || len(c.known) > cacheMax {
			t.Fatalf("subject %d: delivered to %d, %d subjects are remembered", i, n, len(c.known))
		}
	}
}

func TestRemovedBeforeAddedIsNeverThere(t *testing.T) {
	r := NewRouter()
	s := NewSub(Options{Pattern: "a", Sink: &ear{}})
	r.Remove(s)
	r.Add(s)
	if r.Len() != 0 || say(r, "a") != 0 {
		t.Error("it is there")
	}
}

func TestVisitFindsMembersOfGroupsToo(t *testing.T) {
	r := NewRouter()
	a, _ := listen(r, "a.*", "")
	b, _ := listen(r, "a.b", "g")
	c, _ := listen(r, "a.>", "g")
	listen(r, "b", "")
	found := map[Sink]int{}
	r.Visit([]byte("a.b"), func(s Sink) { found[s]++ })
	if len(found) != 3 || found[a] != 1 || found[b] != 1 || found[c] != 1 {
		t.Errorf("found %v", found)
	}
}

// model is the router as one would explain it: a list that is walked for each message.
type model struct {
	subs []modelSub
}

type modelSub struct {
	pattern, group string
	sub            *Sub
	ear            *ear
}

func (m *model) matches(subject string) (plain []modelSub, groups map[string][]modelSub) {
	groups = map[string][]modelSub{}
	for _, s := range m.subs {
		switch {
		case !naive(strings.Split(s.pattern, "."), strings.Split(subject, ".")):
		case s.group == "":
			plain = append(plain, s)
		default:
			groups[s.group] = append(groups[s.group], s)
		}
	}
	return plain, groups
}

func naive(pattern, subject []string) bool {
	if slices.Contains(subject, "") {
		return false
	}
	for i, p := range pattern {
		switch {
		case p == ">" && i == len(pattern)-1:
			return len(subject) > i
		case i >= len(subject) || p != "*" && p != subject[i]:
			return false
		}
	}
	return len(pattern) == len(subject)
}

// TestRouterAgreesWithAModel runs random scripts on a router and on the model.
func TestRouterAgreesWithAModel(t *testing.T) {
	for seed := range uint64(200) {
		runScript(t, rand.New(rand.NewPCG(seed, 1)))
	}
}

func runScript(t *testing.T, rnd *rand.Rand) {
	t.Helper()
	token := func(words ...string) string { return words[rnd.IntN(len(words))] }
	pick := func(words ...string) string {
		tokens := make([]string, 1+rnd.IntN(4))
		for i := range tokens {
			tokens[i] = token(words...)
		}
		return strings.Join(tokens, ".")
	}
	r, m := NewRouter(), &model{}
	var c Cache
	for range 150 {
		switch k := rnd.IntN(10); {
		case k < 3:
			s := modelSub{pattern: pick("a", "b", "c", "*", "*", ">"), group: token("", "", "g", "h")}
			s.ear, s.sub = listen(r, s.pattern, s.group)
			m.subs = append(m.subs, s)
		case k < 4 && len(m.subs) > 0:
			i := rnd.IntN(len(m.subs))
			r.Remove(m.subs[i].sub)
			m.subs = slices.Delete(m.subs, i, i+1)
		default:
			compare(t, r, m, &c, pick("a", "b", "c", "d", "a", ""))
		}
		if r.Len() != len(m.subs) {
			t.Fatalf("router has %d subscriptions, model %d", r.Len(), len(m.subs))
		}
	}
	for _, s := range m.subs {
		r.Remove(s.sub)
	}
	if !r.root.idle() {
		t.Fatal("the empty router keeps nodes")
	}
}

// compare publishes one message, by a remembered look-up or not, and compares who heard it.
func compare(t *testing.T, r *Router, m *model, c *Cache, subject string) {
	t.Helper()
	before := map[*ear]int{}
	for _, s := range m.subs {
		before[s.ear] = s.ear.count()
	}
	publish := r.Publish
	if len(subject)%2 == 0 {
		publish = r.PublishOnce
	}
	n := publish(c, &Message{Subject: []byte(subject)})
	plain, groups := m.matches(subject)
	if want := len(plain) + len(groups); n != want {
		t.Fatalf("%q: delivered to %d, want %d", subject, n, want)
	}
	for _, s := range plain {
		before[s.ear]++
	}
	for name, members := range groups {
		got := 0
		for _, s := range members {
			got += s.ear.count() - before[s.ear]
			before[s.ear] = s.ear.count()
		}
		if got != 1 {
			t.Fatalf("%q: group %s heard it %d times", subject, name, got)
		}
	}
	for _, s := range m.subs {
		if s.ear.count() != before[s.ear] {
			t.Fatalf("%q: %q heard it %d times, want %d", subject, s.pattern, s.ear.count(), before[s.ear])
		}
	}
}

func FuzzRouter(f *testing.F) {
	f.Add("a.*.c", "a.b.c")
	f.Add(">", "a..b")
	f.Add("a.>", "a.>")
	f.Add("..", "..")
	f.Fuzz(func(t *testing.T, pattern, subject string) {
		r := NewRouter()
		_, s := listen(r, pattern, "")
		if got, want := say(r, subject) == 1, naive(strings.Split(pattern, "."), strings.Split(subject, ".")); got != want {
			t.Fatalf("%q on %q: %v, want %v", subject, pattern, got, want)
		}
		r.Remove(s)
		if !r.root.idle() {
			t.Fatal("the empty router keeps nodes")
		}
	})
}

func TestPublishDoesNotAllocate(t *testing.T) {
	r := NewRouter()
	quiet := &ear{deaf: true}
	for _, p := range []string{"a.b", "a.*", "_INBOX.x.*"} {
		r.Add(NewSub(Options{Pattern: p, Sink: quiet}))
		r.Add(NewSub(Options{Pattern: p, Group: "g", Sink: quiet}))
	}
	var c Cache
	here, nowhere, inbox := &Message{Subject: []byte("a.b")}, &Message{Subject: []byte("a.b.c")}, &Message{Subject: []byte("_INBOX.x.1")}
	for name, f := range map[string]func(){
		"to somebody": func() { r.Publish(&c, here) },
		"to nobody":   func() { r.Publish(&c, nowhere) },
		"once":        func() { r.PublishOnce(&c, inbox) },
	} {
		f()
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// nobody is a sink that costs nothing.
type nobody struct{}

func (nobody) Deliver(*Message) bool { return true }

func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{0, 1, 100, 10_000} {
		b.Run(fmt.Sprintf("subscriptions=%d/all=match", n), func(b *testing.B) { publishTo(b, n, func(int) string { return "live.x" }) })
		b.Run(fmt.Sprintf("subscriptions=%d/one=match", n), func(b *testing.B) {
			publishTo(b, n, func(i int) string { return fmt.Sprintf("live.%d", i) }, "live.0")
		})
	}
}

func publishTo(b *testing.B, n int, pattern func(i int) string, subject ...string) {
	r := NewRouter()
	for i := range n {
		r.Add(NewSub(Options{Pattern: pattern(i), Sink: nobody{}}))
	}
	m := &Message{Subject: []byte("live.x"), Payload: make([]byte, 100)}
	if len(subject) > 0 {
		m.Subject = []byte(subject[0])
	}
	var c Cache
	b.ReportAllocs()
	for b.Loop() {
		r.Publish(&c, m)
	}
}

func BenchmarkPublishWhileSubscriptionsChange(b *testing.B) {
	r := NewRouter()
	for i := range 10_000 {
		r.Add(NewSub(Options{Pattern: fmt.Sprintf("live.%d.*", i), Sink: nobody{}}))
	}
	var c Cache
	m := &Message{Subject: []byte("live.1.x")}
	b.ReportAllocs()
	for b.Loop() {
		s := NewSub(Options{Pattern: "_INBOX.a.b", Sink: nobody{}})
		r.Add(s)
		r.Publish(&c, m)
		r.Remove(s)
	}
}
