// Package address reads what a client writes where a topic is named: "orders", "orders#k42", "orders/2@17",
// "orders@1h", and tells legal topic names and live subjects apart. It also reads the sizes and times with units that
// settings and positions are written in.
//
// It is pure and does not know which topics exist. An Address aliases the field it was read from.
package address

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Address is topic[#key] or topic[/partition][@position], taken apart. Topic may hold wildcards or be no legal topic
// name: that is for ValidTopic, HasWildcard and IsLive to say.
type Address struct {
	Topic     []byte
	Key       []byte
	HasKey    bool
	Partition partition.ID // partition.None where none is named
	Position  Position
}

// PositionKind says how a Position is meant.
type PositionKind uint8

const (
	// None stands for "no position named".
	None PositionKind = iota
	// Offset is the record at offset N.
	Offset
	// Earliest is the first record there is.
	Earliest
	// Latest is the record that comes next.
	Latest
	// LastN is N records before Latest.
	LastN
	// Time is the first record not older than N, in milliseconds since the Unix epoch.
	Time
	// Ago is the first record not older than Ago before now.
	Ago
)

// Position is a place in a partition.
type Position struct {
	Kind PositionKind
	N    int64
	Ago  time.Duration
}

// Parse reads a field of a control line. It allocates only for an error, which is an *errcode.Error.
func Parse(field []byte) (Address, error) {
	end := bytes.IndexAny(field, "#/@")
	if end < 0 {
		end = len(field)
	}
	a := Address{Topic: field[:end:end], Partition: partition.None}
	if end == 0 {
		return Address{}, bad(field, "names no topic", "write topic, topic#key, topic/partition or topic/partition@position")
	}
	rest := field[end:]
	if len(rest) > 0 && rest[0] == '#' {
		if a.Key, a.HasKey = rest[1:], true; len(a.Key) == 0 {
			return Address{}, bad(field, "has an empty key", "write the key after #, or leave # out for a record without a key")
		}
		if bytes.ContainsFunc(a.Key, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return Address{}, bad(field, "has a control byte in its key", "send such a key in a header, Key-Base64")
		}
		return a, nil
	}
	if bytes.IndexByte(rest, '#') >= 0 {
		return Address{}, bad(field, "has a key beside a partition or a position", "name either the key or the partition")
	}
	if len(rest) > 0 && rest[0] == '/' {
		id, after := rest[1:], []byte(nil)
		if at := bytes.IndexByte(id, '@'); at >= 0 {
			id, after = id[:at], id[at:]
		}
		n, ok := parseDecimal(id)
		if !ok || n > int64(1<<31-1) {
			return Address{}, bad(field, fmt.Sprintf("has the partition %q, which is not a number", clip(id)),
				"write topic/partition, with a partition from 0")
		}
		a.Partition, rest = partition.ID(n), after
	}
	if len(rest) > 0 { // what is left begins with @
		var err error
		if a.Position, err = parsePosition(field, rest[1:]); err != nil {
			return Address{}, err
		}
	}
	return a, nil
}

// ParseLiteral takes the whole field as the topic: libraries that know NATS only do not expect marks in a subject.
func ParseLiteral(field []byte) Address {
	return Address{Topic: field, Partition: partition.None}
}

// ForPublish refuses what a publish cannot mean: a position.
func (a *Address) ForPublish() error {
	if a.Position.Kind != None {
		return bad(a.Topic, "is published to with a position", "leave @ out: a record goes to the end of the log")
	}
	return nil
}

// ForRead refuses what a read cannot mean: a key.
func (a *Address) ForRead() error {
	if a.HasKey {
		return bad(a.Topic, "is read with a key", "leave # out: a read names a partition or a whole topic")
	}
	return nil
}

// String writes the address as a person would; Parse reads it back. A position in time is written in UTC.
func (a Address) String() string {
	b := append([]byte(nil), a.Topic...)
	if a.HasKey {
		return string(append(append(b, '#'), a.Key...))
	}
	if a.Partition != partition.None {
		b = append(b, '/')
		b = strconv.AppendInt(b, int64(a.Partition), 10)
	}
	return string(b) + a.Position.String()
}

// String is the position with its @, empty for None.
func (p Position) String() string {
	switch p.Kind {
	case Offset:
		return "@" + strconv.FormatInt(p.N, 10)
	case Earliest:
		return "@earliest"
	case Latest:
		return "@latest"
	case LastN:
		return "@-" + strconv.FormatInt(p.N, 10)
	case Time:
		return "@" + time.UnixMilli(p.N).UTC().Format("2006-01-02T15:04:05.000Z07:00")
	case Ago:
		return "@" + FormatDuration(p.Ago)
	}
	return ""
}

// The years within which a number that is no offset is taken for a time.
const (
	yearMin = 2001
	yearMax = 2100
)

// meant is the time that an offset beyond a log stands for, if it is one of these years counted in seconds, milliseconds,
// microseconds or nanoseconds since the Unix epoch.
func (p Position) meant() (Position, bool) {
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond, time.Nanosecond} {
		perSecond := int64(time.Second / unit)
		at := time.Unix(p.N/perSecond, p.N%perSecond*int64(unit)).UTC()
		if p.Kind == Offset && at.Year() >= yearMin && at.Year() < yearMax {
			return Position{Kind: Time, N: at.UnixMilli()}, true
		}
	}
	return Position{}, false
}

