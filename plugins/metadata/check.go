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

// Check returns the first fault of t that can be seen without a store: ErrBadKey for an illegal key or one that is
// written twice, ErrTooLarge for a value.
func (t Txn) Check() error {
	for _, g := range t.Guards {
		if err := CheckKey(g.Key); err != nil {
			return err
		}
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
