// Package retention is the time by which a store's segments grow old. The time of day may be wrong, and what is deleted
// by it does not come back when it is put right; so this clock goes by the time that passes, and follows the time of day
// at once over small gaps only.
//
// It keeps nothing: a store saves what Hands says and gives it to Resume, and without it calls Begin.
package retention

import (
	"sync"
	"time"
)

// Source tells the time.
type Source interface {
	// Wall is the time of day. It may be wrong, and it may jump either way.
	Wall() time.Time
	// Elapsed is the time since some moment of this process. It never jumps.
	Elapsed() time.Duration
}

// System returns the machine's clock.
func System() Source { return system{start: time.Now()} }

type system struct{ start time.Time }

func (c system) Wall() time.Time        { return time.Now() }
func (c system) Elapsed() time.Duration { return time.Since(c.start) }

// The clock follows the time of day at once over a gap of gapMax and less: a restart, a small correction. After a larger
// one it waits until the gap has been there for gapWait.
const (
	gapMax  = time.Hour
	gapWait = 24 * time.Hour
)

// Clock never goes back. It stands still until Begin or Resume.
type Clock struct {
	source Source

	mu    sync.Mutex
	time  time.Duration // since the Unix epoch
	seen  time.Duration // source.Elapsed at the last look
	apart time.Duration // how long the time of day has been further ahead than gapMax
}

// New returns a clock without hands.
func New(source Source) *Clock { return &Clock{source: source} }

// Hands are where a clock stands: its time since the Unix epoch, and how long the time of day has been far ahead of it.
type Hands struct{ Time, Apart time.Duration }

// Begin starts the clock at the time of day.
func (c *Clock) Begin() { c.Resume(Hands{Time: time.Duration(c.source.Wall().UnixNano())}) }

// Resume goes on where an earlier process left off.
func (c *Clock) Resume(h Hands) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen, c.time, c.apart = c.source.Elapsed(), h.Time, h.Apart
	c.lookLocked()
}

// Now is the time in milliseconds.
func (c *Clock) Now() int64 { return c.Hands().Time.Milliseconds() }

// Hands looks at both clocks, moves on, and says where the clock stands.
func (c *Clock) Hands() Hands {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lookLocked()
	return Hands{Time: c.time, Apart: c.apart}
}

func (c *Clock) lookLocked() {
	wall, elapsed := time.Duration(c.source.Wall().UnixNano()), c.source.Elapsed()
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
