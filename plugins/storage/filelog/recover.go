package filelog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// groupBytes is the most that the core writes before it syncs, but for a single batch that is larger: so much at the
// end of a log may be torn without anything acknowledged being lost. Zeros count like other bytes: a file system may
// keep the length of a group whose bytes it lost, but never more than that group's.
const groupBytes = 1 << 20

// scanBytes is how much of a segment is read at once.
const scanBytes = 1 << 20

// recovery is one Open without Held.
type recovery struct {
	store  *Store
	dir    string
	r      storage.OpenRequest
	epochs kafkalog.Epochs
	known  bool // epochs were read; else they are gathered from the batches
	buf    []byte

	point record.Offset // the recovery point: everything below was synced
	limit record.Offset // what is below was synced and is to stay: point, or the ceiling where that is lower
	gaps  record.Offset // below it base offsets may skip upward
	start record.Offset // the log start

	content  content
	emptied  []found    // of a log to adopt: those that compaction left nothing of
	segments []*segment // verified so far
	next     record.Offset
	progress progress
}

// end is where a log stops being sound, and why.
type end struct {
	at     int // index of the segment in content.segments
	size   int64
	offset record.Offset
	reason string
	err    error // the scanner's, where it is that
	above  bool  // it is the ceiling that ends the log, not damage
	whole  int64 // size of the batch that begins there, by its own word; 0 when that cannot be believed
}

// cause is why, as an error.
func (e *end) cause() error {
	if e.err != nil {
		return e.err
	}
	return errors.New(e.reason)
}

// recover finds the end of a log, and cuts it there (STORAGE §6). It scans what the recovery point does not cover. Every
// byte below the end is on disk when it returns.
func (s *Store) recover(ctx context.Context, r storage.OpenRequest) (opened storage.Opened, st state, err error) {
	if err := s.identify(ctx, r); err != nil {
		return storage.Opened{}, state{}, err
	}
	v := &recovery{store: s, dir: s.disk.partition(r.Partition.String()), r: r, buf: make([]byte, scanBytes)}
	if v.content, err = s.disk.list(v.dir); err != nil {
		return storage.Opened{}, state{}, err
	}
	if len(v.content.segments) == 0 {
		return storage.Opened{}, state{}, fmt.Errorf("%w: %s holds no segment", storage.ErrDataMissing, v.dir)
	}
	var cut *storage.Cut
	err = s.marked(ctx, r.Partition, v, func() (err error) {
		cut, err = v.settle(ctx)
		return err
	})
	if err != nil {
		return storage.Opened{}, state{}, err
	}
	failpoint.Hit("plugin.recover.unmarked")
	opened, st, err = s.grant(r, v.state())
	opened.Cut = cut
	return opened, st, err
}

// settle makes the log sound and its files agree with it.
func (v *recovery) settle(ctx context.Context) (*storage.Cut, error) {
	if err := v.prepare(); err != nil {
		return nil, err
	}
	failpoint.Hit("plugin.recover.begun")
	old := v.epochs
	cut, err := v.run(ctx)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("plugin.recover.scanned")
	if v.start > v.next {
		if err := v.empty(); err != nil {
			return nil, err
		}
	}
	at := kafkalog.EpochEntry{Epoch: v.r.Epoch, Start: v.next}
	if err := v.store.begin(v.dir, old, v.epochs.ClipEnd(v.next), at); err != nil {
		return nil, err
	}
	if v.content.pending {
		return cut, v.donePending()
	}
	return cut, nil
}

