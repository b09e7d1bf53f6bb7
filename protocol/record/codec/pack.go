package codec

import (
	"bytes"
	"fmt"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Packer compresses whole batches with one codec, each at its library's default level. It keeps its memory from one batch
// to the next, starts no goroutine, and is not safe for concurrent use.
type Packer struct {
	codec  record.Codec
	out    bytes.Buffer
	gzip   *gzip.Writer
	lz4    *lz4.Writer
	zstd   *zstd.Encoder
	packed []byte
}

// NewPacker returns a packer for a codec; record.ErrCodec for one that there is not. CodecNone is one: it leaves batches as
// they are.
func NewPacker(c record.Codec) (*Packer, error) {
	p := &Packer{codec: c}
	switch c {
	case record.CodecNone, record.CodecSnappy:
	case record.CodecGzip:
		p.gzip = gzip.NewWriter(&p.out)
	case record.CodecLZ4:
		p.lz4 = lz4.NewWriter(&p.out)
	case record.CodecZstd:
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		p.zstd = e
	default:
		return nil, fmt.Errorf("%w: %d", record.ErrCodec, c)
	}
	return p, nil
}

// Pack returns b with its records compressed, in memory of the packer's that the next Pack overwrites; or b itself, where it
// would not become smaller or is packed already.
func (p *Packer) Pack(b record.Batch) (record.Batch, error) {
	if p.codec == record.CodecNone || b.Codec() != record.CodecNone {
		return b, nil
	}
	p.out.Reset()
	header, records := b[:record.HeaderBytes], b[record.HeaderBytes:]
	var err error
	switch p.codec {
	case record.CodecSnappy:
		p.grow(record.HeaderBytes + snappy.MaxEncodedLen(len(records)))
		n := len(snappy.Encode(p.packed[record.HeaderBytes:cap(p.packed)], records))
		p.packed = append(p.packed[:0], header...)[:record.HeaderBytes+n]
	case record.CodecZstd:
		p.packed = p.zstd.EncodeAll(records, append(p.packed[:0], header...))
	case record.CodecGzip:
		p.out.Write(header) // a bytes.Buffer takes everything
		p.gzip.Reset(&p.out)
		if _, err = p.gzip.Write(records); err == nil {
			err = p.gzip.Close()
		}
	case record.CodecLZ4:
		p.out.Write(header)
		p.lz4.Reset(&p.out)
		if _, err = p.lz4.Write(records); err == nil {
			err = p.lz4.Close()
		}
	}
	if err != nil {
		return nil, err
	}
	whole := record.Batch(p.packed)
	if p.out.Len() > 0 {
		whole = p.out.Bytes()
	}
	if len(whole) >= len(b) {
		return b, nil
	}
	whole.SetPacked(p.codec)
	return whole, nil
}

// grow makes packed hold n bytes.
func (p *Packer) grow(n int) {
	if cap(p.packed) < n {
		p.packed = make([]byte, 0, n)
	}
	p.packed = p.packed[:0]
}
