package trunkline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/clients/go/tlfake"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

// gate holds back what servers say.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed while nothing is held back
}

func newGate() *gate {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	return g
}

func (g *gate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}

func (g *gate) passable() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// gatedConn is a connection behind a gate.
type gatedConn struct {
	net.Conn
	gate *gate
	gone chan struct{}
	once sync.Once
}

func (c *gatedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	select {
	case <-c.gate.passable():
	case <-c.gone:
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *gatedConn) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.Conn.Close()
}

// gated is fake with a client behind a gate, and another that is not, and the topic t, whose partitioner is called.
func gated(t *testing.T) (*gate, *Client, *Client) {
	t.Helper()
	g := newGate()
	s, free := fake(t, nil)
	c, err := Dial(longContext(t), s.Address(), WithDialer(func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		nc, err := d.DialContext(ctx, network, address)
		return &gatedConn{Conn: nc, gate: g, gone: make(chan struct{})}, err
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.release(); c.Close() })
	makeCalled(t, free)
	return g, c, free
}

func makeCalled(t *testing.T, c *Client) {
	t.Helper()
	if err := c.CreateTopic(longContext(t), "t", TopicConfig{Partitions: 5, Settings: map[string]string{"partitioner": "jump"}}); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

func stored(t *testing.T, c *Client) int {
	t.Helper()
	topic, err := c.TopicInfo(longContext(t), "t")
	if err != nil {
		t.Fatal(err)
	}
	n := Offset(0)
	for _, p := range topic.Partitions {
		n += p.HighWatermark
	}
	return int(n)
}

// TestBatchesForTheServerToPlaceDoNotWaitForAnswers, but for so many that what is produced meanwhile is gathered.
func TestBatchesForTheServerToPlaceDoNotWaitForAnswers(t *testing.T) {
	g, c, free := gated(t)
	ctx := longContext(t)
	p := producer(t, c)
	var got results
	produce := func() {
		if err := p.Produce(ctx, "t#k", &Message{Value: []byte("x")}, got.take); err != nil {
			t.Fatal(err)
		}
	}
	produce()
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	g.hold()
	for n := 2; n <= 1+viaBatchesMax; n++ {
		produce()
		eventually(t, "the record is there, and no answer", func() bool { return stored(t, free) == n })
	}
	for range 100 {
		produce()
	}
	via := (*p.sinks.Load())["t"].via
	via.mu.Lock()
	waiting, records := len(via.waiting), 0
	for _, b := range via.waiting {
		records += len(b.promises)
	}
	via.mu.Unlock()
	if acks, _ := got.count(); acks != 1 || waiting != 1 || records != 100 {
		t.Errorf("%d acknowledged; %d records wait in %d batches; want 1, and 100 in 1", acks, records, waiting)
	}
	g.release()
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if acks, errs := got.count(); acks != 1+viaBatchesMax+100 || errs != 0 {
		t.Errorf("%d acknowledged, %v", acks, got.errs)
	}
	for i, ack := range got.acks {
		if ack.Offset != Offset(i) {
			t.Fatalf("result %d is of offset %d", i, ack.Offset)
		}
	}
}

func TestClosingLeavesNoRecordWithoutItsResult(t *testing.T) {
	g, c, free := gated(t)
	ctx := longContext(t)
	p := producer(t, c)
	if _, err := p.ProduceSync(ctx, "t#k", &Message{}); err != nil {
		t.Fatal(err)
	}
	g.hold()
	var got results
	for n := range 3 * viaBatchesMax {
		if err := p.Produce(ctx, "t#k", &Message{}, got.take); err != nil {
			t.Fatal(err)
		}
		if n < viaBatchesMax {
			eventually(t, "the record is there", func() bool { return stored(t, free) == n+2 })
		}
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if err := p.Close(over); !errors.Is(err, context.Canceled) {
		t.Errorf("close: %v", err)
	}
	if acks, errs := got.count(); acks != 0 || errs != 3*viaBatchesMax || p.Buffered() != 0 {
		t.Fatalf("%d acknowledged, %d failed, %d bytes buffered", acks, errs, p.Buffered())
	}
	for i, err := range got.errs {
		if errors.Is(err, ErrOutcomeUnknown) != (i < viaBatchesMax) {
			t.Errorf("record %d: %v", i, err)
		}
	}
}

// TestRecordsForTheServerToPlaceAreThere whatever fails meanwhile: once where nothing has an unknown outcome, and then in the
// order of their keys where nothing had to be sent again.
func TestRecordsForTheServerToPlaceAreThere(t *testing.T) {
	const records, keys = 5000, 50
	for name, tt := range map[string]struct {
		fault func(s *tlfake.Server)
		again bool // something is sent again
		twice bool // some may be there twice
		opt   []ProducerOption
		lost  bool // those without an outcome are handed over
	}{
		"nothing fails":        {fault: func(*tlfake.Server) {}},
		"no partitioner":       {fault: func(s *tlfake.Server) { s.Fail(errcode.PartitionerUnavailable, 700) }, again: true},
		"outcomes unknown":     {fault: func(s *tlfake.Server) { s.FailAfter(errcode.StorageUnknown, 30) }, again: true, twice: true},
		"a connection ends":    {fault: func(s *tlfake.Server) { s.CutAfter(2000) }, again: true, twice: true},
		"unknown, handed over": {fault: func(s *tlfake.Server) { s.FailAfter(errcode.StorageUnknown, 30) }, opt: []ProducerOption{RetryUnknown(false)}, lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := fake(t, nil)
			ctx := longContext(t)
			makeCalled(t, c)
			p := producer(t, c, tt.opt...)
			tt.fault(s)
			var got results
			for i := range records {
				m := &Message{Key: strconv.AppendInt([]byte("k"), int64(i%keys), 10), Value: strconv.AppendInt(nil, int64(i), 10)}
				if i%7 == 0 {
					m.Headers = []Header{{Name: "N", Value: m.Value}}
				}
				if err := p.Produce(ctx, "t", m, got.take); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Close(ctx); err != nil {
				t.Fatal(err)
			}
			acks, errs := got.count()
			if acks+errs != records || errs > 0 != tt.lost || p.Buffered() != 0 {
				t.Fatalf("%d acknowledged, %d failed, %d bytes buffered", acks, errs, p.Buffered())
			}
			for _, err := range got.errs {
				if !errors.Is(err, ErrOutcomeUnknown) {
					t.Error(err)
				}
			}
			last, times := map[string]int{}, map[int]int{}
			for _, r := range readAll(t, c, "t@earliest") {
				n, _ := strconv.Atoi(string(r.Value))
				times[n]++
				if before, ok := last[string(r.Key)]; ok && before >= n && !tt.again {
					t.Fatalf("%s: %d stands behind %d", r.Key, n, before)
				}
				last[string(r.Key)] = n
				if want := fmt.Sprintf("k%d", n%keys); string(r.Key) != want || (n%7 == 0) != (len(r.Headers) == 1) {
					t.Fatalf("record %d has key %s and headers %v", n, r.Key, r.Headers)
				}
			}
			for n := range records {
				if times[n] < 1 || times[n] > 1 && !tt.twice {
					t.Fatalf("record %d is there %d times", n, times[n])
				}
			}
		})
	}
}

func TestARecordForTheServerToPlaceIsTriedUntilItsTime(t *testing.T) {
	s, c := fake(t, nil)
	ctx := longContext(t)
	makeCalled(t, c)
	p := producer(t, c, WithRecordTimeout(shortly))
	if _, err := p.ProduceSync(ctx, "t#k", &Message{}); err != nil {
		t.Fatal(err)
	}
	s.Fail(errcode.PartitionerUnavailable, 1_000_000)
	var got results
	for range 100 {
		if err := p.Produce(ctx, "t#k", &Message{}, got.take); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if acks, errs := got.count(); acks != 0 || errs != 100 {
		t.Fatalf("%d acknowledged, %d failed", acks, errs)
	}
	for _, err := range got.errs {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v; want the deadline", err)
		}
	}
	s.Mend()
	if _, err := p.ProduceSync(ctx, "t#k", &Message{}); err != nil {
		t.Error(err)
	}
}

// TestARecordThatCannotBeSentFailsAlone, and what was produced behind it stays in order.
func TestARecordThatCannotBeSentFailsAlone(t *testing.T) {
	const records, large = 2000, 777
	_, c := fake(t, []tlfake.Option{tlfake.WithMaxPayload(4096)})
	ctx := longContext(t)
	makeCalled(t, c)
	p := producer(t, c)
	var got results
	for i := range records {
		m := &Message{Key: []byte("k"), Value: strconv.AppendInt(nil, int64(i), 10)}
		if i == large {
			m.Value = bytes.Repeat([]byte("x"), 5000)
		}
		if err := p.Produce(ctx, "t", m, got.take); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if acks, errs := got.count(); acks != records-1 || errs != 1 || !errors.Is(got.errs[0], ErrTooLarge) {
		t.Fatalf("%d acknowledged, failed: %v", acks, got.errs)
	}
	last := -1
	for _, r := range readAll(t, c, "t@earliest") {
		n, _ := strconv.Atoi(string(r.Value))
		if n <= last {
			t.Fatalf("%d stands behind %d", n, last)
		}
		last = n
	}
}
