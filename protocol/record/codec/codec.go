// Package codec reads the records of batches that were compressed by a client: gzip, snappy (raw and in the frames of
// Kafka's Java client), lz4 and zstd. It unpacks in a stream: what is in memory is one record, whatever the batch
// claims, but for the window a codec needs. Two limits stand between it and a batch that was made to explode.
//
// It assumes a batch that passed record.Batch's Check and trusts none of it beyond that. A Packer is the other way round, for
// clients. Neither does I/O. It is a package of its own so that package record needs no other module.
package codec

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// What can be wrong with a batch's records, beside record.ErrRecord.
var (
	// ErrUnpack says that the compressed bytes cannot be unpacked.
	ErrUnpack = errors.New("batch cannot be unpacked")
	// ErrTooLarge says that a record, or all records of a batch together, unpack to more than the limit.
	ErrTooLarge = errors.New("batch unpacks to more than the limit")
)

const (
	batchRatioMax = 64
	batchBytesMin = 64 << 20
	// aroundBytes is what a record may have beside key, value and headers before it counts against the limit.
	aroundBytes = 1 << 10
	// Where the fields of a batch's header lie that differ when it has one record, not compressed: see record.Batch.
	lengthAt, countedFrom = 8, 12
	codecAt, codecBits    = 22, 0x07
	countAt               = 57
	// pieceBytes is the step in which unpacked bytes are taken.
	pieceBytes = 32 << 10
)

// BatchLimit is how many bytes the records of a batch of size bytes may unpack to: 64 times as many or 64 MiB, whichever
// is more.
func BatchLimit(size int) int64 { return max(batchRatioMax*int64(size), batchBytesMin) }

// Reader walks the records of a batch as record.Iterator does, compressed or not. It may be used for one batch after
// another, which keeps its memory; Close gives that back. The zero value is ready for Reset. It is not safe for concurrent
// use.
//
//	r.Reset(batch, limit)
//	for o, ok := r.Next(&rec); ok; o, ok = r.Next(&rec) { … }
//	if err := r.Err(); err != nil { … }
type Reader struct {
	plain    record.Iterator
	batch    record.Batch
	packed   bool
	in       *bufio.Reader
	limited  limited
	unpack   unpackers
	one      []byte // the header of a batch, and one record: what plain walks
	most     int64  // bytes of a record
	index    int32
	last     int64 // offset delta of the record before
	finished bool
	err      error
}

// Reset begins the walk of b. recordMax bounds a record's key, value and headers together; the batch's own bound is
// BatchLimit. The limits are for compressed batches: what is not compressed lies in memory already. What Next returned
// before is void.
func (r *Reader) Reset(b record.Batch, recordMax int) {
	r.batch, r.packed, r.index, r.last, r.finished, r.err = b, false, 0, -1, false, nil
	size, err := record.SizeOf(b)
	if err != nil || size != len(b) || b.Codec() == record.CodecNone {
		r.plain.Reset(b) // says what is wrong, too
		return
	}
	r.packed, r.most = true, int64(recordMax)+aroundBytes
	r.limited = limited{left: BatchLimit(len(b))}
	if r.limited.in, err = r.unpack.open(b.Codec(), b[record.HeaderBytes:], r.limited.left); err != nil {
		r.fail(err)
		return
	}
	if r.in == nil {
		r.in = bufio.NewReaderSize(nil, pieceBytes)
	}
	r.in.Reset(&r.limited)
}

// Err says why the walk ended early; nil at the end of the batch and while it goes on.
func (r *Reader) Err() error {
	if !r.packed {
		return r.plain.Err()
	}
	return r.err
}

// Close gives back what the codecs hold. The reader may be Reset again.
func (r *Reader) Close() {
	r.unpack.close()
	*r = Reader{}
}

// Next fills rec with the next record and returns its offset; false at the end and on an error, which Err tells. Key, Value
// and header bytes are valid until the next call of any method; those of a batch that is not compressed alias it.
func (r *Reader) Next(rec *record.Record) (record.Offset, bool) {
	if !r.packed {
		return r.plain.Next(rec)
	}
	if r.err != nil || r.finished {
		return 0, false
	}
	if r.index == r.batch.Count() {
		r.finished = true
		if _, err := r.in.ReadByte(); err == nil {
			return r.fail(fmt.Errorf("%w: bytes after the last record", record.ErrRecord))
		} else if !errors.Is(err, io.EOF) { // a checksum behind the records, for one
			return r.fail(err)
		}
		return 0, false
	}
	if err := r.gather(); err != nil {
		return r.fail(err)
	}
	r.plain.Reset(r.one)
	o, ok := r.plain.Next(rec)
	if !ok {
		// The iterator's own words are about a batch of one.
		return r.fail(fmt.Errorf("%w: its fields fit neither its length nor its batch", record.ErrRecord))
	}
	delta := int64(o - r.batch.BaseOffset())
	if delta <= r.last {
		return r.fail(fmt.Errorf("%w: its offset is out of order", record.ErrRecord))
	}
	r.last = delta
	r.index++
	return o, true
}

func (r *Reader) fail(err error) (record.Offset, bool) {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: its bytes end within a record", ErrUnpack)
	}
	if !errors.Is(err, record.ErrRecord) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrUnpack) {
		err = fmt.Errorf("%w: %w", ErrUnpack, err)
	}
	r.err = fmt.Errorf("number %d of the batch at offset %d: %w", r.index, r.batch.BaseOffset(), err)
	return 0, false
}

// gather makes one a batch of nothing but the next record, so that one decoder serves both kinds of batches.
func (r *Reader) gather() error {
	length, err := binary.ReadVarint(r.in)
	if err != nil {
		return err
	}
	switch {
	case length < 0 || length > math.MaxInt32:
		return fmt.Errorf("%w: its length is %d", record.ErrRecord, length)
	case length > r.most:
		return fmt.Errorf("%w: a record of %d bytes", ErrTooLarge, length)
	}
	r.one = append(r.one[:0], r.batch[:record.HeaderBytes]...)
	r.one = binary.AppendVarint(r.one, length)
	if err := r.take(int(length)); err != nil {
		return err
	}
	binary.BigEndian.PutUint32(r.one[lengthAt:], uint32(len(r.one)-countedFrom))
	r.one[codecAt] &^= codecBits
	binary.BigEndian.PutUint32(r.one[countAt:], 1)
	return nil
}

// take appends n bytes to one, in steps: the length is a claim until the bytes are there.
func (r *Reader) take(n int) error {
	for n > 0 {
		step := min(n, pieceBytes)
		from := len(r.one)
		r.one = slices.Grow(r.one, step)[:from+step]
		if _, err := io.ReadFull(r.in, r.one[from:]); err != nil {
			return err
		}
		n -= step
	}
	return nil
}

// limited ends a stream that goes on beyond what is left.
type limited struct {
	in   io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		if n, err := io.ReadFull(l.in, p[:min(1, len(p))]); n == 0 {
			return 0, err
		}
		return 0, fmt.Errorf("%w: all records together", ErrTooLarge)
	}
	n, err := l.in.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}
