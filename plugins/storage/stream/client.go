package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/storeframe"
)

const (
	// appendDeadline is how long a store may take to make a group durable. One that needs longer hangs.
	appendDeadline = 30 * time.Second
	// readDeadline is how long it may take to find batches.
	readDeadline = 15 * time.Second
	// idleReads is how many channels to read from a partition keeps: more readers at once open more.
	idleReads = 2
)

// Client is a store without files as the core sees it: calls by the plugin it is made of, batches by the channels that
// one lends. Appends of a partition are made one at a time, as the contract has them.
type Client struct {
	plugin      storage.Plugin
	appendsWait time.Duration
	readsWait   time.Duration

	mu     sync.Mutex
	parts  map[storage.Partition]*channels
	closed bool
}

// channels are those of one partition. Guarded by Client.mu.
type channels struct {
	write *channel
	using bool       // an append is under way on write
	reads []*channel // idle
	live  map[*channel]struct{}
}

var _ storage.StreamPlugin = (*Client)(nil)

// NewClient returns the client of a plugin that Serve serves, here or in another process. Hangup ends it.
func NewClient(p storage.Plugin) *Client {
	return &Client{plugin: p, appendsWait: appendDeadline, readsWait: readDeadline, parts: make(map[storage.Partition]*channels)}
}

// Hangup closes every channel: what is under way ends in ErrBroken. The plugin's other calls go on.
func (c *Client) Hangup() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for p := range c.parts {
		c.dropLocked(p)
	}
}

func (c *Client) dropLocked(p storage.Partition) {
	for ch := range c.parts[p].all() {
		ch.close()
	}
	delete(c.parts, p)
}

func (s *channels) all() map[*channel]struct{} {
	if s == nil {
		return nil
	}
	return s.live
}

// of returns the channels of a partition, made where there are none.
func (c *Client) ofLocked(p storage.Partition) *channels {
	s := c.parts[p]
	if s == nil {
		s = &channels{live: make(map[*channel]struct{})}
		c.parts[p] = s
	}
	return s
}

// Describe implements storage.Streamer.
func (c *Client) Describe(ctx context.Context) (storage.Description, error) {
	d, err := c.plugin.Describe(ctx)
	if err == nil && !d.Streams {
		err = fmt.Errorf("%w: store %s lends files", ErrBadAnswer, d.Name)
	}
	if d.Canary != nil {
		err = errors.Join(err, d.Canary.Close()) // not used
		d.Canary = nil
	}
	return d, err
}

// Open implements storage.Streamer.
func (c *Client) Open(ctx context.Context, r storage.OpenRequest) (storage.Opened, error) {
	o, err := c.plugin.Open(ctx, r)
	if err != nil {
		return storage.Opened{}, err
	}
	return o, c.take(r.Partition, &o)
}

// take makes a channel of what was lent with a lease.
func (c *Client) take(p storage.Partition, o *storage.Opened) error {
	ch, err := dial(o.Lease.File)
	o.Lease.File = nil
	if err == nil && (o.Lease.Position != 0 || o.Lease.Next != o.Lease.Base) {
		ch.close()
		err = fmt.Errorf("%w: a lease of [%d, %d) where there are no segments", ErrBadAnswer, o.Lease.Base, o.Lease.Next)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", p, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		ch.close()
		return ErrBroken
	}
	s := c.ofLocked(p)
	if s.write != nil {
		s.write.close()
		delete(s.live, s.write)
	}
	s.write = ch
	s.live[ch] = struct{}{}
	return nil
}

// errNoChannel is what an append without a lease meets. Nothing was sent.
var errNoChannel = fmt.Errorf("%w: no channel to append through", storage.ErrNotOpen)

