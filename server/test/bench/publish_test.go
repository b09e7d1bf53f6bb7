package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
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
		s := harness.Start(b)
		addr, peer := startPeer(b)
		rate, cpu := map[string][]float64{}, map[string][]float64{}
		ratio := map[string][]float64{}
		for round := range rounds + 1 {
			got := map[string]float64{}
			for _, side := range []struct {
				name string
				pid  int
				run  func() (time.Duration, error)
			}{
				{"nats-server", peer, func() (time.Duration, error) { return publishToPeer(addr, runChunks) }},
				{"1 partition", s.PID(), func() (time.Duration, error) { return publishTo(s, fmt.Sprintf("one%d", round), 1, runChunks) }},
				{"12 partitions", s.PID(), func() (time.Duration, error) { return publishTo(s, fmt.Sprintf("twelve%d", round), 12, runChunks) }},
			} {
				before, err := cpuSeconds(side.pid)
				if err != nil {
					b.Fatal(err)
				}
				took, err := side.run()
				if err != nil {
					b.Fatalf("%s: %v", side.name, err)
				}
				after, err := cpuSeconds(side.pid)
				if err != nil {
					b.Fatal(err)
				}
				got[side.name] = runChunks * chunkRecords / took.Seconds()
				if round > 0 { // the first is a warm-up
					rate[side.name] = append(rate[side.name], got[side.name]/1e3)
					cpu[side.name] = append(cpu[side.name], (after-before)*1e9/(runChunks*chunkRecords))
				}
			}
			for name, r := range got {
				if round > 0 {
					ratio[name] = append(ratio[name], r/got["nats-server"])
				}
			}
		}
		for _, name := range []string{"nats-server", "1 partition", "12 partitions"} {
			b.Logf("%-13s %s thousand records/s, %s ns of the server's processor time a record, ratio %s",
				name, spread(rate[name]), spread(cpu[name]), spread(ratio[name]))
		}
		b.ReportMetric(median(ratio["1 partition"]), "1-partition-ratio")
		b.ReportMetric(median(ratio["12 partitions"]), "12-partitions-ratio")
	}
}

// inside is a server in this process, with plugins in theirs, so that its allocations can be counted and profiled.
type inside struct {
	addr  string
	close func() error
}

func startInside(t testing.TB) *inside {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	data, err := datadir.Open(t.Context(), t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := broker.New(broker.Options{
		Data: data, Plugin: []string{harness.Binary("trunkline-server"), "plugin"}, AutoCreate: true, AutoCreateMax: 10,
		Partitions: 1, PublishTimeout: 10 * time.Second, SyncParallel: 64, OpenFiles: 100, Logger: quiet,
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
		Broker: b, Connections: 10, Limits: line.Limits{ControlLine: 4096, Payload: 1 << 20},
		Pending: 8 << 20, WriteDeadline: 10 * time.Second, Logger: quiet,
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

// perRecordMax leaves room for what is allocated for each group of records, of which there are hundreds to a group.
const perRecordMax = 0.1

func TestPublishAllocatesNothingForARecord(t *testing.T) {
	s := startInside(t)
	c, err := dial(s.addr, "measured", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.nc.Close() }()
	s.mallocs(t, c, 100) // buffers grow to their size
	if got := s.mallocs(t, c, 100); got > perRecordMax {
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
	c, err := dial(s.addr, "measured", 1)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.nc.Close() }()
	s.mallocs(b, c, 100)
	b.SetBytes(recordBytes * chunkRecords)
	var perRecord []float64
	for b.Loop() {
		perRecord = append(perRecord, s.mallocs(b, c, 100))
	}
	b.ReportMetric(median(perRecord), "allocs/record")
}
