package trunkline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/clients/go/tlfake"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
)

// patience bounds what a test waits for.
const patience = 30 * time.Second

func longContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// fake starts a server in memory and a client that retries quickly.
func fake(t testing.TB, opts []tlfake.Option, more ...Option) (*tlfake.Server, *Client) {
	t.Helper()
	s, err := tlfake.New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	c, err := Dial(longContext(t), s.Address(), append([]Option{WithBackoff(time.Millisecond, 20*time.Millisecond)}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return s, c
}

func producer(t testing.TB, c *Client, opts ...ProducerOption) *Producer {
	t.Helper()
	p, err := c.NewProducer(opts...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// results collects outcomes.
type results struct {
	mu   sync.Mutex
	acks []Ack
	errs []error
}

func (r *results) take(ack Ack, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.errs = append(r.errs, err)
		return
	}
	r.acks = append(r.acks, ack)
}

func (r *results) count() (acks, errs int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.acks), len(r.errs)
}

// readAll reads everything that addresses hold now.
func readAll(t testing.TB, c *Client, addresses ...string) []Record {
	t.Helper()
	ctx := longContext(t)
	r, err := c.NewConsumer(ctx, addresses, UntilLatest())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all []Record
	for rec, err := range r.Records(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, *rec)
	}
	return all
}

func TestProducedRecordsComeBackAsTheyWere(t *testing.T) {
	_, c := fake(t, nil)
	at := time.Date(2026, 11, 22, 8, 0, 0, 123e6, time.UTC)
	for _, codec := range []Codec{NoCompression, Gzip, Snappy, LZ4, Zstd} {
		t.Run(fmt.Sprint(codec), func(t *testing.T) {
			ctx := longContext(t)
			topic := fmt.Sprintf("t%d", codec)
			if err := c.CreateTopic(ctx, topic, TopicConfig{}); err != nil {
				t.Fatal(err)
			}
			p := producer(t, c, WithCompression(codec), WithLinger(5*time.Millisecond))
			var want []Message
			for i := range 3000 {
				m := Message{Value: bytes.Repeat([]byte(strconv.Itoa(i)), 1+i%9), Timestamp: at.Add(time.Duration(i) * time.Millisecond)}
				switch i % 5 {
				case 1:
					m.Key = []byte{}
				case 2:
					m.Key, m.Headers = []byte("k\x00"), []Header{{"A", []byte("1")}, {"A", []byte("two\r\nlines")}, {"B", nil}}
				case 3:
					m.Value = nil
				case 4:
					m.Value = []byte{}
				}
				want = append(want, m)
			}
			var got results
			for i := range want {
				if err := p.Produce(ctx, topic, &want[i], got.take); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Close(ctx); err != nil || len(got.errs) > 0 {
				t.Fatal(err, got.errs)
			}
			for i, a := range got.acks {
				if a.Topic != topic || a.Offset != Offset(i) || a.Durability != "disk" {
					t.Fatalf("record %d: %+v", i, a)
				}
			}
			for i, r := range readAll(t, c, topic+"@earliest") {
				w := want[i]
				back := Message{Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp}
				if fmt.Sprintf("%#v", back) != fmt.Sprintf("%#v", w) {
					t.Fatalf("record %d:\n%#v, want\n%#v", i, back, w)
				}
				if i == len(want)-1 {
					return
				}
			}
			t.Fatal("records are missing")
		})
	}
}

func TestKeysGoWhereTheServerPutsThem(t *testing.T) {
	_, c := fake(t, nil)
	ctx := longContext(t)
	p := producer(t, c)
	for _, by := range []string{"murmur2", "crc32", "fnv1a", "jump"} {
		if err := c.CreateTopic(ctx, by, TopicConfig{Partitions: 7, Settings: map[string]string{"partitioner": by}}); err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			m := &Message{Key: fmt.Appendf(nil, "key %d", i), Value: []byte("x")}
			one, err := c.PublishSync(ctx, by, m)
			if err != nil {
				t.Fatal(err)
			}
			two, err := p.ProduceSync(ctx, by, m)
			if err != nil || two.Partition != one.Partition {
				t.Fatalf("%s, %s: the server chose %d, the client %d (%v)", by, m.Key, one.Partition, two.Partition, err)
			}
		}
	}
	ack, err := p.ProduceSync(ctx, "murmur2#anna", &Message{Value: []byte("x")})
	if other, err2 := c.PublishSync(ctx, "murmur2#anna", &Message{}); err != nil || err2 != nil || ack.Partition != other.Partition {
		t.Errorf("a key in the address: %v, %v; %v, %v", ack, err, other, err2)
	}
	if ack, err := p.ProduceSync(ctx, "jump/3", &Message{Key: []byte("k"), Value: []byte("x")}); err != nil || ack.Partition != 3 {
		t.Errorf("a partition that is named: %v, %v", ack, err)
	}
}

func TestRecordsWithoutAKeyAreSpreadByBatch(t *testing.T) {
	_, c := fake(t, nil)
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{Partitions: 3}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c)
	seen := map[PartitionID]int{}
	for range 9 {
		ack, err := p.ProduceSync(ctx, "t", &Message{Value: []byte("x")})
		if err != nil {
			t.Fatal(err)
		}
		seen[ack.Partition]++
	}
	if len(seen) != 3 || seen[0] != 3 {
		t.Errorf("nine batches went to %v", seen)
	}
	slow := producer(t, c, WithLinger(time.Hour))
	var got results
	for range 100 {
		if err := slow.Produce(ctx, "t", &Message{Value: []byte("y")}, got.take); err != nil {
			t.Fatal(err)
		}
	}
	if acks, errs := got.count(); acks+errs > 0 {
		t.Errorf("%d records did not linger", acks+errs)
	}
	if err := slow.Flush(ctx); err != nil { // ends the lingering
		t.Fatal(err)
	}
	for _, a := range got.acks {
		if a.Partition != got.acks[0].Partition {
			t.Fatalf("one batch went to partitions %d and %d", got.acks[0].Partition, a.Partition)
		}
	}
}

