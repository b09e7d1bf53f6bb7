// Package metadata is the contract of a metadata plugin: a small, versioned tree of keys with guarded transactions and
// watches. What the keys mean is the core's business.
//
// Keys are absolute paths of one or more segments, "/topics/orders"; a segment is [A-Za-z0-9._-]+ and not "." or "..".
// Values are at most ValueBytesMax. The contract asks for no more than ZooKeeper's multi can do.
package metadata

import (
	"context"
	"errors"
	"fmt"
)

// ValueBytesMax bounds a value: ZooKeeper takes 1 MiB in a whole packet.
const ValueBytesMax = 512 << 10

// Store is a metadata plugin. Calls may run concurrently. A call whose context ends has an unknown outcome.
type Store interface {
	// Describe tells what the store is.
	Describe(ctx context.Context) (Description, error)
	// Get reads one key; ErrNotFound when it is not there.
	Get(ctx context.Context, key string) (Entry, error)
	// List reads all keys below prefix ("/topics/" ends in a slash), in order, as of one revision.
	List(ctx context.Context, prefix string) (Snapshot, error)
	// Commit applies t as a whole or not at all; on return it is durable and every later Get sees it. A guard that
	// does not hold is a *ConflictError.
	Commit(ctx context.Context, t Txn) (Revision, error)
	// Watch delivers every change below prefix with a revision above after, in order, without gaps. ErrCompacted when
	// the store no longer has them: list again. The caller closes the watcher.
	Watch(ctx context.Context, prefix string, after Revision) (Watcher, error)
}

// Watcher delivers events until it is closed.
type Watcher interface {
	// Next waits for events and returns at least one. It ends with the store's death, ctx or Close.
	Next(ctx context.Context) ([]Event, error)
	// Close ends the watch; it is safe to call twice.
	Close() error
}

// Revision counts commits of the whole store.
type Revision int64

// Version counts the writes of one key since it was made: 1 for a new key.
type Version int64

// Absent, in a guard, demands that the key is not there.
const Absent Version = 0

// Entry is a key with its value.
type Entry struct {
	Key      string
	Value    []byte
	Version  Version
	Revision Revision // of its last write
}

// Snapshot is what List saw.
type Snapshot struct {
	Entries  []Entry
	Revision Revision
}

// Txn is a set of writes that happen if every guard holds. A key appears at most once in Puts and Deletes together.
type Txn struct {
	Guards  []Guard
	Puts    []Put
	Deletes []string
}

// Guard demands that a key has exactly this version.
type Guard struct {
	Key     string
	Version Version
}

// Put writes a key.
type Put struct {
	Key   string
	Value []byte
}

// Event is one changed key. Deleted events carry no value.
type Event struct {
	Entry
	Deleted bool
}

// Description is what a metadata store says of itself.
type Description struct {
	Name    string // "embedded"
	Version string
	// Shared: other brokers may write to it.
	Shared bool
}

// ConflictError says which guard did not hold. It keeps its shape across the wire.
type ConflictError struct{ Key string }

func (e *ConflictError) Error() string { return fmt.Sprintf("CONFLICT: %s changed meanwhile", e.Key) }

// What a Store answers. They keep their identity across the wire.
var (
	ErrNotFound  = errors.New("NOT_FOUND: no such key")
	ErrCompacted = errors.New("COMPACTED: the changes asked for are no longer kept")
	ErrBadKey    = errors.New("BAD_KEY: not a legal key")
	ErrTooLarge  = errors.New("TOO_LARGE: the value exceeds the limit")
)
