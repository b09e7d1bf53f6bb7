package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// TestWhoWantsNoEchoHearsOnlyOthersOnATopicToo: as with live subjects, also where the record that makes the topic is the
// connection's own, where partitions are added, and whichever verb published.
func TestWhoWantsNoEchoHearsOnlyOthersOnATopicToo(t *testing.T) {
	s := harness.Start(t)
	me, other := s.Dial(), s.Dial()
	hears(t, other, "TOPIC CREATE there", "+OK there")
	hears(t, other, "SEND there/0 old", "+OK there/0@0 disk")
	hears(t, me, `CONNECT {"echo":false}`, "+OK")
	hears(t, me, "SEND there/0 mine and before", "+OK there/0@1 disk")
	for i, subject := range []string{"there", "fresh", "shop.>"} {
		hears(t, me, fmt.Sprintf("SUB %s %d", subject, i+1), "+OK")
	}
	const n = 300
	for i := range n { // in turn, so that each record of the one lies between two of the other
		for _, topic := range []string{"there", "fresh", "shop.a"} {
			me.Send(fmt.Sprintf("PUB %s/0 4\r\nmine\r\n", topic))
			says(t, me, "+OK "+topic+"/0@…")
			hears(t, other, fmt.Sprintf("SEND %s/0 %d", topic, i), "+OK "+topic+"/0@…")
			says(t, me, "MSG "+topic+"/0@…", itoa(i))
		}
	}
	if got := produce(me, "there/0", batchOf("mine", "mine")); !strings.HasPrefix(got, "+OK there/0@") {
		t.Fatal(got)
	}
	if got := produce(me, "there/0 acks=0", batchOf("mine")); got != "+OK there/0@-1 none" {
		t.Fatal(got)
	}
	hears(t, other, "TOPIC ALTER there partitions=2 accept_reorder=true", "+OK there")
	hears(t, me, "SEND there/1 mine", "+OK there/1@0 disk")
	hears(t, other, "SEND there/1 of the new partition", "+OK there/1@1 disk")
	says(t, me, "MSG there/1@1 1 20", "of the new partition")
	// A name that comes back is another topic.
	hears(t, other, "TOPIC DELETE there", "+OK there")
	says(t, me, "-ERR ASYNC TOPIC_DELETED…")
	hears(t, me, "SEND there mine makes it anew", "+OK there/0@0 disk")
	hears(t, other, "SEND there/0 again", "+OK there/0@1 disk")
	says(t, me, "MSG there/0@1 1 5", "again")
	// What was published before a SUB is read as everything else is.
	hears(t, me, "SUB there/0@earliest 9", "+OK", "MSG there/0@0 9 18", "mine makes it anew", "MSG there/0@1 9 5", "again")
	hears(t, me, "PING", "PONG")
}

func TestTheLibrarysNoEchoHoldsOnATopic(t *testing.T) {
	s := harness.Start(t)
	me, other := connectNATS(t, s, nats.NoEcho()), connectNATS(t, s)
	sub, err := me.SubscribeSync("orders")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		for _, nc := range []*nats.Conn{me, other} {
			if err := nc.Publish("orders", []byte(itoa(i))); err != nil {
				t.Fatal(err)
			}
			if err := nc.FlushTimeout(harness.Patience); err != nil {
				t.Fatal(err)
			}
		}
		m, err := sub.NextMsg(harness.Patience)
		if err != nil || string(m.Data) != itoa(i) {
			t.Fatalf("message %d: %v, %v", i, m, err)
		}
	}
	if n, _, err := sub.Pending(); n != 0 || err != nil {
		t.Errorf("%d messages more, %v", n, err)
	}
}

// TestNewsFollowTheFirstPing: who speaks protocol 1 is told of the server once more, behind the PONG that a library waits for.
func TestNewsFollowTheFirstPing(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	hears(t, l, "PING", "PONG") // no CONNECT yet
	l.Send("CONNECT {\"verbose\":false,\"protocol\":1}\nPING\nPING\n")
	says(t, l, "PONG", "INFO {…")
	says(t, l, "PONG")
	l.Send("CONNECT {\"verbose\":false,\"protocol\":1}\nPING\nPING\n") // once for a connection
	says(t, l, "PONG", "PONG")
	old := s.Dial()
	old.Send("CONNECT {\"verbose\":false}\nPING\nPING\n")
	says(t, old, "PONG", "PONG")
	told := s.Dial()
	told.Send("CONNECT {\"verbose\":false,\"protocol\":1}\nPING\n")
	says(t, told, "PONG")
	if got := told.Read(); !strings.Contains(got, `"connect_info":true`) || !strings.Contains(got, `"max_payload":1048576`) {
		t.Errorf("it is told %q", got)
	}
}

