package memory

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// newFile makes an empty file in memory. It takes no seals: the core writes it as long as it is active, and may go on
// with one that the store has rolled, if the answer was lost.
func newFile(name string) (vfs.File, error) {
	fd, err := unix.MemfdCreate("trunkline "+name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return vfs.FromFd(fd, name), nil
}

// copyPiece is how much of a segment is copied at a time.
const copyPiece = 256 << 10

// copyFile makes a file of the first n bytes of another one.
func copyFile(name string, from vfs.File, n int64) (vfs.File, error) {
	to, err := newFile(name)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, min(n, copyPiece))
	for at := int64(0); at < n; {
		piece := buf[:min(n-at, int64(len(buf)))]
		if _, err = from.ReadAt(piece, at); err == nil {
			_, err = to.WriteAt(piece, at)
		}
		if err != nil {
			return nil, errors.Join(err, to.Close())
		}
		at += int64(len(piece))
	}
	return to, nil
}

// place is a batch boundary of a segment.
type place struct {
	offset       record.Offset // of the batch there, or the next one
	position     int64
	maxTimestamp int64 // of everything below
}

// walk goes over the batches of a segment's first limit bytes, by their headers, until stop says so or they end. It
// returns the boundary it stands at, and why it could not go on where that is not the end.
func (seg *segment) walk(limit int64, stop func(record.Batch) bool) (place, error) {
	at := place{offset: seg.base, maxTimestamp: -1}
	var h [record.HeaderBytes]byte
	for at.position < limit {
		_, err := seg.file.ReadAt(h[:], at.position)
		var size int
		if err == nil {
			size, err = record.SizeOf(h[:])
		}
		b := record.Batch(h[:])
		switch {
		case errors.Is(err, io.EOF), err == nil && at.position+int64(size) > limit:
			return at, record.ErrShort
		case err != nil:
			return at, err
		case b.BaseOffset() != at.offset || b.LastDelta() < 0:
			return at, record.ErrCount
		case stop(b):
			return at, nil
		}
		at = place{b.NextOffset(), at.position + int64(size), max(at.maxTimestamp, b.MaxTimestamp())}
	}
	return at, nil
}

// sound is walk to the end of the last batch below the ceiling that is whole, and why no further. Checksums are looked
// at, too: what is there may be half written.
func (seg *segment) sound(ceiling record.Offset) (place, error) {
	info, err := seg.file.Stat()
	if err != nil {
		return place{}, err
	}
	var bad error
	var at int64
	end, err := seg.walk(info.Size, func(h record.Batch) bool {
		b := make(record.Batch, h.Size())
		if ceiling >= 0 && h.NextOffset() > ceiling {
			bad = errCeiling
			return true
		}
		if _, bad = seg.file.ReadAt(b, at); bad == nil {
			bad = b.Check()
		}
		at += int64(h.Size())
		return bad != nil
	})
	return end, errors.Join(err, bad)
}

var errCeiling = errors.New("the core never saw it confirmed")
