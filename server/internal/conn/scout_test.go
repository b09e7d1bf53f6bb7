package conn

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
)

// scouted is a scout that reads one end of a pipe. What it asks is counted and never answered.
type scouted struct {
	*scout
	peer  net.Conn
	asked chan *broker.Asked
	t, u  *broker.Topic // the topics whose partitioners are called
}

func startScout(t *testing.T) *scouted {
	t.Helper()
	peer, nc := net.Pipe()
	limits := line.Limits{ControlLine: 4096, Payload: 1 << 20}
	s := &scouted{peer: peer, asked: make(chan *broker.Asked, 100), t: &broker.Topic{}, u: &broker.Topic{}}
	s.scout = &scout{
		nc: nc, heard: new(atomic.Bool), limits: limits, parser: line.NewParser(limits),
		called: func(name []byte) *broker.Topic { return map[string]*broker.Topic{"t": s.t, "u": s.u}[string(name)] },
		ask:    func(q *broker.Asked) { s.asked <- q },
		chunks: make(chan *chunk, chunksAhead), free: make(chan *chunk, 1), stop: make(chan struct{}),
	}
	var wg sync.WaitGroup
	wg.Go(s.run)
	t.Cleanup(func() {
		_ = peer.Close()
		close(s.stop)
		wg.Wait()
	})
	return s
}

func hpub(subject, header string) string {
	block := "NATS/1.0\r\n" + header + "\r\n\r\n"
	return fmt.Sprintf("HPUB %s %d %d\r\n%sv\r\n", subject, len(block), len(block)+1, block)
}

// verbs takes what a chunk has.
func verbs(t *testing.T, ch *chunk) string {
	t.Helper()
	var all []string
	var cmd line.Command
	for {
		ok, err := ch.parser.Next(&cmd)
		if err != nil {
			return strings.Join(append(all, "error"), " ")
		}
		if !ok {
			return strings.Join(all, " ")
		}
		all = append(all, cmd.Verb.String())
	}
}

// TestAWriteIsOneQuestionAndTheNextReadsGoOn while it is not answered, and nothing of it is handled.
func TestAWriteIsOneQuestionAndTheNextReadsGoOn(t *testing.T) {
	s := startScout(t)
	var chunks []*chunk
	for _, step := range []struct {
		write  string
		t, u   int // keys asked for
		verbs  string
		asking int
	}{
		{"PUB t#a 1\r\nv\r\n" + hpub("t", "Key: b") + "SEND t#c v\r\n" + hpub("t", "A: x\r\nKey-Base64: ZA==") + "PUB t 1\r\nv\r\nPUB t/1 1\r\nv\r\nPUB other#k 1\r\nv\r\nPI",
			4, 0, "PUB HPUB SEND HPUB PUB PUB PUB", 1},
		{"NG\r\nPUB t#e 1\r\nv\r\nPUB u#f 1\r\nv\r\nPUB t#g 1\r\nv\r\nPUB u#h 1\r\nv\r\nPUB t#i 1\r\n", 2, 2, "PING PUB PUB PUB PUB", 2},
		{"v\r\n", 1, 0, "PUB", 1},
	} {
		write(t, s.peer, step.write)
		got := map[*broker.Topic]int{}
		for range step.asking {
			q := <-s.asked
			got[q.Topic()] += q.Len()
		}
		if got[s.t] != step.t || got[s.u] != step.u {
			t.Fatalf("%d keys of t and %d of u are asked for; want %d and %d", got[s.t], got[s.u], step.t, step.u)
		}
		ch := <-s.chunks
		if len(ch.asked) != step.asking {
			t.Errorf("%d questions; want %d", len(ch.asked), step.asking)
		}
		chunks = append(chunks, ch)
	}
	for i, want := range []string{"PUB HPUB SEND HPUB PUB PUB PUB", "PING PUB PUB PUB PUB", "PUB"} {
		if got := verbs(t, chunks[i]); got != want {
			t.Errorf("chunk %d has %s; want %s", i, got, want)
		}
	}
	if !s.heard.Load() {
		t.Error("the client was not heard")
	}
}

func TestAQuestionHasABoundedNumberOfKeys(t *testing.T) {
	s := startScout(t)
	var text strings.Builder
	const records = 3*broker.AheadMax + 7
	for i := range records {
		fmt.Fprintf(&text, "PUB t#%d 1\r\nv\r\n", i)
	}
	var wg sync.WaitGroup
	wg.Go(func() { write(t, s.peer, text.String()) })
	var sizes []int
	for sum := 0; sum < records; {
		select {
		case q := <-s.asked:
			sum += q.Len()
			sizes = append(sizes, q.Len())
		case ch := <-s.chunks:
			verbs(t, ch)
			select {
			case s.free <- ch: // it is used again
			default:
			}
		}
	}
	wg.Wait()
	if slices.Max(sizes) != broker.AheadMax {
		t.Errorf("questions of %v keys; want none above %d", sizes, broker.AheadMax)
	}
}

func TestAScoutEndsWhereTheStreamIsOutOfStep(t *testing.T) {
	s := startScout(t)
	write(t, s.peer, "PUB t#a 1\r\nv\r\nPUB t#b 1\r\nvvvv\r\nPUB t#c 1\r\nv\r\n")
	if q := <-s.asked; q.Len() != 1 {
		t.Errorf("%d keys are asked for", q.Len())
	}
	if got := verbs(t, <-s.chunks); got != "PUB error" {
		t.Errorf("got %s", got)
	}
	if ch, more := <-s.chunks; more {
		t.Errorf("then %s", verbs(t, ch))
	}
}
