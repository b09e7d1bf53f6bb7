package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// logOnDisk writes a partition's directory as a server leaves it: two segments with their indexes, of epochs 2 and 5, an
// empty one made ready, and files that are no part of the log. It returns the directory and where batches begin.
func logOnDisk(t *testing.T) (dir string, starts map[record.Offset]int64) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "logs", "or-ders-3")
	starts = map[record.Offset]int64{}
	var epochs kafkalog.Epochs
	next := record.Offset(10)
	for i, epoch := range []record.Epoch{2, 5} {
		epochs, _ = epochs.Assign(epoch, next)
		w := kafkalog.NewIndexWriter(next, kafkalog.IndexIntervalBytes)
		base, log := next, []byte(nil)
		for n := range 6 {
			var b record.Builder
			b.Reset(nil)
			at := int64(1_700_000_000_000 + 1000*i + n)
			b.Append(&record.Record{Timestamp: at, Key: []byte("k"), Value: fmt.Appendf(nil, "v%d", next)})
			b.Append(&record.Record{Timestamp: at, Value: bytes.Repeat([]byte{'x'}, 1500), Headers: []record.Header{{Key: []byte("h"), Value: []byte{0xff}}}})
			b.Append(&record.Record{Timestamp: at - 1})
			batch := b.Finish(next, epoch)
			if n == 1 {
				batch = gzipped(t, batch)
			}
			if err := w.Add(batch, int64(len(log))); err != nil {
				t.Fatal(err)
			}
			starts[next] = int64(len(log))
			log = append(log, batch...)
			next = batch.NextOffset()
		}
		w.Close()
		write(t, dir, kafkalog.SegmentName(base), log)
		write(t, dir, kafkalog.IndexName(base), w.Index())
		write(t, dir, kafkalog.TimeIndexName(base), w.TimeIndex())
	}
	write(t, dir, kafkalog.SegmentName(next), nil)
	write(t, dir, kafkalog.EpochCheckpointName, epochs.AppendText(nil))
	metadata, err := kafkalog.PartitionMetadata(strings.Repeat("0a", 16))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, kafkalog.PartitionMetadataName, metadata)
	for _, name := range []string{"next.spare", "segment-times", "00000000000000000010.cut-77"} {
		write(t, dir, name, []byte("ours"))
	}
	return dir, starts
}

