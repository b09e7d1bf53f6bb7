package integration

import (
	"bytes"
	"compress/gzip"
	bigendian "encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func batchOf(values ...string) record.Batch {
	var b record.Builder
	b.Reset(nil)
	for i, v := range values {
		b.Append(&record.Record{Timestamp: int64(1000 + i), Key: []byte("k"), Value: []byte(v)})
	}
	return b.Finish(0, -1)
}

func produce(l *harness.Line, args string, payload []byte) string {
	l.Send(fmt.Sprintf("PRODUCE %s %d\r\n%s\r\n", args, len(payload), payload))
	return l.Read()
}

// fetched reads the answer of a FETCH: its batches by partition, and its PART lines.
func fetched(t *testing.T, l *harness.Line) (batches map[string][]byte, parts []string) {
	t.Helper()
	batches = map[string][]byte{}
	for {
		line := l.Read()
		f := strings.Fields(line)
		switch f[0] {
		case "+OK":
			return batches, parts
		case "PART":
			parts = append(parts, line)
		case "BATCH":
			var n int
			if _, err := fmt.Sscan(f[4], &n); err != nil || len(f) != 5 {
				t.Fatalf("BATCH line %q", line)
			}
			batches[f[1]] = []byte(l.ReadN(n))
			if end := l.Read(); end != "" {
				t.Fatalf("after a batch: %q", end)
			}
		default:
			t.Fatalf("FETCH answered %q", line)
		}
	}
}

func TestProducedBatchesAreFetchedAsStored(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t", "+OK t")
	ask(t, l, "SEND t by hand", "+OK t/0@0 disk")
	two := append(append([]byte(nil), batchOf("a", "b")...), batchOf("c")...)
	if got := produce(l, "t/0 acks=all plan=1", two); got != "+OK t/0@1 disk" {
		t.Fatal(got)
	}
	if got := produce(l, "t/0 acks=0", batchOf("d")); got != "+OK t/0@-1 none" {
		t.Fatal(got)
	}
	ask(t, l, "SEND t after", "+OK t/0@5 disk")
	l.Send("FETCH t/0@1\n")
	got, parts := fetched(t, l)
	if len(parts) != 0 || len(got) != 1 {
		t.Fatalf("%d batches, %q", len(got), parts)
	}
	stored := got["t/0@1"]
	var offsets []record.Offset
	var values []string
	for len(stored) > 0 {
		b := record.Batch(stored)
		b = b[:b.Size()]
		if err := b.Check(); err != nil {
			t.Fatal(err)
		}
		it, r := record.NewIterator(b), record.Record{}
		for {
			off, ok := it.Next(&r)
			if !ok {
				break
			}
			offsets, values = append(offsets, off), append(values, string(r.Value))
		}
		stored = stored[len(b):]
	}
	if fmt.Sprint(offsets, values) != "[1 2 3 4 5] [a b c d after]" {
		t.Errorf("fetched %v %v", offsets, values)
	}
	l.Send("GET t/0@2 1\n")
	if got := l.Read(); !strings.HasPrefix(got, "HMSG t/0@2 0 ") {
		t.Error(got)
	}
}

func TestBadBatchesAreRefusedAndNothingIsWritten(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=2", "+OK t")
	good := batchOf("a", "b")
	mutate := func(f func(b []byte)) []byte {
		b := append([]byte(nil), good...)
		f(b)
		bigendian.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
		return b
	}
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)-1] ^= 1
	for name, tt := range map[string]struct {
		args    string
		payload []byte
		want    string
	}{
		"empty":            {"t/0", nil, "BAD_BATCH"},
		"noise":            {"t/0", []byte(strings.Repeat("x", 100)), "BAD_BATCH"},
		"cut":              {"t/0", good[:len(good)-1], "BAD_BATCH"},
		"crc":              {"t/0", flipped, "BAD_BATCH"},
		"magic":            {"t/0", mutate(func(b []byte) { b[16] = 1 }), "BAD_BATCH"},
		"count":            {"t/0", mutate(func(b []byte) { b[60] = 7 }), "BAD_BATCH"},
		"no records":       {"t/0", mutate(func(b []byte) { b[60], b[26] = 0, 0xff }), "BAD_BATCH"},
		"idempotent":       {"t/0", mutate(func(b []byte) { copy(b[43:], make([]byte, 8)) }), "NOT_SUPPORTED"},
		"transactional":    {"t/0", mutate(func(b []byte) { b[22] |= 1 << 4 }), "NOT_SUPPORTED"},
		"control":          {"t/0", mutate(func(b []byte) { b[22] |= 1 << 5 }), "NOT_SUPPORTED"},
		"codec":            {"t/0", mutate(func(b []byte) { b[22] = 7 }), "BAD_BATCH"},
		"second is bad":    {"t/0", append(append([]byte(nil), good...), flipped...), "BAD_BATCH"},
		"no partition":     {"t", good, "BAD_ADDRESS"},
		"partition beyond": {"t/2", good, "UNKNOWN_PARTITION"},
		"stale plan":       {"t/0 plan=9", good, "PLAN_STALE"},
		"option":           {"t/0 acks=2", good, "BAD_ARGS"},
		"timeout":          {"t/0 timeout=5", good, "BAD_ARGS"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := produce(l, tt.args, tt.payload); !strings.HasPrefix(got, "-ERR "+tt.want+" ") || !strings.Contains(got, "; ") {
				t.Errorf("got %q, want %s", got, tt.want)
			}
		})
	}
	ask(t, l, "PING", "PONG")
	ask(t, l, "GET t/0", "+OK t/0@0")
}

