package kafkalog

import (
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// AdoptedBelowName is a file of ours in a directory that came from elsewhere: below the offset it holds, batches, and
// records of a batch, may be missing, because the log was compacted there.
//
//	<offset>\n
//	crc32c <CRC-32C of the line before, in hex>\n
const AdoptedBelowName = "adopted-below"

// ErrAdoptedBelow says that the file is not what was written.
var ErrAdoptedBelow = errors.New(AdoptedBelowName + " is damaged")

// AppendAdoptedBelow appends the content of the file.
func AppendAdoptedBelow(dst []byte, offset record.Offset) []byte {
	line := fmt.Sprintf("%d\n", offset)
	return fmt.Appendf(append(dst, line...), "crc32c %08x\n", crc32.Checksum([]byte(line), crc32.MakeTable(crc32.Castagnoli)))
}

// ParseAdoptedBelow reads the content of the file. ErrAdoptedBelow where it is damaged.
func ParseAdoptedBelow(text []byte) (record.Offset, error) {
	line, _, _ := strings.Cut(string(text), "\n")
	offset, err := strconv.ParseInt(line, 10, 64)
	if err != nil || offset < 0 || string(AppendAdoptedBelow(nil, record.Offset(offset))) != string(text) {
		return 0, fmt.Errorf("%w: %.40q", ErrAdoptedBelow, text)
	}
	return record.Offset(offset), nil
}
