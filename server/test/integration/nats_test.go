package integration

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

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
	heard := make(chan error, 10)
	nc := connectNATS(t, s, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { heard <- err }))
	if _, err := nc.SubscribeSync("orders.*"); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.QueueSubscribeSync("orders", "workers"); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Request("orders", []byte("x"), 200*time.Millisecond); err == nil {
		t.Error("a request was answered")
	}
	if err := nc.FlushTimeout(harness.Patience); err != nil {
		t.Fatalf("connection did not survive: %v", err)
	}
	for range 3 {
		select {
		case err := <-heard:
			if !strings.Contains(err.Error(), "NOT_SUPPORTED") && !strings.Contains(strings.ToLower(err.Error()), "permissions violation") {
				t.Errorf("heard %v", err)
			}
		case <-time.After(harness.Patience):
			t.Fatal("no error was heard")
		}
	}
}
