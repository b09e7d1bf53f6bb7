// Package metadata is the contract of a metadata plugin: a small, versioned tree of keys with guarded transactions,
// watches, and sessions whose keys vanish with them. What the keys mean is the core's business.
//
// Keys are absolute paths of one or more segments, "/topics/orders"; a segment is [A-Za-z0-9._-]+ and not "." or "..".
// A key may lie below another. Values are at most ValueBytesMax, transactions at most TxnBytesMax. The contract asks for
// no more than ZooKeeper's multi can do.
//
// Reads are as new as the backend can make them, but no decision that must be safe may rest on a read alone: guard the
// transaction with the versions that were read.
package metadata

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// ValueBytesMax bounds a value: ZooKeeper takes 1 MiB in a whole packet.
	ValueBytesMax = 512 << 10
	// TxnBytesMax bounds Txn.Size, for the same reason.
	TxnBytesMax = 704 << 10
)

// Store is a metadata plugin. Calls may run concurrently.
type Store interface {
	// Describe tells what the store is. It needs no backend.
	Describe(ctx context.Context) (Description, error)
	// Get reads one key; ErrNotFound when it is not there. It sees every commit that had returned when it was called,
	// by whichever broker.
	Get(ctx context.Context, key string) (Entry, error)
	// List reads all keys below prefix ("/topics/" ends in a slash), in order, as of one revision, which is as new as
	// Get's.
	List(ctx context.Context, prefix string) (Snapshot, error)
	// Commit applies t as a whole or not at all; on return it is durable and every later read sees it. A guard that
	// does not hold is a *ConflictError, and so is a put that would change whose key it is (see Put). ErrSessionLost
	// when a put's session is over. ErrUnknown when it may have happened, or may yet: read, and look. Every other error
	// means that nothing happened.
	Commit(ctx context.Context, t Txn) (Revision, error)
	// Watch delivers every change below prefix with a revision above after, in order, without gaps: no state of a key
	// is skipped. ErrCompacted when the store no longer has them: list again. The caller closes the watcher. It
	// outlives the backend's absence.
	Watch(ctx context.Context, prefix string, after Revision) (Watcher, error)
	// Session begins a session, which lives until Close, until this store ends, or until the backend gives it up. The
	// caller closes it.
	Session(ctx context.Context) (Session, error)
}

// Watcher delivers events until it is closed.
type Watcher interface {
	// Next waits for events and returns at least one. It ends with the store's death, ctx or Close, and with
	// ErrCompacted when what comes next is no longer kept.
	Next(ctx context.Context) ([]Event, error)
	// Close ends the watch; it is safe to call twice.
	Close() error
}

// Session is an incarnation of a broker as the backend sees it. Keys put with its id are deleted when it ends, by
// commits like any other, soon after.
type Session interface {
	// ID tells this session apart from all others there were and will be.
	ID() SessionID
	// Lost is closed, once, when the session is known to be over, Close included. Until the backend can be asked, a
	// session that is over may look alive: Renew tells how long it surely is.
	Lost() <-chan struct{}
	// Renew asks the backend and returns until when, by this process's clock, the session cannot be taken for dead.
	// ErrSessionLost when it is over, ErrUnavailable when the backend does not answer: then it may be either.
	Renew(ctx context.Context) (time.Time, error)
	// Close ends the session; its keys are deleted soon, or else when the backend notices. It is safe to call twice.
	Close() error
}

// Revision orders the commits of the whole store: each has a greater one than all before it, and 0 is before the first.
type Revision int64

// Version counts the writes of one key since it was made: 1 for a new key. A key that was deleted and made again starts
// over, so put something unique into values whose key may come back.
type Version int64

// SessionID names a session. NoSession is nobody's.
type SessionID uint64

// NoSession is the session of keys that stay until they are deleted.
const NoSession SessionID = 0

// Absent, in a guard, demands that the key is not there.
const Absent Version = 0

// Entry is a key with its value.
type Entry struct {
	Key      string
	Value    []byte
	Version  Version
	Revision Revision  // of its last write
	Session  SessionID // whose end deletes it
}

// Snapshot is what List saw.
type Snapshot struct {
	Entries  []Entry
	Revision Revision
}

// Txn is a set of writes that happen if every guard holds. A key appears at most once in Puts and Deletes together, and
// at most once in Guards.
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

// Put writes a key. A key belongs to its session, or to none, from its making to its deletion: a put with another
// session is a conflict.
type Put struct {
	Key     string
	Value   []byte
	Session SessionID // must live when the transaction is applied, unless it is NoSession
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

// ConflictError says which key was not as the transaction demands. It keeps its shape across the wire.
type ConflictError struct{ Key string }

func (e *ConflictError) Error() string { return fmt.Sprintf("CONFLICT: %s changed meanwhile", e.Key) }

// What a Store answers. They keep their identity across the wire.
var (
	ErrNotFound    = errors.New("NOT_FOUND: no such key")
	ErrCompacted   = errors.New("COMPACTED: the changes asked for are no longer kept")
	ErrBadKey      = errors.New("BAD_KEY: not a legal key")
	ErrTooLarge    = errors.New("TOO_LARGE: the value or the transaction exceeds the limit")
	ErrUnknown     = errors.New("UNKNOWN: the transaction may have happened, or may yet")
	ErrUnavailable = errors.New("UNAVAILABLE: the metadata backend does not answer")
	ErrSessionLost = errors.New("SESSION_LOST: the session is over")
)
