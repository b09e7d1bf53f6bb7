package filelog

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Names of the checkpoints below logs/. Each is there twice: in Kafka's form, which names topics and is never read here,
// and in ours, which names topic ids, so that a topic created again under the same name is not taken for the old one.
const (
	recoveryPointName = "recovery-point-offset-checkpoint"
	logStartName      = "log-start-offset-checkpoint"
	byIDSuffix        = ".by-id"
)

// checkpointEvery is how often a checkpoint is written at most; a stale one costs the scan of what came since.
const checkpointEvery = time.Second

// errCheckpoint is a checkpoint that cannot be read.
var errCheckpoint = errors.New("checkpoint cannot be read")

// pointKey names a partition for good.
type pointKey struct {
	topicID string
	id      partition.ID
}

func keyOf(p storage.Partition) pointKey { return pointKey{p.TopicID, p.ID} }

// point is one line of a checkpoint.
type point struct {
	topic  string
	offset record.Offset
}

// checkpoint is an offset for each partition, on disk at most once a second, or at once where someone waits for it. It
// is safe for concurrent use.
type checkpoint struct {
	name  string
	write func(path string, content []byte) error // durably, or not at all
	dir   string
	turn  chan struct{} // one slot: who writes the files

	mu      sync.Mutex
	points  map[pointKey]point
	changes uint64 // so many since the start
	written uint64 // so many of them are on disk
	wake    chan struct{}
}

func newCheckpoint(dir, name string, write func(string, []byte) error) *checkpoint {
	return &checkpoint{
		name: name, dir: dir, write: write, turn: make(chan struct{}, 1),
		points: make(map[pointKey]point), wake: make(chan struct{}, 1),
	}
}

// load reads what an earlier process left. What cannot be read is reported and left out: it only makes things slower.
// Partitions that are not under logs/ any more are forgotten.
func (c *checkpoint) load(d disk) error {
	text, err := d.readAtMost(filepath.Join(c.dir, c.name+byIDSuffix), checkpointBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	points, err := parseCheckpoint(text)
	if err != nil {
		return err
	}
	entries, err := d.fs.ReadDir(d.logs())
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(entries))
	for _, e := range entries {
		there[e.Name()] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, p := range points {
		if there[kafkalog.PartitionDir(p.topic, k.id)] {
			c.points[k] = p
		}
	}
	return nil
}

// get returns the partition's offset, and false where none is known.
func (c *checkpoint) get(p storage.Partition) (record.Offset, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	got, ok := c.points[keyOf(p)]
	return got.offset, ok
}

// set changes the partition's offset; it is on disk a second later, or after flush.
func (c *checkpoint) set(p storage.Partition, offset record.Offset) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := point{topic: p.Topic, offset: offset}
	if c.points[keyOf(p)] == next {
		return
	}
	c.points[keyOf(p)] = next
	c.changedLocked()
}

// forget drops the partition.
func (c *checkpoint) forget(p storage.Partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.points[keyOf(p)]; ok {
		delete(c.points, keyOf(p))
		c.changedLocked()
	}
}

func (c *checkpoint) changedLocked() {
	c.changes++
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// flush returns when everything set before the call is on disk. Calls that wait for each other share one write.
func (c *checkpoint) flush(ctx context.Context) error {
	c.mu.Lock()
	mine := c.changes
	c.mu.Unlock()
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%s is being written: %w", c.name, context.Cause(ctx))
	}
	defer func() { <-c.turn }()
	c.mu.Lock()
	if c.written >= mine {
		c.mu.Unlock()
		return nil
	}
	changes, kafkas, ours := c.changes, c.kafkasLocked(), c.oursLocked()
	c.mu.Unlock()
	if err := c.write(filepath.Join(c.dir, c.name), kafkas); err != nil {
		return fmt.Errorf("write %s: %w", c.name, err)
	}
	failpoint.Hit("plugin.checkpoint.half")
	if err := c.write(filepath.Join(c.dir, c.name+byIDSuffix), ours); err != nil {
		return fmt.Errorf("write %s: %w", c.name+byIDSuffix, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written = changes
	return nil
}

// run writes what changed until ctx ends. An error is told once; the next change tries again.
func (c *checkpoint) run(ctx context.Context, failed func(error)) {
	for {
		select {
		case <-c.wake:
		case <-ctx.Done():
			return
		}
		// What comes within the second goes along.
		wait := time.NewTimer(checkpointEvery)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		if err := c.flush(ctx); err != nil && ctx.Err() == nil {
			failed(err)
		}
	}
}

func (c *checkpoint) sortedLocked() []pointKey {
	keys := make([]pointKey, 0, len(c.points))
	for k := range c.points {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b pointKey) int {
		if a.topicID != b.topicID {
			return strings.Compare(a.topicID, b.topicID)
		}
		return int(a.id) - int(b.id)
	})
	return keys
}

// kafkasLocked is the text that Kafka reads: "0", the number of lines, and "<topic> <partition> <offset>" for each.
func (c *checkpoint) kafkasLocked() []byte {
	text := fmt.Appendf(nil, "0\n%d\n", len(c.points))
	for _, k := range c.sortedLocked() {
		p := c.points[k]
		text = fmt.Appendf(text, "%s %d %d\n", p.topic, k.id, p.offset)
	}
	return text
}

// oursLocked is the text that parseCheckpoint reads: "1", the number of lines, "<topic id> <partition> <offset> <topic>"
// for each, and a CRC-32C of all before it.
func (c *checkpoint) oursLocked() []byte {
	text := fmt.Appendf(nil, "1\n%d\n", len(c.points))
	for _, k := range c.sortedLocked() {
		p := c.points[k]
		text = fmt.Appendf(text, "%s %d %d %s\n", k.topicID, k.id, p.offset, p.topic)
	}
	return withSum(text)
}

func parseCheckpoint(text []byte) (map[pointKey]point, error) {
	body, err := checkSum(text)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
	if len(lines) < 2 || lines[0] != "1" || lines[1] != strconv.Itoa(len(lines)-2) {
		return nil, fmt.Errorf("%w: it begins with %q", errCheckpoint, lines[:min(2, len(lines))])
	}
	points := make(map[pointKey]point, len(lines)-2)
	for _, line := range lines[2:] {
		fields := strings.Split(line, " ")
		if len(fields) != 4 {
			return nil, fmt.Errorf("%w: line %q", errCheckpoint, line)
		}
		id, idErr := strconv.ParseInt(fields[1], 10, 32)
		offset, err := strconv.ParseInt(fields[2], 10, 64)
		if err := errors.Join(idErr, err); err != nil || id < 0 || offset < 0 {
			return nil, fmt.Errorf("%w: line %q", errCheckpoint, line)
		}
		points[pointKey{fields[0], partition.ID(id)}] = point{fields[3], record.Offset(offset)}
	}
	return points, nil
}

// sumBytes is the length of a line that holds a sum.
const sumBytes = len("crc32c 00000000\n")

// withSum appends a line with the CRC-32C of text.
func withSum(text []byte) []byte {
	return fmt.Appendf(text, "crc32c %08x\n", crc32.Checksum(text, crc32.MakeTable(crc32.Castagnoli)))
}

// checkSum returns text without its last line, which has to be the one that withSum wrote.
func checkSum(text []byte) ([]byte, error) {
	if len(text) < sumBytes {
		return nil, fmt.Errorf("%w: %d bytes", errCheckpoint, len(text))
	}
	body := text[:len(text)-sumBytes]
	if string(withSum(slices.Clip(body))) != string(text) {
		return nil, fmt.Errorf("%w: its checksum is wrong", errCheckpoint)
	}
	return body, nil
}
