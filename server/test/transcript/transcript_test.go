// Package transcript replays recorded sessions against a real server: those in testdata, and every one in
// protocol/SPEC.md, whole and one byte at a time.
//
// In a session, "> " is a line the client sends, "< " one the server answers; "…" in an answer stands for anything. A
// line of "> " that ends in \ is sent without its line end, \r and \n in it stand for themselves, and "= closed" says
// that the server closes the connection.
package transcript

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// fence finds the sessions of a Markdown page.
var fence = regexp.MustCompile("(?ms)^```nc\n(.*?)^```$")

func TestRecordedSessions(t *testing.T) {
	sessions := map[string]string{}
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no sessions in testdata: %v", err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sessions[filepath.Base(path)] = string(b)
	}
	for _, page := range []string{"../../../protocol/SPEC.md", "../../../README.md"} {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		found := fence.FindAllStringSubmatch(string(b), -1)
		if len(found) == 0 {
			t.Errorf("%s holds no session", page)
		}
		for i, m := range found {
			sessions[filepath.Base(page)+"/"+string(rune('a'+i/26))+string(rune('a'+i%26))] = m[1]
		}
	}
	for name, text := range sessions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for how, step := range map[string]int{"whole": 1 << 20, "byte by byte": 1} {
				t.Run(how, func(t *testing.T) { replay(t, text, step, "\n") })
			}
			t.Run("crlf", func(t *testing.T) { replay(t, text, 1<<20, "\r\n") })
		})
	}
}

// replay runs one session on a server of its own.
func replay(t *testing.T, text string, step int, end string) {
	s := harness.Start(t)
	l := s.Dial()
	for n, row := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(row, "> "), row == ">":
			send(l, unescape(strings.TrimPrefix(strings.TrimPrefix(row, ">"), " "), end), step)
		case strings.HasPrefix(row, "< "), row == "<":
			want := strings.TrimPrefix(strings.TrimPrefix(row, "<"), " ")
			got, err := l.TryRead()
			if err != nil || !matches(want, got) {
				t.Fatalf("line %d: got %q (%v), want %q", n+1, got, err, want)
			}
		case row == "= closed":
			if got, err := l.TryRead(); err == nil {
				t.Fatalf("line %d: got %q, want the end", n+1, got)
			}
		case row == "", strings.HasPrefix(row, "#"):
		default:
			t.Fatalf("line %d: %q is neither sent nor answered", n+1, row)
		}
	}
}

func unescape(row, end string) string {
	if whole, ok := strings.CutSuffix(row, `\`); ok {
		row, end = whole, ""
	}
	return strings.NewReplacer(`\r`, "\r", `\n`, "\n", `\t`, "\t").Replace(row) + end
}

func send(l *harness.Line, text string, step int) {
	for len(text) > 0 {
		n := min(step, len(text))
		l.Send(text[:n])
		text = text[n:]
	}
}

// matches compares an answer with a pattern in which … stands for anything.
func matches(pattern, got string) bool {
	parts := strings.Split(pattern, "…")
	for i, p := range parts {
		parts[i] = regexp.QuoteMeta(p)
	}
	return regexp.MustCompile("^" + strings.Join(parts, ".*") + "$").MatchString(got)
}
