package trunkline

import (
	"errors"
	"fmt"
	"strings"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

// The families of what can go wrong. A *ServerError matches the family of its code, and ErrOutcomeUnknown besides where
// its record may appear all the same.
var (
	// ErrInvalid is the error for what the protocol or the server cannot take: a bad name, address, header or setting.
	ErrInvalid = errors.New("invalid request")
	// ErrNotFound is the error for a topic or partition that does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists is the error for making a topic whose name is taken.
	ErrExists = errors.New("exists already")
	// ErrNotSupported is the error for what this server does not offer.
	ErrNotSupported = errors.New("not supported by this server")
	// ErrNotAllowed is the error for what the server denies this client.
	ErrNotAllowed = errors.New("not allowed")
	// ErrTooLarge is the error for a record above a limit.
	ErrTooLarge = errors.New("record too large")
	// ErrOffsetOutOfRange is the error for an offset that is not in the log.
	ErrOffsetOutOfRange = errors.New("offset out of range")
	// ErrCorrupt is the error for stored bytes that fail their check.
	ErrCorrupt = errors.New("stored bytes are damaged")
	// ErrUnavailable is the error for what may work later without being changed.
	ErrUnavailable = errors.New("not available now")
	// ErrOutcomeUnknown is the error for a publish whose record may or may not appear in the log.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrClosed is the error for using a client, subscription or reading after it was closed.
	ErrClosed = errors.New("closed")
	// ErrConnect is the error for a connection that could not be made.
	ErrConnect = errors.New("cannot connect")
	// ErrProtocol is the error for a peer that does not speak the protocol.
	ErrProtocol = errors.New("protocol violation")
)

// ServerError is a -ERR of the server.
type ServerError struct {
	// Code is the stable word of the protocol, such as UNKNOWN_TOPIC.
	Code errcode.Code
	// Text says what happened and what to do.
	Text string
	// Async is true for an error that answers no request: a subscription met damage, the server is going down.
	Async bool
}

// Error returns the code and the text.
func (e *ServerError) Error() string { return string(e.Code) + ": " + e.Text }

// What says what happened: the text without the server's advice.
func (e *ServerError) What() string {
	what, _ := e.cut()
	return what
}

// Hint is the server's own advice for this one case; empty where it gave none. Fix is there for every code.
func (e *ServerError) Hint() string {
	_, hint := e.cut()
	return hint
}

// cut takes the text apart, which is "what happened; what to do".
func (e *ServerError) cut() (what, hint string) {
	if i := strings.LastIndex(e.Text, "; "); i >= 0 {
		return e.Text[:i], e.Text[i+len("; "):]
	}
	return e.Text, ""
}

// Cause says how errors of this code come about; empty for a code that this version does not know.
func (e *ServerError) Cause() string {
	a, _ := e.Code.Advice()
	return a.Cause
}

// Fix says how to get past errors of this code; empty for a code that this version does not know.
func (e *ServerError) Fix() string {
	a, _ := e.Code.Advice()
	return a.Fix
}

// OutcomeUnknown reports whether a record whose publish failed so may be in the log; errors.Is tells the same by
// ErrOutcomeUnknown.
func (e *ServerError) OutcomeUnknown() bool { return e.Code.Outcome() == errcode.Unknown }

// Retriable reports whether the same request may succeed later.
func (e *ServerError) Retriable() bool { return e.Code.Retriable() }

// Is makes errors.Is match the family of the code.
func (e *ServerError) Is(target error) bool {
	if target == ErrOutcomeUnknown {
		return e.OutcomeUnknown()
	}
	family := e.family()
	return family != nil && family == target
}

func (e *ServerError) family() error {
	switch e.Code {
	case errcode.TopicExists, errcode.NameCollision:
		return ErrExists
	case errcode.TopicDeleted:
		return ErrNotFound
	case errcode.BadVerb, errcode.NotSupported:
		return ErrNotSupported
	case errcode.TooLarge:
		return ErrTooLarge
	case errcode.OffsetOutOfRange:
		return ErrOffsetOutOfRange
	case errcode.Corrupt:
		return ErrCorrupt
	case errcode.LineTooLong:
		return ErrInvalid
	case "NOT_ALLOWED", "NOT_AUTHENTICATED": // announced for a later version of the protocol
		return ErrNotAllowed
	}
	switch {
	case strings.HasPrefix(string(e.Code), "UNKNOWN_"):
		return ErrNotFound
	case strings.HasPrefix(string(e.Code), "BAD_"):
		return ErrInvalid
	case e.Code.Retriable():
		return ErrUnavailable
	}
	return nil
}

// LinkError says that the link to the server ended before a request was answered. It matches ErrOutcomeUnknown when the
// request, or part of it, had been handed to the network.
type LinkError struct {
	// Sent is false when the server cannot have seen the request: nothing of it was written.
	Sent bool
	// Err is what ended the link; ErrClosed when this side did.
	Err error
}

// Error says whether the outcome is known and what ended the link.
func (e *LinkError) Error() string {
	if e.Sent {
		return fmt.Sprintf("link ended before the answer, outcome unknown: %v", e.Err)
	}
	return fmt.Sprintf("link ended before the request was sent: %v", e.Err)
}

// Unwrap returns what ended the link.
func (e *LinkError) Unwrap() error { return e.Err }

// Is makes errors.Is match ErrOutcomeUnknown for a request that was sent.
func (e *LinkError) Is(target error) bool { return target == ErrOutcomeUnknown && e.Sent }

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// GapError says that a reader passed over something: records that retention or a trim had removed before it came to them, or
// messages of live subjects that were published while it had no connection. The reader goes on.
type GapError struct {
	Topic     string
	Partition PartitionID // -1: any
	From, To  Offset      // the records [From, To) are gone; -1 where nobody can know. To < From: the log was cut off at To.
	Err       error       // more about it; may be nil
}

// Error says what was passed over.
func (e *GapError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %v", e.Topic, e.Err)
	}
	return fmt.Sprintf("%s/%d: offsets %d to %d are not in the log any more", e.Topic, e.Partition, min(e.From, e.To), max(e.From, e.To)-1)
}

// Unwrap returns more about it, or nil.
func (e *GapError) Unwrap() error { return e.Err }

// Is makes errors.Is match ErrOffsetOutOfRange.
func (e *GapError) Is(target error) bool { return target == ErrOffsetOutOfRange }
