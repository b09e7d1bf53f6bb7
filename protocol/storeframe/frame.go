// Package storeframe is what travels between the core and a store without files: frames on a stream socket, one kind of
// channel to append through and one to read from. A channel belongs to one partition, and to one lease where it is to
// append through; requests on it are answered in order.
//
// It is pure: it encodes headers and takes them apart, and knows no socket. Who uses it bounds what it reads by
// PayloadMax, and sends the payload right behind the header, or puts it into memory that both ends have: a window, whose
// descriptor the sender of groups offers with the header of an append. An answer that says it was taken allows to place
// payloads there from then on; a receiver that knows no windows says nothing, and is sent every payload.
package storeframe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

const (
	// RequestBytes is the size of a request's header.
	RequestBytes = 48
	// AnswerBytes is the size of an answer's header.
	AnswerBytes = 24
	// PayloadMax bounds a payload: a group, or what a read returns. It is what a batch may have, whoever made it.
	PayloadMax = 64 << 20
	// TextMax bounds the text of a failure.
	TextMax = 1 << 10
)

// Op is what a request asks for.
type Op uint8

// The requests there are.
const (
	OpAppend Op = 1
	OpRead   Op = 2
)

// Status is how a request ended.
type Status uint8

// The outcomes there are. What is not OK comes with a text.
const (
	OK         Status = 0
	Failed     Status = 1 // the outcome of an append is open
	Full       Status = 2 // nothing was added
	Stale      Status = 3 // the lease is not the newest
	Mismatch   Status = 4 // the group does not begin where the log ends
	OutOfRange Status = 5
	NotOpen    Status = 6
)

// ErrFrame says that the bytes are no header: the channel is of no use any more.
var ErrFrame = errors.New("frame is malformed")

// Request is a request's header. All integers are big-endian:
//
//	  0        4    5       8          16         24         32       36       40           48
//	+--------+----+-------+----------+----------+----------+--------+--------+------------+ payload
//	| length | op | p 0 0 | lease    | base     | next     | epoch  | sum    | max        | length bytes
//	|        |    |       |          | or offset| or limit |        |        | timestamp  |
//	+--------+----+-------+----------+----------+----------+--------+--------+------------+
//
// Where p is 1, no payload follows: it lies at the beginning of the window. A read has an offset, a limit in bytes, no
// payload, and zeroes elsewhere.
type Request struct {
	Op           Op
	Length       int  // of the payload
	Placed       bool // the payload lies in the window
	Lease        uint64
	Base, Next   record.Offset
	Epoch        record.Epoch
	Sum          uint32
	MaxTimestamp int64
	Limit        int64 // of a read
}

func bit(is bool) byte {
	if is {
		return 1
	}
	return 0
}

// AppendTo appends the header to dst.
func (r *Request) AppendTo(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(r.Length))
	dst = append(dst, byte(r.Op), bit(r.Placed), 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, r.Lease)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Base))
	if r.Op == OpRead {
		dst = binary.BigEndian.AppendUint64(dst, uint64(r.Limit))
	} else {
		dst = binary.BigEndian.AppendUint64(dst, uint64(r.Next))
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(r.Epoch))
	dst = binary.BigEndian.AppendUint32(dst, r.Sum)
	return binary.BigEndian.AppendUint64(dst, uint64(r.MaxTimestamp))
}

