package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
)

// HeaderBytes is the size of a batch without records.
const HeaderBytes = 61

// Where the fields of a batch lie; all integers are big-endian.
const (
	baseAt          = 0
	lengthAt        = 8
	epochAt         = 12
	magicAt         = 16
	crcAt           = 17
	attributesAt    = 21
	lastDeltaAt     = 23
	baseTimestampAt = 27
	maxTimestampAt  = 35
	producerIDAt    = 43
	producerEpochAt = 51
	sequenceAt      = 53
	countAt         = 57
)

const (
	sizeHeaderBytes = magicAt + 1  // what SizeOf needs
	lengthOverhead  = lengthAt + 4 // bytes that the length field does not count
	magic2          = 2
	recordBytesMin  = 7 // seven fields of one byte each
)

// Codec says how the records of a batch are compressed.
type Codec uint8

// The codecs of Kafka.
const (
	CodecNone Codec = iota
	CodecGzip
	CodecSnappy
	CodecLZ4
	CodecZstd
)

// Bits of a batch's attributes.
const (
	attributeCodec         = 0x07
	attributeAppendTime    = 1 << 3
	attributeTransactional = 1 << 4
	attributeControl       = 1 << 5
)

// What can be wrong with the bytes of a batch.
var (
	// ErrShort says that the bytes end before the batch does.
	ErrShort = errors.New("batch is cut short")
	// ErrMagic says that the bytes are no batch of format 2.
	ErrMagic = errors.New("batch has a wrong magic")
	// ErrLength says that the batch's length cannot be right.
	ErrLength = errors.New("batch has an impossible length")
	// ErrCRC says that the bytes are not those that were written.
	ErrCRC = errors.New("batch fails its checksum")
	// ErrCount says that record count and last offset do not belong together.
	ErrCount = errors.New("batch has an impossible record count")
	// ErrCodec says that the batch names a codec that does not exist.
	ErrCodec = errors.New("batch has an unknown codec")
	// ErrCompressed says that the records have to be unpacked before they can be walked.
	ErrCompressed = errors.New("batch is compressed")
	// ErrRecord says that a record inside the batch cannot be read.
	ErrRecord = errors.New("record cannot be read")
)

// Batch is a view on exactly one whole batch, magic 2. Its methods read the bytes in place and take them as they are:
// before anything but SizeOf vouched for the length, call Check.
//
//	  0          8       12      16  17      21    23      27         35
//	+----------+-------+-------+---+-------+-----+-------+----------+----------+ - -
//	|  base    | length| leader|mag|  crc  | attr| last  | base     | max      |
//	|  offset  |       | epoch |= 2|       |     | delta | timestamp| timestamp|
//	+----------+-------+-------+---+-------+-----+-------+----------+----------+ - -
//	  43         51    53      57      61                    12+length
//	- - ---------+-----+-------+-------+-----------------------+
//	 | producer  | prod| base  | record| records, one after    |
//	 | id        | ep. | seq.  | count | the other             |
//	- - ---------+-----+-------+-------+-----------------------+
//
// length counts what follows it. crc is CRC-32C over [21, end): the leader stamps base offset and leader epoch in
// place without touching it, and nothing vouches for them but their neighbours and the epoch checkpoint. attr: bits
// 0–2 codec, 3 timestamps by append, 4 transactional, 5 control; the rest is written zero. A record:
//
//	length · attributes int8 (0) · timestamp delta · offset delta · key length · key · value length · value ·
//	header count · { key length · key · value length · value }…
//
// Every length, delta and count in it is a zig-zag varint, and a length of -1 is null.
type Batch []byte

// SizeOf returns the total size of the batch that begins with header, of which at least the first 17 bytes must be
// there, else ErrShort. A size comes only with a nil error; it may exceed len(header).
func SizeOf(header []byte) (int, error) {
	if len(header) < sizeHeaderBytes {
		return 0, ErrShort
	}
	if header[magicAt] != magic2 {
		return 0, fmt.Errorf("%w: %d instead of %d", ErrMagic, header[magicAt], magic2)
	}
	length := int32(binary.BigEndian.Uint32(header[lengthAt:]))
	if length < HeaderBytes-lengthOverhead || length > math.MaxInt32-lengthOverhead {
		return 0, fmt.Errorf("%w: %d", ErrLength, length)
	}
	return int(length) + lengthOverhead, nil
}

// Check verifies that b is one whole batch: magic, length, checksum, codec, and a record count that fits the offsets
// and the bytes: in a log that Kafka compacted there may be fewer records than offsets, and even none. It does not walk
// the records; the checksum vouches that they are what the writer made.
func (b Batch) Check() error {
	size, err := SizeOf(b)
	if err != nil {
		return err
	}
	switch {
	case len(b) < size:
		return fmt.Errorf("%w: %d bytes of %d", ErrShort, len(b), size)
	case len(b) > size:
		return fmt.Errorf("%w: %d in %d bytes", ErrLength, size, len(b))
	}
	if sum := checksum(b); sum != b.CRC() {
		return fmt.Errorf("%w: %08x stored, %08x computed", ErrCRC, b.CRC(), sum)
	}
	if b.Codec() > CodecZstd {
		return fmt.Errorf("%w: %d", ErrCodec, b.Codec())
	}
	return b.checkCount()
}