// prepare reads what was known of the log, and removes what lies below its start.
func (v *recovery) prepare() (err error) {
	s := v.store
	if v.epochs, v.known, err = s.epochs(v.dir); err != nil {
		return err
	}
	v.point, _ = s.recoveryPoints.get(v.r.Partition)
	v.start, _ = s.logStarts.get(v.r.Partition)
	if v.gaps, err = s.disk.gaps(v.dir); err != nil {
		return err
	}
	v.gaps = max(v.gaps, v.point)
	v.limit = v.point
	if v.r.Ceiling >= 0 {
		v.limit = min(v.limit, v.r.Ceiling)
	}
	below := 0
	for below+1 < len(v.content.segments) && v.content.segments[below+1].base <= v.start {
		below++
	}
	if err := s.disk.removeLowest(v.dir, v.content.segments[:below]); err != nil {
		return err
	}
	v.content.segments = v.content.segments[below:]
	for _, f := range v.content.segments {
		v.progress.total += f.size
	}
	return nil
}

// state is what the store will know of the log.
func (v *recovery) state() state {
	st := state{logStart: v.start, spare: v.content.spare, segments: v.segments, noted: v.next, point: min(v.point, v.next)}
	for i, g := range v.segments[:len(v.segments)-1] {
		if g.x.broken {
			st.sealing = len(v.segments) - 1 - i
			break
		}
	}
	v.store.loadStamps(v.dir, &st)
	return st
}

// empty puts an empty segment at the log start, which lies above everything that was found.
func (v *recovery) empty() error {
	d := v.store.disk
	if err := d.create(segmentPath(v.dir, v.start), nil); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := d.fs.SyncDir(v.dir); err != nil {
		return err
	}
	var old []found
	for _, g := range v.segments {
		old = append(old, found{base: g.Base})
	}
	if err := d.removeLowest(v.dir, old); err != nil {
		return err
	}
	v.store.log.Warn("log ends below its start and begins there anew", "partition", v.r.Partition.String(), "end", v.next, "start", v.start)
	v.segments = []*segment{{Segment: storage.Segment{Base: v.start, Next: v.start, MaxTimestamp: -1}, x: noIndexes()}}
	v.next = v.start
	return nil
}

// run scans and cuts. Afterwards segments and next are what the log holds.
func (v *recovery) run(ctx context.Context) (*storage.Cut, error) {
	v.next = v.content.segments[0].base
	for i := 0; i < len(v.content.segments); i++ {
		f := v.content.segments[i]
		if i > 0 && f.size == 0 && f.base < v.next {
			// Made ready for a roll whose answer the core never got: it went on in the segment before.
			if err := v.store.disk.fs.Remove(segmentPath(v.dir, f.base)); err != nil {
				return nil, err
			}
			v.content.segments = slices.Delete(v.content.segments, i, i+1)
			i--
			continue
		}
		e, err := v.visit(ctx, i)
		if err != nil {
			return nil, fmt.Errorf("scan segment %d: %w", f.base, err)
		}
		if e != nil {
			return v.finish(ctx, *e)
		}
	}
	last := v.segments[len(v.segments)-1]
	return v.finish(ctx, end{at: len(v.content.segments) - 1, size: last.Size, offset: v.next})
}

// visit takes the i-th segment in, and says where the log ends when it ends there.
func (v *recovery) visit(ctx context.Context, i int) (*end, error) {
	f := &v.content.segments[i]
	if i > 0 && f.base > v.next && f.base <= v.gaps {
		v.segments[i-1].Next, v.next = f.base, f.base // compaction took the end of the segment before
	}
	if i > 0 && f.base != v.next {
		return &end{
			at: i - 1, size: v.segments[i-1].Size, offset: v.next,
			reason: fmt.Sprintf("segment %d follows offset %d", f.base, v.next),
		}, nil
	}
	last := i == len(v.content.segments)-1
	if !last {
		if g := v.trust(ctx, *f, v.content.segments[i+1].base); g != nil {
			v.segments, v.next = append(v.segments, g), g.Next
			return nil, nil
		}
	}
	g, e, err := v.scan(ctx, f, !last)
	if err != nil {
		return nil, err
	}
	v.segments = append(v.segments, g)
	v.next = g.Next
	if e == nil {
		return nil, nil
	}
	e.at, e.size, e.offset = i, g.Size, g.Next
	e.whole = v.announced(g)
	return e, nil
}

