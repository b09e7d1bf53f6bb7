package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const (
	liveChunks   = 1000 // 512,000 messages of 100 bytes
	asyncRecords = 100_000
)

// liveThrough publishes to a live subject on one connection and reads everything on another. It returns thousand
// messages a second, from the first byte out to the last one in.
func liveThrough(addr string, chunks int) (float64, error) {
	ear, err := dial(addr, "$live", 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = ear.nc.Close() }()
	if _, err := ear.nc.Write([]byte("CONNECT {\"verbose\":false,\"pedantic\":false}\r\nSUB $live 1\r\nPING\r\n")); err != nil {
		return 0, err
	}
	if err := untilPong(ear.r); err != nil {
		return 0, err
	}
	mouth, err := dial(addr, "$live", 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = mouth.nc.Close() }()
	start := time.Now()
	var writer errgroup.Group
	writer.Go(func() error {
		_, err := mouth.publishOnly(chunks)
		return err
	})
	want := fmt.Appendf(nil, "MSG $live 1 %d\r\n", recordBytes)
	for i := 0; i < chunks*chunkRecords; {
		line, err := ear.r.ReadSlice('\n')
		switch {
		case err != nil:
			return 0, errors.Join(fmt.Errorf("after %d messages: %w", i, err), mouth.nc.Close(), writer.Wait())
		case bytes.Equal(line, want):
			if _, err := ear.r.Discard(recordBytes + 2); err != nil {
				return 0, err
			}
			i++
		case string(line) == "PING\r\n":
			if _, err := ear.nc.Write([]byte("PONG\r\n")); err != nil {
				return 0, err
			}
		case !bytes.HasPrefix(line, []byte("INFO ")):
			return 0, errors.Join(fmt.Errorf("message %d is %q", i, line), mouth.nc.Close(), writer.Wait())
		}
	}
	took := time.Since(start)
	return float64(chunks*chunkRecords) / 1e3 / took.Seconds(), writer.Wait()
}

func untilPong(r *bufio.Reader) error {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil || string(line) == "PONG\r\n" {
			return err
		}
	}
}

// publishAsync publishes with the unmodified library and waits for every acknowledgement. It returns thousand records a
// second.
func publishAsync(addr, subject string, records int) (float64, error) {
	nc, err := nats.Connect("nats://"+addr, nats.Timeout(harness.Patience))
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, err
	}
	body := bytes.Repeat([]byte("v"), recordBytes)
	var last jetstream.PubAckFuture
	start := time.Now()
	for range records {
		if last, err = js.PublishAsync(subject, body); err != nil {
			return 0, err
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(runPatience):
		return 0, fmt.Errorf("%d are not acknowledged", js.PublishAsyncPending())
	}
	took := time.Since(start)
	select {
	case <-last.Ok():
		return float64(records) / 1e3 / took.Seconds(), nil
	case err := <-last.Err():
		return 0, err
	}
}

// withStream makes a stream of files for a subject on a nats-server.
func withStream(addr, subject string) error {
	nc, err := nats.Connect("nats://"+addr, nats.Timeout(harness.Patience))
	if err != nil {
		return err
	}
	defer nc.Close()
	context, err := nc.JetStream()
	if err != nil {
		return err
	}
	_, err = context.AddStream(&nats.StreamConfig{Name: subject, Subjects: []string{subject}, Storage: nats.FileStorage})
	return err
}

func withTopic(s *harness.Server, topic string) error {
	control := s.Dial()
	defer func() { _ = control.Conn().Close() }()
	if got := control.Ask("TOPIC CREATE " + topic); got != "+OK "+topic {
		return errors.New(got)
	}
	return nil
}

// BenchmarkLive compares what goes from one connection to another over a live subject with nats-server's: as a server is
// started without arguments, and with nats-server's bound on what waits for a subscriber, which is eight times larger.
func BenchmarkLive(b *testing.B) {
	describe()
	for b.Loop() {
		addr, peer := startPeer(b)
		for name, pending := range map[string]string{"live": "8MiB", "live-64MiB": "64MiB"} {
			s := harness.StartIn(b, []string{"TRUNKLINE_LIMITS_PENDING=" + pending})
			ratios(b, name, pidsOf(s, peer), func(int) (float64, error) { return liveThrough(s.Client, liveChunks) },
				func(int) (float64, error) { return liveThrough(addr, liveChunks) })
			s.Kill()
		}
	}
}

// BenchmarkPublishAsync compares JetStream publishes of the unmodified Go library, every record on disk before it is
// acknowledged, with the same to JetStream, which writes to files and syncs them later.
func BenchmarkPublishAsync(b *testing.B) {
	describe()
	for b.Loop() {
		s := harness.Start(b)
		addr, peer := startPeerAs(b, peerJetStream+":"+b.TempDir())
		ratios(b, "async", pidsOf(s, peer), func(n int) (float64, error) {
			topic := "t" + strconv.Itoa(n)
			if err := withTopic(s, topic); err != nil {
				return 0, err
			}
			return publishAsync(s.Client, topic, asyncRecords)
		}, func(n int) (float64, error) {
			subject := "t" + strconv.Itoa(n)
			if err := withStream(addr, subject); err != nil {
				return 0, err
			}
			return publishAsync(addr, subject, asyncRecords)
		})
		s.Kill()
	}
}

// TestLibrariesAreMeasurable runs a little of what the benchmarks run.
func TestLibrariesAreMeasurable(t *testing.T) {
	s := harness.Start(t)
	addr, _ := startPeerAs(t, peerJetStream+":"+t.TempDir())
	if err := errors.Join(withTopic(s, "t"), withStream(addr, "t")); err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]string{"trunkline": s.Client, "nats-server": addr} {
		if got, err := liveThrough(at, 2); err != nil || got <= 0 {
			t.Errorf("%s: %v thousand/s, %v", name, got, err)
		}
		if got, err := publishAsync(at, "t", 1000); err != nil || got <= 0 {
			t.Errorf("%s: %v thousand/s, %v", name, got, err)
		}
	}
}