// OutOfRange is the error for an offset that is not in [start, end] of what name stands for. Where it is probably a time, it
// says how that is written.
func (p Position) OutOfRange(name string, start, end record.Offset) *errcode.Error {
	hint := "read from one of these, or from @earliest or @latest"
	if at, ok := p.meant(); ok && p.N > int64(end) {
		hint += fmt.Sprintf(" (if you mean a time, write it as %s)", at)
	}
	return errcode.New(errcode.OffsetOutOfRange, fmt.Sprintf("%s holds offsets %d to %d, not %d", name, start, end, p.N), hint)
}

// AppendAddress appends the full address of a record: "orders/2@17".
func AppendAddress(dst []byte, topic string, p partition.ID, off record.Offset) []byte {
	dst = append(dst, topic...)
	dst = append(dst, '/')
	dst = strconv.AppendInt(dst, int64(p), 10)
	dst = append(dst, '@')
	return strconv.AppendInt(dst, int64(off), 10)
}

const positionHint = "write an offset, earliest, latest, -N for the last N, a time such as 2026-11-22T08:00:00Z, or 1h for an hour ago"

// parsePosition reads what follows the @ of field.
func parsePosition(field, pos []byte) (Position, error) {
	switch {
	case string(pos) == "earliest":
		return Position{Kind: Earliest}, nil
	case string(pos) == "latest":
		return Position{Kind: Latest}, nil
	case len(pos) > 0 && pos[0] == '-':
		if n, ok := parseDecimal(pos[1:]); ok && n > 0 {
			return Position{Kind: LastN, N: n}, nil
		}
	case bytes.IndexByte(pos, 'T') >= 0:
		var t time.Time
		if err := t.UnmarshalText(pos); err == nil {
			return Position{Kind: Time, N: t.UnixMilli()}, nil
		}
	default:
		if n, ok := parseDecimal(pos); ok {
			return Position{Kind: Offset, N: n}, nil
		}
		if d, f := parseDuration(pos); f == fine {
			return Position{Kind: Ago, Ago: d}, nil
		}
	}
	return Position{}, bad(field, fmt.Sprintf("has the position %q, which cannot be read", clip(pos)), positionHint)
}

// parseDecimal reads digits only, up to the largest int64.
func parseDecimal[T string | []byte](s T) (int64, bool) {
	var n int64
	for i := range len(s) {
		c := s[i]
		if c < '0' || c > '9' || n > (1<<63-1-int64(c-'0'))/10 {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, len(s) > 0
}

func bad(field []byte, what, hint string) *errcode.Error {
	return errcode.New(errcode.BadAddress, fmt.Sprintf("address %q %s", clip(field), what), hint)
}

// clip bounds what of a peer's input is sent back to it.
func clip[T string | []byte](s T) T { return s[:min(len(s), 64)] }
