package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
	"github.com/trunkline-mq/trunkline/server/internal/conn"
	"github.com/trunkline-mq/trunkline/server/internal/datadir"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const (
	runChunks = 1000 // 512,000 records of 100 bytes
	rounds    = 9
)

// publishTo makes a topic, publishes to it, deletes it, and returns how long the publishing took.
func publishTo(s *harness.Server, topic string, partitions, chunks int) (time.Duration, error) {
	control := s.Dial()
	defer func() { _ = control.Conn().Close() }()
	if got := control.Ask(fmt.Sprintf("TOPIC CREATE %s partitions=%d", topic, partitions)); got != "+OK "+topic {
		return 0, errors.New(got)
	}
	c, err := dial(s.Client, topic, partitions)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.nc.Close() }()
	took, err := c.publishAcknowledged(chunks)
	if err != nil {
		return 0, err
	}
	if got := control.Ask("TOPIC DELETE " + topic); got != "+OK "+topic {
		return 0, errors.New(got)
	}
	return took, nil
}

func publishToPeer(addr string, chunks int) (time.Duration, error) {
	c, err := dial(addr, "bench", 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.nc.Close() }()
	return c.publishOnly(chunks)
}

// BenchmarkPublish compares pipelined PUBs of one connection that are all durable and acknowledged, to one partition
// and to twelve, with nats-server's core publish, where nothing is stored and nothing acknowledged.
func BenchmarkPublish(b *testing.B) {
	describe()
	for b.Loop() {
		comparePublishes(b)
	}
}

// side is one of what is compared.
type side struct {
	name string
	pid  int // of its server
	run  func(round int) (time.Duration, error)
}

func comparePublishes(b *testing.B) {
	s := harness.Start(b)
	addr, peer := startPeer(b)
	sides := []side{
		{"nats-server", peer, func(int) (time.Duration, error) { return publishToPeer(addr, runChunks) }},
		{"1 partition", s.PID(), func(n int) (time.Duration, error) { return publishTo(s, fmt.Sprintf("one%d", n), 1, runChunks) }},
		{"12 partitions", s.PID(), func(n int) (time.Duration, error) { return publishTo(s, fmt.Sprintf("twelve%d", n), 12, runChunks) }},
	}
	ours := []int{os.Getpid(), s.PID(), peer}
	for _, pid := range s.Plugins() {
		ours = append(ours, pid)
	}
	rate, cpu, ratio := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	inPairs(b, rounds, ours, func(n int) map[string][2]float64 {
		got := map[string][2]float64{}
		for _, side := range sides {
			got[side.name] = side.measure(b, n)
		}
		return got
	}, func(got map[string][2]float64) {
		for name, g := range got {
			rate[name] = append(rate[name], g[0])
			cpu[name] = append(cpu[name], g[1])
			ratio[name] = append(ratio[name], g[0]/got["nats-server"][0])
		}
	})
	for _, side := range sides {
		b.Logf("%-13s %s thousand records/s, %s ns of the server's processor time a record, ratio %s",
			side.name, spread(rate[side.name]), spread(cpu[side.name]), spread(ratio[side.name]))
	}
	b.ReportMetric(median(ratio["1 partition"]), "1-partition-ratio")
	b.ReportMetric(median(ratio["12 partitions"]), "12-partitions-ratio")
}

// measure returns thousand records a second, and the server's nanoseconds of processor time for a record.
func (s side) measure(b *testing.B, round int) [2]float64 {
	b.Helper()
	before, err := cpuSeconds(s.pid)
	if err != nil {
		b.Fatal(err)
	}
	took, err := s.run(round)
	if err != nil {
		b.Fatalf("%s: %v", s.name, err)
	}
	after, err := cpuSeconds(s.pid)
	if err != nil {
		b.Fatal(err)
	}
	const records = runChunks * chunkRecords
	return [2]float64{records / took.Seconds() / 1e3, (after - before) * 1e9 / records}
}

// inside is a server in this process, with plugins in theirs, so that its allocations can be counted and profiled.
type inside struct {
	addr  string
	close func() error
}

