package trunkline

import (
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/line"
)

// startLog serves one connection with a log in memory: each PUB is answered with its offset, in order, and handed to
// published first.
func startLog(t testing.TB, published func(offset int, body []byte)) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := ln.Accept()
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		defer conn.Close()
		info, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(hello), "< "), "\n")
		out := append([]byte(info), "\r\n"...)
		parser := line.NewParser(line.Limits{ControlLine: 4096, Payload: 1 << 20})
		var cmd line.Command
		for offset := 0; ; {
			if _, err := conn.Write(out); err != nil {
				return
			}
			n, err := conn.Read(parser.Buffer())
			if err != nil {
				return
			}
			parser.Advance(n)
			for out = out[:0]; ; {
				ok, err := parser.Next(&cmd)
				if err != nil {
					t.Errorf("the client's bytes cannot be read: %v", err)
					return
				}
				if !ok {
					break
				}
				switch cmd.Verb {
				case line.Connect:
					out = append(out, "+OK\r\n"...)
				case line.Ping:
					out = append(out, "PONG\r\n"...)
				case line.Pub:
					published(offset, cmd.Payload)
					out = strconv.AppendInt(append(out, "+OK a/0@"...), int64(offset), 10)
					out = append(out, " disk\r\n"...)
					offset++
				}
			}
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func TestConcurrentPublishersGetTheirOwnResults(t *testing.T) {
	const publishers, each = 8, 500
	var mu sync.Mutex
	where := make(map[string]Offset)
	c := dial(t, startLog(t, func(offset int, body []byte) {
		mu.Lock()
		where[string(body)] = Offset(offset)
		mu.Unlock()
	}), WithInFlightBytes(4096))
	ctx := testContext(t)
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			results := make([]*Result, each)
			for i := range results {
				var err error
				if results[i], err = c.Publish(ctx, "a", &Message{Value: fmt.Appendf(nil, "%d-%d", p, i)}); err != nil {
					t.Error(err)
					return
				}
			}
			last := Offset(-1)
			for i, r := range results {
				ack, err := r.Wait(ctx)
				mu.Lock()
				want := where[fmt.Sprintf("%d-%d", p, i)]
				mu.Unlock()
				if err != nil || ack.Offset != want || ack.Offset <= last {
					t.Errorf("publisher %d, record %d: %v, %v; want offset %d, above %d", p, i, ack, err, want, last)
				}
				last = ack.Offset
			}
		})
	}
	wg.Wait()
	if len(where) != publishers*each {
		t.Errorf("%d records came", len(where))
	}
}

func TestPublishAllocatesNothingPerRecord(t *testing.T) {
	c := dial(t, startLog(t, func(int, []byte) {}))
	ctx := testContext(t)
	m := &Message{Value: bytes.Repeat([]byte("x"), 50)}
	var failed error // the callbacks' until Flush returns
	done := func(_ Ack, err error) {
		if err != nil {
			failed = err
		}
	}
	const records = 2000
	n := testing.AllocsPerRun(10, func() {
		for range records {
			if err := c.PublishFunc(ctx, "a", m, done); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	})
	if failed != nil {
		t.Fatal(failed)
	}
	if n > records/50 { // what Flush costs, and buffers that grow
		t.Fatalf("%v allocations for %d records", n, records)
	}
}

func TestHeadersAllocateNothing(t *testing.T) {
	m := &Message{Key: []byte("k"), Value: make([]byte, 50), Headers: []Header{{"A", []byte("b")}}}
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { buf, _ = appendPublish(buf[:0], "orders", m) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkPublish(b *testing.B) {
	c, err := Dial(b.Context(), startLog(b, func(int, []byte) {}))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	m := &Message{Value: bytes.Repeat([]byte("x"), 100)}
	done := func(_ Ack, err error) {
		if err != nil {
			b.Error(err)
		}
	}
	b.ReportAllocs()
	b.SetBytes(100)
	for b.Loop() {
		if err := c.PublishFunc(b.Context(), "a", m, done); err != nil {
			b.Fatal(err)
		}
	}
	if err := c.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
}