// ParseRequest takes a header apart; ErrFrame where it cannot be one.
func ParseRequest(h []byte) (Request, error) {
	if len(h) != RequestBytes {
		return Request{}, fmt.Errorf("%w: a request of %d bytes", ErrFrame, len(h))
	}
	r := Request{
		Op: Op(h[4]), Lease: binary.BigEndian.Uint64(h[8:]), Base: record.Offset(binary.BigEndian.Uint64(h[16:])),
		Epoch: record.Epoch(binary.BigEndian.Uint32(h[32:])), Sum: binary.BigEndian.Uint32(h[36:]),
		MaxTimestamp: int64(binary.BigEndian.Uint64(h[40:])),
	}
	length, field := binary.BigEndian.Uint32(h), int64(binary.BigEndian.Uint64(h[24:]))
	if h[5] > 1 || h[6]|h[7] != 0 || length > PayloadMax || r.Base < 0 {
		return Request{}, fmt.Errorf("%w: request % x", ErrFrame, h[:16])
	}
	r.Length, r.Placed = int(length), h[5] == 1
	switch {
	case r.Op == OpAppend && r.Length > 0 && field > int64(r.Base):
		r.Next = record.Offset(field)
	case r.Op == OpRead && r.Length == 0 && !r.Placed && field > 0 && r.Lease|uint64(r.Epoch)|uint64(r.Sum)|uint64(r.MaxTimestamp) == 0:
		r.Limit = field
	default:
		return Request{}, fmt.Errorf("%w: request %d of %d bytes, %d to %d", ErrFrame, r.Op, r.Length, r.Base, field)
	}
	return r, nil
}

// Answer is an answer's header:
//
//	  0        4    5        6     8           16       20       24
//	+--------+----+--------+-----+-----------+--------+--------+ payload
//	| length | op | status | w 0 | base      | epoch  | sum    | length bytes
//	+--------+----+--------+-----+-----------+--------+--------+
//
// Base, epoch and sum are those of the request: they say which group it was. The payload is batches, or why not. Where w
// is 1, the window that came with the append was taken.
type Answer struct {
	Op     Op
	Status Status
	Window bool // the one that was offered was taken
	Length int
	Base   record.Offset
	Epoch  record.Epoch
	Sum    uint32
}

// AppendTo appends the header to dst.
func (a *Answer) AppendTo(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(a.Length))
	dst = append(dst, byte(a.Op), byte(a.Status), bit(a.Window), 0)
	dst = binary.BigEndian.AppendUint64(dst, uint64(a.Base))
	dst = binary.BigEndian.AppendUint32(dst, uint32(a.Epoch))
	return binary.BigEndian.AppendUint32(dst, a.Sum)
}

// ParseAnswer takes a header apart; ErrFrame where it cannot be one.
func ParseAnswer(h []byte) (Answer, error) {
	if len(h) != AnswerBytes {
		return Answer{}, fmt.Errorf("%w: an answer of %d bytes", ErrFrame, len(h))
	}
	a := Answer{
		Op: Op(h[4]), Status: Status(h[5]), Window: h[6] == 1, Base: record.Offset(binary.BigEndian.Uint64(h[8:])),
		Epoch: record.Epoch(binary.BigEndian.Uint32(h[16:])), Sum: binary.BigEndian.Uint32(h[20:]),
	}
	length := binary.BigEndian.Uint32(h)
	most := uint32(TextMax)
	switch {
	case a.Status == OK && a.Op == OpAppend:
		most = 0
	case a.Status == OK:
		most = PayloadMax
	}
	if h[6] > 1 || a.Window && a.Op != OpAppend || h[7] != 0 || a.Op != OpAppend && a.Op != OpRead || a.Status > NotOpen || length > most {
		return Answer{}, fmt.Errorf("%w: answer % x", ErrFrame, h[:8])
	}
	a.Length = int(length)
	return a, nil
}

// Sum tells groups apart: it is CRC-32C over the headers of all batches, which hold offsets, epochs, lengths and
// the checksums of everything else. ErrFrame where the bytes are no whole batches.
func Sum(group []byte) (uint32, error) {
	var sum uint32
	table := crc32.MakeTable(crc32.Castagnoli)
	for len(group) > 0 {
		size, err := record.SizeOf(group)
		if err != nil || size > len(group) {
			return 0, fmt.Errorf("%w: a group with %d bytes that are no batch", ErrFrame, len(group))
		}
		sum = crc32.Update(sum, table, group[:record.HeaderBytes])
		group = group[size:]
	}
	return sum, nil
}
