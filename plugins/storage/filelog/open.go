package filelog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Open implements storage.Store.
func (s *Store) Open(ctx context.Context, r storage.OpenRequest) (storage.Opened, error) {
	if err := check(r.Partition); err != nil {
		return storage.Opened{}, err
	}
	if r.Instance == "" || r.Epoch < 0 {
		return storage.Opened{}, fmt.Errorf("%w: instance %q, epoch %d", ErrInvalid, r.Instance, r.Epoch)
	}
	p, err := s.enter(ctx, r.Partition.String())
	if err != nil {
		return storage.Opened{}, err
	}
	defer s.leave(p)
	if p.heldBy(r.Instance) && r.Held == nil {
		return storage.Opened{}, fmt.Errorf("%s: %w", p.name, storage.ErrLeaseHeld)
	}
	var opened storage.Opened
	var st state
	switch parked, ok := s.parked(ctx, p, r); {
	case r.Held != nil:
		opened, st, err = s.adopt(r)
	case ok:
		opened, st, err = s.unpark(r, parked)
	default:
		p.reset() // whoever held it before is void from here on, whatever becomes of this call
		opened, st, err = s.recover(ctx, r)
	}
	if err != nil {
		return storage.Opened{}, fmt.Errorf("open %s: %w", p.name, withFull(err))
	}
	p.mu.Lock()
	p.state = st
	p.mu.Unlock()
	s.tidying.push(p.name)
	return opened, nil
}

// parked returns the state of a partition that r's core closed cleanly and that lies as it was left.
func (s *Store) parked(ctx context.Context, p *part, r storage.OpenRequest) (state, bool) {
	p.mu.Lock()
	st := p.state
	p.mu.Unlock()
	if !st.parked || st.held || st.failed != nil || st.instance != r.Instance || st.which != r.Partition || r.Held != nil {
		return state{}, false
	}
	if r.Ceiling >= 0 && st.active().Next > r.Ceiling || s.tidy(ctx, p) != nil {
		return state{}, false
	}
	active := st.active()
	info, err := s.disk.fs.Stat(segmentPath(s.disk.partition(p.name), active.Base))
	if err != nil || info.Size != active.Size || info.Dev != active.dev || info.Ino != active.ino {
		return state{}, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state, true // tidied
}

// unpark lends a parked partition again, without a scan.
func (s *Store) unpark(r storage.OpenRequest, st state) (storage.Opened, state, error) {
	dir := s.disk.partition(r.Partition.String())
	epochs, known, err := s.epochs(dir)
	if err == nil && !known {
		err = fmt.Errorf("%w: the leader epoch checkpoint of a parked partition is gone", ErrInvalid)
	}
	if err == nil {
		err = s.begin(dir, epochs, epochs, kafkalog.EpochEntry{Epoch: r.Epoch, Start: st.active().Next})
	}
	if err != nil {
		return storage.Opened{}, state{}, err
	}
	return s.grant(r, st)
}

func (p *part) heldBy(instance string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.held && p.state.instance == instance
}

func (p *part) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = state{}
}

// grant makes a lease of the last segment and completes the state that goes with it. The file is opened unless the core
// has it.
func (s *Store) grant(r storage.OpenRequest, st state) (storage.Opened, state, error) {
	active := st.active()
	gaps, err := s.disk.gaps(s.disk.partition(r.Partition.String()))
	if err != nil {
		return storage.Opened{}, state{}, err
	}
	st.which, st.instance, st.held, st.parked, st.last = r.Partition, r.Instance, true, false, nil
	lease := storage.Lease{
		Base: active.Base, Next: active.Next, Position: active.Size, MaxTimestamp: active.MaxTimestamp,
	}
	if r.Held != nil {
		st.lease = s.nextLease(max(st.lease, r.Held.Lease))
		lease.Dev, lease.Ino = r.Held.Dev, r.Held.Ino
	} else {
		st.lease = s.nextLease(st.lease)
		f, info, err := s.openLent(segmentPath(s.disk.partition(r.Partition.String()), active.Base))
		if err != nil {
			return storage.Opened{}, state{}, err
		}
		lease.File, lease.Dev, lease.Ino = f, info.Dev, info.Ino
	}
	lease.Epoch = st.lease
	active.dev, active.ino = lease.Dev, lease.Ino
	st.logStart = max(st.logStart, st.segments[0].Base)
	st.noted = max(st.noted, active.Next)
	if r.Held != nil {
		st.noted = st.point // what the core holds may not be synced; its notes will tell
	}
	st.advance()
	opened := storage.Opened{Lease: lease, LogStart: st.logStart, GapsBelow: min(gaps, active.Next)}
	for _, g := range st.segments[:len(st.segments)-1] {
		opened.Sealed = append(opened.Sealed, g.Segment)
	}
	return opened, st, nil
}

