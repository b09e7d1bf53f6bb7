package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/address"
)

func (a *app) benchCommand() *cobra.Command {
	bench := &cobra.Command{
		Use:   "bench",
		Short: "Measure a server",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("name what to measure: produce")
		},
	}
	bench.AddCommand(a.benchProduceCommand())
	return bench
}

// produceFlags are the flags of bench produce as they were given.
type produceFlags struct {
	count, size, partitions, window int
}

func (a *app) benchProduceCommand() *cobra.Command {
	var f produceFlags
	cmd := &cobra.Command{
		Use:   "produce ADDRESS [--count N] [--size BYTES] [--partitions N] [--window N]",
		Short: "Publish records as fast as they are acknowledged",
		Long: "Publish N records of a size on one connection, without waiting for answers in between, and\n" +
			"check that each is acknowledged and that the offsets of every partition follow each other:\n" +
			"nobody else may publish there meanwhile. The records stay in the topic.",
		Args:                  argCount(1, 1),
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().IntVar(&f.count, "count", 100_000, "publish `N` records")
	cmd.Flags().IntVar(&f.size, "size", 100, "`BYTES` of a record's value")
	cmd.Flags().IntVar(&f.partitions, "partitions", 0, "make the topic first, with `N` partitions")
	cmd.Flags().IntVar(&f.window, "window", 0, "have at most `N` records without an answer; default is what fits into 4 MiB")
	var to address.Address
	cmd.PreRunE = func(cmd *cobra.Command, args []string) (err error) {
		for _, n := range []struct {
			flag       string
			value, min int
		}{{"count", f.count, 1}, {"size", f.size, 0}, {"partitions", f.partitions, 1}, {"window", f.window, 1}} {
			if cmd.Flags().Changed(n.flag) && n.value < n.min {
				return fmt.Errorf("--%s %d is less than %d", n.flag, n.value, n.min)
			}
		}
		to, err = checkAddress(args[0], (*address.Address).ForPublish)
		return err
	}
	cmd.RunE = a.connected(func(ctx context.Context, c *trunkline.Client, args []string) error {
		if cmd.Flags().Changed("partitions") {
			if err := c.CreateTopic(ctx, string(to.Topic), trunkline.TopicConfig{Partitions: f.partitions}); err != nil {
				return err
			}
		}
		return a.benchProduce(ctx, c, args[0], f)
	})
	return cmd
}

// benchProduce publishes and reports. What was measured is reported also when it ended early.
func (a *app) benchProduce(ctx context.Context, c *trunkline.Client, to string, f produceFlags) error {
	m := newMeter(f.window)
	start := time.Now()
	sent := m.publish(ctx, c, to, f)
	flush, cancel := ctx, context.CancelFunc(func() {})
	if ctx.Err() != nil {
		flush, cancel = context.WithTimeout(context.WithoutCancel(ctx), lastAnswersPatience)
	}
	defer cancel()
	err := c.Flush(flush)
	if err != nil {
		c.Close() // gives every record its result
	}
	took := time.Since(start)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		err = m.failed
	}
	if printed := a.printProduced(m.report(to, f.size, sent, took)); err == nil {
		err = printed
	}
	return err
}

// meter measures publishes. Answers come in the order of the publishes.
type meter struct {
	room chan struct{} // a slot for each record without an answer; nil: no bound of ours
	stop chan struct{} // closed with the first failure

	mu         sync.Mutex
	begun      []time.Time                // guarded; when the records without an answer were published, from oldest on
	oldest     int                        // guarded
	answered   int                        // guarded
	acked      int                        // guarded
	durability map[string]int             // guarded
	next       map[place]trunkline.Offset // guarded; the offset that has to come
	latency    histogram                  // guarded
	failed     error                      // guarded; the first failure
}

// place is a partition of a topic.
type place struct {
	topic     string
	partition trunkline.PartitionID
}

func newMeter(window int) *meter {
	m := &meter{stop: make(chan struct{}), durability: make(map[string]int), next: make(map[place]trunkline.Offset)}
	if window > 0 {
		m.room = make(chan struct{}, window)
	}
	return m
}

// publish publishes until all is sent, something failed, or ctx ends, and returns how many records were sent.
func (m *meter) publish(ctx context.Context, c *trunkline.Client, to string, f produceFlags) int {
	message := trunkline.Message{Value: payload(f.size)}
	for i := range f.count {
		select {
		case <-m.stop:
			return i
		default:
		}
		if m.room != nil {
			select {
			case m.room <- struct{}{}:
			case <-m.stop:
				return i
			case <-ctx.Done():
				m.fail(context.Cause(ctx))
				return i
			}
		}
		m.mu.Lock()
		m.begun = append(m.begun, time.Now())
		m.mu.Unlock()
		if err := c.PublishFunc(ctx, to, &message, m.take); err != nil {
			m.fail(fmt.Errorf("record %d: %w", i, err))
			return i
		}
	}
	return f.count
}

// payload is a value that no compression makes much smaller, the same each time.
func payload(size int) []byte {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	random := rand.New(rand.NewPCG(8, 765))
	b := make([]byte, size)
	for i := range b {
		b[i] = letters[random.IntN(len(letters))]
	}
	return b
}

