package filelog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strings"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// errAdopt says that a directory cannot be taken over as it is. What can be done about it follows.
var errAdopt = fmt.Errorf("cannot be adopted: %w", fs.ErrInvalid)

// Adoptable implements storage.Keeper.
func (s *Store) Adoptable(ctx context.Context, topic string) (storage.Adoption, error) {
	if storage.ValidTopic(topic) != nil || topic[0] == '.' {
		return storage.Adoption{}, fmt.Errorf("%w: topic name %q", ErrInvalid, topic)
	}
	entries, err := s.disk.fs.ReadDir(s.disk.adoptable())
	if err != nil {
		return storage.Adoption{}, fmt.Errorf("adopt %s: %w", topic, err)
	}
	ids := map[partition.ID]bool{}
	for _, e := range entries {
		if t, id, ok := kafkalog.ParsePartitionDir(e.Name()); ok && t == topic {
			ids[id] = true
		}
	}
	if len(ids) == 0 {
		return storage.Adoption{}, fmt.Errorf("%w: no directory %s-<partition> in %s", storage.ErrDataMissing, topic, s.disk.adoptable())
	}
	a := storage.Adoption{Partitions: int32(len(ids))}
	for id := range partition.ID(len(ids)) {
		name := kafkalog.PartitionDir(topic, id)
		if !ids[id] {
			return storage.Adoption{}, fmt.Errorf("%s %w: it is not there, and a higher partition is; put it into %s too", name, errAdopt, s.disk.adoptable())
		}
		topicID, epoch, err := s.survey(ctx, filepath.Join(s.disk.adoptable(), name))
		if err != nil {
			return storage.Adoption{}, fmt.Errorf("%s %w", name, err)
		}
		if id > 0 && topicID != a.TopicID {
			return storage.Adoption{}, fmt.Errorf("%s %w: its topic id is %q, that of the partitions before %q; remove partition.metadata from all of them", name, errAdopt, topicID, a.TopicID)
		}
		a.TopicID = topicID
		a.Epochs = append(a.Epochs, epoch)
	}
	return a, nil
}

// survey looks at what can be told of a directory without reading all of it: its topic id, its last leader epoch.
func (s *Store) survey(ctx context.Context, dir string) (topicID string, epoch record.Epoch, err error) {
	topicID, err = s.topicID(dir)
	if _, statErr := s.disk.fs.Stat(filepath.Join(dir, kafkalog.PartitionMetadataName)); errors.Is(statErr, fs.ErrNotExist) {
		topicID, err = "", nil
	}
	if err != nil {
		return "", -1, fmt.Errorf("%w: %w", errAdopt, err)
	}
	c, err := s.adoptedContent(dir)
	if err != nil {
		return "", -1, err
	}
	epochs, known, err := s.epochs(dir)
	if err != nil {
		return "", -1, err
	}
	if latest, ok := epochs.Latest(); known && ok {
		return topicID, latest.Epoch, nil
	}
	epoch = -1
	for i := len(c.segments) - 1; i >= 0 && epoch < 0; i-- { // the newest that is not empty
		f := c.segments[i]
		if epoch, err = s.lastEpoch(ctx, dir, storage.Segment{Base: f.base, Next: math.MaxInt64, Size: f.size}); err != nil {
			return "", -1, err
		}
	}
	return topicID, epoch, nil
}

// lastEpoch goes through a segment's headers to the last.
func (s *Store) lastEpoch(ctx context.Context, dir string, g storage.Segment) (record.Epoch, error) {
	f, err := s.disk.fs.Open(segmentPath(dir, g.Base), vfs.Read)
	if err != nil {
		return -1, err
	}
	defer func() { _ = f.Close() }() // only read
	epoch := record.Epoch(-1)
	w := walk{file: f, segment: g}
	for at := int64(0); at < g.Size; {
		if err := ctx.Err(); err != nil {
			return -1, err
		}
		b, err := w.header(at)
		if err != nil {
			return -1, adoptError(g.Base, at, err)
		}
		epoch, at = b.Epoch(), at+int64(b.Size())
	}
	return epoch, nil
}

// adoptError says what is wrong with a batch, and what helps.
func adoptError(base record.Offset, position int64, err error) error {
	advice := "start and stop its Kafka broker once, so that it repairs the log, and copy it again"
	if errors.Is(err, record.ErrMagic) {
		advice = "batches of formats before 2 have to be rewritten: copy the topic within Kafka, with message format 2 (Kafka 0.11 or later)"
	}
	return fmt.Errorf("%w: %s, position %d: %w; %s", errAdopt, kafkalog.SegmentName(base), position, err, advice)
}