// keyed is a load of numbered records with keys, and what it left in the log.
func checkKeyed(t *testing.T, all []Record, total int) (duplicates int) {
	t.Helper()
	last, seen := map[string]int{}, map[string]int{}
	for i := range all {
		r := &all[i]
		n, err := strconv.Atoi(string(r.Value))
		if err != nil {
			t.Fatal(err)
		}
		key := string(r.Key)
		if seen[string(r.Value)]++; seen[string(r.Value)] > 1 {
			duplicates++
			continue
		}
		if before, ok := last[key]; ok && before >= n {
			t.Fatalf("key %s: record %d stands behind %d", key, n, before)
		}
		last[key] = n
	}
	if len(seen) != total {
		t.Fatalf("%d of %d records are there", len(seen), total)
	}
	return duplicates
}

func TestAGrownTopicIsPartitionedAnewAndKeepsTheOrderOfKeys(t *testing.T) {
	s, c := fake(t, nil)
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c, WithBatchBytes(2000))
	var got results
	const total = 20_000
	for i := range total {
		if i%4000 == 3999 { // the records of a key move within one partition's order only at the seams
			if err := p.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			n := strconv.Itoa(2 + i/4000)
			if err := c.AlterTopic(ctx, "t", map[string]string{"partitions": n, "accept_reorder": "true"}); err != nil {
				t.Fatal(err)
			}
		}
		m := &Message{Key: []byte(strconv.Itoa(i % 50)), Value: []byte(strconv.Itoa(i))}
		if err := p.Produce(ctx, "t", m, got.take); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if acks, errs := got.count(); acks != total || errs != 0 {
		t.Fatalf("%d acknowledged, %d failed", acks, errs)
	}
	// Within each partition the order holds; a key may have moved.
	parts := map[PartitionID][]Record{}
	for _, r := range readAll(t, c, "t@earliest") {
		parts[r.Partition] = append(parts[r.Partition], r)
	}
	sum := 0
	for _, part := range parts {
		sum += len(part)
		last := map[string]int{}
		for _, r := range part {
			n, _ := strconv.Atoi(string(r.Value))
			if before, ok := last[string(r.Key)]; ok && before >= n {
				t.Fatalf("key %s: %d behind %d", r.Key, n, before)
			}
			last[string(r.Key)] = n
		}
	}
	if sum != total || len(parts) < 5 {
		t.Fatalf("%d records in %d partitions", sum, len(parts))
	}
	_ = s
}

