package record

import (
	"encoding/binary"
	"fmt"
	"math"
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
	d := decoder{b: it.rest}
	length := d.varint32()
	if d.bad || length < 0 || int(length) > len(d.b) {
		return it.fail("its length leads beyond the batch")
	}
	it.rest = d.b[length:]
	d.b = d.b[:length:length]

	d.skip(1) // attributes, unused
	age := d.varint64()
	delta := d.varint32()
	r.Key = d.bytes()
	r.Value = d.bytes()
	r.Headers = d.headers(r.Headers[:0])
	if d.bad || len(d.b) > 0 {
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

// decoder takes fields off the front of b; after the first that does not fit it is bad and yields zeros.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) skip(n int) {
	if d.bad || n > len(d.b) {
		d.bad = true
		return
	}
	d.b = d.b[n:]
}

func (d *decoder) varint64() int64 {
	if d.bad {
		return 0
	}
	// Nearly every field of a record fits one byte.
	if len(d.b) > 0 && d.b[0] < 0x80 {
		u := d.b[0]
		d.b = d.b[1:]
		return int64(u>>1) ^ -int64(u&1)
	}
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint32() int32 {
	v := d.varint64()
	if v < math.MinInt32 || v > math.MaxInt32 {
		d.bad = true
		return 0
	}
	return int32(v)
}

// bytes takes a length and that many bytes; nil for null.
func (d *decoder) bytes() []byte {
	n := int(d.varint32())
	if d.bad || n < -1 || n > len(d.b) {
		d.bad = true
		return nil
	}
	if n < 0 {
		return nil
	}
	p := d.b[:n:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) headers(dst []Header) []Header {
	count := int(d.varint32())
	if d.bad || count < 0 || count > len(d.b)/2 { // each has two lengths
		d.bad = true
		return dst
	}
	for range count {
		h := Header{Key: d.bytes(), Value: d.bytes()}
		if d.bad || h.Key == nil {
			d.bad = true
			return dst
		}
		dst = append(dst, h)
	}
	return dst
}
