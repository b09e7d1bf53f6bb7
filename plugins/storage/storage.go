// Package storage is the contract of a storage plugin: who makes, recovers and deletes a partition's segments, and
// lends the core the descriptor of the active one, so that batch bytes never travel through a plugin.
//
// The core alone writes and syncs a lent segment, at explicit offsets; the plugin makes the next one (Roll), recovers
// (Open), lends sealed ones for reading (Locate) and deletes. STORAGE.md is the contract in prose; §2, 3, 5, 6 and 7
// are cited below.
//
// Every call may run concurrently with calls for other partitions. Calls for one partition are made one at a time,
// but for Locate and Note, which may run beside any of them. A call whose context ends has an unknown outcome: the
// core then kills the plugin's process, waits until it is gone, and re-adopts with Held (§7).
package storage

import (
	"context"
	"errors"
	"fmt"

	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Store is a storage plugin.
type Store interface {
	// Describe tells what the store is and lends its canary, a file whose writability stands for the log directory's
	// (§3). The receiver owns the canary and closes it.
	Describe(ctx context.Context) (Description, error)
	// Open makes the partition ready and lends its active segment. On return every byte below Lease.Position is on
	// disk and verified, nothing lies above it, and (Request.Epoch, Lease.Next) is durable in the epoch checkpoint if
	// it is newer than the last one there. With Held it neither scans nor cuts (§7). Opening what this core instance
	// already holds, without Held, is ErrLeaseHeld.
	Open(ctx context.Context, r OpenRequest) (Opened, error)
	// Roll seals the active segment at exactly r.Position and lends the next, empty one, whose base is r.Next. On
	// return the new name is durable. Repeating a Roll that has happened returns the same lease. The sealed segment
	// was synced by the core before. ErrLeaseStale if r.Lease is not the newest; ErrHeldMismatch if the size differs.
	Roll(ctx context.Context, r RollRequest) (Lease, error)
	// Locate lends the sealed or active segment that holds r.Offset, and the place to start reading from: a batch
	// boundary at or below the offset. ErrOffsetOutOfRange below the log start or beyond the active segment's base
	// when it is not lent. The receiver owns the file, may only read it, and closes it.
	Locate(ctx context.Context, r LocateRequest) (Extent, error)
	// Note tells what the core has written and synced; the store may index it. Notes arrive in order per partition;
	// repeating one is harmless. ErrLeaseStale if the lease is not the newest.
	Note(ctx context.Context, n Note) error
	// Close surrenders a lease: the core has synced and closed its descriptor. Closing what is not held is no error.
	Close(ctx context.Context, r CloseRequest) error
	// Delete removes the partition of that topic id, held or not, by rename into the trash first; on return the name
	// is free, durably. Deleting what is not there is no error.
	Delete(ctx context.Context, p Partition) error
}

// Partition names a partition for good: the id tells topics of the same name apart.
type Partition struct {
	Topic   string
	TopicID string // 32 hex digits
	ID      partition.ID
}

// String is the directory's name, as in Kafka: "orders-2".
func (p Partition) String() string { return fmt.Sprintf("%s-%d", p.Topic, p.ID) }

// LeaseEpoch counts the leases of a partition within a plugin instance and beyond: it only grows.
type LeaseEpoch uint64

// Description is what a store says of itself.
type Description struct {
	Name    string // "filelog"
	Version string
	// Durability is what an ack may claim after a sync: "disk", or "memory" where a sync makes nothing durable.
	Durability string
	Canary     File // nil where the store has no files
	// Streams: the store has no files. What it lends are connected sockets: with a lease one to append through, as an
	// extent one to read from. Package stream speaks on them, on either side.
	Streams bool
	// Pinned: what it lends lasts as long as somebody has it open, and no longer. The core keeps every segment open and
	// hands all of them back to a successor (Held).
	Pinned bool
	// SegmentRecords bounds the records of a segment; 0 leaves it at what 31 bits count.
	SegmentRecords int64
}

// File is a descriptor on loan. *os.File is one.
type File interface {
	Fd() uintptr
	Close() error
}

// OpenRequest asks for a partition.
type OpenRequest struct {
	Partition Partition
	Instance  string       // nonce of the core process; leases of other instances are void
	Create    bool         // metadata says `creating`: a missing directory is made; else it is ErrDataMissing
	Epoch     record.Epoch // leader epoch of what will be appended
	// Lazy: the topic is acknowledged before it is synced (sync=interval or never). What recovery takes off its end was
	// never promised: it is cut, saved and reported, and not Dirty (§6.3).
	Lazy bool
	// Adopt: metadata says `creating`, and the directory is moved in from <data>/adopt, with the topic id of Partition.
	// Repeating it after the move is no error.
	Adopt bool
	// SegmentBytes is where the core rolls; the store may use it to size spares and nothing else.
	SegmentBytes int64
	// Held, when not nil, is what this living core still holds.
	Held *Held
	// Ceiling, unless negative, is the offset after the last record that a living core saw synced before it fenced the
	// directory: recovery keeps nothing at or above it (§3). An end below it is damage and is reported as such.
	Ceiling record.Offset
}

// Held describes a lease the core holds across a restart of the plugin.
type Held struct {
	Lease    LeaseEpoch
	Base     record.Offset
	Position int64
	Next     record.Offset
	Dev, Ino uint64
	// The rest is for stores whose files are pinned: all there is of the log. The caller owns the files and closes them
	// after the call; a store reopens what it keeps.
	LogStart     record.Offset
	MaxTimestamp int64 // of the segment so far; -1 when empty
	File         File
	Sealed       []HeldSegment // ascending, without gaps up to Base
}

// HeldSegment is a sealed segment that the core has open.
type HeldSegment struct {
	Segment
	File File
}

// Opened is the answer to Open.
type Opened struct {
	Lease    Lease
	LogStart record.Offset
	Sealed   []Segment // ascending, without gaps up to Lease.Base
	Cut      *Cut      // nil when recovery removed nothing
	// GapsBelow: below that offset a batch need not begin where the one before ends, because the log was compacted by
	// whom it came from. 0 where there are no gaps.
	GapsBelow record.Offset
}

// Segment describes a sealed segment: offsets [Base, Next), bytes [0, Size).
type Segment struct {
	Base, Next   record.Offset
	Size         int64
	MaxTimestamp int64 // -1 when empty, or not known to the store (adopted with Held)
}

// Lease is the right to write one segment from Position on.
type Lease struct {
	Epoch        LeaseEpoch
	Base         record.Offset // of the segment
	Next         record.Offset // of the next record
	Position     int64         // where its batch starts; the file's size
	MaxTimestamp int64         // of the segment so far; -1 when empty, or not known (adopted with Held)
	Dev, Ino     uint64
	File         File // nil when adopted with Held and the segment did not change
}

// Cut reports what recovery took off the end of a log. The bytes were saved under SavedAs first.
type Cut struct {
	Offset  record.Offset // the first offset that is gone
	Bytes   int64
	Reason  string
	SavedAs string
	// Dirty: more than one group was lost, or the end is below the core's Ceiling: records that were acknowledged may
	// be missing (§6.3).
	Dirty bool
}

// RollRequest seals a lent segment.
type RollRequest struct {
	Partition    Partition
	Instance     string
	Lease        LeaseEpoch
	Position     int64         // the segment's final size
	Next         record.Offset // base of the segment to come
	MaxTimestamp int64
	// Entries are those of the sealed segment that no note has told. They are a shortcut, as those of a note are: a store
	// that knows better may leave them.
	Entries []Entry
}

// LocateRequest asks where an offset lies.
type LocateRequest struct {
	Partition Partition
	Offset    record.Offset
}

// Extent is a readable piece of a segment.
type Extent struct {
	Segment
	Position int64         // a batch boundary
	Offset   record.Offset // base offset of the batch there, at or below the one asked for
	File     File
}

// Note says what is durable since the last one.
type Note struct {
	Partition Partition
	Instance  string
	Lease     LeaseEpoch
	Position  int64 // everything below is written and synced
	Next      record.Offset
	Entries   []Entry
}

// Entry is a sparse index entry: a batch that starts at Position and ends with offset Last.
type Entry struct {
	Last         record.Offset
	Position     int64
	MaxTimestamp int64         // of the segment up to and with this batch
	MaxOffset    record.Offset // the last offset of the first batch that holds it
}

// CloseRequest surrenders a lease.
type CloseRequest struct {
	Partition Partition
	Instance  string
	Lease     LeaseEpoch
	Position  int64
	Next      record.Offset
}

// What a Store answers, beside its own I/O errors. They keep their identity across the wire.
var (
	ErrDataMissing      = errors.New("DATA_MISSING: the partition's directory is not there")
	ErrHeldMismatch     = errors.New("HELD_MISMATCH: what the core holds is not what lies on disk")
	ErrLeaseHeld        = errors.New("LEASE_HELD: this core instance holds the partition")
	ErrLeaseStale       = errors.New("LEASE_STALE: a newer lease exists")
	ErrOffsetOutOfRange = errors.New("OFFSET_OUT_OF_RANGE: no segment holds the offset")
	ErrQuarantined      = errors.New("QUARANTINED: the partition's log is damaged and was set aside")
	ErrNotOpen          = errors.New("NOT_OPEN: the partition is not open")
	ErrFull             = errors.New("STORAGE_FULL: no space left")
	ErrFormat           = errors.New("FORMAT: the directory's format is newer than this store")
)

// IsAnswer reports whether a store itself said err: then it is alive, and the outcome is known.
func IsAnswer(err error) bool {
	for _, known := range []error{
		ErrDataMissing, ErrHeldMismatch, ErrLeaseHeld, ErrLeaseStale, ErrOffsetOutOfRange, ErrQuarantined, ErrNotOpen, ErrFull, ErrFormat,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// ErrGone is no Store's answer: its process, or the connection to it, is gone. A call that was under way may have been
// carried out; re-adoption tells.
var ErrGone = errors.New("storage plugin is gone")

// ErrNoAnswer is no Store's answer either: it did not answer in time, or its caller gave up. What was asked may have been
// done, or may yet be: the process has to end before anything else is asked of the partition.
var ErrNoAnswer = errors.New("storage plugin did not answer in time")

// ErrBadAnswer says that a store answered what cannot be true. Nothing of the answer was used.
var ErrBadAnswer = errors.New("storage plugin gave an answer that cannot be right")
