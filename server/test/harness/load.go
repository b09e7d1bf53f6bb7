package harness

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// History is what a topic was told and what it answered. It is kept outside the server, and a log is held against it.
type History struct {
	Topic   string
	Acked   map[string]string // address to body
	Refused map[string]string // body to answer, of what is certainly not there
	Unknown int               // sent without an outcome
}

// NewHistory returns an empty one.
func NewHistory(topic string) *History {
	return &History{Topic: topic, Acked: map[string]string{}, Refused: map[string]string{}}
}

// Add takes another load's history in.
func (h *History) Add(other *History) {
	maps.Copy(h.Acked, other.Acked)
	maps.Copy(h.Refused, other.Refused)
	h.Unknown += other.Unknown
}

// Found is what a topic was found to hold.
type Found struct {
	Records int
	Missing []string // addresses that were acknowledged and are not there
}

// Compare reads the whole topic. It reports as errors what must never be: a record that is not the one its address was
// acknowledged for, one that was refused, one that is there twice, and one that stands before an earlier record of its
// producer. What is missing is for the caller to judge.
func (h *History) Compare(t testing.TB, s *Server, partitions int) Found {
	t.Helper()
	f := Found{}
	seen, there := map[string]string{}, map[string]bool{}
	for p := range partitions {
		last := map[string]int{}
		s.ReadAll(fmt.Sprintf("%s/%d", h.Topic, p), func(addr, text string) {
			f.Records++
			text = strings.TrimRight(text, padding)
			if at, twice := seen[text]; twice {
				t.Errorf("%q is at %s and at %s", text, at, addr)
			}
			seen[text], there[addr] = addr, true
			if want, acked := h.Acked[addr]; acked && want != text {
				t.Errorf("%s holds %q, acknowledged was %q", addr, text, want)
			}
			if why, refused := h.Refused[text]; refused {
				t.Errorf("%q was refused with %q, and is at %s", text, why, addr)
			}
			seq, producer := parseBody(text)
			if before, ok := last[producer]; ok && before >= seq {
				t.Errorf("producer %s: record %d stands behind %d", producer, seq, before)
			}
			last[producer] = seq
		})
	}
	for addr := range h.Acked {
		if !there[addr] {
			f.Missing = append(f.Missing, addr)
		}
	}
	return f
}

// Check is Compare where nothing may be missing.
func (h *History) Check(t testing.TB, s *Server, partitions int) {
	t.Helper()
	f := h.Compare(t, s, partitions)
	if len(f.Missing) > 0 {
		t.Errorf("%d of %d acknowledged records are missing, one of them %s", len(f.Missing), len(h.Acked), f.Missing[0])
	}
}

// String counts what was answered.
func (h *History) String() string {
	return fmt.Sprintf("%d records acknowledged, %d refused, %d without an outcome", len(h.Acked), len(h.Refused), h.Unknown)
}

const (
	producers = 4
	window    = 50 // records a producer has outstanding
)

// padding fills bodies up to the size that was asked for.
const padding = "."

func body(producer string, seq int) string { return fmt.Sprintf("record %d of %s", seq, producer) }

func parseBody(text string) (seq int, producer string) {
	fields := strings.Fields(text)
	if len(fields) != 4 {
		return 0, text
	}
	seq, _ = strconv.Atoi(fields[1])
	return seq, fields[3]
}

// LoadOptions say what a load publishes.
type LoadOptions struct {
	Name  string // tells the records of one load from those of another to the same topic
	Bytes int    // the least size of a record's body
	Ack   string // the durability that acknowledgements have to claim; empty: disk
}

// Load publishes numbered records over several connections, each pipelining, and keeps what came of them.
type Load struct {
	t    testing.TB
	opt  LoadOptions
	stop atomic.Bool
	wg   sync.WaitGroup

	mu      sync.Mutex
	history *History
}

