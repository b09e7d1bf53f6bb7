package bench

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const (
	// crowdSize is how many connections are held that do nothing.
	crowdSize = 10_000
	// crowdBytesMax is what each of them may cost the server in resident memory.
	crowdBytesMax = 20 << 10
	loneRecords   = 2000
)

// crowd is connections that have said CONNECT and PING, and say nothing more.
type crowd []net.Conn

// gather connects size clients, each of which hears its PONG.
func gather(addr string, size int) (crowd, error) {
	all := make(crowd, 0, size)
	for range size {
		nc, err := net.DialTimeout("tcp", addr, harness.Patience)
		if err != nil {
			return all, errors.Join(fmt.Errorf("connection %d: %w", len(all), err), all.close())
		}
		all = append(all, nc)
		if err := ping(nc, "CONNECT {\"verbose\":false}\r\n"); err != nil {
			return all, errors.Join(fmt.Errorf("connection %d: %w", len(all)-1, err), all.close())
		}
	}
	return all, nil
}

// ping sends before and PING, and reads up to the PONG.
func ping(nc net.Conn, before string) error {
	if err := nc.SetDeadline(time.Now().Add(harness.Patience)); err != nil {
		return err
	}
	if _, err := nc.Write([]byte(before + "PING\r\n")); err != nil {
		return err
	}
	return untilPong(bufio.NewReaderSize(nc, 1<<10))
}

func (c crowd) close() error {
	var errs []error
	for _, nc := range c {
		errs = append(errs, nc.Close())
	}
	return errors.Join(errs...)
}

// room raises this process's limit of descriptors, and reports whether a crowd fits.
func room(size int) bool {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return false
	}
	limit.Cur = limit.Max
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) == nil && limit.Cur > uint64(size+500)
}

// forCrowds is a server that takes more connections than it does by default.
func forCrowds(t testing.TB) *harness.Server {
	t.Helper()
	if !room(crowdSize) {
		t.Skipf("%d connections need more descriptors than this process may have", crowdSize)
	}
	return harness.StartIn(t, []string{"TRUNKLINE_LIMITS_CONNECTIONS=12000"})
}

// TestTenThousandIdleConnectionsAreHeldAndCheap: they are all there at the end, and have cost little.
func TestTenThousandIdleConnectionsAreHeldAndCheap(t *testing.T) {
	s := forCrowds(t)
	before, _, err := memory(s.PID())
	if err != nil {
		t.Fatal(err)
	}
	all, err := gather(s.Client, crowdSize)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = all.close() }()
	after, _, err := memory(s.PID())
	if err != nil {
		t.Fatal(err)
	}
	each := (after - before) * (1 << 20) / crowdSize
	t.Logf("%.1f KiB each", each/1024)
	if each > crowdBytesMax && !harness.Race() { // the detector's own memory is many times as much
		t.Errorf("each connection takes %.1f KiB", each/1024)
	}
	for i, nc := range all {
		if err := ping(nc, ""); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
}

// lone publishes records one by one, each acknowledged before the next, and returns the time that 99 of 100 stay below,
// in milliseconds.
func lone(s *harness.Server, topic string, records int) (float64, error) {
	nc, r, err := tcp(s.Client)
	if err != nil {
		return 0, err
	}
	defer func() { _ = nc.Close() }()
	if _, err := r.ReadSlice('\n'); err != nil { // INFO
		return 0, err
	}
	var all []float64
	for range records {
		start := time.Now()
		if _, err := fmt.Fprintf(nc, "SEND %s 0123456789\r\n", topic); err != nil {
			return 0, err
		}
		line, err := r.ReadSlice('\n')
		if err != nil || line[0] != '+' {
			return 0, fmt.Errorf("answered with %q, %w", line, err)
		}
		all = append(all, float64(time.Since(start).Microseconds())/1000)
	}
	slices.Sort(all)
	return all[len(all)*99/100], nil
}

// BenchmarkCrowd is what a lone producer notices of ten thousand idle connections, and what they take of memory.
func BenchmarkCrowd(b *testing.B) {
	describe()
	for b.Loop() {
		s := forCrowds(b)
		before, _, err := memory(s.PID())
		if err != nil {
			b.Fatal(err)
		}
		var alone, among, ratio []float64
		for n := range 3 {
			a, err := lone(s, "t", loneRecords)
			if err != nil {
				b.Fatal(err)
			}
			all, err := gather(s.Client, crowdSize)
			if err != nil {
				b.Fatal(err)
			}
			if n == 0 {
				after, _, err := memory(s.PID())
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric((after-before)*1024/crowdSize, "KiB-each")
			}
			c, err := lone(s, "t", loneRecords)
			if err != nil {
				b.Fatal(err)
			}
			alone, among, ratio = append(alone, a), append(among, c), append(ratio, c/a)
			_ = all.close()
		}
		b.Logf("p99 of a lone producer: alone %s ms, among %d connections %s ms", spread(alone), crowdSize, spread(among))
		b.ReportMetric(median(ratio), "p99-ratio")
		s.Kill()
	}
}
