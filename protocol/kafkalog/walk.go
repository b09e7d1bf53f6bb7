package kafkalog

import (
	"bufio"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// walkBytes is how much of a segment a Walker has in memory: enough for reads to be few.
const walkBytes = 256 << 10

// checkedFrom is where the bytes that a batch's checksum covers begin.
const checkedFrom = 21

// recordBytesMin is the least that an uncompressed record takes.
const recordBytesMin = 7

// Walked is a batch that a Walker went through. Header aliases the walker's memory until the next call of Next, and has
// record.HeaderBytes bytes, or fewer where the segment ends before that.
type Walked struct {
	Position int64
	Header   record.Batch
	// Size is the whole batch's size; 0 where it is not known.
	Size int64
	// Err says what is wrong with the batch by itself, one of record's errors; nil for a sound one.
	Err error
}

// Known reports whether the header can be trusted to lead to the next batch: false where Next will report false.
func (b *Walked) Known() bool { return b.Size > 0 }

// Walker goes through a segment batch by batch and holds none of them: the checksum is computed while the bytes go by,
// so that its memory is the same whatever a length field says. Unlike a Scanner it judges no batch's place, and goes on
// after a damaged batch as long as the length leads on.
//
//	for w.Next(&b) { … b.Err … }
//	if err := w.Err(); err != nil { … the reader's error … }
type Walker struct {
	in        *bufio.Reader
	size      int64
	position  int64
	gapsBelow record.Offset
	done      bool
	sum       hash.Hash32
	header    [record.HeaderBytes]byte
	err       error
}

// NewWalker returns a walker over a segment's bytes, of which there are size. A log that Kafka compacted has batches from
// which records, or all of them, were taken out; they are sound below gapsBelow.
func NewWalker(segment io.Reader, size int64, gapsBelow record.Offset) *Walker {
	return &Walker{
		in: bufio.NewReaderSize(segment, walkBytes), size: size, gapsBelow: gapsBelow,
		sum: crc32.New(crc32.MakeTable(crc32.Castagnoli)),
	}
}

// Err is the reader's error that ended the walk, also where it had fewer bytes than the size said; nil while it goes
// on and after its end.
func (w *Walker) Err() error { return w.err }

// Next goes through one batch. It reports false at the segment's end, after a batch that does not lead on, and on a
// reader's error.
func (w *Walker) Next(b *Walked) bool {
	if w.done || w.position >= w.size {
		return false
	}
	*b = Walked{Position: w.position}
	header := w.header[:min(int64(len(w.header)), w.size-w.position)]
	if _, err := io.ReadFull(w.in, header); err != nil {
		return w.fail(err)
	}
	b.Header = header
	size, err := record.SizeOf(header)
	if err == nil && w.size-w.position < int64(size) {
		err = fmt.Errorf("%w: %d bytes of %d", record.ErrShort, w.size-w.position, size)
	}
	if err != nil {
		b.Err, w.done = err, true
		return true
	}
	b.Size = int64(size)
	w.sum.Reset()
	w.sum.Write(header[checkedFrom:])
	if err := w.pass(b.Size - int64(len(header))); err != nil {
		return w.fail(err)
	}
	w.position += b.Size
	b.Err = w.judge(b)
	return true
}

// pass lets n bytes go by under the checksum.
func (w *Walker) pass(n int64) error {
	for n > 0 {
		piece, err := w.in.Peek(int(min(n, int64(max(w.in.Buffered(), 1)))))
		if err != nil {
			return err
		}
		w.sum.Write(piece)
		n -= int64(len(piece))
		if _, err := w.in.Discard(len(piece)); err != nil {
			return err
		}
	}
	return nil
}

// judge is record.Batch's Check for a batch of which only the header is at hand.
func (w *Walker) judge(b *Walked) error {
	h := b.Header
	if sum := w.sum.Sum32(); sum != h.CRC() {
		return fmt.Errorf("%w: %08x stored, %08x computed", record.ErrCRC, h.CRC(), sum)
	}
	if h.Codec() > record.CodecZstd {
		return fmt.Errorf("%w: %d", record.ErrCodec, h.Codec())
	}
	count, last := int64(h.Count()), int64(h.LastDelta())
	least, most := last+1, last+1
	if h.Codec() != record.CodecNone {
		least = 1
	}
	if h.BaseOffset() < w.gapsBelow {
		least = 0
	}
	if last < 0 || h.BaseOffset() < 0 || h.NextOffset() <= h.BaseOffset() || count < least || count > most ||
		h.Codec() == record.CodecNone && count*recordBytesMin > b.Size-record.HeaderBytes {
		return fmt.Errorf("%w: %d records from offset %d to delta %d in %d bytes", record.ErrCount, count, h.BaseOffset(), last, b.Size)
	}
	return nil
}

func (w *Walker) fail(err error) bool {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // there are fewer bytes than the size said
	}
	w.err, w.done = err, true
	return false
}
