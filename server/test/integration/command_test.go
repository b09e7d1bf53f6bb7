package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// commandPatience bounds a run of the command line client.
const commandPatience = 2 * time.Minute

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
	cmd.Env = []string{"TRUNKLINE_URL=" + url}
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
