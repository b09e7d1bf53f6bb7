package kafkalog

import (
	"fmt"
	"io"
	"math"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// VerifyOptions say what a log may look like.
type VerifyOptions struct {
	// Compacted allows offsets to skip upward, as in logs that Kafka compacted.
	Compacted bool
	// GapsBelow allows it below that offset, as AdoptedBelowName has it.
	GapsBelow record.Offset
	// LogStart is the first offset that is not trimmed. What lies below it may be gone, and has no leader epoch.
	LogStart record.Offset
}

// Segment is one segment to verify. Its files are read once, from beginning to end.
type Segment struct {
	Base record.Offset // as its name says
	Log  io.Reader
	Size int64 // of Log
	// Index and TimeIndex are nil where there is no such file; an index that is missing is no fault.
	Index, TimeIndex io.Reader
}

// Verifier finds the damage in a partition's log: hand it the epoch checkpoint, then the segments in ascending order, then
// call End. Its memory does not grow with the log.
type Verifier struct {
	opt      VerifyOptions
	report   func(Finding)
	epochs   Epochs
	judge    bool // epochs are to be judged
	had      bool // the checkpoint was there
	began    bool // a segment was seen
	next     record.Offset
	blind    bool // damage hides where the next offset is
	batches  int64
	findings int64
}

// NewVerifier returns a verifier that hands each finding to report as it comes.
func NewVerifier(o VerifyOptions, report func(Finding)) *Verifier {
	if o.Compacted {
		o.GapsBelow = math.MaxInt64
	}
	return &Verifier{opt: o, report: report}
}

// Batches is the number of sound batches so far.
func (v *Verifier) Batches() int64 { return v.batches }

// Findings is the number of findings so far.
func (v *Verifier) Findings() int64 { return v.findings }

// Next is the offset after the last batch; meaningful where nothing was found.
func (v *Verifier) Next() record.Offset { return v.next }

// Epochs takes the bytes of the leader-epoch-checkpoint. Without a call, the file counts as missing.
func (v *Verifier) Epochs(text []byte) {
	v.had = true
	epochs, err := ParseEpochs(text)
	if err != nil {
		v.find(Finding{File: EpochCheckpointName, Offset: -1, Fault: FaultCheckpoint, What: err.Error()})
		return
	}
	v.epochs, v.judge = epochs, true
}

// Segment verifies one segment and its indexes. An error is one of the readers', never damage.
func (v *Verifier) Segment(g Segment) error {
	v.begin(g.Base)
	c := segmentCheck{
		v: v, file: SegmentName(g.Base),
		index: indexCheck{v: v, file: IndexName(g.Base), base: g.Base, size: g.Size},
		times: timeCheck{v: v, file: TimeIndexName(g.Base), base: g.Base},
	}
	c.index.entries.init(g.Index, IndexEntryBytes)
	c.times.entries.init(g.TimeIndex, TimeIndexEntryBytes)
	w := NewWalker(g.Log, g.Size, v.opt.GapsBelow)
	var b Walked
	for first := true; w.Next(&b); first = false {
		if err := c.batch(&b, first); err != nil {
			return err
		}
	}
	if err := w.Err(); err != nil {
		return fmt.Errorf("read %s: %w", c.file, err)
	}
	return c.end()
}

// End verifies what can be told only when all segments were seen.
func (v *Verifier) End() {
	latest, ok := v.epochs.Latest()
	if end := max(v.next, v.opt.LogStart); ok && !v.blind && latest.Start > end {
		v.find(Finding{File: EpochCheckpointName, Offset: latest.Start, Fault: FaultCheckpoint,
			What: fmt.Sprintf("epoch %d begins at %d, and the log ends at %d", latest.Epoch, latest.Start, end)})
	}
}

// begin judges a segment's place among the others.
func (v *Verifier) begin(base record.Offset) {
	f := Finding{File: SegmentName(base), Offset: v.next}
	switch {
	case !v.began || v.blind:
	case base < v.next:
		f.Fault, f.What = FaultOverlap, fmt.Sprintf("it begins at %d, and the segment before ends at %d", base, v.next)
		v.find(f)
	case base > v.next && base > v.opt.GapsBelow:
		f.Fault, f.What = FaultMissing, fmt.Sprintf("no segment holds offsets %d to %d", v.next, base-1)
		v.find(f)
	}
	v.began, v.blind, v.next = true, false, base
}

func (v *Verifier) find(f Finding) {
	v.findings++
	v.report(f)
}

// segmentCheck is the state of one segment's verification.
type segmentCheck struct {
	v     *Verifier
	file  string
	index indexCheck
	times timeCheck
}

func (c *segmentCheck) batch(b *Walked, first bool) error {
	v := c.v
	if b.Err != nil {
		c.find(b, faultOf(b.Err), b.Err.Error())
		if !b.Known() {
			v.blind = true
			return c.blind(b.Position)
		}
		// The length led on, or the next batch will show that it did not; what else the header says counts for nothing.
		v.blind = true
		c.times.unsure = true
		return c.index.pass(b, false)
	}
	c.place(b, first)
	c.epoch(b)
	v.batches++
	v.blind, v.next = false, b.Header.NextOffset()
	if err := c.index.pass(b, true); err != nil {
		return err
	}
	return c.times.pass(b)
}

// place judges the base offset of a sound batch.
func (c *segmentCheck) place(b *Walked, first bool) {
	v, base := c.v, b.Header.BaseOffset()
	switch {
	case base == v.next, base > v.next && (base < v.opt.GapsBelow || v.blind && !first):
	case first && base != v.next:
		c.find(b, FaultName, fmt.Sprintf("its first batch begins at %d", base))
	default:
		c.find(b, FaultOffset, fmt.Sprintf("%v: %d instead of %d", ErrBase, base, v.next))
	}
}

// epoch judges the leader epoch of a sound batch.
func (c *segmentCheck) epoch(b *Walked) {
	v, h := c.v, b.Header
	from, last := max(h.BaseOffset(), v.opt.LogStart), h.LastOffset()
	if !v.had {
		v.had = true // said once
		v.find(Finding{File: EpochCheckpointName, Offset: h.BaseOffset(), Fault: FaultCheckpoint, What: "it is missing, so that no batch's epoch can be judged"})
	}
	if !v.judge || from > last {
		return
	}
	first, ok := v.epochs.EpochFor(from)
	if !ok {
		c.find(b, FaultEpoch, fmt.Sprintf("epoch %d, and the checkpoint gives it none", h.Epoch()))
		return
	}
	if until, _ := v.epochs.EpochFor(last); first != h.Epoch() || until != first {
		c.find(b, FaultEpoch, fmt.Sprintf("epoch %d, and the checkpoint gives offsets %d to %d epochs %d to %d", h.Epoch(), from, last, first, until))
	}
}

// blind gives up on what lies behind a batch that does not lead on.
func (c *segmentCheck) blind(position int64) error {
	c.times.unsure = true
	if err := c.index.until(position); err != nil {
		return err
	}
	c.index.entries.stop()
	c.index.have = false
	c.times.entries.stop()
	return nil
}

func (c *segmentCheck) end() error {
	if err := c.index.end(); err != nil {
		return err
	}
	return c.times.end()
}

func (c *segmentCheck) find(b *Walked, fault Fault, what string) {
	c.v.find(Finding{File: c.file, Position: b.Position, Offset: c.v.next, Fault: fault, What: what})
}