func (s *Store) openLent(path string) (*Lent, vfs.Info, error) {
	f, err := s.disk.fs.Open(path, vfs.Write)
	if err != nil {
		return nil, vfs.Info{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, vfs.Info{}, errors.Join(err, f.Close())
	}
	return &Lent{file: f}, info, nil
}

// identify makes sure that the partition's directory is there and is that of r's topic id. What is not is set aside.
func (s *Store) identify(ctx context.Context, r storage.OpenRequest) error {
	dir := s.disk.partition(r.Partition.String())
	id, err := s.topicID(dir)
	switch {
	case err == nil && id == r.Partition.TopicID:
		return nil
	case err == nil:
		aside, err := s.disk.moveAside(dir, s.quarantined(r.Partition.String(), id))
		if err != nil {
			return fmt.Errorf("set a directory of topic id %s aside: %w", id, err)
		}
		s.log.Warn("directory of another topic id set aside", "partition", r.Partition.String(), "want", r.Partition.TopicID, "found", id, "now", aside)
	case errors.Is(err, errUnidentified) && r.Create:
		// A directory of ours gets its name only when it is complete, so this is none.
		aside, err := s.disk.moveAside(dir, s.quarantined(r.Partition.String(), "unknown"))
		if err != nil {
			return fmt.Errorf("set an unidentified directory aside: %w", err)
		}
		s.log.Warn("unidentified directory set aside", "partition", r.Partition.String(), "now", aside)
	case errors.Is(err, errUnidentified):
		return s.setAside(r.Partition, err.Error())
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return s.missing(ctx, r)
}

// missing decides what it means that the partition has no directory.
func (s *Store) missing(ctx context.Context, r storage.OpenRequest) error {
	aside := s.quarantined(r.Partition.String(), r.Partition.TopicID)
	if _, err := s.disk.fs.Stat(aside); err == nil {
		return fmt.Errorf("%w: it lies in %s; put it back under logs/ repaired, or remove it", storage.ErrQuarantined, aside)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch {
	case !r.Create && !r.Adopt:
		return fmt.Errorf("%w: %s", storage.ErrDataMissing, s.disk.partition(r.Partition.String()))
	case r.Adopt:
		return s.moveIn(ctx, r)
	}
	return s.build(r)
}

// quarantined is where a partition of that topic id is set aside. While it is there, the partition counts as
// quarantined and not as missing.
func (s *Store) quarantined(name, topicID string) string {
	const nameBytesMax = 255 // of a file, on Linux
	if len(name)+1+len(topicID) > nameBytesMax {
		name = name[strings.LastIndexByte(name, '-')+1:]
	}
	return filepath.Join(s.disk.quarantine(), name+"."+topicID)
}

// errUnidentified is a directory whose partition.metadata is gone or cannot be read.
var errUnidentified = errors.New("partition.metadata does not say whose the directory is")

// topicID reads whose directory dir is. fs.ErrNotExist means that there is no directory.
func (s *Store) topicID(dir string) (string, error) {
	if _, err := s.disk.fs.Stat(dir); err != nil {
		return "", err
	}
	text, err := s.disk.readSmall(filepath.Join(dir, kafkalog.PartitionMetadataName))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: it is not there", errUnidentified)
	}
	if err != nil {
		return "", err
	}
	if version, ok := strings.CutPrefix(firstLine(text), "version: "); ok && isNewer(version) {
		return "", fmt.Errorf("%w: partition.metadata of version %s", storage.ErrFormat, version)
	}
	id, err := kafkalog.ParsePartitionMetadata(text)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errUnidentified, err)
	}
	return id, nil
}

func firstLine(text []byte) string {
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimRight(line, "\r")
}

// isNewer reports whether v is a version number that this store does not know.
func isNewer(v string) bool {
	if v == "" || v == "0" || v[0] == '0' {
		return false
	}
	return strings.Trim(v, "0123456789") == ""
}

