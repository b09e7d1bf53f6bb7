package trunkline

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/clients/internal/scripted"
	"github.com/trunkline-mq/trunkline/protocol/line"
)

func TestPublishResultsComeInOrder(t *testing.T) {
	c := dial(t, scripted.Start(t, hello+`
> PUB orders 5
> hello
> PUB orders#k 0
>
> HPUB orders/1 64 67
> NATS/1.0
> Key: k1
> Timestamp: 2026-11-22T08:00:00.123Z
> A: b
>
> new
> HPUB orders 39 39
> NATS/1.0
> Key: k1
> Null-Value: true
>
>
> PUB orders 3
> bad
< +OK orders/2@17 disk
< PING
< +OK orders/0@0 disk
< +OK orders/1@9 page
> PONG
< +OK orders/1@10 disk
< -ERR TOO_LARGE 'it is; shrink it'
`))
	ctx := testContext(t)
	messages := []struct {
		address string
		m       Message
	}{
		{"orders", Message{Value: []byte("hello")}},
		{"orders#k", Message{Value: []byte{}}},
		{"orders/1", Message{Key: []byte("k1"), Value: []byte("new"), Headers: []Header{{"A", []byte("b")}},
			Timestamp: time.Date(2026, 11, 22, 8, 0, 0, 123e6, time.UTC)}},
		{"orders", Message{Key: []byte("k1")}},
		{"orders", Message{Value: []byte("bad")}},
	}
	var results []*Result
	for _, m := range messages {
		r, err := c.Publish(ctx, m.address, &m.m)
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, r)
	}
	want := []Ack{{"orders", 2, 17, "disk"}, {"orders", 0, 0, "disk"}, {"orders", 1, 9, "page"}, {"orders", 1, 10, "disk"}}
	for i, w := range want {
		if got, err := results[i].Wait(ctx); err != nil || got != w {
			t.Errorf("record %d: %v, %v; want %v", i, got, err, w)
		}
	}
	_, err := results[4].Wait(ctx)
	if !errors.Is(err, ErrTooLarge) || errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("the last record: %v; want ErrTooLarge, definitely not written", err)
	}
}

