package lend

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
)

// ErrCrowded says that every descriptor of the budget is in use, and was until the wait for one ended. Nothing was done.
var ErrCrowded = errors.New("too many segments are in use at once")

// Budget is how many descriptors there are for segments, of one directory or of several: those of writers and those that
// readers keep open. Whoever is about to get one claims it first (Dir.makeRoom); beyond the limit the least recently used
// goes, a reader's at once, a writer's by parking its log.
//
// Those of a store whose files are pinned count, but neither go nor wait. What they leave is for the others, and never
// less than a quarter, so that a store in memory does not stop those on disk.
type Budget struct {
	limit int
	mu    sync.Mutex
	used  int           // descriptors there are, and those that were claimed
	kept  int           // those of pinned segments. Invariant: kept <= used.
	lru   list.List     // of *segment with a file that is not pinned, most recent first
	freed chan struct{} // closed and replaced when used falls
}

// NewBudget returns one of so many descriptors; 0: 1024.
func NewBudget(limit int) *Budget {
	if limit == 0 {
		limit = openFilesDefault
	}
	return &Budget{limit: limit}
}

// overLocked is how many descriptors there are too many; 0: just as many as there may be.
func (c *Budget) overLocked() int {
	return c.used - c.kept - max(c.limit-c.kept, c.limit/4, 1)
}

// claim takes one descriptor out of the budget, whatever is left of it. give, put or pin must follow.
func (c *Budget) claim() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used++
}

// give puts a claim back that came to nothing.
func (c *Budget) give() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.freeLocked()
}

func (c *Budget) freeLocked() {
	c.used--
	if c.freed != nil {
		close(c.freed)
		c.freed = nil
	}
}

// tryClaim claims a descriptor if there is one, closing readers' files for it. Else it names a log to be parked, nil
// where there is none, and what is closed when one comes free. A log that is named counts as used, so that the next to
// ask hears of another.
func (c *Budget) tryClaim(keep bool) (ok bool, idle *Log, freed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if keep {
		c.used++
		return true, nil, nil
	}
	for e := c.lru.Back(); e != nil && c.overLocked() >= 0; {
		s, before := e.Value.(*segment), e.Prev()
		switch {
		case s.refs > 0:
		case s.writer == nil:
			c.closeLocked(s)
		case idle == nil:
			idle = s.writer
			c.lru.MoveToFront(e)
		}
		if idle != nil {
			break
		}
		e = before
	}
	if c.overLocked() < 0 {
		c.used++
		return true, nil, nil
	}
	if c.freed == nil {
		c.freed = make(chan struct{})
	}
	return false, idle, c.freed
}

// acquire returns s's file for reading, and false where it has to be lent first. release must follow.
func (c *Budget) acquire(s *segment) (vfs.File, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.file == nil || s.gone {
		return nil, false
	}
	s.refs++
	c.touchLocked(s)
	return s.file, true
}

// touch notes that s's writer uses it.
func (c *Budget) touch(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.touchLocked(s)
}

func (c *Budget) touchLocked(s *segment) {
	if s.elem != nil {
		c.lru.MoveToFront(s.elem)
	}
}

// put gives s a lent file, for which there is a claim, unless another reader was faster, and returns the one it has,
// acquired; false where s was let go or parked meanwhile. A file that is not used is closed.
func (c *Budget) put(s *segment, f vfs.File, keep bool) (vfs.File, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.gone || s.parked || s.file != nil {
		_ = f.Close()
		c.freeLocked()
	} else {
		c.placeLocked(s, f, keep)
	}
	if s.gone || s.parked {
		return nil, false
	}
	s.refs++
	return s.file, true
}

// pin gives s the file of its writer, l, for which there is a claim.
func (c *Budget) pin(s *segment, f vfs.File, l *Log) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.writer, s.parked = l, false
	c.placeLocked(s, f, l.dir.pinned())
}

func (c *Budget) placeLocked(s *segment, f vfs.File, keep bool) {
	s.file, s.kept = f, keep
	if keep {
		c.kept++
		return
	}
	s.elem = c.lru.PushFront(s)
}

// displaceLocked takes its file from s. The claim on it stays.
func (c *Budget) displaceLocked(s *segment) {
	if s.kept {
		c.kept--
	} else {
		c.lru.Remove(s.elem)
	}
	s.file, s.elem, s.kept = nil, nil, false
}

// unpin makes a writer's file one that readers keep open.
func (c *Budget) unpin(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.writer = nil
	c.evictLocked()
}

// detach takes its writer's file from s, which stays readable once it has one again. It reports false while somebody
// reads. The caller closes the file and gives the claim back.
func (c *Budget) detach(s *segment) (vfs.File, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.refs > 0 || s.gone || s.file == nil {
		return nil, false
	}
	f := s.file
	s.writer, s.parked = nil, true
	c.displaceLocked(s)
	return f, true
}

func (c *Budget) release(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.refs--
	if s.refs == 0 && s.gone {
		c.closeLocked(s)
	}
	c.evictLocked()
}

// forget closes s's file as soon as nobody reads from it. The segment stays unreadable.
func (c *Budget) forget(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.gone, s.writer = true, nil
	if s.refs == 0 {
		c.closeLocked(s)
	}
}

// evictLocked closes readers' files while there are too many: a roll does not wait for room.
func (c *Budget) evictLocked() {
	for e := c.lru.Back(); e != nil && c.overLocked() > 0; {
		s, before := e.Value.(*segment), e.Prev()
		if s.refs == 0 && s.writer == nil {
			c.closeLocked(s)
		}
		e = before
	}
}

func (c *Budget) closeLocked(s *segment) {
	if s.file == nil {
		return
	}
	_ = s.file.Close() // nothing was written through it since its last sync
	c.displaceLocked(s)
	c.freeLocked()
}

// crowdedPause is how long a busy directory is left alone before it is looked through again: that a log has become idle
// is not told to anybody.
const crowdedPause = 5 * time.Millisecond

// makeRoom claims a descriptor, and parks logs for it where it must. It waits until ctx ends; then it is ErrCrowded.
// While the directory is fenced nothing can be parked, and it is ErrFenced at once.
func (d *Dir) makeRoom(ctx context.Context) error {
	for tries := 0; ; tries++ {
		ok, idle, freed := d.files.tryClaim(d.pinned())
		if ok {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w: %w", ErrCrowded, err)
		}
		if err := d.fenceErr(); err != nil {
			return err
		}
		switch {
		case idle == nil:
		case idle.dir != d:
			idle.dir.parkForOthers(idle)
			idle = nil // and its directory is waited for
		case idle.park(ctx):
			continue
		}
		if idle != nil && tries%d.files.limit != d.files.limit-1 {
			continue // the next one
		}
		pause := time.NewTimer(crowdedPause)
		select {
		case <-freed:
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

// others is what a directory does for those that share its budget.
type others struct {
	work   sync.WaitGroup
	busy   bool // guarded by Dir.mu: one log at a time
	closed bool // guarded by Dir.mu
}

// parkForOthers parks l, a log of d, in d's own time: another directory, which needs the descriptor, must not hang on
// this one's disk or plugin.
func (d *Dir) parkForOthers(l *Log) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.others.busy || d.others.closed || d.fence != nil {
		return
	}
	d.others.busy = true
	d.others.work.Go(func() {
		l.park(context.Background())
		d.mu.Lock()
		defer d.mu.Unlock()
		d.others.busy = false
	})
}
