package bench

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// othersMax is the share of the machine that other programs may take while a pair is measured. A pair during which they
// took more is measured and left out: what has to wait for a second process suffers more from a third.
const othersMax = 0.10

// searchFlag is how long calm pairs are looked for; then all that were measured count.
var searchFlag = flag.Duration("search", 4*time.Minute, "how long rounds that others do not disturb are looked for")

// ticksPerSecond is the unit of /proc's times, which is the same on every Linux that Go runs on.
const ticksPerSecond = 100

// programTimes reads the processor time of every running program, in ticks. The kernel's own threads are left out: what
// they do is write for the programs that are measured.
func programTimes() map[int]int {
	times := map[int]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		const parent, user, system, kthreadd = 1, 11, 12, "2" // fields behind the name
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(fields) <= system || fields[parent] == kthreadd {
			continue
		}
		u, _ := strconv.Atoi(fields[user])
		s, _ := strconv.Atoi(fields[system])
		times[pid] = u + s
	}
	return times
}

// watchOthers begins to watch; what it returns tells the share of the machine that programs other than ours have taken
// since. Of those that have ended meanwhile it knows nothing.
func watchOthers(ours ...int) func() float64 {
	before, start := programTimes(), time.Now()
	return func() float64 {
		took, ticks := time.Since(start), 0
		for pid, now := range programTimes() {
			if !slices.Contains(ours, pid) {
				ticks += now - before[pid]
			}
		}
		return float64(ticks) / ticksPerSecond / took.Seconds() / float64(runtime.NumCPU())
	}
}

// inPairs measures until there are count calm rounds, and hands each result of those to keep. The first round is a
// warm-up. It logs what was left out.
func inPairs[T any](b *testing.B, count int, ours []int, round func(n int) T, keep func(T)) {
	b.Helper()
	var calm, all []T
	for n, start := 0, time.Now(); len(calm) < count && (len(all) < count || time.Since(start) < *searchFlag); n++ {
		others := watchOthers(ours...)
		got := round(n)
		share := others()
		if n == 0 {
			continue
		}
		all = append(all, got)
		if share <= othersMax {
			calm = append(calm, got)
		}
	}
	what := "calm ones, with at most 10 % of the machine taken by others"
	if len(calm) < count {
		what, calm = fmt.Sprintf("all: only %d were calm", len(calm)), all
	}
	b.Logf("%d rounds measured, %d count: %s", len(all), len(calm), what)
	for _, got := range calm {
		keep(got)
	}
}

func TestOthersAreNoticed(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	all, rest := watchOthers(os.Getpid()), watchOthers(os.Getpid(), cmd.Process.Pid)
	begun := programTimes()[cmd.Process.Pid]
	for programTimes()[cmd.Process.Pid] < begun+20 { // it has run for 0.2 s
	}
	if a, r := all(), rest(); a <= r {
		t.Errorf("with it %.3f, without it %.3f", a, r)
	}
}
