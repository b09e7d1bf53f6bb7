package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/clients/internal/scripted"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hello = scripted.Hello

// named is hello as the command line says it.
var named = strings.Replace(hello, `"protocol":1,"echo"`, `"name":"trunkline-cli","protocol":1,"echo"`, 1)

// outcome is what one command line did.
type outcome struct {
	code     int
	out, err string
}

func runWith(t *testing.T, ctx context.Context, in io.Reader, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	code := run(ctx, args, streams{in: in, out: &out, err: &errs, env: func(string) string { return "" }})
	return outcome{code, out.String(), errs.String()}
}

func data(s string) string { return fmt.Sprintf("< DATA %d\n< %s\n", len(s), s) }

func msg(address, body string) string {
	return fmt.Sprintf("< MSG %s 0 %d\n< %s\n", address, len(body), body)
}

// delivered is a message of the subscription that follow makes.
func delivered(address, body string) string {
	return fmt.Sprintf("< MSG %s 1 %d\n< %s\n", address, len(body), body)
}

// follow is what a subscription that outlives its connection begins with, for the topic one.
func follow(addr string) string {
	name, _, _ := strings.Cut(addr, "@")
	ask := "> METADATA " + name + "\n> OFFSETS " + addr + "\n"
	answer := data(`{"cluster":"c","brokers":[],"topics":[`+topicJSON+`]}`) + data(`{"topic":"one","partitions":[]}`)
	if strings.Contains(name, "*") { // no single topic
		ask, answer = "", ""
	}
	return ask + "> SUB " + addr + " 1\n" + answer
}

// stands is what follow's command asks first: where the two partitions of the topic one stand.
func stands(addr string) string {
	return "> OFFSETS " + addr + "\n" + data(`{"topic":"one","partitions":[{"partition":0,"offset":0},{"partition":1,"offset":4},{"partition":2,"offset":-1,"error":"STORAGE_UNAVAILABLE"}]}`)
}

const (
	topicJSON = `{"name":"one","id":"00ff","settings":{"partitions":2,"sync":"batch"},"plan":{"version":1,"kind":"murmur2","partitions":2},"partitions":[{"partition":0,"leader":1,"epoch":0,"replicas":[1],"isr":[1],"log_start":0,"high_watermark":3,"log_end":3,"bytes":99,"segments":1},{"partition":1,"leader":1,"epoch":0,"replicas":[1],"isr":[1],"log_start":4,"high_watermark":5,"log_end":5,"bytes":9,"segments":1}]}`
	emptyJSON = `{"name":"one","partitions":[{"partition":0,"leader":1,"epoch":0,"replicas":[1],"isr":[1],"log_start":0,"high_watermark":0,"log_end":0,"bytes":0,"segments":1}]}`
)

// taught is a server's error as it is printed: what happened, how it comes about, and what to do, which is the hint, or the
// table's where that is in the words of this program. How a request came to be wrong, what happened says by itself.
func taught(said, hint string) string {
	code := errcode.Code(regexp.MustCompile(`[A-Z]+_[A-Z_]+|TIMEOUT|CORRUPT`).FindString(said))
	advice, known := code.Advice()
	if hint == "" || strings.HasPrefix(string(code), "UNKNOWN_") {
		hint = advice.Fix
	}
	if !known || strings.HasPrefix(string(code), "BAD_") || code == errcode.TopicExists {
		return said + "\nfix: " + hint + "\n"
	}
	return said + "\ncause: " + advice.Cause + "\nfix: " + hint + "\n"
}

// commandCase is one command line on scripted connections.
type commandCase struct {
	name    string
	args    string // split at blanks
	in      string
	scripts []string // after the handshakes
	want    outcome
}

func runCommands(t *testing.T, cases []commandCase) {
	t.Helper()
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			var scripts []string
			for _, s := range tc.scripts {
				scripts = append(scripts, named+s)
			}
			args := append(strings.Fields(tc.args), "-s", scripted.Start(t, scripts...))
			got := runWith(t, t.Context(), strings.NewReader(tc.in), args...)
			if got.code != tc.want.code || got.out != tc.want.out || !strings.HasSuffix(got.err, tc.want.err) || (tc.want.err == "") != (got.err == "") {
				t.Errorf("%d\n%q\n%q\nwant %d\n%q\n%q", got.code, got.out, got.err, tc.want.code, tc.want.out, tc.want.err)
			}
		})
	}
}

