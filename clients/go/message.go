package trunkline

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"

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
	// Timestamp is the record's time in milliseconds' precision; the zero time lets the server take its own.
	Timestamp time.Time
}

// Record is a record as it lies in the log. It owns its bytes; they may be kept, but not changed.
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