// Append implements storage.Streamer. After an error that leaves the outcome open the channel is closed.
func (c *Client) Append(_ context.Context, r storage.AppendRequest) error {
	c.mu.Lock()
	s := c.parts[r.Partition]
	if s == nil || s.write == nil || s.using {
		defer c.mu.Unlock()
		return errNoChannel
	}
	ch := s.write
	s.using = true
	c.mu.Unlock()
	a, text, err := ch.ask(storeframe.Request{
		Op: storeframe.OpAppend, Length: len(r.Bytes), Lease: uint64(r.Lease), Base: r.Base, Next: r.Next,
		Epoch: r.Epoch, Sum: r.Sum, MaxTimestamp: r.MaxTimestamp,
	}, r.Bytes, nil, c.appendsWait)
	c.mu.Lock()
	s.using = false
	if err != nil {
		ch.close()
		delete(s.live, ch)
		if s.write == ch {
			s.write = nil
		}
	}
	c.mu.Unlock()
	if err == nil {
		err = meaning(a, text)
	}
	if err != nil {
		return fmt.Errorf("append to %s@%d: %w", r.Partition, r.Base, err)
	}
	return nil
}

// Read implements storage.Streamer.
func (c *Client) Read(ctx context.Context, r storage.ReadRequest) ([]byte, error) {
	ch, err := c.readChannel(ctx, r)
	if err != nil {
		return nil, err
	}
	a, batches, err := ch.ask(storeframe.Request{Op: storeframe.OpRead, Base: r.Offset, Limit: r.Limit}, nil, r.Into, c.readsWait)
	c.giveBack(r.Partition, ch, err == nil)
	if err == nil {
		err = meaning(a, batches)
	}
	if err == nil && len(batches) == 0 {
		err = fmt.Errorf("%w: a read without batches", ErrBadAnswer)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s@%d: %w", r.Partition, r.Offset, err)
	}
	return batches, nil
}

// readChannel returns an idle channel, or a new one.
func (c *Client) readChannel(ctx context.Context, r storage.ReadRequest) (*channel, error) {
	c.mu.Lock()
	if s := c.parts[r.Partition]; s != nil && len(s.reads) > 0 {
		ch := s.reads[len(s.reads)-1]
		s.reads = s.reads[:len(s.reads)-1]
		c.mu.Unlock()
		return ch, nil
	}
	c.mu.Unlock()
	e, err := c.plugin.Locate(ctx, storage.LocateRequest{Partition: r.Partition, Offset: r.Offset})
	if err != nil {
		return nil, err
	}
	ch, err := dial(e.File)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		ch.close()
		return nil, ErrBroken
	}
	c.ofLocked(r.Partition).live[ch] = struct{}{}
	return ch, nil
}

// giveBack keeps a channel that is in step for the next reader, and closes others.
func (c *Client) giveBack(p storage.Partition, ch *channel, inStep bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.parts[p]
	if s == nil { // hung up
		ch.close()
		return
	}
	if _, ours := s.live[ch]; ours && inStep && len(s.reads) < idleReads {
		s.reads = append(s.reads, ch)
		return
	}
	ch.close()
	delete(s.live, ch)
}

// Close implements storage.Streamer.
func (c *Client) Close(ctx context.Context, r storage.CloseRequest) error {
	if err := c.plugin.Close(ctx, r); err != nil {
		return err
	}
	c.drop(r.Partition)
	return nil
}

// Delete implements storage.Streamer.
func (c *Client) Delete(ctx context.Context, p storage.Partition) error {
	c.drop(p)
	return c.plugin.Delete(ctx, p)
}

func (c *Client) drop(p storage.Partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(p)
}

// Expire implements storage.Keeper.
func (c *Client) Expire(ctx context.Context, r storage.ExpireRequest) (record.Offset, error) {
	return c.plugin.Expire(ctx, r)
}

// Trim implements storage.Keeper.
func (c *Client) Trim(ctx context.Context, r storage.TrimRequest) (storage.Trimmed, error) {
	return c.plugin.Trim(ctx, r)
}

// Truncate implements storage.Keeper.
func (c *Client) Truncate(ctx context.Context, r storage.TruncateRequest) (storage.Opened, error) {
	o, err := c.plugin.Truncate(ctx, r)
	if err != nil {
		return storage.Opened{}, err
	}
	return o, c.take(r.Partition, &o)
}

// Adoptable implements storage.Keeper.
func (c *Client) Adoptable(ctx context.Context, topic string) (storage.Adoption, error) {
	return c.plugin.Adoptable(ctx, topic)
}

// Room implements storage.Keeper.
func (c *Client) Room(ctx context.Context) error { return c.plugin.Room(ctx) }
