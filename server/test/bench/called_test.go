package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const (
	calledChunks = 200 // 102,400 records of 100 bytes
	calledKeys   = 5000
)

// calledRun publishes records with keys to topics of twelve partitions.
type calledRun struct {
	server *harness.Server
	client *trunkline.Client
	lines  string // a file of key:value
	topics int
}

func calledKey(i int) string { return fmt.Sprintf("customer-%07d", i%calledKeys) }

// topic makes one.
func (c *calledRun) topic(partitioner string) (string, error) {
	c.topics++
	name := fmt.Sprintf("%s-%d", partitioner, c.topics)
	return name, c.client.CreateTopic(context.Background(), name, trunkline.TopicConfig{Partitions: 12, Settings: map[string]string{"partitioner": partitioner}})
}

// raw publishes pipelined PUBs by one connection and reads every answer.
func (c *calledRun) raw(partitioner string) (time.Duration, error) {
	topic, err := c.topic(partitioner)
	if err != nil {
		return 0, err
	}
	p, err := dial(c.server.Client, topic, 12)
	if err != nil {
		return 0, err
	}
	defer func() { _ = p.nc.Close() }()
	var chunks [][]byte
	value := strings.Repeat("v", recordBytes)
	for n := range calledChunks {
		var b bytes.Buffer
		for i := range chunkRecords {
			fmt.Fprintf(&b, "PUB %s#%s %d\r\n%s\r\n", topic, calledKey(n*chunkRecords+i), recordBytes, value)
		}
		chunks = append(chunks, b.Bytes())
	}
	start := time.Now()
	var writer errgroup.Group
	writer.Go(func() error {
		for _, chunk := range chunks {
			if _, err := p.nc.Write(chunk); err != nil {
				return err
			}
		}
		return nil
	})
	for range calledChunks * chunkRecords {
		line, err := p.r.ReadSlice('\n')
		switch {
		case err == nil && bytes.HasPrefix(line, []byte("+OK ")):
		case err == nil && bytes.HasPrefix(line, []byte("-ERR PARTITIONER_UNAVAILABLE ")): // a busy machine missed its 50 ms
		default:
			_ = p.nc.Close() // ends the writer
			return 0, errors.Join(fmt.Errorf("answered with %q", line), err, writer.Wait())
		}
	}
	took := time.Since(start)
	return took, writer.Wait()
}

func (c *calledRun) producer() (time.Duration, error) {
	ctx := context.Background()
	topic, err := c.topic("jump")
	if err != nil {
		return 0, err
	}
	p, err := c.client.NewProducer()
	if err != nil {
		return 0, err
	}
	m := trunkline.Message{Value: bytes.Repeat([]byte("v"), recordBytes)}
	var failed atomic.Pointer[error]
	done := func(_ trunkline.Ack, err error) {
		if err != nil {
			failed.Store(&err)
		}
	}
	start := time.Now()
	for i := range calledChunks * chunkRecords {
		m.Key = []byte(calledKey(i))
		if err := p.Produce(ctx, topic, &m, done); err != nil {
			return 0, err
		}
	}
	if err := p.Close(ctx); err != nil {
		return 0, err
	}
	took := time.Since(start)
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return took, nil
}

// command runs the shipped command line, its start included. It ends at the first line that is refused, which on a busy machine
// one may be whose partitioner missed its 50 ms: then it is run again.
func (c *calledRun) command() (time.Duration, error) {
	for try := 1; ; try++ {
		topic, err := c.topic("jump")
		if err != nil {
			return 0, err
		}
		cmd := exec.Command(harness.Binary("trunkline"), "-s", c.server.Client, "pub", topic, "--lines", "--key-delimiter", ":", "--file", c.lines)
		start := time.Now()
		out, err := cmd.CombinedOutput()
		if err == nil {
			return time.Since(start), nil
		}
		if try == 10 || !bytes.Contains(out, []byte(" did not answer in time")) {
			return 0, fmt.Errorf("%w: %s", err, out)
		}
	}
}

// BenchmarkCalled compares the ways to publish records with keys, durable and acknowledged, to a topic whose partitioner is
// called: pipelined PUBs by hand, the Go producer, and pub --lines, each on one connection; and by hand to a topic whose
// partitioner is stated.
func BenchmarkCalled(b *testing.B) {
	describe()
	for b.Loop() {
		compareCalled(b)
	}
}

func compareCalled(b *testing.B) {
	s := harness.Start(b)
	client, err := trunkline.Dial(b.Context(), s.Client)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	c := &calledRun{server: s, client: client, lines: filepath.Join(b.TempDir(), "lines")}
	var text bytes.Buffer
	for i := range calledChunks * chunkRecords {
		fmt.Fprintf(&text, "%s:%s\n", calledKey(i), strings.Repeat("v", recordBytes))
	}
	if err := os.WriteFile(c.lines, text.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
	sides := []struct {
		name string
		run  func() (time.Duration, error)
	}{
		{"by-hand", func() (time.Duration, error) { return c.raw("jump") }},
		{"producer", c.producer},
		{"pub-lines", c.command},
		{"stated", func() (time.Duration, error) { return c.raw("murmur2") }},
	}
	if _, err := c.raw("jump"); err != nil { // its plugin runs from now on
		b.Fatal(err)
	}
	ours := []int{os.Getpid(), s.PID()}
	for _, pid := range s.Plugins() {
		ours = append(ours, pid)
	}
	rate, ratio := map[string][]float64{}, map[string][]float64{}
	inPairs(b, rounds, ours, func(int) map[string]float64 {
		got := map[string]float64{}
		for _, side := range sides {
			took, err := side.run()
			if err != nil {
				b.Fatalf("%s: %v", side.name, err)
			}
			got[side.name] = calledChunks * chunkRecords / took.Seconds() / 1e3
		}
		return got
	}, func(got map[string]float64) {
		for name, g := range got {
			rate[name], ratio[name] = append(rate[name], g), append(ratio[name], g/got["by-hand"])
		}
	})
	for _, side := range sides {
		b.Logf("%-10s %s thousand records/s, of by hand %s", side.name, spread(rate[side.name]), spread(ratio[side.name]))
		b.ReportMetric(median(ratio[side.name]), side.name+"-ratio")
	}
}
