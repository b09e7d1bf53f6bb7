package conn

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/partition"
)

// talk runs an outbox over a real connection and returns the peer's end.
func talk(t *testing.T, limit int) (*outbox, *bufio.Reader) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	b := newOutbox(limit, 5*time.Second)
	done := make(chan error, 1)
	go func() { done <- b.write(nc) }()
	t.Cleanup(func() {
		b.finish()
		b.kill()
		<-done
		_, _, _ = nc.Close(), peer.Close(), l.Close()
	})
	_ = peer.SetReadDeadline(time.Now().Add(10 * time.Second))
	return b, bufio.NewReader(peer)
}

func publishPlace(b *outbox, due int64) *answer {
	part := &partition.Partition{}
	part.Name.Topic = "t"
	return b.push(place{part: part, tell: tellAll, verb: line.Pub, due: due})
}

func expect(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	got, err := r.ReadString('\n')
	if err != nil || !strings.HasPrefix(got, want) {
		t.Fatalf("got %q (%v), want %q…", got, err, want)
	}
}

func TestAnswersKeepTheOrderOfRequests(t *testing.T) {
	b, peer := talk(t, 1<<20)
	first, second := publishPlace(b, 0), publishPlace(b, 0)
	b.say(func(dst []byte) []byte { return append(dst, "PONG\r\n"...) })
	second.Settled(partition.Outcome{Base: 7, N: 2, Durability: "disk"})
	first.Settled(partition.Outcome{Base: 3, N: 1, Durability: "disk"})
	for _, want := range []string{"+OK t/0@3 disk", "+OK t/0@7 disk", "+OK t/0@8 disk", "PONG"} {
		expect(t, peer, want)
	}
}

func TestPublishWithoutOutcomeIsAnsweredInTimeAndOnce(t *testing.T) {
	b, peer := talk(t, 1<<20)
	late, other := publishPlace(b, 1000), publishPlace(b, 0)
	if !late.count() {
		t.Fatal("a record cannot join its run")
	}
	b.expire(999)
	b.expire(1000)
	if late.count() {
		t.Error("a record joins a run that was answered")
	}
	other.Settled(partition.Outcome{Base: 5, N: 1, Durability: "disk"})
	late.Settled(partition.Outcome{Base: 1, N: 2, Durability: "disk"}) // too late: nobody hears it
	third := publishPlace(b, 0)
	if third == late {
		t.Error("a place whose outcome was open is used again")
	}
	third.Settled(partition.Outcome{Base: 9, N: 1, Durability: "disk"})
	for _, want := range []string{"-ERR TIMEOUT '", "-ERR TIMEOUT '", "+OK t/0@5 disk", "+OK t/0@9 disk"} {
		expect(t, peer, want)
	}
}

// held is an extent that counts those that are held, and says how many are when it is sent.
type held struct {
	count *atomic.Int32
	fails bool
}

func (h held) Place() (record.Offset, int64) { return 0, 1 }

func (h held) Release() { h.count.Add(-1) }

func (h held) SendTo(nc syscall.Conn, _ func() error) error {
	if h.fails {
		return errors.New("the disk is gone")
	}
	_, err := fmt.Fprintf(nc.(net.Conn), "%d held", h.count.Load())
	return err
}

func TestEachPieceOfAFetchIsReleasedAsSoonAsItIsSent(t *testing.T) {
	b, peer := talk(t, 1<<20)
	count := new(atomic.Int32)
	count.Store(3)
	pieces := make([]piece, 3)
	for i := range pieces {
		pieces[i].extent = held{count: count}
	}
	b.push(place{}).settlePieces(pieces, []byte("+OK\r\n"))
	for _, want := range []string{"3 held", "2 held", "1 held", "+OK"} {
		expect(t, peer, want)
	}
	if n := count.Load(); n != 0 {
		t.Errorf("%d are held after the answer", n)
	}
}

func TestPiecesOfAFetchThatBreaksOffAreReleasedOnce(t *testing.T) {
	b, _ := talk(t, 1<<20)
	count := new(atomic.Int32)
	count.Store(3)
	pieces := []piece{{extent: held{count: count}}, {extent: held{count: count, fails: true}}, {extent: held{count: count}}}
	b.push(place{}).settlePieces(pieces, []byte("+OK\r\n"))
	if b.waitAnswered(t.Context().Done()) {
		t.Error("an answer that broke off was finished")
	}
	if n := count.Load(); n != 0 {
		t.Errorf("%d are held after the connection broke", n)
	}
}

func TestSettlingAndCollectingDoNotAllocatePerRecord(t *testing.T) {
	b := newOutbox(64<<20, time.Second)
	part := &partition.Partition{}
	part.Name.Topic = "orders"
	var base record.Offset
	round := func() {
		a := b.push(place{part: part, tell: tellAll, verb: line.Pub})
		a.Settled(partition.Outcome{Base: base, N: 1000, Durability: "disk"})
		base += 1000
		b.mu.Lock()
		b.collectLocked()
		b.buf = b.buf[:0]
		b.mu.Unlock()
	}
	for range 100 {
		round()
	}
	if n := testing.AllocsPerRun(100, round); n > 2 { // the channel that tells waiters of room
		t.Errorf("%v allocations for 1000 answers", n)
	}
}
