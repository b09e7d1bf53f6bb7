package bench

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// startRuns is how often a start is measured.
const startRuns = 11

// BenchmarkStart is the time from the start of the process to its ready line, on an empty directory and with its three
// plugins running.
func BenchmarkStart(b *testing.B) {
	describe()
	for b.Loop() {
		var ms []float64
		for range startRuns {
			start := time.Now()
			s := harness.Start(b)
			ms = append(ms, float64(time.Since(start).Microseconds())/1000)
			if n := len(s.Plugins()); n != 3 {
				b.Fatalf("%d plugins run", n)
			}
			s.Kill()
		}
		b.Logf("%s ms", spread(ms))
		b.ReportMetric(median(ms), "ms-to-ready")
	}
}

// idleTime is how long a server is left alone before it is measured.
const idleTime = 5 * time.Second

// BenchmarkIdle is what a server and its three plugins hold in memory when nobody does anything.
func BenchmarkIdle(b *testing.B) {
	describe()
	for b.Loop() {
		s := harness.Start(b)
		<-time.After(idleTime)
		pids := s.Plugins()
		pids["server"] = s.PID()
		var rss, pss float64
		for _, kind := range []string{"server", "storage", "partitioner", "metadata"} {
			one, share, err := memory(pids[kind])
			if err != nil {
				b.Fatal(err)
			}
			b.Logf("%-11s %.1f MiB resident, %.1f MiB its share", kind, one, share)
			rss += one
			pss += share
		}
		b.ReportMetric(rss, "MiB-resident")
		b.ReportMetric(pss, "MiB-share")
		s.Kill()
	}
}

// memory reads what a process holds, in MiB: all its resident pages, and with each page that several share counted in
// parts.
func memory(pid int) (rss, pss float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	for row := range strings.Lines(string(b)) {
		var kib float64
		if n, _ := fmt.Sscanf(row, "Rss: %f kB", &kib); n == 1 {
			rss = kib / 1024
		}
		if n, _ := fmt.Sscanf(row, "Pss: %f kB", &kib); n == 1 {
			pss = kib / 1024
		}
	}
	if rss == 0 || pss == 0 {
		return 0, 0, fmt.Errorf("memory of %d cannot be read from %q", pid, b)
	}
	return rss, pss, nil
}

func TestMemoryIsThatOfTheProcess(t *testing.T) {
	rss, pss, err := memory(os.Getpid())
	if err != nil || rss < 1 || pss > rss {
		t.Errorf("%v, %v, %v", rss, pss, err)
	}
}
