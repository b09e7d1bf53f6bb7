package codec

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

func TestPackedBatchesReadBack(t *testing.T) {
	for _, c := range []record.Codec{record.CodecNone, record.CodecGzip, record.CodecSnappy, record.CodecLZ4, record.CodecZstd} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			p, err := NewPacker(c)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{200, 1, 3000, 2} { // the packer is used again
				var b record.Builder
				b.Reset(nil)
				for i := range n {
					b.Append(&record.Record{Timestamp: int64(1000 + i), Key: fmt.Appendf(nil, "key %d", i), Value: bytes.Repeat([]byte("abc"), 30+i%7)})
				}
				plain := b.Finish(5, 2)
				packed, err := p.Pack(plain)
				if err != nil {
					t.Fatal(err)
				}
				if err := packed.Check(); err != nil {
					t.Fatalf("%d records: %v", n, err)
				}
				if n >= 200 && c != record.CodecNone && (packed.Codec() != c || len(packed) >= len(plain)/2) {
					t.Fatalf("%d records: codec %d, %d bytes of %d", n, packed.Codec(), len(packed), len(plain))
				}
				var r Reader
				r.Reset(packed, 1<<20)
				var got, want record.Record
				it := record.NewIterator(plain)
				for {
					o, ok := r.Next(&got)
					wantO, more := it.Next(&want)
					if ok != more || o != wantO || !bytes.Equal(got.Key, want.Key) || !bytes.Equal(got.Value, want.Value) || got.Timestamp != want.Timestamp {
						t.Fatalf("offset %d, %t; want %d, %t (%v)", o, ok, wantO, more, r.Err())
					}
					if !ok {
						break
					}
				}
				if r.Err() != nil {
					t.Fatal(r.Err())
				}
				r.Close()
			}
		})
	}
}

func TestWhatDoesNotBecomeSmallerIsLeftAsItIs(t *testing.T) {
	noise := make([]byte, 4096)
	dice := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(dice.Uint32())
	}
	var b record.Builder
	b.Reset(nil)
	b.Append(&record.Record{Value: noise})
	plain := b.Finish(0, 0)
	for _, c := range []record.Codec{record.CodecGzip, record.CodecSnappy, record.CodecLZ4, record.CodecZstd} {
		p, err := NewPacker(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Pack(plain)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("codec %d: %d bytes became %d, %v", c, len(plain), len(got), err)
		}
	}
	if _, err := NewPacker(7); !errors.Is(err, record.ErrCodec) {
		t.Errorf("codec 7: %v", err)
	}
}
