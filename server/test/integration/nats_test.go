package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func itoa(n int) string { return strconv.Itoa(n) }

func connectNATS(t *testing.T, s *harness.Server, o ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("nats://"+s.Client, append(o, nats.Timeout(harness.Patience))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func TestUnmodifiedNATSClientPublishesAndFlushMeansDurable(t *testing.T) {
	s := harness.Start(t)
	nc := connectNATS(t, s)
	const n = 1000
	for i := range n {
		if err := nc.Publish("orders.eu", fmt.Appendf(nil, "record %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	m := nats.NewMsg("orders.eu")
	m.Header.Set("Key", "alice")
	m.Header.Add("X", "one")
	m.Header.Add("X", "two")
	m.Data = []byte("with headers")
	if err := nc.PublishMsg(m); err != nil {
		t.Fatal(err)
	}
	if err := nc.FlushTimeout(harness.Patience); err != nil {
		t.Fatal(err)
	}
	s.Kill() // SIGKILL: what Flush promised is on disk
	s.Restart()
	l := s.Dial()
	l.Send("GET orders.eu/0@999 2\n")
	want := []string{
		"MSG orders.eu/0@999 0 10", "record 999", "HMSG orders.eu/0@1000 0 40 52", "NATS/1.0", "Key: alice", "X: one", "X: two", "",
		"with headers", "+OK orders.eu/0@1001",
	}
	for _, w := range want {
		if got := l.Read(); got != w {
			t.Errorf("got %q, want %q", got, w)
		}
	}
}

// TestAHeaderBlockOfNoBytesIsNone: npm's client publishes so, where a record has no headers.
func TestAHeaderBlockOfNoBytesIsNone(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	hears(t, l, "HPUB t 0 2\r\nhi", "+OK t/0@0 disk")
	hears(t, l, "GET t", "MSG t/0@0 0 2", "hi", "+OK t/0@1")
	hears(t, l, "SUB _INBOX.x 1", "+OK")
	hears(t, l, "HPUB _INBOX.x 0 2\r\nhi", "+OK", "MSG _INBOX.x 1 2", "hi")
}

func TestUnmodifiedNATSClientSubscribesToATopic(t *testing.T) {
	s := harness.Start(t)
	nc := connectNATS(t, s)
	sub, err := nc.SubscribeSync("orders")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	other := s.Dial()
	other.Ask("SEND orders#k by hand")
	m, err := sub.NextMsg(harness.Patience)
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject != "orders" || string(m.Data) != "by hand" || m.Header.Get("Key") != "k" {
		t.Errorf("got %s %q %v", m.Subject, m.Data, m.Header)
	}
}

func TestNATSClientSurvivesWhatIsNotOffered(t *testing.T) {
	s := harness.Start(t)
	hears(t, s.Dial(), "TOPIC CREATE orders", "+OK orders")
	heard := make(chan error, 10)
	nc := connectNATS(t, s, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { heard <- err }))
	if _, err := nc.QueueSubscribeSync("orders", "workers"); err != nil {
		t.Fatal(err)
	}
	m := nats.NewMsg("orders")
	m.Header.Set("Nats-TTL", "1s")
	if err := nc.PublishMsg(m); err != nil {
		t.Fatal(err)
	}
	if err := nc.FlushTimeout(harness.Patience); err != nil {
		t.Fatalf("connection did not survive: %v", err)
	}
	for _, want := range []string{"Subscription to \"orders\"", "Publish to \"orders\""} {
		select {
		case err := <-heard:
			if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "NOT_SUPPORTED") {
				t.Errorf("heard %v, want %q", err, want)
			}
		case <-time.After(harness.Patience):
			t.Fatal("no error was heard")
		}
	}
}

func TestRequestAndReply(t *testing.T) {
	s := harness.Start(t)
	service, client := connectNATS(t, s), connectNATS(t, s)
	if _, err := client.Request("$svc.add", nil, harness.Patience); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("a request to nobody: %v", err)
	}
	if _, err := client.Request("svc.add", nil, harness.Patience); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("a request to what could be a topic: %v", err)
	}
	var served atomic.Int64
	for range 3 {
		if _, err := service.QueueSubscribe("svc.add", "adders", func(m *nats.Msg) {
			served.Add(1)
			_ = m.Respond(append([]byte("re "), m.Data...))
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := service.Flush(); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		m, err := client.Request("svc.add", []byte(itoa(i)), harness.Patience)
		if err != nil || string(m.Data) != "re "+itoa(i) {
			t.Fatalf("request %d: %v, %v", i, m, err)
		}
	}
	if served.Load() != 200 {
		t.Errorf("200 requests were served %d times", served.Load())
	}
	if err := service.Drain(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the service has drained", service.IsClosed)
	harness.Eventually(t, "nobody serves", func() bool {
		_, err := client.Request("svc.add", nil, harness.Patience)
		return errors.Is(err, nats.ErrNoResponders)
	})
}

// movable dials wherever the server is now: a test's server comes back at another port.
type movable struct{ addr atomic.Value }

func (m *movable) Dial(network, _ string) (net.Conn, error) {
	return net.DialTimeout(network, m.addr.Load().(string), harness.Patience)
}

func TestClientReconnectsAndGoesOn(t *testing.T) {
	s := harness.Start(t)
	back := make(chan struct{}, 1)
	to := &movable{}
	to.addr.Store(s.Client)
	nc := connectNATS(t, s, nats.SetCustomDialer(to), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond),
		nats.ReconnectHandler(func(*nats.Conn) { back <- struct{}{} }))
	topic, err := nc.SubscribeSync("orders")
	if err != nil {
		t.Fatal(err)
	}
	answers, err := nc.SubscribeSync("$live.>")
	if err != nil {
		t.Fatal(err)
	}
	s.Kill()
	s.Restart()
	to.addr.Store(s.Client)
	select {
	case <-back:
	case <-time.After(harness.Patience):
		t.Fatal("it does not come back")
	}
	for _, subject := range []string{"orders", "$live.x"} {
		if err := nc.Publish(subject, []byte("after")); err != nil {
			t.Fatal(err)
		}
	}
	for _, sub := range []*nats.Subscription{topic, answers} {
		if m, err := sub.NextMsg(harness.Patience); err != nil || string(m.Data) != "after" {
			t.Errorf("%s: %v, %v", sub.Subject, m, err)
		}
	}
}

func TestJetStreamPublishWorksUnmodified(t *testing.T) {
	s := harness.Start(t)
	hears(t, s.Dial(), "TOPIC CREATE orders.eu partitions=3", "+OK orders.eu")
	js, err := jetstream.New(connectNATS(t, s))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	m := nats.NewMsg("orders.eu")
	m.Header.Set("Key", "alice")
	m.Data = []byte("one")
	first, err := js.PublishMsg(ctx, m, jetstream.WithMsgID("id-1"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := js.PublishMsg(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	if first.Stream != "orders_eu" || second.Sequence != first.Sequence+1 {
		t.Errorf("acknowledged %+v, then %+v", first, second)
	}
	var refused *jetstream.APIError
	if _, err := js.PublishMsg(ctx, m, jetstream.WithExpectLastSequence(7)); !errors.As(err, &refused) || refused.ErrorCode != 10003 {
		t.Errorf("an expectation is answered %v", err)
	}
	if _, err := js.Publish(ctx, "no.such.topic", nil, jetstream.WithRetryAttempts(1), jetstream.WithRetryWait(time.Millisecond)); !errors.Is(err, jetstream.ErrNoStreamResponse) {
		t.Errorf("a publish to no topic is answered %v", err)
	}
	l := s.Dial()
	p := first.Sequence >> 42
	hears(t, l, fmt.Sprintf("GET orders.eu/%d", p), fmt.Sprintf("HMSG orders.eu/%d@0 0 …", p), "NATS/1.0", "Key: alice", "Nats-Msg-Id: id-1", "", "one", "HMSG…")
}

func TestJetStreamPublishAsyncLosesNothing(t *testing.T) {
	s := harness.Start(t)
	hears(t, s.Dial(), "TOPIC CREATE orders partitions=3", "+OK orders")
	js, err := jetstream.New(connectNATS(t, s), jetstream.WithPublishAsyncMaxPending(2000))
	if err != nil {
		t.Fatal(err)
	}
	const n = 20_000
	futures := make([]jetstream.PubAckFuture, n)
	for i := range futures {
		if futures[i], err = js.PublishAsync("orders", []byte(itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(harness.Patience):
		t.Fatalf("%d of %d are not acknowledged", js.PublishAsyncPending(), n)
	}
	seen := map[uint64]bool{}
	for i, f := range futures {
		select {
		case ack := <-f.Ok():
			if seen[ack.Sequence] {
				t.Fatalf("record %d has the number %d of another", i, ack.Sequence)
			}
			seen[ack.Sequence] = true
		case err := <-f.Err():
			t.Fatalf("record %d: %v", i, err)
		}
	}
}

func TestLameDuckIsHeardByTheLibrary(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_LIMITS_LAME_DUCK_GRACE=200ms", "TRUNKLINE_LIMITS_LAME_DUCK_SPREAD=1ms"})
	heard := make(chan struct{}, 1)
	nc := connectNATS(t, s, nats.NoReconnect(), nats.LameDuckModeHandler(func(*nats.Conn) { heard <- struct{}{} }))
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.PID(), syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	select {
	case <-heard:
	case <-time.After(harness.Patience):
		t.Fatal("the handler is not called")
	}
	if code := s.Wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
