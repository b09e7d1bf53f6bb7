package storage

import (
	"encoding/hex"
	"fmt"
	"io/fs"
)

// ErrInvalid says that a request cannot be right, whatever the store holds.
var ErrInvalid = fmt.Errorf("request is not valid: %w", fs.ErrInvalid)

// topicNameMax is what Kafka allows; with a partition's number it is still a file's name.
const topicNameMax = 249

// topicIDBytes is the size of a topic id.
const topicIDBytes = 16

// ValidTopic refuses what is no topic's name, and so must not become part of a path: anything but 1 to 249 of
// A–Z a–z 0–9 . _ -, and the names . and ..
func ValidTopic(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > topicNameMax {
		return fmt.Errorf("%w: topic name %q", ErrInvalid, name)
	}
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			return fmt.Errorf("%w: topic name %q", ErrInvalid, name)
		}
	}
	return nil
}

// Valid refuses a partition that cannot be one. A store checks it before it makes a name of it.
func (p Partition) Valid() error {
	if err := ValidTopic(p.Topic); err != nil {
		return err
	}
	if id, err := hex.DecodeString(p.TopicID); err != nil || len(id) != topicIDBytes {
		return fmt.Errorf("%w: topic id %q", ErrInvalid, p.TopicID)
	}
	if p.ID < 0 {
		return fmt.Errorf("%w: partition %d", ErrInvalid, p.ID)
	}
	return nil
}