func TestTopicCommands(t *testing.T) {
	runCommands(t, []commandCase{
		{"create", "topic create one --partitions 2 --set b=2 --set a=1", "", []string{"> TOPIC CREATE one partitions=2 a=1 b=2\n< +OK one\n> TOPIC INFO one\n" + data(topicJSON)},
			outcome{0, "created one, partitions: 2\n", ""}},
		{"create json", "--json topic create one", "", []string{"> TOPIC CREATE one\n< +OK one\n> TOPIC INFO one\n" + data(topicJSON)},
			outcome{0, topicJSON + "\n", ""}},
		{"create existing", "topic create one", "", []string{"> TOPIC CREATE one\n< -ERR TOPIC_EXISTS 'one exists; use it'"},
			outcome{1, "", taught("trunkline: create topic one: TOPIC_EXISTS: one exists", "use it")}},
		{"ls", "topic ls", "", []string{"> TOPIC LIST\n" + data(`{"topics":[`+topicJSON+`,{"name":"longer.name","error":"METADATA_UNAVAILABLE"}]}`)},
			outcome{0, "TOPIC        PARTITIONS\none          2\nlonger.name  METADATA_UNAVAILABLE\n", ""}},
		{"ls json", "topic ls --json", "", []string{"> TOPIC LIST\n" + data(`{"topics":[]}`)}, outcome{0, "{\"topics\":[]}\n", ""}},
		{"info", "topic info one", "", []string{"> TOPIC INFO one\n" + data(topicJSON)},
			outcome{0, "topic one, id 00ff\n  partitions  2\n  sync        batch\n" +
				"  PARTITION  LEADER  LOG START  HIGH WATERMARK  LOG END  BYTES  SEGMENTS\n" +
				"          0       1          0               3        3     99         1\n" +
				"          1       1          4               5        5      9         1\n", ""}},
		{"info json", "topic info one --json", "", []string{"> TOPIC INFO one\n" + data(topicJSON)}, outcome{0, topicJSON + "\n", ""}},
		{"info missing", "topic info no", "", []string{"> TOPIC INFO no\n< -ERR UNKNOWN_TOPIC 'no no; make it'"},
			outcome{5, "", taught("trunkline: topic no: UNKNOWN_TOPIC: no no", "make it")}},
		{"advice in the words of the command line", "topic info no", "", []string{"> TOPIC INFO no\n< -ERR UNKNOWN_TOPIC 'no no; create it with TOPIC CREATE no partitions=N, or look with TOPIC LIST'"},
			outcome{5, "", taught("trunkline: topic no: UNKNOWN_TOPIC: no no", "")}},
		{"rm", "topic rm one", "", []string{"> TOPIC DELETE one\n< +OK one"}, outcome{0, "deleted one\n", ""}},
		{"rm json", "topic rm one --json", "", []string{"> TOPIC DELETE one\n< +OK one"}, outcome{0, "{\"name\":\"one\"}\n", ""}},
		{"not allowed", "topic rm one", "", []string{"> TOPIC DELETE one\n< -ERR NOT_ALLOWED 'no; ask'"},
			outcome{4, "", taught("trunkline: delete topic one: NOT_ALLOWED: no", "ask")}},
	})
}

