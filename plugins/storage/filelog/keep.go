package filelog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

var _ storage.Plugin = (*Store)(nil)

// owned checks that a Keeper's call comes from the core instance whose partition it is.
func (st *state) owned(which storage.Partition, instance string) error {
	switch {
	case len(st.segments) == 0 || st.which.TopicID != which.TopicID:
		return storage.ErrNotOpen
	case st.failed != nil:
		return st.failed
	case st.instance != instance:
		return fmt.Errorf("%w: the partition is of %q, not of %q", storage.ErrLeaseStale, st.instance, instance)
	}
	return nil
}

// Expire implements storage.Keeper.
func (s *Store) Expire(ctx context.Context, r storage.ExpireRequest) (record.Offset, error) {
	if err := check(r.Partition); err != nil {
		return 0, err
	}
	if r.RetentionTime < 0 || r.RetentionBytes < -1 {
		return 0, fmt.Errorf("%w: retention of %v, %d bytes", ErrInvalid, r.RetentionTime, r.RetentionBytes)
	}
	p, err := s.enter(ctx, r.Partition.String())
	if err != nil {
		return 0, err
	}
	defer s.leave(p)
	now := s.clock.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &p.state
	if err := st.owned(r.Partition, r.Instance); err != nil {
		return 0, fmt.Errorf("expire %s: %w", p.name, err)
	}
	return max(st.logStart, st.expired(r, now)), nil
}

// expired is the base of the first segment that the rules leave. Size counts from the newest bytes back, and a segment
// goes when all that is required lies after it.
func (st *state) expired(r storage.ExpireRequest, now int64) record.Offset {
	var total int64
	for _, g := range st.segments {
		total += g.Size
	}
	for _, g := range st.segments[:len(st.segments)-1] {
		total -= g.Size
		old := r.RetentionTime > 0 && now-g.stamp >= r.RetentionTime.Milliseconds()
		many := r.RetentionBytes >= 0 && total >= r.RetentionBytes
		if g.Next > r.Limit || !old && !many {
			return g.Base
		}
	}
	return st.active().Base
}

// Trim implements storage.Keeper.
func (s *Store) Trim(ctx context.Context, r storage.TrimRequest) (storage.Trimmed, error) {
	if err := check(r.Partition); err != nil {
		return storage.Trimmed{}, err
	}
	p, err := s.enter(ctx, r.Partition.String())
	if err != nil {
		return storage.Trimmed{}, err
	}
	defer s.leave(p)
	t, err := s.trim(ctx, p, r)
	if err != nil {
		return storage.Trimmed{}, fmt.Errorf("trim %s: %w", p.name, withFull(err))
	}
	return t, nil
}

func (s *Store) trim(ctx context.Context, p *part, r storage.TrimRequest) (storage.Trimmed, error) {
	p.mu.Lock()
	err := p.state.owned(r.Partition, r.Instance)
	start := max(p.state.logStart, r.LogStart)
	p.mu.Unlock()
	if err != nil {
		return storage.Trimmed{}, err
	}
	// Even where it was passed already: an earlier call may have failed after it was set.
	s.logStarts.set(r.Partition, start)
	if err := s.logStarts.flush(ctx); err != nil {
		return storage.Trimmed{}, err
	}
	p.mu.Lock()
	st := &p.state
	st.logStart = start
	var gone []found
	for len(st.segments) > 1 && st.segments[0].Next <= start {
		gone = append(gone, found{base: st.segments[0].Base})
		st.segments = st.segments[1:]
	}
	st.sealing = min(st.sealing, len(st.segments)-1)
	t := storage.Trimmed{LogStart: start, First: st.segments[0].Base}
	p.mu.Unlock()
	if err := s.disk.removeLowest(s.disk.partition(p.name), gone); err != nil {
		// What is left of them lies below the log start: the next start removes it.
		return storage.Trimmed{}, err
	}
	s.tidying.push(p.name)
	return t, nil
}

// removeLowest removes segments from the beginning of a log, lowest first, so that no crash leaves a gap.
func (d disk) removeLowest(dir string, gone []found) error {
	if len(gone) == 0 {
		return nil
	}
	for _, f := range gone {
		if err := d.removeIndexes(dir, f.base); err != nil {
			return err
		}
		if err := d.removeQuietly(segmentPath(dir, f.base)); err != nil {
			return err
		}
	}
	return d.fs.SyncDir(dir)
}

// Delete implements storage.Store. The name is free, durably, when it returns; the space follows in the background, so
// that a large log cannot outlast the call's deadline. What lies in quarantine stays there: it is an operator's.
func (s *Store) Delete(ctx context.Context, which storage.Partition) error {
	if err := check(which); err != nil {
		return err
	}
	p, err := s.enter(ctx, which.String())
	if err != nil {
		return err
	}
	defer s.leave(p)
	dir := s.disk.partition(p.name)
	id, err := s.topicID(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errUnidentified):
		return nil // not there, or not known to be its own
	case err != nil:
		return fmt.Errorf("delete %s: %w", p.name, err)
	case id != which.TopicID:
		return nil
	}
	trash := filepath.Join(s.disk.trash(), fmt.Sprintf("%s-%d", which.TopicID, which.ID))
	trash, err = s.disk.moveAside(dir, trash)
	if err != nil {
		return fmt.Errorf("delete %s: %w", p.name, err)
	}
	failpoint.Hit("plugin.delete.moved")
	p.reset()
	s.recoveryPoints.forget(which)
	s.logStarts.forget(which)
	s.trash.push(filepath.Base(trash))
	failpoint.Hit("plugin.delete.done")
	return nil
}

// emptyTrash unlinks one deleted partition.
func (s *Store) emptyTrash(_ context.Context, name string) {
	path := filepath.Join(s.disk.trash(), name)
	failpoint.Hit("plugin.delete.unlinking")
	err := s.disk.fs.RemoveAll(path)
	failpoint.Hit("plugin.delete.unlinked")
	if err == nil {
		err = s.disk.fs.SyncDir(s.disk.trash())
	}
	if err != nil {
		s.workerFailed("empty the trash of "+name, err)
	}
}
