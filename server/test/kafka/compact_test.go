package kafka

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/record/codec"
	"github.com/trunkline-mq/trunkline/server/test/harness"
	"github.com/trunkline-mq/trunkline/server/test/harness/kafkad"
)

// held is a record by its offset.
type held struct {
	offset int64
	value  string
}

// TestCompactedLogComesFromKafka has a broker compact a topic, batches of every codec among them, and takes its
// directory over.
func TestCompactedLogComesFromKafka(t *testing.T) {
	j := kafkad.Find(t)
	b := newBroker(t, j, "log.cleaner.enable=true", "log.cleaner.backoff.ms=100", "log.cleaner.dedupe.buffer.size=1100000")
	b.start(t)
	b.create(t, "keys", "cleanup.policy", "compact", "min.cleanable.dirty.ratio", "0.01", "delete.retention.ms", "0")
	written := keyed(t, b, "keys")
	harness.Eventually(t, "the log is compacted", func() bool {
		info, err := os.Stat(filepath.Join(b.Data, "keys-0", "00000000000000000000.log"))
		return err == nil && info.Size() < 1<<19
	})
	b.Stop(t)
	dir := copyDir(t, filepath.Join(b.Data, "keys-0"))
	b.start(t)
	theirs := b.compacted(t, "keys", written)
	b.Stop(t)

	s := harness.Start(t)
	if err := os.CopyFS(filepath.Join(s.Data, "adopt", "keys-0"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if got := s.Dial().Ask("TOPIC CREATE keys adopt=true"); got != "+OK keys" {
		t.Fatal(got)
	}
	read := func(t *testing.T) {
		t.Run("GET", func(t *testing.T) {
			l := s.Dial()
			l.Send("GET keys/0@earliest 100000\n")
			var got []held
			end := ""
			for {
				h, answer := frame(t, l)
				if end = answer; end != "" {
					break
				}
				got = append(got, h)
			}
			compareHeld(t, got, theirs)
			if want := fmt.Sprintf("+OK keys/0@%d", written); end != want {
				t.Errorf("it ends with %q, want %q", end, want)
			}
		})
		t.Run("SUB", func(t *testing.T) { compareHeld(t, subscribed(t, s, len(theirs)), theirs) })
		t.Run("FETCH", func(t *testing.T) { compareHeld(t, fetched(t, s), theirs) })
	}
	read(t)
	ours := partitionDir(s, "keys-0")
	if out, errs, code := cli(t, "log", "verify", ours); code != 0 || out != "" {
		t.Errorf("verify: %d\n%s%s", code, out, errs)
	}
	s.Kill()
	s.Restart()
	read(t)
	if got := s.Dial().Ask("SEND keys/0 goes on"); got != fmt.Sprintf("+OK keys/0@%d disk", written) {
		t.Errorf("got %q", got)
	}
}

// keyed writes records of few keys, so that most are replaced by later ones, and returns how many.
func keyed(t *testing.T, b *broker, topic string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), kafkad.BrokerPatience)
	defer cancel()
	n := 0
	for round := range 4 {
		for _, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()} {
			c := b.client(t, kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(codec), kgo.ProducerBatchMaxBytes(100_000), kgo.ProducerLinger(5*time.Millisecond))
			var records []*kgo.Record
			for i := range 500 {
				key := fmt.Sprintf("key %d", i%37)
				if i%100 == 0 {
					key = fmt.Sprintf("once %d", n) // never replaced
				}
				noise := make([]byte, 400) // so that no codec makes it small
				for at := range noise {
					noise[at] = byte('a' + (at*at*(n+7)+n*31+at*13)%26)
				}
				records = append(records, &kgo.Record{Key: []byte(key), Value: fmt.Appendf(nil, "round %d, number %d %s", round, n, noise)})
				n++
			}
			if err := c.ProduceSync(ctx, records...).FirstErr(); err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
	}
	return n
}

