package conn

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
	"github.com/trunkline-mq/trunkline/server/internal/cursor"
	"github.com/trunkline-mq/trunkline/server/internal/partition"
)

// shelf is a log in memory, of batches of one record.
type shelf struct {
	partition.Log
	end record.Offset
}

func (s *shelf) End() record.Offset { return s.end }

func (s *shelf) Durable() record.Offset { return s.end }

func (s *shelf) Epoch() record.Epoch { return 0 }

func (s *shelf) Stats() lend.Stats { return lend.Stats{Confirmed: s.end} }

func (s *shelf) Append(_ context.Context, g lend.Group) error {
	s.end = g.Next
	return nil
}

func (s *shelf) Reader(_ context.Context, from record.Offset) (partition.Reader, error) {
	return &shelfReader{at: from}, nil
}

type shelfReader struct {
	partition.Reader
	at record.Offset
}

func (r *shelfReader) Idle() {}

func (r *shelfReader) Offset() record.Offset { return r.at }

func (r *shelfReader) Next(_ context.Context, end record.Offset) (record.Batch, error) {
	if r.at >= end {
		return nil, lend.ErrEnd
	}
	var b record.Builder
	b.Reset(nil)
	b.Append(&record.Record{Value: []byte("v")})
	r.at++
	return b.Finish(r.at-1, 0), nil
}

// fed is a subscription without echo, its feed of one partition, and that.
func fed(t *testing.T, log *shelf) (*conn, *subscription, *feed, *partition.Partition) {
	t.Helper()
	c, sub := listener(t, 64<<20)
	sub.f.opt.echo = false
	topic := &broker.Topic{}
	topic.Meta.ID = "one"
	f := sub.newFeed(topic)
	p := partition.Open(storage.Partition{Topic: "t", TopicID: "one"}, log, partition.Options{Set: partition.Settings{MessageBytes: 1 << 20}})
	t.Cleanup(func() { p.Close(errcode.New(errcode.ShuttingDown, "", "")) })
	return c, sub, f, p
}

// TestAFeedThatIsFarBehindGoesOn: what stops the connection's reader must not stop the feed that it waits for.
func TestAFeedThatIsFarBehindGoesOn(t *testing.T) {
	c, sub, f, p := fed(t, &shelf{end: 2*spansMax + 2})
	for i := range spansMax + 1 { // each own record is followed by another's
		c.box.hide(p, record.Offset(2*i), 1)
	}
	if room(c.box) {
		t.Fatalf("there is room with %d ranges", f.spans)
	}
	cur := cursor.New(p, 0)
	done := make(chan bool, 1)
	go func() { done <- sub.drain(f, &cur) }()
	select {
	case <-done:
	case <-time.After(patience):
		c.cut()
		t.Fatal("the feed waits for the reader, and the reader for the feed")
	}
	if n := strings.Count(string(c.box.buf), "MSG "); n != spansMax+1 || !room(c.box) {
		t.Errorf("%d records are delivered, %d ranges are left", n, f.spans)
	}
}

// settled is another connection's publish.
type settled chan partition.Outcome

func (s settled) Settled(o partition.Outcome) { s <- o }

// TestRecordsInThePlaceOfOwnOnesThatWereLostAreDelivered: what had these offsets before the log became shorter was the
// connection's own, what has them now is not.
func TestRecordsInThePlaceOfOwnOnesThatWereLostAreDelivered(t *testing.T) {
	log := &shelf{end: 10}
	c, sub, f, p := fed(t, log)
	cur := cursor.New(p, 3)
	c.box.hide(p, 2, 2)
	c.box.hide(p, 5, 5) // 7 to 9 of these are going to be lost
	log.end = 7
	p.Reopened()
	for range 4 {
		out := make(settled, 1)
		if err := p.Publish(nil, &record.Record{Value: []byte("v")}, out); err != nil {
			t.Fatal(err)
		}
		if o := <-out; o.Err != nil {
			t.Fatal(o.Err)
		}
	}
	c.box.hide(p, 11, 1)
	log.end = 12
	p.Reopened()
	if !sub.drain(f, &cur) {
		t.Fatal("it ended")
	}
	var got []string
	for _, line := range strings.Split(string(c.box.buf), "\r\n") {
		if at := strings.Index(line, "@"); at >= 0 {
			got = append(got, strings.Fields(line[at+1:])[0])
		}
	}
	if want := "4 7 8 9 10"; strings.Join(got, " ") != want {
		t.Errorf("delivered %v, want %s", got, want)
	}
}
