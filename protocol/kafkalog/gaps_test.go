package kafkalog

import (
	"bytes"
	"errors"
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

func TestAdoptedBelowIsReadBackAndDamageIsNoticed(t *testing.T) {
	for _, offset := range []record.Offset{0, 7, 1 << 40} {
		text := AppendAdoptedBelow([]byte("x"), offset)[1:]
		if got, err := ParseAdoptedBelow(text); err != nil || got != offset {
			t.Errorf("%d: %d, %v", offset, got, err)
		}
		for i := range text {
			bad := bytes.Clone(text)
			bad[i] ^= 1
			if got, err := ParseAdoptedBelow(bad); !errors.Is(err, ErrAdoptedBelow) {
				t.Errorf("%q is read as %d, %v", bad, got, err)
			}
			if _, err := ParseAdoptedBelow(text[:i]); !errors.Is(err, ErrAdoptedBelow) {
				t.Errorf("%q: %v", text[:i], err)
			}
		}
	}
}