// trust takes a sealed segment in without a scan, where the recovery point has passed it: its index has to agree with
// the batch it ends at, and the headers from there on have to lead to the next segment. Otherwise it returns nil, and
// the scan decides.
func (v *recovery) trust(ctx context.Context, f found, next record.Offset) *segment {
	if !v.known || next > v.limit || f.size == 0 {
		return nil
	}
	g := &segment{Segment: storage.Segment{Base: f.base, Next: next, Size: f.size}}
	x, err := v.store.disk.sealedIndexes(v.dir, g.Segment)
	if err != nil {
		return nil
	}
	w := &indexer{disk: v.store.disk, dir: v.dir, base: f.base, x: x}
	before := x
	if err := v.store.fill(ctx, w, g.Segment, true); err != nil || w.x.latest != before.latest || w.x.offsets != before.offsets || w.next != next && next > v.gaps {
		return nil
	}
	g.x = before
	g.MaxTimestamp = before.latest.MaxTimestamp
	v.pass(ctx, f.size)
	return g
}

// announced is the size of the batch at the end of g by its own header, where that header fits its place.
func (v *recovery) announced(g *segment) int64 {
	f, err := v.store.disk.fs.Open(segmentPath(v.dir, g.Base), vfs.Read)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }() // only read
	header := make([]byte, record.HeaderBytes)
	if n, _ := f.ReadAt(header, g.Size); n < len(header) {
		return 0
	}
	size, err := record.SizeOf(header)
	if err != nil || record.Batch(header).BaseOffset() != g.Next {
		return 0
	}
	return int64(size)
}

// finish judges what lies beyond e and takes it off.
func (v *recovery) finish(ctx context.Context, e end) (*storage.Cut, error) {
	later := v.content.segments[e.at+1:]
	file := v.content.segments[e.at]
	dropped := file.size - e.size
	empty := true // every later segment
	for _, f := range later {
		dropped += f.size
		empty = empty && f.size == 0
	}
	if !e.above && e.offset < v.limit {
		reason := e.reason
		if reason == "" {
			reason = "the log ends there"
		}
		return nil, v.store.setAside(v.r.Partition, fmt.Sprintf("offsets [%d, %d) were on disk and are damaged or gone, from segment %d, position %d on: %s",
			e.offset, v.limit, file.base, e.size, reason))
	}
	ceiling := v.r.Ceiling
	unconfirmed := e.above || ceiling >= 0 && e.offset >= ceiling // whatever lies beyond may go
	if !empty && !unconfirmed {
		valid, err := v.anyValid(ctx, later)
		if err != nil {
			return nil, err
		}
		if valid {
			return nil, v.store.setAside(v.r.Partition, fmt.Sprintf("damage in segment %d at position %d, offset %d, with records after it: %s",
				file.base, e.size, e.offset, e.reason))
		}
	}
	// An empty segment at or below the end was made ready for a roll that never came about. One above it says that
	// records were there: a segment is sealed only when it is on disk.
	lost := !empty || len(later) > 0 && later[len(later)-1].base > e.offset
	cut := storage.Cut{Offset: e.offset, Bytes: dropped, Reason: e.reason}
	switch {
	case ceiling >= 0:
		cut.Dirty = e.offset < ceiling
	default:
		cut.Dirty = !v.r.Lazy && (lost || dropped > max(groupBytes, e.whole))
	}
	if cut.Dirty && cut.Reason == "" {
		cut.Reason = fmt.Sprintf("the log ends below offset %d, which was there", max(ceiling, e.offset+1))
	}
	cut.Dirty = cut.Dirty || v.content.pending
	if dropped > 0 || len(later) > 0 {
		if err := v.cut(ctx, &cut, file, e.size, later); err != nil {
			return nil, err
		}
	}
	if dropped == 0 && !cut.Dirty {
		return nil, nil
	}
	if cut.Reason == "" {
		cut.Reason = "an earlier cut was not finished"
	}
	v.store.log.Warn("log cut", "partition", v.r.Partition.String(), "offset", cut.Offset, "bytes", cut.Bytes,
		"reason", cut.Reason, "dirty", cut.Dirty, "saved", cut.SavedAs)
	return &cut, nil
}