func startInside(t testing.TB) *inside {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	data, err := datadir.Open(t.Context(), t.TempDir(), 1, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	b, err := broker.New(broker.Options{
		Data: data, Plugin: []string{harness.Binary("trunkline-server"), "plugin"},
		Creation: broker.Creation{Auto: true, Max: 10, Partitions: 1}, PublishTimeout: 10 * time.Second, SyncParallel: 64, OpenFiles: 100, Logger: quiet,
	})
	if err == nil {
		err = b.Start(t.Context())
	}
	if err != nil {
		t.Fatal(errors.Join(err, data.Close()))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(errors.Join(err, b.Close(), data.Close()))
	}
	s := conn.NewServer(conn.Options{
		Broker: b, Tuning: conn.Tuning{Connections: 10, AutoCreate: true, Pending: 8 << 20, WriteDeadline: 10 * time.Second},
		Limits: line.Limits{ControlLine: 4096, Payload: 1 << 20}, Publish: 10 * time.Second, Logger: quiet,
	})
	var serving errgroup.Group
	serving.Go(func() error { return s.Serve(l) })
	in := &inside{addr: l.Addr().String()}
	in.close = func() error {
		err := l.Close()
		ctx, cancel := context.WithTimeout(context.Background(), harness.Patience)
		defer cancel()
		s.Shutdown(ctx)
		return errors.Join(err, serving.Wait(), b.Close(), data.Close())
	}
	t.Cleanup(func() {
		if err := in.close(); err != nil {
			t.Error(err)
		}
	})
	return in
}

// create makes a topic, unless a run of the same benchmark has made it before.
func (s *inside) create(topic string, partitions int) error {
	c, err := dial(s.addr, topic, partitions)
	if err != nil {
		return err
	}
	defer func() { _ = c.nc.Close() }()
	if _, err := fmt.Fprintf(c.nc, "TOPIC CREATE %s partitions=%d\n", topic, partitions); err != nil {
		return err
	}
	answer, err := c.r.ReadString('\n')
	if err != nil || answer != "+OK "+topic+"\r\n" && !strings.HasPrefix(answer, "-ERR TOPIC_EXISTS") {
		return fmt.Errorf("create %s: %q, %w", topic, answer, err)
	}
	return nil
}

// mallocs publishes and returns how many objects this process allocated, server and client together, for each record.
func (s *inside) mallocs(t testing.TB, c *client, chunks int) float64 {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := c.publishAcknowledged(chunks); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(chunks*chunkRecords)
}

// perRecordMax leaves room for what is allocated for each group of records; anything allocated for each record would
// make it 1 and more.
const perRecordMax = 0.5

// pathChunks is how much one measurement of the path publishes.
const pathChunks = 100

func TestPublishAllocatesNothingForARecord(t *testing.T) {
	s := startInside(t)
	c, err := dial(s.addr, "measured", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.nc.Close() }()
	s.mallocs(t, c, pathChunks) // buffers grow to their size
	if got := s.mallocs(t, c, pathChunks); got > perRecordMax {
		t.Errorf("%.3f allocations a record", got)
	} else {
		t.Logf("%.4f allocations a record", got)
	}
}

// BenchmarkPublishPath is a record's way from the socket to its acknowledgement, with server and client in this process:
// for profiles, not for comparisons.
func BenchmarkPublishPath(b *testing.B) {
	describe()
	s := startInside(b)
	for _, partitions := range []int{1, 12} {
		b.Run(fmt.Sprintf("partitions=%d", partitions), func(b *testing.B) {
			topic := fmt.Sprintf("path%d", partitions)
			if err := s.create(topic, partitions); err != nil {
				b.Fatal(err)
			}
			c, err := dial(s.addr, topic, partitions)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = c.nc.Close() }()
			s.mallocs(b, c, pathChunks)
			b.SetBytes(recordBytes * chunkRecords * pathChunks)
			var perRecord []float64
			for b.Loop() {
				perRecord = append(perRecord, s.mallocs(b, c, pathChunks))
			}
			b.ReportMetric(median(perRecord), "allocs/record")
		})
	}
}
