// Package integration drives the real server as its users do: by hand, with an unmodified NATS library, and with the
// command line.
package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// refusedInStep is what is sent -> how the answer begins; the connection goes on.
func refusedInStep() map[string]string {
	long := strings.Repeat("n", 300)
	return map[string]string{
		"HPUB here 28 30\nNATS/1.0\r\nKey: a\r\nKey: b\r\n\r\nxx\r\n": "-ERR BAD_HEADERS",
		"FROB\n":                              "-ERR BAD_VERB 'unknown verb \"FROB\"; HELP lists the verbs'",
		"PUBB x\n":                            "-ERR BAD_VERB 'unknown verb \"PUBB\"; did you mean PUB?",
		"\x00\x01\x02\n":                      "-ERR BAD_VERB",
		"PUB\n":                               "-ERR BAD_ARGS",
		"PUB here\n":                          "-ERR BAD_ARGS",
		"PUB a b c 2\nxx\n":                   "-ERR BAD_ARGS",
		"PUB here reply.* 2\nxx\n":            "-ERR BAD_ADDRESS",
		"PUB nothere/0 reply 2\nxx\n":         "-ERR UNKNOWN_TOPIC",
		"PUB here/2 2\nxx\n":                  "-ERR UNKNOWN_PARTITION",
		"PUB here/-1 2\nxx\n":                 "-ERR BAD_ADDRESS",
		"PUB here/x 2\nxx\n":                  "-ERR BAD_ADDRESS",
		"PUB here@5 2\nxx\n":                  "-ERR BAD_ADDRESS",
		"PUB ../../etc 2\nxx\n":               "-ERR BAD_ADDRESS",
		"PUB a.* 2\nxx\n":                     "-ERR BAD_ADDRESS",
		"PUB _INBOX.a 2\nxx\n":                "+OK",
		"PUB _INBOX.a#k 2\nxx\n":              "-ERR BAD_ADDRESS",
		"PUB .. 2\nxx\n":                      "-ERR BAD_ADDRESS",
		"HPUB here 3 5\nabcde\n":              "-ERR BAD_HEADERS",
		"HPUB here 9 5\nabcde\n":              "-ERR BAD_HEADERS",
		"HPUB here 12 12\nNATS/1.1\r\n\r\n\n": "-ERR BAD_HEADERS",
		"SEND\n":                              "-ERR BAD_ARGS",
		"SEND __x hello\n":                    "-ERR BAD_NAME",
		"SEND a/b hello\n":                    "-ERR BAD_ADDRESS",
		"SEND ../../etc hello\n":              "-ERR BAD_ADDRESS",
		"SEND .. hello\n":                     "-ERR BAD_NAME",
		"SEND " + long + " hello\n":           "-ERR BAD_NAME",
		"SEND here#k/0 x\n":                   "+OK here/", // # takes the rest of the field
		"SUB\n":                               "-ERR BAD_ARGS",
		"SUB here\n":                          "-ERR BAD_ARGS",
		"SUB here group 1\n":                  "-ERR NOT_SUPPORTED",
		"SUB here.> 1\n":                      "+OK",
		"SUB here.>.x 1\n":                    "-ERR BAD_ADDRESS",
		"SUB here..x 1\n":                     "-ERR BAD_ADDRESS",
		"SUB _INBOX.x/1 1\n":                  "-ERR BAD_ADDRESS",
		"SUB her* group 1\n":                  "+OK", // * inside a token is itself
		"SUB > group 1\n":                     "-ERR NOT_SUPPORTED",
		"SUB here#key 1\n":                    "-ERR BAD_ADDRESS",
		"SUB here/7 1\n":                      "-ERR UNKNOWN_PARTITION",
		"SUB here@99 1\n":                     "-ERR OFFSET_OUT_OF_RANGE",
		"SUB here@yesterday 1\n":              "-ERR BAD_ADDRESS",
		"UNSUB\n":                             "-ERR BAD_ARGS",
		"UNSUB 1 many\n":                      "-ERR BAD_ARGS",
		"GET\n":                               "-ERR BAD_ARGS",
		"GET here 0\n":                        "-ERR BAD_ARGS",
		"GET here -1\n":                       "-ERR BAD_ARGS",
		"GET here 1 2\n":                      "-ERR BAD_ARGS",
		"GET nothere\n":                       "-ERR UNKNOWN_TOPIC",
		"GET here/2\n":                        "-ERR UNKNOWN_PARTITION",
		"GET here/99999999999\n":              "-ERR BAD_ADDRESS",
		"GET here/0@99\n":                     "-ERR OFFSET_OUT_OF_RANGE",
		"SEND new/7 x\n":                      "-ERR UNKNOWN_PARTITION",
		"PRODUCE new/0 4\nPING\n":             "-ERR BAD_BATCH",
		"CONNECT {\n":                         "-ERR BAD_JSON",
		"CONNECT []\n":                        "-ERR BAD_JSON",
		"CONNECT {\"verbose\":\"yes\"}\n":     "-ERR BAD_JSON",
		"CONNECT {\"protocol\":9}\n":          "-ERR BAD_ARGS",
		"HELP FROB\n":                         "-ERR BAD_VERB",
		"HELP A B\n":                          "-ERR BAD_ARGS",
		"PRODUCE here/0 4\nPING\n":            "-ERR BAD_BATCH",
		"COMMIT g 1 here/0@1\n":               "-ERR NOT_SUPPORTED",
		"OFFSETS\n":                           "-ERR BAD_ARGS",
		"OFFSETS nothere\n":                   "-ERR UNKNOWN_TOPIC",
		"JOIN g here\n":                       "-ERR NOT_SUPPORTED",
	}
}