// anyValid reports whether one of the segments begins with a sound batch of its own.
func (v *recovery) anyValid(ctx context.Context, segments []found) (bool, error) {
	for _, f := range segments {
		valid, err := v.beginsValid(ctx, f)
		if valid || err != nil {
			return valid, err
		}
	}
	return false, nil
}

func (v *recovery) beginsValid(ctx context.Context, f found) (bool, error) {
	file, err := v.store.disk.fs.Open(segmentPath(v.dir, f.base), vfs.Read)
	if err != nil {
		return false, err
	}
	defer func() { _ = file.Close() }() // only read
	scanner := kafkalog.NewScanner(kafkalog.ScanOptions{Base: f.base, Size: f.size})
	var batch kafkalog.Found
	for at := int64(0); at < f.size && scanner.Bad() == nil; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		piece := v.buf[:min(int64(len(v.buf)), f.size-at)]
		if n, err := file.ReadAt(piece, at); n < len(piece) {
			return false, err
		}
		at += int64(len(piece))
		scanner.Feed(piece)
		if scanner.Next(&batch) {
			return true, nil
		}
	}
	return false, nil
}

func (v *recovery) donePending() error {
	if err := v.store.disk.fs.Remove(filepath.Join(v.dir, pendingName)); err != nil {
		return err
	}
	return v.store.disk.fs.SyncDir(v.dir)
}

// marked runs do under a mark that tells the next process, should this one end meanwhile, at which partition it was. At
// the second end the partition is set aside, so that the others go on; the try before that is made by itself, so that
// only one can be blamed for it.
func (s *Store) marked(ctx context.Context, which storage.Partition, v *recovery, do func() error) (err error) {
	full := slices.ContainsFunc(v.content.segments, func(f found) bool { return f.size > 0 })
	if !full {
		return do()
	}
	mark := filepath.Join(v.dir, openingName)
	ends, err := s.ends(mark, v.r.Instance)
	if err != nil {
		return err
	}
	if ends >= endsMax {
		return s.setAside(which, fmt.Sprintf("the storage process ended %d times while it opened this partition from offset %d on", ends, v.content.segments[0].base))
	}
	if ends > 0 {
		release, err := s.alone(ctx)
		if err != nil {
			return err
		}
		defer release()
	}
	err = s.withReserve(func() error { return s.disk.writeDurably(mark, fmt.Appendf(nil, "%d %s\n", ends+1, v.r.Instance)) })
	if err != nil && !errors.Is(withFull(err), storage.ErrFull) { // on a full disk it goes without
		return err
	}
	defer func() {
		if _, statErr := s.disk.fs.Stat(mark); statErr == nil {
			err = errors.Join(err, s.disk.fs.Remove(mark), s.disk.fs.SyncDir(v.dir))
		}
	}()
	return do()
}

// endsMax is how often the process may end while it opens one and the same partition for one and the same core.
const endsMax = 2

// ends reads the mark. What another core left does not count: when a server is killed its plugins end with it, and no
// partition is to blame.
func (s *Store) ends(mark, instance string) (int, error) {
	text, err := s.disk.readSmall(mark)
	if err != nil {
		return 0, ignoreMissing(err)
	}
	count, by, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	n, err := strconv.Atoi(count)
	if err != nil || by != instance {
		return 0, nil
	}
	return n, nil
}

// alone waits until no other partition under suspicion is being opened. That others come further counts as progress.
func (s *Store) alone(ctx context.Context) (release func(), err error) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case s.suspects <- struct{}{}:
			return func() { <-s.suspects }, nil
		case <-tick.C:
			storage.ReportProgress(ctx, storage.Progress{Done: s.scanned.Load()})
		case <-ctx.Done():
			return nil, fmt.Errorf("others are opened first: %w", context.Cause(ctx))
		}
	}
}
