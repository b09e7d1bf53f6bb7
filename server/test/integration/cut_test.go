package integration

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// cutter passes one connection on to a server and cuts it when it has carried a number of bytes in one direction.
type cutter struct {
	listener net.Listener
	server   string
	toServer bool  // which direction is counted
	after    int64 // bytes
	wg       sync.WaitGroup
}

// cutAfter starts a cutter for s and returns its address. Only one of its connections, the one that carries enough, is
// cut.
func cutAfter(t *testing.T, s *harness.Server, toServer bool, bytes int64) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{listener: l, server: s.Client, toServer: toServer, after: bytes}
	c.wg.Go(c.accept)
	t.Cleanup(func() { _ = l.Close(); c.wg.Wait() })
	return l.Addr().String()
}

func (c *cutter) accept() {
	for {
		client, err := c.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", c.server)
		if err != nil {
			_ = client.Close()
			continue
		}
		c.wg.Go(func() { c.pass(server, client, c.toServer) })
		c.wg.Go(func() { c.pass(client, server, !c.toServer) })
	}
}

// pass copies until the end, or until enough was carried; then it closes both ends.
func (c *cutter) pass(to, from net.Conn, counted bool) {
	defer func() { _, _ = to.Close(), from.Close() }()
	if counted {
		_, _ = io.CopyN(to, from, c.after)
		return
	}
	_, _ = io.Copy(to, from)
}

// TestALinkThatIsCutLosesNothingAcknowledged cuts pub --lines, which sends batches where the topic is there.
func TestALinkThatIsCutLosesNothingAcknowledged(t *testing.T) {
	s := harness.Start(t)
	lines := corpus(corpusLines / 4)
	file := append(bytes.Join(lines, []byte("\n")), '\n')
	for topic, args := range map[string][]string{"bypub": nil, "inbatches": nil, "ofleader": {"--acks", "1"}} {
		t.Run(topic, func(t *testing.T) {
			if topic != "bypub" {
				succeeds(t, s, nil, "topic", "create", topic)
			}
			got := trunkline(t, cutAfter(t, s, true, int64(len(file)/2)), bytes.NewReader(file), append([]string{"pub", topic, "--lines"}, args...)...)
			var acked, sent int
			if _, err := fmt.Sscanf(got.err, "%d of %d records acknowledged", &acked, &sent); err != nil || got.code != 1 || acked >= sent || sent > len(lines) {
				t.Fatalf("%+v: %v", got, err)
			}
			if !strings.Contains(got.err, fmt.Sprintf("\ntrunkline: line %d: link ended before", acked+1)) {
				t.Errorf("it says %q", got.err)
			}
			have := []byte(succeeds(t, s, nil, "sub", topic+"/0@earliest", "--exit").out)
			if n := bytes.Count(have, []byte("\n")); n < acked || n > sent || !bytes.HasPrefix(file, have) {
				t.Errorf("%d records are there, %d were acknowledged and %d sent: %s", n, acked, sent, firstDifference(have, file))
			}
		})
	}
}

func TestAReaderSaysThatItsLinkWasCut(t *testing.T) {
	s := harness.Start(t)
	file := append(bytes.Join(corpus(corpusLines/4), []byte("\n")), '\n')
	succeeds(t, s, bytes.NewReader(file), "pub", "cut", "--lines")
	for _, how := range []string{"sub cut@earliest --exit", "get cut -c 15000"} {
		got := trunkline(t, cutAfter(t, s, false, 500_000), nil, strings.Fields(how)...)
		if got.code != 1 || !strings.Contains(got.err, "server closed the connection") {
			t.Errorf("%s: exit code %d, it says %q", how, got.code, got.err)
		}
		if len(got.out) == 0 || len(got.out) >= len(file) || !bytes.HasPrefix(file, []byte(got.out)) {
			t.Errorf("%s: printed %d of %d bytes: %s", how, len(got.out), len(file), firstDifference([]byte(got.out), file))
		}
	}
	// Without an end to stop at, it goes on where it was.
	got := trunkline(t, cutAfter(t, s, false, 500_000), nil, "sub", "cut@earliest", "-c", strconv.Itoa(bytes.Count(file, []byte("\n"))))
	if got.code != 0 || !strings.Contains(got.err, "server closed the connection; connecting again") {
		t.Errorf("sub: exit code %d, it says %q", got.code, got.err)
	}
	if got.out != string(file) {
		t.Errorf("sub: printed %d of %d bytes: %s", len(got.out), len(file), firstDifference([]byte(got.out), file))
	}
}

// TestAServerKilledInTheMiddleIsSaid has a publisher that waits for its next line when the server is killed.
func TestAServerKilledInTheMiddleIsSaid(t *testing.T) {
	s := harness.Start(t)
	in, more, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	if _, err := more.WriteString("one\ntwo\n"); err != nil {
		t.Fatal(err)
	}
	l := s.Dial()
	l.Ask("TOPIC CREATE waits")
	done := make(chan outcome, 1)
	go func() { done <- trunkline(t, s.Client, in, "pub", "waits", "--lines") }()
	harness.Eventually(t, "two lines have come", func() bool {
		l.Send("GET waits/0@latest\n")
		return l.Read() == "+OK waits/0@2"
	})
	killAll(t, s)
	if _, err := more.WriteString("three\n"); err != nil {
		t.Fatal(err)
	}
	_ = more.Close()
	got := <-done
	var acked int // what is visible may not have been told yet when the kill came
	if _, err := fmt.Sscanf(got.err, "%d of ", &acked); err != nil || got.code != 1 || acked > 2 ||
		!strings.Contains(got.err, fmt.Sprintf("\ntrunkline: line %d: link ended", acked+1)) {
		t.Errorf("%+v", got)
	}
	s.Restart()
	if got := succeeds(t, s, nil, "sub", "waits@earliest", "--exit"); got.out != "one\ntwo\n" {
		t.Errorf("%q", got.out)
	}
}

func TestInterruptEndsASubscription(t *testing.T) {
	s := harness.Start(t)
	succeeds(t, s, nil, "pub", "one", "here it is")
	cmd := exec.CommandContext(t.Context(), harness.Binary("trunkline"), "-s", s.Client, "sub", "one@earliest")
	cmd.Stdout = writer(func(b []byte) (int, error) { // the record has come: the subscription stands
		return len(b), cmd.Process.Signal(os.Interrupt)
	})
	var errs bytes.Buffer
	cmd.Stderr = &errs
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 130 || errs.String() != "next one/0@1\n" {
		t.Errorf("exit code %d, it says %q", code, errs.String())
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }
