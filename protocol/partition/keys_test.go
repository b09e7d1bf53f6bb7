package partition

import "testing"

func TestKeysComeBackInOrder(t *testing.T) {
	var k Keys
	for range 2 { // the second time in the memory of the first
		k.Reset()
		want := []string{"", "a", "bc", "", "def"}
		for _, w := range want {
			k.Append([]byte(w))
		}
		n := 0
		for i, key := range k.All() {
			if i != n || string(key) != want[i] || cap(key) != len(key) {
				t.Errorf("key %d is %q", i, key)
			}
			n++
		}
		if n != len(want) || k.Len() != n {
			t.Errorf("%d of %d keys", n, k.Len())
		}
	}
	for i := range k.All() {
		if i > 1 {
			t.Error("it goes on")
		}
		if i == 1 {
			break
		}
	}
}
