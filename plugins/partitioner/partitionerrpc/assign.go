package partitionerrpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	partitionerpb "github.com/trunkline-mq/trunkline/protocol/pluginpb/partitioner/v1"
)

const (
	// assignTimeout bounds a call for partitions: a publisher waits for it.
	assignTimeout = 50 * time.Millisecond
	// assignPending bounds the calls under way on one stream, so that a plugin that hangs costs no more memory than this.
	assignPending = 64
	// assignKeysMax bounds the keys of one call, and with it what a plugin has to hold.
	assignKeysMax = 1 << 16
)

// ErrTooMany says that a call has more keys, or a longer piece of them, than one call may have.
var ErrTooMany = errors.New("too many keys for one call")

var _ partitioner.Assigner = (*Client)(nil)

// Assign asks the plugin for partitions over a stream that all calls share: it is opened by the first, and anew after
// it broke. Each call has its own deadline, the wait for a place included; one that is late leaves the others alone.
// An answer of another length, or with a partition out of range, is ErrBadAnswer. Calls without keys ask nobody.
func (c *Client) Assign(ctx context.Context, r partitioner.AssignRequest, to []partition.ID) error {
	switch {
	case len(to) != r.Keys.Len():
		return fmt.Errorf("assign: room for %d answers to %d keys", len(to), r.Keys.Len())
	case len(to) == 0:
		return ctx.Err()
	case len(to) > assignKeysMax || len(r.Keys.Blob) > assignBytesMax:
		return fmt.Errorf("assign: %d keys of %d bytes: %w", len(to), len(r.Keys.Blob), ErrTooMany)
	}
	ctx, cancel := context.WithTimeout(ctx, c.assign.timeout)
	defer cancel()
	resp, err := c.assign.ask(ctx, c.rpc, &partitionerpb.AssignRequest{
		Topic: r.Topic, Partitions: r.Partitions, Keys: r.Keys.Blob, Lengths: r.Keys.Lengths,
	})
	switch {
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded): // whatever broke because of it
		return fmt.Errorf("%w: assign: %w", ErrDeadline, ctx.Err())
	case err != nil:
		return fromStatus(ctx, "assign", err)
	}
	if resp.GetLate() {
		return fmt.Errorf("%w: assign: %w", ErrDeadline, context.DeadlineExceeded)
	}
	if text := resp.GetError(); text != "" {
		return fmt.Errorf("%w: assign: %s", ErrPlugin, bounded(text))
	}
	if len(resp.GetPartitions()) != len(to) {
		return fmt.Errorf("%w: assign: %d answers to %d keys", ErrBadAnswer, len(resp.GetPartitions()), len(to))
	}
	for i, p := range resp.GetPartitions() {
		if p >= uint32(r.Partitions) {
			return fmt.Errorf("%w: assign: partition %d of %d", ErrBadAnswer, p, r.Partitions)
		}
		to[i] = partition.ID(p)
	}
	return nil
}

// assignBytesMax bounds the keys of one call in bytes, well below what a message may have.
const assignBytesMax = 16 << 20

// assigner is the client's side of the stream.
type assigner struct {
	timeout time.Duration
	places  chan struct{} // one element for each call under way
	sending chan struct{} // one element: whoever put it there may open the stream and send
	readers sync.WaitGroup

	mu      sync.Mutex
	stream  *assignStream // nil: none is open
	last    uint64        // id of the newest call
	waiting map[uint64]*assignCall
	closed  bool
}

// assignStream is one opening of the stream.
type assignStream struct {
	grpc.BidiStreamingClient[partitionerpb.AssignRequest, partitionerpb.AssignResponse]
	cancel context.CancelFunc
	late   atomic.Bool // it was ended because the plugin did not read in time
}

// assignCall is a call under way. done has room for the one answer it gets.
type assignCall struct {
	stream *assignStream
	done   chan assignAnswer
}

type assignAnswer struct {
	resp *partitionerpb.AssignResponse
	err  error
}

func newAssigner() *assigner {
	return &assigner{
		timeout: assignTimeout, places: make(chan struct{}, assignPending), sending: make(chan struct{}, 1),
		waiting: make(map[uint64]*assignCall),
	}
}

