package storeframe_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/storeframe"
)

func requests() []storeframe.Request {
	return []storeframe.Request{
		{Op: storeframe.OpAppend, Length: 70, Lease: 1 << 40, Base: 5, Next: 9, Epoch: 3, Sum: 0xdeadbeef, MaxTimestamp: -1},
		{Op: storeframe.OpAppend, Length: storeframe.PayloadMax, Base: 0, Next: 1},
		{Op: storeframe.OpRead, Base: 1 << 50, Limit: 1},
		{Op: storeframe.OpAppend, Length: 1 << 20, Placed: true, Base: 5, Next: 6},
	}
}

func answers() []storeframe.Answer {
	return []storeframe.Answer{
		{Op: storeframe.OpAppend, Base: 5, Epoch: 3, Sum: 0xdeadbeef},
		{Op: storeframe.OpAppend, Status: storeframe.Full, Length: storeframe.TextMax, Base: 5},
		{Op: storeframe.OpRead, Length: storeframe.PayloadMax, Base: 7},
		{Op: storeframe.OpRead, Status: storeframe.NotOpen, Length: 3},
		{Op: storeframe.OpAppend, Window: true, Base: 5, Sum: 1},
		{Op: storeframe.OpAppend, Status: storeframe.Failed, Window: true, Length: 4},
	}
}

func TestHeadersComeBack(t *testing.T) {
	for _, r := range requests() {
		h := r.AppendTo([]byte("x"))[1:]
		if got, err := storeframe.ParseRequest(h); err != nil || got != r {
			t.Errorf("%+v came back as %+v, %v", r, got, err)
		}
	}
	for _, a := range answers() {
		h := a.AppendTo([]byte("x"))[1:]
		if got, err := storeframe.ParseAnswer(h); err != nil || got != a {
			t.Errorf("%+v came back as %+v, %v", a, got, err)
		}
	}
}

func TestHeadersThatCannotBe(t *testing.T) {
	good, read := requests()[0], requests()[2]
	for name, spoil := range map[string]func(h []byte) []byte{
		"short":               func(h []byte) []byte { return h[:len(h)-1] },
		"long":                func(h []byte) []byte { return append(h, 0) },
		"a reserved byte":     func(h []byte) []byte { h[6] = 1; return h },
		"an unknown op":       func(h []byte) []byte { h[4] = 9; return h },
		"an unknown place":    func(h []byte) []byte { h[5] = 2; return h },
		"a payload too large": func(h []byte) []byte { h[0] = 0xff; return h },
		"no payload":          func(h []byte) []byte { copy(h, []byte{0, 0, 0, 0}); return h },
		"a negative base":     func(h []byte) []byte { h[16] = 0x80; return h },
		"no offsets":          func(h []byte) []byte { copy(h[24:], h[16:24]); return h },
	} {
		if r, err := storeframe.ParseRequest(spoil(good.AppendTo(nil))); !errors.Is(err, storeframe.ErrFrame) {
			t.Errorf("a request with %s: %+v, %v", name, r, err)
		}
	}
	for name, spoil := range map[string]func(h []byte){
		"a payload": func(h []byte) { h[3] = 1 }, "a place": func(h []byte) { h[5] = 1 }, "a lease": func(h []byte) { h[15] = 1 }, "no limit": func(h []byte) { h[31] = 0 },
		"an epoch": func(h []byte) { h[35] = 1 }, "a time": func(h []byte) { h[47] = 1 },
	} {
		h := read.AppendTo(nil)
		spoil(h)
		if r, err := storeframe.ParseRequest(h); !errors.Is(err, storeframe.ErrFrame) {
			t.Errorf("a read with %s: %+v, %v", name, r, err)
		}
	}
	for name, spoil := range map[string]func(h []byte) []byte{
		"short":             func(h []byte) []byte { return h[:len(h)-1] },
		"a reserved byte":   func(h []byte) []byte { h[7] = 1; return h },
		"an unknown op":     func(h []byte) []byte { h[4] = 0; return h },
		"an unknown window": func(h []byte) []byte { h[6] = 2; return h },
		"a read's window":   func(h []byte) []byte { h[4], h[6] = byte(storeframe.OpRead), 1; return h },
		"an unknown status": func(h []byte) []byte { h[5] = 200; return h },
		"a payload":         func(h []byte) []byte { h[3] = 1; return h },
	} {
		ok := answers()[0]
		if a, err := storeframe.ParseAnswer(spoil(ok.AppendTo(nil))); !errors.Is(err, storeframe.ErrFrame) {
			t.Errorf("an answer with %s: %+v, %v", name, a, err)
		}
	}
}

func batch(base record.Offset, value string) []byte {
	var b record.Builder
	b.Reset(nil)
	b.Append(&record.Record{Value: []byte(value)})
	return b.Finish(base, 1)
}

func TestSumTellsGroupsApart(t *testing.T) {
	group := append(batch(0, "one"), batch(1, "two")...)
	sum, err := storeframe.Sum(group)
	if err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string][]byte{
		"another value":  append(batch(0, "one"), batch(1, "owt")...),
		"another offset": append(batch(0, "one"), batch(2, "two")...),
		"one batch less": batch(0, "one"),
	} {
		if s, err := storeframe.Sum(other); err != nil || s == sum {
			t.Errorf("%s: %08x and %08x, %v", name, s, sum, err)
		}
	}
	for name, bad := range map[string][]byte{"cut": group[:len(group)-1], "with a tail": append(bytes.Clone(group), 0), "garbage": []byte("garbage")} {
		if s, err := storeframe.Sum(bad); !errors.Is(err, storeframe.ErrFrame) {
			t.Errorf("a group that is %s: %08x, %v", name, s, err)
		}
	}
}

func FuzzHeaders(f *testing.F) {
	for _, r := range requests() {
		f.Add(r.AppendTo(nil))
	}
	for _, a := range answers() {
		f.Add(a.AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, h []byte) {
		if r, err := storeframe.ParseRequest(h); err == nil && !bytes.Equal(r.AppendTo(nil), h) {
			t.Errorf("request % x came back as % x", h, r.AppendTo(nil))
		}
		if a, err := storeframe.ParseAnswer(h); err == nil && !bytes.Equal(a.AppendTo(nil), h) {
			t.Errorf("answer % x came back as % x", h, a.AppendTo(nil))
		}
		_, _ = storeframe.Sum(h)
	})
}
