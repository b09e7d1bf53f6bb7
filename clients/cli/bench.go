package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/trunkline-mq/trunkline/clients/cli/measure"
	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// benchFlags are the flags of the measurements as they were given.
type benchFlags struct {
	measure.Options
	partitions  int
	csv, pub    bool
	acks        string
	compression string
}

// codecs are what a producer can compress batches with.
func codecs() map[string]trunkline.Codec {
	return map[string]trunkline.Codec{"none": trunkline.NoCompression, "gzip": trunkline.Gzip, "snappy": trunkline.Snappy, "lz4": trunkline.LZ4, "zstd": trunkline.Zstd}
}

// publisher is what takes the records, and what is to be done with it in the end.
func (f *benchFlags) publisher(c *trunkline.Client) (by measure.Publisher, end func(), err error) {
	if f.pub {
		return measure.ByClient(c), func() {}, nil
	}
	p, err := c.NewProducer(trunkline.WithAcks(trunkline.Acks(f.acks)), trunkline.WithCompression(codecs()[f.compression]), trunkline.RetryUnknown(false))
	if err != nil {
		return measure.Publisher{}, nil, err
	}
	by = measure.ByProducer(p)
	return by, by.Close, nil
}

// benchJob does one measurement.
type benchJob func(ctx context.Context, c *trunkline.Client, to address.Address, f *benchFlags) (measure.Result, error)

// benchKind is a measurement there is.
type benchKind struct {
	name, short, long string
	count             int // of records, unless it is said; 0: all there are
	job               benchJob
}

func (a *app) benchCommand() *cobra.Command {
	cmd := a.group("bench", "Measure a server")
	cmd.Long = "Measure a server with this client, on one connection. With --rate records are due at fixed times, and what\n" +
		"each takes is counted from then on. Records stay in the topic. Results go to standard output, for people, as\n" +
		"--json or as --csv; a progress bar to standard error, on a terminal."
	for _, kind := range []benchKind{
		{"produce", "Publish records as fast as they are acknowledged",
			"Publish N records without waiting for answers in between, in batches as the Go client's Producer makes them, and\n" +
				"check that each is acknowledged and that the offsets of every partition follow each other: nobody else may\n" +
				"publish there meanwhile.", 100_000, a.benchProduce},
		{"consume", "Read what is there as fast as it comes",
			"Read N records from ADDRESS on, from the earliest unless it has a position; without --count, to the end that\n" +
				"the log has now. Check that the offsets of every partition follow each other.", 0, a.benchConsume},
		{"pubsub", "Publish and receive the same records at the same time",
			"Publish N records and receive them at the same time on a second connection: tells how long it took from\n" +
				"publish to answer and from publish to delivery. ADDRESS may be a live subject.", 100_000, a.benchPubSub},
		{"latency", "Publish one record after the other and wait for each",
			"Publish N records, each when the one before was answered and delivered, and tell how long that took.", 1_000, a.benchLatency},
	} {
		cmd.AddCommand(a.benchKindCommand(kind))
	}
	return cmd
}

func (a *app) benchKindCommand(kind benchKind) *cobra.Command {
	var f benchFlags
	line := kind.name + " ADDRESS [--count N] [--csv]"
	if kind.produces() {
		line = kind.name + " ADDRESS [--count N] [--size BYTES] [--rate R] [--partitions N] [--csv]"
	}
	cmd := &cobra.Command{
		Use: line, Short: kind.short, Long: kind.long, Args: argCount(1, 1), DisableFlagsInUseLine: true, ValidArgsFunction: a.completeTopics,
	}
	f.declare(cmd, kind)
	var to address.Address
	cmd.PreRunE = func(cmd *cobra.Command, args []string) (err error) {
		if err := f.check(cmd, kind); err != nil {
			return err
		}
		if f.csv && a.json {
			return errors.New("--csv and --json are two forms; leave one of them out")
		}
		forUse := (*address.Address).ForPublish
		if !kind.produces() {
			forUse = (*address.Address).ForRead
		}
		to, err = checkAddress(args[0], forUse)
		return err
	}
	cmd.RunE = a.connected(func(ctx context.Context, c *trunkline.Client, args []string) error {
		if cmd.Flags().Changed("partitions") {
			if err := c.CreateTopic(ctx, string(to.Topic), trunkline.TopicConfig{Partitions: f.partitions}); err != nil {
				return err
			}
		}
		return a.bench(ctx, c, to, &f, kind.job)
	})
	return cmd
}

func (k benchKind) produces() bool { return k.name != "consume" }

