package conn

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/server/internal/live"
)

// listener is a connection nobody serves, with one subscription to live subjects.
func listener(t *testing.T, limit int) (*conn, *subscription) {
	t.Helper()
	s := NewServer(Options{
		Tuning: Tuning{Pending: limit, WriteDeadline: time.Second}, Limits: line.Limits{ControlLine: 4096, Payload: 1 << 20},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	here, there := net.Pipe()
	t.Cleanup(func() { _, _ = here.Close(), there.Close() })
	c := newConn(s, here)
	sub, err := c.newSubscription(&line.Command{Verb: line.Sub, Args: [][]byte{[]byte("_INBOX.>"), []byte("1")}})
	if err != nil {
		t.Fatal(err)
	}
	c.subs.put(sub)
	s.live.Add(sub.heard)
	return c, sub
}

func TestLiveMessagesDoNotAllocate(t *testing.T) {
	c, _ := listener(t, 1<<20)
	c.opt.verbose = false
	cmd := &line.Command{Verb: line.Pub, Payload: make([]byte, 100)}
	subject, reply := []byte("_INBOX.a"), []byte("_INBOX.b")
	round := func() {
		for range 100 {
			if err := c.publishLive(cmd, subject, reply); err != nil {
				t.Fatal(err)
			}
		}
		c.voice.wake()
		c.box.buf, c.box.live = c.box.buf[:0], 0
	}
	round()
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations for 100 messages", n)
	}
}

func TestWhoLetsTooMuchWaitIsToldLast(t *testing.T) {
	const limit = 64 << 10
	c, sub := listener(t, limit)
	s := &speaker{id: 1}
	m := &live.Message{Subject: []byte("_INBOX.a"), Payload: make([]byte, 1000), From: s}
	n := 0
	for sub.Deliver(m) {
		if n++; n > limit/1000 {
			t.Fatalf("%d messages of 1000 bytes wait", n)
		}
	}
	if n < limit/1000-5 {
		t.Errorf("cut off with only %d messages waiting", n)
	}
	c.box.say(func(dst []byte) []byte { return append(dst, "too late"...) })
	c.box.frame(func(dst []byte) []byte { return append(dst, "too late"...) })
	c.box.lastWord(func(dst []byte) []byte { return append(dst, "too late"...) })
	if got := string(c.box.buf); !strings.HasPrefix(got, "-ERR ASYNC SLOW_CONSUMER 'SUB _INBOX.>: ") || strings.Count(got, "\n") != 1 {
		t.Errorf("what is left to say is %.200q", got)
	}
	select {
	case <-c.stop:
	default:
		t.Error("the reader goes on")
	}
	if c.box.waitRoom(nil) {
		t.Error("there is room for more")
	}
}

// TestOneMessageLargerThanTheBoundIsTaken: a bound that a payload may exceed must not cut off who has read everything.
func TestOneMessageLargerThanTheBoundIsTaken(t *testing.T) {
	_, sub := listener(t, 1000)
	m := &live.Message{Subject: []byte("_INBOX.a"), Payload: make([]byte, 2000), From: &speaker{id: 1}}
	if !sub.Deliver(m) || sub.Deliver(m) {
		t.Error("the first one is refused, or the second one is not")
	}
}

func TestQuotaEndsASubscriptionExactly(t *testing.T) {
	c, sub := listener(t, 1<<20)
	c.handleUnsub(&line.Command{Verb: line.Unsub, Args: [][]byte{[]byte("1"), []byte("3")}})
	m := &live.Message{Subject: []byte("_INBOX.a"), From: &speaker{id: 1}}
	for i := range 5 {
		if got := sub.Deliver(m); got != (i < 3) {
			t.Errorf("message %d: taken %v", i, got)
		}
	}
	if known, n := c.subs.find([]byte("1")); known != nil || n != 0 || c.srv.live.Len() != 0 {
		t.Error("the subscription is not forgotten")
	}
}

func TestPublisherWaitsForASlowerSubscriberAndNotForEver(t *testing.T) {
	c, sub := listener(t, 10_000)
	s := &speaker{id: 1, patience: 5 * time.Millisecond}
	m := &live.Message{Subject: []byte("_INBOX.a"), Payload: make([]byte, 1000), From: s}
	for range 4 {
		sub.Deliver(m)
	}
	if s.slow != nil {
		t.Error("it is slow before half of the bound waits")
	}
	for range 4 {
		sub.Deliver(m)
	}
	if s.slow != c.box {
		t.Fatal("it is not slow with more than half of the bound waiting")
	}
	s.pace(nil)
	if s.patience > 0 || s.slow != nil {
		t.Errorf("%s of its patience are left", s.patience)
	}
	sub.Deliver(m)
	s.patience = time.Hour
	c.box.mu.Lock()
	c.box.buf, c.box.live = c.box.buf[:0], 0
	c.box.freeLocked()
	c.box.mu.Unlock()
	s.pace(nil) // returns: nothing waits any more
}

func TestNeverTopic(t *testing.T) {
	for _, test := range []struct {
		pattern string
		want    bool
	}{
		{"orders", false}, {"orders.*", false}, {">", false}, {"*", false}, {"*.tick", true}, {"a.tick", true}, {"*.>", false},
		{"_INBOX.a", true}, {"_INBOX.a.*", true}, {"_INBOX.>", true}, {"$SRV.>", true}, {"$JS.*.x", true}, {"a.b!.*", true}, {"__x.*", true},
		{"live.x", true}, {"live.>", true}, {"live.*", true}, {"live.*.x", true}, {"live", false}, {"*.x", false}, {"one.*", true}, {"one.>", false},
	} {
		t.Run(fmt.Sprintf("%q", test.pattern), func(t *testing.T) {
			if got := neverTopic(test.pattern, []string{"live.>", "one.*", "*.tick"}); got != test.want {
				t.Errorf("it is %v", got)
			}
		})
	}
}
