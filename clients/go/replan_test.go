package trunkline

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// shortly is how long a record is tried where that is to be waited for: on a busy machine, too, enough for one that is not refused.
const shortly = 2 * time.Second

func TestARecordIsTriedUntilItsTime(t *testing.T) {
	s, c := fake(t, nil)
	ctx := longContext(t)
	p := producer(t, c, WithRecordTimeout(shortly))
	if _, err := p.ProduceSync(ctx, "t", &Message{}); err != nil {
		t.Fatal(err)
	}
	s.Fail(errcode.StorageUnavailable, 1_000_000)
	_, err := p.ProduceSync(ctx, "t", &Message{})
	// Refused before, it is certainly not there; unless the time was up between a request and its answer.
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnavailable) == errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("%v; want the deadline, and what failed last", err)
	}
}

// TestARecordThatWaitedTooLongIsNotSent: the one before it in its partition took all of its time.
func TestARecordThatWaitedTooLongIsNotSent(t *testing.T) {
	s, c := fake(t, nil)
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{}); err != nil {
		t.Fatal(err)
	}
	const patience = 50 * time.Millisecond
	p := producer(t, c, WithRecordTimeout(patience))
	s.Fail(errcode.StorageUnavailable, 1_000_000)
	failing, over := make(chan struct{}), make(chan struct{})
	if err := p.Produce(ctx, "t/0", &Message{}, func(Ack, error) { close(failing); <-over }); err != nil {
		t.Fatal(err)
	}
	<-failing
	var last results
	if err := p.Produce(ctx, "t/0", &Message{}, last.take); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(patience, func() { close(over) })
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if len(last.errs) != 1 || !errors.Is(last.errs[0], context.DeadlineExceeded) || errors.Is(last.errs[0], ErrOutcomeUnknown) {
		t.Errorf("%v; want a deadline, and certainly not written", last.errs)
	}
}

// TestARecordThatWaitsForAPlanIsTriedUntilItsTime, where the plan cannot be had.
func TestARecordThatWaitsForAPlanIsTriedUntilItsTime(t *testing.T) {
	s, c := fake(t, nil)
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c, WithRecordTimeout(shortly))
	if _, err := p.ProduceSync(ctx, "t#k", &Message{}); err != nil {
		t.Fatal(err)
	}
	s.Fail(errcode.MetadataUnavailable, 1_000_000, line.Metadata)
	s.Fail(errcode.PlanStale, 1)
	for range 2 {
		if _, err := p.ProduceSync(ctx, "t#k", &Message{}); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrOutcomeUnknown) || ctx.Err() != nil {
			t.Fatal(err)
		}
		s.Mend()
		if _, err := p.ProduceSync(ctx, "t#k", &Message{}); err != nil {
			t.Fatal(err)
		}
		s.Fail(errcode.MetadataUnavailable, 1_000_000, line.Metadata)
		s.Fail(errcode.PlanStale, 1)
	}
}

// keyOf is a key whose partition is id among n.
func keyOf(t *testing.T, id PartitionID, n int32) string {
	t.Helper()
	e, err := partition.NewEvaluator(partition.Plan{Kind: partition.KindMurmur2, Partitions: n})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		if key := strconv.Itoa(i); e.ForKey([]byte(key)) == id {
			return key
		}
	}
}

// TestATopicThatComesBackSmallerLosesNoRecord: what waited for a partition that there is no more goes where it belongs now.
func TestATopicThatComesBackSmallerLosesNoRecord(t *testing.T) {
	tried := make(chan struct{}, 1_000_000)
	s, c := fake(t, nil, WithHooks(Hooks{Retried: func(Retried) { tried <- struct{}{} }}))
	ctx := longContext(t)
	remake := func(partitions int) {
		_ = c.DeleteTopic(ctx, "t")
		if err := c.CreateTopic(ctx, "t", TopicConfig{Partitions: partitions}); err != nil {
			t.Fatal(err)
		}
	}
	remake(4)
	p := producer(t, c)
	s.Fail(errcode.StorageUnavailable, 1_000_000)
	var got results
	if err := p.Produce(ctx, "t#"+keyOf(t, 3, 4), &Message{}, got.take); err != nil {
		t.Fatal(err)
	}
	<-tried
	remake(2)
	(*p.sinks.Load())["t"].forget() // as when another queue hears that the topic is gone
	if err := p.Produce(ctx, "t/0", &Message{}, got.take); err != nil {
		t.Fatal(err)
	}
	s.Mend()
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if acks, errs := got.count(); acks != 2 || errs != 0 || p.Buffered() != 0 {
		t.Fatalf("%d acknowledged, %v, %d bytes buffered", acks, got.errs, p.Buffered())
	}
}

// TestATopicThatComesBackLargerIsNoticed: its plan begins above that of the old one, so that the first record is refused.
func TestATopicThatComesBackLargerIsNoticed(t *testing.T) {
	stale := make(chan struct{}, 10)
	_, c := fake(t, nil, WithHooks(Hooks{Retried: func(r Retried) {
		if !hasCode(r.Err, errcode.PlanStale) {
			t.Errorf("sent again after %v; want PLAN_STALE", r.Err)
		}
		stale <- struct{}{}
	}}))
	ctx := longContext(t)
	key := keyOf(t, 5, 8)
	p := producer(t, c)
	for _, partitions := range []int{2, 8} {
		_ = c.DeleteTopic(ctx, "t")
		if err := c.CreateTopic(ctx, "t", TopicConfig{Partitions: partitions}); err != nil {
			t.Fatal(err)
		}
		ack, err := p.ProduceSync(ctx, "t#"+key, &Message{})
		if err != nil || partitions == 8 && ack.Partition != 5 {
			t.Fatalf("%+v, %v; want partition 5 of 8", ack, err)
		}
	}
	if len(stale) != 1 {
		t.Errorf("%d batches were sent again; want the one that was refused", len(stale))
	}
}

// TestBatchesBecomeSmallerWhereTheTopicTakesLess than it did when the producer asked.
func TestBatchesBecomeSmallerWhereTheTopicTakesLess(t *testing.T) {
	_, c := fake(t, nil)
	ctx := longContext(t)
	p := producer(t, c, WithLinger(time.Hour))
	var got results
	for i := range 100 {
		if i == 1 {
			if err := p.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			if err := c.AlterTopic(ctx, "t", map[string]string{"message.bytes": "2KiB"}); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Produce(ctx, "t/0", &Message{Value: fmt.Appendf(nil, "%0100d", i)}, got.take); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if acks, errs := got.count(); acks != 100 || errs != 0 {
		t.Fatalf("%d acknowledged, %d failed: %v", acks, errs, got.errs[0])
	}
	for i, r := range readAll(t, c, "t@earliest") {
		if n, _ := strconv.Atoi(string(r.Value)); n != i {
			t.Fatalf("record %d is %d", i, n)
		}
	}
}
