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

// fileCache is the budget of descriptors for segments: those of writers and those that readers keep open. Whoever is
// about to get one claims it first (Dir.makeRoom); beyond the limit the least recently used goes, a reader's at once, a
// writer's by parking its log.
type fileCache struct {
	limit int
	mu    sync.Mutex
	// pinned: nothing is closed or parked for want of a descriptor.
	pinned bool
	used   int           // descriptors there are, and those that were claimed
	lru    list.List     // of *segment with a file, most recent first
	freed  chan struct{} // closed and replaced when used falls
}

// claim takes one descriptor out of the budget, whatever is left of it. give, put or pin must follow.
func (c *fileCache) claim() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used++
}

// give puts a claim back that came to nothing.
func (c *fileCache) give() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.freeLocked()
}

func (c *fileCache) freeLocked() {
	c.used--
	if c.freed != nil {
		close(c.freed)
		c.freed = nil
	}
}

// tryClaim claims a descriptor if there is one, closing readers' files for it. Else it names a log to be parked, nil
// where there is none, and what is closed when one comes free. A log that is named counts as used, so that the next to
// ask hears of another.
func (c *fileCache) tryClaim() (ok bool, idle *Log, freed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pinned {
		c.used++
		return true, nil, nil
	}
	for e := c.lru.Back(); e != nil && c.used >= c.limit; {
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
	if c.used < c.limit {
		c.used++
		return true, nil, nil
	}
	if c.freed == nil {
		c.freed = make(chan struct{})
	}
	return false, idle, c.freed
}

// acquire returns s's file for reading, and false where it has to be lent first. release must follow.
func (c *fileCache) acquire(s *segment) (vfs.File, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.file == nil || s.gone {
		return nil, false
	}
	s.refs++
	c.lru.MoveToFront(s.elem)
	return s.file, true
}

// touch notes that s's writer uses it.
func (c *fileCache) touch(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.elem != nil {
		c.lru.MoveToFront(s.elem)
	}
}

// put gives s a lent file, for which there is a claim, unless another reader was faster, and returns the one it has,
// acquired; false where s was let go meanwhile. A file that is not used is closed.
func (c *fileCache) put(s *segment, f vfs.File) (vfs.File, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.gone || s.file != nil {
		_ = f.Close()
		c.freeLocked()
	} else {
		s.file = f
		s.elem = c.lru.PushFront(s)
	}
	if s.gone {
		return nil, false
	}
	s.refs++
	return s.file, true
}

// pin gives s the file of its writer, l, for which there is a claim.
func (c *fileCache) pin(s *segment, f vfs.File, l *Log) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.file, s.writer = f, l
	s.elem = c.lru.PushFront(s)
}

// unpin makes a writer's file one that readers keep open.
func (c *fileCache) unpin(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.writer = nil
	c.evictLocked()
}

// detach takes its writer's file from s, which stays readable once it has one again. It reports false while somebody
// reads. The caller closes the file and gives the claim back.
func (c *fileCache) detach(s *segment) (vfs.File, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.refs > 0 || s.gone || s.file == nil {
		return nil, false
	}
	f := s.file
	s.file, s.writer = nil, nil
	c.lru.Remove(s.elem)
	s.elem = nil
	return f, true
}

func (c *fileCache) release(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.refs--
	if s.refs == 0 && s.gone {
		c.closeLocked(s)
	}
	c.evictLocked()
}

// forget closes s's file as soon as nobody reads from it. The segment stays unreadable.
func (c *fileCache) forget(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.gone, s.writer = true, nil
	if s.refs == 0 {
		c.closeLocked(s)
	}
}

// evictLocked closes readers' files while there are too many: a roll does not wait for room.
func (c *fileCache) evictLocked() {
	for e := c.lru.Back(); e != nil && c.used > c.limit && !c.pinned; {
		s, before := e.Value.(*segment), e.Prev()
		if s.refs == 0 && s.writer == nil {
			c.closeLocked(s)
		}
		e = before
	}
}

func (c *fileCache) closeLocked(s *segment) {
	if s.file == nil {
		return
	}
	_ = s.file.Close() // nothing was written through it since its last sync
	s.file = nil
	c.lru.Remove(s.elem)
	s.elem = nil
	c.freeLocked()
}

// crowdedPause is how long a busy directory is left alone before it is looked through again: that a log has become idle
// is not told to anybody.
const crowdedPause = 5 * time.Millisecond

// makeRoom claims a descriptor, and parks logs for it where it must. It waits until ctx ends; then it is ErrCrowded.
// While the directory is fenced nothing can be parked, and it is ErrFenced at once.
func (d *Dir) makeRoom(ctx context.Context) error {
	for tries := 0; ; tries++ {
		ok, idle, freed := d.files.tryClaim()
		if ok {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w: %w", ErrCrowded, err)
		}
		if err := d.fenceErr(); err != nil {
			return err
		}
		if idle != nil && idle.park(ctx) {
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
