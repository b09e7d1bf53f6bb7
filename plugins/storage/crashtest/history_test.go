package crashtest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// life is what metadata says of a partition. Metadata is taken to be durable the moment it changes.
type life int

const (
	creating life = iota
	live
	deleting
	deleted
)

// history is what a log was told and what it answered: from that follows what it may hold after a crash. A copy of it
// stays as it is while the run goes on: slices are only ever appended to.
type history struct {
	part     storage.Partition
	life     life
	settings lend.Settings
	epoch    record.Epoch

	// values holds every record by its offset. Those from durable on may be missing, from the end.
	values  []string
	durable record.Offset
	bases   []record.Offset // where batches begin
	// The log start lies in [start, startMax]: they differ while it is being moved.
	start, startMax record.Offset
	refused         []string // answered as certainly not written
}

// name is the directory's name with the topic id, which tells two topics of one name apart.
func (h history) name() string { return h.part.String() + "." + h.part.TopicID[:4] }

func (h history) batched() bool { return h.settings.Sync.Mode == lend.SyncBatch }

func (h history) end() record.Offset { return record.Offset(len(h.values)) }

// cut takes away everything from end on.
func (h *history) cut(end record.Offset) {
	h.values = slices.Clip(h.values[:end])
	h.durable = min(h.durable, end)
	n, _ := slices.BinarySearch(h.bases, end)
	h.bases = slices.Clip(h.bases[:n])
}

// settled says that a recovery has found what there is: all of it is on disk.
func (h *history) settled(start, end record.Offset) {
	h.cut(end)
	h.durable, h.start, h.startMax = end, start, start
}

// found is what a log holds after a crash.
type found struct {
	start, end record.Offset
	values     []string // [start, end)
	cut        *storage.Cut
	// Bytes in segments, before recovery and after it.
	bytesBefore, bytesAfter int64
	savedBytes              int64 // of the file that the cut names, -1 where it is not there
}

// judge says what is wrong with what was found.
func (h history) judge(f found) []string {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, h.name()+": "+fmt.Sprintf(format, args...)) }
	if f.end < h.durable {
		say("ends at %d, acknowledged up to %d", f.end, h.durable)
	}
	if f.end > h.end() {
		say("ends at %d, nobody wrote beyond %d", f.end, h.end())
	}
	if f.start < h.start || f.start > h.startMax {
		say("starts at %d, not in [%d, %d]", f.start, h.start, h.startMax)
	}
	for i, got := range f.values {
		off := f.start + record.Offset(i)
		switch {
		case slices.Contains(h.refused, got):
			say("%d holds %q, which was refused", off, brief(got))
		case off >= h.end():
			say("%d holds %q, which nobody wrote there", off, brief(got))
		case got != h.values[off]:
			say("%d holds %q, written was %q", off, brief(got), brief(h.values[off]))
		}
	}
	if n := record.Offset(len(f.values)); f.start+n != f.end {
		say("%d records in [%d, %d)", n, f.start, f.end)
	}
	return append(wrong, h.judgeCut(f)...)
}

// judgeCut compares what recovery reports with what it did.
func (h history) judgeCut(f found) []string {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, h.name()+": "+fmt.Sprintf(format, args...)) }
	gone := f.bytesBefore - f.bytesAfter
	c := f.cut
	if f.start == f.end && f.start > 0 {
		return nil // began anew at its start, above all that was left
	}
	if c == nil {
		if gone != 0 {
			say("%d bytes are gone, and no cut is reported", gone)
		}
		return wrong
	}
	if c.Bytes != gone {
		say("a cut of %d bytes is reported, %d are gone", c.Bytes, gone)
	}
	if c.Offset != f.end {
		say("a cut at %d is reported, the log ends at %d", c.Offset, f.end)
	}
	if c.Dirty {
		say("reported as dirty: %s", c.Reason)
	}
	if c.Bytes > 0 && (f.savedBytes <= 0 || f.savedBytes > c.Bytes) {
		say("a cut of %d bytes is saved in %q, of %d", c.Bytes, c.SavedAs, f.savedBytes)
	}
	if c.Reason == "" {
		say("a cut without a reason")
	}
	return wrong
}

// brief is the part of a value that tells it from others.
func brief(value string) string {
	head, _, _ := strings.Cut(value, " ")
	return head
}

// value is a record that no other is like.
func value(topic string, n, bytes int) string {
	return fmt.Sprintf("%s#%d %s", topic, n, strings.Repeat("x", bytes))
}

// book is all histories, by topic name and id.
type book map[string]history

func part(topic string, incarnation int) storage.Partition {
	return storage.Partition{Topic: topic, TopicID: fmt.Sprintf("%04x%s", incarnation, strings.Repeat("f0", 14)), ID: partition.ID(0)}
}