func TestPublishSyncAndFlush(t *testing.T) {
	c := dial(t, scripted.Start(t, hello+`
> PUB a 1
> x
< +OK a/0@0 disk
> PING
< PONG
`))
	ctx := testContext(t)
	if ack, err := c.PublishSync(ctx, "a", &Message{Value: []byte("x")}); err != nil || ack.Offset != 0 {
		t.Fatal(ack, err)
	}
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestFlushTellsWhyItWasRefused(t *testing.T) {
	c := dial(t, scripted.Start(t, hello+"> PING\n< -ERR SHUTTING_DOWN 'going; come back'\n> PING\n< PONG"))
	if err := c.Flush(testContext(t)); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	if err := c.Flush(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

func TestPublishRefusesWhatWouldBreakTheStream(t *testing.T) {
	c := dial(t, scripted.Start(t, hello))
	cases := []struct {
		name, address string
		m             Message
		want          error
	}{
		{"empty address", "", Message{}, ErrInvalid},
		{"blank in the address", "a b", Message{}, ErrInvalid},
		{"line end in the address", "a\r\nPUB", Message{}, ErrInvalid},
		{"endless address", strings.Repeat("a", 5000), Message{}, ErrInvalid},
		{"line end in a header", "a", Message{Headers: []Header{{"A", []byte("x\nB: y")}}}, ErrInvalid},
		{"line end in a header's name", "a", Message{Headers: []Header{{"A\r\nB", nil}}}, ErrInvalid},
		{"no header name", "a", Message{Headers: []Header{{"", nil}}}, ErrInvalid},
		{"a field as a header", "a", Message{Headers: []Header{{"Key", []byte("k")}}}, ErrInvalid},
		{"payload too large", "a", Message{Value: make([]byte, 101)}, ErrTooLarge},
		{"payload too large with headers", "a", Message{Key: []byte("k"), Value: make([]byte, 90)}, ErrTooLarge},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := c.Publish(testContext(t), tc.address, &tc.m); !errors.Is(err, tc.want) {
				t.Fatalf("%v; want %v", err, tc.want)
			}
		})
	}
	if _, err := c.TopicInfo(testContext(t), "a\nTOPIC DELETE b"); !errors.Is(err, ErrInvalid) {
		t.Fatalf("a line end in a topic's name: %v", err)
	}
	err := c.CreateTopic(testContext(t), "a", TopicConfig{Settings: map[string]string{"x": "1 y=2"}})
	if !errors.Is(err, ErrInvalid) {
		t.Fatalf("a blank in a setting: %v", err)
	}
}

func TestLinkCutLeavesUnansweredPublishesUnknown(t *testing.T) {
	notices := make(chan error, 9)
	c := dial(t, scripted.Start(t, hello+`
> PUB a 1
> 1
> PUB a 1
> 2
< +OK a/0@0 disk
< -ERR ASYNC SHUTTING_DOWN 'going down; connect again'
<- +OK a/0
cut`), WithErrorHandler(func(err error) { notices <- err }))
	ctx := testContext(t)
	first, err1 := c.Publish(ctx, "a", &Message{Value: []byte("1")})
	second, err2 := c.Publish(ctx, "a", &Message{Value: []byte("2")})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Wait(ctx); err != nil {
		t.Errorf("the answered one: %v", err)
	}
	_, err := second.Wait(ctx)
	var cut *LinkError
	if !errors.Is(err, ErrOutcomeUnknown) || !errors.As(err, &cut) || !cut.Sent {
		t.Errorf("the unanswered one: %v; want an unknown outcome", err)
	}
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v does not tell the server's last word", err)
	}
	if _, err := c.Publish(ctx, "a", &Message{}); errors.Is(err, ErrOutcomeUnknown) || !errors.As(err, &cut) {
		t.Errorf("after the cut: %v; want a definite LinkError", err)
	}
	if err := <-notices; !errors.Is(err, ErrUnavailable) {
		t.Errorf("the first notice is %v", err)
	}
	if err := <-notices; !strings.Contains(err.Error(), "closed the connection") {
		t.Errorf("the second notice is %v", err)
	}
}

func TestWhatWasNeverWrittenIsDefinite(t *testing.T) {
	client, server := net.Pipe()
	t.Cleanup(func() { server.Close() })
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	taken := make(chan struct{})
	wg.Go(func() { // takes the handshake and the first byte of what follows
		if err := scripted.Play(server, strings.TrimSpace(hello)+"\n> PUB a 1\ncut"); err != nil {
			t.Error(err)
		}
		close(taken)
	})
	c := dial(t, "x", WithDialer(func(context.Context, string, string) (net.Conn, error) { return client, nil }))
	ctx := testContext(t)
	first, err := c.Publish(ctx, "a", &Message{Value: []byte("1")})
	if err != nil {
		t.Fatal(err)
	}
	<-taken
	// The pipe is synchronous: once its reader has gone away, the writer is still inside its first write.
	second, err := c.Publish(ctx, "a", &Message{Value: []byte("2")})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := first.Wait(ctx); !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, ErrClosed) {
		t.Errorf("begun: %v; want unknown, closed", err)
	}
	if _, err := second.Wait(ctx); errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, ErrClosed) {
		t.Errorf("never written: %v; want definite, closed", err)
	}
}