// refusedTopics is the same for TOPIC.
func refusedTopics() map[string]string {
	long := strings.Repeat("n", 300)
	return map[string]string{
		"TOPIC\n":                               "-ERR BAD_ARGS",
		"TOPIC FROB\n":                          "-ERR BAD_ARGS",
		"TOPIC CREATE\n":                        "-ERR BAD_ARGS",
		"TOPIC CREATE here\n":                   "-ERR TOPIC_EXISTS",
		"TOPIC CREATE ../../etc\n":              "-ERR BAD_NAME",
		"TOPIC CREATE a/b\n":                    "-ERR BAD_NAME",
		"TOPIC CREATE __x\n":                    "-ERR BAD_NAME",
		"TOPIC CREATE .\n":                      "-ERR BAD_NAME",
		"TOPIC CREATE a..b\n":                   "-ERR BAD_NAME",
		"TOPIC CREATE a.*\n":                    "-ERR BAD_NAME",
		"TOPIC CREATE " + long + "\n":           "-ERR BAD_NAME",
		"TOPIC CREATE x partitions\n":           "-ERR BAD_ARGS",
		"TOPIC CREATE x partitions=0\n":         "-ERR BAD_SETTING",
		"TOPIC CREATE x partitions=2049\n":      "-ERR BAD_SETTING",
		"TOPIC CREATE x partitions=many\n":      "-ERR BAD_SETTING",
		"TOPIC CREATE x retention.time=1\n":     "-ERR BAD_SETTING",
		"TOPIC CREATE x replicas=3\n":           "-ERR BAD_SETTING",
		"TOPIC CREATE x message.bytes=1GiB\n":   "-ERR BAD_SETTING",
		"TOPIC ALTER here message.bytes=1GiB\n": "-ERR BAD_SETTING",
		"TOPIC CREATE x adopt=maybe\n":          "-ERR BAD_SETTING",
		"TOPIC CREATE x colour=red\n":           "-ERR BAD_SETTING",
		"TOPIC INFO nothere\n":                  "-ERR UNKNOWN_TOPIC",
		"TOPIC INFO\n":                          "-ERR BAD_ARGS",
		"TOPIC LIST all\n":                      "-ERR BAD_ARGS",
		"TOPIC DELETE nothere\n":                "-ERR UNKNOWN_TOPIC",
		"TOPIC ALTER here partitions=3\n":       "-ERR BAD_SETTING",
		"TOPIC ALTER here\n":                    "-ERR BAD_ARGS",
		"TOPIC ALTER nothere sync=never\n":      "-ERR UNKNOWN_TOPIC",
		"TOPIC ALTER here sync=often\n":         "-ERR BAD_SETTING",
		"TOPIC TRIM\n":                          "-ERR BAD_ARGS",
		"TOPIC TRIM here\n":                     "-ERR BAD_ADDRESS",
		"TOPIC TRIM here/0\n":                   "-ERR BAD_ADDRESS",
		"TOPIC TRIM here/0@99\n":                "-ERR OFFSET_OUT_OF_RANGE",
		"TOPIC TRIM here/5@0\n":                 "-ERR UNKNOWN_PARTITION",
		"TOPIC TRIM nothere/0@0\n":              "-ERR UNKNOWN_TOPIC",
	}
}

