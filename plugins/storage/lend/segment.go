package lend

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
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

	// Guarded by Budget.mu.
	file   vfs.File      // nil: not lent, or given back
	writer *Log          // whose active segment it is, while file is the writer's
	kept   bool          // file is pinned
	refs   int           // reads in progress
	gone   bool          // close file when refs reaches 0
	parked bool          // its writer's file was given back: no other takes its place until there is one again
	elem   *list.Element // nil without a file, and where it is pinned
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

// errHeldBack says that a look-up found the active segment not lent; it is lent again and asked for anew.
var errHeldBack = errors.New("segment is not lent")

// open returns s's file, lent anew where it was given back, with a place at or below off. The caller releases s. A
// descriptor that has to be waited for is waited for until room ends.
func (l *Log) open(ctx, room context.Context, s *segment, off record.Offset) (vfs.File, place, error) {
	for {
		f, at, err := l.openOnce(ctx, room, s, off)
		if !errors.Is(err, errHeldBack) {
			return f, at, err
		}
		if err := l.hold(ctx, room); err != nil {
			return nil, place{}, err
		}
	}
}

func (l *Log) openOnce(ctx, room context.Context, s *segment, off record.Offset) (vfs.File, place, error) {
	l.mu.Lock()
	at, known := s.floor(off)
	if off == s.base || s.size == 0 {
		at, known = place{s.base, 0}, true
	} else if position, ok := s.ends[off]; ok {
		at, known = place{off, position}, true
	}
	n := len(l.segments)
	active := n > 0 && l.segments[n-1] == s
	if active && l.use.parked {
		l.mu.Unlock()
		return nil, place{}, errHeldBack
	}
	l.mu.Unlock()
	if known {
		if f, ok := l.dir.files.acquire(s); ok {
			return f, at, nil
		}
		if active && l.parked() {
			return nil, place{}, errHeldBack
		}
	}
	e, err := l.locate(ctx, room, s, off)
	if err != nil {
		if l.parked() && (errors.Is(err, storage.ErrNotOpen) || active && errors.Is(err, storage.ErrOffsetOutOfRange)) {
			err = errHeldBack
		} else if !l.has(s) { // the plugin spoke of another log than the caller
			err = ErrMoved
		}
		return nil, place{}, err
	}
	f, ok := l.dir.files.put(s, unwrap(e.File), l.dir.pinned())
	switch {
	case !ok && active && l.parked(): // while the plugin looked
		return nil, place{}, errHeldBack
	case !ok:
		return nil, place{}, ErrMoved
	}
	if !known {
		at = place{e.Offset, e.Position}
	}
	return f, at, nil
}

// has reports whether s is still one of the log's segments.
func (l *Log) has(s *segment) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.segments, s)
}

// locate asks the plugin for the segment that holds off and checks that it is s. With a nil error there is a claim on a
// descriptor for it.
func (l *Log) locate(ctx, room context.Context, s *segment, off record.Offset) (_ storage.Extent, err error) {
	p, err := l.dir.store(ctx)
	if err != nil {
		return storage.Extent{}, err
	}
	if err := l.dir.makeRoom(room); err != nil {
		return storage.Extent{}, err
	}
	defer func() {
		if err != nil {
			l.dir.files.give()
		}
	}()
	release := l.dir.transit()
	defer release()
	e, err := p.Store.Locate(ctx, storage.LocateRequest{Partition: l.part, Offset: off})
	if err != nil {
		return storage.Extent{}, fmt.Errorf("locate %s@%d: %w", l.part, off, err)
	}
	l.mu.Lock()
	n := len(l.segments)
	size, sealed := s.size, n == 0 || l.segments[n-1] != s
	l.mu.Unlock()
	if e.Base != s.base || e.Offset > off || e.Position < 0 || e.Position > size || sealed && e.Size > size {
		_ = e.File.Close()
		return storage.Extent{}, fmt.Errorf("%w: asked for %s@%d, got segment %d, offset %d at %d",
			ErrLied, l.part, off, e.Base, e.Offset, e.Position)
	}
	return e, nil
}
