package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// process is a command that runs.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err bytes.Buffer
}

func start(t *testing.T, s *harness.Server, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*harness.Patience)
	t.Cleanup(cancel)
	p := &process{cmd: exec.CommandContext(ctx, harness.Binary("trunkline"), args...)}
	p.cmd.Env = append(os.Environ(), "TRUNKLINE_URL="+s.Client, "GORACE=atexit_sleep_ms=0")
	p.cmd.Stderr = &p.err
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	return p
}

// interrupt is Ctrl-C. It returns what else was printed and the exit code.
func (p *process) interrupt(t *testing.T) (rest string, code int) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	return p.finish(t)
}

func (p *process) finish(t *testing.T) (rest string, code int) {
	t.Helper()
	b, err := io.ReadAll(p.out)
	if err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
	return string(b), p.cmd.ProcessState.ExitCode()
}

func (p *process) line(t *testing.T) string {
	t.Helper()
	text, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("%v after %q\n%s", err, text, p.err.String())
	}
	return text
}

// TestInterruptedPublishTellsEveryAnswer checks three counts against each other: what was printed, what the summary says,
// and what is in the log.
func TestInterruptedPublishTellsEveryAnswer(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	p := start(t, s, "pub", "t", "record {{.Count}}", "--count", "100000000")
	printed := 0
	for range 3000 {
		p.line(t)
		printed++
	}
	rest, code := p.interrupt(t)
	printed += strings.Count(rest, "\n")
	var acked, of int
	if _, err := fmt.Sscanf(p.err.String(), "%d of %d records acknowledged", &acked, &of); err != nil || code != 130 || of != 100000000 || acked != printed {
		t.Errorf("exit code %d, %d answers printed, it says %q", code, printed, p.err.String())
	}
	console := harness.NewConsole(t, s.Client)
	if out, _ := console.Run(t, "trunkline get t/0@latest"); out != fmt.Sprintf("next t/0@%d\n", printed) {
		t.Errorf("%d answers were printed, and the log says %q", printed, out)
	}
}

func TestInterruptedLinesTellWhatWasAcknowledged(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]struct {
		acks  string
		known bool // the topic is there before
	}{"by PUB": {"all", false}, "in batches": {"all", true}, "acks of the leader": {"1", true}} {
		t.Run(name, func(t *testing.T) { t.Parallel(); interruptLines(t, how.acks, how.known) })
	}
}

func interruptLines(t *testing.T, acks string, known bool) {
	s := harness.Start(t)
	if known {
		s.Dial().Ask("TOPIC CREATE t")
	}
	p := start(t, s, "pub", "t", "--lines", "--acks", acks)
	if _, err := io.WriteString(p.in, strings.Repeat("a line\n", 1000)+"the beginning of one"); err != nil {
		t.Fatal(err)
	}
	l := s.Dial()
	harness.Eventually(t, "all whole lines are there", func() bool { return strings.HasPrefix(l.Ask("GET t/0@latest"), "+OK t/0@1000") })
	out, code := p.interrupt(t)
	if code != 130 || out != "" || !strings.HasPrefix(p.err.String(), "1000 of 1000 records acknowledged (disk), ") {
		t.Errorf("exit code %d, %q, it says %q", code, out, p.err.String())
	}
}

func TestInterruptedSubscriptionSaysWhereToGoOn(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	l := s.Dial()
	for i := range 3 {
		l.Ask(fmt.Sprintf("SEND t record %d", i))
	}
	p := start(t, s, "sub", "t@earliest")
	for i := range 3 {
		if got := p.line(t); got != fmt.Sprintf("record %d\n", i) {
			t.Errorf("got %q", got)
		}
	}
	rest, code := p.interrupt(t)
	if code != 130 || rest != "" || p.err.String() != "next t/0@3\n" {
		t.Errorf("exit code %d, %q, it says %q", code, rest, p.err.String())
	}
}

// TestASubscriptionSaysWhereItHeardNothing has a record in one of two partitions.
func TestASubscriptionSaysWhereItHeardNothing(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	l := s.Dial()
	l.Ask("TOPIC CREATE t partitions=2")
	l.Ask("PUB t/1 4\nread")
	p := start(t, s, "sub", "t@earliest", "-c", "1")
	rest, code := p.finish(t)
	if code != 0 || rest != "read\n" || p.err.String() != "next t/0@0 t/1@1\n" {
		t.Errorf("exit code %d, %q, it says %q", code, rest, p.err.String())
	}
}

func TestInterruptedMeasurementIsReported(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	p := start(t, s, "bench", "produce", "t", "--count", "100000000", "--rate", "2000")
	l := s.Dial()
	harness.Eventually(t, "records are there", func() bool { return !strings.HasPrefix(l.Ask("GET t/0@latest"), "-ERR") })
	out, code := p.interrupt(t)
	if m := regexp.MustCompile(`^(\d+) of (\d+) records acknowledged`).FindStringSubmatch(out); code != 130 || m == nil || m[1] != m[2] || p.err.String() != "" {
		t.Errorf("exit code %d, %q, it says %q", code, out, p.err.String())
	}
}

// TestInterruptWhileConnecting lets the client wait for a greeting.
func TestInterruptWhileConnecting(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := start(t, &harness.Server{Client: l.Addr().String()}, "topic", "ls")
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if out, code := p.interrupt(t); code != 130 || out != "" || p.err.String() != "" {
		t.Errorf("exit code %d, %q, it says %q", code, out, p.err.String())
	}
}

// TestSubscriptionOutlivesTheServer kills the server under a subscription and starts it again at the same address.
func TestSubscriptionOutlivesTheServer(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	s.Dial().Ask("SEND t before")
	p := start(t, s, "sub", "t@earliest")
	if got := p.line(t); got != "before\n" {
		t.Fatalf("got %q", got)
	}
	s.Kill()
	again := harness.StartOn(t, s.Data, "--listen", s.Client)
	again.Dial().Ask("SEND t after")
	if got := p.line(t); got != "after\n" {
		t.Errorf("got %q", got)
	}
	_, code := p.interrupt(t)
	said := p.err.String()
	for _, want := range []string{"connection to " + s.Client + " ended: ", "connected to " + s.Client + " again", "next t/0@2\n"} {
		if !strings.Contains(said, want) || code != 130 {
			t.Errorf("exit code %d, it does not say %q:\n%s", code, want, said)
		}
	}
}
