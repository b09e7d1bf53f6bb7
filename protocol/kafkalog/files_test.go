package kafkalog

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func TestSegmentNames(t *testing.T) {
	for base, want := range map[record.Offset]string{
		0:             "00000000000000000000",
		17:            "00000000000000000017",
		math.MaxInt64: "09223372036854775807",
	} {
		if SegmentName(base) != want+".log" || IndexName(base) != want+".index" || TimeIndexName(base) != want+".timeindex" {
			t.Errorf("names of %d: %s %s %s", base, SegmentName(base), IndexName(base), TimeIndexName(base))
		}
		if got, ok := ParseSegmentName(SegmentName(base)); got != base || !ok {
			t.Errorf("%s reads as %d, %v", SegmentName(base), got, ok)
		}
	}
	for _, name := range []string{"", ".log", "0.log", "00000000000000000000", "00000000000000000000.index", "0000000000000000000x.log",
		"-0000000000000000001.log", "09223372036854775808.log", "99999999999999999999.log", "000000000000000000000.log", "00000000000000000000.log.deleted"} {
		if got, ok := ParseSegmentName(name); ok {
			t.Errorf("%q reads as %d", name, got)
		}
	}
}

func TestPartitionDirs(t *testing.T) {
	for _, test := range []struct {
		topic string
		id    partition.ID
		dir   string
	}{{"orders", 2, "orders-2"}, {"a-b-3", 0, "a-b-3-0"}, {"x.y_z", 2047, "x.y_z-2047"}, {"-", 1, "--1"}} {
		if got := PartitionDir(test.topic, test.id); got != test.dir {
			t.Errorf("got %q, want %q", got, test.dir)
		}
		if topic, id, ok := ParsePartitionDir(test.dir); topic != test.topic || id != test.id || !ok {
			t.Errorf("%q reads as %q, %d, %v", test.dir, topic, id, ok)
		}
	}
	for _, name := range []string{"", "-", "-1", "orders", "orders-", "orders-x", "orders-02", "orders-+2", "orders-2147483648", "orders-1-delete",
		"../x-1", "a/b-1", "recovery-point-offset-checkpoint", "x-99999999999999999999"} {
		if topic, id, ok := ParsePartitionDir(name); ok {
			t.Errorf("%q reads as %q, %d", name, topic, id)
		}
	}
}