// StartLoad publishes to topic until End, or until the link is cut.
func StartLoad(t testing.TB, s *Server, topic string, o LoadOptions) *Load {
	t.Helper()
	if o.Ack == "" {
		o.Ack = "disk"
	}
	l := &Load{t: t, opt: o, history: NewHistory(topic)}
	for i := range producers {
		nc, err := net.Dial("tcp", s.Client)
		if err != nil {
			l.End()
			t.Fatal(err)
		}
		l.wg.Go(func() { l.produce(nc, fmt.Sprintf("%s%d", o.Name, i)) })
	}
	return l
}

func (l *Load) produce(nc net.Conn, producer string) {
	defer func() { _ = nc.Close() }()
	r := bufio.NewReaderSize(nc, 64<<10)
	if _, err := r.ReadString('\n'); err != nil {
		return
	}
	for seq := 0; !l.stop.Load(); seq += window {
		var out bytes.Buffer
		for i := range window {
			text := body(producer, seq+i)
			fmt.Fprintf(&out, "SEND %s %s%s\n", l.history.Topic, text, strings.Repeat(padding, max(0, l.opt.Bytes-len(text))))
		}
		_ = nc.SetDeadline(time.Now().Add(Patience))
		if _, err := nc.Write(out.Bytes()); err != nil {
			l.lost(window)
			return
		}
		for i := range window {
			answer, err := r.ReadString('\n')
			if err != nil {
				l.lost(window - i)
				return
			}
			l.heard(strings.TrimRight(answer, "\r\n"), body(producer, seq+i))
		}
	}
}

func (l *Load) lost(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.history.Unknown += n
}

func (l *Load) heard(answer, body string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.history
	fields := strings.Fields(answer)
	switch {
	case len(fields) == 3 && fields[0] == "+OK" && fields[2] == l.opt.Ack:
		if before, twice := h.Acked[fields[1]]; twice {
			l.t.Errorf("%s was acknowledged for %q and for %q", fields[1], before, body)
		}
		h.Acked[fields[1]] = body
	case strings.HasPrefix(answer, "-ERR STORAGE_UNKNOWN"), strings.HasPrefix(answer, "-ERR TIMEOUT"):
		h.Unknown++
	case strings.HasPrefix(answer, "-ERR SHUTTING_DOWN"), strings.HasPrefix(answer, "-ERR ASYNC SHUTTING_DOWN"), strings.HasPrefix(answer, "-ERR STORAGE"):
		h.Refused[body] = answer
	default:
		l.t.Errorf("publish was answered %q", answer)
	}
}

// Count tells how many records have been acknowledged.
func (l *Load) Count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.history.Acked)
}

// Refusals tells how many records have been refused.
func (l *Load) Refusals() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.history.Refused)
}

// WaitMore waits until n more records are acknowledged.
func (l *Load) WaitMore(n int) {
	l.t.Helper()
	goal := l.Count() + n
	Eventually(l.t, fmt.Sprintf("%d more acknowledged records", n), func() bool { return l.Count() >= goal })
}

// End stops the load, waits for its last answers and returns what came of it. A second call returns the same.
func (l *Load) End() *History {
	l.stop.Store(true)
	l.wg.Wait()
	return l.history
}

// ReadAll calls f for every record of a partition, "topic/0", by GET.
func (s *Server) ReadAll(partition string, f func(addr, body string)) {
	s.t.Helper()
	c := s.Dial()
	defer func() { _ = c.nc.Close() }()
	next := partition + "@earliest"
	for {
		c.Send("GET " + next + " 5000\n")
		n := 0
		for {
			fields := strings.Fields(c.Read())
			if len(fields) == 2 && fields[0] == "+OK" {
				next = fields[1]
				break
			}
			if len(fields) != 4 || fields[0] != "MSG" {
				s.t.Fatalf("GET %s was answered %q", next, fields)
			}
			size, _ := strconv.Atoi(fields[3])
			text := c.ReadN(size)
			c.Read()
			f(fields[1], text)
			n++
		}
		if n == 0 {
			return
		}
	}
}
