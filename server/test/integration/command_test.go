package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// commandPatience bounds a run of the command line client.
const commandPatience = 2 * time.Minute

// quickExit is for programs built with the race detector, which otherwise wait a second before they end.
const quickExit = "GORACE=atexit_sleep_ms=0"

// outcome is what one run of a program did.
type outcome struct {
	code     int
	out, err string
}

// trunkline runs the command line client on a server, with in as standard input.
func trunkline(t *testing.T, url string, in io.Reader, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, harness.Binary("trunkline"), args...)
	cmd.Env = []string{"TRUNKLINE_URL=" + url, quickExit}
	return finish(t, cmd, in)
}

// finish runs a prepared command to its end.
func finish(t *testing.T, cmd *exec.Cmd, in io.Reader) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return outcome{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// succeeds runs the client, which must end well, and returns what it printed.
func succeeds(t *testing.T, s *harness.Server, in io.Reader, args ...string) outcome {
	t.Helper()
	got := trunkline(t, s.Client, in, args...)
	if got.code != 0 {
		t.Fatalf("trunkline %s: exit code %d\n%s\n%s", strings.Join(args, " "), got.code, got.err, s.Stderr())
	}
	return got
}

// corpus is the lines of a file as files are: short ones that carry their number, empty ones, ones that end in CR or
// have it inside, binary ones, and a few of 100 KiB. It is the same each time.
func corpus(count int) [][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	lines := make([][]byte, count)
	for i := range lines {
		switch {
		case i%11 == 3:
			lines[i] = []byte{}
		case i%97 == 5:
			lines[i] = []byte("\r")
		case i%13 == 1:
			lines[i] = fmt.Appendf(nil, "%d has \r a carriage return inside", i)
		case i%17 == 2:
			lines[i] = fmt.Appendf(nil, "%d ends like a line of another system\r", i)
		case i%19 == 4:
			lines[i] = binary(random, fmt.Appendf(nil, "%d ", i), 200)
		case i%3000 == 6:
			lines[i] = binary(random, fmt.Appendf(nil, "%d ", i), 100<<10)
		default:
			lines[i] = fmt.Appendf(nil, "%d  ordinary text with blanks in front of nothing \t", i)
		}
	}
	return lines
}

// binary appends any bytes but LF to b, up to size in all.
func binary(random *rand.Rand, b []byte, size int) []byte {
	for len(b) < size {
		if c := byte(random.Uint32()); c != '\n' {
			b = append(b, c)
		}
	}
	return b
}

// firstDifference says where got leaves want, empty where it does not.
func firstDifference(got, want []byte) string {
	if bytes.Equal(got, want) {
		return ""
	}
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	clip := func(b []byte) []byte { return b[i:min(len(b), i+60)] }
	return fmt.Sprintf("%d bytes instead of %d; from byte %d on %q instead of %q", len(got), len(want), i, clip(got), clip(want))
}

// stopPlugins stops the server's plugins in their tracks, until the returned function is called; it may be called twice.
func stopPlugins(t *testing.T, s *harness.Server) (resume func()) {
	t.Helper()
	plugins := s.Plugins()
	for kind, pid := range plugins {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(kind, err)
		}
	}
	return func() {
		for _, pid := range plugins {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
}
