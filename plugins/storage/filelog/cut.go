package filelog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// copyBytes is how much is copied at once; blocks of that size that are all zeros become holes.
const copyBytes = 64 << 10

// cut shortens file to size and removes the segments later than it. What goes is saved first; a crash at any point
// leaves a log from which the next recovery makes the same cut.
func (v *recovery) cut(ctx context.Context, c *storage.Cut, file found, size int64, later []found) error {
	if err := v.store.lower(ctx, v.r.Partition, c.Offset); err != nil {
		return err
	}
	v.point = min(v.point, c.Offset)
	failpoint.Hit("plugin.cut.lowered")
	if err := v.saveAll(c, file, size, later); err != nil {
		return err
	}
	failpoint.Hit("plugin.cut.saved")
	if c.Dirty && !v.content.pending {
		// Once later segments are gone, what is left may look like an ordinary torn tail.
		if err := v.store.disk.create(filepath.Join(v.dir, pendingName), []byte(c.Reason+"\n")); err != nil {
			return err
		}
		v.content.pending = true
	}
	if err := v.store.disk.fs.SyncDir(v.dir); err != nil {
		return err
	}
	failpoint.Hit("plugin.cut.kept")
	if err := v.store.disk.removeHighest(v.dir, later); err != nil {
		return err
	}
	if file.size == size {
		return nil
	}
	return v.shorten(file, size)
}

// lower makes a recovery point at or below offset durable, before anything above it goes.
func (s *Store) lower(ctx context.Context, which storage.Partition, offset record.Offset) error {
	if point, ok := s.recoveryPoints.get(which); ok && point > offset {
		s.recoveryPoints.set(which, offset)
	}
	return s.recoveryPoints.flush(ctx) // even where it is low enough already: an earlier call may have failed here
}

