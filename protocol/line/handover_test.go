package line

import (
	"bytes"
	"fmt"
	"math/rand/v2"
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
	for i, size := range []int{20, 70_000, 300_000, 20, 100_000, 150_000, 150_000, 150_001, 1, 0, 80_000} {
		end := []string{"\r\n", "\n", "\n"}[i%3]
		many += fmt.Sprintf("PUB f %d\r\n%s%s", size, strings.Repeat(string(rune('a'+i)), size), end)
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
		if n == 0 {
			t.Fatal("nothing can be read")
		}
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
			if len(rest) > 0 {
				rest = rest[read(p, rest[:min(size, len(rest))]):]
			}
			if len(rest2) > 0 {
				rest2 = rest2[read(alone, rest2[:min(size, len(rest2))]):]
			}
			taken := *p
			take(&taken)
			p.HandOver(&taken, spare)
			got, plain = append(got, take(p)...), append(plain, take(alone)...)
			if p.Buffered() != 0 {
				t.Fatalf("cut every %d bytes: %d bytes are left that are no command", size, p.Buffered())
			}
			p, spare = spare, p
		}
		for _, p := range []*Parser{p, spare, alone} {
			if n := len(p.Buffer()); n == 0 || n > bufferBytesMax {
				t.Fatalf("cut every %d bytes: in the end there is room for %d bytes", size, n)
			}
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

// TestParsersShareBuffers reads several streams by turns, with payloads below and above what a parser's own buffer takes: what
// one gave back is the next one's, and nobody sees it change under a command, or while it holds a payload that was taken.
func TestParsersShareBuffers(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	type stream struct {
		parser *Parser
		bytes  []byte
		sizes  []int
		fill   byte
	}
	sizes := []int{0, 1, 100, 60_000, bufferBytesMax, 66_000, 130_000, 260_000, 1 << 20, bodyBytesMax + 1}
	streams := make([]*stream, 4)
	for i := range streams {
		s := &stream{parser: NewParser(Limits{ControlLine: 4096, Payload: 8 << 20}), fill: byte('a' + i)}
		for range 40 {
			size := sizes[random.IntN(len(sizes))]
			size = max(0, size-random.IntN(20))
			s.sizes = append(s.sizes, size)
			s.bytes = fmt.Appendf(s.bytes, "PUB a %d\r\n", size)
			s.bytes = append(s.bytes, bytes.Repeat([]byte{s.fill}, size)...)
			s.bytes = append(s.bytes, []string{"\n", "\r\n"}[random.IntN(2)]...)
		}
		streams[i] = s
	}
	type kept struct {
		body    *Body
		payload []byte
		fill    byte
	}
	var taken []kept
	freed := 0
	intact := func(payload []byte, size int, fill byte) {
		if n := bytes.Count(payload, []byte{fill}); len(payload) != size || n != size {
			t.Fatalf("a payload of %d bytes came as %d, %d of them its own", size, len(payload), n)
		}
	}
	var cmd Command
	for len(streams) > 0 {
		i := random.IntN(len(streams))
		s := streams[i]
		buf := s.parser.Buffer()
		if len(buf) == 0 {
			t.Fatal("no room to read into")
		}
		n := copy(buf, s.bytes[:min(len(s.bytes), 1+random.IntN(300_000))])
		s.bytes = s.bytes[n:]
		s.parser.Advance(n)
		for {
			ok, err := s.parser.Next(&cmd)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			intact(cmd.Payload, s.sizes[0], s.fill)
			if random.IntN(3) == 0 {
				if body := s.parser.TakeBody(); body != nil {
					taken = append(taken, kept{body, cmd.Payload, s.fill})
				}
			}
			for len(taken) > 3 {
				intact(taken[0].payload, len(taken[0].payload), taken[0].fill)
				taken[0].body.Free()
				taken = taken[1:]
				freed++
			}
			s.sizes = s.sizes[1:]
		}
		if len(s.bytes) == 0 {
			if len(s.sizes) > 0 || len(s.parser.Buffer()) == 0 || s.parser.shared != nil {
				t.Fatalf("in the end %d payloads are missing, and the buffer is of %d bytes", len(s.sizes), len(s.parser.buf))
			}
			streams = slices.Delete(streams, i, i+1)
		}
	}
	if freed < 10 {
		t.Errorf("%d payloads were taken: too few to say anything", freed)
	}
}
