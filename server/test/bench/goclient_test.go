package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
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
	body := make([]byte, 4<<20)
	for next := int64(0); next < end; {
		if _, err := fmt.Fprintf(l.nc, "FETCH %s/0@%d max=4MiB\r\n", topic, next); err != nil {
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

// cost is what one way of doing a run took.
type cost struct {
	took           time.Duration
	client, server float64 // seconds of processor time
}

// perGB are the seconds of processor time, of client and server, that a GB of records costs.
func (c cost) perGB(bytes int64) float64 { return (c.client + c.server) / (float64(bytes) / 1e9) }

// clocked measures f, which uses a server.
func clocked(server int, f func() error) (cost, error) {
	var before, after [2]float64
	err := readClocks(server, &before)
	if err != nil {
		return cost{}, err
	}
	start := time.Now()
	if err := f(); err != nil {
		return cost{}, err
	}
	took := time.Since(start)
	err = readClocks(server, &after)
	return cost{took, after[0] - before[0], after[1] - before[1]}, err
}

// readClocks reads the processor times of this process and of a server.
func readClocks(server int, to *[2]float64) (err error) {
	if to[0], err = cpuSeconds(os.Getpid()); err == nil {
		to[1], err = cpuSeconds(server)
	}
	return err
}

// measured is one round: the same records by raw requests and by the Go client.
type measured struct{ rawProduce, rawFetch, produce, consume cost }

// round writes both topics before it reads either, so that what is compared is next to each other.
func (c *clientRun) round() (m measured, _ error) {
	raw, err := c.topic()
	if err != nil {
		return m, err
	}
	ours, err := c.topic()
	if err != nil {
		return m, err
	}
	l, err := dialRaw(c.server.Client)
	if err != nil {
		return m, err
	}
	defer func() { _ = l.nc.Close() }()
	for _, step := range []struct {
		to *cost
		do func() error
	}{
		{&m.rawProduce, func() error { return l.produce(raw, c.batch, c.batches) }},
		{&m.produce, func() error { return c.produce(ours) }},
		{&m.rawFetch, func() error { return l.fetch(raw, int64(c.records())) }},
		{&m.consume, func() error { return c.consume(ours) }},
	} {
		if *step.to, err = clocked(c.server.PID(), step.do); err != nil {
			return m, err
		}
	}
	return m, errors.Join(c.client.DeleteTopic(c.ctx, raw), c.client.DeleteTopic(c.ctx, ours))
}

func (c *clientRun) produce(topic string) error {
	p, err := c.client.NewProducer()
	if err != nil {
		return err
	}
	failed := error(nil) // one partition: one callback at a time
	done := func(_ trunkline.Ack, err error) {
		if err != nil {
			failed = err
		}
	}
	m := &trunkline.Message{Value: c.value}
	for range c.records() {
		if err := p.Produce(c.ctx, topic, m, done); err != nil {
			return err
		}
	}
	return errors.Join(p.Close(c.ctx), failed)
}

func (c *clientRun) consume(topic string) error {
	r, err := c.client.NewConsumer(c.ctx, []string{topic + "@earliest"}, trunkline.UntilLatest())
	if err != nil {
		return err
	}
	defer r.Close()
	n := 0
	for rec, err := range r.Records(c.ctx) {
		if err != nil || len(rec.Value) != len(c.value) {
			return fmt.Errorf("record %d: %w", n, err)
		}
		n++
	}
	if n != c.records() {
		return fmt.Errorf("%d of %d records", n, c.records())
	}
	return nil
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
				for b.Loop() {
					c := newClientRun(b, size, bytesEach>>20, sync)
					c.compare(b)
					c.server.Kill()
				}
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// compare measures pairs and reports them.
func (c *clientRun) compare(b *testing.B) {
	moved := int64(len(c.batch)) * int64(c.batches)
	var produced, consumed direction
	inPairs(b, transferRounds, pidsOf(c.server), func(int) measured {
		m, err := c.round()
		if err != nil {
			b.Fatal(err)
		}
		return m
	}, func(m measured) {
		produced.add(m.produce, m.rawProduce, moved)
		consumed.add(m.consume, m.rawFetch, moved)
	})
	produced.report(b, c.records(), "PRODUCE")
	consumed.report(b, c.records(), "FETCH")
}

// direction is what was measured of one: ours against the other.
type direction struct{ ratio, seconds, cpu, rawCPU []float64 }

func (s *direction) add(ours, raw cost, moved int64) {
	s.ratio = append(s.ratio, raw.took.Seconds()/ours.took.Seconds())
	s.seconds = append(s.seconds, ours.took.Seconds())
	s.cpu, s.rawCPU = append(s.cpu, ours.perGB(moved)), append(s.rawCPU, raw.perGB(moved))
}

func (s *direction) report(b *testing.B, records int, verb string) {
	b.Helper()
	b.Logf("of %s: %s; CPU s/GB %s against %s", verb, spread(s.ratio), spread(s.cpu), spread(s.rawCPU))
	b.ReportMetric(median(s.ratio), "of-"+verb)
	b.ReportMetric(median(s.cpu), "CPUs/GB-"+verb)
	b.ReportMetric(float64(records)/median(s.seconds), "records/s-"+verb)
}

// TestTheGoClientIsMeasurable runs a little of what the benchmark runs.
func TestTheGoClientIsMeasurable(t *testing.T) {
	m, err := newClientRun(t, 1024, 2, "batch").round()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []cost{m.rawProduce, m.rawFetch, m.produce, m.consume} {
		if c.took <= 0 || c.client <= 0 || c.server < 0 {
			t.Errorf("%+v", m)
		}
	}
}
