package kafka

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/server/test/harness"
	"github.com/trunkline-mq/trunkline/server/test/harness/kafkad"
)

// published is a record that a server acknowledged.
type published struct {
	offset int64
	trunkline.Message
}

const (
	smallRecords = 4000
	bigBytes     = 900_000
	// flushEvery keeps what is published from becoming few large batches.
	flushEvery = 40
)

// messages are records of every shape. Values are text without line ends, so that a tool that prints lines shows them.
func messages() []trunkline.Message {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var list []trunkline.Message
	for i := range smallRecords {
		m := trunkline.Message{Value: fmt.Appendf(nil, "value %d %s", i, strings.Repeat("~", i%300)), Timestamp: start.Add(time.Duration(i) * time.Millisecond)}
		switch i % 8 {
		case 1:
			m.Key = fmt.Appendf(nil, "key-%d", i%97)
		case 2:
			m.Headers = []trunkline.Header{{Name: "Trace", Value: fmt.Appendf(nil, "t%d", i)}, {Name: "Trace", Value: []byte("again")}, {Name: "Empty", Value: []byte{}}}
		case 3:
			m.Key, m.Headers = []byte("both"), []trunkline.Header{{Name: "Lang", Value: []byte("de, Grüße")}}
		case 4:
			m.Value = []byte{}
		case 5:
			m.Key, m.Value = fmt.Appendf(nil, "gone-%d", i), nil
		case 6:
			m.Timestamp = start.Add(-time.Duration(i) * time.Second) // times need not ascend
		}
		if i%1000 == 999 {
			m.Value = bytes.Repeat([]byte{byte('a' + i/1000)}, bigBytes)
		}
		list = append(list, m)
	}
	return list
}