func TestInFlightBytesAreBounded(t *testing.T) {
	release := make(chan struct{})
	client, server := net.Pipe()
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	wg.Go(func() {
		defer server.Close()
		if err := playThen(server, release); err != nil {
			t.Error(err)
		}
	})
	c := dial(t, "x", WithInFlightBytes(1),
		WithDialer(func(context.Context, string, string) (net.Conn, error) { return client, nil }))
	ctx := testContext(t)
	if _, err := c.Publish(ctx, "a", &Message{Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := c.Publish(short, "a", &Message{Value: []byte("x")}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("over the bound: %v; want to wait until the deadline", err)
	}
	close(release)
	if _, err := c.PublishSync(ctx, "a", &Message{Value: []byte("2")}); err != nil {
		t.Fatal(err)
	}
}

// playThen answers one publish once release is closed, and a second one at once.
func playThen(conn net.Conn, release <-chan struct{}) error {
	if err := scripted.Play(conn, strings.TrimSpace(hello)+"\n> PUB a 1\n> 1\ncut"); err != nil {
		return err
	}
	<-release
	return scripted.Play(conn, "< +OK a/0@0 disk\n> PUB a 1\n> 2\n< +OK a/0@1 disk")
}

func TestProtocolViolationsEndTheLink(t *testing.T) {
	for name, answer := range map[string]string{
		"an answer of no sense":  "< +OK yes",
		"garbage":                "< HTTP/1.1 400 Bad Request",
		"a record nobody wanted": "< MSG a/0@0 1 1\n< x",
		"a pong too early":       "< PONG",
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 9)
			c := dial(t, scripted.Start(t, hello+"> PUB a 1\n> x\n"+answer),
				WithErrorHandler(func(err error) { ended <- err }))
			r, err := c.Publish(testContext(t), "a", &Message{Value: []byte("x")})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Wait(testContext(t)); !errors.Is(err, ErrOutcomeUnknown) {
				t.Errorf("the publish: %v; want an unknown outcome", err)
			}
			if err := <-ended; !errors.Is(err, ErrProtocol) {
				t.Errorf("the link: %v; want ErrProtocol", err)
			}
		})
	}
}

func TestSilentServerIsGivenUp(t *testing.T) {
	ended := make(chan error, 1)
	c := dial(t, scripted.Start(t, hello+"> PING\n> PING"), WithPingInterval(10*time.Millisecond),
		WithErrorHandler(func(err error) { ended <- err }))
	if err := <-ended; !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	if err := c.Flush(testContext(t)); err == nil {
		t.Fatal("a dead link flushes")
	}
}

func TestClosingErrorAnswersItsRequest(t *testing.T) {
	c := dial(t, scripted.Start(t, hello+"> PUB a 1\n> x\n< -ERR BAD_SIZE 'no; yes'\ncut"))
	_, err := c.PublishSync(testContext(t), "a", &Message{Value: []byte("x")})
	var e *ServerError
	if !errors.As(err, &e) || e.Code != "BAD_SIZE" || !errors.Is(err, ErrInvalid) || errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("%#v", err)
	}
}

func TestUnknownOutcomeCodesSaySo(t *testing.T) {
	for code, want := range map[string][]error{
		"TIMEOUT":             {ErrOutcomeUnknown, ErrUnavailable},
		"STORAGE_UNKNOWN":     {ErrOutcomeUnknown, ErrUnavailable},
		"STORAGE_FULL":        {ErrUnavailable},
		"UNKNOWN_TOPIC":       {ErrNotFound},
		"UNKNOWN_PARTITION":   {ErrNotFound},
		"TOPIC_DELETED":       {ErrNotFound},
		"TOPIC_EXISTS":        {ErrExists},
		"NAME_COLLISION":      {ErrExists},
		"BAD_VERB":            {ErrNotSupported},
		"NOT_SUPPORTED":       {ErrNotSupported},
		"OFFSET_OUT_OF_RANGE": {ErrOffsetOutOfRange},
		"CORRUPT":             {ErrCorrupt},
		"NOT_ALLOWED":         {ErrNotAllowed},
		"LINE_TOO_LONG":       {ErrInvalid},
		"BAD_SETTING":         {ErrInvalid},
		"FROM_THE_FUTURE":     {},
	} {
		e := serverError(&line.Frame{Kind: line.FrameErr, Code: []byte(code), Detail: []byte("x")})
		for _, family := range []error{
			ErrInvalid, ErrNotFound, ErrExists, ErrNotSupported, ErrNotAllowed, ErrTooLarge, ErrOffsetOutOfRange,
			ErrCorrupt, ErrUnavailable, ErrOutcomeUnknown, ErrClosed,
		} {
			if got := errors.Is(e, family); got != slices.Contains(want, family) {
				t.Errorf("%s is %v: %v", code, family, got)
			}
		}
	}
}

