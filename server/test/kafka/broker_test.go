package kafka

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// broker is a Kafka broker, its own controller, that can be stopped cleanly and started again on its data.
type broker struct {
	java    *java
	address string
	config  string
	data    string
	cmd     *exec.Cmd
	output  lockedBuffer
	waiting sync.WaitGroup
	ended   chan struct{}
}

// lockedBuffer takes what a process prints while others look at it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const brokerPatience = 40 * time.Second

// newBroker formats a fresh data directory; start starts it. The last one of a setting counts.
func newBroker(t *testing.T, j *java, settings ...string) *broker {
	t.Helper()
	dir := t.TempDir()
	b := &broker{java: j, address: harness.FreeAddress(t), data: filepath.Join(dir, "data"), config: filepath.Join(dir, "server.properties")}
	controller := harness.FreeAddress(t)
	text := strings.Join([]string{
		"process.roles=broker,controller", "node.id=1", "controller.quorum.bootstrap.servers=" + controller, "controller.listener.names=CONTROLLER",
		"listeners=PLAINTEXT://" + b.address + ",CONTROLLER://" + controller, "advertised.listeners=PLAINTEXT://" + b.address + ",CONTROLLER://" + controller,
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT", "log.dirs=" + b.data,
		"auto.create.topics.enable=false", "num.partitions=1", "default.replication.factor=1", "offsets.topic.replication.factor=1",
		"log.retention.ms=-1", "num.network.threads=1", "num.io.threads=2", "log.cleaner.enable=false", strings.Join(settings, "\n"), "",
	}, "\n")
	if err := os.WriteFile(b.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	j.run(t, "", "kafka.tools.StorageTool", "format", "--standalone", "-t", "4L6g3nShT-eMCtK--X86sw", "-c", b.config)
	t.Cleanup(func() {
		if b.cmd != nil {
			_ = b.cmd.Process.Kill()
			b.waiting.Wait()
		}
	})
	return b
}

func (b *broker) start(t *testing.T) {
	t.Helper()
	b.cmd = b.java.command(context.Background(), "kafka.Kafka", b.config)
	b.cmd.Stdout, b.cmd.Stderr = &b.output, &b.output
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.ended = make(chan struct{})
	b.waiting.Go(func() {
		_ = b.cmd.Wait()
		close(b.ended)
	})
	c := b.client(t)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(brokerPatience); ; {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := c.Ping(ctx)
		cancel()
		if err == nil {
			return
		}
		select {
		case <-b.ended:
			t.Fatalf("Kafka has ended:\n%s", tail(b.output.String()))
		case <-tick.C:
		}
		if time.Now().After(end) {
			t.Fatalf("Kafka does not answer: %v\n%s", err, tail(b.output.String()))
		}
	}
}

// stop ends it cleanly: what it leaves on disk is whole.
func (b *broker) stop(t *testing.T) {
	t.Helper()
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-b.ended:
	case <-time.After(brokerPatience):
		t.Fatalf("Kafka does not end:\n%s", tail(b.output.String()))
	}
}

func (b *broker) client(t *testing.T, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(b.address)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// create makes a topic with one partition, whose records are kept for good. Settings are names and values in turn.
func (b *broker) create(t *testing.T, topic string, settings ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), brokerPatience)
	defer cancel()
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = 20_000
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = topic, 1, 1
	settings = append(settings, "segment.bytes", "1048576", "max.message.bytes", "2097152")
	for pair := range slices.Chunk(settings, 2) {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = pair[0], kmsg.StringPtr(pair[1])
		rt.Configs = append(rt.Configs, c)
	}
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(ctx, b.client(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := kerr.ErrorForCode(resp.Topics[0].ErrorCode); err != nil {
		t.Fatalf("create %s: %v", topic, err)
	}
}

// read reads count records of a topic from its beginning, and then makes sure that no more are there.
func (b *broker) read(t *testing.T, topic string, count int) []*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), brokerPatience)
	defer cancel()
	c := b.client(t, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	var got []*kgo.Record
	var end int64 = -1
	for end < 0 || len(got) == 0 || got[len(got)-1].Offset+1 < end {
		fetches := c.PollFetches(ctx)
		if errs := fetches.Errors(); len(errs) > 0 {
			t.Fatalf("after %d records of %d: %v\n%s", len(got), count, errs, tail(b.output.String()))
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			end = p.HighWatermark
			got = append(got, p.Records...)
		})
	}
	if end != int64(count) {
		t.Errorf("Kafka's high watermark is %d, want %d", end, count)
	}
	return got
}

// carry puts exported files into the directory of a stopped broker's partition, beside its own partition.metadata.
func (b *broker) carry(t *testing.T, from, partition string) {
	t.Helper()
	dir := filepath.Join(b.data, partition)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	kept := false
	for _, e := range entries {
		if e.Name() == "partition.metadata" {
			kept = true
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if !kept {
		t.Fatalf("%s has no partition.metadata", dir)
	}
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// console sends lines with Kafka's own producer, whose snappy comes in frames that no other client makes.
func (b *broker) console(t *testing.T, topic, codec string, lines []string) {
	t.Helper()
	b.java.run(t, strings.Join(lines, "\n")+"\n", "org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", b.address, "--topic", topic,
		"--compression-codec", codec)
}

func consoleLines(codec string) []string {
	var lines []string
	for i := range 50 {
		lines = append(lines, fmt.Sprintf("%s line %d %s", codec, i, strings.Repeat("=", 100)))
	}
	return lines
}
