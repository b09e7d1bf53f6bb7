package integration

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// says checks what a connection is sent next, line by line; a want that ends in … is a beginning.
func says(t *testing.T, l *harness.Line, want ...string) {
	t.Helper()
	for _, w := range want {
		got := l.Read()
		if begin, open := strings.CutSuffix(w, "…"); got != w && !(open && strings.HasPrefix(got, begin)) {
			t.Fatalf("got %q, want %q", got, w)
		}
	}
}

// hears sends a line and checks what comes for it.
func hears(t *testing.T, l *harness.Line, text string, want ...string) {
	t.Helper()
	l.Send(text + "\n")
	says(t, l, want...)
}

// TestWhichSubjectIsATopic states the one rule: a subject is a topic when one of that name exists, or when a publish
// without reply-to may make it; all others are live.
func TestWhichSubjectIsATopic(t *testing.T) {
	const (
		topic   = "topic"
		isLive  = "live"
		refused = "refused"
	)
	for _, auto := range []bool{true, false} {
		s := harness.StartIn(t, []string{"TRUNKLINE_TOPICS_AUTO_CREATE=" + strconv.FormatBool(auto), "TRUNKLINE_SUBJECTS_LIVE=never.>,*.tick"})
		made := func(yes, no string) string {
			if auto {
				return yes
			}
			return no
		}
		setup := s.Dial()
		hears(t, setup, "TOPIC CREATE there", "+OK there")
		for _, test := range []struct{ subject, reply, want string }{
			{"there", "", topic},
			{"there", "re", topic},
			{"there/0", "", topic},
			{"there#k", "re", topic},
			{"fresh.a", "", made(topic, isLive)},
			{"fresh.b", "re", isLive},
			{"fresh.c/0", "", made(topic, refused)},
			{"fresh.d#k", "", made(topic, refused)},
			{"fresh.e/0", "re", refused},
			{"_INBOX.x.1", "", isLive},
			{"_INBOX.x.1", "re", isLive},
			{"$SRV.PING", "", isLive},
			{"__ours", "", isLive},
			{"no!", "", isLive},
			{strings.Repeat("n", 250), "", isLive},
			{"never.x", "", isLive},
			{"a.tick", "", isLive},
			{"a.tick#k", "", refused},
		} {
			t.Run(fmt.Sprintf("auto_create=%v/%.20s %s", auto, strings.ReplaceAll(test.subject, "/", "|"), test.reply), func(t *testing.T) {
				ear, mouth := s.Dial(), s.Dial()
				bare := test.subject
				if i := strings.IndexAny(bare, "/#"); i >= 0 {
					bare = bare[:i]
				}
				hears(t, ear, "SUB re 2", "+OK")
				hears(t, ear, "SUB "+bare+" 1", "+OK")
				got := mouth.Ask(strings.TrimSpace("PUB "+test.subject+" "+test.reply) + " 2\r\nhi")
				hears(t, mouth, "PING", "PONG") // +OK does not say that it is out
				ear.Send("PING\n")
				heard := ear.Read()
				switch test.want {
				case topic:
					if !strings.HasPrefix(got, "+OK "+bare+"/0@") {
						t.Errorf("answer %q", got)
					}
				case isLive:
					if got != "+OK" || heard != strings.TrimSpace("MSG "+bare+" 1 "+test.reply)+" 2" {
						t.Errorf("answer %q, heard %q", got, heard)
					}
				case refused:
					if !strings.HasPrefix(got, "-ERR ") {
						t.Errorf("answer %q", got)
					}
				}
			})
		}
		hears(t, setup, "SEND never.x hi", "-ERR BAD_NAME…")
		hears(t, setup, "TOPIC CREATE never.x", "-ERR BAD_NAME…")
		s.Kill()
	}
}

