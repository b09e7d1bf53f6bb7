// Package transcript replays recorded sessions against a real server, and against the fake one that the Go client has for
// tests: those in testdata, every one in protocol/SPEC.md and in README.md; whole, one byte at a time, and with CRLF. It also holds protocol/SPEC.md against the tables that the
// server is made of.
//
// In a session "> " is a line that the client sends, "< " one that the server answers, and "= closed" says that the server
// ends the connection. "2> ", "2< " and "2= closed" are those of a second client, and so on up to 9. An empty line and one
// that begins with # say nothing. In an answer … stands for anything.
//
// In both, \r, \n, \t, \\ and \xNN are bytes, and \{300*x} is x 300 times; a "> " line that ends in a single \ is sent
// without its line end. What a client does not read of its greeting is read for it. A session is over when a PING has
// been answered with nothing before it.
package transcript

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// The pages whose sessions are replayed.
const (
	specPage   = "../../../protocol/SPEC.md"
	readmePage = "../../../README.md"
	natsPage   = "../../../clients/FROM-NATS.md"
)

var (
	// fence finds the sessions of a Markdown page, heading its headings, which name them.
	fence   = regexp.MustCompile("(?ms)^```nc\n(.*?)^```$")
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

// sessions are all there are, by name.
func sessions(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no sessions in testdata: %v", err)
	}
	all := map[string]string{}
	for _, path := range files {
		all[filepath.Base(path)] = read(t, path)
	}
	for _, page := range []string{specPage, readmePage, natsPage} {
		text := read(t, page)
		found := fence.FindAllStringSubmatchIndex(text, -1)
		if len(found) == 0 {
			t.Errorf("%s holds no session", page)
		}
		for _, m := range found {
			all[filepath.Base(page)+"/"+under(text[:m[0]])] = text[m[2]:m[3]]
		}
	}
	return all
}

// ways are how each session is replayed.
func ways() map[string]player {
	return map[string]player{
		"whole":        {step: 1 << 20, end: "\n"},
		"byte by byte": {step: 1, end: "\n"},
		"crlf":         {step: 1 << 20, end: "\r\n"},
	}
}

func TestRecordedSessions(t *testing.T) {
	for name, text := range sessions(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for how, p := range ways() {
				t.Run(how, func(t *testing.T) {
					s := harness.Start(t)
					p.dial = func() (net.Conn, error) { return net.DialTimeout("tcp", s.Client, harness.Patience) }
					if err := p.play(text); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// under names a session by the last heading before it and how many sessions stand between the two.
func under(before string) string {
	at := heading.FindAllStringSubmatchIndex(before, -1)
	if len(at) == 0 {
		return ""
	}
	last := at[len(at)-1]
	name := before[last[2]:last[3]] + " " + string(rune('a'+len(fence.FindAllString(before[last[1]:], -1))))
	return strings.NewReplacer("/", " ", "`", "").Replace(name)
}