func TestARecordOfAnUnknownOutcomeIsSentAgain(t *testing.T) {
	var unknown, retried atomic.Int64
	s, c := fake(t, nil, WithHooks(Hooks{Retried: func(r Retried) {
		retried.Add(1)
		if r.Unknown {
			unknown.Add(int64(r.Records))
		}
	}}))
	ctx := longContext(t)
	p := producer(t, c, WithBatchBytes(2000))
	var got results
	const total = 10_000
	for i := range total {
		switch i % 2000 {
		case 500:
			s.CutAfter(2)
		case 1000:
			s.FailAfter(errcode.StorageUnknown, 2)
		case 1500:
			s.Fail(errcode.StorageUnavailable, 3)
		}
		m := &Message{Key: []byte(strconv.Itoa(i % 7)), Value: []byte(strconv.Itoa(i))}
		if err := p.Produce(ctx, "t", m, got.take); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if acks, errs := got.count(); acks != total || errs != 0 {
		t.Fatalf("%d acknowledged, %d failed: %v", acks, errs, got.errs)
	}
	twice := checkKeyed(t, readAll(t, c, "t@earliest"), total)
	if twice == 0 || int64(twice) > unknown.Load() || retried.Load() < 5 {
		t.Fatalf("%d records are there twice, %d had an unknown outcome, %d batches were sent again", twice, unknown.Load(), retried.Load())
	}
}

func TestUnknownOutcomesAreHandedOverIfSoAsked(t *testing.T) {
	s, c := fake(t, nil)
	ctx := longContext(t)
	p := producer(t, c, RetryUnknown(false))
	if _, err := p.ProduceSync(ctx, "t", &Message{Value: []byte("0")}); err != nil {
		t.Fatal(err)
	}
	s.CutAfter(1)
	var fault *ProduceError
	if _, err := p.ProduceSync(ctx, "t", &Message{Value: []byte("1")}); !errors.Is(err, ErrOutcomeUnknown) || !errors.As(err, &fault) || !fault.Unknown {
		t.Errorf("cut: %v", err)
	}
	s.FailAfter(errcode.Timeout, 1)
	if _, err := p.ProduceSync(ctx, "t", &Message{Value: []byte("2")}); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("timeout: %v", err)
	}
	s.Fail(errcode.StorageFull, 2) // definite: tried again all the same
	if _, err := p.ProduceSync(ctx, "t", &Message{Value: []byte("3")}); err != nil {
		t.Errorf("full: %v", err)
	}
	s.Fail("FROM_THE_FUTURE", 1) // nobody knows
	if _, err := p.ProduceSync(ctx, "t", &Message{Value: []byte("4")}); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("a code of a later version: %v", err)
	}
	if all := readAll(t, c, "t@earliest"); len(all) != 4 {
		t.Errorf("%d records", len(all))
	}
}

func TestWhatWillNotPassIsNotTriedAgain(t *testing.T) {
	s, c := fake(t, []tlfake.Option{tlfake.WithMaxPayload(5000)})
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{Partitions: 2, Settings: map[string]string{"message.bytes": "2KiB"}}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c)
	for name, tc := range map[string]struct {
		address string
		m       Message
		want    error
	}{
		"above message.bytes":      {"t", Message{Value: make([]byte, 3000)}, ErrTooLarge},
		"above the server's limit": {"t", Message{Value: make([]byte, 6000)}, ErrTooLarge},
		"no such partition":        {"t/2", Message{}, ErrNotFound},
		"no topic's name":          {"a..b", Message{}, ErrInvalid},
		"a position":               {"t@3", Message{}, ErrInvalid},
		"no partition's number":    {"t/x", Message{}, ErrInvalid},
		"two keys":                 {"t#k", Message{Key: []byte("l")}, ErrInvalid},
	} {
		_, err := p.ProduceSync(ctx, tc.address, &tc.m)
		if !errors.Is(err, tc.want) || errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("%s: %v; want %v", name, err, tc.want)
		}
	}
	s.Fail(errcode.BadBatch, 1)
	if _, err := p.ProduceSync(ctx, "t", &Message{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("refused for good: %v", err)
	}
	if err := c.DeleteTopic(ctx, "t"); err != nil {
		t.Fatal(err)
	}
	if ack, err := p.ProduceSync(ctx, "t", &Message{Value: []byte("x")}); err != nil || ack.Offset != 0 { // as any publish, it makes the topic
		t.Errorf("a topic that was deleted: %v, %v", ack, err)
	}
}