func (m *meter) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failLocked(err)
}

func (m *meter) failLocked(err error) {
	if m.failed == nil {
		m.failed = err
		close(m.stop)
	}
}

// begunMax is when the begin times of answered records are let go.
const begunMax = 1 << 16

// take is told each record's outcome.
func (m *meter) take(ack trunkline.Ack, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	took := time.Since(m.begun[m.oldest])
	if m.oldest++; m.oldest >= begunMax && m.oldest > len(m.begun)/2 {
		m.begun = m.begun[:copy(m.begun, m.begun[m.oldest:])]
		m.oldest = 0
	}
	if m.room != nil {
		<-m.room // it holds a slot of this record
	}
	number := m.answered
	m.answered++
	if err != nil {
		m.failLocked(fmt.Errorf("record %d: %w", number, err))
		return
	}
	m.acked++
	m.durability[ack.Durability]++
	m.latency.add(took)
	where := place{ack.Topic, ack.Partition}
	if want, known := m.next[where]; known && ack.Offset != want {
		m.failLocked(fmt.Errorf("record %d was acknowledged as %s/%d@%d, behind %d: somebody else publishes there, or records are missing",
			number, ack.Topic, ack.Partition, ack.Offset, want-1))
	}
	m.next[where] = ack.Offset + 1
}

// produced is what bench produce prints as JSON.
type produced struct {
	Address          string         `json:"address"`
	Sent             int            `json:"sent"`
	Acknowledged     int            `json:"acknowledged"`
	Durability       map[string]int `json:"durability"`
	Partitions       int            `json:"partitions"` // that got records
	Size             int            `json:"size"`
	Seconds          float64        `json:"seconds"`
	RecordsPerSecond float64        `json:"records_per_second"`
	BytesPerSecond   float64        `json:"bytes_per_second"` // of values
	Latency          quantiles      `json:"latency_ms"`
}

// quantiles are milliseconds from a record's publish to its answer.
type quantiles struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

func (m *meter) report(to string, size, sent int, took time.Duration) produced {
	ms := func(q float64) float64 { return float64(m.latency.quantile(q).Microseconds()) / 1000 }
	rate := float64(m.acked) / took.Seconds()
	return produced{
		Address: to, Sent: sent, Acknowledged: m.acked, Durability: m.durability, Partitions: len(m.next), Size: size,
		Seconds: took.Seconds(), RecordsPerSecond: rate, BytesPerSecond: rate * float64(size),
		Latency: quantiles{P50: ms(0.5), P90: ms(0.9), P99: ms(0.99), P999: ms(0.999), Max: ms(1)},
	}
}

func (a *app) printProduced(p produced) error {
	if a.json {
		return a.printJSON(p)
	}
	fmt.Fprintf(a.out, "%d of %d records acknowledged%s, partitions: %d, %s each, in %.2f s\n",
		p.Acknowledged, p.Sent, reached(p.Durability), p.Partitions, humanize.IBytes(uint64(p.Size)), p.Seconds)
	fmt.Fprintf(a.out, "%s records/s, %.1f MB/s\n", humanize.Comma(int64(p.RecordsPerSecond)), p.BytesPerSecond/1e6)
	_, err := fmt.Fprintf(a.out, "answered within (ms): half %.3f, 90 %% %.3f, 99 %% %.3f, 99.9 %% %.3f, all %.3f\n",
		p.Latency.P50, p.Latency.P90, p.Latency.P99, p.Latency.P999, p.Latency.Max)
	return err
}

// histogramSteps divide each power of two: a quantile is off by at most 1/32.
const histogramSteps = 32

// histogram counts durations in buckets that grow with them.
type histogram struct {
	counts []int // by bucket
	total  int
	max    time.Duration
}

func (h *histogram) add(d time.Duration) {
	i := bucket(d)
	if i >= len(h.counts) {
		h.counts = slices.Grow(h.counts, i+1-len(h.counts))[:i+1]
	}
	h.counts[i]++
	h.total++
	h.max = max(h.max, d)
}

// bucket numbers the durations: below histogramSteps nanoseconds each has its own, from there on each power of two has
// histogramSteps of them.
func bucket(d time.Duration) int {
	power := 0
	for d >= 2*histogramSteps {
		d >>= 1
		power++
	}
	return power*histogramSteps + int(max(d, 0))
}

// top is the longest duration of a bucket.
func top(bucket int) time.Duration {
	if bucket < 2*histogramSteps {
		return time.Duration(bucket)
	}
	power := bucket/histogramSteps - 1
	return time.Duration(bucket-power*histogramSteps+1)<<power - 1
}

// quantile returns a duration that the share q of all do not exceed; 0 without any.
func (h *histogram) quantile(q float64) time.Duration {
	rest := int(math.Ceil(q * float64(h.total)))
	for i, n := range h.counts {
		if rest -= n; rest <= 0 && n > 0 {
			return min(top(i), h.max)
		}
	}
	return h.max
}
