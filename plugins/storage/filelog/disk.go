package filelog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// disk is the data directory: where things lie and how they are made durable.
//
//	<data>/logs/<topic>-<p>/   partitions         <data>/tmp/         partitions being built
//	<data>/logs/.canary        one written block  <data>/trash/       partitions being unlinked
//	<data>/logs/.generation    starts so far      <data>/quarantine/  what must not be served
//	<data>/logs/.reserve       space to give up   <data>/adopt/       partitions from elsewhere
//	<data>/logs/retention-clock, *-checkpoint     what outlasts the process
type disk struct {
	fs   vfs.FS
	data string
}

func (d disk) logs() string       { return filepath.Join(d.data, "logs") }
func (d disk) tmp() string        { return filepath.Join(d.data, "tmp") }
func (d disk) trash() string      { return filepath.Join(d.data, "trash") }
func (d disk) quarantine() string { return filepath.Join(d.data, "quarantine") }
func (d disk) canary() string     { return filepath.Join(d.logs(), ".canary") }
func (d disk) generation() string { return filepath.Join(d.logs(), ".generation") }
func (d disk) adoptable() string  { return filepath.Join(d.data, "adopt") }
func (d disk) reserve() string    { return filepath.Join(d.logs(), ".reserve") }

func (d disk) retentionClock() string { return filepath.Join(d.logs(), "retention-clock") }

// partition is the directory of the partition named name.
func (d disk) partition(name string) string { return filepath.Join(d.logs(), name) }

// canaryBytes is one block of every file system in use: the probe must meet an allocated one.
const canaryBytes = 4096

// smallFileMax bounds what is read whole: checkpoints and the like. An epoch checkpoint of 30,000 epochs fits.
const smallFileMax = 1 << 20

// checkpointBytesMax bounds a checkpoint of the directory: a line is below 400 bytes, and 100,000 partitions fit.
const checkpointBytesMax = 64 << 20

// prepare makes the directories, durably, clears tmp/, and returns what trash/ still holds.
func (d disk) prepare() (trash []string, err error) {
	for _, dir := range []string{d.logs(), d.tmp(), d.trash(), d.quarantine(), d.adoptable()} {
		if err := vfs.MakeDirs(d.fs, dir); err != nil {
			return nil, err
		}
	}
	entries, err := d.fs.ReadDir(d.tmp())
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if err := d.fs.RemoveAll(filepath.Join(d.tmp(), e.Name())); err != nil {
			return nil, err
		}
	}
	if entries, err = d.fs.ReadDir(d.trash()); err != nil {
		return nil, err
	}
	for _, e := range entries {
		trash = append(trash, e.Name())
	}
	return trash, d.prepareCanary()
}

func (d disk) prepareCanary() error {
	info, err := d.fs.Stat(d.canary())
	if err == nil && info.Size >= canaryBytes {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.writeDurably(d.canary(), make([]byte, canaryBytes))
}

// nextGeneration counts this start, durably.
func (d disk) nextGeneration() (uint32, error) {
	text, err := d.readSmall(d.generation())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	var last uint64
	if err == nil {
		if last, err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 31); err != nil {
			return 0, fmt.Errorf("%s: %w", d.generation(), err)
		}
	}
	next := uint32(last) + 1
	return next, d.writeDurably(d.generation(), fmt.Appendf(nil, "%d\n", next))
}

// readSmall reads a whole small file.
func (d disk) readSmall(path string) ([]byte, error) { return d.readAtMost(path, smallFileMax) }

// readAtMost reads a whole file of at most that many bytes.
func (d disk) readAtMost(path string, most int64) ([]byte, error) {
	return vfs.ReadWhole(d.fs, path, most)
}

// create is vfs.WriteNew.
func (d disk) create(path string, content []byte) error { return vfs.WriteNew(d.fs, path, content) }

// writeDurably is vfs.WriteDurably.
func (d disk) writeDurably(path string, content []byte) error {
	return vfs.WriteDurably(d.fs, path, content)
}

// move renames a directory to another parent without replacing anything, and makes both parents durable.
func (d disk) move(from, to string) error {
	if err := d.fs.Rename(from, to); err != nil {
		return err
	}
	failpoint.Hit("plugin.move.renamed")
	return errors.Join(d.fs.SyncDir(filepath.Dir(to)), d.fs.SyncDir(filepath.Dir(from)))
}

// moveAside is move to a name that begins with to and is free. It returns the name.
func (d disk) moveAside(from, to string) (string, error) {
	for n := 1; ; n++ {
		target := to
		if n > 1 {
			target = fmt.Sprintf("%s.%d", to, n)
		}
		err := d.move(from, target)
		if !errors.Is(err, fs.ErrExist) {
			return target, err
		}
	}
}

// Names beside the segments in a partition's directory.
const (
	tmpSuffix   = vfs.TmpSuffix                 // being written
	spareName   = "next" + kafkalog.SpareSuffix // the segment to come, empty
	cutInfix    = ".cut-"                       // what recovery took off a segment
	pendingName = "cut-pending"                 // a cut has begun that is known to lose acknowledged records
	reasonName  = "quarantine-reason"           // in a quarantined directory
	openingName = "opening"                     // how often the process ended while this was being opened
)

// content is what a partition's directory holds.
type content struct {
	segments []found // ascending by base
	spare    bool    // next.spare is there and empty
	pending  bool    // cut-pending is there
}

// found is a segment as it lies on disk.
type found struct {
	base record.Offset
	size int64
}

// list looks through a partition's directory and changes nothing.
func (d disk) list(dir string) (content, error) {
	entries, err := d.fs.ReadDir(dir)
	if err != nil {
		return content{}, err
	}
	var c content
	for _, e := range entries {
		base, isSegment := kafkalog.ParseSegmentName(e.Name())
		if !isSegment && e.Name() != spareName {
			c.pending = c.pending || e.Name() == pendingName
			continue
		}
		info, err := d.fs.Stat(filepath.Join(dir, e.Name()))
		if err != nil {
			return content{}, err
		}
		switch {
		case !isSegment:
			c.spare = info.Regular && info.Size == 0
		case !info.Regular:
			return content{}, fmt.Errorf("%s: not a regular file", filepath.Join(dir, e.Name()))
		default:
			c.segments = append(c.segments, found{base, info.Size})
		}
	}
	slices.SortFunc(c.segments, func(a, b found) int {
		if a.base < b.base {
			return -1
		}
		return 1 // names are unique
	})
	return c, nil
}

// segmentPath is the file of a segment.
func segmentPath(dir string, base record.Offset) string {
	return filepath.Join(dir, kafkalog.SegmentName(base))
}

// check keeps names from leaving the directory, and from being those of files of the store.
func check(p storage.Partition) error {
	if err := p.Valid(); err != nil {
		return err
	}
	if p.Topic[0] == '.' {
		return fmt.Errorf("%w: topic name %q", ErrInvalid, p.Topic)
	}
	if strings.ToLower(p.TopicID) != p.TopicID {
		return fmt.Errorf("%w: topic id %q", ErrInvalid, p.TopicID)
	}
	return nil
}

// errUnexpectedEnd is a file that became shorter while it was read.
var errUnexpectedEnd = fmt.Errorf("file became shorter: %w", io.ErrUnexpectedEOF)

// ignoreMissing is err, but for a file that is not there.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