// refusedForGood is what is sent -> how the answer begins; the connection ends with it.
func refusedForGood() map[string]string {
	return map[string]string{
		"PUB here five\nhello\n":                                          "-ERR BAD_SIZE",
		"PUB here -1\n":                                                   "-ERR BAD_SIZE",
		"PUB here 1048577\n":                                              "-ERR BAD_SIZE",
		"PUB here 9999999999999\n":                                        "-ERR BAD_SIZE",
		"PUB here 3\nhello\n":                                             "-ERR BAD_SIZE",
		"HPUB here x 5\nhello\n":                                          "-ERR BAD_SIZE",
		"HPUB here 2 x\nhello\n":                                          "-ERR BAD_SIZE",
		"SUB " + strings.Repeat("x", 5000) + " 1\n":                       "-ERR LINE_TOO_LONG",
		strings.Repeat("x", 100000):                                       "-ERR LINE_TOO_LONG",
		"SEND " + strings.Repeat("x", 5000) + " hi\n":                     "-ERR LINE_TOO_LONG",
		"SEND here " + strings.Repeat("x", 1<<20+1) + "\n":                "-ERR BAD_SIZE",
		"PUB here 3\nhello\n" + strings.Repeat("SEND here more\n", 50000): "-ERR BAD_SIZE", // unread input behind it
	}
}

// TestBadInputIsAnsweredAndSurvived sends nonsense. Where the stream is in step, the answer is a code with a hint and
// the connection goes on; where it is not, the answer arrives before the end.
func TestBadInputIsAnsweredAndSurvived(t *testing.T) {
	s := harness.Start(t)
	setup := s.Dial()
	if got := setup.Ask("TOPIC CREATE here partitions=2"); got != "+OK here" {
		t.Fatal(got)
	}
	for in, want := range refusedInStep() {
		t.Run("open/"+name(in), func(t *testing.T) { staysOpen(t, s, in, want) })
	}
	for in, want := range refusedTopics() {
		t.Run("open/"+name(in), func(t *testing.T) { staysOpen(t, s, in, want) })
	}
	for in, want := range refusedForGood() {
		t.Run("closed/"+name(in), func(t *testing.T) { closes(t, s, in, want) })
	}
	// Nothing of all that was written, and nothing was made outside the log directory.
	l := s.Dial()
	if got := l.Ask("GET here/0@latest"); got != "+OK here/0@0" && got != "+OK here/0@2" {
		t.Errorf("partition 0 ends at %q", got)
	}
	entries, err := os.ReadDir(filepath.Join(s.Data, "logs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), "here-") {
			t.Errorf("directory %s was made", e.Name())
		}
	}
}

// staysOpen sends in, with LF and with CRLF, and goes on afterwards.
func staysOpen(t *testing.T, s *harness.Server, in, want string) {
	for _, crlf := range []bool{false, true} {
		if crlf && strings.Contains(in, "HPUB") {
			continue // its sizes count the line ends
		}
		text := in
		if crlf {
			text = strings.ReplaceAll(in, "\n", "\r\n")
		}
		l := s.Dial()
		got := l.Ask(strings.TrimSuffix(text, "\n"))
		if !strings.HasPrefix(got, want) {
			t.Errorf("answer %q, want %q…", got, want)
		}
		if strings.HasPrefix(got, "-ERR") && !strings.Contains(got, "; ") {
			t.Errorf("answer %q does not say what to do", got)
		}
		if pong := l.Ask("PING"); pong != "PONG" {
			t.Errorf("afterwards PING is answered %q", pong)
		}
	}
}

// closes sends in and hears why before the end.
func closes(t *testing.T, s *harness.Server, in, want string) {
	l := s.Dial()
	done := make(chan struct{})
	go func() { // the server may stop reading in the middle
		defer close(done)
		_, _ = l.Conn().Write([]byte(in))
	}()
	if got := l.Read(); !strings.HasPrefix(got, want) || !strings.Contains(got, "; ") {
		t.Errorf("answer %.200q, want %q… with what to do", got, want)
	}
	if got, err := l.TryRead(); err == nil {
		t.Errorf("connection goes on with %q", got)
	}
	<-done
}

func name(in string) string {
	in = strings.TrimSpace(strings.SplitN(in, "\n", 2)[0])
	return strings.ReplaceAll(in[:min(len(in), 40)], "/", "|")
}

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
