package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/server/test/harness"
	"github.com/trunkline-mq/trunkline/server/test/harness/kafkad"
)

const (
	besideBytes = 256 << 20 // of values, in a run
	// besideFew is how many records are under way at once where they are bounded.
	besideFew = 500
	// besideWarm is how often Kafka does all before it is measured, beside inPairs' own warm-up: its code is compiled meanwhile.
	besideWarm = 3
)

// beside is a run of the two clients, each against its own server.
type beside struct {
	ctx        context.Context
	server     *harness.Server
	ours       *trunkline.Client
	broker     *kafkad.Broker
	theirs     *kgo.Client
	value      []byte
	records    int
	partitions int
	topics     int
}

// startBeside starts both servers.
func startBeside(tb testing.TB) *beside {
	j := kafkad.Find(tb)
	d := &beside{ctx: tb.Context(), server: harness.Start(tb)}
	var err error
	if d.ours, err = trunkline.Dial(d.ctx, d.server.Client); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = d.ours.Close() })
	// The threads are Kafka's defaults, which the tests of what it stores lower; it syncs nothing, which is its default, too.
	d.broker = kafkad.NewBroker(tb, j.Tuned(), "num.network.threads=3", "num.io.threads=8", "log.segment.delete.delay.ms=1000")
	if d.theirs, err = kgo.NewClient(kgo.SeedBrokers(d.broker.Address)); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(d.theirs.Close)
	d.broker.Start(tb, d.theirs.Ping)
	return d
}

// set says what the next runs carry.
func (d *beside) set(size, partitions, total int) {
	d.value, d.partitions, d.records = bytes.Repeat([]byte("v"), size), partitions, total/size
}

func (d *beside) pids() []int { return pidsOf(d.server, d.broker.PID()) }

// fewer waits for a place among those under way, where these are bounded.
type fewer chan struct{}

func newFewer(n int) fewer {
	if n == 0 {
		return nil
	}
	return make(fewer, n)
}

func (f fewer) enter() {
	if f != nil {
		f <- struct{}{}
	}
}

func (f fewer) leave() {
	if f != nil {
		<-f
	}
}

// produce writes the records durably with our client.
func (d *beside) produce(topic string, most int) error {
	p, err := d.ours.NewProducer()
	if err != nil {
		return err
	}
	var failed atomic.Pointer[error]
	few := newFewer(most)
	done := func(a trunkline.Ack, err error) {
		if err == nil && a.Durability != "disk" {
			err = fmt.Errorf("acknowledged as %q", a.Durability)
		}
		if err != nil {
			failed.Store(&err)
		}
		few.leave()
	}
	m := &trunkline.Message{Value: d.value}
	for range d.records {
		few.enter()
		if err := p.Produce(d.ctx, topic, m, done); err != nil {
			return err
		}
	}
	err = p.Close(d.ctx)
	if f := failed.Load(); f != nil {
		err = errors.Join(err, *f)
	}
	return err
}

// produceKafka writes the records with franz-go, without linger and compression as ours, and with room for as many bytes.
func (d *beside) produceKafka(topic string, most int) error {
	c, err := kgo.NewClient(kgo.SeedBrokers(d.broker.Address), kgo.DefaultProduceTopic(topic), kgo.ProducerLinger(0), kgo.MaxBufferedRecords(1<<20),
		kgo.MaxBufferedBytes(64<<20), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		return err
	}
	defer c.Close()
	var failed atomic.Pointer[error]
	few := newFewer(most)
	done := func(_ *kgo.Record, err error) {
		if err != nil {
			failed.Store(&err)
		}
		few.leave()
	}
	for range d.records {
		few.enter()
		c.Produce(d.ctx, &kgo.Record{Value: d.value}, done)
	}
	err = c.Flush(d.ctx)
	if f := failed.Load(); f != nil {
		err = errors.Join(err, *f)
	}
	return err
}

func (d *beside) consume(topic string, opts ...trunkline.ConsumerOption) error {
	r, err := d.ours.NewConsumer(d.ctx, []string{topic + "@earliest"}, append(opts, trunkline.UntilLatest())...)
	if err != nil {
		return err
	}
	defer r.Close()
	n := 0
	for rec, err := range r.Records(d.ctx) {
		if err != nil || len(rec.Value) != len(d.value) {
			return fmt.Errorf("record %d: %w", n, err)
		}
		n++
	}
	if n != d.records {
		return fmt.Errorf("%d of %d records", n, d.records)
	}
	return nil
}

func (d *beside) consumeKafka(topic string) error {
	c, err := kgo.NewClient(kgo.SeedBrokers(d.broker.Address), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxPartitionBytes(8<<20))
	if err != nil {
		return err
	}
	defer c.Close()
	for n := 0; n < d.records; {
		fetches := c.PollFetches(d.ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("after %d records: %w", n, err)
		}
		for it := fetches.RecordIter(); !it.Done(); n++ {
			if r := it.Next(); len(r.Value) != len(d.value) {
				return fmt.Errorf("record %d has %d bytes", n, len(r.Value))
			}
		}
	}
	return nil
}

