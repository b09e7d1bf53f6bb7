package trunkline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// span is the numbers [lo, hi).
type span struct{ lo, hi int }

// fill publishes numbers to the partitions of a topic in turn; a topic that gets the first one is made.
func fill(t testing.TB, c *Client, topic string, partitions int, numbers span) {
	t.Helper()
	ctx := longContext(t)
	if numbers.lo == 0 {
		if err := c.CreateTopic(ctx, topic, TopicConfig{Partitions: partitions}); err != nil {
			t.Fatal(err)
		}
	}
	p := producer(t, c, WithBatchBytes(1024))
	for i := numbers.lo; i < numbers.hi; i++ {
		if err := p.Produce(ctx, fmt.Sprintf("%s/%d", topic, i%partitions), &Message{Value: []byte(strconv.Itoa(i))}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

func consumer(t testing.TB, c *Client, addresses []string, opts ...ConsumerOption) *Consumer {
	t.Helper()
	r, err := c.NewConsumer(longContext(t), addresses, append([]ConsumerOption{WithFetchWait(50 * time.Millisecond)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// take reads n records and checks that each partition's come in order, each once.
func take(t testing.TB, r *Consumer, n int) []Record {
	t.Helper()
	var all []Record
	if n == 0 {
		return nil
	}
	next := map[place]Offset{}
	for rec, err := range r.Records(longContext(t)) {
		if err != nil {
			t.Fatalf("after %d of %d records: %v", len(all), n, err)
		}
		at := place{rec.Topic, rec.Partition}
		if want, ok := next[at]; ok && rec.Offset != want {
			t.Fatalf("%v: offset %d, want %d", at, rec.Offset, want)
		}
		next[at] = rec.Offset + 1
		if all = append(all, *rec); len(all) == n {
			break
		}
	}
	return all
}

func TestConsumersGoOnWhereTheirPositionsSay(t *testing.T) {
	_, c := fake(t, nil)
	fill(t, c, "t", 3, span{0, 3000})
	fill(t, c, "u", 1, span{0, 10})
	first := consumer(t, c, []string{"t@earliest", "u/0@7"})
	got := take(t, first, 1500)
	second := consumer(t, c, first.Positions())
	got = append(got, take(t, second, 1503)...)
	seen := map[string]bool{}
	for _, r := range got {
		seen[r.Topic+"/"+string(r.Value)] = true
	}
	if len(got) != 3003 || len(seen) != 3003 {
		t.Errorf("%d records, %d different ones", len(got), len(seen))
	}
	if want := []string{"t/0@1000", "t/1@1000", "t/2@1000", "u/0@10"}; !slices.Equal(second.Positions(), want) {
		t.Errorf("%q, want %q", second.Positions(), want)
	}
	for _, p := range second.Partitions() {
		if p.Position != p.HighWatermark {
			t.Errorf("%+v", p)
		}
	}
	fill(t, c, "t", 3, span{3000, 3010}) // what comes later comes, too
	take(t, second, 10)
}

func TestConsumersFromNowSeeWhatComesThen(t *testing.T) {
	_, c := fake(t, nil)
	fill(t, c, "t", 2, span{0, 100})
	r := consumer(t, c, []string{"t"})
	fill(t, c, "t", 2, span{100, 110})
	for _, rec := range take(t, r, 10) {
		if n, _ := strconv.Atoi(string(rec.Value)); n < 100 {
			t.Errorf("record %d was there before", n)
		}
	}
}

func TestPollReturnsWhatIsThere(t *testing.T) {
	_, c := fake(t, nil)
	fill(t, c, "t", 1, span{0, 100})
	r := consumer(t, c, []string{"t/0@earliest"}, UntilLatest())
	ctx := longContext(t)
	next := 0
	for {
		some, err := r.Poll(ctx, 7)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || len(some) == 0 || len(some) > 7 {
			t.Fatal(len(some), err)
		}
		for _, rec := range some {
			if string(rec.Value) != strconv.Itoa(next) {
				t.Fatalf("%s, want %d", rec.Value, next)
			}
			next++
		}
	}
	if next != 100 {
		t.Errorf("%d records", next)
	}
	if _, err := r.Poll(ctx, 0); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func TestSeekPauseAndResume(t *testing.T) {
	_, c := fake(t, nil)
	fill(t, c, "t", 2, span{0, 2000})
	ctx := longContext(t)
	r := consumer(t, c, []string{"t@earliest"})
	take(t, r, 100)
	if err := r.Seek(ctx, "t/1@900"); err != nil {
		t.Fatal(err)
	}
	if err := r.Pause("t/0"); err != nil {
		t.Fatal(err)
	}
	got := take(t, r, 100)
	if got[0].Partition != 1 || got[0].Offset != 900 || got[99].Offset != 999 {
		t.Errorf("%+v to %+v", got[0], got[99])
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if some, err := r.Poll(short, 10); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a partition that is paused: %d records, %v", len(some), err)
	}
	at := r.Partitions()[0]
	if !at.Paused {
		t.Errorf("%+v", at)
	}
	if err := r.Resume("t"); err != nil {
		t.Fatal(err)
	}
	if got := take(t, r, 10); got[0].Partition != 0 || got[0].Offset != at.Position {
		t.Errorf("it goes on at %+v, not at %+v", got[0], at)
	}
	for _, bad := range []string{"t", "u@earliest", "t/0@99999", "t#k@1", "a b"} {
		if err := r.Seek(ctx, bad); err == nil {
			t.Errorf("seek %s is taken", bad)
		}
	}
	if err := r.Pause("t@3"); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if err := r.Pause("u"); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

// TestSeekEndsALongPoll would wait for the poll's end otherwise.
func TestSeekEndsALongPoll(t *testing.T) {
	_, c := fake(t, nil)
	fill(t, c, "t", 1, span{0, 10})
	r := consumer(t, c, []string{"t"}, WithFetchWait(time.Minute))
	ctx := longContext(t)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := r.Poll(short, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if err := r.Seek(ctx, "t@earliest"); err != nil {
		t.Fatal(err)
	}
	take(t, r, 10)
}

func TestNewPartitionsAreConsumedFromTheirFirstRecord(t *testing.T) {
	_, c := fake(t, nil, WithMetadataAge(20*time.Millisecond))
	fill(t, c, "t", 1, span{0, 10})
	ctx := longContext(t)
	r := consumer(t, c, []string{"t"})
	if err := c.AlterTopic(ctx, "t", map[string]string{"partitions": "3", "accept_reorder": "true"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PublishSync(ctx, "t/2", &Message{Value: []byte("new")}); err != nil {
		t.Fatal(err)
	}
	if got := take(t, r, 1); got[0].Partition != 2 || got[0].Offset != 0 {
		t.Errorf("%+v", got)
	}
}

func TestADeletedTopicIsToldAndComesBack(t *testing.T) {
	_, c := fake(t, nil, WithMetadataAge(20*time.Millisecond))
	fill(t, c, "t", 1, span{0, 10})
	ctx := longContext(t)
	r := consumer(t, c, []string{"t@earliest"})
	take(t, r, 10)
	if err := c.DeleteTopic(ctx, "t"); err != nil {
		t.Fatal(err)
	}
	var notice *ServerError
	if _, err := r.Poll(ctx, 1); !errors.As(err, &notice) || notice.Code != errcode.TopicDeleted || !notice.Async {
		t.Fatal(err)
	}
	fill(t, c, "t", 1, span{0, 5})
	if got := take(t, r, 5); got[0].Offset != 0 {
		t.Errorf("%+v", got[0])
	}
}

// TestATopicThatWasMadeAnewUnseenIsReadFromItsStart: it was deleted and filled again while nothing was asked of it.
func TestATopicThatWasMadeAnewUnseenIsReadFromItsStart(t *testing.T) {
	for name, now := range map[string]int{"shorter": 3, "longer": 20} {
		t.Run(name, func(t *testing.T) {
			s, c := fake(t, nil, WithMetadataAge(time.Hour))
			ctx := longContext(t)
			fill(t, c, "t", 1, span{0, 10})
			r := consumer(t, c, []string{"t@earliest"})
			take(t, r, 10)
			if err := r.Pause("t"); err != nil {
				t.Fatal(err)
			}
			<-time.After(50 * time.Millisecond) // the FETCH that waits has ended; where it has not, it is told
			if err := c.DeleteTopic(ctx, "t"); err != nil {
				t.Fatal(err)
			}
			fill(t, c, "t", 1, span{0, now})
			if now > 10 {
				s.Disconnect()
			}
			if err := r.Resume("t"); err != nil {
				t.Fatal(err)
			}
			told := false
			for rec, err := range r.Records(ctx) {
				if err == nil {
					if !told || rec.Offset != 0 {
						t.Errorf("told %v, then record %d", told, rec.Offset)
					}
					return
				}
				told = told || hasCode(err, errcode.TopicDeleted)
			}
		})
	}
}

// TestASeekToTheEndEndsWhoReadsUntilLatest, also one that waits.
func TestASeekToTheEndEndsWhoReadsUntilLatest(t *testing.T) {
	_, c := fake(t, nil)
	ctx := longContext(t)
	fill(t, c, "t", 1, span{0, 10})
	r := consumer(t, c, []string{"t@earliest"}, UntilLatest())
	if err := r.Pause("t"); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = r.Seek(ctx, "t@latest") })
	if _, err := r.Poll(ctx, 1); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

func TestRecordsThatWereRemovedAreAGap(t *testing.T) {
	_, c := fake(t, nil)
	fill(t, c, "t", 1, span{0, 1000})
	ctx := longContext(t)
	r := consumer(t, c, []string{"t@earliest"}, WithPrefetchBytes(1), WithFetchBytes(1))
	got := take(t, r, 1)
	if _, err := c.TrimTopic(ctx, "t/0@900"); err != nil {
		t.Fatal(err)
	}
	var gap *GapError
	for rec, err := range r.Records(ctx) {
		if err != nil {
			if !errors.As(err, &gap) || !errors.Is(err, ErrOffsetOutOfRange) {
				t.Fatal(err)
			}
			continue
		}
		if got = append(got, *rec); rec.Offset == 999 {
			break
		}
	}
	if gap == nil || gap.To != 900 || gap.From != got[int(gap.From)-1].Offset+1 || got[gap.From].Offset != 900 {
		t.Errorf("%+v", gap)
	}
}

func TestConsumersOutliveConnections(t *testing.T) {
	s, c := fake(t, nil)
	fill(t, c, "t", 3, span{0, 6000})
	r := consumer(t, c, []string{"t@earliest"}, WithFetchBytes(2000), WithPrefetchBytes(8000))
	ctx := longContext(t)
	seen := map[string]int{}
	for rec, err := range r.Records(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		seen[string(rec.Value)]++
		if len(seen)%1000 == 0 {
			s.Fail(errcode.StorageUnavailable, 1, line.Fetch)
			s.Disconnect()
		}
		if len(seen) == 6000 {
			break
		}
	}
	for v, n := range seen {
		if n != 1 {
			t.Errorf("record %s came %d times", v, n)
		}
	}
}

func TestPrefetchIsBounded(t *testing.T) {
	_, c := fake(t, nil)
	fill(t, c, "t", 1, span{0, 20_000})
	r := consumer(t, c, []string{"t@earliest"}, WithPrefetchBytes(10_000), WithFetchBytes(4000))
	take(t, r, 1)
	deadline := time.Now().Add(patience)
	for r.Buffered() < 6000 { // it reads ahead
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are buffered", r.Buffered())
		}
		take(t, r, 1)
	}
	for range 50 {
		take(t, r, 100)
		if n := r.Buffered(); n > 10_000+2048 { // and a batch, of which the first comes whatever its size
			t.Fatalf("%d bytes are buffered", n)
		}
	}
}

func TestManyPartitionsAreAskedForInJSON(t *testing.T) {
	_, c := fake(t, nil)
	name := strings.Repeat("long-name.", 15) + "x"
	fill(t, c, name, 100, span{0, 1000})
	r := consumer(t, c, []string{name + "@earliest"}, UntilLatest())
	if got := take(t, r, 1000); len(got) != 1000 {
		t.Errorf("%d records", len(got))
	}
}

func TestConsumersRefuseWhatCannotBe(t *testing.T) {
	_, c := fake(t, nil)
	fill(t, c, "t", 1, span{0, 10})
	ctx := longContext(t)
	for addr, want := range map[string]error{
		"nothere": ErrNotFound, "t/4": ErrNotFound, "t@77": ErrOffsetOutOfRange, "t.*": ErrInvalid, "t#k": ErrInvalid, "a b": ErrInvalid, "": ErrInvalid,
	} {
		if _, err := c.NewConsumer(ctx, []string{addr}); !errors.Is(err, want) {
			t.Errorf("%q: %v; want %v", addr, err, want)
		}
	}
	if _, err := c.NewConsumer(ctx, nil); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	r := consumer(t, c, []string{"t@earliest"})
	for range r.Records(ctx) {
		if _, err := r.Poll(ctx, 1); !errors.Is(err, ErrInvalid) {
			t.Errorf("two at once: %v", err)
		}
		break
	}
	short, cancel := context.WithCancelCause(ctx)
	mine := errors.New("mine")
	cancel(mine)
	if _, err := r.Poll(short, 1); !errors.Is(err, mine) {
		t.Error(err)
	}
	r.Close()
	r.Close()
	if _, err := r.Poll(ctx, 1); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestCloseWakesAConsumerThatWaits(t *testing.T) {
	_, c := fake(t, nil)
	fill(t, c, "t", 1, span{0, 1})
	r := consumer(t, c, []string{"t@earliest"})
	var last error
	for _, err := range r.Records(longContext(t)) {
		if last = err; err == nil {
			time.AfterFunc(10*time.Millisecond, r.Close)
		}
	}
	if !errors.Is(last, ErrClosed) {
		t.Error(last)
	}
}

// TestDamageIsToldAndPassedOver hands the consumer's unpacking a chunk in which the middle batch is damaged.
func TestDamageIsToldAndPassedOver(t *testing.T) {
	var all []byte
	for i := range 3 {
		var b record.Builder
		b.Reset(nil)
		b.Append(&record.Record{Value: []byte(strconv.Itoa(2 * i))})
		b.Append(&record.Record{Value: []byte(strconv.Itoa(2*i + 1))})
		all = append(all, b.Finish(Offset(2*i), 0)...)
	}
	all[len(all)/2+5] ^= 1
	_, c := fake(t, nil)
	fill(t, c, "t", 1, span{0, 1})
	r := consumer(t, c, []string{"t@latest"})
	r.mu.Lock()
	p := r.parts[0]
	p.position.Store(0)
	r.push(&chunk{part: p, turn: p.turn.Load(), bytes: all, end: -1, size: int64(len(all))})
	r.mu.Unlock()
	var got []string
	for rec, err := range r.Records(longContext(t)) {
		if err != nil {
			var damage *CorruptError
			if !errors.As(err, &damage) || !errors.Is(err, ErrCorrupt) || !errors.Is(err, record.ErrCRC) || damage.From != 2 || damage.To != 4 {
				t.Fatal(err)
			}
			if at := r.Positions()[0]; at != "t/0@4" {
				t.Errorf("behind the damage the position is %s", at)
			}
			got = append(got, "damage")
			continue
		}
		if got = append(got, string(rec.Value)); len(got) == 5 {
			break
		}
	}
	if want := []string{"0", "1", "damage", "4", "5"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestConsumingAllocatesLessThanOncePerRecord(t *testing.T) {
	_, c := fake(t, nil)
	const records = 20_000
	ctx := longContext(t)
	for _, codec := range []Codec{NoCompression, Zstd} {
		topic := fmt.Sprintf("t%d", codec)
		if err := c.CreateTopic(ctx, topic, TopicConfig{}); err != nil {
			t.Fatal(err)
		}
		p := producer(t, c, WithCompression(codec), WithBatchBytes(64<<10))
		for range records {
			m := Message{Key: []byte("key"), Value: make([]byte, 100), Headers: []Header{{"A", []byte("1")}}}
			if err := p.Produce(ctx, topic, &m, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Close(ctx); err != nil {
			t.Fatal(err)
		}
		n := testing.AllocsPerRun(3, func() {
			if got := len(readThrough(t, c, topic)); got != records {
				t.Fatalf("%d records", got)
			}
		})
		// Of both sides: the fake server runs in this process.
		if n > records/4 {
			t.Errorf("codec %d: %v allocations for %d records", codec, n, records)
		}
	}
}

func readThrough(t testing.TB, c *Client, topic string) []Offset {
	r, err := c.NewConsumer(longContext(t), []string{topic + "@earliest"}, UntilLatest())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all := make([]Offset, 0, 20_000)
	for rec, err := range r.Records(longContext(t)) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rec.Offset)
	}
	return all
}

// TestDependencies keeps the client small: who imports it gets the protocol and the codecs, and nothing of a server.
func TestDependencies(t *testing.T) {
	out, err := exec.CommandContext(longContext(t), "go", "list", "-deps", ".", "./tlfake").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const ours = "github.com/trunkline-mq/trunkline/"
	for _, dep := range strings.Fields(string(out)) {
		first, _, _ := strings.Cut(dep, "/")
		mine := strings.HasPrefix(dep, ours)
		switch {
		case mine && (strings.HasPrefix(dep, ours+"protocol/") && dep != ours+"protocol/pluginpb" || strings.HasPrefix(dep, ours+"clients/")):
		case mine, strings.Contains(dep, "grpc"), strings.Contains(dep, "viper"), strings.Contains(dep, "go-plugin"), strings.Contains(dep, "protobuf"):
			t.Errorf("it depends on %s", dep)
		case strings.Contains(first, ".") && !strings.HasPrefix(dep, "github.com/klauspost/compress") && !strings.HasPrefix(dep, "github.com/pierrec/lz4/"):
			t.Errorf("it depends on %s, which is not among what it may", dep)
		}
	}
}