func TestFetchTellsTroubleByPartition(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=2", "+OK t")
	ask(t, l, "SEND t/0 a", "+OK t/0@0 disk")
	l.Send("FETCH t/0@0 t/1@0 t/7@0 nothere/0@0 t/0@99 wait=10s\n")
	got, parts := fetched(t, l)
	if len(got["t/0@0"]) == 0 {
		t.Error("no batch")
	}
	want := "PART t/7 -1 -1 UNKNOWN_PARTITION|PART nothere/0 -1 -1 UNKNOWN_TOPIC|PART t/0 1 0 OFFSET_OUT_OF_RANGE"
	if strings.Join(parts, "|") != want {
		t.Errorf("parts %q", parts)
	}
	body := `{"max":1000,"wait":0,"partitions":[{"topic":"t","partition":0,"offset":0,"epoch":0},{"topic":"x","partition":1,"offset":0}]}`
	l.Send(fmt.Sprintf("FETCH %d\n%s\n", len(body), body))
	if got, parts := fetched(t, l); len(got["t/0@0"]) == 0 || len(parts) != 1 {
		t.Errorf("%v %v", got, parts)
	}
	for in, code := range map[string]string{
		"FETCH": "BAD_ARGS", "FETCH t@0": "BAD_ADDRESS", "FETCH t/0": "BAD_ADDRESS", "FETCH t/0@0 max=0": "BAD_ARGS",
		"FETCH t/0@0 max=1TiB": "BAD_ARGS", "FETCH t/0@0 wait=1h": "BAD_ARGS", "FETCH t/0@0 x=1": "BAD_ARGS", "FETCH 2\n{]": "BAD_JSON",
	} {
		if got := l.Ask(in); !strings.HasPrefix(got, "-ERR "+code+" ") {
			t.Errorf("%s: %q, want %s", in, got, code)
		}
	}
}

func TestLongPollEndsWithDataAVerbOrItsTopic(t *testing.T) {
	s := harness.Start(t)
	l, other := s.Dial(), s.Dial()
	ask(t, l, "TOPIC CREATE t", "+OK t")

	l.Send("FETCH t/0@0 wait=20s\n")
	ask(t, other, "SEND t a", "+OK t/0@0 disk")
	if got, _ := fetched(t, l); len(got["t/0@0"]) == 0 {
		t.Error("a poll did not end with data")
	}
	start := time.Now()
	l.Send("FETCH t/0@1 wait=20s\nPING\n")
	if got, _ := fetched(t, l); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	if got := l.Read(); got != "PONG" {
		t.Error(got)
	}
	l.Send("FETCH t/0@1 wait=20s\nFETCH t/0@0\n")
	if got, _ := fetched(t, l); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	if got, _ := fetched(t, l); len(got["t/0@0"]) == 0 {
		t.Error("the fetch behind a poll got nothing")
	}
	l.Send("SEND t b\nFETCH t/0@1\n")
	if got := l.Read(); got != "+OK t/0@1 disk" {
		t.Error(got)
	}
	if got, _ := fetched(t, l); len(got["t/0@1"]) == 0 {
		t.Error("a fetch does not see what its connection wrote before")
	}
	l.Send("FETCH t/0@2 wait=50ms\n")
	if got, _ := fetched(t, l); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	l.Send("FETCH t/0@2 wait=4m\n")
	ask(t, other, "TOPIC DELETE t", "+OK t")
	if _, parts := fetched(t, l); len(parts) != 1 || !strings.HasSuffix(parts[0], " TOPIC_DELETED") {
		t.Errorf("parts %q", parts)
	}
	if took := time.Since(start); took > time.Minute {
		t.Errorf("polls took %s", took)
	}
}

func TestFetchSendsWholeBatchesWithinItsBounds(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t segment.bytes=1MiB", "+OK t")
	value := strings.Repeat("x", 50_000)
	const n = 100
	for i := range n {
		if got := produce(l, "t/0", batchOf(value)); got != fmt.Sprintf("+OK t/0@%d disk", i) {
			t.Fatal(got)
		}
	}
	for next := 0; next < n; {
		l.Send(fmt.Sprintf("FETCH t/0@%d max=300KiB\n", next))
		got, _ := fetched(t, l)
		stored := got[fmt.Sprintf("t/0@%d", next)]
		if len(stored) == 0 || len(stored) > 300<<10 {
			t.Fatalf("%d bytes at %d", len(stored), next)
		}
		for len(stored) > 0 {
			b := record.Batch(stored)
			b = b[:b.Size()]
			if err := b.Check(); err != nil || int(b.BaseOffset()) != next || !bytes.Contains(b, []byte(value)) {
				t.Fatalf("batch at %d: %v", next, err)
			}
			next, stored = int(b.NextOffset()), stored[len(b):]
		}
	}
}