func gzipped(t *testing.T, plain record.Batch) record.Batch {
	t.Helper()
	out := bytes.NewBuffer(bytes.Clone(plain[:record.HeaderBytes]))
	w := gzip.NewWriter(out)
	if _, err := w.Write(plain[record.HeaderBytes:]); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b := record.Batch(out.Bytes())
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	b[22] |= byte(record.CodecGzip)
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func write(t *testing.T, dir, name string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// spoil changes a file's bytes in place.
func spoil(t *testing.T, dir, name string, change func([]byte) []byte) {
	t.Helper()
	write(t, dir, name, change(readFile(t, dir, name)))
}

func log(t *testing.T, args ...string) outcome {
	t.Helper()
	return runWith(t, t.Context(), nil, append([]string{"log"}, args...)...)
}

func TestLogDump(t *testing.T) {
	dir, starts := logOnDisk(t)
	got := log(t, "dump", dir)
	lines := strings.Split(strings.TrimSuffix(got.out, "\n"), "\n")
	if got.code != 0 || got.err != "" || len(lines) != 3+12 {
		t.Fatalf("%+v", got)
	}
	size := len(readFile(t, dir, kafkalog.SegmentName(10)))
	for i, want := range map[int]string{
		0:  fmt.Sprintf("00000000000000000010.log bytes %d", size),
		1:  fmt.Sprintf("position 0 offsets 10-12 records 3 bytes %d epoch 2 codec none time 2023-11-14T22:13:20.000Z", starts[13]),
		2:  fmt.Sprintf("position %d offsets 13-15 records 3 bytes %d epoch 2 codec gzip time 2023-11-14T22:13:20.001Z", starts[13], starts[16]-starts[13]),
		14: "00000000000000000046.log bytes 0",
	} {
		if lines[i] != want {
			t.Errorf("line %d is %q, want %q", i, lines[i], want)
		}
	}
	big := strings.Repeat("x", 1500)
	records := log(t, "dump", dir, "--records").out
	for _, want := range []string{
		"\n  offset 13 time 2023-11-14T22:13:20.001Z key \"k\" value \"v13\"\n  offset 14 time 2023-11-14T22:13:20.001Z key null value \"" + big + "\" \"h\": \"\\xff\"\n" +
			"  offset 15 time 2023-11-14T22:13:20.000Z key null value null\nposition ",
	} {
		if !strings.Contains(records, want) {
			t.Errorf("%q is not in\n%s", want, records)
		}
	}
	if n := strings.Count(records, "\n  offset "); n != 36 {
		t.Errorf("%d records", n)
	}
}

func TestLogDumpJSON(t *testing.T) {
	dir, starts := logOnDisk(t)
	got := log(t, "dump", dir, "--records", "--json")
	lines := strings.Split(strings.TrimSuffix(got.out, "\n"), "\n")
	if got.code != 0 || len(lines) != 12+36 {
		t.Fatalf("%d lines, %d, %s", len(lines), got.code, got.err)
	}
	var batch batchJSON
	if err := json.Unmarshal([]byte(lines[4]), &batch); err != nil || batch.File != "00000000000000000010.log" || batch.Position != starts[13] || *batch.Base != 13 ||
		*batch.Last != 15 || *batch.Records != 3 || batch.Codec != "gzip" || *batch.Epoch != 2 || batch.Timestamps != "create" || batch.Producer != nil || batch.Error != "" {
		t.Errorf("%s, %v", lines[4], err)
	}
	if want := `{"topic":"or-ders","partition":3,"offset":13,"timestamp":"2023-11-14T22:13:20.001Z","key":"k","value":"v13","headers":{}}`; lines[5] != want {
		t.Errorf("%s instead of %s", lines[5], want)
	}
	if want := `"key":null,"value":"` + strings.Repeat("x", 1500) + `","headers":{"h-Base64":["/w=="]}}`; !strings.HasSuffix(lines[6], want) {
		t.Errorf("%s does not end with %s", lines[6], want)
	}
}

func TestLogDumpShowsDamageAndGoesOn(t *testing.T) {
	dir, starts := logOnDisk(t)
	spoil(t, dir, kafkalog.SegmentName(10), func(b []byte) []byte { b[starts[19]+100] ^= 1; return b[:len(b)-1] })
	got := log(t, "dump", dir, "--records")
	if got.code != 1 || strings.Count(got.out, "DAMAGED: ") != 2 || strings.Count(got.out, "\n  offset ") != 30 ||
		!strings.HasPrefix(got.err, "trunkline: "+dir+": damaged batches: 2") {
		t.Errorf("%d\n%s\n%s", got.code, got.out, got.err)
	}
	got = log(t, "dump", dir, "--json")
	if n := strings.Count(got.out, `"error":"`); got.code != 1 || n != 2 || strings.Count(got.out, "\n") != 12 {
		t.Errorf("%d, %d\n%s", got.code, n, got.out)
	}
	// A checksum can be right over records that are not.
	dir, starts = logOnDisk(t)
	spoil(t, dir, kafkalog.SegmentName(10), func(b []byte) []byte {
		batch := record.Batch(b[starts[13]:starts[16]])
		batch[record.HeaderBytes+12] ^= 0xff
		binary.BigEndian.PutUint32(batch[17:], crc32.Checksum(batch[21:], crc32.MakeTable(crc32.Castagnoli)))
		return b
	})
	for _, flags := range [][]string{{"--records"}, {"--records", "--json"}} {
		got := log(t, append([]string{"dump", dir}, flags...)...)
		if got.code != 1 || !strings.Contains(got.out, "batch at offset 13: ") {
			t.Errorf("%v: %d\n%s", flags, got.code, got.err)
		}
	}
}

func TestLogVerify(t *testing.T) {
	dir, _ := logOnDisk(t)
	if got := log(t, "verify", dir); got != (outcome{0, "", dir + " is sound: segments 3, batches 12, offsets 10 to 45\n"}) {
		t.Errorf("%+v", got)
	}
	t.Chdir(filepath.Dir(dir))
	if got := log(t, "verify", "or-ders-3/"); got.code != 0 {
		t.Errorf("by a relative name: %+v", got)
	}
	if err := os.Rename(dir, dir+".copy"); err != nil {
		t.Fatal(err)
	}
	if got := log(t, "verify", dir+".copy"); got.code != 0 {
		t.Errorf("under another name: %+v", got)
	}
}

func TestLogVerifyFindsDamage(t *testing.T) {
	first, second := kafkalog.SegmentName(10), kafkalog.SegmentName(28)
	at := func(name string, position int64, change func(b []byte)) func(*testing.T, string, map[record.Offset]int64) {
		return func(t *testing.T, dir string, _ map[record.Offset]int64) {
			spoil(t, dir, name, func(b []byte) []byte { change(b[position:]); return b })
		}
	}
	in := func(name string, o record.Offset, change func(b []byte)) func(*testing.T, string, map[record.Offset]int64) {
		return func(t *testing.T, dir string, starts map[record.Offset]int64) {
			spoil(t, dir, name, func(b []byte) []byte { change(b[starts[o]:]); return b })
		}
	}
	for _, test := range []struct {
		name   string
		spoil  func(t *testing.T, dir string, starts map[record.Offset]int64)
		file   string
		offset record.Offset
		fault  kafkalog.Fault
	}{
		{"a flipped bit", in(first, 19, func(b []byte) { b[900] ^= 0x10 }), first, 19, kafkalog.FaultCRC},
		{"magic", in(first, 19, func(b []byte) { b[16] = 1 }), first, 19, kafkalog.FaultMagic},
		{"length", in(second, 34, func(b []byte) { b[8] = 0x80 }), second, 34, kafkalog.FaultLength},
		{"epoch", in(second, 34, func(b []byte) { b[15]++ }), second, 34, kafkalog.FaultEpoch},
		{"base offset", in(second, 34, func(b []byte) { b[7]++ }), second, 34, kafkalog.FaultOffset},
		{"torn", func(t *testing.T, dir string, _ map[record.Offset]int64) {
			spoil(t, dir, second, func(b []byte) []byte { return b[:len(b)-20] })
		}, second, 43, kafkalog.FaultLength},
		{"missing segment", func(t *testing.T, dir string, _ map[record.Offset]int64) {
			if err := os.Remove(filepath.Join(dir, second)); err != nil {
				t.Fatal(err)
			}
		}, kafkalog.SegmentName(46), 28, kafkalog.FaultMissing},
		{"file name", func(t *testing.T, dir string, _ map[record.Offset]int64) {
			if err := os.Rename(filepath.Join(dir, first), filepath.Join(dir, kafkalog.SegmentName(9))); err != nil {
				t.Fatal(err)
			}
		}, kafkalog.SegmentName(9), 9, kafkalog.FaultName},
		{"index entry", at(kafkalog.IndexName(10), 3, func(b []byte) { b[0]++ }), kafkalog.IndexName(10), -1, kafkalog.FaultEntry},
		{"index beyond the end", at(kafkalog.IndexName(10), 4, func(b []byte) { b[0] = 0x70 }), kafkalog.IndexName(10), -1, kafkalog.FaultBeyond},
		{"ragged index", func(t *testing.T, dir string, _ map[record.Offset]int64) {
			spoil(t, dir, kafkalog.IndexName(10), func(b []byte) []byte { return append(b, 1) })
		}, kafkalog.IndexName(10), -1, kafkalog.FaultRagged},
		{"time index entry", at(kafkalog.TimeIndexName(28), 7, func(b []byte) { b[0]++ }), kafkalog.TimeIndexName(28), -1, kafkalog.FaultEntry},
		{"time index order", func(t *testing.T, dir string, _ map[record.Offset]int64) {
			spoil(t, dir, kafkalog.TimeIndexName(28), func(b []byte) []byte { return append(b, b[:12]...) })
		}, kafkalog.TimeIndexName(28), -1, kafkalog.FaultOrder},
		{"epoch checkpoint", func(t *testing.T, dir string, _ map[record.Offset]int64) {
			write(t, dir, kafkalog.EpochCheckpointName, []byte("0\n9\n"))
		}, kafkalog.EpochCheckpointName, -1, kafkalog.FaultCheckpoint},
		{"no epoch checkpoint", func(t *testing.T, dir string, _ map[record.Offset]int64) {
			if err := os.Remove(filepath.Join(dir, kafkalog.EpochCheckpointName)); err != nil {
				t.Fatal(err)
			}
		}, kafkalog.EpochCheckpointName, 10, kafkalog.FaultCheckpoint},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, starts := logOnDisk(t)
			test.spoil(t, dir, starts)
			got := log(t, "verify", dir)
			want := fmt.Sprintf("%s position %d offset %d: %s: ", test.file, starts[test.offset], test.offset, test.fault)
			if test.offset < 0 || !strings.HasSuffix(test.file, ".log") || test.file == kafkalog.SegmentName(46) {
				want = test.file + " position "
			}
			if got.code != 1 || !strings.HasPrefix(got.out, want) || !strings.Contains(got.out, ": "+string(test.fault)+": ") || !strings.HasPrefix(got.err, "trunkline: "+dir+" is damaged, faults: ") {
				t.Errorf("%d\n%s%s\nwant %s", got.code, got.out, got.err, want)
			}
			var f findingJSON
			got = log(t, "verify", dir, "--json")
			line, _, _ := strings.Cut(got.out, "\n")
			if err := json.Unmarshal([]byte(line), &f); err != nil || got.code != 1 || f.File != test.file || f.Fault != test.fault || f.What == "" {
				t.Errorf("%d %s %v", got.code, got.out, err)
			}
		})
	}
}