func (f *benchFlags) declare(cmd *cobra.Command, kind benchKind) {
	flags := cmd.Flags()
	flags.IntVar(&f.Count, "count", kind.count, "`N` records")
	flags.BoolVar(&f.csv, "csv", false, "print the result as CSV, with a line of names")
	if kind.produces() {
		flags.IntVar(&f.Size, "size", 100, "`BYTES` of a record's value")
		flags.Float64Var(&f.Rate, "rate", 0, "publish `R` records a second; default is as fast as possible")
		flags.IntVar(&f.partitions, "partitions", 0, "make the topic first, with `N` partitions")
	}
	if kind.name == "produce" || kind.name == "pubsub" {
		flags.IntVar(&f.Window, "window", 0, "have at most `N` records without an answer; default is what the client takes")
	}
	f.acks, f.compression = "all", "none"
	if kind.name == "produce" {
		flags.StringVar(&f.acks, "acks", f.acks, "`WHAT` is waited for: 0, nothing; 1, the leader; all")
		flags.StringVar(&f.compression, "compression", f.compression, "compress batches with `CODEC`: none, gzip, snappy, lz4 or zstd")
		flags.BoolVar(&f.pub, "pub", false, "publish by PUB, each record by itself, instead of in batches")
	}
}

func (f *benchFlags) check(cmd *cobra.Command, kind benchKind) error {
	for _, b := range []bound{{"count", f.Count, 1}, {"size", f.Size, 0}, {"partitions", f.partitions, 1}, {"window", f.Window, 1}} {
		if cmd.Flags().Changed(b.flag) && b.value < b.min {
			return fmt.Errorf("--%s %d is less than %d", b.flag, b.value, b.min)
		}
	}
	_, known := codecs()[f.compression]
	switch {
	case checkAcks(f.acks) != nil:
		return checkAcks(f.acks)
	case !known:
		return fmt.Errorf("--compression %q is not none, gzip, snappy, lz4 or zstd", f.compression)
	case f.pub && (cmd.Flags().Changed("acks") || cmd.Flags().Changed("compression")):
		return errors.New("--acks and --compression are of batches; leave --pub out")
	case cmd.Flags().Changed("rate") && !(f.Rate > 0 && f.Rate <= 1e9):
		return fmt.Errorf("--rate %v is not above 0", f.Rate)
	case (kind.name == "pubsub" || kind.name == "latency") && f.Size < measure.StampBytes:
		return fmt.Errorf("--size %d: %w", f.Size, measure.ErrTooSmall)
	}
	return nil
}

// bound is what a flag must not be below.
type bound struct {
	flag       string
	value, min int
}

// bench measures and reports. What was measured is reported also when it ended early.
func (a *app) bench(ctx context.Context, c *trunkline.Client, to address.Address, f *benchFlags, job benchJob) error {
	r, err := job(ctx, c, to, f)
	if r.Bench == "" { // it has not begun
		return err
	}
	if printed := a.printMeasured(r, f.csv); err == nil {
		err = printed
	}
	return err
}

func (a *app) benchProduce(ctx context.Context, c *trunkline.Client, to address.Address, f *benchFlags) (measure.Result, error) {
	by, end, err := f.publisher(c)
	if err != nil {
		return measure.Result{}, err
	}
	defer end()
	defer a.progress(f)()
	return measure.Produce(ctx, by, to.String(), f.Options)
}

func (a *app) benchConsume(ctx context.Context, c *trunkline.Client, from address.Address, f *benchFlags) (measure.Result, error) {
	if from.Position.Kind == address.None {
		from.Position.Kind = address.Earliest
	}
	if f.Count == 0 {
		n, err := a.recordsFrom(ctx, c, from)
		if err != nil {
			return measure.Result{}, err
		}
		if n == 0 {
			return measure.Result{}, fmt.Errorf("%s has no records; trunkline bench produce makes some", from)
		}
		f.Count = n
	}
	defer a.progress(f)()
	return measure.Consume(ctx, c, from.String(), f.Options)
}

// recordsFrom counts what lies from an address to the end.
func (a *app) recordsFrom(ctx context.Context, c *trunkline.Client, from address.Address) (int, error) {
	topic, err := c.TopicInfo(ctx, string(from.Topic))
	if err != nil {
		return 0, err
	}
	n := 0
	for id := range partition.ID(len(topic.Partitions)) {
		if from.Partition != partition.None && from.Partition != id {
			continue
		}
		part, err := partitionOf(topic, id)
		if err != nil {
			return 0, err
		}
		start := part.Start
		if from.Position.Kind != address.Earliest {
			one := from
			one.Partition = id
			if start, err = resolve(ctx, c, one, part); err != nil {
				return 0, err
			}
		}
		n += int(max(0, part.HighWatermark-start))
	}
	if from.Partition != partition.None {
		_, err = partitionOf(topic, from.Partition)
	}
	return n, err
}

// listened is where what is published to an address is heard: all of the topic, from now on.
func listened(to address.Address) string {
	return string(to.Topic)
}

