package storage

import (
	"context"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Plugin is a whole storage plugin: a Store that also keeps what it stores in order.
type Plugin interface {
	Store
	Keeper
}

// Keeper is what happens to a log besides being written and read: it loses its old end, its new end, or moves in from
// elsewhere. Calls for one partition are made one at a time, and not beside Store's mutating calls for it.
type Keeper interface {
	// Expire proposes a log start by the retention rules, at or above the present one, always a segment's base, never
	// above r.Limit, never inside or beyond the active segment. It changes nothing: the core decides, and calls Trim.
	Expire(ctx context.Context, r ExpireRequest) (record.Offset, error)
	// Trim moves the log start up to r.LogStart, which may lie inside a segment. On return the new start is durable; it
	// was before anything was unlinked; and segments wholly below it are gone, never the active one. Repeating it, or
	// asking for a start that is passed already, is no error.
	Trim(ctx context.Context, r TrimRequest) (Trimmed, error)
	// Truncate takes everything from r.Next on off the log and lends its new end (§5). The core has surrendered the
	// lease before: r.Lease is the last one it had. The old inodes stay as they are for whoever still reads them.
	Truncate(ctx context.Context, r TruncateRequest) (Opened, error)
	// Adoptable tells what lies under <data>/adopt for a topic: directories that OpenRequest.Adopt would move in.
	// ErrDataMissing when there is nothing, an error that says why when it cannot be taken over as a whole.
	Adoptable(ctx context.Context, topic string) (Adoption, error)
	// Room reports whether the disk takes records again after ErrFull or a write that met ENOSPC: it restores the
	// reserve (§9) and fails with ErrFull while it cannot.
	Room(ctx context.Context) error
}

// ExpireRequest asks what may go.
type ExpireRequest struct {
	Partition      Partition
	Instance       string
	RetentionTime  time.Duration // 0: no limit; counted on the retention clock (§5)
	RetentionBytes int64         // -1: no limit
	Limit          record.Offset // the high watermark
}

// TrimRequest moves the log start.
type TrimRequest struct {
	Partition Partition
	Instance  string
	LogStart  record.Offset
}

// Trimmed is what Trim left.
type Trimmed struct {
	LogStart record.Offset
	First    record.Offset // base of the first segment that is left
}

// TruncateRequest shortens a log at its new end.
type TruncateRequest struct {
	Partition Partition
	Instance  string
	Lease     LeaseEpoch
	Next      record.Offset // the offset of the next record afterwards; a batch boundary
	Epoch     record.Epoch  // leader epoch of what will be appended
}

// Adoption is what may be adopted for a topic.
type Adoption struct {
	TopicID    string         // 32 hex digits; empty when the directories name none
	Partitions int32          // directories 0 to Partitions-1 are there
	Epochs     []record.Epoch // the last leader epoch of each, -1 where none is known
}
