package kafka

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/trunkline-mq/trunkline/server/test/harness"
	"github.com/trunkline-mq/trunkline/server/test/harness/kafkad"
)

// TestDirectoriesGoToKafkaAndComeFromIt uses one broker for both ways: starting it is what takes the time.
func TestDirectoriesGoToKafkaAndComeFromIt(t *testing.T) {
	j := kafkad.Find(t)
	s := harness.Start(t)
	ours := fill(t, s, "carried")
	if code := s.Term(); code != 0 {
		t.Fatalf("the server ended with %d\n%s", code, s.Stderr())
	}
	exported := filepath.Join(t.TempDir(), "carried-0")
	if out, errs, code := cli(t, "log", "export", partitionDir(s, "carried-0"), "--to", exported); code != 0 {
		t.Fatalf("%d\n%s%s", code, out, errs)
	}

	b := newBroker(t, j)
	b.start(t)
	b.create(t, "carried")
	theirs := compressed(t, b)
	b.Stop(t)

	t.Run("from Kafka", func(t *testing.T) { fromKafka(t, copyDir(t, filepath.Join(b.Data, "codecs-0")), theirs) })

	b.carry(t, exported, "carried-0")
	b.start(t)
	t.Run("to Kafka", func(t *testing.T) { compareKafka(t, b.read(t, "carried", len(ours)), ours) })
	t.Run("goes on there", func(t *testing.T) {
		c := b.client(t, kgo.DefaultProduceTopic("carried"))
		r := c.ProduceSync(t.Context(), kgo.StringRecord("one more"))
		if err := r.FirstErr(); err != nil || r[0].Record.Offset != int64(len(ours)) {
			t.Errorf("offset %d, %v", r[0].Record.Offset, err)
		}
	})
	b.Stop(t)
	t.Run("and back", func(t *testing.T) {
		dir := copyDir(t, filepath.Join(b.Data, "carried-0"))
		if out, errs, code := cli(t, "log", "verify", dir); code != 0 || !strings.Contains(errs, fmt.Sprintf("offsets 0 to %d", len(ours))) {
			t.Errorf("%d\n%s%s", code, out, errs)
		}
	})
}

func compareKafka(t *testing.T, got []*kgo.Record, want []published) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("Kafka has %d records of %d", len(got), len(want))
	}
	for i, r := range got {
		w := want[i]
		same := r.Offset == w.offset && r.Timestamp.UnixMilli() == w.Timestamp.UnixMilli() && equal(r.Key, w.Key) && equal(r.Value, w.Value) && len(r.Headers) == len(w.Headers)
		for n := 0; same && n < len(r.Headers); n++ {
			same = r.Headers[n].Key == w.Headers[n].Name && equal(r.Headers[n].Value, w.Headers[n].Value)
		}
		if !same {
			t.Fatalf("record %d is\n%.500s\nand was\n%.500s", i, fmt.Sprintf("%+v", r), fmt.Sprintf("%+v", w))
		}
	}
}

func equal(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

// compressed fills the topic "codecs" with batches of every codec and returns the values by offset. The broker stores
// batches as they come.
func compressed(t *testing.T, b *broker) []string {
	t.Helper()
	b.create(t, "codecs")
	ctx, cancel := context.WithTimeout(t.Context(), kafkad.BrokerPatience)
	defer cancel()
	var values []string
	for round := range 3 {
		for name, codec := range map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
			"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()} {
			c := b.client(t, kgo.DefaultProduceTopic("codecs"), kgo.ProducerBatchCompression(codec), kgo.ProducerLinger(50*time.Millisecond), kgo.ProducerBatchMaxBytes(1<<20))
			var records []*kgo.Record
			for i := range 200 {
				value := fmt.Sprintf("%s %d/%d %s", name, round, i, strings.Repeat("abcdefgh", i))
				values = append(values, value)
				records = append(records, &kgo.Record{Key: fmt.Appendf(nil, "%d", i), Value: []byte(value), Headers: []kgo.RecordHeader{{Key: "codec", Value: []byte(name)}}})
			}
			if err := c.ProduceSync(ctx, records...).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, codec := range []string{"snappy", "lz4"} {
		lines := consoleLines(codec)
		b.console(t, "codecs", codec, lines)
		values = append(values, lines...)
	}
	return values
}

// fromKafka verifies and dumps what a broker left on disk.
func fromKafka(t *testing.T, dir string, want []string) {
	t.Helper()
	if out, errs, code := cli(t, "log", "verify", dir); code != 0 || out != "" {
		t.Errorf("verify: %d\n%s%s", code, out, errs)
	}
	out, errs, code := cli(t, "log", "dump", dir, "--records", "--json")
	if code != 0 {
		t.Errorf("dump: %d\n%s", code, errs)
	}
	codecs := map[string]int{}
	var got []string
	lines := bufio.NewScanner(strings.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct {
			Codec   string
			Topic   string
			Offset  int
			Value   string
			Headers map[string][]string
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if line.Topic == "" {
			codecs[line.Codec]++
			continue
		}
		if line.Offset != len(got) || line.Topic != "codecs" {
			t.Fatalf("record %d of %s follows %d records", line.Offset, line.Topic, len(got))
		}
		if name, _, _ := strings.Cut(line.Value, " "); len(line.Headers) > 0 && !slices.Equal(line.Headers["codec"], []string{name}) {
			t.Errorf("record %d has headers %v", line.Offset, line.Headers)
		}
		got = append(got, line.Value)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d records of %d, or others", len(got), len(want))
	}
	for _, name := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		if codecs[name] == 0 {
			t.Errorf("no batch is %s: %v", name, codecs)
		}
	}
	stored, err := os.ReadFile(filepath.Join(dir, "00000000000000000000.log"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(stored, []byte("\x82SNAPPY\x00")) {
		t.Error("no batch has snappy in the frames of Kafka's own client")
	}
	t.Logf("batches %v, records %d", codecs, len(got))
}