func TestLiveSubjectsByHand(t *testing.T) {
	s := harness.Start(t)
	ear, mouth := s.Dial(), s.Dial()
	hears(t, ear, "SUB _INBOX.> 1", "+OK")
	hears(t, ear, "SUB _INBOX.*.b\tworkers 2", "+OK")
	hears(t, mouth, "PUB _INBOX.a.b re.ply 2\r\nhi", "+OK")
	frames := []string{ear.Read() + " " + ear.Read(), ear.Read() + " " + ear.Read()}
	for _, sid := range []string{"1", "2"} {
		want := "MSG _INBOX.a.b " + sid + " re.ply 2 hi"
		if frames[0] != want && frames[1] != want {
			t.Errorf("got %q, want %q among them", frames, want)
		}
	}
	hears(t, ear, "UNSUB 2", "+OK")
	hears(t, mouth, "HPUB _INBOX.c 18 20\r\nNATS/1.0\r\nA: 1\r\n\r\nhi", "+OK")
	says(t, ear, "HMSG _INBOX.c 1 18 20", "NATS/1.0", "A: 1", "", "hi")
	hears(t, ear, `CONNECT {"headers":false}`, "+OK")
	hears(t, ear, "SUB _INBOX.> 3", "+OK")
	hears(t, mouth, "HPUB _INBOX.c 18 20\r\nNATS/1.0\r\nA: 1\r\n\r\nhi", "+OK")
	says(t, ear, "HMSG _INBOX.c 1 18 20", "NATS/1.0", "A: 1", "", "hi", "MSG _INBOX.c 3 2", "hi") // the older SUB reads headers still
	hears(t, ear, `CONNECT {}`, "+OK")                                                            // again: as in NATS, its subscriptions are gone
	hears(t, mouth, "PUB _INBOX.c 2\r\nhi", "+OK")
	hears(t, ear, "PING", "PONG")
}

func TestLiveMessagesNeedNoPlugin(t *testing.T) {
	s := harness.Start(t)
	ear, mouth := s.Dial(), s.Dial()
	hears(t, ear, "SUB $live.> 1", "+OK")
	for kind, pid := range s.Plugins() {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(kind, err)
		}
		defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	}
	for i := range 100 {
		mouth.Send(fmt.Sprintf("PUB $live.%d 2\r\nhi\r\n", i))
		says(t, mouth, "+OK")
		says(t, ear, fmt.Sprintf("MSG $live.%d 1 2", i), "hi")
	}
}

func TestWildcardsCoverTopicsAndLiveSubjects(t *testing.T) {
	s := harness.Start(t)
	mouth, ear := s.Dial(), s.Dial()
	hears(t, mouth, "SEND shop.old before", "+OK shop.old/0@0 disk")
	hears(t, ear, "SUB shop.> 1", "+OK")
	hears(t, mouth, "SEND shop.old after", "+OK shop.old/0@1 disk")
	says(t, ear, "MSG shop.old/0@1 1 5", "after") // from now on
	hears(t, mouth, "PUB shop.ask re 2\r\nhi", "+OK")
	says(t, ear, "MSG shop.ask 1 re 2", "hi")
	hears(t, mouth, "SEND shop.new first", "+OK shop.new/0@0 disk")
	says(t, ear, "MSG shop.new/0@0 1 5", "first") // from its first record
	hears(t, mouth, "TOPIC DELETE shop.new", "+OK shop.new")
	says(t, ear, "-ERR ASYNC TOPIC_DELETED 'SUB shop.>: topic shop.new…")
	hears(t, mouth, "SEND shop.new again", "+OK shop.new/0@0 disk")
	says(t, ear, "MSG shop.new/0@0 1 5", "again")
	hears(t, ear, "UNSUB 1", "+OK")
	hears(t, mouth, "SEND shop.new unheard", "+OK shop.new/0@1 disk")
	hears(t, ear, "SUB shop.*@earliest 2", "+OK")
	got := map[string]int{}
	for range 4 {
		got[ear.Read()]++
		ear.Read()
	}
	for _, want := range []string{"MSG shop.old/0@0 2 6", "MSG shop.old/0@1 2 5", "MSG shop.new/0@0 2 5", "MSG shop.new/0@1 2 7"} {
		if got[want] != 1 {
			t.Errorf("%q came %d times: %v", want, got[want], got)
		}
	}
}

func TestSubjectBecomesATopic(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_TOPICS_AUTO_CREATE=false"})
	mouth, ear := s.Dial(), s.Dial()
	hears(t, ear, "SUB late 1", "+OK")
	hears(t, ear, "SUB late workers 2", "+OK")
	hears(t, mouth, "PUB late 4\r\nlive", "+OK")
	for range 2 {
		says(t, ear, "MSG late …", "live")
	}
	hears(t, mouth, "TOPIC CREATE late", "+OK late")
	says(t, ear, "-ERR ASYNC NOT_SUPPORTED 'SUB late: late is a topic, and groups…")
	hears(t, mouth, "PUB late 6\r\nstored", "+OK late/0@0 disk")
	says(t, ear, "MSG late/0@0 1 6", "stored")
	hears(t, ear, "PING", "PONG")
}

