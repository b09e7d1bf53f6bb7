package lend

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// ErrLied says that a plugin's answer does not fit what the core knows or sees in the file.
var ErrLied = errors.New("storage plugin's answer does not fit the file")

// ErrClosed is what a log answers after Close or Delete.
var ErrClosed = errors.New("log is closed")

// ErrLostRecords says that recovery ended below what this core had acknowledged. The partition stays down.
var ErrLostRecords = errors.New("acknowledged records are missing after recovery")

// Settings are what can change while a log is open.
type Settings struct {
	SegmentBytes int64         // where the log rolls
	SegmentTime  time.Duration // how long a segment takes records; 0: for ever
	Sync         Sync
	Retention    *Retention // of a log whose files are pinned; nil: nothing is to be seen to at a roll
}

// OpenOptions say how a partition is opened.
type OpenOptions struct {
	Create bool         // the directory may be made
	Adopt  bool         // with Create: it is moved in from the adopt directory
	Epoch  record.Epoch // leader epoch of what will be appended
	// Advance gives the partition a new leader epoch, durably. It is asked when a fence may have cost records that a
	// reader has seen, which only logs have that are not synced by batch (§6.5).
	Advance func(ctx context.Context) (record.Epoch, error)
	// Reopened is called, with no lock held, when the log was opened anew under readers that may have been turned away,
	// or may have read beyond what End says now: after a fence or a cut. nil: nobody wants to know.
	Reopened func()
	// Wait bounds how long the first open waits for a plugin and for a descriptor; 0: until its context ends.
	Wait time.Duration
	Settings
}

// mark is an end: the next offset, and where its batch will start in the active segment.
type mark struct {
	next     record.Offset
	position int64
}

// Log is one partition's log as the core holds it. One goroutine appends; any number read, at and below what Append
// has confirmed.
type Log struct {
	dir   *Dir
	part  storage.Partition
	opt   OpenOptions   // immutable
	calls chan struct{} // holds one token: whoever has it may call the plugin about this partition

	mu    sync.Mutex // never held over I/O
	set   Settings
	epoch record.Epoch
	// segments holds every segment in order, the active one last. Invariant: segments[i].next == segments[i+1].base.
	segments []*segment
	logStart record.Offset
	gaps     record.Offset // below it batches may be missing: the log was compacted by whom it came from
	lease    storage.LeaseEpoch
	file     vfs.File // the active segment, for the writer; nil without a lease
	// confirmed is the end of what readers may see: the last good sync under SyncBatch, else what is written.
	// Invariant: logStart <= confirmed, synced.next <= confirmed.
	confirmed record.Offset
	synced    mark // everything below is durable
	unsynced  unsynced
	down      error // not nil: no appends; fence, failed adoption, or closed
	closed    bool
	use       use
	notes     notes
	ahead     ahead
}

// unsynced is what a log knows of what it has not synced.
type unsynced struct {
	since   time.Time // when the oldest such record was appended; zero when there is none
	written int64     // the kernel was asked to write the active segment up to here
	syncing bool      // an interval's sync is under way
}

// openTries is how often a partition is opened when the plugin's process ends meanwhile: the plugin sets a partition
// aside that has ended it twice, and then the others go on (§6.6).
const openTries = 4

// Open opens the partition at the adopted plugin and returns its log with the report of what recovery cut, nil if
// nothing. It waits for a plugin until ctx ends, and for a further one if its process ends meanwhile.
func (d *Dir) Open(ctx context.Context, part storage.Partition, o OpenOptions) (*Log, *storage.Cut, error) {
	req := storage.OpenRequest{
		Partition: part, Instance: d.instance, Create: o.Create, Adopt: o.Adopt, Epoch: o.Epoch,
		Lazy: o.Sync.Mode != SyncBatch, SegmentBytes: o.SegmentBytes, Ceiling: -1,
	}
	for try := 1; ; try++ {
		l := &Log{dir: d, part: part, opt: o, set: o.Settings, epoch: o.Epoch, calls: make(chan struct{}, 1)}
		l.use.idle, l.use.opening = sync.NewCond(&l.mu), true
		cut, p, err := l.openAt(ctx, req)
		if err == nil {
			return l, cut, nil
		}
		if p == nil || storage.IsAnswer(err) || try == openTries || !d.replaced(ctx, p) {
			return nil, nil, fmt.Errorf("open %s: %w", part, err)
		}
		d.log.Warn("partition is opened again", "partition", part.String(), "err", err)
	}
}