func (a *app) benchPubSub(ctx context.Context, c *trunkline.Client, to address.Address, f *benchFlags) (measure.Result, error) {
	defer a.progress(f)()
	return measure.PubSub(ctx, c, to.String(), listened(to), f.Options)
}

func (a *app) benchLatency(ctx context.Context, c *trunkline.Client, to address.Address, f *benchFlags) (measure.Result, error) {
	defer a.progress(f)()
	return measure.RoundTrip(ctx, c, to.String(), listened(to), f.Options)
}

func (a *app) printMeasured(r measure.Result, asCSV bool) error {
	switch {
	case a.json:
		return a.printJSON(r)
	case asCSV:
		return writeCSV(a.out, r)
	}
	verb, n, of := "acknowledged", r.Acknowledged, r.Sent
	if r.Bench == "consume" {
		fmt.Fprintf(a.out, "%d records received", r.Received)
	} else {
		fmt.Fprintf(a.out, "%d of %d records %s%s", n, of, verb, reached(r.Durability))
		if r.Bench != "produce" {
			fmt.Fprintf(a.out, ", %d delivered", r.Received)
		}
	}
	fmt.Fprintf(a.out, ", partitions: %d, %s each, in %.2f s\n", r.Partitions, humanize.IBytes(uint64(r.Size)), r.Seconds)
	fmt.Fprintf(a.out, "%s records/s, %.1f MB/s\n", humanize.Comma(int64(r.RecordsPerSecond)), r.BytesPerSecond/1e6)
	for _, l := range []struct {
		what string
		*measure.Latency
	}{{"answered", r.Answered}, {"delivered", r.Delivered}} {
		if l.Latency != nil {
			fmt.Fprintf(a.out, "%s within (ms): half %.3f, 90 %% %.3f, 99 %% %.3f, 99.9 %% %.3f, all %.3f\n", l.what, l.P50, l.P90, l.P99, l.P999, l.Max)
		}
	}
	return a.out.Flush()
}

// writeCSV writes a line of names and one of values. A latency that was not measured is empty.
func writeCSV(w io.Writer, r measure.Result) error {
	names := []string{"bench", "address", "sent", "acknowledged", "received", "partitions", "size", "rate", "seconds", "records_per_second", "bytes_per_second"}
	number := func(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
	values := []string{r.Bench, r.Address, strconv.Itoa(r.Sent), strconv.Itoa(r.Acknowledged), strconv.Itoa(r.Received), strconv.Itoa(r.Partitions),
		strconv.Itoa(r.Size), number(r.Rate), number(r.Seconds), number(r.RecordsPerSecond), number(r.BytesPerSecond)}
	for _, l := range []struct {
		what string
		*measure.Latency
	}{{"latency", r.Answered}, {"delivery", r.Delivered}} {
		for _, q := range []string{"mean", "p50", "p90", "p99", "p999", "p9999", "max"} {
			names = append(names, l.what+"_ms_"+q)
		}
		if l.Latency == nil {
			values = append(values, make([]string, 7)...)
			continue
		}
		for _, v := range []float64{l.Mean, l.P50, l.P90, l.P99, l.P999, l.P9999, l.Max} {
			values = append(values, number(v))
		}
	}
	c := csv.NewWriter(w)
	return c.WriteAll([][]string{names, values})
}

const (
	progressEvery = 250 * time.Millisecond
	progressWidth = 30
)

// progress draws a bar on standard error while a measurement runs, if that is a terminal and people read the result. What
// it returns ends it.
func (a *app) progress(f *benchFlags) (end func()) {
	if a.json || f.csv || a.env("TERM") == "dumb" || !a.terminal(a.streams.err) {
		return func() {}
	}
	var done atomic.Int64
	f.Progress = func(n int) { done.Store(int64(n)) }
	stop := make(chan struct{})
	var drawer sync.WaitGroup
	drawer.Go(func() {
		start := time.Now()
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fmt.Fprintf(a.streams.err, "\r%s\x1b[K", bar(int(done.Load()), f.Count, time.Since(start)))
			case <-stop:
				fmt.Fprint(a.streams.err, "\r\x1b[K") // the result stands alone
				return
			}
		}
	})
	return func() { close(stop); drawer.Wait() }
}

// bar is one state of a progress bar.
func bar(done, count int, took time.Duration) string {
	share := min(1, float64(done)/float64(count))
	full := int(share * progressWidth)
	return fmt.Sprintf("[%s%s] %3.0f %%  %s/%s  %s records/s", strings.Repeat("=", full), strings.Repeat(" ", progressWidth-full), share*100,
		humanize.Comma(int64(done)), humanize.Comma(int64(count)), humanize.Comma(int64(float64(done)/max(took.Seconds(), 1e-3))))
}