// adoptedContent lists the segments of a directory from elsewhere, which has to have been left in order.
func (s *Store) adoptedContent(dir string) (content, error) {
	entries, err := s.disk.fs.ReadDir(dir)
	if err != nil {
		return content{}, err
	}
	for _, e := range entries {
		for _, suffix := range []string{".swap", ".cleaned"} {
			if strings.HasSuffix(e.Name(), suffix) {
				return content{}, fmt.Errorf("%w: %s is left of a compaction; start and stop its Kafka broker cleanly, and copy it again", errAdopt, e.Name())
			}
		}
	}
	c, err := s.disk.list(dir)
	if err == nil && len(c.segments) == 0 {
		err = fmt.Errorf("%w: it holds no segment; copy its .log files too", errAdopt)
	}
	return c, err
}

// moveIn makes a partition of a directory from elsewhere. All of it is read before anything but an index is changed; it
// gets its place last, so that a crash before leaves it where an operator put it.
func (s *Store) moveIn(ctx context.Context, r storage.OpenRequest) error {
	name := r.Partition.String()
	dir := filepath.Join(s.disk.adoptable(), name)
	if _, err := s.disk.fs.Stat(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %s", storage.ErrDataMissing, dir)
		}
		return err
	}
	topicID, _, err := s.survey(ctx, dir)
	if err != nil {
		return fmt.Errorf("%s %w", name, err)
	}
	if topicID != "" && topicID != r.Partition.TopicID {
		return fmt.Errorf("%s %w: its topic id is %s, not %s; remove its partition.metadata", name, errAdopt, topicID, r.Partition.TopicID)
	}
	v := &recovery{store: s, dir: dir, r: r, buf: make([]byte, scanBytes), gaps: math.MaxInt64}
	v.r.Ceiling = -1
	if err := v.inspect(ctx); err != nil {
		return fmt.Errorf("%s %w", name, err)
	}
	failpoint.Hit("plugin.adopt.inspected")
	if err := s.dress(ctx, v); err != nil {
		return err
	}
	failpoint.Hit("plugin.adopt.dressed")
	for _, f := range v.emptied {
		s.log.Warn("segment is empty and left out: its records are taken to be compacted away", "partition", name, "segment", f.base)
	}
	s.log.Info("partition adopted", "partition", name, "from", v.segments[0].Base, "to", v.next)
	return s.disk.move(dir, s.disk.partition(name))
}

// inspect reads every segment and makes its indexes; the first batch that is not sound ends it with an error.
func (v *recovery) inspect(ctx context.Context) (err error) {
	if v.content, err = v.store.adoptedContent(v.dir); err != nil {
		return err
	}
	for _, f := range v.content.segments {
		v.progress.total += f.size
	}
	v.next = v.content.segments[0].base
	for i, f := range v.content.segments {
		last := i == len(v.content.segments)-1
		if f.size == 0 && !last {
			v.emptied = append(v.emptied, f)
			if n := len(v.segments); n > 0 {
				v.segments[n-1].Next = v.content.segments[i+1].base
			}
			v.next = v.content.segments[i+1].base
			continue
		}
		g, e, err := v.scan(ctx, &f, !last)
		if err != nil {
			return err
		}
		if e != nil {
			return adoptError(f.base, g.Size, e.cause())
		}
		if !last {
			after := v.content.segments[i+1].base
			if after < g.Next {
				return fmt.Errorf("%w: %s begins below offset %d, where the one before ends; start and stop its Kafka broker once, and copy it again", errAdopt, kafkalog.SegmentName(after), g.Next)
			}
			g.Next = after
		}
		v.segments, v.next = append(v.segments, g), g.Next
	}
	return nil
}

// dress gives the directory what a partition of ours has beside its segments, and the recovery point that lets it be
// opened without another scan.
func (s *Store) dress(ctx context.Context, v *recovery) error {
	metadata, err := kafkalog.PartitionMetadata(v.r.Partition.TopicID)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{
		{kafkalog.PartitionMetadataName, metadata},
		{kafkalog.EpochCheckpointName, v.epochs.AppendText(nil)},
		{kafkalog.AdoptedBelowName, kafkalog.AppendAdoptedBelow(nil, v.next)},
	} {
		if err := s.disk.writeDurably(filepath.Join(v.dir, f.name), f.content); err != nil {
			return err
		}
	}
	failpoint.Hit("plugin.adopt.named")
	if err := s.disk.removeLowest(v.dir, v.emptied); err != nil {
		return err
	}
	entries, err := s.disk.fs.ReadDir(v.dir)
	if err != nil {
		return err
	}
	for _, e := range entries { // of producers and transactions that no Kafka broker will go on with
		for _, suffix := range []string{".snapshot", ".txnindex", ".deleted"} {
			if strings.HasSuffix(e.Name(), suffix) {
				if err := s.disk.fs.Remove(filepath.Join(v.dir, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	if err := s.disk.fs.SyncDir(v.dir); err != nil {
		return err
	}
	s.recoveryPoints.set(v.r.Partition, v.next)
	s.logStarts.set(v.r.Partition, v.segments[0].Base)
	return errors.Join(s.recoveryPoints.flush(ctx), s.logStarts.flush(ctx))
}
