package lend

import (
	"context"
	"errors"
	"fmt"
	"sync"

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

// OpenOptions say how a partition is opened.
type OpenOptions struct {
	Create       bool         // the directory may be made
	Epoch        record.Epoch // leader epoch of what will be appended
	SegmentBytes int64        // where the log rolls
}

// Log is one partition's log as the core holds it. One goroutine appends; any number read, at and below what Append
// has confirmed.
type Log struct {
	dir  *Dir
	part storage.Partition
	opt  OpenOptions

	mu sync.Mutex // never held over I/O
	// segments holds every segment in order, the active one last. Invariant: segments[i].next == segments[i+1].base.
	segments []*segment
	logStart record.Offset
	lease    storage.LeaseEpoch
	file     vfs.File // the active segment, for the writer; nil without a lease
	// confirmed is the end after the last good sync. Invariant: logStart <= confirmed.
	confirmed record.Offset
	down      error // not nil: no appends; fence, failed adoption, or closed
	closed    bool
	writing   bool // an append is using file
	idle      *sync.Cond
	notes     notes
}

// Open opens the partition at the adopted plugin and returns its log with the report of what recovery cut, nil if
// nothing. It waits for a plugin until ctx ends.
func (d *Dir) Open(ctx context.Context, part storage.Partition, o OpenOptions) (*Log, *storage.Cut, error) {
	p, err := d.store(ctx)
	if err != nil {
		return nil, nil, err
	}
	l := &Log{dir: d, part: part, opt: o}
	l.idle = sync.NewCond(&l.mu)
	answer, err := p.Store.Open(ctx, storage.OpenRequest{
		Partition: part, Instance: d.instance, Create: o.Create, Epoch: o.Epoch, SegmentBytes: o.SegmentBytes, Ceiling: -1,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", part, err)
	}
	if err := l.install(answer); err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", part, err)
	}
	d.mu.Lock()
	d.logs[l] = struct{}{}
	d.mu.Unlock()
	return l, answer.Cut, nil
}

// install takes over what Open answered: a whole log with a fresh lease.
func (l *Log) install(a storage.Opened) error {
	file, err := l.take(a.Lease)
	if err != nil {
		return err
	}
	segments := make([]*segment, 0, len(a.Sealed)+1)
	for _, s := range a.Sealed {
		segments = append(segments, &segment{base: s.Base, next: s.Next, size: s.Size, maxTimestamp: s.MaxTimestamp})
	}
	active := &segment{
		base: a.Lease.Base, next: a.Lease.Next, size: a.Lease.Position, maxTimestamp: a.Lease.MaxTimestamp,
		inode: inode{a.Lease.Dev, a.Lease.Ino},
	}
	l.dir.files.pin(active, file)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments, l.logStart = append(segments, active), a.LogStart
	l.lease, l.file, l.confirmed, l.down = a.Lease.Epoch, file, a.Lease.Next, nil
	l.notes = notes{}
	return nil
}

// take checks a lent file against its lease and returns it under a file description of our own (§2).
func (l *Log) take(lease storage.Lease) (vfs.File, error) {
	if lease.File == nil {
		return nil, fmt.Errorf("%w: no descriptor was lent", ErrLied)
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
	return file, nil
}

// reopen makes p the plugin of l: with Held where it has a lease, by recovery below the confirmed end where not.
func (l *Log) reopen(ctx context.Context, p *Plugin) error {
	if l.dir.fenceErr() != nil {
		l.surrender(ErrFenced)
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	held := l.heldLocked()
	ceiling := l.confirmed
	l.mu.Unlock()
	if held != nil {
		ceiling = -1
	}
	a, err := p.Store.Open(ctx, storage.OpenRequest{
		Partition: l.part, Instance: l.dir.instance, Epoch: l.opt.Epoch, SegmentBytes: l.opt.SegmentBytes, Held: held, Ceiling: ceiling,
	})
	if err == nil && held == nil {
		if a.Lease.Next < ceiling {
			err = fmt.Errorf("%w: log ends at %d, acknowledged up to %d", ErrLostRecords, a.Lease.Next, ceiling)
			_ = a.Lease.File.Close()
		} else {
			err = l.install(a)
		}
	}
	if err == nil && held != nil {
		err = l.adopted(a, held)
	}
	if err != nil {
		l.surrender(err)
		return fmt.Errorf("re-open %s: %w", l.part, err)
	}
	return nil
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

// adopted checks the answer to an Open with Held: the same segment under a newer lease.
func (l *Log) adopted(a storage.Opened, held *storage.Held) error {
	if a.Lease.File != nil {
		_ = a.Lease.File.Close()
	}
	if a.Lease.Base != held.Base || a.Lease.Epoch <= held.Lease || a.Lease.Dev != held.Dev || a.Lease.Ino != held.Ino {
		return fmt.Errorf("%w: held segment %d under lease %d, got %d under %d", ErrLied, held.Base, held.Lease, a.Lease.Base, a.Lease.Epoch)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lease = a.Lease.Epoch
	l.notes.replay()
	return nil
}

// surrender lets go of every descriptor and refuses appends for cause. It waits for an append in progress, whose sync
// fails by itself on a fenced directory.
func (l *Log) surrender(cause error) {
	l.mu.Lock()
	for l.writing {
		l.idle.Wait()
	}
	segments := l.segments
	l.file, l.down = nil, cause
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

// Close gives the lease back. What was confirmed is durable already; the plugin is only told where it ends. A plugin
// that cannot be reached until ctx ends is not told: its next Open recovers by itself.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	req := storage.CloseRequest{Partition: l.part, Instance: l.dir.instance, Lease: l.lease, Next: l.confirmed}
	leased := l.file != nil
	if leased {
		req.Position = l.segments[len(l.segments)-1].size
	}
	l.mu.Unlock()
	l.drop()
	if !leased {
		return nil
	}
	p, err := l.dir.store(ctx)
	if err != nil {
		return err
	}
	return p.Store.Close(ctx, req)
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
	p, err := d.store(ctx)
	if err != nil {
		return err
	}
	if err := p.Store.Delete(ctx, part); err != nil {
		return fmt.Errorf("delete %s: %w", part, err)
	}
	return nil
}

// End is the offset of the next record: the base of the next group.
func (l *Log) End() record.Offset {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.confirmed
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