// fill publishes the messages to a topic with one partition and returns them in the order of their offsets.
func fill(t *testing.T, s *harness.Server, topic string) []published {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := trunkline.Dial(ctx, s.Client)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.CreateTopic(ctx, topic, trunkline.TopicConfig{Partitions: 1, Settings: map[string]string{"segment.bytes": "1MiB"}}); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var acked []published
	for i, m := range messages() {
		if i%flushEvery == 0 {
			if err := c.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
		err := c.PublishFunc(ctx, topic, &m, func(ack trunkline.Ack, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("publish: %v", err)
			}
			acked = append(acked, published{int64(ack.Offset), m})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	slices.SortFunc(acked, func(a, b published) int { return int(a.offset - b.offset) })
	for i, p := range acked {
		if p.offset != int64(i) {
			t.Fatalf("record %d has offset %d", i, p.offset)
		}
	}
	return acked
}

// copyDir copies a directory's files: Kafka's tool opens indexes for writing.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), filepath.Base(from))
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// dumped is what Kafka's tool said of a directory.
type dumped struct {
	records    []dumpedRecord
	batches    int
	indexed    int // entries of both indexes
	complaints []string
}

type dumpedRecord struct {
	offset, time, keySize, valueSize int64
	headers, text                    string
}

var (
	batchLine  = regexp.MustCompile(`^baseOffset: \d+ lastOffset: \d+ count: \d+ .* magic: 2 compresscodec: \w+ crc: \d+ isvalid: true$`)
	recordLine = regexp.MustCompile(`^\| offset: (\d+) CreateTime: (\d+) keySize: (-?\d+) valueSize: (-?\d+) sequence: -1 headerKeys: \[(.*?)\](.*)$`)
	indexLine  = regexp.MustCompile(`^(offset: \d+ position: \d+|timestamp: \d+ offset: \d+)$`)
	// An index is empty where its segment has a single batch; a broker's own is then, too.
	otherLine = regexp.MustCompile(`^(Dumping .*|Log starting offset: \d+|.*\.(index|timeindex) is empty\.|)$`)
	// notZero is what the tool says of each sound segment that does not begin at offset 0.
	notZero = regexp.MustCompile(`^(Non-consecutive offsets in .*|\s*-1 is followed by \d+)$`)
)

// dump has Kafka's tool read a copy of a directory. Its exit code says nothing, so every line it prints has to be one
// that is known to be no complaint.
func dump(t *testing.T, j *kafkad.Java, dir string) dumped {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == ".log" || ext == ".index" || ext == ".timeindex" {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	out, errs := j.Run(t, "", "org.apache.kafka.tools.DumpLogSegments", "--deep-iteration", "--print-data-log", "--files", strings.Join(files, ","))
	return parseDump(t, out+errs)
}

func parseDump(t *testing.T, text string) dumped {
	t.Helper()
	var d dumped
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		line := lines.Text()
		switch m := recordLine.FindStringSubmatch(line); {
		case m != nil:
			r := dumpedRecord{headers: m[5], text: m[6]}
			for i, field := range []*int64{&r.offset, &r.time, &r.keySize, &r.valueSize} {
				*field, _ = strconv.ParseInt(m[i+1], 10, 64)
			}
			d.records = append(d.records, r)
		case batchLine.MatchString(line):
			d.batches++
		case indexLine.MatchString(line):
			d.indexed++
		case otherLine.MatchString(line), notZero.MatchString(line):
		default:
			d.complaints = append(d.complaints, line[:min(len(line), 600)])
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return d
}

// compare holds what the tool showed against what was published.
func (d *dumped) compare(t *testing.T, want []published) {
	t.Helper()
	if len(d.complaints) > 0 {
		t.Errorf("it complains:\n%s", strings.Join(d.complaints[:min(20, len(d.complaints))], "\n"))
	}
	if len(d.records) != len(want) {
		t.Fatalf("it shows %d records of %d", len(d.records), len(want))
	}
	for i, r := range d.records {
		w := want[i]
		text := ""
		if w.Key != nil {
			text += " key: " + string(w.Key)
		}
		if w.Value != nil {
			text += " payload: " + string(w.Value)
		}
		var headers []string
		for _, h := range w.Headers {
			headers = append(headers, h.Name)
		}
		if r.offset != w.offset || r.time != w.Timestamp.UnixMilli() || r.keySize != sizeOf(w.Key) || r.valueSize != sizeOf(w.Value) ||
			r.headers != strings.Join(headers, ",") || r.text != text {
			t.Fatalf("record %d is shown as\n%.500s\nand was\n%.500s", i, fmt.Sprintf("%+v", r), fmt.Sprintf("%+v", w))
		}
	}
}

func sizeOf(b []byte) int64 {
	if b == nil {
		return -1
	}
	return int64(len(b))
}

// partitionDir is where a server keeps a partition.
func partitionDir(s *harness.Server, name string) string { return filepath.Join(s.Data, "logs", name) }

func TestKafkasToolReadsWhatWeWrite(t *testing.T) {
	j := kafkad.Find(t)
	s := harness.Start(t)
	want := fill(t, s, "judged")
	if code := s.Term(); code != 0 {
		t.Fatalf("the server ended with %d\n%s", code, s.Stderr())
	}
	dir := partitionDir(s, "judged-0")
	if out, errs, code := cli(t, "log", "verify", dir); code != 0 {
		t.Errorf("our own verification: %d\n%s%s", code, out, errs)
	}

	t.Run("as it lies", func(t *testing.T) {
		d := dump(t, j, copyDir(t, dir))
		d.compare(t, want)
		t.Logf("batches %d, records %d, index entries %d", d.batches, len(d.records), d.indexed)
	})
	t.Run("exported", func(t *testing.T) {
		to := filepath.Join(t.TempDir(), "judged-0")
		if out, errs, code := cli(t, "log", "export", dir, "--to", to); code != 0 {
			t.Fatalf("%d\n%s%s", code, out, errs)
		}
		d := dump(t, j, copyDir(t, to))
		d.compare(t, want)
		if d.indexed == 0 {
			t.Error("no index entry was shown")
		}
		t.Logf("batches %d, records %d, index entries %d", d.batches, len(d.records), d.indexed)
	})
	t.Run("damaged", func(t *testing.T) { // that the judge is awake
		spoilt := copyDir(t, dir)
		name := filepath.Join(spoilt, "00000000000000000000.log")
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)-20] ^= 1
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
		d := dump(t, j, spoilt)
		if !slices.ContainsFunc(d.complaints, func(c string) bool { return strings.HasSuffix(c, "isvalid: false") }) {
			t.Errorf("a flipped bit, and it says %q", d.complaints)
		}
		out, _, code := cli(t, "log", "verify", spoilt)
		if code != 1 || !strings.HasPrefix(out, "00000000000000000000.log position ") || !strings.Contains(out, ": crc: ") {
			t.Errorf("our own verification: %d %s", code, out)
		}
	})
}
