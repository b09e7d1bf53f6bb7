package record

import (
	"encoding/binary"
	"math/bits"
)

// Upper bounds of what surrounds a record's bytes: three fields of 5 bytes, a time of 10 and the attributes before the
// key; the lengths of key and value and the header count; and two lengths for each header.
const (
	recordOverheadMax = 5 + 1 + 10 + 5 + 5 + 5 + 5
	headerOverheadMax = 5 + 5
)

// Builder gathers records into one uncompressed batch. Call Reset, Append for each record, then Finish. It allocates
// only where the buffer is too small, and is not safe for concurrent use.
type Builder struct {
	buf   []byte
	count int32
	base  int64 // timestamp of the first record
	max   int64
}

// Reset begins a batch in buf, whose content is lost; it grows by append. The batch that the last Finish returned is
// void when buf is the same memory.
func (b *Builder) Reset(buf []byte) {
	b.buf = append(buf[:0], make([]byte, HeaderBytes)...)
	b.count, b.base, b.max = 0, 0, 0
}

// Append encodes r behind the records that are there; nothing of r is kept.
func (b *Builder) Append(r *Record) {
	if b.count == 0 {
		b.base, b.max = r.Timestamp, r.Timestamp
	}
	b.max = max(b.max, r.Timestamp)
	age, delta := r.Timestamp-b.base, int64(b.count)

	buf := binary.AppendVarint(b.buf, int64(bodyBytes(r, age, delta)))
	buf = append(buf, 0)
	buf = binary.AppendVarint(buf, age)
	buf = binary.AppendVarint(buf, delta)
	buf = appendBytes(buf, r.Key)
	buf = appendBytes(buf, r.Value)
	buf = binary.AppendVarint(buf, int64(len(r.Headers)))
	for i := range r.Headers {
		h := &r.Headers[i]
		buf = binary.AppendVarint(buf, int64(len(h.Key)))
		buf = append(buf, h.Key...)
		buf = appendBytes(buf, h.Value)
	}
	b.buf = buf
	b.count++
}

// Size is the number of bytes so far, the header included.
func (b *Builder) Size() int { return len(b.buf) }

// Count is the number of records so far.
func (b *Builder) Count() int32 { return b.count }

// MaxTimestamp is the latest time of any record so far; 0 without records.
func (b *Builder) MaxTimestamp() int64 { return b.max }

// Finish stamps the header and returns the batch, which lies in the buffer given to Reset or in what that grew into.
// Without a record there is no batch: nil.
func (b *Builder) Finish(base Offset, epoch Epoch) Batch {
	if b.count == 0 {
		return nil
	}
	h := Batch(b.buf)
	h.SetBase(base)
	binary.BigEndian.PutUint32(h[lengthAt:], uint32(len(h)-lengthOverhead))
	h.SetEpoch(epoch)
	h[magicAt] = magic2
	binary.BigEndian.PutUint16(h[attributesAt:], 0)
	binary.BigEndian.PutUint32(h[lastDeltaAt:], uint32(b.count-1))
	binary.BigEndian.PutUint64(h[baseTimestampAt:], uint64(b.base))
	binary.BigEndian.PutUint64(h[maxTimestampAt:], uint64(b.max))
	for at := producerIDAt; at < countAt; at++ {
		h[at] = 0xff // no producer id, epoch and sequence: three times -1
	}
	binary.BigEndian.PutUint32(h[countAt:], uint32(b.count))
	binary.BigEndian.PutUint32(h[crcAt:], checksum(h))
	return h
}

// EncodedBound is an upper bound of what Append adds for r.
func EncodedBound(r *Record) int {
	n := recordOverheadMax + len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += headerOverheadMax + len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n
}

// bodyBytes is what a record's length field counts.
func bodyBytes(r *Record, age, delta int64) int {
	n := 1 + varintBytes(age) + varintBytes(delta) + sizedBytes(r.Key) + sizedBytes(r.Value) +
		varintBytes(int64(len(r.Headers)))
	for i := range r.Headers {
		h := &r.Headers[i]
		n += varintBytes(int64(len(h.Key))) + len(h.Key) + sizedBytes(h.Value)
	}
	return n
}

func sizedBytes(p []byte) int {
	if p == nil {
		return 1
	}
	return varintBytes(int64(len(p))) + len(p)
}

// varintBytes is the length of v as a zig-zag varint.
func varintBytes(v int64) int {
	zigzag := uint64(v)<<1 ^ uint64(v>>63)
	return (bits.Len64(zigzag|1) + 6) / 7
}

func appendBytes(dst, p []byte) []byte {
	if p == nil {
		return append(dst, 1) // -1 in zig-zag
	}
	dst = binary.AppendVarint(dst, int64(len(p)))
	return append(dst, p...)
}
