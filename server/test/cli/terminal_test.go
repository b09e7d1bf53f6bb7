package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// terminal is a pseudo terminal with a program on it.
type terminal struct {
	master *os.File
	cmd    *exec.Cmd
	reader sync.WaitGroup

	mu   sync.Mutex
	seen bytes.Buffer
}

// onTerminal starts the client on a terminal, with more in its environment.
func onTerminal(t *testing.T, s *harness.Server, env []string, args ...string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{master: master, cmd: exec.CommandContext(t.Context(), harness.Binary("trunkline"), args...)}
	term.cmd.Env = append(append(os.Environ(), "TRUNKLINE_URL="+s.Client, "GORACE=atexit_sleep_ms=0", "TERM=xterm", "NO_COLOR="), env...)
	term.cmd.Stdin, term.cmd.Stdout, term.cmd.Stderr = slave, slave, slave
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := term.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	term.reader.Go(term.read)
	t.Cleanup(func() { _ = term.cmd.Process.Kill(); _ = master.Close() })
	return term
}

// read keeps what is seen until the program has left the terminal.
func (term *terminal) read() {
	b := make([]byte, 4096)
	for {
		n, err := term.master.Read(b)
		term.mu.Lock()
		term.seen.Write(b[:n])
		term.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (term *terminal) text() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.seen.String()
}

// end waits for the program and returns its exit code.
func (term *terminal) end() int {
	_ = term.cmd.Wait()
	term.reader.Wait()
	return term.cmd.ProcessState.ExitCode()
}

func (term *terminal) waitFor(t *testing.T, text string) {
	t.Helper()
	harness.Eventually(t, fmt.Sprintf("%q is seen", text), func() bool { return strings.Contains(term.text(), text) })
}

func TestPromptsAreOnTerminalsOnly(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	s.Dial().Ask("SEND t x")
	const question = "Delete the topic t and all its records? [y/N] "
	for _, answer := range []string{"n\n", "\n", "\x04"} { // the last is Ctrl-D
		term := onTerminal(t, s, nil, "topic", "rm", "t")
		term.waitFor(t, question)
		if _, err := term.master.WriteString(answer); err != nil {
			t.Fatal(err)
		}
		if code := term.end(); code != 1 || !strings.Contains(term.text(), "not confirmed; nothing was changed") {
			t.Errorf("answer %q: exit code %d\n%s", answer, code, term.text())
		}
	}
	term := onTerminal(t, s, nil, "topic", "rm", "t")
	term.waitFor(t, question)
	if _, err := term.master.WriteString("\x03"); err != nil { // Ctrl-C
		t.Fatal(err)
	}
	if code := term.end(); code != 130 {
		t.Errorf("exit code %d\n%s", code, term.text())
	}
	if got := s.Dial().Ask("GET t/0@latest"); got != "+OK t/0@1" {
		t.Fatalf("the topic is not as it was: %q", got)
	}
	term = onTerminal(t, s, nil, "topic", "rm", "t")
	term.waitFor(t, question)
	if _, err := term.master.WriteString("y\n"); err != nil {
		t.Fatal(err)
	}
	if code := term.end(); code != 0 || !strings.Contains(term.text(), "deleted t") {
		t.Errorf("exit code %d\n%s", code, term.text())
	}
	s.Dial().Ask("SEND t x")
	term = onTerminal(t, s, nil, "topic", "rm", "t", "--yes")
	if code := term.end(); code != 0 || strings.Contains(term.text(), "[y/N]") {
		t.Errorf("with --yes: exit code %d\n%s", code, term.text())
	}
}

func TestProgressBarIsOnTerminalsOnly(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	term := onTerminal(t, s, nil, "bench", "produce", "t", "--count", "1000", "--rate", "1000")
	term.waitFor(t, "/1,000  ")
	if code := term.end(); code != 0 || !strings.Contains(term.text(), "\r\x1b[K1000 of 1000 records acknowledged") {
		t.Errorf("exit code %d\n%q", code, term.text())
	}
	for _, form := range []string{"--json", "--csv"} {
		term := onTerminal(t, s, nil, "bench", "produce", "t", "--count", "600", "--rate", "1000", form)
		if code := term.end(); code != 0 || strings.Contains(term.text(), "\x1b") {
			t.Errorf("%s: exit code %d\n%q", form, code, term.text())
		}
	}
}

func TestColoursAreOnTerminalsOnly(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	for _, c := range []struct {
		env      []string
		coloured bool
	}{{nil, true}, {[]string{"NO_COLOR=1"}, false}, {[]string{"TERM=dumb"}, false}} {
		term := onTerminal(t, s, c.env, "topic", "info", "nowhere")
		code := term.end()
		text := term.text()
		if code != 5 || strings.Contains(text, "\x1b[31m") != c.coloured || !strings.Contains(text, "\nfix: trunkline topic ls lists the topics;") {
			t.Errorf("%v: exit code %d\n%q", c.env, code, text)
		}
	}
	got, code := harness.NewConsole(t, s.Client).Run(t, "trunkline topic info nowhere")
	if code != "5" || strings.Contains(got, "\x1b") || strings.Count(got, "\n") != 3 {
		t.Errorf("exit code %s\n%q", code, got)
	}
}
