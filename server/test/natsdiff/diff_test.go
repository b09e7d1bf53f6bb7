// Package natsdiff runs scripts of core NATS against nats-server and against this server, and compares what every client
// is sent, frame by frame: an unmodified client must not be able to tell the two apart.
package natsdiff

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// scripts is how many are compared.
const scripts = 200

func TestClientsCannotTellTheServersApart(t *testing.T) {
	theirs := startNATS(t)
	ours := harness.StartIn(t, []string{"TRUNKLINE_TOPICS_AUTO_CREATE=false"}).Client
	frames, kinds := 0, map[string]int{}
	for seed := range uint64(scripts) {
		s := newScript(seed)
		want, got := play(t, theirs, s), play(t, ours, s)
		for i := range want {
			frames += len(want[i].frames)
			for _, f := range want[i].frames {
				kinds[kind(f)]++
			}
			if !slices.Equal(want[i].frames, got[i].frames) {
				t.Fatalf("script %d, step %d, client %d sent %q\nnats-server: %q\ntrunkline:   %q\nbefore it:\n%s",
					seed, i, s.steps[i].conn, s.steps[i].text, want[i].frames, got[i].frames, history(s, i))
			}
		}
	}
	t.Logf("%d frames compared: %v", frames, kinds)
	for _, k := range []string{"MSG", "HMSG", "503", "+OK", "-ERR", "GROUP", "INFO"} {
		if kinds[k] < scripts/8 {
			t.Errorf("only %d frames of kind %s came: the scripts do not show what they are for", kinds[k], k)
		}
	}
}

func kind(f string) string {
	_, rest, _ := strings.Cut(f, " ") // the client
	word, _, _ := strings.Cut(rest, " ")
	if strings.Contains(rest, "NATS/1.0 503") {
		return "503"
	}
	return word
}

func history(s script, upTo int) string {
	var b strings.Builder
	for i, c := range s.connect {
		fmt.Fprintf(&b, "  %d %s\n", i, c)
	}
	for _, step := range s.steps[:upTo] {
		fmt.Fprintf(&b, "  %d %q\n", step.conn, step.text)
	}
	return b.String()
}

func startNATS(t *testing.T) string {
	t.Helper()
	return startNATSWith(t, &natsd.Options{})
}

func startNATSWith(t *testing.T, o *natsd.Options) string {
	t.Helper()
	return startServer(t, o).Addr().String()
}

func startServer(t *testing.T, o *natsd.Options) *natsd.Server {
	t.Helper()
	o.Host, o.Port, o.NoLog, o.NoSigs = "127.0.0.1", -1, true, true
	s, err := natsd.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(harness.Patience) {
		t.Fatal("nats-server is not ready")
	}
	return s
}

// outcome is what all clients were sent after one step. What reaches several subscriptions of a client comes in no
// fixed order, so the frames of a step are sorted; the steps are not.
type outcome struct{ frames []string }

// play runs a script. After each step every client sends PING, and what comes before its PONG belongs to the step.
func play(t *testing.T, addr string, s script) []outcome {
	t.Helper()
	var all [connections]*client
	for i := range all {
		all[i] = dial(t, addr, s.connect[i])
		all[i].id = strconv.Itoa(i)
	}
	results := make([]outcome, 0, len(s.steps))
	for _, step := range s.steps {
		all[step.conn].send(t, step.text+"PING\r\n")
		var o outcome
		pongs := 1
		if step.text == "PING\r\n" {
			pongs++
		}
		o.frames = all[step.conn].until(t, pongs)
		for _, c := range all { // the publisher's PONG is here: everything is on its way
			c.send(t, "PING\r\n")
		}
		for _, c := range all {
			o.frames = append(o.frames, c.until(t, 1)...)
		}
		for i, f := range o.frames {
			o.frames[i] = s.anonymous(f)
		}
		slices.Sort(o.frames)
		results = append(results, o)
	}
	for _, c := range all {
		_ = c.nc.Close()
	}
	return results
}

// anonymous takes out what is left to chance. It makes the members of a group equal: which of them a message reaches is chance.
func (s *script) anonymous(f string) string {
	fields := strings.Fields(f)
	if len(fields) < 4 || fields[1] != "MSG" && fields[1] != "HMSG" {
		return f
	}
	if strings.Contains(f, "NATS/1.0 503") { // to one of the subscriptions that wait for the reply
		fields[3] = "-"
		return strings.Join(fields, " ")
	}
	group, ok := s.groups[fields[0]+" "+fields[3]]
	if !ok {
		return f
	}
	return "- GROUP " + group + " " + fields[2]
}

type client struct {
	id string
	nc net.Conn
	r  *bufio.Reader

	greeting string
}

func dial(t *testing.T, addr, connect string) *client {
	t.Helper()
	nc, err := net.DialTimeout("tcp", addr, harness.Patience)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{nc: nc, r: bufio.NewReader(nc)}
	c.greeting, err = c.r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	c.send(t, connect+"\r\nPING\r\n")
	c.until(t, 1)
	return c
}

func (c *client) send(t *testing.T, text string) {
	t.Helper()
	_ = c.nc.SetDeadline(time.Now().Add(harness.Patience))
	if _, err := c.nc.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// until reads whole frames up to the PONG that is awaited.
func (c *client) until(t *testing.T, pongs int) []string {
	t.Helper()
	var frames []string
	for {
		text, err := c.r.ReadString('\n')
		if err != nil {
			t.Fatalf("read: %v (got %q after %q)", err, text, frames)
		}
		text = strings.TrimRight(text, "\r\n")
		fields := strings.Fields(text)
		switch {
		case text == "PONG":
			if pongs--; pongs == 0 {
				return frames
			}
		case text == "PING":
			continue
		case fields[0] == "INFO": // the servers' names differ, and whatever else they say of themselves
			text = "INFO connect_info=" + strconv.FormatBool(strings.Contains(text, `"connect_info":true`))
		case fields[0] == "MSG" || fields[0] == "HMSG":
			n, err := strconv.Atoi(fields[len(fields)-1])
			if err != nil {
				t.Fatalf("frame %q", text)
			}
			body := make([]byte, n+2)
			if _, err := io.ReadFull(c.r, body); err != nil {
				t.Fatal(err)
			}
			text += "\r\n" + string(body)
		}
		frames = append(frames, c.id+" "+text)
	}
}
