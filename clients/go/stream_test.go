package trunkline

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trunkline-mq/trunkline/clients/internal/scripted"
)

// hmsg is the script of one record with a timestamp and more header lines.
func hmsg(address, sid, body string, headers ...string) string {
	block := "NATS/1.0\r\nTimestamp: 2026-11-22T08:00:00.123Z\r\n"
	for _, h := range headers {
		block += h + "\r\n"
	}
	block += "\r\n"
	head := strings.ReplaceAll(strings.TrimSuffix(block, "\r\n"), "\r\n", "\n< ")
	return fmt.Sprintf("< HMSG %s %s %d %d\n< %s\n< %s\n", address, sid, len(block), len(block)+len(body), head, body)
}

func TestSubscribeYieldsRecords(t *testing.T) {
	c := dial(t, scripted.Start(t, hello, hello+"> SUB orders@earliest 1\n< +OK\n"+
		hmsg("orders/0@0", "1", "one")+hmsg("orders/2@17", "1", "", "X: a", "X: b", "Key: k")+
		hmsg("orders/0@1", "1", "", "Null-Value: true", "Key-Base64: YQBi")+
		"< PING\n> PONG\n< MSG orders/0@2 1 2\n< hi"))
	sub, err := c.Subscribe(testContext(t), "orders@earliest")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 22, 8, 0, 0, 123e6, time.UTC)
	want := []Record{
		{Topic: "orders", Partition: 0, Offset: 0, Timestamp: at, Value: []byte("one")},
		{Topic: "orders", Partition: 2, Offset: 17, Timestamp: at, Key: []byte("k"), Value: []byte{},
			Headers: []Header{{"X", []byte("a")}, {"X", []byte("b")}}},
		{Topic: "orders", Partition: 0, Offset: 1, Timestamp: at, Key: []byte("a\x00b")},
		{Topic: "orders", Partition: 0, Offset: 2, Timestamp: time.UnixMilli(0).UTC(), Value: []byte("hi")},
	}
	i := 0
	for r, err := range sub.Messages(testContext(t)) {
		if err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprintf("%#v", *r), fmt.Sprintf("%#v", want[i]); got != want {
			t.Errorf("record %d:\n%s\nwant\n%s", i, got, want)
		}
		if i++; i == len(want) {
			break
		}
	}
	if sub.Buffered() != 0 {
		t.Errorf("%d records are buffered", sub.Buffered())
	}
	sub.Stop()
	sub.Stop()
}

func TestAsyncErrorsDoNotEndASubscription(t *testing.T) {
	c := dial(t, scripted.Start(t, hello, hello+"> SUB a 1\n< +OK\n"+hmsg("a/0@0", "1", "x")+
		"< -ERR ASYNC CORRUPT 'SUB a/0@1: damaged; it goes on after it'\n"+hmsg("a/0@2", "1", "y")+"cut"))
	sub, err := c.Subscribe(testContext(t), "a")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	var last error
	for r, err := range sub.Messages(testContext(t)) {
		if last = err; err != nil {
			var e *ServerError
			got = append(got, fmt.Sprint(errors.Is(err, ErrCorrupt), errors.As(err, &e) && e.Async))
			continue
		}
		got = append(got, string(r.Value))
	}
	if want := []string{"x", "true true", "y", "true true"}; !slices.Equal(got, want) {
		t.Fatalf("%q; want %q: the last is the end, with the server's last word", got, want)
	}
	if !strings.Contains(last.Error(), "closed the connection") {
		t.Fatal(last)
	}
	sub.Stop()
}

