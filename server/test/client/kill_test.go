package client

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const partitions = 4

// ledger is what a producer was told and what readers saw.
type ledger struct {
	mu    sync.Mutex
	acked map[string]int // address to record
	count atomic.Int64
	seen  map[string]int // address to record
	times []int          // of each record, how often it was seen
	last  map[string]int // of each key, the newest record that was seen for the first time
	found int            // different records
	twice int
}

func newLedger(records int) *ledger {
	return &ledger{acked: make(map[string]int, records), seen: make(map[string]int, records), times: make([]int, records), last: make(map[string]int)}
}

func (l *ledger) ack(i int, a trunkline.Ack) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[fmt.Sprintf("%d@%d", a.Partition, a.Offset)] = i
	l.count.Add(1)
}

// see takes a record; true when all are there.
func (l *ledger) see(t *testing.T, r *trunkline.Record) bool {
	i, err := strconv.Atoi(string(r.Value))
	if err != nil || i >= len(l.times) {
		t.Errorf("%s/%d@%d holds %q", r.Topic, r.Partition, r.Offset, r.Value)
		return false
	}
	at := fmt.Sprintf("%d@%d", r.Partition, r.Offset)
	if before, again := l.seen[at]; again {
		t.Errorf("the record at %s came twice, as %d and as %d", at, before, i)
	}
	l.seen[at] = i
	if l.times[i]++; l.times[i] > 1 {
		l.twice++
		return false
	}
	if before, ok := l.last[string(r.Key)]; ok && before > i {
		t.Errorf("key %s: record %d stands behind %d", r.Key, i, before)
	}
	l.last[string(r.Key)] = i
	l.found++
	return l.found == len(l.times)
}

// compare holds what was acknowledged against what was seen.
func (l *ledger) compare(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for at, i := range l.acked {
		if got, ok := l.seen[at]; ok && got != i {
			t.Errorf("%s was acknowledged for record %d and holds %d", at, i, got)
		}
	}
}