// compacted reads what the broker has left of a topic of that many offsets.
func (b *broker) compacted(t *testing.T, topic string, written int) []held {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), kafkad.BrokerPatience)
	defer cancel()
	c := b.client(t, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	var all []held
	for len(all) == 0 || all[len(all)-1].offset+1 < int64(written) {
		fetches := c.PollFetches(ctx)
		if errs := fetches.Errors(); len(errs) > 0 {
			t.Fatalf("after %d records: %v\n%s", len(all), errs, b.Output())
		}
		fetches.EachRecord(func(r *kgo.Record) { all = append(all, held{r.Offset, string(r.Value)}) })
	}
	if len(all) >= written {
		t.Fatalf("nothing was compacted away of %d records", written)
	}
	t.Logf("%d records are left of %d", len(all), written)
	return all
}

// frame reads a delivered record, or the line that ends a delivery.
func frame(t *testing.T, l *harness.Line) (h held, answer string) {
	t.Helper()
	line := l.Read()
	fields := strings.Fields(line)
	header, size := 0, 0
	switch {
	case len(fields) == 4 && fields[0] == "MSG":
		_, _ = fmt.Sscan(fields[3], &size)
	case len(fields) == 5 && fields[0] == "HMSG":
		_, _ = fmt.Sscan(fields[3], &header)
		_, _ = fmt.Sscan(fields[4], &size)
	default:
		return h, line
	}
	if _, err := fmt.Sscanf(fields[1], "keys/0@%d", &h.offset); err != nil {
		t.Fatalf("address %q", fields[1])
	}
	h.value = l.ReadN(size)[header:]
	l.Read()
	return h, ""
}

func compareHeld(t *testing.T, got, want []held) {
	t.Helper()
	if !slices.Equal(got, want) {
		at := 0
		for at < len(got) && at < len(want) && got[at] == want[at] {
			at++
		}
		t.Errorf("%d records, Kafka had %d; the first difference is at number %d", len(got), len(want), at)
	}
}

// subscribed reads n records by SUB.
func subscribed(t *testing.T, s *harness.Server, n int) (got []held) {
	t.Helper()
	l := s.Dial()
	l.Send("SUB keys/0@earliest 1\n")
	if answer := l.Read(); answer != "+OK" {
		t.Fatal(answer)
	}
	for range n {
		h, answer := frame(t, l)
		if answer != "" {
			t.Fatalf("SUB delivers %q", answer)
		}
		got = append(got, h)
	}
	return got
}

// fetched reads the topic by FETCH, and unpacks what comes.
func fetched(t *testing.T, s *harness.Server) (got []held) {
	t.Helper()
	l := s.Dial()
	var r codec.Reader
	defer r.Close()
	for next := record.Offset(0); ; {
		l.Send(fmt.Sprintf("FETCH keys/0@%d max=200000\n", next))
		head := l.Read()
		if head == "+OK" {
			return got
		}
		var base, hw, start, size int64
		if _, err := fmt.Sscanf(head, "BATCH keys/0@%d %d %d %d", &base, &hw, &start, &size); err != nil {
			t.Fatalf("FETCH answers %q", head)
		}
		for batches := []byte(l.ReadN(int(size))); len(batches) > 0; {
			b := record.Batch(batches)
			b = b[:b.Size()]
			if err := b.Check(); err != nil {
				t.Fatal(err)
			}
			var rec record.Record
			r.Reset(b, 1<<20)
			for {
				off, ok := r.Next(&rec)
				if !ok {
					break
				}
				if off >= next {
					got = append(got, held{int64(off), string(bytes.Clone(rec.Value))})
				}
			}
			if err := r.Err(); err != nil {
				t.Fatal(err)
			}
			batches, next = batches[len(b):], b.NextOffset()
		}
		l.Read()
		if answer := l.Read(); answer != "+OK" {
			t.Fatalf("then %q", answer)
		}
	}
}