func TestPubCommands(t *testing.T) {
	runCommands(t, []commandCase{
		{"pub", "pub one hello", "", []string{"> PUB one 5\n> hello\n< +OK one/1@17 disk"}, outcome{0, "one/1@17 disk\n", ""}},
		{"pub json", "pub one hello --json", "", []string{"> PUB one 5\n> hello\n< +OK one/1@17 disk"},
			outcome{0, `{"topic":"one","partition":1,"offset":17,"durability":"disk"}` + "\n", ""}},
		{"pub stdin", "pub one/1", "a\r\n", []string{"> PUB one/1 3\n> a\n>\n< +OK one/1@0 disk"}, outcome{0, "one/1@0 disk\n", ""}},
		{"pub nothing", "pub one", "", []string{"> PUB one 0\n>\n< +OK one/1@0 disk"}, outcome{0, "one/1@0 disk\n", ""}},
		{"pub with key and headers", "pub one x --key k -H A:1 -H B:", "", []string{"> HPUB one 31 32\n> NATS/1.0\n> Key: k\n> A: 1\n> B: \n>\n> x\n< +OK one/1@0 disk"},
			outcome{0, "one/1@0 disk\n", ""}},
		{"pub count", "pub one x --count 2", "", []string{"> PUB one 1\n> x\n> PUB one 1\n> x\n< +OK one/1@0 disk\n< +OK one/1@1 disk"},
			outcome{0, "one/1@0 disk\none/1@1 disk\n", ""}},
		{"pub refused", "pub one x --count 2", "", []string{"> PUB one 1\n> x\n> PUB one 1\n> x\n< -ERR TIMEOUT 'late; look'\n< +OK one/1@1 disk"},
			outcome{1, "one/1@1 disk\n", taught("1 of 2 records acknowledged\ntrunkline: TIMEOUT: late", "look")}},
		{"pub to no partition", "pub one/9 x", "", []string{"> PUB one/9 1\n> x\n< -ERR UNKNOWN_PARTITION 'no; yes'"},
			outcome{5, "", taught("trunkline: UNKNOWN_PARTITION: no", "yes")}},
		{"pub too much", "pub one", strings.Repeat("x", 101), []string{""},
			outcome{1, "", "trunkline: record too large: the input is longer than the 100 bytes the server takes; --lines makes records of its lines\n"}},
	})
}

func TestErrorsInJSON(t *testing.T) {
	damage := func(exit string) string {
		a, _ := errcode.Corrupt.Advice()
		return fmt.Sprintf(`{"error":{"code":"CORRUPT","text":"SUB one/0@1: bad","cause":%q,"fix":%q%s}}`+"\n", a.Cause, a.Fix, exit)
	}
	late, _ := errcode.Timeout.Advice()
	runCommands(t, []commandCase{
		{"of the server", "--json pub one x", "", []string{"> PUB one 1\n> x\n< -ERR TIMEOUT 'late; look'"},
			outcome{1, "", fmt.Sprintf(`{"error":{"code":"TIMEOUT","text":"late","cause":%q,"fix":"look","retriable":true,"outcome":"unknown","exit":1}}`+"\n", late.Cause)}},
		{"of the link", "pub one x --json", "", []string{"> PUB one 1\n> x\ncut"},
			outcome{1, "", `{"error":{"text":"link ended before the answer, outcome unknown: server closed the connection","outcome":"unknown","exit":1}}` + "\n"}},
		{"over damage", "sub one -c 1 --json", "", []string{stands("one"), follow("one") + "< +OK\n< -ERR ASYNC CORRUPT 'SUB one/0@1: bad'\n" + delivered("one/0@2", "b")},
			outcome{1, `{"topic":"one","partition":0,"offset":2,"timestamp":"1970-01-01T00:00:00.000Z","key":null,"value":"b","headers":{}}` + "\n",
				damage("") + "next one/0@3 one/1@4\n" + damage(`,"exit":1`)}},
	})
}