func TestOffsetsAndMetadataAreJSON(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=2", "+OK t")
	ask(t, l, "SEND t/1 a", "+OK t/1@0 disk")
	data := func(ask string, v any) {
		t.Helper()
		l.Send(ask + "\n")
		if head := l.Read(); !strings.HasPrefix(head, "DATA ") {
			t.Fatalf("%s: %q", ask, head)
		}
		if err := json.Unmarshal([]byte(l.Read()), v); err != nil {
			t.Fatalf("%s: %v", ask, err)
		}
	}
	var o struct {
		Topic      string
		Partitions []struct {
			Partition, Offset int
			Timestamp         *time.Time
			LogStart          int `json:"log_start"`
			HighWatermark     int `json:"high_watermark"`
			Error             string
		}
	}
	data("OFFSETS t@1h", &o)
	if len(o.Partitions) != 2 || o.Partitions[0].Offset != 0 || o.Partitions[0].Timestamp != nil ||
		o.Partitions[1].Offset != 0 || o.Partitions[1].Timestamp == nil || o.Partitions[1].HighWatermark != 1 {
		t.Errorf("%+v", o)
	}
	data("OFFSETS t/1", &o)
	if len(o.Partitions) != 1 || o.Partitions[0].Offset != 1 || o.Partitions[0].Timestamp != nil {
		t.Errorf("%+v", o)
	}
	var m struct {
		Cluster string
		Brokers []struct {
			ID   int
			Host string
			Port int
		}
		Topics []struct {
			Name, Error string
			Plan        struct {
				Version int
				Kind    string
			}
			Partitions []struct{ Leader int }
		}
	}
	data("METADATA t nothere", &m)
	if m.Cluster == "" || fmt.Sprintf("%s:%d", m.Brokers[0].Host, m.Brokers[0].Port) != s.Client || len(m.Topics) != 2 ||
		m.Topics[0].Plan.Kind != "murmur2" || len(m.Topics[0].Partitions) != 2 || m.Topics[1].Error != "UNKNOWN_TOPIC" {
		t.Errorf("%+v", m)
	}
	data("METADATA", &m)
	if len(m.Topics) != 1 {
		t.Errorf("%+v", m)
	}
}

// gzipped packs a batch's records as a Kafka client does.
func gzipped(t *testing.T, b record.Batch) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(b[record.HeaderBytes:]); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out := append(append([]byte(nil), b[:record.HeaderBytes]...), packed.Bytes()...)
	bigendian.BigEndian.PutUint32(out[8:], uint32(len(out)-12))
	out[22] |= 1
	bigendian.BigEndian.PutUint32(out[17:], crc32.Checksum(out[21:], crc32.MakeTable(crc32.Castagnoli)))
	return out
}

func TestCompressedBatchesAreStoredAsTheyCameAndReadUnpacked(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t", "+OK t")
	sent := gzipped(t, batchOf("a", strings.Repeat("b", 5000), "c"))
	ask(t, l, "SEND t before", "+OK t/0@0 disk")
	if got := produce(l, "t/0", sent); got != "+OK t/0@1 disk" {
		t.Fatal(got)
	}
	bomb := gzipped(t, batchOf(strings.Repeat("x", 2<<20))) // small as sent, larger than message.bytes as read
	if got := produce(l, "t/0", bomb); got != "+OK t/0@4 disk" {
		t.Fatal(got)
	}
	ask(t, l, "SEND t after", "+OK t/0@5 disk")
	l.Send("FETCH t/0@1 max=1\n")
	got, _ := fetched(t, l)
	if stored := got["t/0@1"]; !bytes.Equal(stored[16:], sent[16:]) {
		t.Errorf("stored %d bytes, sent %d", len(stored), len(sent))
	}
	ask(t, l, "CONNECT {\"headers\":false}", "+OK")
	l.Send("SUB t@earliest 7\n")
	for _, want := range []string{
		"+OK", "MSG t/0@0 7 6", "before", "MSG t/0@1 7 1", "a", "MSG t/0@2 7 5000", strings.Repeat("b", 5000), "MSG t/0@3 7 1", "c",
		"-ERR ASYNC CORRUPT 'SUB t", "MSG t/0@5 7 5", "after",
	} {
		if got := l.Read(); !strings.HasPrefix(got, want) {
			t.Fatalf("got %.100q, want %.100q", got, want)
		}
	}
	ask(t, l, "UNSUB 7", "+OK")
	ask(t, l, "GET t/0@3 1", "MSG t/0@3 0 1")
}

func TestFetchBeforeTheEndIsStillAnswered(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	l.Send("SEND t x\nFETCH t/0@0 wait=20s\nQUIT\n")
	if got := l.Read(); got != "+OK t/0@0 disk" {
		t.Fatal(got)
	}
	if got, parts := fetched(t, l); len(got["t/0@0"]) == 0 {
		t.Errorf("%v %q", got, parts)
	}
}