func TestIndexEntries(t *testing.T) {
	want := IndexEntry{Last: 1005, Position: 4096}
	b, err := AppendIndexEntry(nil, 1000, want)
	if err != nil || !slices.Equal(b, []byte{0, 0, 0, 5, 0, 0, 0x10, 0}) {
		t.Fatalf("% x, %v", b, err)
	}
	if got, err := ParseIndexEntry(b, 1000); got != want || err != nil {
		t.Errorf("reads as %+v, %v", got, err)
	}
	for name, e := range map[string]IndexEntry{"below": {Last: 999}, "far": {Last: 1001 + math.MaxInt32}, "position": {Last: 1000, Position: 1 << 31}, "negative": {Last: 1000, Position: -1}} {
		if b, err := AppendIndexEntry(nil, 1000, e); !errors.Is(err, ErrIndex) || len(b) != 0 {
			t.Errorf("%s: % x, %v", name, b, err)
		}
	}
	for name, b := range map[string][]byte{"short": make([]byte, 7), "offset": {0x80, 0, 0, 0, 0, 0, 0, 0}, "position": {0, 0, 0, 0, 0x80, 0, 0, 0}} {
		if e, err := ParseIndexEntry(b, 0); !errors.Is(err, ErrIndex) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
	if _, err := ParseIndexEntry([]byte{0, 0, 0, 1, 0, 0, 0, 0}, math.MaxInt64); !errors.Is(err, ErrIndex) {
		t.Errorf("beyond the last offset: %v", err)
	}
}

func TestTimeIndexEntries(t *testing.T) {
	want := TimeIndexEntry{MaxTimestamp: -2, Last: 1005}
	b, err := AppendTimeIndexEntry(nil, 1000, want)
	if err != nil || !slices.Equal(b, []byte{255, 255, 255, 255, 255, 255, 255, 254, 0, 0, 0, 5}) {
		t.Fatalf("% x, %v", b, err)
	}
	if got, err := ParseTimeIndexEntry(b, 1000); got != want || err != nil {
		t.Errorf("reads as %+v, %v", got, err)
	}
	if _, err := AppendTimeIndexEntry(nil, 1000, TimeIndexEntry{Last: 999}); !errors.Is(err, ErrIndex) {
		t.Errorf("an offset below the base: %v", err)
	}
	for name, b := range map[string][]byte{"short": make([]byte, 11), "offset": {0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0}} {
		if e, err := ParseTimeIndexEntry(b, 0); !errors.Is(err, ErrIndex) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
}

func TestPartitionMetadata(t *testing.T) {
	// What Kafka writes for the UUID 00112233-4455-6677-8899-aabbccddeeff.
	const id, text = "00112233445566778899aabbccddeeff", "version: 0\ntopic_id: ABEiM0RVZneImaq7zN3u_w\n"
	got, err := PartitionMetadata(id)
	if err != nil || string(got) != text {
		t.Errorf("writes %q, %v", got, err)
	}
	for _, text := range []string{text, "version: 0\r\ntopic_id: ABEiM0RVZneImaq7zN3u_w", "topic_id: ABEiM0RVZneImaq7zN3u_w\nversion: 0\n"} {
		if back, err := ParsePartitionMetadata([]byte(text)); back != id || err != nil {
			t.Errorf("%q reads as %q, %v", text, back, err)
		}
	}
	for _, id := range []string{"", "00", id + "00", "x0112233445566778899aabbccddeeff"} {
		if text, err := PartitionMetadata(id); !errors.Is(err, ErrPartitionMetadata) {
			t.Errorf("%q writes %q, %v", id, text, err)
		}
	}
	for _, text := range []string{"", "version: 0\n", "version: 1\ntopic_id: ABEiM0RVZneImaq7zN3u_w\n", "version: 0\ntopic_id: ABEiM0RVZneImaq7zN3u\n",
		"version: 0\ntopic_id: ABEiM0RVZneImaq7zN3u/w\n", "version: 0\ntopic_id: ABEiM0RVZneImaq7zN3u_x\n", "topic_id: ABEiM0RVZneImaq7zN3u_w\n",
		"version: 0\nversion: 0\ntopic_id: ABEiM0RVZneImaq7zN3u_w\n", "\x00\x00\x00\x00", "version 0\n"} {
		if id, err := ParsePartitionMetadata([]byte(text)); !errors.Is(err, ErrPartitionMetadata) {
			t.Errorf("%q reads as %q, %v", text, id, err)
		}
	}
}

func TestEpochsReadBackAsWritten(t *testing.T) {
	for text, epochs := range map[string]Epochs{
		"0\n0\n": {},
		"0\n3\n0 0\n2 17\n9 9223372036854775807\n": {{0, 0}, {2, 17}, {9, math.MaxInt64}},
	} {
		if got := string(epochs.AppendText(nil)); got != text {
			t.Errorf("writes %q, want %q", got, text)
		}
		if got, err := ParseEpochs([]byte(text)); !slices.Equal(got, epochs) || err != nil {
			t.Errorf("%q reads as %v, %v", text, got, err)
		}
	}
}

func TestParseEpochsRefuses(t *testing.T) {
	for _, text := range []string{"", "0", "0\n", "1\n0\n", "0\nx\n", "0\n1\n", "0\n0\n1 1\n", "0\n-1\n", "0\n1\n1\n", "0\n1\n1 \n", "0\n1\n1 -1\n", "0\n1\n-1 1\n",
		"0\n1\n2147483648 0\n", "0\n1\n0 9223372036854775808\n", "0\n2\n1 0\n1 5\n", "0\n2\n1 5\n2 5\n", "0\n2\n2 0\n1 5\n", "0\n1\n1 1 1\n", "0\n1\n1  1\n", "0\n1\n1 1\n\n", "\x00\x00"} {
		if e, err := ParseEpochs([]byte(text)); !errors.Is(err, ErrEpochs) {
			t.Errorf("%q reads as %v, %v", text, e, err)
		}
	}
}

func TestEpochFor(t *testing.T) {
	e := Epochs{{2, 10}, {5, 20}}
	for o, want := range map[record.Offset]record.Epoch{10: 2, 19: 2, 20: 5, math.MaxInt64: 5} {
		if got, ok := e.EpochFor(o); got != want || !ok {
			t.Errorf("offset %d has epoch %d, %v", o, got, ok)
		}
	}
	if got, ok := e.EpochFor(9); got != -1 || ok {
		t.Errorf("before the first: %d, %v", got, ok)
	}
	if got, ok := (Epochs)(nil).Latest(); got.Epoch != -1 || ok {
		t.Errorf("of none: %v, %v", got, ok)
	}
}

func TestAssignAndClip(t *testing.T) {
	e := Epochs{{1, 0}, {3, 10}}
	before := slices.Clone(e)
	for _, test := range []struct {
		name string
		EpochEntry
		want Epochs
		ok   bool
	}{
		{"newer", EpochEntry{4, 12}, Epochs{{1, 0}, {3, 10}, {4, 12}}, true},
		{"newer, the last one without a record", EpochEntry{4, 10}, Epochs{{1, 0}, {4, 10}}, true},
		{"newer at the beginning", EpochEntry{4, 0}, Epochs{{4, 0}}, true},
		{"the same", EpochEntry{3, 12}, e, false},
		{"older", EpochEntry{2, 12}, e, false},
		{"no epoch", EpochEntry{-1, 12}, e, false},
	} {
		if got, ok := e.Assign(test.Epoch, test.Start); !slices.Equal(got, test.want) || ok != test.ok {
			t.Errorf("%s: %v, %v", test.name, got, ok)
		}
	}
	for end, want := range map[record.Offset]Epochs{0: {}, 1: {{1, 0}}, 10: {{1, 0}}, 11: e} {
		if got := e.ClipEnd(end); !slices.Equal(got, want) {
			t.Errorf("clipped at %d: %v", end, got)
		}
	}
	if !slices.Equal(e, before) {
		t.Errorf("the receiver became %v", e)
	}
	if got, ok := (Epochs)(nil).Assign(0, 0); !slices.Equal(got, Epochs{{0, 0}}) || !ok {
		t.Errorf("the first: %v, %v", got, ok)
	}
}

func FuzzParseEpochs(f *testing.F) {
	f.Add([]byte("0\n2\n0 0\n3 17\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := ParseEpochs(text)
		if err != nil {
			return
		}
		if again, err := ParseEpochs(e.AppendText(nil)); !slices.Equal(e, again) || err != nil {
			t.Fatalf("%v became %v, %v", e, again, err)
		}
	})
}

func FuzzParsePartitionMetadata(f *testing.F) {
	f.Add([]byte("version: 0\ntopic_id: ABEiM0RVZneImaq7zN3u_w\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		id, err := ParsePartitionMetadata(text)
		if err != nil {
			return
		}
		again, err := PartitionMetadata(id)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ParsePartitionMetadata(again); back != id || err != nil {
			t.Fatalf("%s became %s, %v", id, back, err)
		}
	})
}
