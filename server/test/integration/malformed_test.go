package integration

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

var rewrite = flag.Bool("rewrite", false, "write what the server answers into testdata/malformed.txt; commit only a diff you can explain")

const (
	malformedFile = "testdata/malformed.txt"
	// malformedMin is how many inputs the table has at least.
	malformedMin = 300
	// onebyoneMax is the longest input that is sent one byte at a time as well.
	onebyoneMax = 2000
)

// malformed is what no client should send, and what the server does about it.
type malformed struct {
	input  string
	answer []string // lines, before the PONG that follows or the end
	closed bool
}

// escaped is a byte in a notation of its own: \r \n \t \\ \xNN, and \{300*x} for x 300 times.
var escaped = regexp.MustCompile(`\\(?:r|n|t|\\|x[0-9a-f]{2}|\{\d+\*.\})`)

func unescape(text string) string {
	return escaped.ReplaceAllStringFunc(text, func(s string) string {
		switch s[1] {
		case 'r':
			return "\r"
		case 'n':
			return "\n"
		case 't':
			return "\t"
		case '\\':
			return `\`
		case 'x':
			b, _ := strconv.ParseUint(s[2:], 16, 8) // two digits, by the pattern
			return string([]byte{byte(b)})
		}
		count, what, _ := strings.Cut(s[2:len(s)-1], "*")
		n, _ := strconv.Atoi(count) // digits, by the pattern
		return strings.Repeat(what, n)
	})
}

// readMalformed reads the table: "> " an input, "< " a line of its answer, "= closed" where the connection ends.
func readMalformed(t *testing.T) (rows []*malformed, text string) {
	t.Helper()
	b, err := os.ReadFile(malformedFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		switch kind, rest, _ := strings.Cut(line, " "); {
		case line == "" || kind == "#":
		case kind == ">":
			rows = append(rows, &malformed{input: unescape(rest)})
		case len(rows) == 0:
			t.Fatalf("%q stands before any input", line)
		case kind == "<":
			rows[len(rows)-1].answer = append(rows[len(rows)-1].answer, rest)
		case line == "= closed":
			rows[len(rows)-1].closed = true
		default:
			t.Fatalf("line %q", line)
		}
	}
	return rows, string(b)
}

// TestMalformedInputIsAnsweredExactly sends each input of the table on a connection of its own, whole and one byte at a
// time, and compares every line that comes for it. Where the stream is in step a PING behind it is answered; where it is
// not, the connection ends after the answer.
func TestMalformedInputIsAnsweredExactly(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_SUBJECTS_LIVE=never.>"})
	setup := s.Dial()
	for _, topic := range []string{"here partitions=2", "log", "co.lli.de", "small message.bytes=1KiB"} {
		hears(t, setup, "TOPIC CREATE "+topic, "+OK "+strings.Fields(topic)[0])
	}
	for i := range 5 {
		hears(t, setup, "SEND log x", fmt.Sprintf("+OK log/0@%d disk", i))
	}
	hears(t, setup, "TOPIC TRIM log/0@2", "+OK log/0@2")
	hears(t, setup, "METADATA", "DATA …", "{…") // the one connection that is there all the time
	rows, text := readMalformed(t)
	if *rewrite {
		rewriteMalformed(t, s, text)
		return
	}
	if len(rows) < malformedMin {
		t.Errorf("the table has %d inputs", len(rows))
	}
	for _, row := range rows {
		for _, step := range []int{len(row.input), 1} {
			if step == 1 && len(row.input) > onebyoneMax {
				continue
			}
			got := send(t, s, row.input, step)
			if strings.Join(got.answer, "\n") != strings.Join(row.answer, "\n") || got.closed != row.closed {
				t.Errorf("%.200q, %d bytes at a time:\n%s\nwant:\n%s", row.input, step, got, row)
			}
		}
		row.wellTold(t)
	}
	nothingWasWritten(t, s)
	hears(t, setup, "PING", "PONG")
}

func (m *malformed) String() string {
	text := strings.Join(m.answer, "\n")
	if m.closed {
		text += "\n= closed"
	}
	return text
}

// wellTold checks what every answer has to have: a code, and what to do.
func (m *malformed) wellTold(t *testing.T) {
	t.Helper()
	if len(m.answer) == 0 {
		t.Errorf("%.200q has no answer", m.input)
	}
	for _, line := range m.answer {
		if strings.HasPrefix(line, "-ERR ") && !strings.HasPrefix(line, "-ERR '") && !strings.Contains(line, "; ") {
			t.Errorf("%.200q is answered %q, which does not say what to do", m.input, line)
		}
	}
}

// send sends input in pieces of step bytes, and PING, and reads up to the PONG or the end.
func send(t *testing.T, s *harness.Server, input string, step int) *malformed {
	t.Helper()
	l := s.Dial()
	defer func() { _ = l.Conn().Close() }()
	done := make(chan struct{})
	go func() { // the server may stop reading in the middle
		defer close(done)
		for rest := []byte(input); len(rest) > 0; {
			n, err := l.Conn().Write(rest[:min(step, len(rest))])
			if err != nil {
				return
			}
			rest = rest[n:]
		}
		_, _ = l.Conn().Write([]byte("PING\r\n"))
	}()
	m := &malformed{input: input}
	for {
		line, err := l.TryRead()
		if err != nil {
			m.closed = true
			break
		}
		if line == "PONG" {
			break
		}
		m.answer = append(m.answer, line)
	}
	_ = l.Conn().Close()
	<-done
	return m
}

// nothingWasWritten checks that what was refused has left nothing behind.
func nothingWasWritten(t *testing.T, s *harness.Server) {
	t.Helper()
	l := s.Dial()
	hears(t, l, "GET here@latest", "+OK here/0@0 here/1@0")
	hears(t, l, "GET small@latest", "+OK small/0@0")
	hears(t, l, "GET log@latest", "+OK log/0@5")
	entries, err := os.ReadDir(filepath.Join(s.Data, "logs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case !e.IsDir(), strings.HasPrefix(name, "here-"), name == "log-0", name == "co.lli.de-0", name == "small-0":
		default:
			t.Errorf("directory %s was made", name)
		}
	}
}

// rewriteMalformed puts the answers of today into the table.
func rewriteMalformed(t *testing.T, s *harness.Server, text string) {
	t.Helper()
	var out bytes.Buffer
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "< "), strings.HasPrefix(line, "= "):
			continue
		}
		out.WriteString(line)
		if input, ok := strings.CutPrefix(line, "> "); ok {
			fmt.Fprintln(&out, strings.ReplaceAll("< "+strings.Join(send(t, s, unescape(strings.TrimSuffix(input, "\n")), 1<<30).lines(), "\n< "), "\n< = closed", "\n= closed"))
		}
	}
	if err := os.WriteFile(malformedFile, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (m *malformed) lines() []string { return strings.Split(m.String(), "\n") }