func TestReadCommands(t *testing.T) {
	runCommands(t, []commandCase{
		{"sub", "sub one@earliest -c 2", "", []string{stands("one@earliest"), follow("one@earliest") + "< +OK\n" + delivered("one/0@0", "a\x00b") + delivered("one/1@0", "") + delivered("one/1@1", "not asked for")},
			outcome{0, "a\x00b\n\n", "next one/0@1 one/1@1\n"}},
		{"sub json", "sub one@earliest -c 1 --json", "", []string{stands("one@earliest"), follow("one@earliest") + "< +OK\n" + delivered("one/0@0", "ab")},
			outcome{0, `{"topic":"one","partition":0,"offset":0,"timestamp":"1970-01-01T00:00:00.000Z","key":null,"value":"ab","headers":{}}` + "\n", "next one/0@1 one/1@4\n"}},
		{"sub over damage", "sub one -c 2", "", []string{stands("one"), follow("one") + "< +OK\n" + delivered("one/0@0", "a") + "< -ERR ASYNC CORRUPT 'SUB one/0@1: bad'\n" + delivered("one/0@2", "b")},
			outcome{1, "a\nb\n", taught("trunkline: CORRUPT: SUB one/0@1: bad\nnext one/0@3 one/1@4\ntrunkline: CORRUPT: SUB one/0@1: bad", "")}},
		{"sub refused", "sub one*", "", []string{"", follow("one*") + "< -ERR NOT_SUPPORTED 'later; wait'"},
			outcome{1, "", taught("trunkline: subscribe to one*: NOT_SUPPORTED: later", "wait")}},

		{"create with bad settings", "topic create one --set b=2", "", []string{"> TOPIC CREATE one b=2\n< -ERR BAD_SETTING 'no b; a'"},
			outcome{2, "", taught("trunkline: create topic one: BAD_SETTING: no b", "a")}},
		{"alter partitions", "topic alter one --partitions 2 --set a=1", "", []string{"> TOPIC ALTER one a=1 partitions=2\n< +OK one\n> TOPIC INFO one\n" + data(emptyJSON)},
			outcome{0, "topic one, id \n  PARTITION  LEADER  LOG START  HIGH WATERMARK  LOG END  BYTES  SEGMENTS\n          0       1          0               0        0      0         1\n", ""}},
		{"trim", "topic trim one/0@2", "", []string{"> TOPIC TRIM one/0@2\n< +OK one/0@2"}, outcome{0, "one/0@2 is the first record now\n", ""}},
		{"trim json", "topic trim one/0@2 --json", "", []string{"> TOPIC TRIM one/0@2\n< +OK one/0@2"}, outcome{0, `{"log_start":"one/0@2"}` + "\n", ""}},
		{"trim dry", "topic trim one/1@1h --dry-run", "", []string{"> TOPIC INFO one\n" + data(topicJSON), "> GET one/1@1h 1\n" + msg("one/1@4", "d") + "< +OK one/1@5"},
			outcome{0, "one/1@4 would be the first record; records that would be lost: 0\n", ""}},
		{"trim dry to the end", "topic trim one/0@latest --dry-run --json", "", []string{"> TOPIC INFO one\n" + data(topicJSON), "> GET one/0@latest 1\n< +OK one/0@3"},
			outcome{0, `{"dry_run":true,"topic":"one","log_start":"one/0@3","records":3}` + "\n", ""}},
		{"rm dry", "topic rm one --dry-run", "", []string{"> TOPIC INFO one\n" + data(topicJSON)}, outcome{0, "one would be deleted; partitions: 2, records that would be lost: 4, 108 B\n", ""}},
		{"rm dry json", "topic rm one --dry-run --json", "", []string{"> TOPIC INFO one\n" + data(topicJSON)},
			outcome{0, `{"dry_run":true,"topic":"one","records":4,"bytes":108}` + "\n", ""}},

		{"pub template", "pub one x{{.Count}} --key k{{.Count}} --count 2", "", []string{"> HPUB one 21 23\n> NATS/1.0\n> Key: k1\n>\n> x1\n> HPUB one 21 23\n> NATS/1.0\n> Key: k2\n>\n> x2\n< +OK one/1@0 disk\n< +OK one/1@1 disk"},
			outcome{0, "one/1@0 disk\none/1@1 disk\n", ""}},
		{"pub braces that are no template", "pub one x{{", "", []string{"> PUB one 3\n> x{{\n< +OK one/1@0 disk"}, outcome{0, "one/1@0 disk\n", ""}},
		{"pub braces many times", "pub one x{{ --count 1 --template=false", "", []string{"> PUB one 3\n> x{{\n< +OK one/1@0 disk"}, outcome{0, "one/1@0 disk\n", ""}},
		{"pub null", "pub one --null --key k", "", []string{"> HPUB one 38 38\n> NATS/1.0\n> Key: k\n> Null-Value: true\n>\n>\n< +OK one/1@0 disk"}, outcome{0, "one/1@0 disk\n", ""}},
		{"pub binary key", "pub one x --key-base64 /w==", "", []string{"> HPUB one 30 31\n> NATS/1.0\n> Key-Base64: /w==\n>\n> x\n< +OK one/1@0 disk"}, outcome{0, "one/1@0 disk\n", ""}},
		{"pub stopped tells how far it came", "pub one x --count 3", "", []string{"> PUB one 1\n> x\n> PUB one 1\n> x\n> PUB one 1\n> x\n< +OK one/0@0 disk\ncut"},
			outcome{1, "one/0@0 disk\n", "outcome unknown: server closed the connection\n"}},

		{"sub format", `sub one@earliest -c 1 -f %t/%p@%o=%v|`, "", []string{stands("one@earliest"), follow("one@earliest") + "< +OK\n" + delivered("one/0@0", "ab")}, outcome{0, "one/0@0=ab|", "next one/0@1 one/1@4\n"}},
		{"get format", `get one -c 1 --format %v\x00`, "", []string{"", "> GET one 1\n" + msg("one/0@0", "ab") + "< +OK one/0@1"}, outcome{0, "ab\x00", "next one/0@1\n"}},
		{"sub wildcards to the end", "sub one.*@earliest --exit", "", []string{"> TOPIC LIST\n" + data(`{"topics":[{"name":"one.b"},{"name":"one"},{"name":"one.a.x"},{"name":"one.a"}]}`) +
			"> TOPIC INFO one.a\n" + data(strings.ReplaceAll(emptyJSON, `"one"`, `"one.a"`)) + "> TOPIC INFO one.b\n" + data(strings.ReplaceAll(emptyJSON, `"one"`, `"one.b"`))}, outcome{0, "", ""}},

		{"sub wildcards that match nothing", "sub no.>@earliest --exit", "", []string{"> TOPIC LIST\n" + data(`{"topics":[{"name":"one"},{"name":"no"}]}`)},
			outcome{5, "", taught("trunkline: UNKNOWN_TOPIC: no topic matches no.>", "trunkline topic ls lists them")}},
		{"sub to the end", "sub one@earliest --exit", "", []string{"> TOPIC INFO one\n" + data(topicJSON),
			"> GET one/0@earliest 3\n" + msg("one/0@0", "a") + msg("one/0@1", "b") + "< +OK one/0@2",
			"> GET one/0@2 1\n" + msg("one/0@2", "c") + "< +OK one/0@3",
			"> GET one/1@earliest 1\n" + msg("one/1@4", "d") + "< +OK one/1@5"},
			outcome{0, "a\nb\nc\nd\n", ""}},
		{"sub to the end and no further", "sub one/1@-2 --exit", "", []string{"> TOPIC INFO one\n" + data(topicJSON),
			"> GET one/1@-2 1\n" + msg("one/1@4", "d") + msg("one/1@5", "newer")},
			outcome{0, "d\n", ""}},
		{"sub to the end, stopped by count", "sub one@earliest --exit -c 1", "", []string{"> TOPIC INFO one\n" + data(topicJSON),
			"> GET one/0@earliest 3\n" + msg("one/0@0", "a") + msg("one/0@1", "b")}, outcome{0, "a\n", ""}},
		{"sub to the end of nothing", "sub one/0@earliest --exit", "", []string{"> TOPIC INFO one\n" + data(emptyJSON)}, outcome{0, "", ""}},
		{"sub to the end beyond the last record", "sub one/0@1h --exit", "", []string{"> TOPIC INFO one\n" + data(topicJSON), "> GET one/0@1h 3\n< +OK one/0@3"},
			outcome{0, "", ""}},
		{"sub to the end of a partition that is not there", "sub one/7@earliest --exit", "", []string{"> TOPIC INFO one\n" + data(topicJSON)},
			outcome{5, "", taught("trunkline: UNKNOWN_PARTITION: topic one has the partitions 0 to 1, not 7", "name one of these")}},
		{"sub to the end without getting anywhere", "sub one/0@earliest --exit", "", []string{"> TOPIC INFO one\n" + data(topicJSON), "> GET one/0@earliest 3\n< +OK one/0@0", "> GET one/0@0 3\n< +OK one/0@0"},
			outcome{1, "", "trunkline: one/0@0 has no records before 0, though its high watermark is 3\n"}},
		{"sub to the end from now", "sub one/0 --exit", "", []string{"> TOPIC INFO one\n" + data(topicJSON), "> GET one/0@latest 3\n< +OK one/0@3"},
			outcome{0, "", "trunkline: one/0 begins at its end unless it has a position; add @earliest to read what is there\n"}},

		{"get", "get one -c 2", "", []string{"", "> GET one 2\n" + msg("one/0@0", "a") + msg("one/1@4", "d") + "< +OK one/0@1 one/1@5"},
			outcome{0, "a\nd\n", "next one/0@1 one/1@5\n"}},
		{"get of several", "get one/1 two/0@3 one/0 -c 2", "", []string{"", "> GET one/1 2\n" + msg("one/1@4", "d") + "< +OK one/1@5", "> GET two/0@3 1\n" + msg("two/0@3", "e") + "< +OK two/0@4"},
			outcome{0, "d\ne\n", "next one/1@5 two/0@4 one/0\n"}},
		{"sub of several to the end", "sub one/1@earliest one/0@2 --exit", "", []string{
			"> TOPIC INFO one\n" + data(topicJSON) + "> TOPIC INFO one\n" + data(topicJSON), "> GET one/1@earliest 1\n" + msg("one/1@4", "d") + "< +OK one/1@5", "> GET one/0@2 3\n" + msg("one/0@2", "c") + "< +OK one/0@3"},
			outcome{0, "d\nc\n", ""}},
		{"sub of several to the end, stopped by count", "sub one/1@earliest one/0@2 --exit -c 1", "", []string{"> TOPIC INFO one\n" + data(topicJSON), "> GET one/1@earliest 1\n" + msg("one/1@4", "d") + "< +OK one/1@5"},
			outcome{0, "d\n", ""}},
		{"sub of no topic", "sub one -c 1", "", []string{"> OFFSETS one\n< -ERR UNKNOWN_TOPIC 'topic one does not exist; make it'", follow("one") + "< +OK\n" + delivered("one", "a")},
			outcome{0, "a\n", "trunkline: no topic one: listening to the live subject, and to the topic from its first record on when it is made\n"}},

		{"get missing", "get no", "", []string{"", "> GET no 10\n< -ERR UNKNOWN_TOPIC 'no; yes'"}, outcome{5, "", taught("trunkline: get no: UNKNOWN_TOPIC: no", "yes")}},
	})
}

