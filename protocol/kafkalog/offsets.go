package kafkalog

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// LogStartCheckpointName is the file, beside the partitions' directories, that names the log starts which no segment's
// name tells.
const LogStartCheckpointName = "log-start-offset-checkpoint"

// ErrOffsets says that a checkpoint of offsets cannot be read.
var ErrOffsets = errors.New("checkpoint of offsets cannot be read")

// FindOffset reads Kafka's checkpoint of offsets and returns the one of a partition; false where it has none. The text
// is a line "0" for the version, a line with the number of entries, and a line "<topic> <partition> <offset>" for each.
func FindOffset(text []byte, topic string, id partition.ID) (o record.Offset, ok bool, err error) {
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(lines) < 2 || lines[0] != "0" {
		return 0, false, fmt.Errorf("%w: version %q is not known", ErrOffsets, lines[0])
	}
	if count, err := strconv.Atoi(lines[1]); err != nil || count != len(lines)-2 {
		return 0, false, fmt.Errorf("%w: %q entries announced, %d there", ErrOffsets, lines[1], len(lines)-2)
	}
	for _, line := range lines[2:] {
		fields := strings.Split(line, " ")
		if len(fields) != 3 {
			return 0, false, fmt.Errorf("%w: line %q", ErrOffsets, line)
		}
		n, err := parseNumber(fields[2], math.MaxInt64)
		if err != nil {
			return 0, false, fmt.Errorf("%w: line %q: %w", ErrOffsets, line, err)
		}
		if fields[0] == topic && fields[1] == strconv.FormatInt(int64(id), 10) {
			o, ok = record.Offset(n), true
		}
	}
	return o, ok, nil
}