func TestLogVerifyKnowsTrimsAndCompaction(t *testing.T) {
	dir, starts := logOnDisk(t)
	write(t, dir, kafkalog.EpochCheckpointName, []byte("0\n2\n2 14\n5 28\n"))
	if got := log(t, "verify", dir); got.code != 1 {
		t.Errorf("without a log start: %+v", got)
	}
	write(t, filepath.Dir(dir), kafkalog.LogStartCheckpointName, []byte("0\n1\nor-ders 3 14\n"))
	if got := log(t, "verify", dir); got.code != 0 {
		t.Errorf("%+v", got)
	}
	write(t, filepath.Dir(dir), kafkalog.LogStartCheckpointName, []byte("0\n7\n"))
	if got := log(t, "verify", dir); got.code != 1 || !strings.Contains(got.err, kafkalog.LogStartCheckpointName) {
		t.Errorf("%+v", got)
	}

	dir, starts = logOnDisk(t)
	spoil(t, dir, kafkalog.SegmentName(10), func(b []byte) []byte { return slices.Delete(b, int(starts[13]), int(starts[16])) })
	for _, name := range []string{kafkalog.IndexName(10), kafkalog.TimeIndexName(10)} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if got := log(t, "verify", dir, "--compacted"); got.code != 0 {
		t.Errorf("%+v", got)
	}
	if got := log(t, "verify", dir); got.code != 1 || !strings.Contains(got.out, fmt.Sprintf("position %d offset 13: offset: ", starts[13])) {
		t.Errorf("%+v", got)
	}
}

