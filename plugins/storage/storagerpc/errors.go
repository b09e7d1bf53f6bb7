// Package storagerpc is how the storage contract travels between the core and a plugin's process: calls by gRPC,
// descriptors by SCM_RIGHTS over a SEQPACKET socket that the child inherits as descriptor 3.
//
// NewClient is the core's side, Register the plugin's. The client gives every call a deadline of its own, believes no
// answer unchecked, and keeps the identity of the contract's errors, so that errors.Is works across the wire. It
// assumes that host and plugin run on one machine. It neither starts nor restarts a process, and never repeats a call:
// what to do after ErrUnavailable or ErrDeadline is the caller's to decide.
package storagerpc

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trunkline-mq/trunkline/plugins/storage"
)

var (
	// ErrUnavailable says that the plugin's process or the connection to it is gone. A call that was under way may
	// have been carried out; re-adoption tells.
	ErrUnavailable = storage.ErrGone
	// ErrDeadline says that a call did not answer in time, or was given up by its caller: its outcome is unknown, and it
	// may still happen. The plugin's process has to end before anything else is asked of the partition.
	ErrDeadline = storage.ErrNoAnswer
	// ErrBadAnswer says that the plugin answered what cannot be true. Nothing of the answer was used.
	ErrBadAnswer = storage.ErrBadAnswer
	// ErrDescriptorLost says that the call was carried out and this process could not receive the descriptor that it
	// lent, because it has too many open.
	ErrDescriptorLost = errors.New("lent descriptor was lost")
)

// PluginError is a failure that the plugin reported.
type PluginError struct {
	Method string // "open"
	Text   string // the plugin's own words: for logs
	Err    error  // one of the contract's errors; nil for any other
}

func (e *PluginError) Error() string { return "storage plugin: " + e.Method + ": " + e.Text }

// Unwrap returns the contract's error.
func (e *PluginError) Unwrap() error { return e.Err }

// errorDomain marks the details of a status as ours.
const errorDomain = "storage.trunkline"

// known is one of the contract's errors as it travels.
type known struct {
	err    error
	reason string
	code   codes.Code
}

// knownErrors is the table of errors that keep their identity. Reasons are part of the wire format.
func knownErrors() []known {
	return []known{
		{storage.ErrDataMissing, "DATA_MISSING", codes.NotFound},
		{storage.ErrHeldMismatch, "HELD_MISMATCH", codes.FailedPrecondition},
		{storage.ErrLeaseHeld, "LEASE_HELD", codes.AlreadyExists},
		{storage.ErrLeaseStale, "LEASE_STALE", codes.Aborted},
		{storage.ErrOffsetOutOfRange, "OFFSET_OUT_OF_RANGE", codes.OutOfRange},
		{storage.ErrQuarantined, "QUARANTINED", codes.DataLoss},
		{storage.ErrNotOpen, "NOT_OPEN", codes.FailedPrecondition},
		{storage.ErrFull, "STORAGE_FULL", codes.ResourceExhausted},
		{storage.ErrFormat, "FORMAT", codes.FailedPrecondition},
	}
}

// toStatus is the plugin's side: err as it travels.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	for _, k := range knownErrors() {
		if !errors.Is(err, k.err) {
			continue
		}
		s, detailErr := status.New(k.code, err.Error()).WithDetails(&errdetails.ErrorInfo{Reason: k.reason, Domain: errorDomain})
		if detailErr != nil {
			return status.Error(codes.Internal, err.Error())
		}
		return s.Err()
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Internal, err.Error())
}

// fromStatus is the core's side: what err, the outcome of method, means here.
func fromStatus(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	for _, detail := range s.Details() {
		info, ok := detail.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != errorDomain {
			continue
		}
		for _, k := range knownErrors() {
			if k.reason == info.GetReason() {
				return &PluginError{Method: method, Text: s.Message(), Err: k.err}
			}
		}
	}
	switch s.Code() {
	case codes.Unavailable:
		return fmt.Errorf("%w: %s: %s", ErrUnavailable, method, s.Message())
	case codes.DeadlineExceeded, codes.Canceled:
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("%w: %s: %w", ErrDeadline, method, cause)
		}
		return fmt.Errorf("%w: %s: %s", ErrDeadline, method, s.Message())
	}
	return &PluginError{Method: method, Text: s.Message()}
}
