package partition

import "iter"

// Keys are many keys in one piece of memory, as they travel. The zero value is empty.
type Keys struct {
	Blob    []byte   // one key after the other
	Lengths []uint32 // of each
}

// Append adds a copy of key.
func (k *Keys) Append(key []byte) {
	k.Blob, k.Lengths = append(k.Blob, key...), append(k.Lengths, uint32(len(key)))
}

// Len is the number of keys.
func (k *Keys) Len() int { return len(k.Lengths) }

// Reset takes all keys out and keeps the memory.
func (k *Keys) Reset() { k.Blob, k.Lengths = k.Blob[:0], k.Lengths[:0] }

// All goes through the keys in their order. A key is valid until Keys changes.
func (k *Keys) All() iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		rest := k.Blob
		for i, n := range k.Lengths {
			if !yield(i, rest[:n:n]) {
				return
			}
			rest = rest[n:]
		}
	}
}