// build makes a new partition complete under tmp/ and gives it its name last.
func (s *Store) build(r storage.OpenRequest) error {
	name := r.Partition.String()
	tmp := filepath.Join(s.disk.tmp(), fmt.Sprintf("%s-%d", r.Partition.TopicID, r.Partition.ID)) // a topic's name may leave no room for more
	if err := s.disk.fs.RemoveAll(tmp); err != nil {                                              // what an earlier try left
		return err
	}
	if err := s.disk.fs.Mkdir(tmp); err != nil {
		return err
	}
	metadata, err := kafkalog.PartitionMetadata(r.Partition.TopicID)
	if err != nil {
		return err
	}
	epochs, _ := kafkalog.Epochs(nil).Assign(r.Epoch, 0)
	for _, file := range []struct {
		name    string
		content []byte
	}{
		{kafkalog.PartitionMetadataName, metadata},
		{kafkalog.EpochCheckpointName, epochs.AppendText(nil)},
		{kafkalog.SegmentName(0), nil},
	} {
		if err := s.disk.create(filepath.Join(tmp, file.name), file.content); err != nil {
			return err
		}
	}
	failpoint.Hit("plugin.create.filled")
	if err := s.disk.fs.SyncDir(tmp); err != nil {
		return err
	}
	failpoint.Hit("plugin.create.built")
	return s.disk.move(tmp, s.disk.partition(name))
}

// setAside moves a damaged partition to quarantine, where it stays until an operator acts.
func (s *Store) setAside(which storage.Partition, reason string) error {
	dir := s.disk.partition(which.String())
	if err := s.disk.writeDurably(filepath.Join(dir, reasonName), []byte(reason+"\n")); err != nil {
		return fmt.Errorf("quarantine (%s): %w", reason, err)
	}
	if err := s.disk.removeQuietly(filepath.Join(dir, openingName)); err != nil { // put back, it gets its tries again
		return fmt.Errorf("quarantine (%s): %w", reason, err)
	}
	aside, err := s.disk.moveAside(dir, s.quarantined(which.String(), which.TopicID))
	if err != nil {
		return fmt.Errorf("quarantine (%s): %w", reason, err)
	}
	s.log.Error("partition quarantined", "partition", which.String(), "reason", reason, "now", aside)
	return fmt.Errorf("%w: %s; it lies in %s", storage.ErrQuarantined, reason, aside)
}

