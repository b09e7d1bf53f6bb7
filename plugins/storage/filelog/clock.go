package filelog

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Clock tells a store the time.
type Clock interface {
	// Wall is the time of day. It may be wrong, and it may jump either way.
	Wall() time.Time
	// Elapsed is the time since some moment of this process. It never jumps.
	Elapsed() time.Duration
}

// systemClock is the machine's clock.
type systemClock struct{ start time.Time }

func (c systemClock) Wall() time.Time        { return time.Now() }
func (c systemClock) Elapsed() time.Duration { return time.Since(c.start) }

// The retention clock follows the time of day at once over a gap of gapMax and less: a restart, a small correction.
// After a larger one it waits until the gap has been there for gapWait: the time of day may be wrong, and what is
// deleted does not come back when it is put right.
const (
	gapMax  = time.Hour
	gapWait = 24 * time.Hour
)

// clockEvery is how often the retention clock is saved. A process that dies falls back by so much at most, and catches
// up by the time of day.
const clockEvery = time.Minute

// retentionClock is the time by which segments grow old, in milliseconds. It never goes back, and it goes on over
// restarts.
type retentionClock struct {
	clock Clock
	// era tells clocks apart: after the file was lost, stamps of the old clock mean nothing.
	era uint32 // immutable after load

	mu    sync.Mutex
	time  time.Duration // since the Unix epoch
	seen  time.Duration // clock.Elapsed at the last look
	apart time.Duration // how long the time of day has been further ahead than gapMax
}

// now looks at both clocks and moves on.
func (c *retentionClock) now() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lookLocked()
	return c.time.Milliseconds()
}

func (c *retentionClock) lookLocked() {
	wall, elapsed := time.Duration(c.clock.Wall().UnixNano()), c.clock.Elapsed()
	passed := max(0, elapsed-c.seen)
	c.seen = elapsed
	switch gap := wall - c.time - passed; {
	case gap > gapMax:
		c.time += passed
		c.apart += passed
		if c.apart >= gapWait {
			c.time, c.apart = wall, 0
		}
	case gap < -gapMax: // it is this clock that is ahead, and that it stays: only differences count
		c.time += passed
		c.apart = 0
	default:
		c.time = max(c.time, wall)
		c.apart = 0
	}
}

// load goes on where an earlier process left off. Where that cannot be read a new era begins, at the time of day.
func (c *retentionClock) load(d disk, generation uint32) error {
	text, err := d.readSmall(d.retentionClock())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = c.clock.Elapsed()
	if err != nil || !c.parseLocked(text) {
		c.time, c.era, c.apart = time.Duration(c.clock.Wall().UnixNano()), generation, 0
	}
	c.lookLocked()
	return ignoreMissing(err)
}

func (c *retentionClock) parseLocked(text []byte) bool {
	body, err := checkSum(text)
	if err != nil {
		return false
	}
	var numbers []int64
	for _, field := range strings.Fields(string(body)) {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil || n < 0 {
			return false
		}
		numbers = append(numbers, n)
	}
	if len(numbers) != 4 || numbers[0] != 1 || numbers[1] > 1<<31 {
		return false
	}
	c.era = uint32(numbers[1])
	c.time, c.apart = time.Duration(numbers[2])*time.Millisecond, time.Duration(numbers[3])*time.Millisecond
	return true
}

// save writes "1 <era> <milliseconds> <milliseconds apart>" and a sum.
func (c *retentionClock) save(d disk) error {
	c.mu.Lock()
	c.lookLocked()
	text := fmt.Appendf(nil, "1 %d %d %d\n", c.era, c.time.Milliseconds(), c.apart.Milliseconds())
	c.mu.Unlock()
	return d.writeDurably(d.retentionClock(), withSum(text))
}
