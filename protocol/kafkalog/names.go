// Package kafkalog is how a partition's log lies on disk, in Kafka's own layout: the names of directories and files,
// the entries of the indexes, the two small text files beside them, and the scan that tells how far a segment's bytes
// are sound. It is pure: bytes in, bytes out; files are opened, read and cut by others.
//
// It writes what Kafka 4 reads and reads what Kafka 4 writes, but for transaction indexes and producer snapshots.
package kafkalog

import (
	"strconv"
	"strings"

	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Suffixes of the files of a segment, after its base offset. A spare is a segment that has no base offset yet.
const (
	LogSuffix       = ".log"
	IndexSuffix     = ".index"
	TimeIndexSuffix = ".timeindex"
	SpareSuffix     = ".spare"
)

// Names of the files that a partition's directory has once.
const (
	PartitionMetadataName = "partition.metadata"
	EpochCheckpointName   = "leader-epoch-checkpoint"
)

// offsetDigits is the width of an offset in a name, so that names sort as numbers do.
const offsetDigits = 20

// SegmentName is the name of the segment that begins at base, which is not negative: "00000000000000000017.log".
func SegmentName(base record.Offset) string { return offsetName(base) + LogSuffix }

// IndexName is the name of the offset index of the segment that begins at base.
func IndexName(base record.Offset) string { return offsetName(base) + IndexSuffix }

// TimeIndexName is the name of the time index of the segment that begins at base.
func TimeIndexName(base record.Offset) string { return offsetName(base) + TimeIndexSuffix }

func offsetName(base record.Offset) string {
	digits := strconv.FormatInt(int64(base), 10)
	if len(digits) >= offsetDigits {
		return digits
	}
	return strings.Repeat("0", offsetDigits-len(digits)) + digits
}

// ParseSegmentName returns the base offset of a segment's name, and false for any other name.
func ParseSegmentName(name string) (record.Offset, bool) {
	digits, ok := strings.CutSuffix(name, LogSuffix)
	if !ok || len(digits) != offsetDigits || !isDecimal(digits) {
		return 0, false
	}
	base, err := strconv.ParseInt(digits, 10, 64)
	if err != nil { // above the largest offset
		return 0, false
	}
	return record.Offset(base), true
}

// PartitionDir is the name of a partition's directory: "orders-2".
func PartitionDir(topic string, id partition.ID) string {
	return topic + "-" + strconv.FormatInt(int64(id), 10)
}

// ParsePartitionDir takes a directory's name apart, and reports false for one that PartitionDir does not make. Whether
// the topic's name is legal it does not ask.
func ParsePartitionDir(name string) (topic string, id partition.ID, ok bool) {
	at := strings.LastIndexByte(name, '-')
	if at <= 0 || strings.ContainsAny(name, "/\x00") || !isDecimal(name[at+1:]) {
		return "", partition.None, false
	}
	n, err := strconv.ParseInt(name[at+1:], 10, 32)
	if err != nil || PartitionDir(name[:at], partition.ID(n)) != name { // a leading zero names another directory
		return "", partition.None, false
	}
	return name[:at], partition.ID(n), true
}

func isDecimal(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
