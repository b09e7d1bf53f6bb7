// Package bench measures whole servers: appends through the lease against the same code in one process, publishes
// against nats-server's, the Go client and pub --lines against raw requests and against franz-go with Kafka, memory and
// starts. RESULTS.md holds what came out, and where.
//
// make bench runs it. What is compared is measured in pairs, one run of each after the other, and the medians of the
// pairs are reported: a neighbour's load hits both. A server, its peer and the client, which is the test's process,
// are processes of their own. Times decide nothing here; wrong answers fail.
package bench

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestMain(m *testing.M) {
	if os.Getenv(peerEnv) != "" {
		os.Exit(runPeer())
	}
	flag.Parse()
	os.Exit(harness.Main(m))
}

// describe logs, once a process, where it was measured.
var describe = sync.OnceFunc(func() {
	for _, row := range machine() {
		fmt.Println(row)
	}
})

// machine says what a result depends on.
func machine() []string {
	var name unix.Utsname
	_ = unix.Uname(&name)
	model := "unknown"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for row := range strings.Lines(string(b)) {
			if key, value, _ := strings.Cut(row, ":"); strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
			}
		}
	}
	return []string{
		fmt.Sprintf("machine: %d × %s, Linux %s, %s", runtime.NumCPU(), model, unix.ByteSliceToString(name.Release[:]), runtime.Version()),
		fmt.Sprintf("directory: %s, %s", os.TempDir(), fileSystem(os.TempDir())),
	}
}

// fileSystem names the file system that a directory lies on.
func fileSystem(dir string) string {
	out, err := exec.Command("df", "--output=fstype", dir).Output()
	if err != nil {
		return "unknown file system"
	}
	return string(bytes.TrimSpace(bytes.TrimPrefix(out, []byte("Type"))))
}

// median is the middle one; of an even number the upper of the two.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// spread is the range that holds the middle half.
func spread(values []float64) string {
	sorted := slices.Sorted(slices.Values(values))
	return fmt.Sprintf("%.4g (%.4g to %.4g)", median(values), sorted[len(sorted)/4], sorted[len(sorted)*3/4])
}

func TestMedianAndSpread(t *testing.T) {
	if got := spread([]float64{9, 1, 5, 7, 3}); got != "5 (3 to 7)" {
		t.Error(got)
	}
}

// cpuSeconds is the processor time that a process has used so far, in user and kernel, of all its threads.
func cpuSeconds(pid int) (float64, error) {
	// The clock of a process, as clock_getcpuclockid makes it: getrusage knows children only once they have ended.
	const scheduled = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &ts); err != nil {
		return 0, fmt.Errorf("processor time of %d: %w", pid, err)
	}
	return float64(ts.Nano()) / 1e9, nil
}

func TestProcessorTimeIsThatOfTheProcess(t *testing.T) {
	before, err := cpuSeconds(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var own unix.Rusage
	for { // use some
		if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
			t.Fatal(err)
		}
		after, err := cpuSeconds(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if after-before < 0.05 {
			continue
		}
		if used := float64(own.Utime.Nano()+own.Stime.Nano()) / 1e9; used > after || used < after-0.5 {
			t.Errorf("getrusage says %.3f s, the clock %.3f s", used, after)
		}
		return
	}
}
