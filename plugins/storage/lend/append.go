package lend

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Group is what one append writes: whole batches, in order, stamped with offsets that continue the log.
type Group struct {
	Bytes        []byte
	Base, Next   record.Offset // offsets [Base, Next)
	MaxTimestamp int64
}

// Append writes g at the end of the log; on a nil return it is visible to readers. Under SyncBatch it is then durable
// too, with everything below it, and the canary has answered for the directory. Only one goroutine appends to a log.
//
// Definite failures, after which nothing of g ever appears: *FullError, ErrNoStore (a roll found no plugin until ctx
// ended), ErrFenced, ErrClosed. ErrUnknown fences the directory. ctx bounds the wait for a plugin, not the disk.
func (l *Log) Append(ctx context.Context, g Group) error {
	w, err := l.begin(ctx, g)
	if err != nil {
		return err
	}
	err = l.write(w, g.Bytes)
	l.mu.Lock()
	var due span
	if err == nil {
		due = l.confirmLocked(g, w)
	}
	if due.bytes > 0 {
		l.mu.Unlock()
		writeback(w.file, due) // may wait for the disk; nobody else does
		l.mu.Lock()
	}
	l.releaseLocked()
	l.mu.Unlock()
	failpoint.Hit("core.append.confirmed")
	return err
}

// claim is the right to write the active segment at pos, until releaseLocked.
type claim struct {
	file vfs.File
	pos  int64
	sync bool // the group is synced before it is confirmed

	ahead span // blocks to ask for first
}

// begin rolls if the group does not fit and claims the active file.
func (l *Log) begin(ctx context.Context, g Group) (claim, error) {
	size, pinned := int64(len(g.Bytes)), l.dir.pinned()
	for {
		if err := l.dir.takesRecords(); err != nil {
			return claim{}, err
		}
		l.mu.Lock()
		for l.use.parking && l.down == nil {
			l.use.idle.Wait() // as long as a sync and a call take
		}
		if l.down != nil {
			defer l.mu.Unlock()
			return claim{}, l.down
		}
		if l.use.parked {
			l.mu.Unlock()
			if err := l.hold(ctx, ctx); err != nil {
				return claim{}, err
			}
			continue
		}
		active := l.activeLocked()
		if g.Base != active.next {
			defer l.mu.Unlock()
			return claim{}, fmt.Errorf("group begins at %d, the log ends at %d", g.Base, active.next)
		}
		if epoch := record.Batch(g.Bytes).Epoch(); epoch != l.epoch {
			defer l.mu.Unlock() // it was stamped, and then the log was recovered under a newer one
			return claim{}, fmt.Errorf("group is of leader epoch %d, the log of %d", epoch, l.epoch)
		}
		most := l.dir.recordsMax()
		if n := int64(g.Next - g.Base); n > most {
			defer l.mu.Unlock()
			return claim{}, &TooManyError{Records: n, Max: most}
		}
		if active.size == 0 || active.size+size <= l.set.SegmentBytes && int64(g.Next-active.base) <= most {
			defer l.mu.Unlock()
			l.use.count++
			l.dir.files.touch(active)
			w := claim{file: l.file, pos: active.size, sync: l.set.Sync.Mode == SyncBatch}
			if w.pos > 0 && !pinned { // a partition that is written once gets none
				w.ahead = l.ahead.take(w.pos+size, l.set.SegmentBytes)
			}
			return w, nil
		}
		l.mu.Unlock()
		if err := l.roll(ctx, ctx); err != nil {
			return claim{}, err
		}
		l.expireRolled(ctx)
	}
}

func (l *Log) activeLocked() *segment { return l.segments[len(l.segments)-1] }

// releaseLocked ends the use of the active file.
func (l *Log) releaseLocked() {
	l.use.count--
	l.use.idle.Broadcast()
}

// write puts b at the claim's position and syncs it where that is promised. The file is exactly pos long before, and
// exactly pos+len(b) long after success.
func (l *Log) write(w claim, b []byte) error {
	info, err := w.file.Stat()
	if err == nil && info.Size != w.pos {
		err = fmt.Errorf("segment is %d bytes long, its writer stands at %d", info.Size, w.pos)
	}
	if err != nil {
		return l.unknown("stat", err)
	}
	if w.ahead.bytes > 0 {
		preallocate(w.file, w.ahead, w.pos)
	}
	failpoint.Hit("core.append.begun")
	if _, err := w.file.WriteAt(b, w.pos); err != nil {
		if !isFull(err) {
			return l.unknown("write", err)
		}
		return l.cutBack(w, err)
	}
	failpoint.Hit("core.append.written")
	if !w.sync {
		return nil
	}
	if err := l.dir.sync(w.file); err != nil {
		return l.unknown("sync", err)
	}
	failpoint.Hit("core.append.synced")
	return nil
}

// cutBack makes a full disk a definite failure: the part that was written is cut off, and the cut is synced, because
// ⚗ a cut alone comes back after a power loss (§3).
func (l *Log) cutBack(w claim, cause error) error {
	if err := w.file.Truncate(w.pos); err != nil {
		return l.unknown("cut back after a full disk", err)
	}
	if err := l.dir.sync(w.file); err != nil {
		return l.unknown("sync after a full disk", err)
	}
	if !errors.Is(cause, syscall.EFBIG) { // that one is about the file
		l.dir.filled(cause)
	}
	return &FullError{Err: cause}
}

func (l *Log) unknown(doing string, err error) error {
	err = fmt.Errorf("%s on %s: %w", doing, l.part, err)
	l.dir.Fence(err)
	return fmt.Errorf("%w: %w", ErrUnknown, err)
}

// isFull reports the errors that leave a short write and nothing worse.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// confirmLocked moves the end over g, and says what the kernel is to be asked to write.
func (l *Log) confirmLocked(g Group, w claim) span {
	active := l.activeLocked()
	if active.size == 0 {
		active.since = time.Now()
	}
	l.noteBatchesLocked(active, g.Bytes, w.pos)
	active.next = g.Next
	active.size = w.pos + int64(len(g.Bytes))
	l.confirmed = g.Next
	if w.sync {
		l.synced = mark{g.Next, active.size}
		return span{}
	}
	if l.unsynced.since.IsZero() {
		l.unsynced.since = time.Now()
	}
	return l.unwrittenLocked(active)
}

// noteBatchesLocked indexes what was written: sparsely for the core's own reads, by Kafka's rule for the plugin's files
// (an entry when more than indexInterval bytes came since the last one, checked before the batch is added).
func (l *Log) noteBatchesLocked(s *segment, group []byte, pos int64) {
	for len(group) > 0 {
		b := record.Batch(group)
		b = b[:b.Size()]
		if t := b.MaxTimestamp(); t > s.maxTimestamp {
			s.maxTimestamp, s.maxOffset = t, b.LastOffset()
		}
		s.noteBatch(b.BaseOffset(), pos)
		if l.notes.due(int64(len(b))) {
			l.notes.add(storage.Entry{Last: b.LastOffset(), Position: pos, MaxTimestamp: s.maxTimestamp, MaxOffset: s.maxOffset})
		}
		group, pos = group[len(b):], pos+int64(len(b))
	}
}
