package kafkalog

import (
	"errors"
	"fmt"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Fault is a kind of damage, by a name that programs may rely on.
type Fault string

// The faults that a Verifier finds.
const (
	FaultMagic      Fault = "magic"      // a batch is of another format, or no batch
	FaultLength     Fault = "length"     // a batch's length cannot be, or leads beyond the segment
	FaultCRC        Fault = "crc"        // a batch's bytes are not those that were written
	FaultCodec      Fault = "codec"      // a batch's compression is not known
	FaultCount      Fault = "count"      // a batch's number of records does not fit its offsets or bytes
	FaultOffset     Fault = "offset"     // a batch begins with another offset than the one that follows
	FaultName       Fault = "name"       // a segment's first batch begins with another offset than its name says
	FaultMissing    Fault = "missing"    // there is no segment for offsets between two others
	FaultOverlap    Fault = "overlap"    // a segment begins below the end of the one before
	FaultEpoch      Fault = "epoch"      // a batch's leader epoch is not the one the checkpoint gives
	FaultCheckpoint Fault = "checkpoint" // the epoch checkpoint is missing, unreadable or beyond the log
	FaultRagged     Fault = "ragged"     // an index does not end with a whole entry
	FaultOrder      Fault = "order"      // an index does not ascend
	FaultEntry      Fault = "entry"      // an index entry is not what the segment has there
	FaultBeyond     Fault = "beyond"     // an index entry lies beyond the segment's end
)

// InIndex reports whether the fault lies in an index, which can be made again from the segment: no record is touched.
func (f Fault) InIndex() bool {
	return f == FaultRagged || f == FaultOrder || f == FaultEntry || f == FaultBeyond
}

// Finding is one fault and where it is.
type Finding struct {
	// File is the file's name in the partition's directory.
	File string
	// Position is where in the file the damaged batch, entry or line begins.
	Position int64
	// Offset is the record's that should be there, or that an index entry speaks of; -1 where none is known.
	Offset record.Offset
	Fault  Fault
	// What says it for people.
	What string
}

// String is the finding as one line.
func (f Finding) String() string {
	return fmt.Sprintf("%s position %d offset %d: %s: %s", f.File, f.Position, f.Offset, f.Fault, f.What)
}

// faultOf names the kind of an error about a batch by itself.
func faultOf(err error) Fault {
	switch {
	case errors.Is(err, record.ErrMagic):
		return FaultMagic
	case errors.Is(err, record.ErrCRC):
		return FaultCRC
	case errors.Is(err, record.ErrCodec):
		return FaultCodec
	case errors.Is(err, record.ErrCount):
		return FaultCount
	}
	return FaultLength
}
