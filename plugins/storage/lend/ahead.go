package lend

import (
	"errors"
	"syscall"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
)

// Blocks are asked for ahead of the writer, beyond the end of the active segment, in steps that double as it goes on
// (§9). Nothing depends on it: the length stays what was written, and whether a write fits is the write's to say.
const (
	aheadMin = 1 << 20
	aheadMax = 8 << 20
	// aheadLeft is how much beyond its end a file may take on the disk before its opener gives it back: file systems
	// count blocks of their own there.
	aheadLeft = 64 << 10
)

// ahead is what was asked for beyond the end of the active segment. Guarded by Log.mu.
type ahead struct {
	until int64 // where it ends; 0: nothing was asked for
	step  int64 // the last one
}

// take moves the end where a group that ends at end needs it, and says what is to be asked for: nothing beyond most,
// where the segment ends.
func (a *ahead) take(end, most int64) span {
	if end <= a.until {
		return span{}
	}
	from := max(a.until, end)
	step := min(max(aheadMin, 2*a.step), aheadMax)
	until := min(from+step, most)
	if until <= from {
		return span{}
	}
	a.until, a.step = until, step
	return span{from, until - from}
}

// preallocate asks for s beyond the end of f, which is size bytes long. Whatever a disk that fills up has kept for it
// is given back, because others need it.
func preallocate(f vfs.File, s span, size int64) {
	err := f.Preallocate(s.from, s.bytes)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		_ = f.Truncate(size) // it is that long; the write to come says what is wrong with the disk
	}
}

// giveBlocksBack gives back what was preallocated beyond the end of the active segment. The caller sees to it that no
// append begins meanwhile. What cannot be given back now is by who opens the log next, or goes with the segment.
func (l *Log) giveBlocksBack() {
	l.mu.Lock()
	if l.file == nil || l.down != nil || l.ahead.until == 0 {
		l.mu.Unlock()
		return
	}
	file, size := l.file, l.activeLocked().size
	l.ahead = ahead{}
	l.use.count++ // or a file that recovery has shortened meanwhile would be made longer again
	l.mu.Unlock()
	if info, err := file.Stat(); err == nil && info.Size == size {
		_ = file.Truncate(size)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.releaseLocked()
}

// giveIdleBlocksBack is giveBlocksBack for a log whose writer is elsewhere, and does nothing where it is at work.
func (l *Log) giveIdleBlocksBack() {
	l.mu.Lock()
	busy := l.ahead.until == 0 || l.use.count > 0 || l.use.parking || l.down != nil
	l.use.parking = l.use.parking || !busy
	l.mu.Unlock()
	if busy {
		return
	}
	defer l.letGo()
	l.giveBlocksBack()
}