// ackOf publishes with a reply-to and returns what the reply subject hears.
func ackOf(t *testing.T, l *harness.Line, publish string) string {
	t.Helper()
	l.Send(publish)
	head := l.Read()
	if !strings.HasPrefix(head, "MSG re.1 9 ") {
		t.Fatalf("got %q", head)
	}
	return l.Read()
}

func TestAcknowledgementsAreJetStreams(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	hears(t, l, "TOPIC CREATE orders.eu partitions=3 message.bytes=1KiB", "+OK orders.eu")
	l.Send("CONNECT {\"verbose\":false,\"echo\":false}\nSUB re.* 9\nPING\n")
	says(t, l, "PONG")
	for _, test := range []struct{ publish, want string }{
		{"PUB orders.eu/2 re.1 2\r\nhi\r\n", `{"stream":"orders_eu","seq":8796093022209,"partition":2,"offset":0,"durability":"disk"}`},
		{"HPUB orders.eu/2 re.1 28 30\r\nNATS/1.0\r\nNats-Msg-Id: 7\r\n\r\nhi\r\n", `{"stream":"orders_eu","seq":8796093022210,"partition":2,"offset":1,"durability":"disk"}`},
		{"PUB orders.eu/7 re.1 2\r\nhi\r\n", `{"error":{"code":404,"err_code":10059,"description":"UNKNOWN_PARTITION: …`},
		{"PUB orders.eu/0 re.1 1025\r\n" + strings.Repeat("x", 1025) + "\r\n", `{"error":{"code":400,"err_code":10054,"description":"TOO_LARGE: …`},
		{"HPUB orders.eu/0 re.1 25 27\r\nNATS/1.0\r\nNats-TTL: 5\r\n\r\nhi\r\n", `{"error":{"code":400,"err_code":10166,"description":"NOT_SUPPORTED: …`},
		{"HPUB orders.eu/0 re.1 12 14\r\nNATS/1.0\nX\n\nhi\r\n", `{"error":{"code":400,"err_code":10003,"description":"BAD_HEADERS: …`},
		{"PUB nothere#k re.1 2\r\nhi\r\n", `{"error":{"code":404,"err_code":10059,"description":"UNKNOWN_TOPIC: …`},
	} {
		got := ackOf(t, l, test.publish)
		if begin, open := strings.CutSuffix(test.want, "…"); got != test.want && !(open && strings.HasPrefix(got, begin)) {
			t.Errorf("%.40q is acknowledged\n%s, want\n%s", test.publish, got, test.want)
		}
	}
	// Refused records are not there, and a connection that is told on the reply subject is told nowhere else.
	l.Send("GET orders.eu/0\n")
	says(t, l, "+OK orders.eu/0@0")
}

func TestVerboseConnectionHearsAnswerAndAcknowledgement(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	hears(t, l, "TOPIC CREATE t", "+OK t")
	hears(t, l, "SUB re 1", "+OK")
	l.Send("PUB t re 2\r\nhi\r\n")
	got := l.Read() + "\n" + l.Read() + "\n" + l.Read()
	const ack = `{"stream":"t","seq":1,"partition":0,"offset":0,"durability":"disk"}`
	if !strings.Contains(got, "+OK t/0@0 disk") || !strings.Contains(got, "MSG re 1 "+itoa(len(ack))+"\n"+ack) {
		t.Errorf("heard %s", got)
	}
	hears(t, l, "PUB t/9 re 2\r\nhi", "MSG re 1…", `{"error":{"code":404…`, "-ERR UNKNOWN_PARTITION…")
}

func TestSubscriptionsAreBounded(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_LIMITS_SUBSCRIPTIONS=2"})
	l := s.Dial()
	hears(t, l, "SUB a 1", "+OK")
	hears(t, l, "SUB a 2", "+OK")
	hears(t, l, "SUB a 2", "+OK") // the same once more
	hears(t, l, "SUB a 3", "-ERR LIMIT_EXCEEDED…")
	hears(t, l, "UNSUB 1", "+OK")
	hears(t, l, "SUB a 3", "+OK")
	many := harness.Start(t).Dial()
	for i := range 10_000 {
		many.Send(fmt.Sprintf("SUB $a.%d %d\n", i, i))
	}
	for range 10_000 {
		says(t, many, "+OK")
	}
	hears(t, many, "PUB $a.9999 2\r\nhi", "+OK", "MSG $a.9999 9999 2", "hi")
}

