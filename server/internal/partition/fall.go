package partition

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// FellError says that a reader stood beyond the end of the log: records [End, Stood), which it may have seen, are gone.
// Only a topic that acknowledges before it syncs can lose what was visible. What comes next has offset End.
type FellError struct {
	Partition  storage.Partition
	End, Stood record.Offset
}

func (e *FellError) Error() string {
	return fmt.Sprintf("%s ends at %d since its disk failed: offsets %d to %d were not synced and are gone", e.Partition, e.End, e.End, e.Stood-1)
}

// fallsMax bounds the falls that are told apart. A log directory that fails twice within ten minutes is given up, so
// that is hours of falls.
const fallsMax = 64

// falls are the times when the high watermark fell.
type falls struct {
	count atomic.Uint64 // grows with mu held
	mu    sync.Mutex    // also over each change of the high watermark
	// ends ascend by both: a fall to a lower end covers those before it.
	ends []fall
}

type fall struct {
	number uint64 // counted from 1
	end    record.Offset
}

// Falls counts the times when the high watermark fell. Who reads remembers it, and asks FellSince when it has changed.
func (p *Partition) Falls() uint64 { return p.falls.count.Load() }

// FellSince is the lowest high watermark of all falls after the first n, and false where there was none.
func (p *Partition) FellSince(n uint64) (record.Offset, bool) {
	p.falls.mu.Lock()
	defer p.falls.mu.Unlock()
	for _, f := range p.falls.ends {
		if f.number > n {
			return f.end, true
		}
	}
	return 0, false
}

// Reopened says that the log was opened anew: readers that were turned away look again, and if it is shorter than what
// they may have seen, the high watermark falls and they are told.
func (p *Partition) Reopened() {
	p.falls.mu.Lock()
	end := p.log.End()
	if end < p.HighWatermark() {
		p.hw.Store(int64(end))
		n := p.falls.count.Load() + 1
		ends := p.falls.ends
		for len(ends) > 0 && ends[len(ends)-1].end >= end {
			ends = ends[:len(ends)-1]
		}
		if len(ends) == fallsMax { // the two oldest become one, which tells of more than was lost
			ends[1].end = ends[0].end
			ends = append(ends[:0], ends[1:]...)
		}
		p.falls.ends = append(ends, fall{n, end})
		p.falls.count.Store(n)
	}
	p.falls.mu.Unlock()
	p.watch.wake()
}

// raise moves the high watermark to next, which is committed. The log may have been cut since.
func (p *Partition) raise(next record.Offset) {
	p.falls.mu.Lock()
	defer p.falls.mu.Unlock()
	p.hw.Store(int64(min(next, p.log.End())))
}