// epochs reads the leader epochs of a log. A checkpoint that is gone or unreadable comes back as false: recovery then
// takes the epochs from the batches.
func (s *Store) epochs(dir string) (kafkalog.Epochs, bool, error) {
	text, err := s.disk.readSmall(filepath.Join(dir, kafkalog.EpochCheckpointName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	epochs, err := kafkalog.ParseEpochs(text)
	if err != nil {
		s.log.Warn("leader epochs are taken from the batches", "dir", dir, "err", err)
		return nil, false, nil
	}
	return epochs, true, nil
}

// begin makes (epoch, next) durable where it is newer than the last one in the checkpoint.
func (s *Store) begin(dir string, old, clipped kafkalog.Epochs, at kafkalog.EpochEntry) error {
	epochs, _ := clipped.Assign(at.Epoch, at.Start)
	if latest, ok := epochs.Latest(); ok && latest.Epoch > at.Epoch {
		return fmt.Errorf("%w: leader epoch %d is older than %d, which is in the log", ErrInvalid, at.Epoch, latest.Epoch)
	}
	if equalEpochs(epochs, old) {
		return nil
	}
	return s.disk.writeDurably(filepath.Join(dir, kafkalog.EpochCheckpointName), epochs.AppendText(nil))
}

func equalEpochs(a, b kafkalog.Epochs) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// adopt takes over a log that the core still holds: it neither scans nor cuts, and where what lies there is not what
// the core holds, it touches nothing.
func (s *Store) adopt(r storage.OpenRequest) (storage.Opened, state, error) {
	dir := s.disk.partition(r.Partition.String())
	c, err := s.compare(dir, r)
	if err != nil {
		return storage.Opened{}, state{}, err
	}
	epochs, ok, err := s.epochs(dir)
	if err == nil && !ok {
		err = fmt.Errorf("%w: the leader epoch checkpoint cannot be read", storage.ErrHeldMismatch)
	}
	if err != nil {
		return storage.Opened{}, state{}, err
	}
	failpoint.Hit("plugin.readopt.compared")
	at := kafkalog.EpochEntry{Epoch: r.Epoch, Start: r.Held.Next}
	if err := s.begin(dir, epochs, epochs, at); err != nil {
		return storage.Opened{}, state{}, err
	}
	st := state{}
	st.point, _ = s.recoveryPoints.get(r.Partition)
	st.point = min(st.point, r.Held.Next)
	st.logStart, _ = s.logStarts.get(r.Partition)
	st.logStart = min(st.logStart, r.Held.Next)
	for i, f := range c.segments {
		if f.base > r.Held.Base {
			break
		}
		g := &segment{Segment: storage.Segment{Base: f.base, Size: f.size, MaxTimestamp: -1}}
		if f.base == r.Held.Base {
			g.Size, g.Next = r.Held.Position, r.Held.Next
		} else {
			g.Next = c.segments[i+1].base
		}
		st.segments = append(st.segments, g)
	}
	if st.spare, err = s.keepReady(dir, c, r.Held.Base); err != nil {
		return storage.Opened{}, state{}, err
	}
	failpoint.Hit("plugin.readopt.ready")
	s.heldIndexes(dir, &st)
	s.loadStamps(dir, &st)
	return s.grant(r, st)
}

// heldIndexes loads the indexes of a log that is taken over as it is. What the recovery point has not passed was not
// complete when the process before ended.
func (s *Store) heldIndexes(dir string, st *state) {
	active := st.active()
	for _, g := range st.segments {
		if g != active && g.Next <= st.point {
			x, err := s.disk.sealedIndexes(dir, g.Segment)
			g.x = x
			if err == nil {
				g.MaxTimestamp = x.latest.MaxTimestamp
				continue
			}
			g.x = noIndexes()
			g.x.broken = true
			continue
		}
		g.x = s.disk.loadIndexes(dir, g.Base, g.Size, g.Next)
		if g != active {
			st.sealing++
		}
	}
}

// compare checks what lies in dir against what the core holds, and changes nothing.
func (s *Store) compare(dir string, r storage.OpenRequest) (content, error) {
	h := r.Held
	id, err := s.topicID(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errUnidentified):
		return content{}, fmt.Errorf("%w: %w", storage.ErrHeldMismatch, err)
	case err != nil:
		return content{}, err
	case id != r.Partition.TopicID:
		return content{}, fmt.Errorf("%w: the directory is of topic id %s", storage.ErrHeldMismatch, id)
	case h.Base < 0 || h.Position < 0 || h.Next < h.Base || (h.Position == 0) != (h.Next == h.Base):
		return content{}, fmt.Errorf("%w: held is [%d, %d) in %d bytes", ErrInvalid, h.Base, h.Next, h.Position)
	}
	c, err := s.disk.list(dir)
	if err != nil {
		return content{}, err
	}
	there := false
	for _, f := range c.segments {
		switch {
		case f.base == h.Base && f.size < h.Position:
			return content{}, fmt.Errorf("%w: segment %d has %d bytes, the core wrote %d", storage.ErrHeldMismatch, f.base, f.size, h.Position)
		case f.base == h.Base:
			there = true
		case f.base < h.Base && f.size == 0:
			return content{}, fmt.Errorf("%w: sealed segment %d is empty", storage.ErrHeldMismatch, f.base)
		case f.base > h.Base && f.size > 0:
			return content{}, fmt.Errorf("%w: segment %d is newer than %d and not empty", storage.ErrHeldMismatch, f.base, h.Base)
		}
	}
	if !there {
		return content{}, fmt.Errorf("%w: segment %d is not there", storage.ErrHeldMismatch, h.Base)
	}
	info, err := s.disk.fs.Stat(segmentPath(dir, h.Base))
	if err != nil {
		return content{}, err
	}
	if info.Dev != h.Dev || info.Ino != h.Ino {
		return content{}, fmt.Errorf("%w: segment %d is another file", storage.ErrHeldMismatch, h.Base)
	}
	return c, nil
}

// keepReady takes the names from empty segments above the active one: they were made ready for a roll that the core
// never learned of, and it may have written on in the old segment since. One of them becomes the spare.
func (s *Store) keepReady(dir string, c content, active record.Offset) (spare bool, err error) {
	spare = c.spare
	changed := false
	for i := len(c.segments) - 1; i >= 0 && c.segments[i].base > active; i-- {
		path := segmentPath(dir, c.segments[i].base)
		if spare {
			err = s.disk.fs.Remove(path)
		} else {
			err = s.disk.fs.Replace(path, filepath.Join(dir, spareName))
		}
		if err != nil {
			return false, err
		}
		spare, changed = true, true
	}
	if !changed {
		return spare, nil
	}
	return spare, s.disk.fs.SyncDir(dir)
}