func TestSubscribeErrors(t *testing.T) {
	c := dial(t, scripted.Start(t, hello,
		hello+"> SUB a#k 1\n< -ERR BAD_ADDRESS 'a key; leave it out'",
		hello+"> SUB a 1\ncut",
		hello+"> SUB a 1",
	))
	if _, err := c.Subscribe(testContext(t), "a#k"); !errors.Is(err, ErrInvalid) {
		t.Errorf("refused: %v", err)
	}
	var cut *LinkError
	if _, err := c.Subscribe(testContext(t), "a"); !errors.As(err, &cut) {
		t.Errorf("cut: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := c.Subscribe(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	if _, err := c.Subscribe(testContext(t), "a b"); !errors.Is(err, ErrInvalid) {
		t.Errorf("blank: %v", err)
	}
}

func TestStopEndsAnIteration(t *testing.T) {
	c := dial(t, scripted.Start(t, hello, hello+"> SUB a 1\n< +OK\n"+hmsg("a/0@0", "1", "x")))
	sub, err := c.Subscribe(testContext(t), "a")
	if err != nil {
		t.Fatal(err)
	}
	var last error
	n := 0
	for _, err := range sub.Messages(testContext(t)) {
		n, last = n+1, err
		sub.Stop()
	}
	if n != 2 || !errors.Is(last, ErrClosed) {
		t.Fatalf("%d turns, last with %v; want a record, then ErrClosed", n, last)
	}
}

func TestCloseEndsAnIterationThatWaits(t *testing.T) {
	c := dial(t, scripted.Start(t, hello, hello+"> SUB a 1\n< +OK\n"+hmsg("a/0@0", "1", "x")))
	sub, err := c.Subscribe(testContext(t), "a")
	if err != nil {
		t.Fatal(err)
	}
	var last error
	for _, err := range sub.Messages(testContext(t)) {
		if last = err; err == nil {
			c.Close()
		}
	}
	if !errors.Is(last, ErrClosed) {
		t.Fatal(last)
	}
}

func TestIterationEndsWithItsContextAndGoesOn(t *testing.T) {
	c := dial(t, scripted.Start(t, hello, hello+"> SUB a 1\n< +OK\n"+hmsg("a/0@0", "1", "x")+hmsg("a/0@1", "1", "y")))
	sub, err := c.Subscribe(testContext(t), "a")
	if err != nil {
		t.Fatal(err)
	}
	for r, err := range sub.Messages(testContext(t)) {
		if err != nil || r.Offset != 0 {
			t.Fatal(r, err)
		}
		for _, err := range sub.Messages(testContext(t)) {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("a second iteration at once: %v", err)
			}
		}
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var seen []Offset
	var last error
	for r, err := range sub.Messages(ctx) {
		if last = err; err == nil {
			seen = append(seen, r.Offset)
			cancel()
		}
	}
	if len(seen) != 1 || seen[0] != 1 || !errors.Is(last, context.Canceled) {
		t.Fatalf("%v, %v; want record 1, then Canceled", seen, last)
	}
}

// TestSlowConsumerLosesNothing delivers far more than is buffered to a consumer that comes an hour late: a server that is
// held back is not a silent one.
func TestSlowConsumerLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const records = 20_000
		var frames strings.Builder
		for i := range records {
			fmt.Fprintf(&frames, "MSG a/0@%d 1 5\r\nhello\r\n", i)
		}
		var servers sync.WaitGroup
		streams := []string{"", frames.String()}
		c, err := Dial(t.Context(), "x", WithDialer(func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			text := streams[0]
			streams = streams[1:]
			servers.Go(func() { deliver(t, server, text) })
			return client, nil
		}), WithoutRetry())
		if err != nil {
			t.Fatal(err)
		}
		sub, err := c.Subscribe(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Hour + time.Second) // between two ticks of the links: nothing is being written when it ends
		next := Offset(0)
		for r, err := range sub.Messages(t.Context()) {
			if err != nil || r.Offset != next {
				t.Fatalf("after record %d: %v, %v", next-1, r, err)
			}
			if next++; next == records {
				break
			}
		}
		c.Close()
		servers.Wait()
	})
}

// deliver shakes hands, answers a SUB with text, and PINGs with PONGs until the client goes.
func deliver(t *testing.T, conn net.Conn, text string) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	info, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(hello), "< "), "\n")
	answers := map[string]string{"CONNECT": "+OK\r\n", "SUB": "+OK\r\n" + text, "PING": "PONG\r\n"}
	for answer := info + "\r\n"; ; {
		if _, err := io.WriteString(conn, answer); err != nil {
			t.Errorf("the client went before it took everything: %v", err)
			return
		}
		got, err := in.ReadString('\n')
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.TrimSpace(got), " ")
		answer = answers[verb]
	}
}