// openAt opens l at the plugin there is, which it returns, and makes it one of the directory's logs.
func (l *Log) openAt(ctx context.Context, req storage.OpenRequest) (*storage.Cut, *Plugin, error) {
	d := l.dir
	wait := ctx
	if l.opt.Wait > 0 {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, l.opt.Wait)
		defer cancel()
	}
	p, err := d.store(wait)
	if err != nil {
		return nil, nil, err
	}
	if err := d.mayAsk(l.part, p); err != nil {
		return nil, nil, err
	}
	if err := d.makeRoom(wait); err != nil {
		return nil, nil, err
	}
	release := d.transit()
	defer release()
	failpoint.Hit("core.open.asking")
	answer, err := d.ask(ctx, p, req)
	failpoint.Hit("core.open.answered")
	if err != nil {
		d.files.give()
		d.note(l.part, p, err)
		return nil, p, err
	}
	d.mu.Lock()
	d.logs[l] = struct{}{} // before it is installed: from then on, who adopts the next plugin has to see it
	d.mu.Unlock()
	if err := l.install(answer, p); err != nil {
		d.mu.Lock()
		delete(d.logs, l)
		d.mu.Unlock()
		d.note(l.part, p, err)
		return nil, p, err
	}
	return answer.Cut, p, nil
}

// transits bounds the descriptors that are on their way from the plugin, and beside the budget so long.
const transits = 16

// transit waits until a descriptor may be on its way; release must follow.
func (d *Dir) transit() (release func()) {
	d.asking.transits <- struct{}{}
	return func() { <-d.asking.transits }
}

// replacedWait is how long the end of a process may take to be noticed after a call to it failed.
const replacedWait = time.Second

