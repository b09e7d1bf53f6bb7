package record

import (
	"encoding/binary"
	"fmt"
)

// Iterator walks the records of an uncompressed batch. It trusts no length in it, so it is safe on any bytes; whether
// the bytes are those that were written is Check's to say.
type Iterator struct {
	batch Batch
	rest  []byte
	index int32
	last  int32 // offset delta of the record before
	err   error
}

// NewIterator returns an iterator before the first record of b.
func NewIterator(b Batch) Iterator {
	var it Iterator
	it.Reset(b)
	return it
}

// Reset makes it an iterator before the first record of b.
func (it *Iterator) Reset(b Batch) {
	*it = Iterator{batch: b, last: -1}
	size, err := SizeOf(b)
	switch {
	case err != nil:
		it.err = err
	case len(b) < size:
		it.err = ErrShort
	case len(b) > size:
		it.err = fmt.Errorf("%w: %d in %d bytes", ErrLength, size, len(b))
	case b.Codec() != CodecNone:
		it.err = ErrCompressed
	default:
		it.rest = b[HeaderBytes:]
	}
}

// Err says why the walk ended early; nil at the end of the batch and while it goes on.
func (it *Iterator) Err() error { return it.err }

// Next fills r with the next record and returns its offset; false at the end and on an error, which Err tells. Key,
// Value and header bytes alias the batch; the Headers slice is overwritten by the next call with the same r.
func (it *Iterator) Next(r *Record) (Offset, bool) {
	if it.err != nil {
		return 0, false
	}
	if it.index == it.batch.Count() {
		if len(it.rest) > 0 {
			it.fail("bytes after the last record")
		}
		return 0, false
	}
	b := it.rest
	length, n := varint(b)
	if n <= 0 || length < 0 || length > int64(len(b)-n) {
		return it.fail("its length leads beyond the batch")
	}
	end := n + int(length)
	it.rest, b = b[end:], b[n:end:end]
	age, delta, ok := r.take(b)
	if !ok {
		return it.fail("its fields do not fill its length")
	}
	if delta <= it.last || delta > it.batch.LastDelta() {
		return it.fail("its offset is out of order")
	}
	r.Timestamp = it.batch.BaseTimestamp() + age
	if it.batch.AppendTime() {
		r.Timestamp = it.batch.MaxTimestamp()
	}
	it.last = delta
	it.index++
	return it.batch.BaseOffset() + Offset(delta), true
}

func (it *Iterator) fail(why string) (Offset, bool) {
	it.err = fmt.Errorf("%w: number %d of the batch at offset %d: %s", ErrRecord, it.index, it.batch.BaseOffset(), why)
	return 0, false
}

// take reads the fields of a record, which fill b, and tells its age and offset delta.
func (r *Record) take(b []byte) (age int64, delta int32, ok bool) {
	if len(b) == 0 {
		return 0, 0, false
	}
	b = b[1:] // attributes, unused
	age, n := varint(b)
	if n <= 0 {
		return 0, 0, false
	}
	b = b[n:]
	wide, n := varint(b)
	if delta = int32(wide); n <= 0 || int64(delta) != wide {
		return 0, 0, false
	}
	if r.Key, b, ok = takeBytes(b[n:]); !ok {
		return 0, 0, false
	}
	if r.Value, b, ok = takeBytes(b); !ok {
		return 0, 0, false
	}
	if r.Headers = r.Headers[:0]; len(b) == 1 && b[0] == 0 { // most have none
		return age, delta, true
	}
	return age, delta, r.takeHeaders(b)
}

// varint takes a number; n is how many bytes it has, 0 or less where it is none.
func varint(b []byte) (v int64, n int) {
	// Nearly every number in a record fits one byte or two.
	if len(b) > 1 && b[0] >= 0x80 && b[1] < 0x80 {
		u := uint64(b[0]&0x7f) | uint64(b[1])<<7
		return int64(u>>1) ^ -int64(u&1), 2
	}
	if len(b) > 0 && b[0] < 0x80 {
		return int64(b[0]>>1) ^ -int64(b[0]&1), 1
	}
	return binary.Varint(b)
}

// takeBytes takes a length and that many bytes; nil for null.
func takeBytes(b []byte) (field, rest []byte, ok bool) {
	size, n := varint(b)
	if n <= 0 {
		return nil, nil, false
	}
	b = b[n:]
	if uint64(size) <= uint64(len(b)) {
		return b[:size:size], b[size:], true
	}
	return nil, b, size == -1
}

// takeHeaders takes the headers, which fill b.
func (r *Record) takeHeaders(b []byte) bool {
	count, n := varint(b)
	if n <= 0 || count < 0 || count > int64(len(b)-n)/2 { // each has two lengths
		return false
	}
	b = b[n:]
	for range count {
		var h Header
		var ok bool
		if h.Key, b, ok = takeBytes(b); !ok || h.Key == nil {
			return false
		}
		if h.Value, b, ok = takeBytes(b); !ok {
			return false
		}
		r.Headers = append(r.Headers, h)
	}
	return len(b) == 0
}
