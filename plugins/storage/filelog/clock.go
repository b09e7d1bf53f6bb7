package filelog

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/retention"
)

// Clock tells a store the time.
type Clock = retention.Source

// clockEvery is how often the retention clock is saved. A process that dies falls back by so much at most, and catches
// up by the time of day.
const clockEvery = time.Minute

// retentionClock is the time by which segments grow old, in milliseconds. It goes on over restarts.
type retentionClock struct {
	clock Clock
	// era tells clocks apart: after the file was lost, stamps of the old clock mean nothing.
	era   uint32           // immutable after load
	hands *retention.Clock // made by load
}

// now looks at both clocks and moves on.
func (c *retentionClock) now() int64 { return c.hands.Now() }

// load goes on where an earlier process left off. Where that cannot be read a new era begins, at the time of day.
func (c *retentionClock) load(d disk, generation uint32) error {
	c.hands = retention.New(c.clock)
	text, err := d.readSmall(d.retentionClock())
	if err != nil || !c.parse(text) {
		c.era = generation
		c.hands.Begin()
	}
	return ignoreMissing(err)
}

func (c *retentionClock) parse(text []byte) bool {
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
	c.hands.Resume(retention.Hands{Time: time.Duration(numbers[2]) * time.Millisecond, Apart: time.Duration(numbers[3]) * time.Millisecond})
	return true
}

// save writes "1 <era> <milliseconds> <milliseconds apart>" and a sum.
func (c *retentionClock) save(d disk) error {
	h := c.hands.Hands()
	text := fmt.Appendf(nil, "1 %d %d %d\n", c.era, h.Time.Milliseconds(), h.Apart.Milliseconds())
	return d.writeDurably(d.retentionClock(), withSum(text))
}
