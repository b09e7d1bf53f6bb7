package storagerpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	storagepb "github.com/trunkline-mq/trunkline/protocol/pluginpb/storage/v1"
)

// errNoProgress is the cause of a deadline that an Open ran into.
var errNoProgress = fmt.Errorf("it came no further: %w", context.DeadlineExceeded)

// Open may take as long as it needs, as long as it comes further: the deadline starts again with every change.
func (c *client) Open(ctx context.Context, r storage.OpenRequest) (storage.Opened, error) {
	patience := c.deadlineOf(methodOpen)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(patience, func() { cancel(errNoProgress) })
	defer timer.Stop()
	number := c.sock.begin()
	defer c.sock.end(number)
	request := openToWire(r)
	if err := c.handBack(request, r.Held); err != nil {
		return storage.Opened{}, err
	}
	stream, err := c.rpc.Open(ctx, request)
	if err != nil {
		return storage.Opened{}, fromStatus(ctx, methodOpen, err)
	}
	a, err := awaitOpened(ctx, stream, func() { timer.Reset(patience) })
	if err != nil {
		return storage.Opened{}, err
	}
	o := openedFromWire(a)
	if o.Lease.File, err = c.borrow(ctx, a.GetLease().GetLend()); err != nil {
		return storage.Opened{}, err
	}
	if err := checked(o.Lease.File, checkOpened(r, o)); err != nil {
		return storage.Opened{}, err
	}
	return o, nil
}

// handBack sends what the core holds of a log whose files are pinned, and notes the ids in the request.
func (c *client) handBack(q *storagepb.OpenRequest, h *storage.Held) (err error) {
	if h == nil || h.File == nil {
		return nil
	}
	if q.Held.Lend, err = c.sock.send(h.File); err != nil {
		return fmt.Errorf("%w: hand back the active segment: %w", ErrUnavailable, err)
	}
	for i := range h.Sealed {
		if q.Held.Sealed[i].Lend, err = c.sock.send(h.Sealed[i].File); err != nil {
			return fmt.Errorf("%w: hand back segment %d: %w", ErrUnavailable, h.Sealed[i].Base, err)
		}
	}
	return nil
}

// awaitOpened reads signs of life up to the answer. Repeating the same figures is none.
func awaitOpened(ctx context.Context, stream grpc.ServerStreamingClient[storagepb.OpenResponse], further func()) (*storagepb.Opened, error) {
	var last storage.Progress
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil, bad("an open that ended without an answer")
		case err != nil:
			return nil, fromStatus(ctx, methodOpen, err)
		}
		switch step := m.GetStep().(type) {
		case *storagepb.OpenResponse_Opened:
			if step.Opened.GetLease() == nil {
				return nil, bad("an open without a lease")
			}
			return step.Opened, nil
		case *storagepb.OpenResponse_Progress:
			p := storage.Progress{Done: step.Progress.GetDone(), Total: step.Progress.GetTotal()}
			if p.Done < 0 || p.Total < 0 {
				return nil, bad("progress of %d of %d bytes", p.Done, p.Total)
			}
			if p != last {
				last = p
				further()
				storage.ReportProgress(ctx, p)
			}
		default:
			return nil, bad("an open that says nothing")
		}
	}
}
