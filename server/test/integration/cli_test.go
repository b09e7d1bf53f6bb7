package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const corpusLines = 60_000

// killAll ends the server and its plugins with SIGKILL, the plugins first.
func killAll(t *testing.T, s *harness.Server) {
	t.Helper()
	plugins := s.Plugins()
	if len(plugins) != 3 {
		t.Fatalf("plugins: %v", plugins)
	}
	for _, pid := range plugins {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	s.Kill()
}

func TestAFileComesBackByteForByteAfterKill(t *testing.T) {
	s := harness.Start(t)
	file := append(bytes.Join(corpus(corpusLines), []byte("\n")), '\n')
	if got := succeeds(t, s, nil, "topic", "create", "one"); got.out != "created one, partitions: 1\n" {
		t.Error(got.out)
	}
	got := succeeds(t, s, bytes.NewReader(file), "pub", "one", "--lines")
	if want := fmt.Sprintf("%d of %d records acknowledged (disk), ", corpusLines, corpusLines); got.out != "" || !strings.HasPrefix(got.err, want) {
		t.Errorf("%q, %q", got.out, got.err)
	}
	killAll(t, s)
	s.Restart()
	got = succeeds(t, s, nil, "sub", "one/0@earliest", "--exit")
	if diff := firstDifference([]byte(got.out), file); diff != "" {
		t.Error(diff)
	}
	if got.err != "" {
		t.Errorf("it says %q", got.err)
	}
}

func TestALastLineWithoutLineFeedIsARecord(t *testing.T) {
	s := harness.Start(t)
	const file = "first\n\n\r\nlast"
	if got := succeeds(t, s, strings.NewReader(file), "pub", "few", "--lines"); !strings.HasPrefix(got.err, "4 of 4 records acknowledged (disk), 10 B in ") {
		t.Error(got.err)
	}
	if got := succeeds(t, s, nil, "sub", "few@earliest", "--exit"); got.out != file+"\n" {
		t.Errorf("%q", got.out)
	}
	if got := succeeds(t, s, nil, "get", "few", "-c", "3"); got.out != "first\n\n\r\n" || got.err != "next few/0@3\n" {
		t.Errorf("%+v", got)
	}
	for _, from := range []string{"few/0@3", "few@-1", "few/0@1h"} {
		if got := succeeds(t, s, nil, "get", from, "-c", "10"); !strings.HasSuffix(got.out, "last\n") || got.err != "next few/0@4\n" {
			t.Errorf("from %s: %+v", from, got)
		}
	}
}

// jsonRecord is a record as the protocol writes it.
type jsonRecord struct {
	Topic       string              `json:"topic"`
	Partition   int                 `json:"partition"`
	Offset      int64               `json:"offset"`
	Timestamp   time.Time           `json:"timestamp"`
	Key         *string             `json:"key"`
	KeyBase64   *string             `json:"key_base64"`
	Value       *string             `json:"value"`
	ValueBase64 *string             `json:"value_base64"`
	Headers     map[string][]string `json:"headers"`
}

// body is the record's value, however it was written.
func (r *jsonRecord) body(t *testing.T) []byte {
	t.Helper()
	if (r.Value == nil) == (r.ValueBase64 == nil) {
		t.Fatalf("%s/%d@%d has value %v and value_base64 %v", r.Topic, r.Partition, r.Offset, r.Value, r.ValueBase64)
	}
	if r.Value != nil {
		return []byte(*r.Value)
	}
	b, err := base64.StdEncoding.DecodeString(*r.ValueBase64)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// records reads the JSON lines that sub and get print. Nothing unknown may be in them.
func records(t *testing.T, out string) []jsonRecord {
	t.Helper()
	var all []jsonRecord
	for line := range strings.Lines(out) {
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		var r jsonRecord
		if err := d.Decode(&r); err != nil || d.More() {
			t.Fatalf("%.80q: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}

func TestSixPartitionsHoldEveryLineOnceAndInOrder(t *testing.T) {
	s := harness.Start(t)
	lines := corpus(corpusLines)
	succeeds(t, s, nil, "topic", "create", "six", "--partitions", "6")
	succeeds(t, s, bytes.NewReader(bytes.Join(lines, []byte("\n"))), "pub", "six", "--lines")
	killAll(t, s)
	s.Restart()

	left := map[string]int{} // how often a line has yet to come
	place := map[string]int{}
	for i, l := range lines {
		left[string(l)]++
		place[string(l)] = i
	}
	var next [6]int64
	last := [6]int{-1, -1, -1, -1, -1, -1}
	for _, r := range records(t, succeeds(t, s, nil, "--json", "sub", "six@earliest", "--exit").out) {
		if r.Topic != "six" || r.Partition < 0 || r.Partition >= len(next) || r.Offset != next[r.Partition] {
			t.Fatalf("%s/%d@%d came after %v", r.Topic, r.Partition, r.Offset, next)
		}
		next[r.Partition]++
		body := string(r.body(t))
		left[body]--
		if body == "" || body == "\r" { // many lines are the same
			continue
		}
		if place[body] <= last[r.Partition] {
			t.Fatalf("partition %d: line %d came behind line %d", r.Partition, place[body], last[r.Partition])
		}
		last[r.Partition] = place[body]
	}
	for body, n := range left {
		if n != 0 {
			t.Errorf("%.60q is missing %d times", body, n)
		}
	}
	for p, n := range next {
		if n == 0 {
			t.Errorf("partition %d got nothing", p)
		}
	}
}

// requireNC skips where OpenBSD's nc is not installed, and fails where it has to be.
func requireNC(t *testing.T) {
	t.Helper()
	if out, _ := exec.Command("nc", "-h").CombinedOutput(); !strings.Contains(string(out), "OpenBSD") {
		harness.Missing(t, "nc is missing; install netcat-openbsd")
	}
}

func TestLinesSentByNCComeBackByteForByte(t *testing.T) {
	requireNC(t)
	s := harness.Start(t)
	succeeds(t, s, nil, "topic", "create", "one")
	var session, want bytes.Buffer
	count := 0
	for _, l := range corpus(corpusLines) {
		if bytes.HasSuffix(l, []byte("\r")) { // one CR before LF belongs to the line end
			continue
		}
		fmt.Fprintf(&session, "SEND one %s\n", l)
		fmt.Fprintf(&want, "%s\n", l)
		count++
	}
	session.WriteString("QUIT\n")
	host, port, err := net.SplitHostPort(s.Client)
	if err != nil {
		t.Fatal(err)
	}
	got := finish(t, exec.CommandContext(t.Context(), "nc", host, port), &session)
	answers := strings.Split(strings.TrimSuffix(got.out, "\r\n"), "\r\n")
	if len(answers) != count+1 || got.code != 0 {
		t.Fatalf("exit code %d, %d answers to %d lines, the last %q", got.code, len(answers), count, answers[len(answers)-1])
	}
	for i, a := range answers[1:] { // behind INFO
		if a != fmt.Sprintf("+OK one/0@%d disk", i) {
			t.Fatalf("answer %d is %q", i, a)
		}
	}
	killAll(t, s)
	s.Restart()
	if diff := firstDifference([]byte(succeeds(t, s, nil, "sub", "one/0@earliest", "--exit").out), want.Bytes()); diff != "" {
		t.Error(diff)
	}
}

func TestExitCodesOfRealFailures(t *testing.T) {
	s := harness.Start(t)
	succeeds(t, s, nil, "topic", "create", "there", "--partitions", "2")
	for args, want := range map[string]struct {
		code int
		err  string
	}{
		"topic create there":                      {1, "trunkline: create topic there: TOPIC_EXISTS: "},
		"topic create a_b --set retention.time=1": {2, "trunkline: create topic a_b: BAD_SETTING: "},
		"topic create there/x":                    {2, "trunkline: create topic there/x: BAD_NAME: "},
		"get there/0@99":                          {1, "trunkline: get there/0@99: OFFSET_OUT_OF_RANGE: "},
		"topic info nowhere":                      {5, "trunkline: topic nowhere: UNKNOWN_TOPIC: "},
		"topic rm nowhere":                        {5, "trunkline: delete topic nowhere: UNKNOWN_TOPIC: "},
		"get nowhere":                             {5, "trunkline: get nowhere: UNKNOWN_TOPIC: "},
		"get there/2":                             {5, "trunkline: get there/2: UNKNOWN_PARTITION: "},
		"sub nowhere --exit":                      {5, "trunkline: topic nowhere: UNKNOWN_TOPIC: "},
		"sub there/2":                             {5, "trunkline: subscribe to there/2: UNKNOWN_PARTITION: "},
		"pub there/2 x":                           {5, "trunkline: UNKNOWN_PARTITION: "},
		"pub there@2 x":                           {2, "trunkline: "},
		"pub":                                     {2, "trunkline: "},
		"frob":                                    {2, "trunkline: "},
		"sub there --frob":                        {2, "trunkline: "},
		"":                                        {2, "trunkline: name a command"},
		"topic ls -s http://" + s.Client:          {2, "trunkline: "},
		"topic ls -s " + s.Client + " --json":     {0, ""},
		"version":                                 {0, ""},
		"topic info there -s trunkline://" + s.Client: {0, ""},
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			got := trunkline(t, s.Client, nil, strings.Fields(args)...)
			if got.code != want.code || !strings.HasPrefix(got.err, want.err) || (want.err == "") != (got.err == "") {
				t.Errorf("exit code %d, want %d; it says %q, want %q", got.code, want.code, got.err, want.err)
			}
			if want.code != 0 && (got.out != "" || strings.Count(got.err, "\n") > 3) {
				t.Errorf("it prints %q and says %q", got.out, got.err)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		got := trunkline(t, l.Addr().String(), nil, "topic", "ls")
		if got.code != 3 || got.out != "" || !strings.Contains(got.err, "refused") || strings.Count(got.err, "\n") != 1 {
			t.Errorf("%+v", got)
		}
	})
}

func TestKeysAndHeadersArriveAsTheyWere(t *testing.T) {
	s := harness.Start(t)
	succeeds(t, s, nil, "topic", "create", "keyed", "--partitions", "3")
	first := succeeds(t, s, nil, "pub", "keyed", "one", "--key", "anna", "-H", "colour: light green ", "-H", "n:1", "-H", "n:2")
	again := succeeds(t, s, strings.NewReader("x\xff\n"), "pub", "keyed#anna", "--json")
	var ack struct {
		Topic      string `json:"topic"`
		Partition  int    `json:"partition"`
		Offset     int64  `json:"offset"`
		Durability string `json:"durability"`
	}
	if err := json.Unmarshal([]byte(again.out), &ack); err != nil || ack.Topic != "keyed" || ack.Offset != 1 || ack.Durability != "disk" {
		t.Fatalf("%q: %v", again.out, err)
	}
	if want := fmt.Sprintf("keyed/%d@0 disk\n", ack.Partition); first.out != want {
		t.Errorf("%q, want %q: the same key goes to the same partition", first.out, want)
	}
	succeeds(t, s, nil, "pub", fmt.Sprintf("keyed/%d", ack.Partition), "", "--key", "")
	got := records(t, succeeds(t, s, nil, "get", "keyed", "--json").out)
	if len(got) != 3 {
		t.Fatalf("%+v", got)
	}
	for i, want := range []struct {
		key, value string
		headers    int
	}{{"anna", "one", 2}, {"anna", "x\xff\n", 0}, {"", "", 0}} {
		r := got[i]
		if r.Key == nil || *r.Key != want.key || string(r.body(t)) != want.value || len(r.Headers) != want.headers || r.Offset != int64(i) {
			t.Errorf("record %d is %+v", i, r)
		}
		if age := time.Since(r.Timestamp); age < 0 || age > time.Hour {
			t.Errorf("record %d is of %v", i, r.Timestamp)
		}
	}
	if h := got[0].Headers; strings.Join(h["colour"], "|") != "light green" || strings.Join(h["n"], "|") != "1|2" {
		t.Errorf("headers %v", h)
	}
}
