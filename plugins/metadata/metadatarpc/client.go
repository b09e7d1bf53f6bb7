// Package metadatarpc is how the metadata contract travels over gRPC: a client that is a metadata.Store, and Register
// for the other side. Each call has a deadline of its own, errors keep their identity, and answers are checked before
// they are believed. It starts no process, dials nothing and tries nothing twice: a Commit that ended with ErrDeadline
// or ErrUnavailable may have happened.
package metadatarpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	metadatapb "github.com/trunkline-mq/trunkline/protocol/pluginpb/metadata/v1"
)

// callTimeout bounds every call but the life of a watch, which is bounded until it is established, and List.
const callTimeout = 2 * time.Second

// listFactor is how much longer than other calls List may take, and a watch to be established: a store that is not
// the broker's own may have to read everything first.
const listFactor = 5

// textBytesMax bounds what a plugin says of itself.
const textBytesMax = 80

var (
	// ErrUnavailable says that the plugin could not be reached, or went away during the call.
	ErrUnavailable = errors.New("metadata plugin is not available")
	// ErrDeadline says that the plugin did not answer in time.
	ErrDeadline = errors.New("metadata plugin did not answer in time")
	// ErrBadAnswer says that the plugin's answer breaks the contract.
	ErrBadAnswer = errors.New("metadata plugin gave an answer that breaks the contract")
	// ErrPlugin says that the plugin answered with an error that the contract does not know.
	ErrPlugin = errors.New("metadata plugin reports")
	// ErrWatchClosed is what Next returns after Close.
	ErrWatchClosed = errors.New("watch is closed")
)

// Client asks a plugin. It is safe for concurrent use.
type Client struct {
	rpc     metadatapb.MetadataClient
	timeout time.Duration
}

var _ metadata.Store = (*Client)(nil)

// NewClient returns a client over cc, which stays the caller's. Its calls end after two seconds, lists after ten.
func NewClient(cc grpc.ClientConnInterface) *Client { return NewClientTimeout(cc, callTimeout) }

// NewClientTimeout is NewClient with another bound for each call; List has five times as long.
func NewClientTimeout(cc grpc.ClientConnInterface, timeout time.Duration) *Client {
	return &Client{rpc: metadatapb.NewMetadataClient(cc), timeout: timeout}
}

// Describe asks what the store is.
func (c *Client) Describe(ctx context.Context) (metadata.Description, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.rpc.Describe(ctx, &metadatapb.DescribeRequest{})
	if err != nil {
		return metadata.Description{}, fromStatus(ctx, "describe", err)
	}
	if resp.GetName() == "" || len(resp.GetName()) > textBytesMax || len(resp.GetVersion()) > textBytesMax {
		return metadata.Description{}, fmt.Errorf("%w: describe: no name, or a long one", ErrBadAnswer)
	}
	return metadata.Description{Name: resp.GetName(), Version: resp.GetVersion(), Shared: resp.GetShared()}, nil
}