// noTopic is the answer to whoever asks whether "one" is a topic.
var noTopic = "> METADATA one\n" + data(`{"topics":[{"topic":"one","error":"UNKNOWN_TOPIC"}]}`)

func TestPublishLines(t *testing.T) {
	script := named + noTopic + "> PUB one 2\n> a\n> PUB one 0\n>\n> PUB one 1\n> b\n"
	pass := script + "> PING\n< +OK one/0@0 disk\n< +OK one/1@0 disk\n< +OK one/0@1 disk\n< PONG"
	got := runWith(t, t.Context(), iotest.OneByteReader(strings.NewReader("a\r\n\nb")), "pub", "one", "--lines", "-s", scripted.Start(t, pass))
	if got.code != 0 || got.out != "" || !strings.HasPrefix(got.err, "3 of 3 records acknowledged (disk), 3 B in ") {
		t.Errorf("%+v", got)
	}
	fail := script + "> PING\n< +OK one/0@0 disk\n< -ERR STORAGE_FULL 'full; clean'\n< +OK one/0@1 disk\n< PONG"
	got = runWith(t, t.Context(), strings.NewReader("a\r\n\nb"), "pub", "one", "--lines", "-s", scripted.Start(t, fail))
	if got.code != 1 || !strings.HasPrefix(got.err, "2 of 3 records") || !strings.HasSuffix(got.err, taught("\ntrunkline: line 2: STORAGE_FULL: full", "clean")) {
		t.Errorf("%+v", got)
	}
	cut := script + "< +OK one/0@0 disk\ncut"
	got = runWith(t, t.Context(), strings.NewReader("a\r\n\nb"), "pub", "one", "--lines", "-s", scripted.Start(t, cut))
	if got.code != 1 || !strings.HasPrefix(got.err, "1 of 3 records") || !strings.Contains(got.err, "\ntrunkline: line 2: link ended before the answer, outcome unknown") {
		t.Errorf("%+v", got)
	}
}