// names lists a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestLogExport(t *testing.T) {
	dir, _ := logOnDisk(t)
	to := filepath.Join(t.TempDir(), "not", "there", "or-ders-3")
	got := log(t, "export", dir, "--to", to)
	size := len(readFile(t, dir, kafkalog.SegmentName(10))) + len(readFile(t, dir, kafkalog.SegmentName(28)))
	if want := (outcome{0, fmt.Sprintf("exported to %s: segments 3, batches 12, bytes %d, offsets 10 to 45\n", to, size), ""}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := names(t, to), []string{"00000000000000000010.index", "00000000000000000010.log", "00000000000000000010.timeindex", "00000000000000000028.index",
		"00000000000000000028.log", "00000000000000000028.timeindex", "00000000000000000046.log", "leader-epoch-checkpoint"}; !slices.Equal(got, want) {
		t.Errorf("there is %v", got)
	}
	if got := string(readFile(t, to, kafkalog.EpochCheckpointName)); got != "0\n1\n0 10\n" {
		t.Errorf("checkpoint %q", got)
	}
	for _, base := range []record.Offset{10, 28} {
		for _, name := range []string{kafkalog.IndexName(base), kafkalog.TimeIndexName(base)} {
			if b := readFile(t, to, name); !bytes.Equal(b, readFile(t, dir, name)) || len(b) == 0 {
				t.Errorf("%s is another: % x", name, b)
			}
		}
		theirs, ours := readFile(t, to, kafkalog.SegmentName(base)), readFile(t, dir, kafkalog.SegmentName(base))
		for at := 0; at < len(ours); {
			size, err := record.SizeOf(ours[at:])
			if err != nil {
				t.Fatal(err)
			}
			record.Batch(ours[at:]).SetEpoch(0)
			at += size
		}
		if !bytes.Equal(theirs, ours) {
			t.Errorf("segment %d differs in more than epochs", base)
		}
	}
	if got := log(t, "verify", to); got.code != 0 {
		t.Errorf("%+v", got)
	}
	if parent := names(t, filepath.Dir(to)); !slices.Equal(parent, []string{"or-ders-3"}) {
		t.Errorf("left beside it: %v", parent)
	}
}

