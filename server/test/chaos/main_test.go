// Package chaos takes the machine away from the shipped server and its plugins: power that fails, a journal that aborts,
// a disk that is full, processes that are killed, on real file systems and under load. What was acknowledged is kept by
// the client, outside that disk, and compared record by record.
//
// It needs root, loop devices, and mkfs.ext4 and mkfs.xfs (Debian: e2fsprogs, xfsprogs). make test tries each fault a few
// times; make chaos does so for long. -run and the flags -rounds, -time and -seed choose what is tried.
//
// A power loss is the file system's shutdown call without a flush of its log, made while every thread of the server and
// of its plugins stands still: unquiesced, a sync that is under way returns success for bytes that are then dropped, which
// no disk does. It does not tear sectors, and it does not reorder what the journal orders: package crashtest does.
package chaos

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

var (
	roundsFlag = flag.Int("rounds", 30, "power losses: two in three on ext4, the others on XFS")
	timeFlag   = flag.Duration("time", 8*time.Second, "for how long processes are killed")
	seedFlag   = flag.Uint64("seed", 0, "of every random choice; 0 takes one")
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// dice returns the random choices of a test, and says how to have them again.
func dice(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("again with -seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// partitions are enough for syncs of several to be under way at any time.
const partitions = 12

// create makes a topic that rolls its segments often.
func create(t *testing.T, s *harness.Server, topic, settings string) {
	t.Helper()
	if got := s.Dial().Ask(fmt.Sprintf("TOPIC CREATE %s partitions=%d segment.bytes=64KiB %s", topic, partitions, settings)); got != "+OK "+topic {
		t.Fatalf("create %s: %s", topic, got)
	}
}