func TestATopicThatIsMissingIsMadeOrNotFound(t *testing.T) {
	_, c := fake(t, []tlfake.Option{tlfake.WithPartitions(5)})
	ctx := longContext(t)
	p := producer(t, c)
	var got results
	for i := range 2000 {
		m := &Message{Key: []byte(strconv.Itoa(i % 20)), Value: []byte(strconv.Itoa(i))}
		if err := p.Produce(ctx, "new", m, got.take); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(ctx); err != nil || len(got.errs) > 0 {
		t.Fatal(err, got.errs)
	}
	checkKeyed(t, readAll(t, c, "new@earliest"), 2000)
	ack, err := c.PublishSync(ctx, "new", &Message{Key: []byte("7")})
	if other, err2 := p.ProduceSync(ctx, "new", &Message{Key: []byte("7")}); err != nil || err2 != nil || other.Partition != ack.Partition {
		t.Errorf("%v, %v; %v, %v", ack, err, other, err2)
	}

	_, strict := fake(t, []tlfake.Option{tlfake.WithoutAutoCreate()})
	q := producer(t, strict)
	for _, m := range []*Message{{Value: []byte("x")}, {Key: []byte("k"), Value: []byte("x")}} {
		if _, err := q.ProduceSync(ctx, "new", m); !errors.Is(err, ErrNotFound) {
			t.Errorf("key %q: %v", m.Key, err)
		}
	}
	if err := strict.CreateTopic(ctx, "new", TopicConfig{}); err != nil {
		t.Fatal(err)
	}
}

func TestABufferThatIsFullHoldsBack(t *testing.T) {
	s, c := fake(t, nil)
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c, WithBufferBytes(1000))
	if _, err := p.ProduceSync(ctx, "t", &Message{Value: []byte("0")}); err != nil {
		t.Fatal(err)
	}
	s.Refuse(true)
	s.Disconnect()
	big := &Message{Value: make([]byte, 5000)} // goes alone
	var got results
	if err := p.Produce(ctx, "t", big, got.take); err != nil {
		t.Fatal(err)
	}
	if err := p.TryProduce(ctx, "t", big, got.take); !errors.Is(err, ErrBufferFull) {
		t.Errorf("no room: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := p.Produce(short, "t", big, got.take); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no room: %v", err)
	}
	var waiting sync.WaitGroup
	waiting.Go(func() {
		if err := p.Produce(ctx, "t", &Message{Value: []byte("2")}, got.take); err != nil {
			t.Error(err)
		}
	})
	s.Refuse(false)
	waiting.Wait()
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if acks, errs := got.count(); acks != 2 || errs != 0 || p.Buffered() != 0 {
		t.Errorf("%d acknowledged, %d failed (%v), %d bytes left", acks, errs, got.errs, p.Buffered())
	}
}

func TestCloseGivesEveryRecordItsOutcome(t *testing.T) {
	s, c := fake(t, nil)
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c, WithBatchBytes(1024))
	if _, err := p.ProduceSync(ctx, "t", &Message{Value: []byte("0")}); err != nil {
		t.Fatal(err)
	}
	s.Refuse(true)
	s.Disconnect()
	var got results
	for range 500 {
		if err := p.Produce(ctx, "t", &Message{Value: []byte("0123456789")}, got.take); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := p.Close(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close: %v", err)
	}
	if acks, errs := got.count(); acks != 0 || errs != 500 {
		t.Errorf("%d acknowledged, %d failed", acks, errs)
	}
	for _, err := range got.errs {
		if !errors.Is(err, ErrClosed) {
			t.Fatalf("%v; want ErrClosed", err)
		}
	}
	if err := p.Produce(ctx, "t", &Message{}, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
	if err := p.Close(ctx); err != nil {
		t.Errorf("twice: %v", err)
	}
}

func TestTheCallersContextEndsTheWaitingOnly(t *testing.T) {
	s, c := fake(t, nil)
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c)
	if _, err := p.ProduceSync(ctx, "t", &Message{}); err != nil {
		t.Fatal(err)
	}
	s.Fail(errcode.StorageUnavailable, 50)
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := p.ProduceSync(short, "t", &Message{Value: []byte("x")}); !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if all := readAll(t, c, "t@earliest"); len(all) != 2 {
		t.Errorf("%d records; the one that nobody waited for is to be there", len(all))
	}
}