// ask sends req and waits for its answer.
func (a *assigner) ask(ctx context.Context, rpc partitionerpb.PartitionerClient, req *partitionerpb.AssignRequest) (*partitionerpb.AssignResponse, error) {
	if err := enter(ctx, a.places); err != nil {
		return nil, err
	}
	defer func() { <-a.places }()
	call, err := a.send(ctx, rpc, req)
	if err != nil {
		return nil, err
	}
	select {
	case answer := <-call.done:
		return answer.resp, answer.err
	case <-ctx.Done():
		a.mu.Lock()
		delete(a.waiting, req.Id) // an answer that comes late finds nobody
		a.mu.Unlock()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func enter(ctx context.Context, place chan struct{}) error {
	select {
	case place <- struct{}{}:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// send numbers req and puts it on the stream. A send that is stuck, because the plugin does not read, ends the stream
// when ctx does.
func (a *assigner) send(ctx context.Context, rpc partitionerpb.PartitionerClient, req *partitionerpb.AssignRequest) (*assignCall, error) {
	if err := enter(ctx, a.sending); err != nil {
		return nil, err
	}
	defer func() { <-a.sending }()
	s, err := a.open(ctx, rpc)
	if err != nil {
		return nil, err
	}
	call := &assignCall{stream: s, done: make(chan assignAnswer, 1)}
	a.mu.Lock()
	a.last++
	req.Id = a.last
	a.waiting[req.Id] = call
	a.mu.Unlock()
	stuck := context.AfterFunc(ctx, func() {
		s.late.Store(true)
		s.cancel()
	})
	err = s.Send(req)
	if !stuck() && err == nil {
		err = ctx.Err() // the stream is cancelled by now
	}
	if err != nil {
		if ctx.Err() != nil { // the function above may be about to run
			s.late.Store(true)
		}
		s.cancel() // its reader tells every call why, this one too
		a.forget(s)
	}
	return call, nil
}

// errClosed is what calls get after Close.
var errClosed = status.Error(codes.Unavailable, "the client is closed")

// open returns the open stream, or opens one and starts its reader. Only whoever is sending calls it.
func (a *assigner) open(ctx context.Context, rpc partitionerpb.PartitionerClient) (*assignStream, error) {
	a.mu.Lock()
	s, closed := a.stream, a.closed
	a.mu.Unlock()
	if closed {
		return nil, errClosed
	}
	if s != nil {
		return s, nil
	}
	life, cancel := context.WithCancel(context.Background()) // it outlives the call that opens it
	stuck := context.AfterFunc(ctx, cancel)
	raw, err := rpc.Assign(life)
	if !stuck() && err == nil {
		err = status.FromContextError(ctx.Err()).Err()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	s = &assignStream{BidiStreamingClient: raw, cancel: cancel}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		cancel()
		return nil, errClosed
	}
	a.stream = s
	a.readers.Go(func() { a.read(s) })
	return s, nil
}

// read hands answers to their calls until the stream ends, and then tells those that wait why.
func (a *assigner) read(s *assignStream) {
	defer s.cancel()
	for {
		resp, err := s.Recv()
		if err != nil {
			a.forget(s)
			if s.late.Load() { // and not that the plugin is gone
				err = status.Error(codes.DeadlineExceeded, "the plugin does not read")
			}
			a.fail(s, err)
			return
		}
		a.mu.Lock()
		call := a.waiting[resp.GetId()]
		delete(a.waiting, resp.GetId())
		a.mu.Unlock()
		if call != nil {
			call.done <- assignAnswer{resp: resp}
		}
	}
}

// forget makes the next call open a stream of its own.
func (a *assigner) forget(s *assignStream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stream == s {
		a.stream = nil
	}
}

func (a *assigner) fail(s *assignStream, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, call := range a.waiting {
		if call.stream == s {
			delete(a.waiting, id)
			call.done <- assignAnswer{err: err}
		}
	}
}

// Close ends the stream of Assign, if one is open, and waits for its reader; calls under way fail. It is safe to call
// twice. The connection stays the caller's.
func (c *Client) Close() error {
	a := c.assign
	a.mu.Lock()
	a.closed = true
	if a.stream != nil {
		a.stream.cancel()
	}
	a.mu.Unlock()
	a.readers.Wait()
	return nil
}