// TestKillsLoseNothingAndDuplicateOnlyWhatWasUnknown kills the server again and again under a producer and a consumer.
func TestKillsLoseNothingAndDuplicateOnlyWhatWasUnknown(t *testing.T) {
	total, kills := *recordsFlag, *killsFlag
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute+time.Duration(kills)*20*time.Second+time.Duration(total)*time.Millisecond)
	defer cancel()
	s := start(t)
	var unknown, resent atomic.Int64
	c := s.dial(ctx, t, trunkline.WithHooks(trunkline.Hooks{Retried: func(r trunkline.Retried) {
		resent.Add(int64(r.Records))
		if r.Unknown {
			unknown.Add(int64(r.Records))
		}
	}}))
	if err := c.CreateTopic(ctx, "t", trunkline.TopicConfig{Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
	consumer, err := c.NewConsumer(ctx, []string{"t@earliest"})
	if err != nil {
		t.Fatal(err)
	}
	book := newLedger(total)
	var working sync.WaitGroup
	defer working.Wait()
	defer cancel()
	working.Go(func() { produce(ctx, t, c, book) })
	consumed := make(chan struct{})
	working.Go(func() {
		defer close(consumed)
		for r, err := range consumer.Records(ctx) {
			if err != nil {
				t.Errorf("consume, %d of %d records: %v", book.found, total, err)
				return
			}
			if book.see(t, r) {
				return
			}
		}
	})
	for n := range kills {
		goal := int64(total) * int64(n+1) / int64(kills+1)
		for book.count.Load() < goal && ctx.Err() == nil && !t.Failed() {
			wait(ctx, time.Millisecond)
		}
		s.bounce()
	}
	select {
	case <-consumed:
	case <-ctx.Done():
		t.Fatalf("%d of %d records acknowledged when the time was up", book.count.Load(), total)
	}
	// What was sent a second time may stand behind the last record that was missing.
	rest, err := c.NewConsumer(ctx, consumer.Positions(), trunkline.UntilLatest())
	if err != nil {
		t.Fatal(err)
	}
	for r, err := range rest.Records(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		book.see(t, r)
	}
	book.compare(t)
	if book.found != total || int64(book.twice) > unknown.Load() {
		t.Errorf("%d of %d records are there; %d are there twice, of %d with an unknown outcome", book.found, total, book.twice, unknown.Load())
	}
	t.Logf("%d kills under %d records: 0 lost, %d twice, of %d that had an unknown outcome; %d sent again in all", kills, total, book.twice, unknown.Load(), resent.Load())
}

// produce produces all records.
func produce(ctx context.Context, t *testing.T, c *trunkline.Client, book *ledger) {
	p, err := c.NewProducer(trunkline.WithBatchBytes(16<<10), trunkline.WithBufferBytes(256<<10), trunkline.WithCompression(trunkline.LZ4))
	if err != nil {
		t.Error(err)
		return
	}
	for i := range book.times {
		m := trunkline.Message{Key: []byte(strconv.Itoa(i % 64)), Value: []byte(strconv.Itoa(i))}
		err := p.Produce(ctx, "t", &m, func(a trunkline.Ack, err error) {
			if err != nil {
				t.Errorf("record %d: %v", i, err)
				return
			}
			book.ack(i, a)
		})
		if err != nil {
			t.Errorf("record %d: %v", i, err)
			return
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
	if got := book.count.Load(); got != int64(len(book.times)) {
		t.Errorf("%d of %d records have their outcome after Close", got, len(book.times))
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// TestASubscriptionOutlivesTheServer kills the server between records.
func TestASubscriptionOutlivesTheServer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*harness.Patience)
	defer cancel()
	s := start(t)
	c := s.dial(ctx, t)
	if err := c.CreateTopic(ctx, "t", trunkline.TopicConfig{Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	sub, err := c.Subscribe(ctx, "t")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Stop()
	p, err := c.NewProducer()
	if err != nil {
		t.Fatal(err)
	}
	const rounds, each = 3, 50
	next := map[trunkline.PartitionID]trunkline.Offset{}
	for range rounds {
		for i := range each {
			if _, err := p.ProduceSync(ctx, fmt.Sprintf("t/%d", i%2), &trunkline.Message{Value: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			if i == each/2 {
				s.bounce() // the rest is published before or after the subscription is back
			}
		}
		n := 0
		for r, err := range sub.Messages(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if r.Offset != next[r.Partition] {
				t.Fatalf("partition %d: offset %d, want %d", r.Partition, r.Offset, next[r.Partition])
			}
			next[r.Partition]++
			if n++; n == each {
				break
			}
		}
	}
}

// TestEveryCodecIsUnpackedByTheServerToo produces compressed batches and has the server deliver their records one by one.
func TestEveryCodecIsUnpackedByTheServerToo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*harness.Patience)
	defer cancel()
	s := start(t)
	c := s.dial(ctx, t)
	for _, codec := range []trunkline.Codec{trunkline.NoCompression, trunkline.Gzip, trunkline.Snappy, trunkline.LZ4, trunkline.Zstd} {
		p, err := c.NewProducer(trunkline.WithCompression(codec), trunkline.WithLinger(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		topic := fmt.Sprintf("t%d", codec)
		if err := c.CreateTopic(ctx, topic, trunkline.TopicConfig{}); err != nil {
			t.Fatal(err)
		}
		for i := range 500 {
			if err := p.Produce(ctx, topic, &trunkline.Message{Key: []byte("k"), Value: fmt.Appendf(nil, "value %d", i)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Close(ctx); err != nil {
			t.Fatal(err)
		}
		reading, err := c.Get(ctx, topic, 1000)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for r, err := range reading.Messages(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if string(r.Value) != fmt.Sprintf("value %d", n) || string(r.Key) != "k" {
				t.Fatalf("codec %d, record %d: %q", codec, n, r.Value)
			}
			n++
		}
		if n != 500 {
			t.Errorf("codec %d: %d records", codec, n)
		}
	}
}

// TestPlansAreEvaluatedAsTheServerDoes compares where keys go, for each partitioner, and while the topic grows.
func TestPlansAreEvaluatedAsTheServerDoes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*harness.Patience)
	defer cancel()
	s := start(t)
	c := s.dial(ctx, t)
	p, err := c.NewProducer()
	if err != nil {
		t.Fatal(err)
	}
	for _, by := range []string{"murmur2", "crc32", "fnv1a", "jump"} {
		if err := c.CreateTopic(ctx, by, trunkline.TopicConfig{Partitions: 3, Settings: map[string]string{"partitioner": by}}); err != nil {
			t.Fatal(err)
		}
		for _, grown := range []string{"", "5"} {
			if grown != "" {
				if err := c.AlterTopic(ctx, by, map[string]string{"partitions": grown, "accept_reorder": "true"}); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 20 {
				m := &trunkline.Message{Key: fmt.Appendf(nil, "key %d", i), Value: []byte("x")}
				theirs, err := c.PublishSync(ctx, by, m)
				if err != nil {
					t.Fatal(err)
				}
				ours, err := p.ProduceSync(ctx, by, m)
				if err != nil || ours.Partition != theirs.Partition {
					t.Fatalf("%s, %s: the server chose %d, the client %d (%v)", by, m.Key, theirs.Partition, ours.Partition, err)
				}
			}
		}
	}
}
