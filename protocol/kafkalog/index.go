package kafkalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Sizes of one entry; a file's length is a multiple of it.
const (
	IndexEntryBytes     = 8
	TimeIndexEntryBytes = 12
)

// ErrIndex says that an index cannot be read or an entry cannot be written: rebuild it from the segment.
var ErrIndex = errors.New("index entry is not possible")

// IndexEntry says that the batch at Position ends with offset Last.
//
//	  0           4           8      big-endian; no checksum, an index can be made again
//	+-----------+-----------+
//	| last-base | position  |
//	+-----------+-----------+
type IndexEntry struct {
	Last     record.Offset
	Position int64
}

// TimeIndexEntry says that no record up to offset Last is later than MaxTimestamp, in milliseconds.
//
//	  0                       8          12      big-endian
//	+-----------------------+-----------+
//	| max timestamp         | last-base |
//	+-----------------------+-----------+
type TimeIndexEntry struct {
	MaxTimestamp int64
	Last         record.Offset
}

// AppendIndexEntry encodes e for the segment that begins at base; ErrIndex where it lies beyond 2³¹ of it.
func AppendIndexEntry(dst []byte, base record.Offset, e IndexEntry) ([]byte, error) {
	relative, err := relativeTo(base, e.Last)
	if err != nil {
		return dst, err
	}
	if e.Position < 0 || e.Position > math.MaxInt32 {
		return dst, fmt.Errorf("%w: position %d", ErrIndex, e.Position)
	}
	dst = binary.BigEndian.AppendUint32(dst, relative)
	return binary.BigEndian.AppendUint32(dst, uint32(e.Position)), nil
}

// ParseIndexEntry decodes the entry at the beginning of b; ErrIndex where it is cut short or negative.
func ParseIndexEntry(b []byte, base record.Offset) (IndexEntry, error) {
	if len(b) < IndexEntryBytes {
		return IndexEntry{}, fmt.Errorf("%w: %d bytes", ErrIndex, len(b))
	}
	last, err := absoluteTo(base, b)
	position := int32(binary.BigEndian.Uint32(b[4:]))
	if err == nil && position < 0 {
		err = fmt.Errorf("%w: position %d", ErrIndex, position)
	}
	if err != nil {
		return IndexEntry{}, err
	}
	return IndexEntry{Last: last, Position: int64(position)}, nil
}

// AppendTimeIndexEntry encodes e for the segment that begins at base; ErrIndex where it lies beyond 2³¹ of it.
func AppendTimeIndexEntry(dst []byte, base record.Offset, e TimeIndexEntry) ([]byte, error) {
	relative, err := relativeTo(base, e.Last)
	if err != nil {
		return dst, err
	}
	dst = binary.BigEndian.AppendUint64(dst, uint64(e.MaxTimestamp))
	return binary.BigEndian.AppendUint32(dst, relative), nil
}

// ParseTimeIndexEntry decodes the entry at the beginning of b; ErrIndex where it is cut short or negative.
func ParseTimeIndexEntry(b []byte, base record.Offset) (TimeIndexEntry, error) {
	if len(b) < TimeIndexEntryBytes {
		return TimeIndexEntry{}, fmt.Errorf("%w: %d bytes", ErrIndex, len(b))
	}
	last, err := absoluteTo(base, b[8:])
	if err != nil {
		return TimeIndexEntry{}, err
	}
	return TimeIndexEntry{MaxTimestamp: int64(binary.BigEndian.Uint64(b)), Last: last}, nil
}

func relativeTo(base, last record.Offset) (uint32, error) {
	if base < 0 || last < base || last-base > math.MaxInt32 {
		return 0, fmt.Errorf("%w: offset %d in the segment at %d", ErrIndex, last, base)
	}
	return uint32(last - base), nil
}

func absoluteTo(base record.Offset, b []byte) (record.Offset, error) {
	relative := int32(binary.BigEndian.Uint32(b))
	if relative < 0 || base < 0 || base > math.MaxInt64-record.Offset(relative) {
		return 0, fmt.Errorf("%w: offset %d after %d", ErrIndex, relative, base)
	}
	return base + record.Offset(relative), nil
}
