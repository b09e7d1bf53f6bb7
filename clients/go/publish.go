package trunkline

import (
	"bytes"
	"context"
	"fmt"
	"strconv"

	"github.com/trunkline-mq/trunkline/protocol/address"
)

// Result is a publish under way.
type Result struct {
	done chan struct{}
	ack  Ack   // set before done is closed
	err  error // set before done is closed
}

// Done is closed when the outcome is known.
func (r *Result) Done() <-chan struct{} { return r.done }

// Wait waits for the outcome. An error of ctx means that the waiting ended, not the publish.
func (r *Result) Wait(ctx context.Context) (Ack, error) {
	select {
	case <-r.done:
		return r.ack, r.err
	case <-ctx.Done():
		return Ack{}, context.Cause(ctx)
	}
}

// Publish sends m to an address, "orders", "orders#key" or "orders/2", and returns once it is on its way; it waits only
// while the bound on bytes in flight is reached, at most until ctx ends. m may be changed afterwards. Records published
// by one goroutine to one partition keep their order. An error means that nothing was sent.
func (c *Client) Publish(ctx context.Context, address string, m *Message) (*Result, error) {
	r := &Result{done: make(chan struct{})}
	err := c.PublishFunc(ctx, address, m, func(ack Ack, err error) {
		r.ack, r.err = ack, err
		close(r.done)
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// PublishSync publishes m and waits for its outcome.
func (c *Client) PublishSync(ctx context.Context, address string, m *Message) (Ack, error) {
	r, err := c.Publish(ctx, address, m)
	if err != nil {
		return Ack{}, err
	}
	return r.Wait(ctx)
}

// PublishFunc is Publish with a callback, for those who publish very many records: it allocates nothing per record.
// Callbacks come in the order of the publishes, on the link's reader: done must not block, publish or close the client.
// It is called exactly once if PublishFunc returns nil, and never otherwise.
func (c *Client) PublishFunc(ctx context.Context, address string, m *Message, done func(Ack, error)) error {
	if err := checkField("address", address); err != nil {
		return err
	}
	if err := m.check(); err != nil {
		return err
	}
	if len(address) > c.opt.controlLine-len("HPUB  999999999 999999999") {
		return invalid("address of %d bytes is longer than a control line", len(address))
	}
	size := len(address) + len(m.Key) + len(m.Value) + requestOverhead
	for i := range m.Headers {
		size += len(m.Headers[i].Name) + len(m.Headers[i].Value) + len(": \r\n")
	}
	l := c.link
	if err := l.lockForRoom(ctx, size); err != nil {
		return err
	}
	before := len(l.out.buf)
	var total int
	l.out.buf, total = appendPublish(l.out.buf, address, m)
	if total > c.info.MaxPayload {
		l.out.buf = l.out.buf[:before]
		l.out.Unlock()
		return fmt.Errorf("%w: %d bytes with headers, the server takes %d", ErrTooLarge, total, c.info.MaxPayload)
	}
	l.commitAndUnlock(request{ack: done, size: size}, len(l.out.buf)-before)
	return nil
}

// Flush waits until the outcome of every earlier publish is known. Their results are complete before it returns.
func (c *Client) Flush(ctx context.Context) error {
	_, err := c.link.call(ctx, "PING", true)
	return err
}

// sizeDigits is the room left for the sizes of an HPUB, which are known once its headers are written.
const sizeDigits = 9

// appendPublish appends PUB or HPUB and returns the size of its payload, headers included.
func appendPublish(dst []byte, address string, m *Message) ([]byte, int) {
	if !m.needsHeaders() {
		dst = append(append(dst, "PUB "...), address...)
		dst = strconv.AppendInt(append(dst, ' '), int64(len(m.Value)), 10)
		dst = append(append(dst, "\r\n"...), m.Value...)
		return append(dst, "\r\n"...), len(m.Value)
	}
	dst = append(append(dst, "HPUB "...), address...)
	sizes := len(dst)
	dst = append(dst, "                    \r\n"...) // twice a blank and nine digits; blanks may repeat
	start := len(dst)
	dst = m.appendHeaders(dst)
	header := len(dst) - start
	total := header + len(m.Value)
	putSize(dst[sizes+1:sizes+1+sizeDigits], header)
	putSize(dst[sizes+2+sizeDigits:sizes+2+2*sizeDigits], total)
	dst = append(dst, m.Value...)
	return append(dst, "\r\n"...), total
}

// putSize writes n into the end of b, which holds blanks. A size that does not fit is above every server's limit, which
// the caller checks.
func putSize(b []byte, n int) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return
		}
	}
}

// ackReader reads "orders/2@17 disk". It keeps the last topic and durability, which seldom change, so that an answer
// costs no allocation.
type ackReader struct {
	topic, durability string
}

func (r *ackReader) read(detail []byte) (Ack, error) {
	if len(detail) == 0 { // a live subject: whoever listened has it, and nothing is stored
		return Ack{Partition: -1, Offset: -1, Durability: DurabilityLive}, nil
	}
	where, durability, ok := bytes.Cut(detail, []byte{' '})
	a, err := address.Parse(where)
	if err != nil || !ok || a.Position.Kind != address.Offset || a.Partition < 0 {
		return Ack{}, violation("publish answered with %.80q", detail)
	}
	return Ack{
		Topic: keep(&r.topic, a.Topic), Partition: a.Partition, Offset: Offset(a.Position.N),
		Durability: keep(&r.durability, durability),
	}, nil
}

// keep returns b as a string, the last one if it is equal.
func keep(last *string, b []byte) string {
	if *last != string(b) {
		*last = string(b)
	}
	return *last
}
