package trunkline

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Offset is a record's place in its partition; the first is 0.
type Offset = record.Offset

// PartitionID numbers a partition of a topic, from 0.
type PartitionID = partition.ID

// Header is one header of a record. Names may repeat; their case is kept. Blanks around a value are not.
type Header struct {
	Name  string
	Value []byte
}

// Message is what one publishes. A nil Key is no key, a nil Value is null; neither is the same as empty.
type Message struct {
	Key     []byte
	Value   []byte
	Headers []Header
	// Timestamp is the record's time in milliseconds' precision; the zero time lets the server take its own, and a Producer
	// that of this machine.
	Timestamp time.Time
}

// Record is a record as it lies in the log. It owns its bytes; they may be kept (but see ReuseRecords), and not changed.
type Record struct {
	Topic     string
	Partition PartitionID
	Offset    Offset
	Timestamp time.Time // UTC, milliseconds
	Key       []byte    // nil where it has none
	Value     []byte    // nil where it is null
	Headers   []Header
}

// DurabilityLive is what an Ack says of a message to a live subject: it is stored nowhere.
const DurabilityLive = "live"

// Ack says where a published record went and how safe it is there. A message to a live subject has no topic, and -1 as
// partition and offset.
type Ack struct {
	Topic     string      `json:"topic"`
	Partition PartitionID `json:"partition"`
	Offset    Offset      `json:"offset"`
	// Durability is what the server reached before it answered: "disk", "page", "memory", or DurabilityLive.
	Durability string `json:"durability"`
}

// recordJSON is the protocol's JSON form of a record. Exactly one of value and value_base64 is there.
type recordJSON struct {
	Topic       string              `json:"topic"`
	Partition   PartitionID         `json:"partition"`
	Offset      Offset              `json:"offset"`
	Timestamp   string              `json:"timestamp"`
	Key         json.RawMessage     `json:"key,omitempty"`
	KeyBase64   *string             `json:"key_base64,omitempty"`
	Value       json.RawMessage     `json:"value,omitempty"`
	ValueBase64 *string             `json:"value_base64,omitempty"`
	Headers     map[string][]string `json:"headers"`
}

// MarshalJSON writes the protocol's JSON form of a record: text as text, other bytes as value_base64 and key_base64,
// null as null.
func (r *Record) MarshalJSON() ([]byte, error) {
	out := recordJSON{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset,
		Timestamp: r.Timestamp.UTC().Format(line.TimeLayout),
		Headers:   make(map[string][]string, len(r.Headers)),
	}
	var err error
	if out.Key, out.KeyBase64, err = textOrBase64(r.Key); err != nil {
		return nil, err
	}
	if out.Value, out.ValueBase64, err = textOrBase64(r.Value); err != nil {
		return nil, err
	}
	for _, h := range r.Headers {
		out.Headers[h.Name] = append(out.Headers[h.Name], string(h.Value))
	}
	return json.Marshal(out)
}

func textOrBase64(b []byte) (json.RawMessage, *string, error) {
	switch {
	case b == nil:
		return json.RawMessage("null"), nil, nil
	case !utf8.Valid(b):
		s := base64.StdEncoding.EncodeToString(b)
		return nil, &s, nil
	}
	text, err := json.Marshal(string(b))
	return text, nil, err
}

// needsHeaders reports whether m cannot go as a plain PUB.
func (m *Message) needsHeaders() bool {
	return m.Key != nil || m.Value == nil || len(m.Headers) > 0 || !m.Timestamp.IsZero()
}

// check refuses what would be read differently from what was meant, before a byte of it is written.
func (m *Message) check() error {
	for i := range m.Headers {
		h := &m.Headers[i]
		if !isToken(h.Name) {
			return invalid("header name %q; use letters, digits and -", h.Name)
		}
		switch h.Name {
		case "Key", "Key-Base64", "Timestamp", "Null-Value":
			return invalid("header %s is a field of the record; set it in the Message", h.Name)
		}
		for _, c := range h.Value {
			if c == '\r' || c == '\n' {
				return invalid("header %s has a line end in its value; encode it", h.Name)
			}
		}
	}
	return nil
}

// appendHeaders appends m's header block.
func (m *Message) appendHeaders(dst []byte) []byte {
	fields := record.Record{Key: m.Key, Value: m.Value}
	opt := line.HeaderOptions{Timestamp: !m.Timestamp.IsZero()}
	if opt.Timestamp {
		fields.Timestamp = m.Timestamp.UnixMilli()
	}
	dst, _ = line.AppendHeaders(dst, &fields, opt)
	dst = dst[:len(dst)-2] // the empty line, which belongs behind the headers
	for i := range m.Headers {
		h := &m.Headers[i]
		dst = append(dst, h.Name...)
		dst = append(dst, ": "...)
		dst = append(dst, h.Value...)
		dst = append(dst, '\r', '\n')
	}
	return append(dst, '\r', '\n')
}

func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// checkField refuses what would not arrive as one field of a control line.
func checkField(what, s string) error {
	if s == "" {
		return invalid("%s is empty", what)
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return invalid("%s %.80q has a blank or control byte in it", what, s)
		}
	}
	return nil
}

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
// while the bound on bytes in flight is reached or there is no connection, at most until ctx ends. m may be changed
// afterwards. Records published by one goroutine to one partition keep their order. An error means that nothing was sent; what
// was sent is never sent again.
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
	l, err := c.room(ctx, size)
	if err != nil {
		return err
	}
	before := len(l.out.buf)
	var total int
	l.out.buf, total = appendPublish(l.out.buf, address, m)
	if limit := int(c.maxPayload.Load()); total > limit {
		l.out.buf = l.out.buf[:before]
		l.out.Unlock()
		return invalidSize(total, limit)
	}
	l.commitAndUnlock(request{ack: done, size: size}, len(l.out.buf)-before)
	return nil
}

func invalidSize(n, limit int) error {
	return fmt.Errorf("%w: %d bytes with headers, the server takes %d", ErrTooLarge, n, limit)
}

func appendSize(dst []byte, n int) []byte { return strconv.AppendInt(append(dst, ' '), int64(n), 10) }

func appendPlace(dst []byte, id PartitionID) []byte {
	return strconv.AppendInt(append(dst, '/'), int64(id), 10)
}

// room returns the client's link with its outbox locked and room for size more bytes in flight.
func (c *Client) room(ctx context.Context, size int) (*link, error) {
	for {
		l, err := c.main.get(ctx)
		if err != nil {
			return nil, err
		}
		if err = l.lockForRoom(ctx, size); err == nil {
			return l, nil
		}
		if cut, ok := errors.AsType[*LinkError](err); !ok || c.opt.once || errors.Is(cut, ErrClosed) {
			return nil, err
		}
	}
}

// Flush waits until the outcome of every earlier publish is known. Their results are complete before it returns; an error
// says that the link ended meanwhile, or was ended by then: the results say what became of each record.
func (c *Client) Flush(ctx context.Context) error {
	l := c.main.current.Load()
	_, err := l.call(ctx, "PING", true)
	if l.dead.Load() {
		l.wg.Wait()
	}
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
	if err == nil && ok && a.Position.Kind == address.LastN && string(durability) == "none" { // acks=0
		a.Position = address.Position{Kind: address.Offset, N: -1}
	}
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