func TestGetYieldsRecordsAndNextAddresses(t *testing.T) {
	big := strings.Repeat("z", 50_000)
	c := dial(t, scripted.Start(t, hello,
		hello+"> GET a 3\n"+hmsg("a/0@0", "0", "x")+hmsg("a/0@1", "0", big)+hmsg("a/1@0", "0", "y")+"< +OK a/0@2 a/1@1",
		hello+"> GET a 10\n< +OK a/0@0",
		hello+"> GET b 10\n< -ERR UNKNOWN_TOPIC 'no b; make it'",
		hello+"> GET a 10\n"+hmsg("a/0@0", "0", "x")+"cut",
	))
	get := func(address string, count int) (string, []string, error) {
		r, err := c.Get(testContext(t), address, count)
		if err != nil {
			t.Fatal(err)
		}
		var bodies []string
		var last error
		for rec, err := range r.Messages(testContext(t)) {
			if last = err; err == nil {
				bodies = append(bodies, string(rec.Value))
			}
		}
		return strings.Join(bodies, ","), r.Next(), last
	}
	if got, next, err := get("a", 3); got != "x,"+big+",y" || !slices.Equal(next, []string{"a/0@2", "a/1@1"}) || err != nil {
		t.Errorf("%.40q, %q, %v", got, next, err)
	}
	if got, next, err := get("a", 10); got != "" || !slices.Equal(next, []string{"a/0@0"}) || err != nil {
		t.Errorf("empty log: %q, %q, %v", got, next, err)
	}
	if _, next, err := get("b", 10); !errors.Is(err, ErrNotFound) || next != nil {
		t.Errorf("missing topic: %q, %v", next, err)
	}
	if got, next, err := get("a", 10); got != "x" || next != nil || err == nil {
		t.Errorf("cut: %q, %q, %v; want the record, then the error", got, next, err)
	}
	if _, err := c.Get(testContext(t), "a", 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("no records: %v", err)
	}
}

func TestGetCanBeLeft(t *testing.T) {
	c := dial(t, scripted.Start(t, hello, hello+"> GET a 9\n"+hmsg("a/0@0", "0", "x")))
	r, err := c.Get(testContext(t), "a", 9)
	if err != nil {
		t.Fatal(err)
	}
	for range r.Messages(testContext(t)) {
		break
	}
	if r.Next() != nil {
		t.Fatal("next addresses before the end")
	}
	r.Close()
	r.Close()
}

func TestBadDeliveriesEndAStream(t *testing.T) {
	for name, frame := range map[string]string{
		"headers of no sense": "< HMSG a/0@1 1 3 4\n< abcd",
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, scripted.Start(t, hello, hello+"> SUB a 1\n< +OK\n"+frame))
			sub, err := c.Subscribe(testContext(t), "a")
			for r, e := range sub.messages(t, err) {
				if r != nil || !errors.Is(e, ErrProtocol) {
					t.Fatalf("%v, %v; want ErrProtocol", r, e)
				}
			}
		})
	}
}

// messages iterates to the end, or over the error of subscribing itself: both may come first.
func (s *Subscription) messages(t *testing.T, err error) map[*Record]error {
	if err != nil {
		return map[*Record]error{nil: err}
	}
	defer s.Stop()
	all := make(map[*Record]error)
	for r, err := range s.Messages(testContext(t)) {
		all[r] = err
	}
	return all
}