// resident is a process's resident memory in bytes.
func resident(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// stalled is a client that subscribes and then reads nothing.
func stalled(t *testing.T, s *harness.Server, connect, subject string) *net.TCPConn {
	t.Helper()
	l := s.Dial()
	nc := l.Conn().(*net.TCPConn)
	_ = nc.SetReadBuffer(16 << 10)
	l.Send(connect + "SUB " + subject + " 1\nPING\n")
	for l.Read() != "PONG" {
	}
	return nc
}

func TestStalledSubscriberIsCutOffAndToldWhy(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_LIMITS_PENDING=1MiB"})
	for connect, want := range map[string]string{
		"": "-ERR ASYNC SLOW_CONSUMER 'SUB $flood: ",
		"CONNECT {\"verbose\":false,\"lang\":\"go\",\"version\":\"1\",\"protocol\":1}\n": "-ERR 'Slow Consumer'\r\n",
	} {
		nc := stalled(t, s, connect, "$flood")
		healthy, mouth := s.Dial(), s.Dial()
		hears(t, healthy, "SUB $flood 1", "+OK")
		mouth.Send("CONNECT {\"verbose\":false}\n")
		body := strings.Repeat("x", 1000)
		flood := []byte(strings.Repeat("PUB $flood 1000\r\n"+body+"\r\n", 100))
		heard := make(chan int, 1)
		go func() { // reads what the other does not
			n := 0
			for {
				text, err := healthy.TryRead()
				if err != nil || text == "MSG $end 2 0" {
					break
				}
				if text == body {
					n++
				}
			}
			heard <- n
		}()
		healthy.Send("SUB $end 2\n")
		sent := 0
		cuts := func() int { return strings.Count(s.Stderr(), "slow consumer cut off") }
		before := cuts()
		for end := time.Now().Add(harness.Patience); cuts() == before && time.Now().Before(end); sent += 100 {
			if _, err := mouth.Conn().Write(flood); err != nil {
				t.Fatal(err)
			}
		}
		mouth.Send("PING\n")
		says(t, mouth, "PONG")
		mouth.Send("PUB $end 0\r\n\r\n")
		if got := <-heard; got != sent {
			t.Errorf("who reads heard %d of %d", got, sent)
		}
		_ = nc.SetReadBuffer(1 << 20) // now it reads
		_ = nc.SetReadDeadline(time.Now().Add(harness.Patience))
		text, err := io.ReadAll(nc)
		if err != nil {
			t.Fatalf("%v after %d bytes, ending %.200q\n%s", err, len(text), text[max(0, len(text)-200):], s.Stderr())
		}
		last := text[bytes.LastIndex(text, []byte("-ERR")):]
		if !strings.HasPrefix(string(last), want) {
			t.Errorf("the last word is %q", last)
		}
		if frames := strings.Count(string(text), "MSG $flood 1 1000\r\n"); strings.Count(string(text), body+"\r\n") != frames {
			t.Error("a frame was cut short")
		}
	}
}

// TestLogBackedSubscriberWaitsInsteadOfBeingCutOff: what it does not take now it reads from the log later.
func TestLogBackedSubscriberWaitsInsteadOfBeingCutOff(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_LIMITS_PENDING=1MiB", "TRUNKLINE_LIMITS_WRITE_DEADLINE=1h"})
	mouth := s.Dial()
	hears(t, mouth, "TOPIC CREATE t", "+OK t")
	nc := stalled(t, s, "", "t")
	const n, size = 2000, 10_000
	body := strings.Repeat("x", size)
	mouth.Send("CONNECT {\"verbose\":false}\n")
	for range n {
		mouth.Send("PUB t 10000\r\n" + body + "\r\n")
	}
	mouth.Send("PING\n")
	says(t, mouth, "PONG")
	_ = nc.SetReadBuffer(1 << 20)
	_ = nc.SetReadDeadline(time.Now().Add(harness.Patience))
	got, buf := 0, make([]byte, 1<<20)
	for got < n*size {
		k, err := nc.Read(buf)
		if err != nil {
			t.Fatalf("after %d x: %v", got, err)
		}
		got += bytes.Count(buf[:k], []byte("x"))
	}
}

func TestManyStalledReadersTakeBoundedMemory(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_LIMITS_PENDING=64KiB", "TRUNKLINE_LIMITS_PAYLOAD=16KiB", "TRUNKLINE_LIMITS_WRITE_DEADLINE=1h"})
	const readers = 1000
	for range readers {
		stalled(t, s, "", "$flood")
	}
	before := resident(t, s.PID())
	mouth := s.Dial()
	mouth.Send("CONNECT {\"verbose\":false}\n")
	body := "PUB $flood 8000\r\n" + strings.Repeat("x", 8000) + "\r\n"
	most, sent := 0, 0
	for ; sent < 2000; sent++ { // 16 MB for each, 16 GB in all
		mouth.Send(body)
		if sent%50 == 0 {
			most = max(most, resident(t, s.PID())-before)
		}
	}
	mouth.Send("PING\n")
	says(t, mouth, "PONG")
	most = max(most, resident(t, s.PID())-before)
	// 64 KiB wait, twice that is being written, and a buffer may be twice as large as what is in it.
	limit := readers * 64 << 10 * 6
	if harness.Race() {
		limit *= 3 // the detector's own
	}
	if most > limit {
		t.Errorf("%d stalled readers took %d MiB, more than %d", readers, most>>20, limit>>20)
	}
	t.Logf("%d stalled readers took %d MiB at most", readers, most>>20)
}

func TestConnectionsAreBoundedAndToldSo(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_LIMITS_CONNECTIONS=2"})
	s.Dial()
	last := s.Dial()
	third := s.DialRaw()
	says(t, third, "-ERR LIMIT_EXCEEDED 'the server has 2 connections; close one, or raise limits.connections'")
	hears(t, last, "PING", "PONG")
}

func TestSilentClientIsAskedAndGivenUp(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_LIMITS_PING_INTERVAL=50ms"})
	byHand := s.Dial() // said no CONNECT, and need not know of PING
	for connect, want := range map[string]string{
		`CONNECT {"verbose":false}`:                                        "-ERR ASYNC TIMEOUT '…",
		`CONNECT {"verbose":false,"lang":"go","version":"1","protocol":1}`: "-ERR 'Stale Connection'",
	} {
		alive, silent := s.Dial(), s.Dial()
		for _, l := range []*harness.Line{alive, silent} {
			l.Send(connect + "\n")
		}
		for range 5 {
			says(t, alive, "PING")
			alive.Send("PONG\n")
		}
		says(t, silent, "PING", "PING", want)
		if got, err := silent.TryRead(); err == nil {
			t.Errorf("it goes on with %q", got)
		}
	}
	hears(t, byHand, "PING", "PONG")
}

func TestLameDuckLetsItsClientsGo(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_LIMITS_LAME_DUCK_GRACE=300ms", "TRUNKLINE_LIMITS_LAME_DUCK_SPREAD=300ms"}, "--advertise", "example.com:4222")
	l := s.DialRaw()
	if got := l.Read(); !strings.Contains(got, `"connect_urls":["example.com:4222"]`) || strings.Contains(got, `"ldm"`) {
		t.Errorf("greeting %q", got)
	}
	l.Send("CONNECT {\"verbose\":false}\nPING\n")
	says(t, l, "PONG")
	other := s.Dial()
	start := time.Now()
	if err := syscall.Kill(s.PID(), syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	if got := l.Read(); !strings.HasPrefix(got, "INFO {") || !strings.Contains(got, `"ldm":true`) || strings.Contains(got, "connect_urls") {
		t.Errorf("news %q", got)
	}
	hears(t, other, "SEND t still served", "+OK t/0@0 disk")
	harness.Eventually(t, "no new connection is served", func() bool {
		nc, err := net.Dial("tcp", s.Client)
		if err != nil {
			return true
		}
		_ = nc.Close()
		return false
	})
	says(t, l, "-ERR ASYNC SHUTTING_DOWN…")
	if code := s.Wait(); code != 0 {
		t.Errorf("exit code %d\n%s", code, s.Stderr())
	}
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("gone after %s, within the grace", took)
	}
}
