package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const (
	recordBytes  = 100
	chunkRecords = 512 // of one write: 58 KiB
	runPatience  = 2 * time.Minute
)

// client is a connection that publishes raw lines: what is measured is the server, not a library. After dialling it
// allocates nothing.
type client struct {
	nc    net.Conn
	r     *bufio.Reader
	chunk []byte
	next  []int64 // by partition: the offset that has to come
}

// dial connects and prepares a chunk of PUBs to subject.
func dial(addr, subject string, partitions int) (*client, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &client{nc: nc, r: bufio.NewReaderSize(nc, 64<<10), next: make([]int64, partitions)}
	line := fmt.Sprintf("PUB %s %d\r\n%s\r\n", subject, recordBytes, strings.Repeat("v", recordBytes))
	c.chunk = []byte(strings.Repeat(line, chunkRecords))
	if err := nc.SetDeadline(time.Now().Add(runPatience)); err != nil {
		return nil, err
	}
	_, err = c.r.ReadSlice('\n') // INFO
	return c, err
}

func (c *client) write(chunks int) error {
	for range chunks {
		if _, err := c.nc.Write(c.chunk); err != nil {
			return err
		}
	}
	return nil
}

// publishAcknowledged publishes and reads every +OK, which names the next offset of its partition. It returns the time
// from the first byte out to the last one in.
func (c *client) publishAcknowledged(chunks int) (time.Duration, error) {
	start := time.Now()
	var writer errgroup.Group
	writer.Go(func() error { return c.write(chunks) })
	for range chunks * chunkRecords {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if err := c.check(line); err != nil {
			_ = c.nc.Close() // ends the writer
			_ = writer.Wait()
			return 0, err
		}
	}
	took := time.Since(start)
	return took, writer.Wait()
}

// check reads "+OK <topic>/<partition>@<offset> disk".
func (c *client) check(line []byte) error {
	_, where, _ := bytes.Cut(line, []byte{'/'})
	partition, where := number(where)
	if bytes.HasPrefix(line, []byte("+OK ")) && len(where) > 0 && where[0] == '@' && partition < int64(len(c.next)) {
		offset, rest := number(where[1:])
		if offset == c.next[partition] && string(rest) == " disk\r\n" {
			c.next[partition]++
			return nil
		}
	}
	return fmt.Errorf("answered with %q; the partitions' next offsets are %v", line, c.next)
}

// number reads digits.
func number(b []byte) (n int64, rest []byte) {
	for len(b) > 0 && '0' <= b[0] && b[0] <= '9' {
		n, b = 10*n+int64(b[0]-'0'), b[1:]
	}
	return n, b
}

// publishOnly is how core NATS publishes: nothing is answered, but the PING behind the last one.
func (c *client) publishOnly(chunks int) (time.Duration, error) {
	if _, err := c.nc.Write([]byte("CONNECT {\"verbose\":false,\"pedantic\":false}\r\n")); err != nil {
		return 0, err
	}
	start := time.Now()
	if err := c.write(chunks); err != nil {
		return 0, err
	}
	if _, err := c.nc.Write([]byte("PING\r\n")); err != nil {
		return 0, err
	}
	for {
		line, err := c.r.ReadSlice('\n')
		switch {
		case err != nil:
			return 0, err
		case string(line) == "PONG\r\n":
			return time.Since(start), nil
		case string(line) == "PING\r\n": // its own, of a new connection
			if _, err := c.nc.Write([]byte("PONG\r\n")); err != nil {
				return 0, err
			}
		case !bytes.HasPrefix(line, []byte("INFO ")):
			return 0, fmt.Errorf("answered with %q", line)
		}
	}
}

func TestTheClientChecksEveryAnswer(t *testing.T) {
	c := &client{next: make([]int64, 2)}
	for _, line := range []string{"+OK t/1@0 disk\r\n", "+OK t/1@1 disk\r\n", "+OK t/0@0 disk\r\n"} {
		if err := c.check([]byte(line)); err != nil {
			t.Error(err)
		}
	}
	for _, line := range []string{"+OK t/1@1 disk\r\n", "+OK t/1@3 disk\r\n", "+OK t/2@0 disk\r\n", "+OK t/0@1 page\r\n", "-ERR TIMEOUT 't/0@1 disk'\r\n", "\r\n"} {
		if c.check([]byte(line)) == nil {
			t.Errorf("%q is taken", line)
		}
	}
}

// TestBothPeersAreMeasurable runs a little of what the benchmark runs.
func TestBothPeersAreMeasurable(t *testing.T) {
	s := harness.Start(t)
	if took, err := publishTo(s, "t", 2, 2); err != nil || took <= 0 {
		t.Errorf("trunkline: %v, %v", took, err)
	}
	addr, _ := startPeer(t)
	if took, err := publishToPeer(addr, 2); err != nil || took <= 0 {
		t.Errorf("nats-server: %v, %v", took, err)
	}
}
