package storage

import (
	"context"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// StreamPlugin is a storage plugin without files. Package stream serves one as a Plugin, and gives the core one for a
// Plugin that was served so.
type StreamPlugin interface {
	Streamer
	Keeper
}

// Streamer is a store that is handed batches instead of lending files for them. What Store says of concurrency and of
// unknown outcomes holds here, too; Append counts as a mutating call, Read as Locate.
//
// There are no segments: what is sealed in an answer is runs of batches, as large as the store likes, and the lease is
// of what follows, Position 0. No File is lent by Open, Truncate or Describe.
type Streamer interface {
	// Describe tells what the store is. Its Streams need not be set.
	Describe(ctx context.Context) (Description, error)
	// Open makes the partition ready and gives the right to append. On return everything below Lease.Next is as durable
	// as the store says, and nothing lies above. There is no Held: a core whose store was restarted opens again and
	// sends again what it has no answer for.
	Open(ctx context.Context, r OpenRequest) (Opened, error)
	// Append adds whole batches at the end. On a nil return they are as durable as the store says, with everything below,
	// and can be read. A group that is there already, told by epoch, base and sum, is no error: it is answered as if it
	// had just been added. The slice is the caller's again on return.
	//
	// ErrFull is definite: nothing of the group is there, or ever will be. ErrLeaseStale if r.Lease is not the newest,
	// ErrHeldMismatch if the group does not begin where the log ends and is not the one there. Any other error leaves
	// the outcome open.
	Append(ctx context.Context, r AppendRequest) error
	// Read returns whole batches in order, from the one that holds r.Offset on: as many as fit into r.Limit bytes, but at
	// least one. ErrOffsetOutOfRange below the log start and at the end.
	Read(ctx context.Context, r ReadRequest) ([]byte, error)
	// Close surrenders the lease. Closing what is not held is no error.
	Close(ctx context.Context, r CloseRequest) error
	// Delete is Store.Delete.
	Delete(ctx context.Context, p Partition) error
}

// AppendRequest is a group: whole batches that belong together.
type AppendRequest struct {
	Partition    Partition
	Instance     string
	Lease        LeaseEpoch
	Epoch        record.Epoch  // leader epoch of every batch
	Base, Next   record.Offset // offsets [Base, Next)
	MaxTimestamp int64
	Sum          uint32 // storeframe.Sum of Bytes
	Bytes        []byte
}

// ReadRequest asks for batches.
type ReadRequest struct {
	Partition Partition
	Offset    record.Offset
	Limit     int64
	Into      []byte // room that the answer may use; what it holds is of no matter
}
