package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// fillWith publishes count numbered records of size bytes to an address, in small batches.
func fillWith(ctx context.Context, t *testing.T, c *trunkline.Client, address string, count, size int) {
	t.Helper()
	p, err := c.NewProducer(trunkline.WithBatchBytes(4<<10), trunkline.WithLinger(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	for i := range count {
		value := append(strconv.AppendInt(nil, int64(i), 10), bytes.Repeat([]byte{' '}, size)...)
		if err := p.Produce(ctx, address, &trunkline.Message{Value: value}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// spoil overwrites the header of the batch that holds a record, in a partition's only segment, and returns the batch's offsets.
func spoil(t *testing.T, s *server, partition string, record int) (from, to int64) {
	t.Helper()
	path := filepath.Join(s.Data, "logs", partition, fmt.Sprintf("%020d.log", 0))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, fmt.Appendf(nil, "%d    ", record))
	if at < 0 {
		t.Fatalf("%s does not hold record %d", path, record)
	}
	const header, lengthAt, deltaAt, magicAt = 61, 8, 23, 16
	number := func(b []byte) (n int64) {
		for _, c := range b {
			n = n<<8 | int64(c)
		}
		return n
	}
	for start := 0; start+header <= len(data); {
		size := lengthAt + 4 + int(number(data[start+lengthAt:][:4]))
		if at >= start+size {
			start += size
			continue
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if _, err := f.WriteAt([]byte{0x7f, 0x7f, 0x7f, 0x7f}, int64(start+lengthAt)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{0x7f}, int64(start+magicAt)); err != nil {
			t.Fatal(err)
		}
		from = number(data[start:][:8])
		return from, from + number(data[start+deltaAt:][:4]) + 1
	}
	t.Fatal("no batch holds it")
	return 0, 0
}

// TestADamagedHeaderStopsItsPartitionAloneUntilASeek damages the disk under a running server.
func TestADamagedHeaderStopsItsPartitionAloneUntilASeek(t *testing.T) {
	s := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*harness.Patience)
	defer cancel()
	c := s.dial(ctx, t)
	if err := c.CreateTopic(ctx, "t", trunkline.TopicConfig{Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	const records = 3000
	fillWith(ctx, t, c, "t/0", records, 100)
	from, to := spoil(t, s, "t-0", 300)
	r, err := c.NewConsumer(ctx, []string{"t@earliest"}, trunkline.WithFetchBytes(8<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	next := map[trunkline.PartitionID]int64{}
	poll := func() error {
		some, err := r.Poll(ctx, records)
		for i := range some {
			if got := &some[i]; int64(got.Offset) != next[got.Partition] {
				t.Fatalf("t/%d@%d came, where %d was to come", got.Partition, got.Offset, next[got.Partition])
			}
			next[some[i].Partition]++
		}
		return err
	}
	for err == nil {
		err = poll()
	}
	var damage *trunkline.CorruptError
	if !errors.As(err, &damage) || !errors.Is(err, trunkline.ErrCorrupt) || damage.Topic != "t" || damage.Partition != 0 || damage.To != -1 ||
		int64(damage.From) != next[0] || int64(damage.From) != from {
		t.Fatalf("behind %d records, in front of damage at %d: %v", next[0], from, err)
	}
	if list := r.Partitions(); !list[0].Damaged || list[1].Damaged {
		t.Errorf("%+v", list)
	}
	fillWith(ctx, t, c, "t/1", 10, 100)
	for next[1] < 10 {
		if err := poll(); err != nil { // the other partition goes on, and nothing is told twice
			t.Fatal(err)
		}
	}
	for next[0] = -1; next[0] < records; to += 100 {
		if to >= records {
			t.Fatal("nothing can be read behind the damage")
		}
		if err := r.Seek(ctx, fmt.Sprintf("t/0@%d", to)); err != nil {
			t.Fatal(err)
		}
		next[0] = to
		for err = nil; err == nil && next[0] < records; {
			err = poll()
		}
		if err != nil && !errors.As(err, &damage) || next[0] > to && err != nil {
			t.Fatal(err)
		}
	}
	// Who reads to the end is told, and not left waiting.
	end, err := c.NewConsumer(ctx, []string{"t/0@earliest"}, trunkline.UntilLatest())
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	told := 0
	for err = nil; !errors.Is(err, io.EOF); {
		if _, err = end.Poll(ctx, records); errors.Is(err, trunkline.ErrCorrupt) {
			told++
		} else if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	if told != 1 {
		t.Errorf("the damage was told %d times", told)
	}
}

// TestAConsumerOvertakenByRetentionIsToldTheGap stands still while the server removes what it would read next.
func TestAConsumerOvertakenByRetentionIsToldTheGap(t *testing.T) {
	s := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*harness.Patience)
	defer cancel()
	c := s.dial(ctx, t)
	err := c.CreateTopic(ctx, "t", trunkline.TopicConfig{Partitions: 1, Settings: map[string]string{"segment.bytes": "64KiB", "retention.bytes": "128KiB"}})
	if err != nil {
		t.Fatal(err)
	}
	fillWith(ctx, t, c, "t", 100, 100)
	r, err := c.NewConsumer(ctx, []string{"t@earliest"}, trunkline.WithPrefetchBytes(1), trunkline.WithFetchBytes(1))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	first, err := r.Poll(ctx, 1)
	if err != nil || first[0].Offset != 0 {
		t.Fatalf("%v, %v", first, err)
	}
	fillWith(ctx, t, c, "t", 4000, 100)
	fillWith(ctx, t, c, "t", 1, 100) // so that there is one behind what retention leaves
	start := func() trunkline.PartitionOffset {
		list, err := c.Offsets(ctx, "t@earliest")
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		return list[0]
	}
	harness.Eventually(t, "retention takes what would be read next", func() bool { return start().LogStart > 1000 })
	end := start().HighWatermark
	next, gaps := first[0].Offset+1, 0
	for next < end {
		some, err := r.Poll(ctx, 1000)
		var gap *trunkline.GapError
		if errors.As(err, &gap) {
			if gap.From != next || gap.To <= gap.From || gap.Topic != "t" || !errors.Is(err, trunkline.ErrOffsetOutOfRange) {
				t.Fatalf("where %d was to come: %+v", next, gap)
			}
			next, gaps = gap.To, gaps+1
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for i := range some {
			if some[i].Offset != next {
				t.Fatalf("%d came, where %d was to come", some[i].Offset, next)
			}
			next++
		}
	}
	if gaps == 0 {
		t.Error("nothing was told")
	}
}