// Get reads one key.
func (c *Client) Get(ctx context.Context, key string) (metadata.Entry, error) {
	if err := metadata.CheckKey(key); err != nil {
		return metadata.Entry{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.rpc.Get(ctx, &metadatapb.GetRequest{Key: key})
	if err != nil {
		return metadata.Entry{}, fromStatus(ctx, "get", err)
	}
	e := entryFromPB(resp.GetEntry())
	if e.Key != key {
		return metadata.Entry{}, fmt.Errorf("%w: get %s: the entry is of %.80q", ErrBadAnswer, key, e.Key)
	}
	if err := checkEntry(e); err != nil {
		return metadata.Entry{}, fmt.Errorf("%w: get: %w", ErrBadAnswer, err)
	}
	return e, nil
}

// List reads all keys below prefix.
func (c *Client) List(ctx context.Context, prefix string) (metadata.Snapshot, error) {
	if err := metadata.CheckPrefix(prefix); err != nil {
		return metadata.Snapshot{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, listFactor*c.timeout)
	defer cancel() // also ends the stream when an answer is bad
	stream, err := c.rpc.List(ctx, &metadatapb.ListRequest{Prefix: prefix})
	if err != nil {
		return metadata.Snapshot{}, fromStatus(ctx, "list", err)
	}
	snap := metadata.Snapshot{Revision: -1}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return metadata.Snapshot{}, fromStatus(ctx, "list", err)
		}
		if err := snapAppend(&snap, prefix, resp); err != nil {
			return metadata.Snapshot{}, fmt.Errorf("%w: list %s: %w", ErrBadAnswer, prefix, err)
		}
	}
	if snap.Revision < 0 {
		return metadata.Snapshot{}, fmt.Errorf("%w: list %s: no answer in it", ErrBadAnswer, prefix)
	}
	return snap, nil
}

// Commit applies t. It asks again in no case.
func (c *Client) Commit(ctx context.Context, t metadata.Txn) (metadata.Revision, error) {
	if err := errors.Join(t.Check(), ctx.Err()); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.rpc.Commit(ctx, txnToPB(t))
	if err != nil {
		return 0, unknown(fromStatus(ctx, "commit", err))
	}
	rev := metadata.Revision(resp.GetRevision())
	if rev < 0 || rev == 0 && len(t.Puts) > 0 {
		return 0, unknown(fmt.Errorf("%w: commit: revision %d", ErrBadAnswer, rev))
	}
	return rev, nil
}

// unknown marks the error of a transaction that was sent, unless the plugin itself said that nothing happened.
func unknown(err error) error {
	var conflict *metadata.ConflictError
	if errors.As(err, &conflict) {
		return err
	}
	for _, id := range identities() {
		if errors.Is(err, id.err) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", metadata.ErrUnknown, err)
}

// Watch establishes a watch; ctx bounds only that. The watch itself lives until Close.
func (c *Client) Watch(ctx context.Context, prefix string, after metadata.Revision) (metadata.Watcher, error) {
	if err := metadata.CheckPrefix(prefix); err != nil {
		return nil, err
	}
	s, first, err := begin(ctx, listFactor*c.timeout, "watch", func(life context.Context) (grpc.ServerStreamingClient[metadatapb.WatchResponse], error) {
		return c.rpc.Watch(life, &metadatapb.WatchRequest{Prefix: prefix, After: int64(after)})
	})
	if err != nil {
		return nil, err
	}
	if len(first.GetEvents()) != 0 {
		s.cancel()
		return nil, fmt.Errorf("%w: watch %s: events before it was established", ErrBadAnswer, prefix)
	}
	return newWatcher(s, prefix, after), nil
}

// stream is a call that goes on after its first answer, until cancel.
type stream[T any] struct {
	grpc.ServerStreamingClient[T]
	life   context.Context
	cancel context.CancelFunc
}

// begin makes a call that goes on and waits for its first answer. ctx and timeout bound only that.
func begin[T any](ctx context.Context, timeout time.Duration, call string,
	open func(life context.Context) (grpc.ServerStreamingClient[T], error),
) (*stream[T], *T, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	ctx, done := context.WithTimeout(ctx, timeout)
	defer done()
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stopLink := context.AfterFunc(ctx, cancel)
	s, err := open(life)
	var first *T
	if err == nil {
		first, err = s.Recv()
	}
	if !stopLink() && err == nil { // ctx ended just now, and life with it
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel()
		return nil, nil, beginError(ctx, call, err)
	}
	return &stream[T]{ServerStreamingClient: s, life: life, cancel: cancel}, first, nil
}

// beginError words why a call did not begin. gRPC knows only that it was cancelled; ctx knows why.
func beginError(ctx context.Context, call string, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%w: %s: %w", ErrDeadline, call, context.DeadlineExceeded)
	case ctx.Err() != nil:
		return fmt.Errorf("metadata plugin: %s: %w", call, ctx.Err())
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: %s: it ended before it began", ErrBadAnswer, call)
	}
	return fromStatus(ctx, call, err)
}