// removeHighest removes segments from the end of a log, highest first and each durably before the next, so that no
// crash leaves a gap: nothing but a sync orders two removals.
func (d disk) removeHighest(dir string, gone []found) error {
	for i := len(gone) - 1; i >= 0; i-- {
		if err := d.removeIndexes(dir, gone[i].base); err != nil {
			return err
		}
		if err := d.fs.Remove(segmentPath(dir, gone[i].base)); err != nil {
			return err
		}
		failpoint.Hit("plugin.truncate.unlinked")
		if err := d.fs.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// shorten cuts one segment. Where a core lives that may have handed pages of this file to readers, it gets a new inode
// instead: pages in a socket's queue change when they are overwritten in place.
func (v *recovery) shorten(file found, size int64) error {
	d := v.store.disk
	if v.r.Ceiling >= 0 {
		return d.shortenByCopy(v.dir, file.base, size)
	}
	path := segmentPath(v.dir, file.base)
	f, err := d.fs.Open(path, vfs.Write)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	failpoint.Hit("plugin.cut.shortened")
	if err == nil {
		err = f.Sync() // a cut that is not on disk comes back after a power loss
	}
	return errors.Join(err, f.Close())
}

// shortenByCopy gives a segment a new inode with its first size bytes. Who reads the old one goes on reading it.
func (d disk) shortenByCopy(dir string, base record.Offset, size int64) error {
	path := segmentPath(dir, base)
	tmp := path + tmpSuffix
	if err := d.removeQuietly(tmp); err != nil {
		return err
	}
	if err := d.copyRange(path, tmp, 0, size); err != nil {
		return errors.Join(err, d.removeQuietly(tmp))
	}
	failpoint.Hit("plugin.truncate.copied")
	if err := d.fs.Replace(tmp, path); err != nil {
		return err
	}
	failpoint.Hit("plugin.truncate.replaced")
	return d.fs.SyncDir(dir)
}

// saveAll keeps what a cut takes off, and names the first file that holds some of it.
func (v *recovery) saveAll(c *storage.Cut, file found, size int64, later []found) error {
	if file.size > size {
		name, err := v.save(file, size)
		if err != nil {
			return fmt.Errorf("save what is cut: %w", err)
		}
		c.SavedAs = name
	}
	for _, f := range later {
		if f.size == 0 {
			continue
		}
		name, err := v.save(f, 0)
		if err != nil {
			return fmt.Errorf("save what is cut: %w", err)
		}
		if c.SavedAs == "" {
			c.SavedAs = name
		}
	}
	return nil
}

// save copies the end of a segment to "<base>.cut-<position>", or takes the same copy that an unfinished cut left. A
// different one is kept beside it.
func (v *recovery) save(f found, from int64) (string, error) {
	d := v.store.disk
	stem := strings.TrimSuffix(kafkalog.SegmentName(f.base), kafkalog.LogSuffix)
	name := fmt.Sprintf("%s%s%d", stem, cutInfix, from)
	tmp := filepath.Join(v.dir, name+tmpSuffix)
	if err := d.fs.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := d.copyRange(segmentPath(v.dir, f.base), tmp, from, f.size); err != nil {
		return "", errors.Join(err, d.removeQuietly(tmp))
	}
	for n := 1; ; n++ {
		target := name
		if n > 1 {
			target = fmt.Sprintf("%s.%d", name, n)
		}
		path := filepath.Join(v.dir, target)
		err := d.fs.Rename(tmp, path)
		if err == nil {
			return target, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		same, err := d.sameContent(tmp, path)
		if err != nil {
			return "", err
		}
		if same {
			return target, d.fs.Remove(tmp)
		}
	}
}

// removeQuietly removes a half-written copy, so that a full disk is not kept full by it.
func (d disk) removeQuietly(path string) error {
	if err := d.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// copyRange makes a new file of the bytes [lo, hi) of another, durable but for its name.
func (d disk) copyRange(from, to string, lo, hi int64) error {
	src, err := d.fs.Open(from, vfs.Read)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // only read
	dst, err := d.fs.Open(to, vfs.Create)
	if err != nil {
		return err
	}
	err = copyInto(dst, src, lo, hi)
	if err == nil {
		err = dst.Sync()
	}
	return errors.Join(err, dst.Close())
}

func copyInto(dst, src vfs.File, lo, hi int64) error {
	if err := dst.Truncate(hi - lo); err != nil {
		return err
	}
	buf := make([]byte, copyBytes)
	zeros := make([]byte, copyBytes)
	for at := lo; at < hi; {
		piece := buf[:min(copyBytes, hi-at)]
		if n, err := src.ReadAt(piece, at); n < len(piece) {
			return errors.Join(errUnexpectedEnd, err)
		}
		if !bytes.Equal(piece, zeros[:len(piece)]) {
			if _, err := dst.WriteAt(piece, at-lo); err != nil {
				return err
			}
		}
		at += int64(len(piece))
	}
	return nil
}

func (d disk) sameContent(a, b string) (bool, error) {
	fa, err := d.fs.Open(a, vfs.Read)
	if err != nil {
		return false, err
	}
	defer func() { _ = fa.Close() }() // only read
	fb, err := d.fs.Open(b, vfs.Read)
	if err != nil {
		return false, err
	}
	defer func() { _ = fb.Close() }() // only read
	ia, errA := fa.Stat()
	ib, errB := fb.Stat()
	if err := errors.Join(errA, errB); err != nil || ia.Size != ib.Size {
		return false, err
	}
	bufA, bufB := make([]byte, copyBytes), make([]byte, copyBytes)
	for at := int64(0); at < ia.Size; at += copyBytes {
		n := min(copyBytes, ia.Size-at)
		if k, err := fa.ReadAt(bufA[:n], at); int64(k) < n {
			return false, err
		}
		if k, err := fb.ReadAt(bufB[:n], at); int64(k) < n {
			return false, err
		}
		if !bytes.Equal(bufA[:n], bufB[:n]) {
			return false, nil
		}
	}
	return true, nil
}

// errUnfinished is a truncation that failed half-way: the partition has to be opened again.
var errUnfinished = errors.New("an earlier truncation was not finished")

// Truncate implements storage.Keeper.
func (s *Store) Truncate(ctx context.Context, r storage.TruncateRequest) (storage.Opened, error) {
	if err := check(r.Partition); err != nil {
		return storage.Opened{}, err
	}
	p, err := s.enter(ctx, r.Partition.String())
	if err != nil {
		return storage.Opened{}, err
	}
	defer s.leave(p)
	opened, err := s.truncate(ctx, p, r)
	if err != nil {
		return storage.Opened{}, fmt.Errorf("truncate %s: %w", p.name, withFull(err))
	}
	return opened, nil
}

func (s *Store) truncate(ctx context.Context, p *part, r storage.TruncateRequest) (storage.Opened, error) {
	st, err := s.truncatable(ctx, p, r)
	if err != nil {
		return storage.Opened{}, err
	}
	dir := s.disk.partition(p.name)
	at, position, err := s.boundary(ctx, dir, &st, r.Next)
	if err != nil {
		return storage.Opened{}, err
	}
	old, known, err := s.epochs(dir)
	if err == nil && !known {
		err = fmt.Errorf("%w: the leader epoch checkpoint is gone", ErrInvalid)
	}
	if err != nil {
		return storage.Opened{}, err
	}
	// From here on only recovery knows where the log ends, until all of it is done. Sealed segments that stay are read on.
	p.mu.Lock()
	p.state.segments, p.state.sealing, p.state.failed = p.state.segments[:at+1:at+1], 0, errUnfinished
	p.mu.Unlock()
	failpoint.Hit("plugin.truncate.begun")
	if err := s.lower(ctx, r.Partition, r.Next); err != nil {
		return storage.Opened{}, err
	}
	failpoint.Hit("plugin.truncate.lowered")
	if err := s.dropEnd(ctx, dir, &st, at, position); err != nil {
		return storage.Opened{}, err
	}
	failpoint.Hit("plugin.truncate.dropped")
	if err := s.begin(dir, old, old.ClipEnd(r.Next), kafkalog.EpochEntry{Epoch: r.Epoch, Start: r.Next}); err != nil {
		return storage.Opened{}, err
	}
	failpoint.Hit("plugin.truncate.clipped")
	opened, st, err := s.grant(storage.OpenRequest{Partition: r.Partition, Instance: r.Instance}, st)
	if err != nil {
		return storage.Opened{}, err
	}
	p.mu.Lock()
	p.state = st
	p.mu.Unlock()
	s.tidying.push(p.name)
	return opened, nil
}

// truncatable returns the state of a partition whose lease was surrendered, with nothing left to tidy.
func (s *Store) truncatable(ctx context.Context, p *part, r storage.TruncateRequest) (state, error) {
	p.mu.Lock()
	st := p.state
	p.mu.Unlock()
	err := st.owned(r.Partition, r.Instance)
	switch {
	case err != nil:
		return state{}, err
	case st.held:
		return state{}, storage.ErrLeaseHeld
	case st.lease != r.Lease:
		return state{}, fmt.Errorf("%w: %d, not %d", storage.ErrLeaseStale, st.lease, r.Lease)
	case !st.parked:
		return state{}, fmt.Errorf("%w: where the log ends was not told when it was closed", ErrInvalid)
	case r.Next < st.logStart || r.Next > st.active().Next:
		return state{}, fmt.Errorf("%w: truncate [%d, %d) to %d", storage.ErrOffsetOutOfRange, st.logStart, st.active().Next, r.Next)
	}
	if err := s.tidy(ctx, p); err != nil {
		return state{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	st = p.state
	st.segments = slices.Clone(st.segments)
	return st, nil
}

// boundary finds the segment that will be the last, and where it will end: between two batches.
func (s *Store) boundary(ctx context.Context, dir string, st *state, next record.Offset) (at int, position int64, err error) {
	at = len(st.segments) - 1
	for at > 0 && st.segments[at].Base > next {
		at--
	}
	g := st.segments[at]
	if next == g.Base {
		return at, 0, nil
	}
	if next == g.Next {
		return at, g.Size, nil
	}
	f, err := s.disk.fs.Open(segmentPath(dir, g.Base), vfs.Read)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = f.Close() }() // only read
	from, _ := s.disk.floor(dir, g.Base, next, g.x.offsets)
	w := walk{file: f, segment: g.Segment}
	position, base, err := w.find(ctx, from, next)
	if err != nil && from.Position > 0 {
		position, base, err = w.find(ctx, kafkalog.IndexEntry{}, next)
	}
	if err == nil && base != next {
		err = fmt.Errorf("%w: offset %d lies inside the batch of %d", ErrInvalid, next, base)
	}
	return at, position, err
}

// dropEnd removes what lies beyond position in the at-th segment. Its inode stays as it is for who reads it, unless
// nothing of it goes.
func (s *Store) dropEnd(ctx context.Context, dir string, st *state, at int, position int64) error {
	var later []found
	for _, g := range st.segments[at+1:] {
		later = append(later, found{base: g.Base, size: g.Size})
	}
	if err := s.disk.removeHighest(dir, later); err != nil {
		return err
	}
	was := st.segments[at]
	st.segments = st.segments[:at+1]
	g := &segment{Segment: storage.Segment{Base: was.Base, Next: was.Base, MaxTimestamp: -1}, x: was.x}
	st.segments[at] = g
	st.sealing, st.unstamped, st.stamps = 0, true, stampFile{}
	if position == was.Size {
		g.Segment = was.Segment
	} else if err := s.disk.shortenByCopy(dir, was.Base, position); err != nil {
		return err
	}
	if position == 0 {
		g.x = noIndexes()
		st.noted, st.point = g.Next, min(st.point, g.Next)
		return s.disk.removeIndexes(dir, g.Base)
	}
	if position < was.Size {
		if err := s.measure(ctx, dir, g, position); err != nil {
			return err
		}
	}
	st.noted, st.point = g.Next, min(st.point, g.Next)
	return nil
}

// measure takes in what the first size bytes of a segment hold, and cuts its indexes to it.
func (s *Store) measure(ctx context.Context, dir string, g *segment, size int64) error {
	end := g.Segment
	end.Size, end.Next = size, math.MaxInt64
	w := &indexer{disk: s.disk, dir: dir, base: g.Base, x: s.disk.loadIndexes(dir, g.Base, size, math.MaxInt64)}
	err := s.fill(ctx, w, end, true)
	if errors.Is(err, errIndexLies) {
		*w = indexer{disk: s.disk, dir: dir, base: g.Base, x: noIndexes()}
		err = s.fill(ctx, w, end, true)
	}
	if err == nil {
		err = s.withReserve(func() error {
			again := *w
			return again.flush(false)
		})
	}
	if err != nil {
		return err
	}
	g.Size, g.Next, g.MaxTimestamp, g.x = size, w.next, w.x.latest.MaxTimestamp, w.x
	return nil
}
