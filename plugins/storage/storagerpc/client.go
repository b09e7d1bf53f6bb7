package storagerpc

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	storagepb "github.com/trunkline-mq/trunkline/protocol/pluginpb/storage/v1"
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
)

// deadlineOf is how long a call may take, whatever more its caller would wait. Opening may scan a whole log from a
// slow disk; everything else is a few small operations, and a store that needs seconds for them hangs.
func deadlineOf(method string) time.Duration {
	if method == methodOpen {
		return 5 * time.Minute
	}
	return 5 * time.Second
}

// NewClient returns the plugin behind cc as a Store. Descriptors arrive on sock, which the caller closes after the last
// call. Errors are the contract's, PluginError, ErrUnavailable, ErrDeadline, ErrBadAnswer or ErrDescriptorLost. After a
// call that failed with one of the last four the work may still have been done, or may yet be done.
func NewClient(cc grpc.ClientConnInterface, sock *Socket) storage.Store {
	return &client{rpc: storagepb.NewStorageClient(cc), sock: sock, deadlineOf: deadlineOf}
}

type client struct {
	rpc        storagepb.StorageClient
	sock       *Socket
	deadlineOf func(method string) time.Duration
}

var _ storage.Store = (*client)(nil)

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
			d = storage.Description{Name: a.GetName(), Version: a.GetVersion(), Durability: a.GetDurability()}
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

func (c *client) Open(ctx context.Context, r storage.OpenRequest) (o storage.Opened, err error) {
	err = call[*storagepb.OpenRequest, *storagepb.OpenResponse]{c, methodOpen, c.rpc.Open, openToWire(r)}.do(ctx,
		func(ctx context.Context, a *storagepb.OpenResponse) error {
			o = openedFromWire(a)
			if o.Lease.File, err = c.borrow(ctx, a.GetLease().GetLend()); err != nil {
				return err
			}
			return checked(o.Lease.File, checkOpened(r, o))
		})
	if err != nil {
		return storage.Opened{}, err
	}
	return o, nil
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
