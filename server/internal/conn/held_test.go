package conn

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
	"github.com/trunkline-mq/trunkline/server/internal/partition"
)

// room asks for room without waiting for it.
func room(b *outbox) bool {
	now := make(chan struct{})
	close(now)
	b.mu.Lock()
	b.collectLocked()
	free := b.roomLocked()
	b.mu.Unlock()
	return free && b.waitRoom(now)
}

// TestWhatWaitsIsBoundedInBytes: whatever queues behind a request without outcome counts, not only what is encoded.
func TestWhatWaitsIsBoundedInBytes(t *testing.T) {
	const limit = 64 << 10
	long := strings.Repeat("r", 4000)
	for name, add := range map[string]func(b *outbox) (*answer, int){
		"answers that are said": func(b *outbox) (*answer, int) {
			b.say(func(dst []byte) []byte { return append(dst, long...) })
			return nil, len(long)
		},
		"reply subjects": func(b *outbox) (*answer, int) {
			part := &partition.Partition{}
			part.Name.Topic = "t"
			return b.push(place{part: part, tell: tellNobody, verb: line.Pub, reply: []byte(long)}), len(long)
		},
		"fetches": func(b *outbox) (*answer, int) {
			return b.push(place{holds: fetchBytes + 3*fetchItemBytes}), fetchBytes
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newOutbox(limit, time.Second)
			published := 0
			b.publish = func(acks []ack) { published += len(acks) }
			blocked := publishPlace(b, 0)
			var places []*answer
			held := 0
			for room(b) {
				a, n := add(b)
				if a != nil {
					places = append(places, a)
				}
				if held += n; held > 2*limit {
					t.Fatalf("%d bytes wait, of a limit of %d", held, limit)
				}
			}
			if held < limit/2 {
				t.Errorf("there is no room with %d bytes waiting, of a limit of %d", held, limit)
			}
			blocked.Settled(partition.Outcome{N: 1, Durability: "disk"})
			for i, a := range places {
				if a.part == nil {
					a.settlePieces(nil, []byte("+OK\r\n"))
				} else {
					a.Settled(partition.Outcome{Base: 1, N: 1, Durability: fmt.Sprint(i)})
				}
			}
			b.mu.Lock()
			b.collectLocked()
			acks := b.acks
			b.acks, b.buf = nil, nil
			b.mu.Unlock()
			b.publish(acks)
			b.published(acks)
			if b.held != 0 || !room(b) {
				t.Errorf("%d bytes are held by nothing", b.held)
			}
		})
	}
}

// TestALargeRequestAloneIsNotTooMuch: it may be a long poll, and the reader must hear the verb that ends it.
func TestALargeRequestAloneIsNotTooMuch(t *testing.T) {
	b := newOutbox(1000, time.Second)
	a := b.push(place{holds: 1 << 20})
	if !room(b) {
		t.Fatal("nothing is read any more")
	}
	b.say(func(dst []byte) []byte { return append(dst, "PONG\r\n"...) })
	if room(b) {
		t.Error("with a second one there is still room")
	}
	a.settlePieces(nil, []byte("+OK\r\n"))
	if !room(b) || string(b.buf) != "+OK\r\nPONG\r\n" {
		t.Errorf("%q is to be said", b.buf)
	}
}

// TestWhatIsKeptToBeUsedAgainIsSmall: one burst must not make a connection heavy for good.
func TestWhatIsKeptToBeUsedAgainIsSmall(t *testing.T) {
	b := newOutbox(64<<20, time.Second)
	part := &partition.Partition{}
	part.Name.Topic = "t"
	var all []*answer
	for range 3 * spareMax {
		all = append(all, b.push(place{part: part, tell: tellNobody, reply: make([]byte, 4000)}))
		b.say(func(dst []byte) []byte { return append(dst, make([]byte, 1000)...) })
	}
	for _, a := range all {
		a.Settled(partition.Outcome{N: 1})
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.collectLocked()
	n := 0
	for a := b.spare; a != nil; a = a.next {
		n++
		if cap(a.reply) > spareBytes || cap(a.literal) > spareBytes {
			t.Fatalf("an answer keeps %d and %d bytes", cap(a.reply), cap(a.literal))
		}
	}
	if n != b.idle || n > spareMax {
		t.Errorf("%d answers are kept, %d are counted", n, b.idle)
	}
}

// TestAFeedThatIsFarBehindStopsItsConnection: what is the connection's own is remembered until the feed has passed it, and
// that is bounded.
func TestAFeedThatIsFarBehindStopsItsConnection(t *testing.T) {
	c, sub := listener(t, 1<<20)
	sub.f.opt.echo = false
	topic := &broker.Topic{}
	topic.Meta.ID = "one"
	f := sub.newFeed(topic)
	p := &partition.Partition{}
	p.Name.TopicID = "one"
	for i := range spansMax { // each own record is followed by another's
		c.box.hide(p, record.Offset(2*i), 1)
	}
	c.box.hide(p, 2*spansMax-1, 5) // joins the newest range
	if !room(c.box) {
		t.Fatalf("there is no room with %d ranges", f.spans)
	}
	c.box.hide(p, 2*spansMax+100, 1)
	if room(c.box) {
		t.Fatalf("there is room with %d ranges", f.spans)
	}
	passed := record.Offset(0)
	for ; !room(c.box); passed++ {
		c.box.mu.Lock()
		own := c.box.hidesLocked(f, 0, passed)
		c.box.mu.Unlock()
		if own != (passed%2 == 0) {
			t.Fatalf("record %d is its own: %v", passed, own)
		}
	}
	if passed < spansMax/2 || passed > 2*spansMax {
		t.Errorf("there is room again after %d records", passed)
	}
	for i := range spansMax {
		c.box.hide(p, record.Offset(1_000_000+2*i), 1)
	}
	if room(c.box) {
		t.Fatal("there is room")
	}
	sub.endFeed(f)
	if !room(c.box) || len(c.box.deaf) != 0 {
		t.Error("a feed that has ended holds its connection up")
	}
}
