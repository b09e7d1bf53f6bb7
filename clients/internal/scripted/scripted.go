// Package scripted is a server for tests of clients: it plays transcripts over real sockets, one a connection, and cuts
// them where the script says so. It knows nothing of the protocol; the script says every line.
package scripted

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds how long a script waits for a client, so that a test fails and does not hang.
const patience = time.Minute

// Hello is the handshake with the Go client, by a server that takes payloads of 100 bytes.
const Hello = `
< INFO {"server_id":"S1","version":"2.12.0","proto":1,"headers":true,"max_payload":100,"trunkline":{"version":"0.1.0","protocol":1,"broker":1,"cluster":"c"}}
> CONNECT {"verbose":true,"pedantic":false,"lang":"trunkline-go","version":"0.1.0","protocol":1,"echo":true,"headers":true,"timestamps":true,"addresses":true}
< +OK
`

// Start listens and plays one script to each connection, in order. A script's lines are "> " what must come,
// "< " what is sent with a line end, "<- " what is sent without, and "cut" to close; at its end the connection stays
// open until the client closes it. Blanks that repeat in what came count as one. What stands together
// is sent together.
func Start(t testing.TB, scripts ...string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i, script := range scripts {
			conn, err := ln.Accept()
			if err != nil {
				t.Errorf("connection %d of %d did not come: %v", i+1, len(scripts), err)
				return
			}
			wg.Go(func() {
				defer conn.Close()
				if err := Play(conn, script); err != nil {
					t.Errorf("connection %d: %v", i+1, err)
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// Play plays one script on conn and returns what did not go by it. It leaves conn open.
func Play(conn net.Conn, script string) error {
	conn.SetDeadline(time.Now().Add(patience))
	in, out := bufio.NewReader(conn), bufio.NewWriter(conn)
	for _, step := range strings.Split(strings.Trim(script, "\n"), "\n") {
		var err error
		switch {
		case step == "cut":
			return out.Flush()
		case step == ">" || strings.HasPrefix(step, "> "):
			if err = out.Flush(); err != nil {
				break
			}
			var got string
			if got, err = in.ReadString('\n'); err == nil {
				got = strings.TrimSuffix(strings.TrimSuffix(got, "\n"), "\r")
				if strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(strings.TrimPrefix(step[1:], " ")), " ") {
					return fmt.Errorf("got %q, want %q", got, step)
				}
			}
		case strings.HasPrefix(step, "< "):
			_, err = out.WriteString(step[2:] + "\r\n")
		case strings.HasPrefix(step, "<- "):
			_, err = out.WriteString(step[3:])
		case step != "":
			return fmt.Errorf("bad step %q", step)
		}
		if err != nil {
			return fmt.Errorf("at %q: %w", step, err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	if rest, err := in.ReadString('\n'); err == nil {
		return fmt.Errorf("after the script came %q", rest)
	}
	return nil
}
