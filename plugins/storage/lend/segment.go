package lend

import (
	"container/list"
	"context"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// indexBytes is how far apart the core's own index entries lie: a read starts at most that far before its offset.
const indexBytes = 64 << 10

// segment is one segment of a log: offsets [base, next), bytes [0, size). The last one of a log is active.
type segment struct {
	base record.Offset

	// Guarded by Log.mu.
	next         record.Offset
	size         int64
	maxTimestamp int64
	maxOffset    record.Offset           // last offset of the first batch that holds maxTimestamp; of an active segment
	since        time.Time               // when its first record was written, as far as this core knows
	index        []place                 // ascending; what this core wrote itself
	ends         map[record.Offset]int64 // where extents ended: where sequential readers go on; at most endsMax
	inode        inode                   // of an active segment; zero for one that was sealed before this core opened it

	// Guarded by fileCache.mu.
	file vfs.File // nil: not lent, or given back
	refs int      // reads in progress
	gone bool     // close file when refs reaches 0
	elem *list.Element
}

// endsMax bounds how many sequential readers of one segment go on without a look-up.
const endsMax = 256

// ended remembers where an extent ended.
func (s *segment) ended(next record.Offset, position int64) {
	if len(s.ends) >= endsMax {
		clear(s.ends)
	}
	if s.ends == nil {
		s.ends = make(map[record.Offset]int64)
	}
	s.ends[next] = position
}

// inode identifies a file on this machine.
type inode struct{ dev, ino uint64 }

// place is where a batch starts.
type place struct {
	offset   record.Offset // its base
	position int64
}

// noteBatch remembers a batch that was written at position.
func (s *segment) noteBatch(base record.Offset, position int64) {
	if n := len(s.index); n > 0 && position-s.index[n-1].position < indexBytes {
		return
	}
	s.index = append(s.index, place{base, position})
}

// floor is the last known place at or below off, and false where none is known.
func (s *segment) floor(off record.Offset) (place, bool) {
	i := sort.Search(len(s.index), func(i int) bool { return s.index[i].offset > off })
	if i == 0 {
		return place{}, false
	}
	return s.index[i-1], true
}

// fileCache keeps the descriptors of sealed segments open up to a limit, least recently used first out. Active
// segments are pinned by their writers and not counted.
type fileCache struct {
	limit int
	mu    sync.Mutex
	lru   list.List // of *segment, most recent first
}

// acquire returns s's file for reading, and false where it has to be lent first. release must follow.
func (c *fileCache) acquire(s *segment) (vfs.File, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.file == nil || s.gone {
		return nil, false
	}
	s.refs++
	if s.elem != nil {
		c.lru.MoveToFront(s.elem)
	}
	return s.file, true
}

// put gives s a lent file, unless another reader was faster, and returns the one it has, acquired; false where s was
// let go meanwhile. A file that is not used is closed.
func (c *fileCache) put(s *segment, f vfs.File) (vfs.File, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.gone || s.file != nil {
		_ = f.Close()
	} else {
		s.file = f
		s.elem = c.lru.PushFront(s)
	}
	if s.gone {
		return nil, false
	}
	s.refs++
	c.evictLocked()
	return s.file, true
}

// pin gives s its writer's file.
func (c *fileCache) pin(s *segment, f vfs.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.file = f
}

// unpin hands a sealed segment's file over to the limit.
func (c *fileCache) unpin(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.file != nil && s.elem == nil && !s.gone {
		s.elem = c.lru.PushFront(s)
		c.evictLocked()
	}
}

func (c *fileCache) release(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.refs--; s.refs == 0 && s.gone {
		c.closeLocked(s)
	}
}

// forget closes s's file as soon as nobody reads from it. The segment stays unreadable.
func (c *fileCache) forget(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.gone = true
	if s.refs == 0 {
		c.closeLocked(s)
	}
}

func (c *fileCache) evictLocked() {
	for e := c.lru.Back(); e != nil && c.lru.Len() > c.limit; {
		s, before := e.Value.(*segment), e.Prev()
		if s.refs == 0 {
			c.closeLocked(s)
		}
		e = before
	}
}

func (c *fileCache) closeLocked(s *segment) {
	if s.file != nil {
		_ = s.file.Close() // nothing was written through it since its last sync
		s.file = nil
	}
	if s.elem != nil {
		c.lru.Remove(s.elem)
		s.elem = nil
	}
}

// open returns s's file, lent anew where it was given back, with a place at or below off. The caller releases s.
func (l *Log) open(ctx context.Context, s *segment, off record.Offset) (vfs.File, place, error) {
	l.mu.Lock()
	at, known := s.floor(off)
	if off == s.base || s.size == 0 {
		at, known = place{s.base, 0}, true
	} else if position, ok := s.ends[off]; ok {
		at, known = place{off, position}, true
	}
	l.mu.Unlock()
	if known {
		if f, ok := l.dir.files.acquire(s); ok {
			return f, at, nil
		}
	}
	e, err := l.locate(ctx, s, off)
	if err != nil {
		return nil, place{}, err
	}
	f, ok := l.dir.files.put(s, unwrap(e.File))
	if !ok {
		return nil, place{}, ErrMoved
	}
	if !known {
		at = place{e.Offset, e.Position}
	}
	return f, at, nil
}

// locate asks the plugin for the segment that holds off and checks that it is s.
func (l *Log) locate(ctx context.Context, s *segment, off record.Offset) (storage.Extent, error) {
	p, err := l.dir.store(ctx)
	if err != nil {
		return storage.Extent{}, err
	}
	e, err := p.Store.Locate(ctx, storage.LocateRequest{Partition: l.part, Offset: off})
	if err != nil {
		return storage.Extent{}, fmt.Errorf("locate %s@%d: %w", l.part, off, err)
	}
	if e.Base != s.base || e.Offset > off || e.Position < 0 {
		_ = e.File.Close()
		return storage.Extent{}, fmt.Errorf("%w: asked for %s@%d, got segment %d, offset %d at %d",
			ErrLied, l.part, off, e.Base, e.Offset, e.Position)
	}
	return e, nil
}
