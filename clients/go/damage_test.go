package trunkline

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// batches are count batches of two records each.
func batches(count int) []byte {
	var all []byte
	for i := range count {
		var b record.Builder
		b.Reset(nil)
		b.Append(&record.Record{Value: []byte(strconv.Itoa(2 * i))})
		b.Append(&record.Record{Value: []byte(strconv.Itoa(2*i + 1))})
		all = append(all, b.Finish(Offset(2*i), 0)...)
	}
	return all
}

// slowConn is a connection that gives a few bytes a read, and only by a deadline that was set since the last one.
type slowConn struct {
	net.Conn
	rest  []byte
	fresh bool
	end   error
}

func (c *slowConn) SetReadDeadline(time.Time) error  { c.fresh = true; return nil }
func (c *slowConn) SetWriteDeadline(time.Time) error { return nil }

func (c *slowConn) Read(b []byte) (int, error) {
	if !c.fresh {
		return 0, os.ErrDeadlineExceeded
	}
	c.fresh = false
	if len(c.rest) == 0 {
		return 0, c.end
	}
	n := copy(b[:min(len(b), 7)], c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// bodyFrom lets a fetcher take one BATCH of a partition that nothing else asks for.
func bodyFrom(t *testing.T, r *Consumer, c *Client, conn *slowConn, size int) error {
	t.Helper()
	r.mu.Lock()
	p := r.parts[0]
	p.paused = true // the consumer's own fetcher leaves it alone
	r.move(p, 0)
	turn := p.turn.Load()
	r.mu.Unlock()
	f := &fetcher{consumer: r, dialer: dialer{client: c}, conn: conn, parser: line.NewFrameParser(line.Limits{ControlLine: 100, Payload: 1 << 20}),
		asked: []asked{{p, turn, 0, -1}}}
	f.frame = line.Frame{Kind: line.FrameBatch, Subject: []byte("t/0@0"), Size: size, HighWatermark: 6}
	return f.takeBatch()
}

func emptyConsumer(t *testing.T) (*Consumer, *Client) {
	t.Helper()
	_, c := fake(t, nil)
	fill(t, c, "t", 1, span{0, 0})
	return consumer(t, c, []string{"t@earliest"}), c
}

// TestASlowBodyIsReadAsLongAsItComes: the time it may take is counted from the last bytes.
func TestASlowBodyIsReadAsLongAsItComes(t *testing.T) {
	r, c := emptyConsumer(t)
	body := batches(3)
	if err := bodyFrom(t, r, c, &slowConn{rest: body}, len(body)); err != nil {
		t.Fatal(err)
	}
	if got := take(t, r, 6); string(got[5].Value) != "5" {
		t.Errorf("%+v", got)
	}
}

func TestABodyThatStopsEndsTheConnection(t *testing.T) {
	for _, end := range []error{io.EOF, os.ErrDeadlineExceeded, io.ErrUnexpectedEOF} {
		r, c := emptyConsumer(t)
		body := batches(3)
		err := bodyFrom(t, r, c, &slowConn{rest: body[:len(body)-1], end: end}, len(body))
		if err == nil || errors.Is(err, io.EOF) || end != io.EOF && !errors.Is(err, end) {
			t.Errorf("%v makes it %v", end, err)
		}
	}
}

// TestADamagedHeaderIsToldBehindWhatLiesBeforeIt, once, and its partition is left alone until it is moved.
func TestADamagedHeaderIsToldBehindWhatLiesBeforeIt(t *testing.T) {
	size := len(batches(1))
	for name, spoil := range map[string]func(b []byte){
		"length":           func(b []byte) { b[8] = 0x7f },
		"length too short": func(b []byte) { copy(b[8:], []byte{0, 0, 0, 1}) },
		"magic":            func(b []byte) { b[16] = 9 },
		"base offset":      func(b []byte) { clear(b[:8]) },
		"last delta":       func(b []byte) { b[23] = 0xff },
	} {
		t.Run(name, func(t *testing.T) {
			r, c := emptyConsumer(t)
			body := batches(3)
			spoil(body[size:])
			if err := bodyFrom(t, r, c, &slowConn{rest: body}, len(body)); err != nil {
				t.Fatal(err)
			}
			if got := take(t, r, 2); string(got[1].Value) != "1" {
				t.Errorf("%+v", got)
			}
			r.mu.Lock()
			p := r.parts[0]
			next := p.next
			r.mu.Unlock()
			if next != 2 {
				t.Fatalf("it goes on at %d", next)
			}
			f := &fetcher{consumer: r, dialer: dialer{client: c}, conn: &slowConn{rest: body[size:]}, asked: []asked{{p, p.turn.Load(), 2, -1}},
				parser: line.NewFrameParser(line.Limits{ControlLine: 100, Payload: 1 << 20})}
			f.frame = line.Frame{Kind: line.FrameBatch, Subject: []byte("t/0@2"), Size: 2 * size, HighWatermark: 6}
			if err := f.takeBatch(); err != nil {
				t.Fatal(err)
			}
			_, err := r.Poll(longContext(t), 1)
			var damage *CorruptError
			if !errors.As(err, &damage) || !errors.Is(err, ErrCorrupt) || damage.From != 2 || damage.To != -1 {
				t.Fatal(err)
			}
			if at := r.Partitions()[0]; !at.Damaged || at.Position != 2 {
				t.Errorf("%+v", at)
			}
			if _, pause := f.choose(); len(f.asked) != 0 || pause <= 0 {
				t.Errorf("it is asked for again: %+v", f.asked)
			}
			r.mu.Lock()
			r.move(p, 4)
			p.paused = false
			r.mu.Unlock()
			if f.choose(); len(f.asked) != 1 || r.Partitions()[0].Damaged {
				t.Errorf("it is left alone behind a seek: %+v", f.asked)
			}
		})
	}
}
