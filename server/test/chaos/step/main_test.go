// Package step kills the server, or its storage plugin, at every step that has a name in the code of the lease: between
// a write and its sync, between a rename and the sync of its directory, between a call and its answer. The binaries are
// built with the tag failpoint for it; who is shipped has no such steps. What was acknowledged is kept by the client and
// compared record by record.
//
// The names are read from the source, so that a new one is tried from the first day; one that no test reaches fails. make
// test goes to every step once, make chaos on to more rounds with both victims. -seed repeats a run's random choices.
package step

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

var (
	roundsFlag = flag.Int("rounds", 0, "at least so many kills; every step is gone to once in any case")
	seedFlag   = flag.Uint64("seed", 0, "of every random choice; 0 takes one")
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m, "failpoint")) }

// kill is one death: the n-th time that a step is reached, of the process that reached it or of the other.
type kill struct {
	step   string
	n      int
	victim string // "self" or "other"
}

func (k kill) String() string { return fmt.Sprintf("%s %d %s", k.step, k.n, k.victim) }

// dies says whose end it is: "server" or "storage".
func (k kill) dies() string {
	if strings.HasPrefix(k.step, "plugin.") == (k.victim == "self") {
		return "storage"
	}
	return "server"
}

// group is the step's part of the code: "append" of "core.append.written".
func (k kill) group() string { return strings.Split(k.step, ".")[1] }

// sources are where the steps are.
var sources = []string{"../../../../plugins/storage/lend/*.go", "../../../../plugins/storage/filelog/*.go"}

var hit = regexp.MustCompile(`failpoint\.Hit\((.*)\)`)

// steps returns the names of all of them.
func steps(t *testing.T) []string {
	t.Helper()
	found := map[string]int{}
	for _, pattern := range sources {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range hit.FindAllStringSubmatch(string(text), -1) {
				step := strings.Trim(m[1], `"`)
				if strings.Count(step, ".") != 2 || found[step] > 0 {
					t.Fatalf("step %s in %s: a name is <side>.<group>.<what>, and stands once", m[1], name)
				}
				found[step]++
			}
		}
	}
	if len(found) < 50 {
		t.Fatalf("only %d steps were found", len(found))
	}
	return slices.Sorted(maps.Keys(found))
}

// often are groups whose steps are reached again and again under load, by several partitions.
var often = map[string]int{"append": 200, "roll": 5, "seal": 5}

// plan is what is tried: every step; with more rounds every step with the other victim; then any.
func plan(t *testing.T, r *rand.Rand) []kill {
	t.Helper()
	all := steps(t)
	var kills []kill
	add := func(step string, self bool) {
		k := kill{step: step, n: 1, victim: "other"}
		if self {
			k.victim = "self"
		}
		if most := often[k.group()]; most > 0 {
			k.n += r.IntN(most)
		}
		kills = append(kills, k)
	}
	chosen := make([]bool, len(all))
	for i, step := range all {
		chosen[i] = r.IntN(2) == 0
		add(step, chosen[i])
	}
	for i, step := range all {
		if *roundsFlag > len(kills) {
			add(step, !chosen[i])
		}
	}
	for *roundsFlag > len(kills) {
		add(all[r.IntN(len(all))], r.IntN(2) == 0)
	}
	r.Shuffle(len(kills), func(i, j int) { kills[i], kills[j] = kills[j], kills[i] })
	return kills
}

// lanes is how many kills are under way at a time: most of one is waiting.
const lanes = 3

func TestKilledAtEveryStep(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("again with -seed %d", seed)
	kills := plan(t, rand.New(rand.NewPCG(seed, 0)))
	served, truncated := make([][]kill, lanes), []kill(nil)
	for i, k := range kills {
		if k.group() == "truncate" {
			truncated = append(truncated, k)
		} else {
			served[i%lanes] = append(served[i%lanes], k)
		}
	}
	golden := newGolden(t)
	for i := range lanes {
		t.Run(fmt.Sprintf("server-%d", i), func(t *testing.T) {
			t.Parallel()
			runServed(t, golden, served[i], rand.New(rand.NewPCG(seed, uint64(i)+1)))
		})
	}
	t.Run("truncate", func(t *testing.T) {
		t.Parallel()
		runTruncated(t, truncated)
	})
}

// fuse is the file by which the processes are told where to die.
type fuse struct {
	t    *testing.T
	path string
}

func newFuse(t *testing.T) fuse { return fuse{t, filepath.Join(t.TempDir(), "fuse")} }

func (f fuse) env() string { return "TRUNKLINE_FAILPOINT=" + f.path }

// light arms it. The file is there whole or not at all.
func (f fuse) light(k kill) {
	f.t.Helper()
	next := f.path + ".next"
	if err := os.WriteFile(next, []byte(k.String()+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(next, f.path); err != nil {
		f.t.Fatal(err)
	}
}

func (f fuse) fired() bool {
	text, err := os.ReadFile(f.path)
	return err == nil && string(text) == "fired\n"
}
