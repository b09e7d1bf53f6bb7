package trunkline

import (
	"bytes"
	"fmt"
	"runtime"
	"strconv"
	"testing"
)

const variedRecords = 3000

// varied fills a topic with records of all sizes and shapes, each of which says its number wherever something stands.
func varied(t *testing.T, c *Client, topic string, codec Codec) {
	t.Helper()
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, topic, TopicConfig{Partitions: 2}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c, WithCompression(codec), WithBatchBytes(300<<10))
	for i := range variedRecords {
		if err := p.Produce(ctx, topic+"/"+strconv.Itoa(i%2), variedMessage(i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

func variedMessage(i int) *Message {
	m := &Message{Value: bytes.Repeat([]byte{byte(i)}, i*31%3000)}
	if i%3 == 0 {
		m.Key = strconv.AppendInt(nil, int64(i), 10)
	}
	for h := range i % 4 {
		m.Headers = append(m.Headers, Header{Name: "H" + strconv.Itoa(h), Value: strconv.AppendInt(nil, int64(i), 10)})
	}
	return m
}

// sameAs compares a record with what was sent.
func sameAs(r *Record, m *Message) error {
	same := bytes.Equal(r.Value, m.Value) && bytes.Equal(r.Key, m.Key) && (r.Key == nil) == (m.Key == nil) && len(r.Headers) == len(m.Headers)
	for i := 0; same && i < len(m.Headers); i++ {
		same = r.Headers[i].Name == m.Headers[i].Name && bytes.Equal(r.Headers[i].Value, m.Headers[i].Value)
	}
	if !same {
		return fmt.Errorf("%s/%d@%d: %q, %d bytes, headers %v, where %q, %d bytes, %v were sent", r.Topic, r.Partition, r.Offset, r.Key, len(r.Value), r.Headers, m.Key, len(m.Value), m.Headers)
	}
	return nil
}

func TestReusedRecordsAreWholeUntilTheNext(t *testing.T) {
	_, c := fake(t, nil)
	for _, codec := range []Codec{NoCompression, Zstd} {
		topic := fmt.Sprintf("t%d", codec)
		varied(t, c, topic, codec)
		for _, poll := range []int{0, 1, 1000} {
			r := consumer(t, c, []string{topic + "@earliest"}, ReuseRecords(), WithFetchBytes(600<<10), WithPrefetchBytes(600<<10))
			n := 0
			check := func(rec *Record) {
				n++
				if err := sameAs(rec, variedMessage(int(rec.Offset)*2+int(rec.Partition))); err != nil {
					t.Fatalf("polled by %d: %v", poll, err)
				}
			}
			for n < variedRecords && poll > 0 {
				some, err := r.Poll(longContext(t), poll)
				if err != nil {
					t.Fatal(err)
				}
				for i := range some {
					check(&some[i])
				}
			}
			if poll == 0 {
				for rec, err := range r.Records(longContext(t)) {
					if err != nil {
						t.Fatal(err)
					}
					if check(rec); n == variedRecords {
						break
					}
				}
			}
			r.Close()
		}
	}
}

// TestReusedRecordsCostNoMemory reads more than is ever there at a time. A pool loses some of what it is given, with -race a
// quarter, and the fake server is in this process: so it is compared with what the same costs without.
func TestReusedRecordsCostNoMemory(t *testing.T) {
	_, c := fake(t, nil)
	ctx := longContext(t)
	if err := c.CreateTopic(ctx, "t", TopicConfig{}); err != nil {
		t.Fatal(err)
	}
	p := producer(t, c)
	const megabytes = 48
	for range megabytes << 10 {
		if err := p.Produce(ctx, "t", &Message{Value: make([]byte, 1000)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	allocated := func(opts ...ConsumerOption) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r := consumer(t, c, []string{"t@earliest"}, append(opts, UntilLatest(), WithFetchBytes(1<<20), WithPrefetchBytes(2<<20))...)
		n := 0
		for _, err := range r.Records(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		r.Close()
		runtime.ReadMemStats(&after)
		if n != megabytes<<10 {
			t.Fatalf("%d records", n)
		}
		return after.TotalAlloc - before.TotalAlloc
	}
	allocated()
	with, without := allocated(ReuseRecords()), allocated()
	t.Logf("%d bytes with, %d without", with, without)
	if saved := int64(without) - int64(with); saved < megabytes<<20/3 {
		t.Errorf("%d bytes with, %d without: %d saved of %d MiB", with, without, saved, megabytes)
	}
}