func TestLogExportLeavesOutWhatIsTrimmed(t *testing.T) {
	for _, test := range []struct {
		start    record.Offset
		segments []string
		json     string
	}{
		{17, []string{"00000000000000000016.log", "00000000000000000028.log", "00000000000000000046.log"}, `"segments":3,"batches":10,"bytes":%d,"first":16,"next":46}`},
		{28, []string{"00000000000000000028.log", "00000000000000000046.log"}, `"segments":2,"batches":6,"bytes":%d,"first":28,"next":46}`},
		{46, []string{"00000000000000000046.log"}, `"segments":1,"batches":0,"bytes":%d,"first":46,"next":46}`},
		{70, []string{"00000000000000000070.log"}, `"segments":1,"batches":0,"bytes":%d,"first":70,"next":70}`},
	} {
		dir, _ := logOnDisk(t)
		write(t, filepath.Dir(dir), kafkalog.LogStartCheckpointName, fmt.Appendf(nil, "0\n1\nor-ders 3 %d\n", test.start))
		to := filepath.Join(t.TempDir(), "or-ders-3")
		if err := os.Mkdir(to, 0o755); err != nil { // empty will do
			t.Fatal(err)
		}
		got := log(t, "export", dir, "--to", to, "--json")
		var segments []string
		size := 0
		for _, name := range names(t, to) {
			if strings.HasSuffix(name, ".log") {
				segments = append(segments, name)
				size += len(readFile(t, to, name))
			}
		}
		if got.code != 0 || !slices.Equal(segments, test.segments) || !strings.HasSuffix(got.out, fmt.Sprintf(test.json, size)+"\n") {
			t.Errorf("log start %d: %+v, %v", test.start, got, segments)
		}
		if got := log(t, "verify", to); got.code != 0 {
			t.Errorf("log start %d: %+v", test.start, got)
		}
	}
}

