package line

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

var testLimits = Limits{ControlLine: 64, Payload: 100}

// transcript parses input in the given portions and writes down what came of it.
func transcript(input []byte, portion int) string {
	p := NewParser(testLimits)
	var out strings.Builder
	var c Command
	for len(input) > 0 {
		n := copy(p.Buffer(), input[:min(portion, len(input))])
		p.Advance(n)
		input = input[n:]
		for {
			ok, err := p.Next(&c)
			if err != nil {
				var e *errcode.Error
				errors.As(err, &e)
				return out.String() + "closed " + string(e.Code)
			}
			if !ok {
				break
			}
			out.WriteString(c.Verb.String())
			for _, a := range c.Args {
				fmt.Fprintf(&out, " [%s]", a)
			}
			if c.Header != nil {
				fmt.Fprintf(&out, " h=%q", c.Header)
			}
			if c.Payload != nil {
				fmt.Fprintf(&out, " p=%q", c.Payload)
			}
			if c.Err != nil {
				out.WriteString(" !" + string(c.Err.Code))
			}
			out.WriteByte('\n')
		}
	}
	return strings.TrimSuffix(out.String(), "\n")
}

func TestParserTakesCommandsApart(t *testing.T) {
	long := strings.Repeat("x", 101)
	tests := []struct{ name, in, want string }{
		{"crlf", "PING\r\nPONG\r\n", "PING\nPONG"},
		{"lf, lower case, tabs, blanks in front", "  ping\n\tsub\ta  1 \n", "PING\nSUB [a] [1]"},
		{"empty lines", "\r\n\n  \nPING\n", "PING"},
		{"pub", "PUB a 5\r\nhello\r\n", `PUB [a] p="hello"`},
		{"pub by lf", "PUB a 5\nhello\n", `PUB [a] p="hello"`},
		{"pub of nothing", "PUB a 0\r\n\r\nPING\r\n", "PUB [a] p=\"\"\nPING"},
		{"payload holds line ends", "PUB a 4\r\n\r\n\r\n\r\n", `PUB [a] p="\r\n\r\n"`},
		{"pub with reply", "PUB a b 1\nx\n", `PUB [a] [b] p="x"`},
		{"hpub", "HPUB a 12 17\r\nNATS/1.0\r\n\r\nhello\r\n", `HPUB [a] h="NATS/1.0\r\n\r\n" p="hello"`},
		{"header larger than total", "HPUB a 9 5\nhello\nPING\n", "HPUB [a] h=\"hello\" p=\"\" !BAD_HEADERS\nPING"},
		{"pub without size stays in step", "PUB a\nPING\n", "PUB [a] !BAD_ARGS\nPING"},
		{"pub without anything", "PUB\nPING\n", "PUB !BAD_ARGS\nPING"},
		{"too many arguments take their payload along", "PUB a b c 4\nPING\nPING\n", "PUB [a] [b] [c] p=\"PING\" !BAD_ARGS\nPING"},
		{"size is no number", "PUB a five\nhello\n", "closed BAD_SIZE"},
		{"size is negative", "PUB a -1\n", "closed BAD_SIZE"},
		{"size has a sign", "PUB a +1\nx\n", "closed BAD_SIZE"},
		{"size has ten digits", "PUB a 0000000001\nx\n", "closed BAD_SIZE"},
		{"size in another script", "PUB a ١\nx\n", "closed BAD_SIZE"},
		{"size above the limit", "PUB a 101\n" + long + "\n", "closed BAD_SIZE"},
		{"size at the limit", "PUB a 100\n" + long[1:] + "\n", `PUB [a] p="` + long[1:] + `"`},
		{"payload longer than said", "PUB a 3\nhello\n", "closed BAD_SIZE"},
		{"payload followed by a lone CR", "PUB a 1\nx\rPING\n", "closed BAD_SIZE"},
		{"send", "SEND a hello world\n", `SEND [a] p="hello world"`},
		{"send keeps blanks", "SEND a   x \t\n", `SEND [a] p="  x \t"`},
		{"send: one CR belongs to the line end", "SEND a x\r\r\n", `SEND [a] p="x\r"`},
		{"send of nothing", "SEND a\nSEND a \nSEND a\r\n", "SEND [a] p=\"\"\nSEND [a] p=\"\"\nSEND [a] p=\"\""},
		{"send without address", "SEND\nSEND  \nPING\n", "SEND p=\"\" !BAD_ARGS\nSEND p=\"\" !BAD_ARGS\nPING"},
		{"send at the limit", "SEND a " + long[1:] + "\r\n", `SEND [a] p="` + long[1:] + `"`},
		{"send above the limit", "SEND a " + long + "\n", "closed BAD_SIZE"},
		{"send that never ends", "SEND a " + long + long, "closed BAD_SIZE"},
		{"send with a long address", "SEND " + long + " x\n", "closed LINE_TOO_LONG"},
		{"connect", "CONNECT {\"a\": \"b c\"}\r\n", `CONNECT [{"a": "b c"}]`},
		{"unknown verb", "GIMME a\nPING\n", "? [a] !BAD_VERB\nPING"},
		{"known, not offered", "COMMIT g 1 t/0@1\nPING\n", "COMMIT [g] [1] [t/0@1] !NOT_SUPPORTED\nPING"},
		{"produce takes its batches along", "PRODUCE t/0 acks=all 4\nPING\nPING\n", "PRODUCE [t/0] [acks=all] p=\"PING\"\nPING"},
		{"fetch by JSON takes it along", "FETCH 4\nPING\nFETCH t/0@1 max=1\n", "FETCH [4] p=\"PING\"\nFETCH [t/0@1] [max=1]"},
		{"line at the limit", "SUB " + long[:60] + "\nPING\n", "SUB [" + long[:60] + "]\nPING"},
		{"line above the limit", "SUB " + long[:61] + "\n", "closed LINE_TOO_LONG"},
		{"line above the limit by crlf", "SUB " + long[:61] + "\r\n", "closed LINE_TOO_LONG"},
		{"line at the limit by crlf", "SUB " + long[:60] + "\r\n", "SUB [" + long[:60] + "]"},
		{"line that never ends", long, "closed LINE_TOO_LONG"},
		{"tls", "\x16\x03\x01\x00\xa5\nPING\n", "closed NOT_SUPPORTED"},
		{"tls behind a command", "PING\n\x16\x03", "PING\nclosed NOT_SUPPORTED"},
		{"no tls", "\x16\nPING\n\x16\x02\n", "? !BAD_VERB\nPING\n? !BAD_VERB"},
		{"binary", "\x00\x01\xff\nPING\n", "? !BAD_VERB\nPING"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, portion := range []int{len(tt.in), 1, 2, 3, 7, 64} {
				if got := transcript([]byte(tt.in), portion); got != tt.want {
					t.Errorf("in portions of %d:\n%s\nwant:\n%s", portion, got, tt.want)
				}
			}
		})
	}
}