// create makes a topic on both servers.
func (d *beside) create() (string, error) {
	d.topics++
	name := fmt.Sprintf("t%d", d.topics)
	if err := d.ours.CreateTopic(d.ctx, name, trunkline.TopicConfig{Partitions: d.partitions}); err != nil {
		return "", err
	}
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = int32(kafkad.BrokerPatience.Milliseconds())
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = name, int32(d.partitions), 1
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(d.ctx, d.theirs)
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	}
	return name, err
}

func (d *beside) drop(topic string) error {
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TimeoutMillis = int32(kafkad.BrokerPatience.Milliseconds())
	rt := kmsg.NewDeleteTopicsRequestTopic()
	rt.Topic = kmsg.StringPtr(topic)
	req.TopicNames, req.Topics = []string{topic}, append(req.Topics, rt)
	resp, err := req.RequestWith(d.ctx, d.theirs)
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	}
	return errors.Join(err, d.ours.DeleteTopic(d.ctx, topic))
}

// both is what a step took with our client and with franz-go.
type both struct{ ours, theirs cost }

// outcome is what the steps of a round took; nothing was read where what was under way was bounded.
type outcome struct {
	produced, consumed both
	reused             cost // ours, as consumed, of records that are void when the next one comes
}

// round writes, and reads where nothing is bounded, with both, one after the other.
func (d *beside) round(most int) (o outcome, _ error) {
	topic, err := d.create()
	if err != nil {
		return o, err
	}
	step := func(to *both, ours, theirs func() error) {
		if err == nil {
			to.ours, err = clocked(d.server.PID(), ours)
		}
		if err == nil {
			to.theirs, err = clocked(d.broker.PID(), theirs)
		}
	}
	step(&o.produced, func() error { return d.produce(topic, most) }, func() error { return d.produceKafka(topic, most) })
	if most == 0 {
		step(&o.consumed, func() error { return d.consume(topic) }, func() error { return d.consumeKafka(topic) })
		if err == nil {
			o.reused, err = clocked(d.server.PID(), func() error { return d.consume(topic, trunkline.ReuseRecords()) })
		}
	}
	return o, errors.Join(err, d.drop(topic))
}

// compare measures pairs and reports them.
func (d *beside) compare(b *testing.B, most int) {
	var produced, consumed, reused direction
	var theirs [3][]float64
	moved := int64(d.records) * int64(len(d.value))
	inPairs(b, transferRounds, d.pids(), func(int) outcome {
		o, err := d.round(most)
		if err != nil {
			b.Fatal(err)
		}
		return o
	}, func(o outcome) {
		for i, of := range []struct {
			to *direction
			both
		}{{&produced, o.produced}, {&consumed, o.consumed}, {&reused, both{o.reused, o.consumed.theirs}}} {
			if of.ours.took > 0 {
				of.to.add(of.ours, of.theirs, moved)
				theirs[i] = append(theirs[i], float64(d.records)/of.theirs.took.Seconds())
			}
		}
	})
	for i, to := range []*direction{&produced, &consumed, &reused} {
		name := []string{"produced", "consumed", "reused"}[i]
		if len(to.ratio) == 0 {
			continue
		}
		b.Logf("%s, of Kafka's: %s; CPU s/GB %s against %s; Kafka's records/s %s", name, spread(to.ratio), spread(to.cpu), spread(to.rawCPU), spread(theirs[i]))
		b.ReportMetric(median(to.ratio), name+"-ratio")
		b.ReportMetric(float64(d.records)/median(to.seconds), name+"/s")
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkBesideKafka compares the Go client and our server, where every record is on disk when it is acknowledged, with franz-go
// and Kafka, which acknowledges what is in the page cache.
func BenchmarkBesideKafka(b *testing.B) {
	describe()
	d := startBeside(b)
	for range besideWarm {
		d.set(100, 12, besideBytes)
		if _, err := d.round(0); err != nil {
			b.Fatal(err)
		}
	}
	for _, size := range []int{100, 1024} {
		for _, partitions := range []int{1, 12} {
			for _, most := range []int{0, besideFew} {
				name := fmt.Sprintf("size=%d/partitions=%d", size, partitions)
				total := besideBytes
				if most > 0 {
					name, total = fmt.Sprintf("%s/inflight=%d", name, most), besideBytes/4
				}
				b.Run(name, func(b *testing.B) {
					for b.Loop() {
						d.set(size, partitions, total)
						d.compare(b, most)
					}
				})
			}
		}
	}
}

// TestKafkaBesideIsMeasurable runs a little of what the benchmark runs.
func TestKafkaBesideIsMeasurable(t *testing.T) {
	d := startBeside(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	d.ctx = ctx
	d.set(100, 3, 1<<20)
	for _, most := range []int{0, besideFew} {
		o, err := d.round(most)
		if err != nil {
			t.Fatal(err)
		}
		p, c := o.produced, o.consumed
		if p.ours.took <= 0 || p.theirs.took <= 0 || (c.ours.took <= 0) != (most > 0) || (c.theirs.took <= 0) != (most > 0) || (o.reused.took <= 0) != (most > 0) {
			t.Errorf("%+v", o)
		}
	}
}
