package kafkalog

import (
	"errors"
	"fmt"
	"slices"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Beside record's errors, what makes a batch bad in its place in the log.
var (
	// ErrBase says that a batch does not begin with the offset that comes next.
	ErrBase = errors.New("batch has a base offset that does not follow")
	// ErrEpoch says that a batch carries another leader epoch than the checkpoint gives its offsets.
	ErrEpoch = errors.New("batch has a leader epoch that the checkpoint does not give it")
)

// BadBatch is where a segment's bytes stop being sound, and why. Err is one of record's errors, ErrBase or ErrEpoch;
// record.ErrShort where the segment ends inside the batch.
type BadBatch struct {
	Position int64
	Offset   record.Offset // what should have begun here
	Err      error
}

func (e *BadBatch) Error() string {
	return fmt.Sprintf("bad batch at position %d, offset %d: %v", e.Position, e.Offset, e.Err)
}

func (e *BadBatch) Unwrap() error { return e.Err }

// ScanOptions say what a segment has to look like.
type ScanOptions struct {
	// Base is the first offset expected: the segment's base when it is scanned from its start.
	Base record.Offset
	// Position is where in the segment the first byte fed lies: 0, or a batch boundary.
	Position int64
	// Size is the segment's size: a batch that reaches beyond it is bad as soon as its length is known, and nothing is
	// gathered for it.
	Size int64
	// EpochFor tells the leader epoch of an offset, as Epochs.EpochFor does; nil takes every epoch.
	EpochFor func(record.Offset) (record.Epoch, bool)
}

// Scanner verifies a segment's bytes, fed in pieces cut anywhere. Give it a piece with Feed, take batches with Next
// until it reports false, and so on to the end, which End announces. A batch that lies whole in a piece is not copied.
//
//	for each piece {
//		s.Feed(piece)
//		for s.Next(&f) { … f.Position, f.Batch … }
//	}
//	bad := s.End()
type Scanner struct {
	opt      ScanOptions
	position int64         // of the next batch
	next     record.Offset // expected there
	piece    []byte        // fed and not yet taken
	held     []byte        // beginning of the next batch, from earlier pieces
	yielded  bool          // held was given away by the last Next
	bad      *BadBatch
}

// Found is a verified batch and where it begins. The batch aliases the piece fed, or the scanner's own memory, and is
// valid until the next call of Next or Feed.
type Found struct {
	Position int64
	Batch    record.Batch
}

// heldHeader is what has to be gathered of a batch before its size is known and its header is judged.
const heldHeader = record.HeaderBytes

// NewScanner returns a scanner that has seen nothing.
func NewScanner(o ScanOptions) *Scanner {
	return &Scanner{opt: o, position: o.Position, next: o.Base}
}

// Feed hands over the bytes that follow those of the last Feed. They must stay as they are until Next reports false.
func (s *Scanner) Feed(piece []byte) { s.piece = piece }

// Position is the end of what was verified: where the next batch begins.
func (s *Scanner) Position() int64 { return s.position }

// NextOffset is the offset after the last verified record.
func (s *Scanner) NextOffset() record.Offset { return s.next }

// Bad is the batch at which the scan ended; nil while everything is sound. After it, Next reports false for good.
func (s *Scanner) Bad() *BadBatch { return s.bad }

// End says that no more bytes come, and returns Bad: bytes of an unfinished batch make it record.ErrShort.
func (s *Scanner) End() *BadBatch {
	s.release()
	if s.bad == nil && len(s.held)+len(s.piece) > 0 {
		s.fail(record.ErrShort)
	}
	return s.bad
}

// Next finds the next verified batch in what was fed. It reports false when it needs more, and after a bad batch.
func (s *Scanner) Next(f *Found) bool {
	s.release()
	if s.bad != nil {
		return false
	}
	if len(s.held) > 0 {
		return s.nextHeld(f)
	}
	if len(s.piece) < heldHeader {
		return s.hold(heldHeader)
	}
	size, err := s.judgeHeader(s.piece)
	if err != nil {
		return s.fail(err)
	}
	if len(s.piece) < size {
		return s.hold(size)
	}
	batch := record.Batch(s.piece[:size:size])
	s.piece = s.piece[size:]
	return s.take(f, batch)
}

// nextHeld goes on with a batch that began in an earlier piece.
func (s *Scanner) nextHeld(f *Found) bool {
	if len(s.held) < heldHeader && !s.gather(heldHeader) {
		return false
	}
	size, err := s.judgeHeader(s.held)
	if err != nil {
		return s.fail(err)
	}
	if !s.gather(size) {
		return false
	}
	s.yielded = true
	return s.take(f, s.held)
}

// hold keeps the beginning of a batch of at least n bytes until the next piece.
func (s *Scanner) hold(n int) bool {
	if len(s.piece) > 0 {
		s.gather(n)
	}
	return false
}

// gather moves bytes from the piece until n are held.
func (s *Scanner) gather(n int) bool {
	take := min(n-len(s.held), len(s.piece))
	s.held = append(slices.Grow(s.held, n-len(s.held)), s.piece[:take]...)
	s.piece = s.piece[take:]
	return len(s.held) == n
}

func (s *Scanner) release() {
	if s.yielded {
		s.held, s.yielded = s.held[:0], false
	}
}

// judgeHeader looks at what can be known of a batch before its records are there, so that garbage is not gathered.
func (s *Scanner) judgeHeader(b []byte) (int, error) {
	size, err := record.SizeOf(b)
	if err != nil {
		return 0, err
	}
	header := record.Batch(b)
	if header.BaseOffset() != s.next {
		return 0, fmt.Errorf("%w: %d instead of %d", ErrBase, header.BaseOffset(), s.next)
	}
	if header.LastDelta() < 0 || header.NextOffset() < s.next {
		return 0, fmt.Errorf("%w: last offset delta %d", record.ErrCount, header.LastDelta())
	}
	if err := s.judgeEpoch(header); err != nil {
		return 0, err
	}
	if s.opt.Size-s.position < int64(size) {
		return 0, fmt.Errorf("%w: %d bytes of %d", record.ErrShort, s.opt.Size-s.position, size)
	}
	return size, nil
}

func (s *Scanner) judgeEpoch(header record.Batch) error {
	if s.opt.EpochFor == nil {
		return nil
	}
	first, ok := s.opt.EpochFor(header.BaseOffset())
	last := first
	if header.LastDelta() > 0 {
		last, _ = s.opt.EpochFor(header.LastOffset())
	}
	switch {
	case !ok:
		return fmt.Errorf("%w: %d, and the checkpoint has none", ErrEpoch, header.Epoch())
	case header.Epoch() != first || first != last:
		return fmt.Errorf("%w: %d instead of %d to %d", ErrEpoch, header.Epoch(), first, last)
	}
	return nil
}

func (s *Scanner) take(f *Found, b record.Batch) bool {
	if err := b.Check(); err != nil {
		return s.fail(err)
	}
	f.Position, f.Batch = s.position, b
	s.position += int64(len(b))
	s.next = b.NextOffset()
	return true
}

func (s *Scanner) fail(err error) bool {
	s.bad = &BadBatch{Position: s.position, Offset: s.next, Err: err}
	s.piece, s.held = nil, nil
	return false
}