func TestParserHoldsNoMoreThanItsLimits(t *testing.T) {
	p := NewParser(Limits{ControlLine: 4096, Payload: 1 << 20})
	if err := parseAll(p, []byte("PUB a 1000000\n")); err != nil {
		t.Fatal(err)
	}
	p.Buffer()
	if got := len(p.buf); got > 1<<20+8192 {
		t.Errorf("buffer of %d bytes for a payload of 1000000", got)
	}
	if err := parseAll(p, append(bytes.Repeat([]byte{'x'}, 1000000), "\r\n"...)); err != nil {
		t.Fatal(err)
	}
	p.Buffer()
	if got := len(p.buf); got > bufferBytesMax {
		t.Errorf("buffer of %d bytes is kept after a large payload, at most %d expected", got, bufferBytesMax)
	}
	if err := parseAll(p, bytes.Repeat([]byte{'x'}, 1<<20)); err == nil {
		t.Error("a line of 1 MiB is not refused")
	}
}

// parseAll parses b and returns the fatal error, if any.
func parseAll(p *Parser, b []byte) error {
	var c Command
	for len(b) > 0 {
		n := copy(p.Buffer(), b)
		p.Advance(n)
		b = b[n:]
		for {
			ok, err := p.Next(&c)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
		}
	}
	return nil
}

func TestNearestFindsTheVerbThatWasMeant(t *testing.T) {
	for word, want := range map[string]Verb{
		"SUBSCRIBE": Sub, "PUBLISH": Pub, "pign": Ping, "TOPICS": Topic, "SNED": Send, "hlep": Help, "QIUT": Quit,
		"GTE": Get, "unsbu": Unsub, "xyzzy": Unknown, "": Unknown, "\xff\xfe": Unknown, strings.Repeat("SEN", 10): Unknown,
	} {
		if got := Nearest([]byte(word)); got != want {
			t.Errorf("Nearest(%q) = %s, want %s", word, got, want)
		}
	}
}

func TestNextDoesNotAllocate(t *testing.T) {
	p := NewParser(Limits{ControlLine: 4096, Payload: 1 << 20})
	in := bytes.Repeat([]byte("PUB orders 11\r\nhello world\r\n"), 100)
	if err := parseAll(p, in); err != nil {
		t.Fatal(err)
	}
	var c Command
	allocs := testing.AllocsPerRun(10, func() {
		for b := in; len(b) > 0; {
			n := copy(p.Buffer(), b)
			p.Advance(n)
			b = b[n:]
			for {
				if ok, err := p.Next(&c); err != nil || !ok {
					break
				}
			}
		}
	})
	if allocs > 0 {
		t.Errorf("%v allocations for 100 publishes", allocs)
	}
}

func FuzzParser(f *testing.F) {
	for _, s := range []string{"PUB a 5\r\nhello\r\n", "HPUB a b 12 17\nNATS/1.0\r\n\r\nhello\n", "SEND a b\r\n", "CONNECT {}\n", "SUB a 1\nGET a@-3 5\n"} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, portion uint8) {
		whole := transcript(in, max(1, len(in)))
		if cut := transcript(in, int(portion)+1); cut != whole {
			t.Errorf("cut differently:\n%s\nwhole:\n%s", cut, whole)
		}
	})
}

func BenchmarkParser(b *testing.B) {
	p := NewParser(Limits{ControlLine: 4096, Payload: 1 << 20})
	in := bytes.Repeat([]byte("PUB orders 100\r\n"+strings.Repeat("x", 100)+"\r\n"), 500)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if err := parseAll(p, in); err != nil {
			b.Fatal(err)
		}
	}
}
