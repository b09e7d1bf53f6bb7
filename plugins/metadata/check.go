package metadata

import (
	"fmt"
	"strings"
)

// KeyBytesMax bounds a key. A topic's name has at most 249 bytes; the rest is room for the path around it.
const KeyBytesMax = 1024

// CheckKey returns ErrBadKey, wrapped, unless key is an absolute path of legal segments.
func CheckKey(key string) error {
	if len(key) > KeyBytesMax {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrBadKey, len(key), KeyBytesMax)
	}
	rest, ok := strings.CutPrefix(key, "/")
	if !ok {
		return fmt.Errorf("%w: %q has no leading slash", ErrBadKey, key)
	}
	for seg := range strings.SplitSeq(rest, "/") {
		if !legalSegment(seg) {
			return fmt.Errorf("%w: %q", ErrBadKey, key)
		}
	}
	return nil
}

// CheckPrefix returns ErrBadKey, wrapped, unless prefix is "/" or a legal key with a slash after it.
func CheckPrefix(prefix string) error {
	if prefix == "/" {
		return nil
	}
	key, ok := strings.CutSuffix(prefix, "/")
	if !ok {
		return fmt.Errorf("%w: prefix %.80q does not end in a slash", ErrBadKey, prefix)
	}
	return CheckKey(key)
}

// opBytes is what an operation costs in a transaction beside keys and values: its frame, its part in the record of
// changes, and who may read it.
const opBytes = 256

// Size is what counts against TxnBytesMax: for each guard, put and delete 256 bytes and twice its key, and the values.
func (t Txn) Size() int {
	size := opBytes * (len(t.Guards) + len(t.Puts) + len(t.Deletes))
	for _, g := range t.Guards {
		size += 2 * len(g.Key)
	}
	for _, p := range t.Puts {
		size += 2*len(p.Key) + len(p.Value)
	}
	for _, key := range t.Deletes {
		size += 2 * len(key)
	}
	return size
}

// Check returns the first fault of t that can be seen without a store: ErrBadKey for an illegal key or one that is
// written or guarded twice, ErrTooLarge for a value or the whole.
func (t Txn) Check() error {
	guarded := make(map[string]struct{}, len(t.Guards))
	for _, g := range t.Guards {
		if err := CheckKey(g.Key); err != nil {
			return err
		}
		if _, twice := guarded[g.Key]; twice {
			return fmt.Errorf("%w: %q is guarded twice in one transaction", ErrBadKey, g.Key)
		}
		guarded[g.Key] = struct{}{}
		if g.Version < Absent {
			return fmt.Errorf("%w: guard on %q wants version %d", ErrBadKey, g.Key, g.Version)
		}
	}
	written := make(map[string]struct{}, len(t.Puts)+len(t.Deletes))
	once := func(key string) error {
		if err := CheckKey(key); err != nil {
			return err
		}
		if _, twice := written[key]; twice {
			return fmt.Errorf("%w: %q is written twice in one transaction", ErrBadKey, key)
		}
		written[key] = struct{}{}
		return nil
	}
	for _, p := range t.Puts {
		if err := once(p.Key); err != nil {
			return err
		}
		if len(p.Value) > ValueBytesMax {
			return fmt.Errorf("%w: %q has %d bytes, at most %d", ErrTooLarge, p.Key, len(p.Value), ValueBytesMax)
		}
	}
	for _, key := range t.Deletes {
		if err := once(key); err != nil {
			return err
		}
	}
	if size := t.Size(); size > TxnBytesMax {
		return fmt.Errorf("%w: the transaction counts as %d bytes, at most %d", ErrTooLarge, size, TxnBytesMax)
	}
	return nil
}

func legalSegment(seg string) bool {
	if seg == "" || seg == "." || seg == ".." {
		return false
	}
	for i := range len(seg) {
		c := seg[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}