func TestAcksNoneHasNoOffset(t *testing.T) {
	_, c := fake(t, nil)
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c, WithAcks(AcksNone))
	if ack, err := p.ProduceSync(ctx, "t", &Message{}); err != nil || ack.Offset != -1 || ack.Durability != "none" {
		t.Errorf("%+v, %v", ack, err)
	}
	if _, err := c.NewProducer(WithAcks("2")); !errors.Is(err, ErrInvalid) {
		t.Errorf("acks=2: %v", err)
	}
	if _, err := c.NewProducer(WithCompression(9)); !errors.Is(err, ErrInvalid) {
		t.Errorf("codec 9: %v", err)
	}
}

func TestConcurrentProducersAndFlushes(t *testing.T) {
	s, c := fake(t, nil)
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{Partitions: 4}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c, WithBatchBytes(4096), WithBufferBytes(64<<10), WithCompression(LZ4))
	const goroutines, each = 8, 3000
	var acked atomic.Int64
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				m := &Message{Key: []byte(strconv.Itoa(g)), Value: []byte(strconv.Itoa(g*each + i))}
				err := p.Produce(ctx, "t", m, func(_ Ack, err error) {
					if err == nil {
						acked.Add(1)
					}
				})
				if err == nil && i%500 == 499 {
					err = p.Flush(ctx)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 5 {
		s.FailAfter(errcode.StorageUnknown, 1)
		s.Disconnect()
	}
	wg.Wait()
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if acked.Load() != goroutines*each {
		t.Errorf("%d of %d records acknowledged before Flush returned", acked.Load(), goroutines*each)
	}
	checkKeyed(t, readAll(t, c, "t@earliest"), goroutines*each)
}

func TestHooksTellOfBatches(t *testing.T) {
	var mu sync.Mutex
	var produced []Produced
	var connected []string
	_, c := fake(t, nil, WithHooks(Hooks{
		Produced:  func(p Produced) { mu.Lock(); produced = append(produced, p); mu.Unlock() },
		Connected: func(c Connected) { mu.Lock(); connected = append(connected, c.Purpose); mu.Unlock() },
	}))
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c, WithCompression(Zstd), WithLinger(time.Hour))
	for range 100 {
		if err := p.Produce(ctx, "t", &Message{Value: bytes.Repeat([]byte("a"), 100)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if len(produced) != 1 || produced[0].Records != 100 || produced[0].Bytes*5 > produced[0].Plain || produced[0].Tries != 1 || produced[0].Err != nil {
		t.Errorf("%+v", produced)
	}
	if !slices.Equal(connected, []string{"client", "producer"}) {
		t.Errorf("%q", connected)
	}
}

func TestProduceAllocatesNothingPerRecord(t *testing.T) {
	_, c := fake(t, nil)
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c)
	m := &Message{Key: []byte("key"), Value: make([]byte, 100), Headers: []Header{{"Trace", []byte("1")}}}
	var failed atomic.Int64
	done := func(_ Ack, err error) {
		if err != nil {
			failed.Add(1)
		}
	}
	const records = 20_000
	run := func() {
		for i := range records {
			to := "t"
			if i%2 == 0 {
				to = "t/1"
			}
			if err := p.Produce(ctx, to, m, done); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	run() // buffers grow
	n := testing.AllocsPerRun(5, run)
	if failed.Load() > 0 {
		t.Fatalf("%d failed", failed.Load())
	}
	// What is left is per batch, on this side and on that of the fake server, which runs in this process.
	if n > records/20 {
		t.Fatalf("%v allocations for %d records", n, records)
	}
}

func TestFaultsOfOneVerbLeaveOthersAlone(t *testing.T) {
	s, c := fake(t, nil)
	ctx := longContext(t)
	s.Fail(errcode.MetadataUnavailable, 3, line.Topic)
	if err := c.CreateTopic(ctx, "t", TopicConfig{}); err != nil { // asked again
		t.Fatal(err)
	}
	s.FailAfter(errcode.MetadataUnavailable, 1, line.Topic)
	if err := c.CreateTopic(ctx, "u", TopicConfig{}); !errors.Is(err, ErrExists) { // the code says that nothing was done
		t.Fatal(err)
	}
	s.FailAfter(errcode.Timeout, 1, line.Topic)
	if err := c.CreateTopic(ctx, "v", TopicConfig{}); err != nil {
		t.Fatal(err)
	}
	s.FailAfter(errcode.Timeout, 1, line.Topic)
	if err := c.DeleteTopic(ctx, "v"); err != nil {
		t.Fatal(err)
	}
	if list, err := c.Topics(ctx); err != nil || len(list) != 2 || !strings.Contains(list[1].Name, "u") {
		t.Fatal(list, err)
	}
}
