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
		if err := d.mkdirAll(dir); err != nil {
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

// mkdirAll makes dir and its missing parents, and makes every new name durable.
func (d disk) mkdirAll(dir string) error {
	if _, err := d.fs.Stat(dir); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := d.mkdirAll(parent); err != nil {
			return err
		}
	}
	if err := d.fs.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return d.fs.SyncDir(parent)
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
	f, err := d.fs.Open(path, vfs.Read)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size > most {
		return nil, fmt.Errorf("%s: %d bytes, more than it can have", path, info.Size)
	}
	text := make([]byte, info.Size)
	if n, err := f.ReadAt(text, 0); n < len(text) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return text, nil
}

// create makes a new file with that content, and its bytes durable. Its name is so after a sync of the directory.
func (d disk) create(path string, content []byte) error {
	f, err := d.fs.Open(path, vfs.Create)
	if err != nil {
		return err
	}
	if len(content) > 0 {
		_, err = f.WriteAt(content, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// writeDurably replaces the file at path: after a crash it is either the old or the new one.
func (d disk) writeDurably(path string, content []byte) error {
	tmp := path + tmpSuffix
	if err := d.fs.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := d.create(tmp, content); err != nil {
		return err
	}
	if err := d.fs.Replace(tmp, path); err != nil {
		return err
	}
	return d.fs.SyncDir(filepath.Dir(path))
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
	tmpSuffix   = ".tmp"                        // being written
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

// topicNameMax is Kafka's limit; with the partition's number it keeps a directory's name below 255 bytes.
const topicNameMax = 249

// check keeps names from leaving the directory. What else a topic's name may be is the core's business.
func check(p storage.Partition) error {
	if p.Topic == "" || len(p.Topic) > topicNameMax || p.Topic[0] == '.' {
		return fmt.Errorf("%w: topic name %q", ErrInvalid, p.Topic)
	}
	for _, c := range []byte(p.Topic) {
		if !isNameByte(c) {
			return fmt.Errorf("%w: topic name %q", ErrInvalid, p.Topic)
		}
	}
	if _, err := kafkalog.PartitionMetadata(p.TopicID); err != nil || strings.ToLower(p.TopicID) != p.TopicID {
		return fmt.Errorf("%w: topic id %q", ErrInvalid, p.TopicID)
	}
	if p.ID < 0 {
		return fmt.Errorf("%w: partition %d", ErrInvalid, p.ID)
	}
	return nil
}

func isNameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
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
