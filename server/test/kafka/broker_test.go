package kafka

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/trunkline-mq/trunkline/server/test/harness/kafkad"
)

// broker is a Kafka broker with a client.
type broker struct{ *kafkad.Broker }

func newBroker(t *testing.T, j *kafkad.Java, settings ...string) *broker {
	t.Helper()
	return &broker{kafkad.NewBroker(t, j, settings...)}
}

func (b *broker) start(t *testing.T) {
	t.Helper()
	b.Start(t, b.client(t).Ping)
}

func (b *broker) client(t *testing.T, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(b.Address)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// create makes a topic with one partition, whose records are kept for good. Settings are names and values in turn.
func (b *broker) create(t *testing.T, topic string, settings ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), kafkad.BrokerPatience)
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
	ctx, cancel := context.WithTimeout(t.Context(), kafkad.BrokerPatience)
	defer cancel()
	c := b.client(t, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	var got []*kgo.Record
	var end int64 = -1
	for end < 0 || len(got) == 0 || got[len(got)-1].Offset+1 < end {
		fetches := c.PollFetches(ctx)
		if errs := fetches.Errors(); len(errs) > 0 {
			t.Fatalf("after %d records of %d: %v\n%s", len(got), count, errs, b.Output())
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
	dir := filepath.Join(b.Data, partition)
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
	b.Java.Run(t, strings.Join(lines, "\n")+"\n", "org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", b.Address, "--topic", topic,
		"--compression-codec", codec)
}

func consoleLines(codec string) []string {
	var lines []string
	for i := range 50 {
		lines = append(lines, fmt.Sprintf("%s line %d %s", codec, i, strings.Repeat("=", 100)))
	}
	return lines
}