func TestDialErrors(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	for name, tc := range map[string]struct {
		url  string
		want error
	}{
		"refused":          {free.Addr().String(), ErrConnect},
		"scheme":           {"http://127.0.0.1", ErrInvalid},
		"port":             {"127.0.0.1:99999", ErrInvalid},
		"user":             {"nats://u:p@127.0.0.1", ErrInvalid},
		"list":             {"127.0.0.1:1,b/2", ErrInvalid},
		"hangs up":         {scripted.Start(t, "cut"), ErrConnect},
		"no INFO":          {scripted.Start(t, "< +OK\n"), ErrProtocol},
		"INFO of no sense": {scripted.Start(t, "< INFO {\n"), ErrProtocol},
		"a web server":     {scripted.Start(t, "< HTTP/1.1 400 Bad Request\n"), ErrProtocol},
		"a NATS server":    {scripted.Start(t, `< INFO {"version":"2.12.0","max_payload":1048576}`), ErrProtocol},
		"refuses":          {scripted.Start(t, strings.Replace(hello, "< +OK", "< -ERR LIMIT_EXCEEDED 'full; wait'", 1)), ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Dial(testContext(t), tc.url)
			if !errors.Is(err, tc.want) {
				t.Fatalf("%v; want %v", err, tc.want)
			}
			if c != nil {
				t.Fatal("a client came with the error")
			}
		})
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, err := Dial(ctx, scripted.Start(t, ""))
	if !errors.Is(err, ErrConnect) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a server that says nothing: %v", err)
	}
}

func TestURLs(t *testing.T) {
	for url, want := range map[string]string{
		"": "127.0.0.1:8765", "h": "h:8765", "h:1": "h:1", "trunkline://h": "h:8765", "nats://h:4222/": "h:4222",
		"[::1]": "[::1]:8765", "::1": "[::1]:8765", "[::1]:7": "[::1]:7", ":9": "127.0.0.1:9",
	} {
		if got, err := hostPort(url); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", url, got, err, want)
		}
	}
}

func TestCloseTwice(t *testing.T) {
	c := dial(t, scripted.Start(t, hello))
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Publish(testContext(t), "a", &Message{}); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if _, err := c.Subscribe(testContext(t), "a"); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func TestPublishedBytesAreWhatTheServersParserReads(t *testing.T) {
	m := &Message{Key: []byte("a\x00b"), Value: bytes.Repeat([]byte("\r\n"), 700), Headers: []Header{{"X-Y", []byte("1 2")}, {"X-Y", nil}}}
	buf, total := appendPublish(nil, "orders/3", m)
	p := line.NewParser(line.Limits{ControlLine: 4096, Payload: 1 << 20})
	for rest := buf; len(rest) > 0; {
		n := copy(p.Buffer(), rest)
		p.Advance(n)
		rest = rest[n:]
	}
	var cmd line.Command
	ok, err := p.Next(&cmd)
	if !ok || err != nil || cmd.Err != nil || cmd.Verb != line.HPub || string(cmd.Args[0]) != "orders/3" {
		t.Fatalf("%v, %v, %+v", ok, err, cmd)
	}
	if len(cmd.Header)+len(cmd.Payload) != total || !bytes.Equal(cmd.Payload, m.Value) {
		t.Fatalf("%d bytes of header, %d of payload", len(cmd.Header), len(cmd.Payload))
	}
	if want := "NATS/1.0\r\nKey-Base64: YQBi\r\nX-Y: 1 2\r\nX-Y: \r\n\r\n"; string(cmd.Header) != want {
		t.Fatalf("header block %q; want %q", cmd.Header, want)
	}
}
