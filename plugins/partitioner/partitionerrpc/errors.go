package partitionerrpc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
)

const (
	errorDomain   = "trunkline.partitioner"
	reasonRefused = "REFUSED"
	// messageBytesMax bounds an error's text, both ways.
	messageBytesMax = 1 << 10
)

func toStatus(err error) error {
	text := bounded(err.Error())
	switch {
	case errors.Is(err, partitioner.ErrRefused):
		st, derr := status.New(codes.FailedPrecondition, text).
			WithDetails(&errdetails.ErrorInfo{Domain: errorDomain, Reason: reasonRefused})
		if derr != nil {
			return status.Error(codes.Internal, text)
		}
		return st.Err()
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, text)
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, text)
	}
	return status.Error(codes.Internal, text)
}

// fromStatus gives an error its identity back.
func fromStatus(ctx context.Context, call string, err error) error {
	st := status.Convert(err)
	text := bounded(st.Message())
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain && info.GetReason() == reasonRefused {
			return fmt.Errorf("%w (%s)", partitioner.ErrRefused, strings.TrimPrefix(text, partitioner.ErrRefused.Error()+": "))
		}
	}
	switch code := st.Code(); {
	case code == codes.DeadlineExceeded:
		return fmt.Errorf("%w: %s: %w", ErrDeadline, call, context.DeadlineExceeded)
	case code == codes.Canceled && ctx.Err() != nil:
		return fmt.Errorf("partitioner plugin: %s: %w", call, ctx.Err())
	case code == codes.Unavailable, code == codes.Canceled: // gRPC cancels calls of a connection that is closed
		return fmt.Errorf("%w: %s: %s", ErrUnavailable, call, text)
	}
	return fmt.Errorf("%w: %s: %s: %s", ErrPlugin, call, st.Code(), text)
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
