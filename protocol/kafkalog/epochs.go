package kafkalog

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// ErrEpochs says that a leader-epoch-checkpoint cannot be read.
var ErrEpochs = errors.New("leader-epoch-checkpoint cannot be read")

// EpochEntry says that a leader epoch began at offset Start.
type EpochEntry struct {
	Epoch record.Epoch
	Start record.Offset
}

// Epochs are the leader epochs of a log, oldest first. Its methods leave the receiver as it is.
//
// Invariant: both Epoch and Start ascend strictly, and neither is negative.
type Epochs []EpochEntry

// ParseEpochs reads the text of a leader-epoch-checkpoint: a line "0" for the version, a line with the number of
// entries, and a line "<epoch> <start>" for each.
func ParseEpochs(text []byte) (Epochs, error) {
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(lines) < 2 || lines[0] != "0" {
		return nil, fmt.Errorf("%w: version %q is not known", ErrEpochs, lines[0])
	}
	if count, err := strconv.Atoi(lines[1]); err != nil || count != len(lines)-2 {
		return nil, fmt.Errorf("%w: %q entries announced, %d there", ErrEpochs, lines[1], len(lines)-2)
	}
	epochs := make(Epochs, 0, len(lines)-2)
	last := EpochEntry{Epoch: -1, Start: -1}
	for _, line := range lines[2:] {
		left, right, _ := strings.Cut(line, " ")
		epoch, err := parseNumber(left, math.MaxInt32)
		if err != nil {
			return nil, fmt.Errorf("%w: line %q: %w", ErrEpochs, line, err)
		}
		start, err := parseNumber(right, math.MaxInt64)
		if err != nil {
			return nil, fmt.Errorf("%w: line %q: %w", ErrEpochs, line, err)
		}
		e := EpochEntry{Epoch: record.Epoch(epoch), Start: record.Offset(start)}
		if e.Epoch <= last.Epoch || e.Start <= last.Start {
			return nil, fmt.Errorf("%w: line %q is out of order", ErrEpochs, line)
		}
		epochs = append(epochs, e)
		last = e
	}
	return epochs, nil
}

var errNumber = errors.New("not a number in range")

func parseNumber(s string, most uint64) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > most {
		return 0, errNumber
	}
	return n, nil
}

// AppendText appends the text that ParseEpochs reads.
func (e Epochs) AppendText(dst []byte) []byte {
	dst = append(dst, "0\n"...)
	dst = strconv.AppendInt(dst, int64(len(e)), 10)
	dst = append(dst, '\n')
	for _, entry := range e {
		dst = strconv.AppendInt(dst, int64(entry.Epoch), 10)
		dst = append(dst, ' ')
		dst = strconv.AppendInt(dst, int64(entry.Start), 10)
		dst = append(dst, '\n')
	}
	return dst
}

// EpochFor returns the epoch in which offset o was or will be appended; false before the first one.
func (e Epochs) EpochFor(o record.Offset) (record.Epoch, bool) {
	after := sort.Search(len(e), func(i int) bool { return e[i].Start > o })
	if after == 0 {
		return -1, false
	}
	return e[after-1].Epoch, true
}

// Latest returns the newest entry; false where there is none.
func (e Epochs) Latest() (EpochEntry, bool) {
	if len(e) == 0 {
		return EpochEntry{Epoch: -1}, false
	}
	return e[len(e)-1], true
}

// Assign records that epoch begins at start, the end of the log. Epochs that began there or later hold no record and
// go. It reports false, and changes nothing, where epoch is not newer than the latest one.
func (e Epochs) Assign(epoch record.Epoch, start record.Offset) (Epochs, bool) {
	if latest, ok := e.Latest(); epoch < 0 || start < 0 || ok && epoch <= latest.Epoch {
		return e, false
	}
	return append(slices.Clone(e.ClipEnd(start)), EpochEntry{Epoch: epoch, Start: start}), true
}

// ClipEnd leaves out the epochs that begin at end, the end of the log, or later.
func (e Epochs) ClipEnd(end record.Offset) Epochs {
	n := sort.Search(len(e), func(i int) bool { return e[i].Start >= end })
	return e[:n:n]
}
