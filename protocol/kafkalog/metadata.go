package kafkalog

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// ErrPartitionMetadata says that a partition.metadata file cannot be read.
var ErrPartitionMetadata = errors.New("partition.metadata cannot be read")

// topicIDBytes is the size of a topic id, a UUID.
const topicIDBytes = 16

// topicIDText is how Kafka writes a UUID: URL-safe base64 without padding, 22 characters. Strict, so that one id has one
// spelling.
func topicIDText() *base64.Encoding { return base64.RawURLEncoding.Strict() }

// PartitionMetadata returns the text of a partition.metadata file for a topic id of 32 hex digits.
func PartitionMetadata(topicID string) ([]byte, error) {
	id, err := hex.DecodeString(topicID)
	if err != nil || len(id) != topicIDBytes {
		return nil, fmt.Errorf("%w: topic id %q is not 32 hex digits", ErrPartitionMetadata, topicID)
	}
	return []byte("version: 0\ntopic_id: " + topicIDText().EncodeToString(id) + "\n"), nil
}

// ParsePartitionMetadata returns the topic id, as 32 lower-case hex digits, from the text of a partition.metadata file.
func ParsePartitionMetadata(text []byte) (topicID string, err error) {
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\r\n")
		name, value, ok := strings.Cut(line, ": ")
		if _, twice := fields[name]; !ok || twice {
			return "", fmt.Errorf("%w: line %q", ErrPartitionMetadata, line)
		}
		fields[name] = value
	}
	if v := fields["version"]; v != "0" {
		return "", fmt.Errorf("%w: version %q is not known", ErrPartitionMetadata, v)
	}
	id, err := topicIDText().DecodeString(fields["topic_id"])
	if err != nil || len(id) != topicIDBytes {
		return "", fmt.Errorf("%w: topic id %q", ErrPartitionMetadata, fields["topic_id"])
	}
	return hex.EncodeToString(id), nil
}