// replaced reports whether p is no longer the plugin.
func (d *Dir) replaced(ctx context.Context, p *Plugin) bool {
	deadline := time.NewTimer(replacedWait)
	defer deadline.Stop()
	for {
		d.mu.Lock()
		gone, changed := d.plugin != p, d.changed
		d.mu.Unlock()
		if gone {
			return true
		}
		select {
		case <-changed:
		case <-deadline.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// errReplaced says that a plugin's answer came when it was no longer the plugin.
var errReplaced = errors.New("storage plugin was replaced meanwhile")

// install takes over what Open answered: a log with a fresh lease. There is a claim on a descriptor for it, which is
// used or given back. A log that was parked stays as it is, if the answer says that it is; else what was known of it is
// replaced. Unless p is nil, the answer counts only while p is the plugin: its successor is told of leases that are held
// when it is adopted.
func (l *Log) install(a storage.Opened, p *Plugin) error {
	file, err := l.take(a.Lease)
	if err != nil {
		l.dir.files.give()
		return err
	}
	l.mu.Lock()
	if l.closed || p != nil && !l.dir.isPlugin(p) {
		err = errReplaced
		if l.closed { // deleted while it was being opened
			err = ErrClosed
		}
		if in := (inode{a.Lease.Dev, a.Lease.Ino}); !l.use.parked || l.activeLocked().inode != in {
			l.dir.disclaim(in)
		}
		l.mu.Unlock()
		_ = file.Close()
		l.dir.files.give()
		return err
	}
	var old []*segment
	if !l.use.parked || !l.isAsParkedLocked(a) {
		old = l.replaceLocked(a)
	}
	l.dir.files.pin(l.activeLocked(), file, l)
	l.lease, l.file, l.confirmed, l.down = a.Lease.Epoch, file, a.Lease.Next, nil
	l.synced, l.unsynced = mark{a.Lease.Next, a.Lease.Position}, unsynced{written: a.Lease.Position}
	l.notes, l.ahead = notes{}, ahead{}
	l.use.parked, l.use.opening, l.use.again = false, false, again{}
	l.mu.Unlock()
	for _, s := range old {
		if s.inode != (inode{a.Lease.Dev, a.Lease.Ino}) {
			l.dir.disclaim(s.inode)
		}
		l.dir.files.forget(s)
	}
	return nil
}

// isAsParkedLocked reports whether the answer is the log that was parked.
func (l *Log) isAsParkedLocked(a storage.Opened) bool {
	active, n := l.activeLocked(), len(l.segments)
	return n == len(a.Sealed)+1 && l.segments[0].base == append(a.Sealed, storage.Segment{Base: a.Lease.Base})[0].Base &&
		active.base == a.Lease.Base && active.size == a.Lease.Position && active.next == a.Lease.Next &&
		active.inode == inode{a.Lease.Dev, a.Lease.Ino}
}

// replaceLocked makes the segments those of the answer and returns what there was before.
func (l *Log) replaceLocked(a storage.Opened) (old []*segment) {
	segments := make([]*segment, 0, len(a.Sealed)+1)
	for _, s := range a.Sealed {
		segments = append(segments, &segment{base: s.Base, next: s.Next, size: s.Size, maxTimestamp: s.MaxTimestamp})
	}
	active := &segment{
		base: a.Lease.Base, next: a.Lease.Next, size: a.Lease.Position, maxTimestamp: a.Lease.MaxTimestamp,
		inode: inode{a.Lease.Dev, a.Lease.Ino}, since: time.Now(),
	}
	old, l.segments = l.segments, append(segments, active)
	l.logStart, l.gaps = a.LogStart, a.GapsBelow
	return old
}

// take checks a lent file against its lease and returns it under a file description of our own (§2).
func (l *Log) take(lease storage.Lease) (vfs.File, error) {
	if lease.File == nil {
		return nil, fmt.Errorf("%w: no descriptor was lent", ErrLied)
	}
	if err := checkLent(lease.File); err != nil {
		_ = lease.File.Close()
		return nil, err
	}
	file, err := l.dir.fs.Reopen(unwrap(lease.File))
	_ = lease.File.Close() // a shared description would share its fsync errors and flags
	if err != nil {
		return nil, fmt.Errorf("reopen the lent segment: %w", err)
	}
	info, err := file.Stat()
	switch {
	case err != nil:
	case !info.Regular:
		err = fmt.Errorf("%w: not a regular file", ErrLied)
	case info.Size != lease.Position:
		err = fmt.Errorf("%w: size %d, lease position %d", ErrLied, info.Size, lease.Position)
	case info.Dev != lease.Dev || info.Ino != lease.Ino:
		err = fmt.Errorf("%w: inode %d:%d, lease says %d:%d", ErrLied, info.Dev, info.Ino, lease.Dev, lease.Ino)
	default:
		err = l.dir.claim(inode{info.Dev, info.Ino}, l)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	if info.Blocks > info.Size+aheadLeft && !l.dir.pinned() {
		_ = file.Truncate(info.Size) // a core that died had preallocated it
	}
	return file, nil
}

// reopen makes p the plugin of l: with Held where it has a lease, by recovery below the confirmed end where not. One that
// had no answer before is left to heal: the others do not wait for it.
func (l *Log) reopen(ctx context.Context, p *Plugin) error {
	if l.dir.fenceErr() != nil {
		if l.letGoOfParked() {
			l.reopened() // readers may have been turned away
			return nil
		}
		l.surrender(ErrFenced)
	}
	l.mu.Lock()
	if l.closed || l.use.parked || l.use.opening || l.use.again.late || l.use.again.barred {
		if l.use.again.late {
			l.use.again.due = time.Now()
		}
		l.mu.Unlock()
		return nil
	}
	l.mu.Unlock()
	req, confirmed, release := l.request()
	defer release()
	held := req.Held
	err := l.reopenWith(ctx, p, req, confirmed)
	if l.outlived(ctx, err) {
		return fmt.Errorf("re-open %s: %w: %w", l.part, errReplaced, err)
	}
	if err != nil {
		err = fmt.Errorf("re-open %s: %w", l.part, err)
		l.stop(p, held != nil && errors.Is(err, storage.ErrNoAnswer), err)
		return err
	}
	if held == nil {
		l.reopened()
	}
	return nil
}

// outlived reports whether err says that the plugin ended over the call: then the log goes on with what it holds, and
// the successor is asked. A log over which several end in a row gives up its lease, and is opened by recovery, which
// sets a partition aside that the plugin does not survive (§6.6).
func (l *Log) outlived(ctx context.Context, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil || ctx.Err() == nil && !errors.Is(err, storage.ErrGone) {
		l.use.lost = 0
		return false
	}
	l.use.lost++
	return l.use.lost < openTries
}

func (l *Log) reopened() {
	if l.opt.Reopened != nil {
		l.opt.Reopened()
	}
}

func (l *Log) reopenWith(ctx context.Context, p *Plugin, req storage.OpenRequest, confirmed record.Offset) error {
	if req.Held != nil {
		failpoint.Hit("core.readopt.asking")
		a, err := l.dir.ask(ctx, p, req)
		if err != nil {
			return err
		}
		failpoint.Hit("core.readopt.answered")
		return l.adopted(a, req.Held, nil)
	}
	a, err := l.recoverAt(ctx, p, req, confirmed)
	if err != nil {
		return err
	}
	l.dir.files.claim() // it had one before
	return l.install(a, nil)
}

// request is how l is asked for again, and the end of what was confirmed. What it hands over is in use until release.
func (l *Log) request() (_ storage.OpenRequest, confirmed record.Offset, release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.heldLocked()
	release = func() {}
	if held != nil && l.dir.pinned() {
		release = l.handBackLocked(held)
	}
	return storage.OpenRequest{
		Partition: l.part, Instance: l.dir.instance, Epoch: l.epoch, SegmentBytes: l.set.SegmentBytes, Held: held,
		Lazy: l.set.Sync.Mode != SyncBatch, Ceiling: -1,
	}, l.confirmed, release
}

// newEpoch takes a leader epoch for what comes after records that readers may have seen and recovery does not find (§6.5):
// one for each time that the log was lost.
func (l *Log) newEpoch(ctx context.Context) (record.Epoch, error) {
	l.mu.Lock()
	epoch, advanced := l.epoch, l.use.again.advanced
	l.mu.Unlock()
	if advanced {
		return epoch, nil
	}
	epoch, err := l.opt.Advance(ctx)
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch, l.use.again.advanced = epoch, true
	return epoch, nil
}

// recoverAt has p recover the log, and checks that nothing is missing that was acknowledged.
func (l *Log) recoverAt(ctx context.Context, p *Plugin, req storage.OpenRequest, confirmed record.Offset) (storage.Opened, error) {
	if (req.Lazy || l.dir.pinned()) && l.opt.Advance != nil {
		epoch, err := l.newEpoch(ctx)
		if err != nil {
			return storage.Opened{}, err
		}
		req.Epoch = epoch
	} else {
		req.Ceiling = confirmed // what was not confirmed was answered as unknown, and is cut (§3)
	}
	a, err := l.dir.ask(ctx, p, req)
	if err != nil {
		return storage.Opened{}, err
	}
	if a.Lease.Next < req.Ceiling {
		_ = a.Lease.File.Close()
		return storage.Opened{}, fmt.Errorf("%w: log ends at %d, acknowledged up to %d", ErrLostRecords, a.Lease.Next, confirmed)
	}
	if a.Cut != nil {
		l.dir.log.Warn("recovery cut the end of a partition", "partition", l.part.String(), "offset", int64(a.Cut.Offset),
			"bytes", a.Cut.Bytes, "reason", a.Cut.Reason, "saved", a.Cut.SavedAs)
	}
	return a, nil
}

func (l *Log) heldLocked() *storage.Held {
	if l.file == nil {
		return nil
	}
	active := l.segments[len(l.segments)-1]
	return &storage.Held{
		Lease: l.lease, Base: active.base, Position: active.size, Next: active.next, Dev: active.inode.dev, Ino: active.inode.ino,
	}
}

// adopted checks the answer to an Open with Held: the same segment under a newer lease. Unless p is nil, the answer counts
// only while p is the plugin.
func (l *Log) adopted(a storage.Opened, held *storage.Held, p *Plugin) error {
	if a.Lease.File != nil {
		_ = a.Lease.File.Close()
	}
	if a.Lease.Base != held.Base || a.Lease.Epoch <= held.Lease || a.Lease.Dev != held.Dev || a.Lease.Ino != held.Ino {
		return fmt.Errorf("%w: held segment %d under lease %d, got %d under %d", ErrLied, held.Base, held.Lease, a.Lease.Base, a.Lease.Epoch)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p != nil && (l.file == nil || !l.dir.isPlugin(p)) {
		return errReplaced
	}
	l.lease, l.down, l.use.again = a.Lease.Epoch, nil, again{}
	l.use.opening = l.use.opening && p == nil
	l.notes.replay()
	return nil
}

// surrender lets go of every descriptor and refuses appends for cause. It waits for an append in progress, whose sync
// fails by itself on a fenced directory.
func (l *Log) surrender(cause error) {
	l.mu.Lock()
	for l.use.count > 0 {
		l.use.idle.Wait()
	}
	segments := l.segments
	l.file, l.down, l.use.parked = nil, cause, false
	l.use.idle.Broadcast()
	l.segments = nil // readers of the old ones end; recovery installs new ones
	l.mu.Unlock()
	for _, s := range segments {
		l.dir.disclaim(s.inode)
		l.dir.files.forget(s)
	}
}

// drop closes the log without telling the plugin.
func (l *Log) drop() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.surrender(ErrClosed)
	l.dir.mu.Lock()
	delete(l.dir.logs, l)
	l.dir.mu.Unlock()
}

// closing is how the lease would be given back now; its position is negative where there is no lease, or an end that is
// not durable and so none to be told.
func (l *Log) closing() storage.CloseRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	req := storage.CloseRequest{Partition: l.part, Instance: l.dir.instance, Lease: l.lease, Position: -1, Next: l.confirmed}
	if l.file != nil && l.synced.next == l.confirmed {
		req.Position = l.activeLocked().size
	}
	return req
}

// Close syncs what is not durable yet and gives the lease back. A plugin that cannot be reached until ctx ends is not
// told where the log ends: its next Open recovers by itself.
func (l *Log) Close(ctx context.Context) error {
	syncErr := l.Sync()
	l.giveIdleBlocksBack()
	req := l.closing()
	l.drop()
	if req.Position < 0 {
		return syncErr
	}
	p, err := l.dir.store(ctx)
	if err != nil {
		return errors.Join(syncErr, err)
	}
	return errors.Join(syncErr, p.Store.Close(ctx, req))
}

// Delete removes the partition for good. It works on a Dir, not a Log, because what was never opened can be deleted too.
func (d *Dir) Delete(ctx context.Context, part storage.Partition) error {
	d.mu.Lock()
	var open *Log
	for l := range d.logs {
		if l.part == part {
			open = l
		}
	}
	d.mu.Unlock()
	if open != nil {
		open.drop()
	}
	failpoint.Hit("core.delete.dropped")
	p, err := d.store(ctx)
	if err != nil {
		return err
	}
	if known, ok := d.doubted(part, p); ok && known.open { // an open may be under way there
		d.end(p, known.err)
		if p, err = d.store(ctx); err != nil {
			return err
		}
	}
	if err := p.Store.Delete(ctx, part); err != nil {
		return fmt.Errorf("delete %s: %w", part, err)
	}
	failpoint.Hit("core.delete.answered")
	return nil
}

// Durable is the end of what is synced. Invariant: Durable() <= End().
func (l *Log) Durable() record.Offset {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.synced.next
}

// End is the offset of the next record: the base of the next group.
func (l *Log) End() record.Offset {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.confirmed
}

// Epoch is the leader epoch under which the log is open: that of the batches to come.
func (l *Log) Epoch() record.Epoch {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch
}

// FirstSince is an offset at or below the first record whose timestamp is not below ms: the base of the first segment
// that may hold one.
func (l *Log) FirstSince(ms int64) record.Offset {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segments {
		if s.maxTimestamp >= ms {
			return max(s.base, l.logStart)
		}
	}
	return l.confirmed
}

// Stats is a snapshot of a log's extent.
type Stats struct {
	LogStart, Confirmed record.Offset
	Bytes               int64
	Segments            int
	Down                error
}

// Stats returns the log's extent as of now.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{LogStart: l.logStart, Confirmed: l.confirmed, Segments: len(l.segments), Down: l.down}
	for _, seg := range l.segments {
		s.Bytes += seg.size
	}
	return s
}
