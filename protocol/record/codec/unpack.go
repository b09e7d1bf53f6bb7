package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// zstdWindowMax is what the reference decoder takes unless told otherwise (window log 27): what Kafka's own consumers
// can read, so can we.
const zstdWindowMax = 128 << 20

// unpackers are the codecs that were needed so far, made on first use and kept for the next batch.
type unpackers struct {
	source bytes.Reader
	gzip   *gzip.Reader
	snappy snappyReader
	lz4    *lz4.Reader
	zstd   *zstd.Decoder
}

// open returns a stream of what packed unpacks to. limit is for what has to be unpacked as a whole.
func (u *unpackers) open(c record.Codec, packed []byte, limit int64) (io.Reader, error) {
	u.source.Reset(packed)
	switch c {
	case record.CodecGzip:
		if u.gzip == nil {
			u.gzip = new(gzip.Reader)
		}
		return u.gzip, u.gzip.Reset(&u.source)
	case record.CodecSnappy:
		return &u.snappy, u.snappy.reset(packed, limit)
	case record.CodecLZ4:
		if u.lz4 == nil {
			u.lz4 = lz4.NewReader(nil) // alone: it starts no goroutine
		}
		u.lz4.Reset(&u.source)
		return u.lz4, nil
	case record.CodecZstd:
		if u.zstd == nil {
			// Concurrency 1 starts no goroutine; no buffer is small enough to be unpacked outside the stream.
			d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(zstdWindowMax), zstd.WithDecodeBuffersBelow(0))
			if err != nil {
				return nil, err
			}
			u.zstd = d
		}
		return u.zstd, u.zstd.Reset(&u.source)
	}
	return nil, fmt.Errorf("%w: %d", record.ErrCodec, c)
}

func (u *unpackers) close() {
	if u.zstd != nil {
		u.zstd.Close()
	}
	*u = unpackers{}
}

// snappyReader unpacks both ways in which Kafka's clients use snappy: one raw block, or xerial's frames:
//
//	0x82 "SNAPPY" 0 · version int32 · compatible int32 · { length int32 · raw block }…
//
// A raw block has to be unpacked as a whole.
type snappyReader struct {
	rest   []byte // blocks to come, each behind its length
	framed bool
	limit  int64
	block  []byte // reused
	ready  []byte // of block, not yet read
}

const (
	xerialMagic       = "\x82SNAPPY\x00"
	xerialHeaderBytes = len(xerialMagic) + 8
	// snappyRatioMax is beyond what a raw block can reach: 64 bytes for a copy of 3.
	snappyRatioMax = 22
)

var errBlock = errors.New("snappy block is cut short or too long")

func (s *snappyReader) reset(packed []byte, limit int64) error {
	s.rest, s.limit, s.ready = packed, limit, nil
	s.framed = bytes.HasPrefix(packed, []byte(xerialMagic))
	if !s.framed {
		return nil
	}
	if len(packed) < xerialHeaderBytes {
		return errBlock
	}
	s.rest = packed[xerialHeaderBytes:]
	return nil
}

// Read reads what is ready, and unpacks the next block where nothing is.
func (s *snappyReader) Read(p []byte) (int, error) {
	for len(s.ready) == 0 {
		if len(s.rest) == 0 {
			return 0, io.EOF
		}
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.ready)
	s.ready = s.ready[n:]
	return n, nil
}

func (s *snappyReader) next() error {
	packed := s.rest
	if s.framed {
		if len(s.rest) < 4 {
			return errBlock
		}
		n := int64(binary.BigEndian.Uint32(s.rest))
		if n > int64(len(s.rest)-4) {
			return errBlock
		}
		packed = s.rest[4 : 4+n]
		s.rest = s.rest[4+n:]
	} else {
		s.rest = nil
	}
	size, err := snappy.DecodedLen(packed)
	switch {
	case err != nil:
		return err
	case int64(size) > s.limit:
		return fmt.Errorf("%w: a snappy block of %d bytes", ErrTooLarge, size)
	case size > snappyRatioMax*len(packed):
		return errBlock
	}
	s.block, err = snappy.Decode(s.block[:cap(s.block)], packed)
	s.ready = s.block
	return err
}
