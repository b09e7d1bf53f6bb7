package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// rawLink sends PRODUCE and FETCH with nothing around it: one request under way, nothing built, checked or unpacked.
type rawLink struct {
	nc net.Conn
	r  *bufio.Reader
}

func dialRaw(addr string) (*rawLink, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	l := &rawLink{nc: nc, r: bufio.NewReaderSize(nc, 64<<10)}
	if err := nc.SetDeadline(time.Now().Add(runPatience)); err != nil {
		return nil, err
	}
	_, err = l.r.ReadSlice('\n') // INFO
	return l, err
}

// fullBatch is a batch of records without keys, a little below size bytes.
func fullBatch(value []byte, size int) (batch record.Batch, records int) {
	var b record.Builder
	b.Reset(nil)
	r := record.Record{Timestamp: 1_800_000_000_000, Value: value}
	for b.Size()+record.EncodedBound(&r) <= size {
		b.Append(&r)
	}
	return b.Finish(0, -1), int(b.Count())
}

func (l *rawLink) produce(topic string, batch record.Batch, count int) error {
	request := append(fmt.Appendf(nil, "PRODUCE %s/0 %d\r\n", topic, len(batch)), append(bytes.Clone(batch), '\r', '\n')...)
	for range count {
		if _, err := l.nc.Write(request); err != nil {
			return err
		}
		if line, err := l.r.ReadSlice('\n'); err != nil || !bytes.HasPrefix(line, []byte("+OK ")) {
			return fmt.Errorf("answered with %q, %v", line, err)
		}
	}
	return nil
}

// fetch reads a partition to the offset end.
func (l *rawLink) fetch(topic string, end int64) error {
	body := make([]byte, 1<<20)
	for next := int64(0); next < end; {
		if _, err := fmt.Fprintf(l.nc, "FETCH %s/0@%d max=1MiB\r\n", topic, next); err != nil {
			return err
		}
		line, err := l.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		fields := bytes.Fields(line)
		if len(fields) != 5 || string(fields[0]) != "BATCH" {
			return fmt.Errorf("answered with %q", line)
		}
		size, _ := strconv.Atoi(string(fields[4]))
		if _, err := io.ReadFull(l.r, body[:size]); err != nil {
			return err
		}
		for at := 0; at < size; {
			b := record.Batch(body[at:size])
			next, at = int64(b.NextOffset()), at+b.Size()
		}
		if _, err := l.r.Discard(len("\r\n+OK\r\n")); err != nil {
			return err
		}
	}
	return nil
}

// clientRun is one comparison of the Go client with raw requests.
type clientRun struct {
	server  *harness.Server
	client  *trunkline.Client
	ctx     context.Context
	value   []byte
	batch   record.Batch
	each    int // records of a batch
	batches int
	sync    string
	topics  int
}

func (c *clientRun) records() int { return c.each * c.batches }

func (c *clientRun) topic() (string, error) {
	c.topics++
	name := fmt.Sprintf("t%d-%d", len(c.value), c.topics)
	return name, c.client.CreateTopic(c.ctx, name, trunkline.TopicConfig{Partitions: 1, Settings: map[string]string{"sync": c.sync}})
}

func (c *clientRun) raw() (produce, fetch time.Duration, _ error) {
	topic, err := c.topic()
	if err != nil {
		return 0, 0, err
	}
	l, err := dialRaw(c.server.Client)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = l.nc.Close() }()
	start := time.Now()
	if err := l.produce(topic, c.batch, c.batches); err != nil {
		return 0, 0, err
	}
	produce = time.Since(start)
	start = time.Now()
	err = l.fetch(topic, int64(c.records()))
	fetch = time.Since(start)
	if err == nil {
		err = c.client.DeleteTopic(c.ctx, topic)
	}
	return produce, fetch, err
}

func (c *clientRun) ours() (produce, consume time.Duration, _ error) {
	topic, err := c.topic()
	if err != nil {
		return 0, 0, err
	}
	p, err := c.client.NewProducer()
	if err != nil {
		return 0, 0, err
	}
	failed := error(nil) // one partition: one callback at a time
	done := func(_ trunkline.Ack, err error) {
		if err != nil {
			failed = err
		}
	}
	m := &trunkline.Message{Value: c.value}
	start := time.Now()
	for range c.records() {
		if err := p.Produce(c.ctx, topic, m, done); err != nil {
			return 0, 0, err
		}
	}
	if err := p.Close(c.ctx); err != nil || failed != nil {
		return 0, 0, fmt.Errorf("%v, %v", err, failed)
	}
	produce = time.Since(start)
	start = time.Now()
	r, err := c.client.NewConsumer(c.ctx, []string{topic + "@earliest"}, trunkline.UntilLatest())
	if err != nil {
		return 0, 0, err
	}
	defer r.Close()
	n := 0
	for rec, err := range r.Records(c.ctx) {
		if err != nil || len(rec.Value) != len(c.value) {
			return 0, 0, fmt.Errorf("record %d: %w", n, err)
		}
		n++
	}
	consume = time.Since(start)
	if n != c.records() {
		return 0, 0, fmt.Errorf("%d of %d records", n, c.records())
	}
	return produce, consume, c.client.DeleteTopic(c.ctx, topic)
}

// newClientRun prepares batches of about 1 MiB.
func newClientRun(b testing.TB, size, batches int, sync string) *clientRun {
	s := harness.Start(b)
	client, err := trunkline.Dial(b.Context(), s.Client)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = client.Close() })
	c := &clientRun{server: s, client: client, ctx: b.Context(), value: bytes.Repeat([]byte("v"), size), batches: batches, sync: sync}
	c.batch, c.each = fullBatch(c.value, 1<<20-1<<10)
	return c
}

// BenchmarkGoClient compares the Go client's Producer and Consumer with raw PRODUCE and FETCH of the same records: one partition,
// one request under way.
func BenchmarkGoClient(b *testing.B) {
	describe()
	const bytesEach = 128 << 20
	for _, sync := range []string{"batch", "never"} {
		for _, size := range []int{100, 1024} {
			b.Run(fmt.Sprintf("sync=%s/size=%d", sync, size), func(b *testing.B) {
				c := newClientRun(b, size, bytesEach>>20, sync)
				var produced, consumed, records, read []float64
				for b.Loop() {
					rawProduce, rawFetch, err := c.raw()
					if err != nil {
						b.Fatal(err)
					}
					produce, consume, err := c.ours()
					if err != nil {
						b.Fatal(err)
					}
					produced = append(produced, rawProduce.Seconds()/produce.Seconds())
					consumed = append(consumed, rawFetch.Seconds()/consume.Seconds())
					records = append(records, float64(c.records())/produce.Seconds())
					read = append(read, float64(c.records())/consume.Seconds())
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(median(produced), "of-PRODUCE")
				b.ReportMetric(median(consumed), "of-FETCH")
				b.ReportMetric(median(records), "produced/s")
				b.ReportMetric(median(read), "consumed/s")
			})
		}
	}
}

// TestTheGoClientIsMeasurable runs a little of what the benchmark runs.
func TestTheGoClientIsMeasurable(t *testing.T) {
	c := newClientRun(t, 1024, 2, "batch")
	if _, _, err := c.raw(); err != nil {
		t.Error(err)
	}
	if _, _, err := c.ours(); err != nil {
		t.Error(err)
	}
}
