package line

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestCommandsAreHandedOverWhereverReadsAreCut reads the same twice, by the same parsers and with handing over; payloads that
// exceed a parser's own buffer among them.
func TestCommandsAreHandedOverWhereverReadsAreCut(t *testing.T) {
	few := "PUB a 3\r\nabc\r\n\r\nPING\nSEND a#k some text\r\nPUB b 0\r\n\r\nHPUB c 12 14\r\nNATS/1.0\r\n\r\nhi\r\nPUB d 3000\r\n" +
		strings.Repeat("x", 3000) + "\r\nPUB e 1\r\ny\r\nQUIT\r\n"
	many := few
	for i, size := range []int{70_000, 300_000, 20, 150_000, 150_000, 1} {
		many += fmt.Sprintf("PUB f %d\r\n%s\r\n", size, strings.Repeat(string(rune('a'+i)), size))
	}
	var sizes []int
	for size := 1; size <= len(few); size = size + 1 + size/8 {
		sizes = append(sizes, size)
	}
	handOverWherever(t, few, sizes)
	handOverWherever(t, many, []int{997, 10_000, 65_536, 100_001, 1 << 20})
}

func handOverWherever(t *testing.T, text string, sizes []int) {
	limits := Limits{ControlLine: 4096, Payload: 1 << 20}
	stream := []byte(text)
	take := func(p *Parser) (all []string) {
		var cmd Command
		for {
			ok, err := p.Next(&cmd)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return all
			}
			all = append(all, fmt.Sprintf("%v %q %q %q", cmd.Verb, cmd.Args, cmd.Header, cmd.Payload))
		}
	}
	read := func(p *Parser, b []byte) int {
		n := copy(p.Buffer(), b)
		p.Advance(n)
		return n
	}
	var want []string
	whole := NewParser(limits)
	for rest := stream; len(rest) > 0; want = append(want, take(whole)...) {
		rest = rest[read(whole, rest):]
	}
	for _, size := range sizes {
		var got, plain []string
		p, spare, alone := NewParser(limits), NewParser(limits), NewParser(limits)
		for rest, rest2 := stream, stream; len(rest) > 0 || len(rest2) > 0; {
			rest = rest[read(p, rest[:min(size, len(rest))]):]
			rest2 = rest2[read(alone, rest2[:min(size, len(rest2))]):]
			taken := *p
			take(&taken)
			p.HandOver(&taken, spare)
			got, plain = append(got, take(p)...), append(plain, take(alone)...)
			if p.Buffered() != 0 {
				t.Fatalf("cut every %d bytes: %d bytes are left that are no command", size, p.Buffered())
			}
			p, spare = spare, p
		}
		if !slices.Equal(got, want) || !slices.Equal(plain, want) {
			t.Fatalf("cut every %d bytes: %.200q and %.200q; want %.200q", size, got, plain, want)
		}
	}
}

func TestHeaderKey(t *testing.T) {
	for block, want := range map[string]string{
		"NATS/1.0\r\nKey: anna\r\n\r\n":                           "anna",
		"NATS/1.0\nA: b\nKey:  an na \nKey: other\n\n":            "an na",
		"NATS/1.0\r\nKey:\r\n\r\n":                                "",
		"NATS/1.0\r\nTimestamp: x\r\nKey-Base64: YQA=\r\n\r\n":    "a\x00",
		"NATS/1.0\r\nKey-Base64: ?\r\n\r\n":                       "none",
		"NATS/1.0\r\nkey: a\r\nKeys: b\r\nKey-: c\r\nKey\r\n\r\n": "none",
		"NATS/1.0\r\n\r\nKey: behind\r\n":                         "none",
		"":                                                        "none",
	} {
		key := HeaderKey([]byte(block))
		if key == nil != (want == "none") || key != nil && !bytes.Equal(key, []byte(want)) {
			t.Errorf("%q: %q; want %q", block, key, want)
		}
	}
	block := []byte("NATS/1.0\r\nTimestamp: 2026-11-22T08:00:00.000Z\r\nKey: anna\r\n\r\n")
	if n := testing.AllocsPerRun(100, func() { HeaderKey(block) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
