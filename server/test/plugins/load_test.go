package plugins

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// load publishes records with keys on several connections, one at a time on each, and keeps what was acknowledged and how
// long it took. Every other answer is an error of the test, but that a called partitioner was late: it has 50 ms, which a
// busy machine may not grant it.
type load struct {
	t     testing.TB
	topic string
	stop  atomic.Bool
	wg    sync.WaitGroup
	count atomic.Int64
	late  atomic.Int64

	mu    sync.Mutex
	acked map[string]string // address: body
	took  []time.Duration
}

// publishers is how many connections publish.
const publishers = 3

func startLoad(t testing.TB, s *harness.Server, topic string) *load {
	t.Helper()
	l := &load{t: t, topic: topic, acked: map[string]string{}}
	for i := range publishers {
		nc, err := net.Dial("tcp", s.Client)
		if err != nil {
			t.Fatal(err)
		}
		l.wg.Go(func() { l.publish(nc, i) })
	}
	return l
}

func (l *load) publish(nc net.Conn, publisher int) {
	defer func() { _ = nc.Close() }()
	r := bufio.NewReader(nc)
	if _, err := r.ReadString('\n'); err != nil {
		l.t.Error(err)
		return
	}
	for seq := 0; !l.stop.Load(); seq++ {
		body := fmt.Sprintf("%d from %d", seq, publisher)
		_ = nc.SetDeadline(time.Now().Add(harness.Patience))
		began := time.Now()
		if _, err := fmt.Fprintf(nc, "SEND %s#k%d %s\n", l.topic, rand.IntN(500), body); err != nil {
			l.t.Error(err)
			return
		}
		answer, err := r.ReadString('\n')
		took := time.Since(began)
		fields := strings.Fields(answer)
		if strings.HasPrefix(answer, "-ERR PARTITIONER_UNAVAILABLE ") && strings.Contains(answer, "did not answer in time") {
			l.late.Add(1)
			continue
		}
		if err != nil || len(fields) != 3 || fields[0] != "+OK" {
			l.t.Errorf("publish was answered %q, %v", answer, err)
			return
		}
		l.mu.Lock()
		if before, twice := l.acked[fields[1]]; twice {
			l.t.Errorf("%s was told for %q and %q", fields[1], before, body)
		}
		l.acked[fields[1]] = body
		l.took = append(l.took, took)
		l.mu.Unlock()
		l.count.Add(1)
	}
}

// more waits until n more records are acknowledged.
func (l *load) more(n int64) {
	l.t.Helper()
	goal := l.count.Load() + n
	harness.Eventually(l.t, "more records are acknowledged", func() bool { return l.count.Load() >= goal || l.t.Failed() })
}

// end stops the load and compares the log with what was acknowledged: nothing more, nothing less.
func (l *load) end(s *harness.Server, partitions int) {
	l.t.Helper()
	l.stop.Store(true)
	l.wg.Wait()
	c := s.Dial()
	held := 0
	for p := range partitions {
		for next := fmt.Sprintf("%s/%d@0", l.topic, p); ; {
			c.Send("GET " + next + " 5000\n")
			n := 0
			for {
				f := strings.Fields(c.Read())
				if f[0] == "+OK" {
					next = f[1]
					break
				}
				size, err := strconv.Atoi(f[len(f)-1])
				if err != nil {
					l.t.Fatal(f)
				}
				frame := c.ReadN(size)
				c.Read()
				if body := frame[strings.LastIndex(frame, "\n")+1:]; l.acked[f[1]] != body {
					l.t.Errorf("%s holds %q, told was %q", f[1], body, l.acked[f[1]])
				}
				n++
			}
			if held += n; n == 0 {
				break
			}
		}
	}
	if held != len(l.acked) {
		l.t.Errorf("%d records acknowledged, %d in the log", len(l.acked), held)
	}
	if late, all := l.late.Load(), l.count.Load(); late > all/10 {
		l.t.Errorf("%d publishes were refused for lateness, %d were not", late, all)
	}
	l.t.Logf("%d records acknowledged, %d refused because the partitioner was late", l.count.Load(), l.late.Load())
}

// at is the time within which a share of the publishes were answered.
func (l *load) at(share float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	sorted := slices.Sorted(slices.Values(l.took))
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))]
}

func TestThePartitionerIsSwappedTwoHundredTimes(t *testing.T) {
	shelf := newShelf(t)
	shelf.put("partitioner", "prefix", built("prefix"), "")
	s := shelf.serve()
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=3", "+OK t")
	load := startLoad(t, s, "t")
	names := []string{"prefix", "crc32", "jump", "roundrobin", "sticky", "fnv1a", "murmur2"}
	const swaps = 200
	for i := range swaps {
		ask(t, l, "TOPIC ALTER t partitioner="+names[i%len(names)]+" accept_reorder=true", "+OK t")
		load.more(20)
	}
	load.end(s, 3)
}

// BenchmarkSwap tells how long publishes take while the partitioner of their topic is swapped, and how long else.
func BenchmarkSwap(b *testing.B) {
	for _, swapped := range []bool{false, true} {
		b.Run(fmt.Sprintf("swapped=%v", swapped), func(b *testing.B) {
			s := harness.Start(b)
			c := s.Dial()
			if got := c.Ask("TOPIC CREATE t partitions=3 sync=never"); got != "+OK t" {
				b.Fatal(got)
			}
			load := startLoad(b, s, "t")
			swaps := 0
			for b.Loop() {
				if swapped {
					name := []string{"crc32", "fnv1a", "murmur2"}[swaps%3]
					if got := c.Ask("TOPIC ALTER t partitioner=" + name + " accept_reorder=true"); got != "+OK t" {
						b.Fatal(got)
					}
					swaps++
				}
				load.more(100)
			}
			load.stop.Store(true)
			load.wg.Wait()
			b.ReportMetric(float64(load.at(0.5).Microseconds()), "µs/p50")
			b.ReportMetric(float64(load.at(0.999).Microseconds()), "µs/p99.9")
			b.ReportMetric(float64(swaps), "swaps")
		})
	}
}

func TestReloadsRefuseNoPublish(t *testing.T) {
	shelf := newShelf(t)
	shelf.put("partitioner", "prefix", built("prefix"), "")
	s := shelf.serve()
	l := s.Dial()
	for name, plugins := range map[string][]string{
		"prefix": {"partitioner/prefix"}, "murmur2": {"partitioner/murmur2", "storage/filelog", "metadata/embedded"},
	} {
		ask(t, l, "TOPIC CREATE t-"+name+" partitions=3 segment.bytes=64KiB partitioner="+name, "+OK t-"+name)
		load := startLoad(t, s, "t-"+name)
		for range 5 {
			for _, plugin := range plugins {
				before := info(t, l, plugin)
				ask(t, l, "PLUGIN RELOAD "+plugin, "+OK "+plugin)
				now := info(t, l, plugin)
				if now.State != "ready" || now.PID == before.PID || now.Restarts != before.Restarts+1 {
					t.Errorf("%+v became %+v", before, now)
				}
				if harness.Alive(before.PID) {
					t.Errorf("%s: the process before lives", plugin)
				}
				load.more(50)
			}
		}
		load.end(s, 3)
	}
}
