package storagerpc

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	storagepb "github.com/trunkline-mq/trunkline/protocol/pluginpb/storage/v1"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// The calls, by the names that errors carry.
const (
	methodDescribe = "describe"
	methodOpen     = "open"
	methodRoll     = "roll"
	methodLocate   = "locate"
	methodNote     = "note"
	methodClose    = "close"
	methodDelete   = "delete"

	methodExpire    = "expire"
	methodTrim      = "trim"
	methodTruncate  = "truncate"
	methodAdoptable = "adoptable"
	methodRoom      = "room"
)

// deadlineOf is how long a call may take, whatever more its caller would wait. For Open, which may scan a whole log from
// a slow disk, it is how long nothing may change. Truncate copies up to a segment and Room writes the reserve, so they
// get longer too; everything else is a few small operations, and a store that needs seconds for them hangs.
func deadlineOf(method string) time.Duration {
	switch method {
	case methodOpen:
		return 30 * time.Second
	case methodTruncate, methodAdoptable, methodRoom:
		return time.Minute
	}
	return 5 * time.Second
}

// NewClient returns the plugin behind cc as a Plugin. An Open reports its progress under storage.WithProgress. Descriptors arrive on sock, which the caller closes after the last
// call. Errors are the contract's, PluginError, ErrUnavailable, ErrDeadline, ErrBadAnswer or ErrDescriptorLost. After a
// call that failed with one of the last four the work may still have been done, or may yet be done.
func NewClient(cc grpc.ClientConnInterface, sock *Socket) storage.Plugin {
	return &client{rpc: storagepb.NewStorageClient(cc), sock: sock, deadlineOf: deadlineOf}
}

type client struct {
	rpc        storagepb.StorageClient
	sock       *Socket
	deadlineOf func(method string) time.Duration
}

var _ storage.Plugin = (*client)(nil)

// remote is a method of the generated client.
type remote[Q, A any] func(context.Context, Q, ...grpc.CallOption) (A, error)

// call is one call of method with its request.
type call[Q, A any] struct {
	client  *client
	method  string
	rpc     remote[Q, A]
	request Q
}

// do makes the call under its deadline and hands the answer to use, still under it: use waits for descriptors.
func (c call[Q, A]) do(ctx context.Context, use func(context.Context, A) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.client.deadlineOf(c.method))
	defer cancel()
	number := c.client.sock.begin()
	defer c.client.sock.end(number)
	answer, err := c.rpc(ctx, c.request)
	if err != nil {
		return fromStatus(ctx, c.method, err)
	}
	return use(ctx, answer)
}

// borrow waits for the descriptor that an answer names, and nothing if it names none.
func (c *client) borrow(ctx context.Context, id uint64) (storage.File, error) {
	if id == 0 {
		return nil, nil
	}
	return c.sock.take(ctx, id)
}

// checked gives file back when the answer it came with cannot be right.
func checked(file storage.File, err error) error {
	if err != nil && file != nil {
		_ = file.Close() // not used
	}
	return err
}

func (c *client) Describe(ctx context.Context) (d storage.Description, err error) {
	err = call[*storagepb.DescribeRequest, *storagepb.DescribeResponse]{c, methodDescribe, c.rpc.Describe, &storagepb.DescribeRequest{}}.do(ctx,
		func(ctx context.Context, a *storagepb.DescribeResponse) error {
			d = storage.Description{
				Name: a.GetName(), Version: a.GetVersion(), Durability: a.GetDurability(),
				Streams: a.GetStreams(), Pinned: a.GetPinned(), SegmentRecords: a.GetSegmentRecords(),
			}
			if d.Canary, err = c.borrow(ctx, a.GetCanaryLend()); err != nil {
				return err
			}
			return checked(d.Canary, checkDescription(d))
		})
	if err != nil {
		return storage.Description{}, err
	}
	return d, nil
}

func (c *client) Roll(ctx context.Context, r storage.RollRequest) (l storage.Lease, err error) {
	err = call[*storagepb.RollRequest, *storagepb.RollResponse]{c, methodRoll, c.rpc.Roll, rollToWire(r)}.do(ctx,
		func(ctx context.Context, a *storagepb.RollResponse) error {
			l = leaseFromWire(a.GetLease())
			if l.File, err = c.borrow(ctx, a.GetLease().GetLend()); err != nil {
				return err
			}
			return checked(l.File, checkRolled(r, l))
		})
	if err != nil {
		return storage.Lease{}, err
	}
	return l, nil
}

