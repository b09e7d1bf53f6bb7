package transcript

import (
	"net"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/clients/go/tlfake"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// exempt are the sessions that the fake server for tests does not pass, and why.
var exempt = map[string]string{
	"live.txt":    "it is about live subjects: replies that nobody hears, and acknowledgements on reply subjects",
	"library.txt": "it is about what NATS libraries are told",
	"SPEC.md/Acknowledgements on a reply subject a": "it is about live subjects",
	"SPEC.md/HELP a": "the words of HELP are the server's",
}

// isExempt says why a session is not for the fake server; empty where it is.
func isExempt(name, text string) string {
	switch {
	case exempt[name] != "":
		return exempt[name]
	case strings.Contains(text, "> PLUGIN "):
		return "it is about plugins"
	}
	return ""
}

// TestTheFakeServerPassesTheSameSessions replays what the real one is held to.
func TestTheFakeServerPassesTheSameSessions(t *testing.T) {
	all := sessions(t)
	for name := range exempt {
		if all[name] == "" {
			t.Errorf("there is no session %q", name)
		}
	}
	for name, text := range all {
		t.Run(name, func(t *testing.T) {
			if why := isExempt(name, text); why != "" {
				t.Skip(why)
			}
			t.Parallel()
			for how, p := range ways() {
				t.Run(how, func(t *testing.T) {
					s, err := tlfake.New()
					if err != nil {
						t.Fatal(err)
					}
					defer s.Close()
					p.dial = func() (net.Conn, error) { return net.DialTimeout("tcp", s.Address(), harness.Patience) }
					if err := p.play(text); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}