// TestPublishLinesWithinWhatTheServerTakes: what a batch has around a record must not make it too large for the server.
func TestPublishLinesWithinWhatTheServerTakes(t *testing.T) {
	known := "> METADATA one\n" + data(`{"topics":[{"topic":"one","plan":{"version":1,"kind":"murmur2","partitions":1},"settings":{"message.bytes":1048576},"partitions":[{"partition":0}]}]}`)
	line := strings.Repeat("y", 100)
	script := named + known + "> PUB one 100\n> " + line + "\n< +OK one/0@0 disk\n> PING\n< PONG"
	got := runWith(t, t.Context(), strings.NewReader(line+"\n"), "pub", "one", "--lines", "-s", scripted.Start(t, script))
	if got.code != 0 || !strings.HasPrefix(got.err, "1 of 1 records acknowledged (disk)") {
		t.Errorf("%+v", got)
	}
}

func TestPublishLinesTellsWhichLineIsTooLong(t *testing.T) {
	in := strings.Repeat("y", 100) + "\n" + strings.Repeat("x", 101) + "\nz\n"
	script := named + noTopic + "> PUB one 100\n> " + strings.Repeat("y", 100) + "\n> PING\n< +OK one/0@0 disk\n< PONG"
	got := runWith(t, t.Context(), strings.NewReader(in), "pub", "one", "--lines", "-s", scripted.Start(t, script))
	if got.code != 1 || !strings.HasPrefix(got.err, "1 of 2 records") || !strings.Contains(got.err, "line 2: record too large") {
		t.Errorf("%+v", got)
	}
	script = named + noTopic + "> PING\n< PONG"
	got = runWith(t, t.Context(), strings.NewReader(strings.Repeat("y", 95)), "pub", "one", "--lines", "--key", "k", "-s", scripted.Start(t, script))
	if got.code != 1 || !strings.Contains(got.err, "line 1: record too large") {
		t.Errorf("with headers: %+v", got)
	}
}