func TestLogExportRefuses(t *testing.T) {
	dir, starts := logOnDisk(t)
	full := t.TempDir()
	write(t, full, "something", nil)
	file := filepath.Join(full, "something")
	for name, test := range map[string]struct {
		to   string
		code int
		says string
	}{
		"a target with something in it": {full, 1, "is not empty: it has something; "},
		"a target that is a file":       {file, 1, "not a directory"},
		"a target below a file":         {filepath.Join(file, "x"), 1, "not a directory"},
		"the log itself":                {dir, 2, "name another directory"},
		"a target in the log":           {filepath.Join(dir, "x"), 2, "name another directory"},
	} {
		if got := log(t, "export", dir, "--to", test.to); got.code != test.code || got.out != "" || !strings.Contains(got.err, test.says) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for name, change := range map[string]func(b []byte) []byte{
		"a flipped bit": func(b []byte) []byte { b[starts[34]+80] ^= 1; return b },
		"a torn end":    func(b []byte) []byte { return b[:len(b)-1] },
		"another epoch": func(b []byte) []byte { b[starts[34]+15]++; return b },
	} {
		dir, _ := logOnDisk(t)
		spoil(t, dir, kafkalog.SegmentName(28), change)
		to := filepath.Join(t.TempDir(), "or-ders-3")
		got := log(t, "export", dir, "--to", to)
		if _, err := os.Stat(to); got.code != 1 || got.out != "" || err == nil || !strings.HasPrefix(got.err, kafkalog.SegmentName(28)+" position ") || !strings.Contains(got.err, "nothing was exported. Start the server on it") {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	// Damage in what is made anew is none.
	spoil(t, dir, kafkalog.IndexName(10), func(b []byte) []byte { return b[:3] })
	if got := log(t, "export", dir, "--to", filepath.Join(t.TempDir(), "x")); got.code != 0 {
		t.Errorf("a ragged index: %+v", got)
	}
}

// TestLogExportInterruptedLeavesNothing breaks off in the copying, after the verification.
func TestLogExportInterruptedLeavesNothing(t *testing.T) {
	path, _ := logOnDisk(t)
	d, err := listLog(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	parent := t.TempDir()
	x := &exporter{dir: d, next: 46}
	if err := x.to(ctx, filepath.Join(parent, "or-ders-3")); err == nil || !strings.Contains(err.Error(), "nothing was left there") {
		t.Error(err)
	}
	if left := names(t, parent); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if got := runWith(t, ctx, nil, "log", "export", path, "--to", filepath.Join(parent, "or-ders-3")); got.code != exitInterrupted {
		t.Errorf("%+v", got)
	}
}

func TestLogOfAnEmptyPartition(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "one-0")
	write(t, dir, kafkalog.SegmentName(0), nil)
	write(t, dir, kafkalog.EpochCheckpointName, []byte("0\n1\n0 0\n"))
	to := filepath.Join(t.TempDir(), "one-0")
	for _, args := range [][]string{{"verify", dir}, {"dump", dir, "--records"}, {"export", dir, "--to", to}, {"verify", to}} {
		if got := log(t, args...); got.code != 0 {
			t.Errorf("%v: %+v", args, got)
		}
	}
	if got := names(t, to); !slices.Equal(got, []string{"00000000000000000000.log", "leader-epoch-checkpoint"}) {
		t.Errorf("exported %v", got)
	}
}

func TestLogCommandsOnWhatIsNoLog(t *testing.T) {
	empty := t.TempDir()
	odd := t.TempDir()
	if err := os.Mkdir(filepath.Join(odd, kafkalog.SegmentName(0)), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"verify", "dump", "export"} {
		for dir, says := range map[string]string{empty: "has no segment", filepath.Join(empty, "x"): fs.ErrNotExist.Error()[:4], odd: "not a regular file"} {
			args := []string{command, dir}
			if command == "export" {
				args = append(args, "--to", filepath.Join(t.TempDir(), "x"))
			}
			if got := log(t, args...); got.code != 1 || !strings.Contains(got.err, says) && !strings.Contains(got.err, "no such file") {
				t.Errorf("%v: %+v", args, got)
			}
		}
	}
	for _, args := range []string{"", "nonsense", "dump", "dump a b", "verify", "verify a --records", "export a", "export --to b", "export a b --to c"} {
		if got := log(t, strings.Fields(args)...); got.code != 2 || got.out != "" {
			t.Errorf("log %s: %+v", args, got)
		}
	}
}