func TestWhoReadsNoHeadersSendsNone(t *testing.T) {
	s := harness.Start(t)
	hears(t, s.Dial(), "TOPIC CREATE t", "+OK t")
	const hpub = " 18 20\r\nNATS/1.0\r\nA: 1\r\n\r\nhi"
	for connect, want := range map[string]string{
		`CONNECT {"headers":false}`:                              "-ERR BAD_HEADERS 'this connection does not speak headers…",
		`CONNECT {"verbose":false,"headers":false}`:              "-ERR ASYNC BAD_HEADERS 'HPUB …",
		`CONNECT {"verbose":false,"lang":"go","version":"1.0"}`:  "-ERR 'Permissions Violation for Publish to …",
		`CONNECT {"verbose":false,"lang":"go","headers":false} `: "-ERR 'Permissions Violation for Publish to …",
	} {
		l := s.Dial()
		l.Send(connect + "\nPING\n")
		for l.Read() != "PONG" {
		}
		for _, subject := range []string{"t", "_INBOX.x"} {
			hears(t, l, "HPUB "+subject+hpub, want)
		}
		hears(t, l, "PING", "PONG")
		l.Send("SUB re 1\nHPUB t re" + hpub + "\r\nPING\n")
		seen := ""
		for !strings.HasSuffix(seen, "PONG\n") {
			seen += l.Read() + "\n"
		}
		if !strings.Contains(seen, "MSG re 1 ") || !strings.Contains(seen, `"description":"BAD_HEADERS: `) {
			t.Errorf("on the reply subject: %q", seen)
		}
	}
	hears(t, s.Dial(), "GET t", "+OK t/0@0")
}

// TestWhatQueuesBehindABlockedRequestIsBounded: a connection whose oldest publish waits for a plugin that does not answer
// sends fetch upon fetch. The server stops reading it, and answers everything when the plugin is back.
func TestWhatQueuesBehindABlockedRequestIsBounded(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_LIMITS_PENDING=1MiB", "TRUNKLINE_LIMITS_WRITE_DEADLINE=1h"})
	l := s.Dial()
	hears(t, l, "TOPIC CREATE t segment.bytes=64KiB", "+OK t")
	hears(t, l, "SEND t first", "+OK t/0@0 disk")
	resume := stopPlugins(t, s)
	defer resume()
	before := resident(t, s.PID())
	body := strings.Repeat("x", 60<<10)
	for range 4 { // more than a segment takes: the plugin has to lend another
		l.Send(fmt.Sprintf("PUB t/0 %d\r\n%s\r\n", len(body), body))
	}
	const fetches = 20_000
	chunk := strings.Repeat("FETCH t/0@0 max=1\n", 1000)
	sent, sending := 0, make(chan error, 1)
	go func() {
		for ; sent < fetches/1000; sent++ {
			if _, err := l.Conn().Write([]byte(chunk)); err != nil {
				sending <- err
				return
			}
		}
		_, err := l.Conn().Write([]byte("QUIT\n"))
		sending <- err
	}()
	most := 0
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for range 100 {
		<-look.C
		most = max(most, resident(t, s.PID())-before)
	}
	limit := 24 << 20 // of limits.pending, the sockets' buffers, and what the collector has not looked at
	if harness.Race() {
		limit *= 4
	}
	if most > limit {
		t.Errorf("the server took %d MiB for what waits on one connection", most>>20)
	}
	t.Logf("the server took %d MiB at most", most>>20)
	resume()
	for range 4 {
		says(t, l, "+OK t/0@…")
	}
	for i := range fetches {
		if got := l.Read(); !strings.HasPrefix(got, "BATCH t/0@0 ") {
			t.Fatalf("fetch %d is answered %q", i, got)
		} else {
			var n int
			if _, err := fmt.Sscan(got[strings.LastIndexByte(got, ' '):], &n); err != nil {
				t.Fatal(err)
			}
			l.ReadN(n + 2)
		}
		says(t, l, "+OK")
	}
	if err := <-sending; err != nil {
		t.Error(err)
	}
}
