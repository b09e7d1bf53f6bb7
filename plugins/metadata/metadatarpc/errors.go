package metadatarpc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

const (
	errorDomain    = "trunkline.metadata"
	reasonConflict = "CONFLICT"
	conflictKey    = "key" // in the ErrorInfo's metadata
	// messageBytesMax bounds an error's text, both ways.
	messageBytesMax = 1 << 10
)

// identity is an error of the contract as it travels.
type identity struct {
	err    error
	reason string
	code   codes.Code
}

func identities() [7]identity {
	return [...]identity{
		{metadata.ErrNotFound, "NOT_FOUND", codes.NotFound},
		{metadata.ErrCompacted, "COMPACTED", codes.OutOfRange},
		{metadata.ErrBadKey, "BAD_KEY", codes.InvalidArgument},
		{metadata.ErrTooLarge, "TOO_LARGE", codes.InvalidArgument},
		{metadata.ErrUnknown, "UNKNOWN", codes.Unknown},
		{metadata.ErrUnavailable, "UNAVAILABLE", codes.Unavailable},
		{metadata.ErrSessionLost, "SESSION_LOST", codes.FailedPrecondition},
	}
}

func toStatus(err error) error {
	text := bounded(err.Error())
	if conflict, ok := errors.AsType[*metadata.ConflictError](err); ok {
		info := &errdetails.ErrorInfo{
			Domain: errorDomain, Reason: reasonConflict, Metadata: map[string]string{conflictKey: conflict.Key},
		}
		return withInfo(codes.Aborted, text, info)
	}
	for _, id := range identities() {
		if errors.Is(err, id.err) {
			return withInfo(id.code, text, &errdetails.ErrorInfo{Domain: errorDomain, Reason: id.reason})
		}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, text)
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, text)
	}
	return status.Error(codes.Internal, text)
}

func withInfo(code codes.Code, text string, info *errdetails.ErrorInfo) error {
	st, err := status.New(code, text).WithDetails(info)
	if err != nil {
		return status.Error(codes.Internal, text)
	}
	return st.Err()
}

// fromStatus gives an error its identity back. ctx is the call's.
func fromStatus(ctx context.Context, call string, err error) error {
	st := status.Convert(err)
	text := bounded(st.Message())
	for _, d := range st.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != errorDomain {
			continue
		}
		if info.GetReason() == reasonConflict {
			return &metadata.ConflictError{Key: bounded(info.GetMetadata()[conflictKey])}
		}
		for _, id := range identities() {
			if info.GetReason() == id.reason {
				return again(id.err, text)
			}
		}
	}
	switch code := st.Code(); {
	case code == codes.DeadlineExceeded:
		return fmt.Errorf("%w: %s: %w", ErrDeadline, call, context.DeadlineExceeded)
	case code == codes.Canceled && ctx.Err() != nil:
		return fmt.Errorf("metadata plugin: %s: %w", call, ctx.Err())
	case code == codes.Unavailable, code == codes.Canceled: // gRPC cancels calls of a connection that is closed
		return fmt.Errorf("%w: %s: %s", ErrUnavailable, call, text)
	}
	return fmt.Errorf("%w: %s: %s: %s", ErrPlugin, call, st.Code(), text)
}

// again is sentinel with what the plugin said about it, without the words that are the sentinel's own.
func again(sentinel error, text string) error {
	text = strings.TrimPrefix(text, sentinel.Error())
	text = strings.TrimPrefix(text, ": ")
	if text == "" {
		return sentinel
	}
	return fmt.Errorf("%w: %s", sentinel, text)
}

// bounded is text on one line, without control characters, and not longer than an error should be.
func bounded(text string) string {
	if len(text) > messageBytesMax {
		text = text[:messageBytesMax]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return '?'
		}
		return r
	}, text)
}
