package trunkline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// heldConn lets writes go when it is told to: what a peer does that does not read.
type heldConn struct {
	net.Conn
	gate *writeGate
}

type writeGate struct {
	mu   sync.Mutex
	open chan struct{} // closed: writes go
	held chan struct{} // one slot: a large write has come to a gate that is shut
}

func newWriteGate() *writeGate {
	g := &writeGate{open: make(chan struct{}), held: make(chan struct{}, 1)}
	close(g.open)
	return g
}

func (g *writeGate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

func (g *writeGate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.open)
}

func (c *heldConn) Write(b []byte) (int, error) {
	if len(b) >= lendBytesLeast {
		c.gate.mu.Lock()
		open := c.gate.open
		c.gate.mu.Unlock()
		select {
		case <-open:
		default:
			select {
			case c.gate.held <- struct{}{}:
			default:
			}
			<-open
		}
	}
	return c.Conn.Write(b)
}

// TestABatchThatWasGivenUpIsNotWrittenOver while the link still writes it from where it lies: its memory goes to no other batch.
func TestABatchThatWasGivenUpIsNotWrittenOver(t *testing.T) {
	g := newWriteGate()
	var d net.Dialer
	_, c := fake(t, nil, WithDialer(func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &heldConn{conn, g}, nil
	}))
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c, WithRecordTimeout(200*time.Millisecond))
	value := func(i int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%04d", i)), 100_000) }
	g.shut()
	failed := make(chan error, 1)
	if err := p.Produce(ctx, "t/0", &Message{Value: value(0)}, func(_ Ack, err error) { failed <- err }); err != nil {
		t.Fatal(err)
	}
	<-g.held
	if err := <-failed; !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	for i := 1; i <= 8; i++ { // they are given up, too, and take what memory is free
		_ = p.Produce(ctx, "t/1", &Message{Value: value(i)}, func(_ Ack, err error) { failed <- err })
		if err := <-failed; !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	}
	g.release()
	r := consumer(t, c, []string{"t/0@earliest"})
	for rec, err := range r.Records(ctx) { // it arrives after all, as what it was
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(rec.Value, value(0)) {
			t.Errorf("it came as %.20q…", rec.Value)
		}
		break
	}
}

// TestTheNextBatchGoesBeforeTheCallbacksOfTheOneThatWasAcknowledged: the server need not wait for what callers do with an outcome.
func TestTheNextBatchGoesBeforeTheCallbacksOfTheOneThatWasAcknowledged(t *testing.T) {
	s, c := fake(t, nil)
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{}); err != nil {
		t.Fatal(err)
	}
	observer, err := Dial(ctx, s.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = observer.Close() }()
	p := producer(t, c, WithBatchBytes(batchBytesLeast), WithLinger(time.Minute))
	value := make([]byte, batchBytesLeast*3/4) // one a batch
	var order []Offset
	second := false
	done := func(a Ack, err error) {
		if err != nil {
			t.Error(err)
		}
		if order = append(order, a.Offset); len(order) > 1 {
			return
		}
		for !second && ctx.Err() == nil { // the first's callback sees the second arrive
			list, err := observer.Offsets(ctx, "t/0@latest")
			if err != nil {
				t.Error(err)
				return
			}
			second = list[0].HighWatermark >= 2
		}
	}
	for range 4 {
		if err := p.Produce(ctx, "t", &Message{Value: value}, done); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(order) != "[0 1 2 3]" || !second {
		t.Errorf("%v; the second batch was there during the first's callback: %v", order, second)
	}
}
