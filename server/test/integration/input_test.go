// Package integration drives the real server as its users do: by hand, with an unmodified NATS library, and with the
// command line.
package integration

import (
	"os"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

func TestAnswersComeInOrderAndPingWaitsForPublishes(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	l.Send("SEND t/0 a\nFROB\nPUB t 1\nb\nPING\nGET t\nSUB t@earliest 7\nQUIT\n")
	for i, want := range []string{
		"+OK t/0@0 disk", "-ERR BAD_VERB", "+OK t/0@1 disk", "PONG", "MSG t/0@0 0 1", "a", "MSG t/0@1 0 1", "b", "+OK t/0@2", "+OK",
	} {
		if got := l.Read(); !strings.HasPrefix(got, want) {
			t.Fatalf("line %d is %q, want %q…", i, got, want)
		}
	}
}

func TestQuietConnectionHearsOnlyOfFailures(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	l.Send("CONNECT {\"verbose\":false}\nPUB t 1\nx\nPUB t/9 1\nx\nSUB t 1\nSUB t 1 2 3\nPING\n")
	for _, want := range []string{"-ERR ASYNC UNKNOWN_PARTITION 'PUB t/9: ", "-ERR ASYNC BAD_ARGS 'SUB t: ", "PONG"} {
		if got := l.Read(); !strings.HasPrefix(got, want) {
			t.Fatalf("got %q, want %q…", got, want)
		}
	}
}

func TestSubscriptionWaitsForItsTopicAndOutlivesIt(t *testing.T) {
	s := harness.Start(t)
	sub, pub := s.Dial(), s.Dial()
	if got := sub.Ask("SUB later 5"); got != "+OK" {
		t.Fatal(got)
	}
	for round := range 3 {
		pub.Ask("SEND later one")
		for _, want := range []string{"MSG later/0@0 5 3", "one"} {
			if got := sub.Read(); got != want {
				t.Fatalf("round %d: got %q, want %q", round, got, want)
			}
		}
		if got := pub.Ask("TOPIC DELETE later"); got != "+OK later" {
			t.Fatal(got)
		}
		if got := sub.Read(); !strings.HasPrefix(got, "-ERR ASYNC TOPIC_DELETED 'SUB later: ") {
			t.Fatalf("round %d: got %q", round, got)
		}
	}
	sub.Send("UNSUB 5\nPING\n")
	if a, b := sub.Read(), sub.Read(); a != "+OK" || b != "PONG" {
		t.Fatal(a, b)
	}
	pub.Ask("SEND later again")
	if got := sub.Ask("PING"); got != "PONG" {
		t.Errorf("after UNSUB: %q", got)
	}
}

func TestUnsubAfterMaxDeliversExactlyThat(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	for range 5 {
		l.Ask("SEND t x")
	}
	l.Send("SUB t@earliest 1\nUNSUB 1 3\n")
	var msgs int
	for msgs < 3 {
		switch got := l.Read(); {
		case strings.HasPrefix(got, "MSG t/0@"):
			msgs++
			l.Read()
		case got != "+OK":
			t.Fatal(got)
		}
	}
	for {
		got := l.Ask("PING")
		if got == "PONG" {
			break
		}
		if got != "+OK" {
			t.Fatalf("after 3 records: %q", got)
		}
		if l.Read() == "PONG" {
			break
		}
	}
}

func TestPositionsMeanWhatTheySay(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	for _, at := range []string{"2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z", "2022-01-01T00:00:00Z"} {
		block := "NATS/1.0\r\nTimestamp: " + at + "\r\n\r\n"
		l.Send("HPUB t " + itoa(len(block)) + " " + itoa(len(block)+1) + "\r\n" + block + "x\r\n")
		if got := l.Read(); !strings.HasPrefix(got, "+OK t/0@") {
			t.Fatal(got)
		}
	}
	for position, want := range map[string]string{
		"":                               "0",
		"@earliest":                      "0",
		"@latest":                        "3",
		"@-2":                            "1",
		"@-99":                           "0",
		"@1":                             "1",
		"@3":                             "3",
		"@2020-06-01T00:00:00Z":          "1",
		"@2021-01-01T00:00:00Z":          "1",
		"@2021-01-01T01:00:00.001+01:00": "2",
		"@1h":                            "3",
	} {
		l.Send("GET t" + position + " 1\n")
		got := l.Read()
		if want == "3" {
			if got != "+OK t/0@3" {
				t.Errorf("GET t%s begins %q", position, got)
			}
			continue
		}
		if !strings.HasPrefix(got, "MSG t/0@"+want+" ") {
			t.Errorf("GET t%s begins %q, want offset %s", position, got, want)
		}
		l.Read()
		l.Read()
	}
}
