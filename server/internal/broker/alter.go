package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/partition"
	"github.com/trunkline-mq/trunkline/server/internal/setting"
)

// fits refuses settings that a topic's store cannot keep.
func fits(d storage.Description, s setting.Topic) *errcode.Error {
	switch {
	case d.Pinned && s.RetentionBytes < 0:
		return errcode.New(errcode.BadSetting, fmt.Sprintf("a topic on the store %s needs retention.bytes: memory ends", d.Name),
			"say how much each partition may keep, such as retention.bytes=64MiB")
	case d.Streams && s.Sync != setting.SyncBatch:
		return errcode.New(errcode.BadSetting, fmt.Sprintf("sync=%s cannot be had on the store %s: it acknowledges what it keeps", s.Sync, d.Name),
			"leave sync out, or choose sync=batch")
	}
	return nil
}

// segmentsPerRetention is how many segments a log in memory has at least: retention takes whole ones, and never the
// active one.
const segmentsPerRetention = 4

func logSettings(s setting.Topic, d storage.Description) lend.Settings {
	set := plainSettings(s)
	if d.Pinned {
		set.SegmentBytes = min(set.SegmentBytes, max(setting.SegmentBytesMin, s.RetentionBytes/segmentsPerRetention))
		set.Retention = &lend.Retention{Time: s.RetentionTime, Bytes: s.RetentionBytes}
	}
	return set
}

func plainSettings(s setting.Topic) lend.Settings {
	modes := map[setting.SyncMode]lend.SyncMode{
		setting.SyncBatch: lend.SyncBatch, setting.SyncInterval: lend.SyncInterval, setting.SyncNever: lend.SyncNever,
	}
	return lend.Settings{
		SegmentBytes: s.SegmentBytes, SegmentTime: s.SegmentTime, Sync: lend.Sync{Mode: modes[s.Sync], Interval: s.SyncEvery},
	}
}

func partitionSettings(s setting.Topic) partition.Settings {
	return partition.Settings{MessageBytes: s.MessageBytes, AppendTime: s.AppendTime, Synced: s.Sync == setting.SyncBatch}
}

// apply hands the settings to the partitions.
func (b *Broker) apply(t *Topic) error {
	var errs []error
	set := plainSettings(t.Set)
	if keep, ok := b.stores.engine(t.Meta.Store()); ok { // else no partition is open
		set = logSettings(t.Set, keep.Description())
	}
	for _, p := range t.partitions {
		if p == nil {
			continue
		}
		// The log first: an acknowledgement may say disk only once the log syncs.
		if t.Set.Sync != setting.SyncBatch {
			p.Alter(partitionSettings(t.Set))
		}
		if err := p.Log().Alter(set); err != nil {
			errs = append(errs, fmt.Errorf("alter %s: %w", p.Name, err))
		}
		p.Alter(partitionSettings(t.Set))
	}
	if err := errors.Join(errs...); err != nil {
		return errcode.Wrap(errcode.StorageUnavailable, err, "the settings are written, but not every partition could be synced",
			"see the server's log")
	}
	return nil
}

// Trim moves a partition's log start up to at least off, which is not above its high watermark, and returns where it is.
func (b *Broker) Trim(ctx context.Context, p *partition.Partition, off record.Offset) (record.Offset, error) {
	if end := p.HighWatermark(); off > end {
		return 0, errcode.New(errcode.OffsetOutOfRange, fmt.Sprintf("%s ends at %d, before %d", p.Address(), end, off), "trim to @latest at most")
	}
	// A client that goes away must not leave the plugin's answer unheard: that would end the plugin.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()
	start, err := p.Log().Trim(ctx, off)
	if err != nil {
		return 0, errcode.Wrap(errcode.StorageUnavailable, err, fmt.Sprintf("%s could not be trimmed", p.Address()), "see the server's log, then try again")
	}
	return start, nil
}

const (
	// lookEvery is how often the broker looks after its logs' segments.
	lookEvery = time.Second
	// expireEvery is how often retention is asked for.
	expireEvery   = 5 * time.Second
	expireTimeout = 10 * time.Second
)

// keepLogs rolls aged segments and lets retention take old ones, until ctx ends.
func (b *Broker) keepLogs(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var expired time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			expire := now.Sub(expired) >= expireEvery
			if expire {
				expired = now
			}
			for _, t := range b.Topics() {
				b.keepTopic(ctx, t, expire)
			}
		}
	}
}

func (b *Broker) keepTopic(ctx context.Context, t *Topic, expire bool) {
	for _, p := range t.partitions {
		if p == nil || ctx.Err() != nil {
			continue
		}
		if p.Log().Aged() {
			p.Tick()
		}
		if !expire || t.Set.RetentionTime == 0 && t.Set.RetentionBytes < 0 || p.Down() != nil {
			continue
		}
		b.expire(ctx, t, p)
	}
}

func (b *Broker) expire(ctx context.Context, t *Topic, p *partition.Partition) {
	ctx, cancel := context.WithTimeout(ctx, expireTimeout)
	defer cancel()
	before := p.Log().Stats().LogStart
	start, err := p.Log().Expire(ctx, t.Set.RetentionTime, t.Set.RetentionBytes, p.HighWatermark())
	switch {
	case err != nil && ctx.Err() == nil:
		b.log.Warn("retention failed; tried again", "partition", p.Name.String(), "err", err)
	case err == nil && start > before:
		b.log.Info("retention moved the log start", "partition", p.Name.String(), "from", int64(before), "to", int64(start))
	}
}
