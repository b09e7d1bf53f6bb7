package memory

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

const (
	// segmentRecords bounds a segment, so that a floor can lie ahead of everything the core may write before it asks
	// again.
	segmentRecords = 1 << 20
	// floorAhead is how far ahead a floor is written, so that few rolls have to. It is what a partition may skip when
	// its server dies; a server that ends in order leaves no gap.
	floorAhead = 4 * segmentRecords
	// floorBytesMax is more than a floor's file can have.
	floorBytesMax = 256
)

// floors are the small files that outlive a server, one a partition:
//
//	1 <topic id> <floor>
type floors struct {
	fs  vfs.FS
	dir string
}

func (f floors) path(p storage.Partition) string { return filepath.Join(f.dir, p.String()) }

// write makes the floor durable.
func (f floors) write(p storage.Partition, floor record.Offset) error {
	if err := vfs.WriteDurably(f.fs, f.path(p), fmt.Appendf(nil, "1 %s %d\n", p.TopicID, floor)); err != nil {
		return fmt.Errorf("floor of %s: %w", p, err)
	}
	return nil
}

// read returns the floor; ErrDataMissing where there is none of that topic.
func (f floors) read(p storage.Partition) (record.Offset, error) {
	text, err := vfs.ReadWhole(f.fs, f.path(p), floorBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, storage.ErrDataMissing
	}
	if err != nil {
		return 0, fmt.Errorf("floor of %s: %w", p, err)
	}
	var format int
	var id string
	var floor record.Offset
	if n, err := fmt.Sscanf(string(text), "%d %s %d\n", &format, &id, &floor); n < 3 || err != nil || floor < 0 {
		return 0, fmt.Errorf("floor of %s: %w: %.80q", p, storage.ErrFormat, text)
	}
	if format != 1 {
		return 0, fmt.Errorf("floor of %s: %w: format %d", p, storage.ErrFormat, format)
	}
	if id != p.TopicID {
		return 0, fmt.Errorf("%w: what lies there is of topic id %s", storage.ErrDataMissing, id)
	}
	return floor, nil
}

// remove removes the floor if it is of that topic.
func (f floors) remove(p storage.Partition) error {
	_, err := f.read(p)
	switch {
	case errors.Is(err, storage.ErrDataMissing):
		return nil
	case err != nil:
		return err
	}
	if err := f.fs.Remove(f.path(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return f.fs.SyncDir(f.dir)
}

// cover makes sure that the floor lies above everything a segment of that base may come to hold.
func (s *Store) cover(p *part, base record.Offset) error {
	if p.floor >= base+segmentRecords {
		return nil
	}
	if err := s.floors.write(p.name, base+floorAhead); err != nil {
		return err
	}
	p.floor = base + floorAhead
	return nil
}