func (b Batch) checkCount() error {
	count, last := int64(b.Count()), int64(b.LastDelta())
	if count < 0 || last < 0 || b.BaseOffset() < 0 || int64(b.BaseOffset()) > math.MaxInt64-last-1 {
		return fmt.Errorf("%w: %d records from offset %d to delta %d", ErrCount, count, b.BaseOffset(), last)
	}
	plain, room := b.Codec() == CodecNone, int64(len(b)-HeaderBytes)
	if count > last+1 || plain && (count*recordBytesMin > room || count == 0 && room > 0) {
		return fmt.Errorf("%w: %d records to delta %d in %d bytes", ErrCount, count, last, len(b))
	}
	return nil
}

func checksum(b []byte) uint32 {
	return crc32.Checksum(b[attributesAt:], crc32.MakeTable(crc32.Castagnoli))
}

func (b Batch) int16At(at int) int16 { return int16(binary.BigEndian.Uint16(b[at:])) }
func (b Batch) int32At(at int) int32 { return int32(binary.BigEndian.Uint32(b[at:])) }
func (b Batch) int64At(at int) int64 { return int64(binary.BigEndian.Uint64(b[at:])) }

// BaseOffset is the offset of the first record.
func (b Batch) BaseOffset() Offset { return Offset(b.int64At(baseAt)) }

// Epoch is the leader epoch under which the batch was appended; -1 before that.
func (b Batch) Epoch() Epoch { return Epoch(b.int32At(epochAt)) }

// Size is the batch's size as its header states it.
func (b Batch) Size() int { return int(b.int32At(lengthAt)) + lengthOverhead }

// Magic is the format's number, 2.
func (b Batch) Magic() int8 { return int8(b[magicAt]) }

// CRC is the stored checksum.
func (b Batch) CRC() uint32 { return binary.BigEndian.Uint32(b[crcAt:]) }

// Attributes are the batch's flags.
func (b Batch) Attributes() int16 { return b.int16At(attributesAt) }

// Codec says how the records are compressed.
func (b Batch) Codec() Codec { return Codec(b.Attributes() & attributeCodec) }

// Control reports whether the batch carries transaction markers instead of data.
func (b Batch) Control() bool { return b.Attributes()&attributeControl != 0 }

// Transactional reports whether the batch is part of a transaction.
func (b Batch) Transactional() bool { return b.Attributes()&attributeTransactional != 0 }

// AppendTime reports whether all records carry MaxTimestamp, the time of their append.
func (b Batch) AppendTime() bool { return b.Attributes()&attributeAppendTime != 0 }

// LastDelta is the distance from BaseOffset to LastOffset.
func (b Batch) LastDelta() int32 { return b.int32At(lastDeltaAt) }

// LastOffset is the offset of the last record.
func (b Batch) LastOffset() Offset { return b.BaseOffset() + Offset(b.LastDelta()) }

// NextOffset is the first offset after the batch.
func (b Batch) NextOffset() Offset { return b.LastOffset() + 1 }

// BaseTimestamp is the time from which the records' deltas count, in milliseconds.
func (b Batch) BaseTimestamp() int64 { return b.int64At(baseTimestampAt) }

// MaxTimestamp is the latest time of any record, in milliseconds.
func (b Batch) MaxTimestamp() int64 { return b.int64At(maxTimestampAt) }

// ProducerID names an idempotent producer; -1 for others.
func (b Batch) ProducerID() int64 { return b.int64At(producerIDAt) }

// ProducerEpoch tells incarnations of a producer id apart; -1 where there is none.
func (b Batch) ProducerEpoch() int16 { return b.int16At(producerEpochAt) }

// BaseSequence is the producer's number of the first record; -1 where there is none.
func (b Batch) BaseSequence() int32 { return b.int32At(sequenceAt) }

// Count is the number of records.
func (b Batch) Count() int32 { return b.int32At(countAt) }

// SetBase stamps the base offset in place; the checksum does not cover it.
func (b Batch) SetBase(o Offset) { binary.BigEndian.PutUint64(b[baseAt:], uint64(o)) }

// SetAppendTime makes ms the time of every record, as a broker does under timestamps=append: the attribute bit, the largest
// timestamp, and the CRC anew.
func (b Batch) SetAppendTime(ms int64) {
	binary.BigEndian.PutUint16(b[attributesAt:], uint16(b.Attributes()|attributeAppendTime))
	binary.BigEndian.PutUint64(b[maxTimestampAt:], uint64(ms))
	binary.BigEndian.PutUint32(b[crcAt:], checksum(b))
}

// SetPacked makes b whole, which is the header of a batch and its records as c has packed them: the length, the codec, and
// the CRC anew.
func (b Batch) SetPacked(c Codec) {
	binary.BigEndian.PutUint32(b[lengthAt:], uint32(len(b)-lengthOverhead))
	binary.BigEndian.PutUint16(b[attributesAt:], uint16(b.Attributes()&^attributeCodec)|uint16(c))
	binary.BigEndian.PutUint32(b[crcAt:], checksum(b))
}

// SetEpoch stamps the leader epoch in place; the checksum does not cover it.
func (b Batch) SetEpoch(e Epoch) { binary.BigEndian.PutUint32(b[epochAt:], uint32(e)) }