func (c *client) Locate(ctx context.Context, r storage.LocateRequest) (e storage.Extent, err error) {
	request := &storagepb.LocateRequest{Partition: partitionToWire(r.Partition), Offset: int64(r.Offset)}
	err = call[*storagepb.LocateRequest, *storagepb.LocateResponse]{c, methodLocate, c.rpc.Locate, request}.do(ctx,
		func(ctx context.Context, a *storagepb.LocateResponse) error {
			e = extentFromWire(a)
			if e.File, err = c.borrow(ctx, a.GetLend()); err != nil {
				return err
			}
			return checked(e.File, checkExtent(r, e))
		})
	if err != nil {
		return storage.Extent{}, err
	}
	return e, nil
}

func (c *client) Note(ctx context.Context, n storage.Note) error {
	return call[*storagepb.NoteRequest, *storagepb.NoteResponse]{c, methodNote, c.rpc.Note, noteToWire(n)}.do(ctx,
		func(context.Context, *storagepb.NoteResponse) error { return nil })
}

func (c *client) Close(ctx context.Context, r storage.CloseRequest) error {
	return call[*storagepb.CloseRequest, *storagepb.CloseResponse]{c, methodClose, c.rpc.Close, closeToWire(r)}.do(ctx,
		func(context.Context, *storagepb.CloseResponse) error { return nil })
}

func (c *client) Delete(ctx context.Context, p storage.Partition) error {
	return call[*storagepb.DeleteRequest, *storagepb.DeleteResponse]{c, methodDelete, c.rpc.Delete, &storagepb.DeleteRequest{Partition: partitionToWire(p)}}.do(ctx,
		func(context.Context, *storagepb.DeleteResponse) error { return nil })
}

func (c *client) Expire(ctx context.Context, r storage.ExpireRequest) (start record.Offset, err error) {
	err = call[*storagepb.ExpireRequest, *storagepb.ExpireResponse]{c, methodExpire, c.rpc.Expire, expireToWire(r)}.do(ctx,
		func(_ context.Context, a *storagepb.ExpireResponse) error {
			start = record.Offset(a.GetLogStart())
			return checkExpired(start)
		})
	if err != nil {
		return 0, err
	}
	return start, nil
}

func (c *client) Trim(ctx context.Context, r storage.TrimRequest) (t storage.Trimmed, err error) {
	request := &storagepb.TrimRequest{Partition: partitionToWire(r.Partition), Instance: r.Instance, LogStart: int64(r.LogStart)}
	err = call[*storagepb.TrimRequest, *storagepb.TrimResponse]{c, methodTrim, c.rpc.Trim, request}.do(ctx,
		func(_ context.Context, a *storagepb.TrimResponse) error {
			t = storage.Trimmed{LogStart: record.Offset(a.GetLogStart()), First: record.Offset(a.GetFirst())}
			return checkTrimmed(r, t)
		})
	if err != nil {
		return storage.Trimmed{}, err
	}
	return t, nil
}

func (c *client) Truncate(ctx context.Context, r storage.TruncateRequest) (o storage.Opened, err error) {
	err = call[*storagepb.TruncateRequest, *storagepb.TruncateResponse]{c, methodTruncate, c.rpc.Truncate, truncateToWire(r)}.do(ctx,
		func(ctx context.Context, a *storagepb.TruncateResponse) error {
			o = openedFromWire(a.GetOpened())
			if o.Lease.File, err = c.borrow(ctx, a.GetOpened().GetLease().GetLend()); err != nil {
				return err
			}
			return checked(o.Lease.File, checkTruncated(r, o))
		})
	if err != nil {
		return storage.Opened{}, err
	}
	return o, nil
}

func (c *client) Adoptable(ctx context.Context, topic string) (a storage.Adoption, err error) {
	request := &storagepb.AdoptableRequest{Topic: topic}
	err = call[*storagepb.AdoptableRequest, *storagepb.AdoptableResponse]{c, methodAdoptable, c.rpc.Adoptable, request}.do(ctx,
		func(_ context.Context, w *storagepb.AdoptableResponse) error {
			a = adoptionFromWire(w)
			return checkAdoption(a)
		})
	if err != nil {
		return storage.Adoption{}, err
	}
	return a, nil
}

func (c *client) Room(ctx context.Context) error {
	return call[*storagepb.RoomRequest, *storagepb.RoomResponse]{c, methodRoom, c.rpc.Room, &storagepb.RoomRequest{}}.do(ctx,
		func(context.Context, *storagepb.RoomResponse) error { return nil })
}