func TestAdmin(t *testing.T) {
	const topic = `{"name":"a","id":"00","settings":{"partitions":2,"segment.bytes":"1GiB"},"plan":{"version":1,"kind":"murmur2","partitions":2},"partitions":[{"partition":0,"leader":1,"epoch":0,"replicas":[1],"isr":[1],"log_start":0,"high_watermark":5,"log_end":6,"bytes":99,"segments":1},{"partition":1,"leader":-1,"epoch":0,"replicas":[1],"isr":[],"error":"STORAGE_UNAVAILABLE"}]}`
	const list = `{"topics":[{"name":"a"},{"name":"b","error":"METADATA_UNAVAILABLE"}]}`
	data := func(s string) string { return fmt.Sprintf("< DATA %d\n< %s\n", len(s), s) }
	c := dial(t, scripted.Start(t, hello+"> TOPIC CREATE a partitions=2 x=1 y=2\n< +OK a\n> TOPIC CREATE a\n< -ERR TOPIC_EXISTS 'a; b'\n"+
		"> TOPIC INFO a\n"+data(topic)+"> TOPIC LIST\n"+data(list)+"> TOPIC INFO b\n"+data(topic)+"> TOPIC INFO c\n"+data("{")+
		"> TOPIC DELETE a\n< +OK\n> TOPIC DELETE a\n< -ERR UNKNOWN_TOPIC 'a; b'"))
	ctx := testContext(t)
	if err := c.CreateTopic(ctx, "a", TopicConfig{Partitions: 2, Settings: map[string]string{"y": "2", "x": "1"}}); err != nil {
		t.Error(err)
	}
	if err := c.CreateTopic(ctx, "a", TopicConfig{}); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	info, err := c.TopicInfo(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if l := info.Partitions[0].Log; l == nil || l.HighWatermark != 5 || l.End != 6 || info.Partitions[1].Log != nil {
		t.Errorf("%+v", info)
	}
	if back, err := json.Marshal(info); err != nil || string(back) != topic {
		t.Errorf("the JSON changes:\n%s\n%s, %v", topic, back, err)
	}
	topics, err := c.Topics(ctx)
	if err != nil || len(topics) != 2 || topics[1].Error != "METADATA_UNAVAILABLE" {
		t.Errorf("%+v, %v", topics, err)
	}
	if _, err := c.TopicInfo(ctx, "b"); !errors.Is(err, ErrProtocol) {
		t.Errorf("another topic's answer: %v", err)
	}
	if _, err := c.TopicInfo(ctx, "c"); !errors.Is(err, ErrProtocol) {
		t.Errorf("half a JSON: %v", err)
	}
	if err := c.DeleteTopic(ctx, "a"); err != nil {
		t.Error(err)
	}
	if err := c.DeleteTopic(ctx, "a"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestRecordJSON(t *testing.T) {
	at := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	for want, r := range map[string]Record{
		`{"topic":"a","partition":1,"offset":2,"timestamp":"2026-11-22T08:00:00.000Z","key":null,"value":null,"headers":{}}`: {
			Topic: "a", Partition: 1, Offset: 2, Timestamp: at},
		`{"topic":"a","partition":0,"offset":0,"timestamp":"2026-11-22T08:00:00.000Z","key":"","value":"\u003cö\u003e","headers":{"X":["1","2"]}}`: {
			Topic: "a", Timestamp: at, Key: []byte{}, Value: []byte("<ö>"), Headers: []Header{{"X", []byte("1")}, {"X", []byte("2")}}},
		`{"topic":"a","partition":0,"offset":0,"timestamp":"2026-11-22T08:00:00.000Z","key_base64":"/w==","value_base64":"/gA=","headers":{}}`: {
			Topic: "a", Timestamp: at, Key: []byte{0xff}, Value: []byte{0xfe, 0}},
	} {
		if got, err := json.Marshal(&r); err != nil || string(got) != want {
			t.Errorf("%s, %v\nwant %s", got, err, want)
		}
	}
}

func TestLiveMessagesComeAmongRecords(t *testing.T) {
	c := dial(t, scripted.Start(t, hello, hello+"> SUB a 1\n< +OK\n< MSG a 1 reply 1\n< x"))
	sub, err := c.Subscribe(testContext(t), "a")
	if err != nil {
		t.Fatal(err)
	}
	for r, err := range sub.Messages(testContext(t)) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Topic != "a" || r.Partition != -1 || r.Offset != -1 || string(r.Value) != "x" {
			t.Errorf("a live message came as %+v", r)
		}
		break
	}
	sub.Stop()
}

func TestPublishToALiveSubjectIsAcknowledgedWithoutAPlace(t *testing.T) {
	c := dial(t, scripted.Start(t, hello+"> PUB $a 1\n> x\n< +OK\n> PUB a 1\n> y\n< +OK a/0@0 disk"))
	ack, err := c.PublishSync(testContext(t), "$a", &Message{Value: []byte("x")})
	if err != nil || ack.Offset != -1 || ack.Durability != DurabilityLive {
		t.Errorf("%+v, %v", ack, err)
	}
	if ack, err = c.PublishSync(testContext(t), "a", &Message{Value: []byte("y")}); err != nil || ack.Offset != 0 {
		t.Errorf("%+v, %v", ack, err)
	}
}
