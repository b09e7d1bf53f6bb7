package storagerpc

import (
	"encoding/hex"
	"fmt"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// The checks below take from an answer everything that can be told without looking at a file. Whether descriptor and
// lease are of one file is the core's to check, when it reopens what it was lent.

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBadAnswer, fmt.Sprintf(format, args...))
}

// Bounds of what can be, far above what is: numbers below them can be added to each other, and to a buffer's length,
// without turning negative.
const (
	offsetMax    = 1 << 62
	sizeMax      = 1 << 60
	textBytesMax = 80 // of what a store says of itself
)

func checkDescription(d storage.Description) error {
	switch {
	case d.Name == "" || len(d.Name) > textBytesMax || len(d.Version) > textBytesMax:
		return bad("a store without a name, or with a long one")
	case d.Durability != "disk" && d.Durability != "memory":
		return bad("durability %q", d.Durability)
	case d.Canary == nil && !d.Streams:
		return bad("no canary")
	case d.Streams && d.Pinned:
		return bad("files that are pinned, and no files")
	case d.SegmentRecords < 0:
		return bad("segments of %d records", d.SegmentRecords)
	}
	return nil
}

func checkOpened(r storage.OpenRequest, o storage.Opened) error {
	if err := checkLease(o.Lease); err != nil {
		return err
	}
	if err := checkSealed(o); err != nil {
		return err
	}
	if r.Held != nil {
		return checkAdopted(*r.Held, o)
	}
	if o.Lease.File == nil {
		return bad("a lease without a file")
	}
	if r.Ceiling >= 0 && o.Lease.Next > r.Ceiling {
		return bad("the log ends at %d, above the ceiling %d", o.Lease.Next, r.Ceiling)
	}
	if c := o.Cut; c != nil && (c.Offset != o.Lease.Next || c.Bytes < 0) {
		return bad("cut at %d of %d bytes, and the log ends at %d", c.Offset, c.Bytes, o.Lease.Next)
	}
	return nil
}

// checkLease holds for every lease. A batch holds a record at least, so no bytes and no records go together.
func checkLease(l storage.Lease) error {
	switch {
	case l.Epoch == 0:
		return bad("a lease without an epoch")
	case l.Base < 0 || l.Next < l.Base || l.Next > offsetMax || l.Position < 0 || l.Position > sizeMax:
		return bad("a lease of [%d, %d) at position %d", l.Base, l.Next, l.Position)
	case (l.Position == 0) != (l.Next == l.Base):
		return bad("%d records in %d bytes", l.Next-l.Base, l.Position)
	}
	return nil
}

func checkSealed(o storage.Opened) error {
	first := o.Lease.Base
	if len(o.Sealed) > 0 {
		first = o.Sealed[0].Base
	}
	next := first
	for _, s := range o.Sealed {
		if s.Base < 0 || s.Base != next || s.Next <= s.Base || s.Size <= 0 || s.Size > sizeMax {
			return bad("sealed segment [%d, %d) of %d bytes where %d is next", s.Base, s.Next, s.Size, next)
		}
		next = s.Next
	}
	if next != o.Lease.Base {
		return bad("sealed segments end at %d, the active one begins at %d", next, o.Lease.Base)
	}
	if o.GapsBelow < 0 || o.GapsBelow > o.Lease.Next {
		return bad("gaps below %d in a log that ends at %d", o.GapsBelow, o.Lease.Next)
	}
	if o.LogStart < first || o.LogStart > o.Lease.Next {
		return bad("log start %d outside [%d, %d]", o.LogStart, first, o.Lease.Next)
	}
	return nil
}

func checkAdopted(h storage.Held, o storage.Opened) error {
	l := o.Lease
	switch {
	case l.Epoch <= h.Lease:
		return bad("lease epoch %d after %d", l.Epoch, h.Lease)
	case l.Base != h.Base || l.Position != h.Position || l.Next != h.Next:
		return bad("adopted segment %d to %d at %d, and the core holds %d to %d at %d",
			l.Base, l.Next, l.Position, h.Base, h.Next, h.Position)
	case l.Dev != h.Dev || l.Ino != h.Ino:
		return bad("adopted another file")
	case o.Cut != nil:
		return bad("cut a log that is held")
	}
	return nil
}

func checkRolled(r storage.RollRequest, l storage.Lease) error {
	if err := checkLease(l); err != nil {
		return err
	}
	switch {
	case l.Epoch <= r.Lease:
		return bad("lease epoch %d after %d", l.Epoch, r.Lease)
	case l.Base != r.Next || l.Position != 0:
		return bad("rolled to segment %d at %d instead of %d", l.Base, l.Position, r.Next)
	case l.File == nil:
		return bad("a lease without a file")
	}
	return nil
}

func checkExtent(r storage.LocateRequest, e storage.Extent) error {
	switch {
	case e.Base < 0 || e.Next < e.Base || e.Next > offsetMax || e.Size < 0 || e.Size > sizeMax:
		return bad("segment [%d, %d) of %d bytes", e.Base, e.Next, e.Size)
	case e.Offset < e.Base || e.Offset > r.Offset || e.Offset > e.Next:
		return bad("offset %d in segment [%d, %d) for %d", e.Offset, e.Base, e.Next, r.Offset)
	case e.Position < 0 || e.Position > e.Size:
		return bad("position %d in %d bytes", e.Position, e.Size)
	case e.File == nil:
		return bad("an extent without a file")
	}
	return nil
}

// checkExpired lets a start above the limit pass where it is not a proposal but the present one; the core knows that.
func checkExpired(start record.Offset) error {
	if start < 0 || start > offsetMax {
		return bad("log start %d", start)
	}
	return nil
}

func checkTrimmed(r storage.TrimRequest, t storage.Trimmed) error {
	if t.LogStart < r.LogStart || t.LogStart > offsetMax || t.First < 0 || t.First > t.LogStart {
		return bad("trimmed to %d from segment %d on, asked for %d", t.LogStart, t.First, r.LogStart)
	}
	return nil
}

func checkTruncated(r storage.TruncateRequest, o storage.Opened) error {
	if err := checkLease(o.Lease); err != nil {
		return err
	}
	if err := checkSealed(o); err != nil {
		return err
	}
	switch {
	case o.Lease.Epoch <= r.Lease:
		return bad("lease epoch %d after %d", o.Lease.Epoch, r.Lease)
	case o.Lease.Next != r.Next:
		return bad("truncated to %d instead of %d", o.Lease.Next, r.Next)
	case o.Lease.File == nil:
		return bad("a lease without a file")
	case o.Cut != nil:
		return bad("a truncation that reports a cut")
	}
	return nil
}

// topicIDBytes is the size of a topic id.
const topicIDBytes = 16

func checkAdoption(a storage.Adoption) error {
	id, err := hex.DecodeString(a.TopicID)
	switch {
	case err != nil || len(id) != 0 && len(id) != topicIDBytes:
		return bad("topic id %q", a.TopicID)
	case a.Partitions < 1 || a.Partitions > partition.CountMax || len(a.Epochs) != int(a.Partitions):
		return bad("%d partitions with %d epochs", a.Partitions, len(a.Epochs))
	}
	for _, e := range a.Epochs {
		if e < -1 {
			return bad("leader epoch %d", e)
		}
	}
	return nil
}