func TestLineReader(t *testing.T) {
	long := strings.Repeat("l", 3*readBytes)
	for _, one := range []bool{false, true} {
		for in, want := range map[string][]string{
			"":                                       nil,
			"\n":                                     {""},
			"a":                                      {"a"},
			"a\n":                                    {"a"},
			"a\r\n\rb\n\n":                           {"a\r", "\rb", ""},
			long + "\n" + "b\n" + "":                 {long, "b"},
			long:                                     {long},
			strings.Repeat("x", readBytes) + "\ny":   {strings.Repeat("x", readBytes), "y"},
			strings.Repeat("x", readBytes-1) + "\ny": {strings.Repeat("x", readBytes-1), "y"},
		} {
			var r io.Reader = strings.NewReader(in)
			if one {
				r = iotest.DataErrReader(iotest.HalfReader(r))
			}
			lines := newLineReader(r, 4*readBytes)
			var got []string
			for {
				l, err := lines.next()
				if err == io.EOF {
					break
				}
				if err != nil || l == nil {
					t.Fatal(l, err)
				}
				got = append(got, string(l))
			}
			if strings.Join(got, "|") != strings.Join(want, "|") || len(got) != len(want) {
				t.Errorf("%.20q: %d lines, want %d", in, len(got), len(want))
			}
		}
	}
	if _, err := newLineReader(iotest.ErrReader(io.ErrClosedPipe), 9).next(); err == nil || !strings.Contains(err.Error(), "after line 0") {
		t.Error(err)
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range []string{
		"", "topic", "nonsense", "--nonsense", "pub", "pub one a b", "pub one x --lines", "pub one --lines --count 2", "pub one x --count 0",
		"pub one x --null", "pub one --null --lines", "pub one --lines --records", "pub one x --file f", "pub one x --key a --key-base64 YQ==", "pub one x --key-base64 ?",
		"pub one --lines --key-delimiter : --key k", "pub one x --key-delimiter :", "pub one x --keep-going", "pub one --records --key k", "pub one x --count x", "pub one x --acks 2", "pub one x --acks=", "sub one a/x", "get one one#k", "plugin new", "plugin new storage", "plugin new storage A", "plugin info x", "plugin reload a/b/c", "plugin install",
		"sub one -f %z", "sub one -f %v --json", "topic trim one", "topic trim one/0", "topic alter one", "topic create one --partitions 0", "topic ls -s a --context b",
		"context add", "context add a/b x", "context add a http://x", "completion", "completion csh", "errors A B", "topic ls --context nowhere",
		"pub one x -H nonsense", "pub one@3 x", "pub a/x y", "sub", "sub one#k", "sub one@yesterday", "sub one -c 0", "get one -c -1", "get one#k",
		"topic create", "topic create one --set x", "topic create one --set x=1 --set x=2", "topic create one --replicas 3",
		"sub one --group g", "version x", "topic nonsense", "topic ls -s http://x", "topic ls -s a:b:c",
	} {
		for _, json := range []bool{false, true} {
			prefix, lines, all := "trunkline: ", 4, strings.Fields(args)
			if json {
				all = append([]string{"--json"}, all...)
			}
			if json || strings.Contains(args, "--json") {
				prefix, lines = `{"error":{"text":"`, 1
			}
			got := runWith(t, t.Context(), strings.NewReader(""), all...)
			if strings.Contains(got.err, `"code":"BAD_`) {
				prefix = `{"error":{"code":"BAD_`
			}
			if got.code != 2 || got.out != "" || !strings.HasPrefix(got.err, prefix) || strings.Count(got.err, "\n") > lines ||
				lines == 1 && !strings.HasSuffix(got.err, `,"exit":2}}`+"\n") {
				t.Errorf("%q: %+v", all, got)
			}
		}
	}
	address := scripted.Start(t, named)
	if got := runWith(t, t.Context(), strings.NewReader(""), "topic", "create", "a b", "-s", address); got.code != 2 {
		t.Errorf("a name with a blank: %+v", got)
	}
}

func TestVersion(t *testing.T) {
	got := runWith(t, t.Context(), nil, "version", "--json")
	var v map[string]any
	if err := json.Unmarshal([]byte(got.out), &v); err != nil || got.code != 0 || v["protocol"] != 1.0 || v["version"] != version || v["go"] == "" || v["commit"] == "" {
		t.Errorf("%+v, %v", got, err)
	}
	if got := runWith(t, t.Context(), nil, "version"); got.code != 0 || !strings.HasPrefix(got.out, "trunkline "+version+" (commit ") {
		t.Errorf("%+v", got)
	}
}

func TestNoConnectionIsGivenUpAfterFiveSeconds(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	start := time.Now()
	got := runWith(t, t.Context(), nil, "topic", "ls", "-s", ln.Addr().String())
	if took := time.Since(start); got.code != 3 || took < 4*time.Second || took > 8*time.Second || !strings.Contains(got.err, "connection refused") {
		t.Errorf("after %v: %+v", took, got)
	}
}

func TestAPeerThatIsNoServerIsNotConnected(t *testing.T) {
	got := runWith(t, t.Context(), nil, "topic", "ls", "-s", scripted.Start(t, "< HTTP/1.1 400 Bad Request"))
	if got.code != 3 || got.out != "" {
		t.Errorf("%+v", got)
	}
}

func TestInterruptEndsACommand(t *testing.T) {
	t.Run("sub", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var errs bytes.Buffer
		out := writerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil }) // the record was flushed at once
		args := []string{"sub", "one", "-s", scripted.Start(t, named+stands("one"), named+follow("one")+"< +OK\n"+delivered("one/0@0", "a"))}
		code := run(ctx, args, streams{out: out, err: &errs, env: func(string) string { return "" }})
		if code != 130 || errs.String() != "next one/0@1 one/1@4\n" {
			t.Errorf("%d, %q", code, errs.String())
		}
	})
	t.Run("pub --lines from a pipe that stays open", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if _, err := w.WriteString("a\nb"); err != nil {
			t.Fatal(err)
		}
		got := runWith(t, ctx, r, "pub", "one", "--lines", "-s", scripted.Start(t, named+noTopic+"> PUB one 1\n> a\n< +OK one/0@0 disk\n> PING\n< PONG"))
		if got.code != 130 || !strings.HasPrefix(got.err, "1 of 1 records acknowledged (disk)") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("connecting", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if got := runWith(t, ctx, nil, "topic", "ls", "-s", "127.0.0.1:1"); got.code != 130 {
			t.Errorf("%+v", got)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestOutputThatFailsFailsTheCommand(t *testing.T) {
	var errs bytes.Buffer
	full := writerFunc(func([]byte) (int, error) { return 0, io.ErrShortWrite })
	args := []string{"sub", "one", "-s", scripted.Start(t, named+stands("one"), named+follow("one")+"< +OK\n"+delivered("one/0@0", "a"))}
	if code := run(t.Context(), args, streams{out: full, err: &errs, env: func(string) string { return "" }}); code != 1 || errs.Len() == 0 {
		t.Errorf("%d, %q", code, errs.String())
	}
}

func TestURLFromTheEnvironment(t *testing.T) {
	address := scripted.Start(t, named+"> TOPIC LIST\n"+data(`{"topics":[]}`))
	var out bytes.Buffer
	env := func(name string) string { return map[string]string{"TRUNKLINE_URL": address}[name] }
	if code := run(t.Context(), []string{"topic", "ls"}, streams{out: &out, err: io.Discard, env: env}); code != 0 || out.String() != "TOPIC  PARTITIONS\n" {
		t.Errorf("%d, %q", code, out.String())
	}
}
