package fault

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// load publishes numbered records over several connections, each pipelining, and keeps what was acknowledged: the
// history a test checks the log against.
type load struct {
	t     testing.TB
	topic string
	stop  atomic.Bool
	wg    sync.WaitGroup

	mu       sync.Mutex
	acked    map[string]string // address -> body
	refused  map[string]string // body -> error, of definite failures
	unknown  int               // sent, no outcome heard
	failures int
}

const (
	producers = 4
	window    = 50 // records a producer has outstanding
)

// startLoad publishes to topic until end is called, or until the link is cut.
func startLoad(t testing.TB, s *harness.Server, topic string) *load {
	l := &load{t: t, topic: topic, acked: map[string]string{}, refused: map[string]string{}}
	for i := range producers {
		nc, err := net.Dial("tcp", s.Client)
		if err != nil {
			t.Fatal(err)
		}
		l.wg.Go(func() { l.produce(nc, i) })
	}
	return l
}

func (l *load) produce(nc net.Conn, producer int) {
	defer func() { _ = nc.Close() }()
	r := bufio.NewReaderSize(nc, 64<<10)
	if _, err := r.ReadString('\n'); err != nil {
		return
	}
	for seq := 0; !l.stop.Load(); seq += window {
		var out bytes.Buffer
		for i := range window {
			fmt.Fprintf(&out, "SEND %s %s\n", l.topic, body(producer, seq+i))
		}
		_ = nc.SetDeadline(time.Now().Add(harness.Patience))
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

func body(producer, seq int) string { return fmt.Sprintf("record %d of %d", seq, producer) }

func (l *load) lost(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unknown += n
}

func (l *load) heard(answer, body string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fields := strings.Fields(answer)
	switch {
	case len(fields) == 3 && fields[0] == "+OK" && fields[2] == "disk":
		if before, twice := l.acked[fields[1]]; twice {
			l.t.Errorf("%s was acknowledged for %q and for %q", fields[1], before, body)
		}
		l.acked[fields[1]] = body
	case strings.HasPrefix(answer, "-ERR STORAGE_UNKNOWN"), strings.HasPrefix(answer, "-ERR TIMEOUT"):
		l.unknown++
	case strings.HasPrefix(answer, "-ERR SHUTTING_DOWN"), strings.HasPrefix(answer, "-ERR ASYNC SHUTTING_DOWN"), strings.HasPrefix(answer, "-ERR STORAGE"):
		l.refused[body] = answer
		l.failures++
	default:
		l.t.Errorf("publish was answered %q", answer)
	}
}

// count tells how many records have been acknowledged.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// waitMore waits until n more records are acknowledged.
func (l *load) waitMore(n int) {
	l.t.Helper()
	goal := l.count() + n
	harness.Eventually(l.t, fmt.Sprintf("%d more acknowledged records", n), func() bool { return l.count() >= goal })
}

// end stops the load and waits for its last answers.
func (l *load) end() {
	l.stop.Store(true)
	l.wg.Wait()
}

// check reads the whole topic: every acknowledged record is where its answer said, no refused one is there, none comes
// twice, and each producer's records are in order in every partition.
func (l *load) check(s *harness.Server, partitions int) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := map[string]string{}
	missing := len(l.acked)
	for p := range partitions {
		last := map[string]int{}
		readAll(s, fmt.Sprintf("%s/%d", l.topic, p), func(addr, text string) {
			if at, twice := seen[text]; twice {
				l.t.Errorf("%q is at %s and at %s", text, at, addr)
			}
			seen[text] = addr
			if want, acked := l.acked[addr]; acked {
				missing--
				if want != text {
					l.t.Errorf("%s holds %q, acknowledged was %q", addr, text, want)
				}
			}
			if why, refused := l.refused[text]; refused {
				l.t.Errorf("%q was refused with %q, and is at %s", text, why, addr)
			}
			f := strings.Fields(text)
			seq, _ := strconv.Atoi(f[1])
			if before, ok := last[f[3]]; ok && before >= seq {
				l.t.Errorf("producer %s: record %d stands behind %d", f[3], seq, before)
			}
			last[f[3]] = seq
		})
	}
	if missing != 0 {
		l.t.Errorf("%d of %d acknowledged records are missing", missing, len(l.acked))
	}
	l.t.Logf("acknowledged %d, read %d, refused %d, outcome unknown %d", len(l.acked), len(seen), len(l.refused), l.unknown)
}

// readAll calls f for every record of a partition, by GET.
func readAll(s *harness.Server, partition string, f func(addr, body string)) {
	c := s.Dial()
	next := partition + "@earliest"
	for {
		c.Send("GET " + next + " 5000\n")
		n := 0
		for {
			fields := strings.Fields(c.Read())
			if fields[0] == "+OK" {
				next = fields[1]
				break
			}
			if fields[0] != "MSG" {
				panic(fmt.Sprintf("GET was answered %q", fields))
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
