package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
)

// exchange sends out, reads answers until enough says that it has seen all, and returns how many objects this process,
// server and client together, allocated meanwhile.
func exchange(t *testing.T, nc net.Conn, r *bufio.Reader, out []byte, enough func(line []byte) (bool, error)) float64 {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var writer errgroup.Group
	writer.Go(func() error {
		_, err := nc.Write(out)
		return err
	})
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			t.Fatal(err)
		}
		over, err := enough(line)
		if err != nil {
			t.Fatal(err)
		}
		if over {
			break
		}
	}
	runtime.ReadMemStats(&after)
	if err := writer.Wait(); err != nil {
		t.Fatal(err)
	}
	return float64(after.Mallocs - before.Mallocs)
}

// hello dials and says CONNECT.
func (s *inside) hello(t *testing.T, connect string) (net.Conn, *bufio.Reader) {
	t.Helper()
	nc, r, err := tcp(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	if _, err := io.WriteString(nc, connect+"\r\nPING\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := untilPong(r); err != nil {
		t.Fatal(err)
	}
	return nc, r
}

const measuredRecords = 20_000

// TestPathsAllocateNothingForARecord measures each path twice: buffers grow to their size the first time.
func TestPathsAllocateNothingForARecord(t *testing.T) {
	s := startInside(t)
	if err := s.create("t", 1); err != nil {
		t.Fatal(err)
	}
	const quiet = `CONNECT {"verbose":false}`
	body := strings.Repeat("v", recordBytes)
	block := "NATS/1.0\r\nKey: anna\r\nX: one\r\nY: two\r\n\r\n"
	hpub := fmt.Sprintf("HPUB t %d %d\r\n%s%s\r\n", len(block), len(block)+recordBytes, block, body)
	pong := func(line []byte) (bool, error) {
		if bytes.HasPrefix(line, []byte("-ERR")) {
			return false, fmt.Errorf("answered with %q", line)
		}
		return string(line) == "PONG\r\n", nil
	}
	published := func(pub string) func(t *testing.T) float64 {
		return func(t *testing.T) float64 {
			nc, r := s.hello(t, quiet)
			return exchange(t, nc, r, []byte(strings.Repeat(pub, measuredRecords)+"PING\r\n"), pong)
		}
	}
	counted := func(prefix string) func(line []byte) (bool, error) {
		n, want := 0, []byte(prefix)
		return func(line []byte) (bool, error) {
			if bytes.HasPrefix(line, want) {
				n++
			}
			return n == measuredRecords, nil
		}
	}
	for _, path := range []struct {
		name string
		run  func(t *testing.T) float64
	}{
		{"PUB", published(fmt.Sprintf("PUB t %d\r\n%s\r\n", recordBytes, body))},
		{"HPUB", published(hpub)},
		{"MSG and HMSG of a topic", func(t *testing.T) float64 {
			nc, r := s.hello(t, quiet)
			return exchange(t, nc, r, []byte("SUB t@earliest 1\r\n"), counted("HMSG t/0@"))
		}},
		{"MSG of a live subject", func(t *testing.T) float64 {
			nc, r := s.hello(t, quiet)
			pub := fmt.Sprintf("PUB $live %d\r\n%s\r\n", recordBytes, body)
			return exchange(t, nc, r, []byte("SUB $live 1\r\n"+strings.Repeat(pub, measuredRecords)), counted("MSG $live"))
		}},
		{"FETCH", func(t *testing.T) float64 {
			nc, r := s.hello(t, quiet)
			return exchange(t, nc, r, []byte("FETCH t/0@0 max=2MiB\r\n"), func(line []byte) (bool, error) {
				if n, ok := bytes.CutPrefix(line, []byte("BATCH ")); ok {
					size, _ := number(bytes.TrimSpace(n[bytes.LastIndexByte(n, ' ')+1:]))
					if size < measuredRecords*recordBytes/2 {
						return false, fmt.Errorf("only %d bytes", size)
					}
					_, err := r.Discard(int(size) + 2)
					return false, err
				}
				return string(line) == "+OK\r\n", nil
			})
		}},
	} {
		t.Run(path.name, func(t *testing.T) {
			path.run(t)
			if got := path.run(t) / measuredRecords; got > perRecordMax {
				t.Errorf("%.3f allocations a record", got)
			} else {
				t.Logf("%.4f allocations a record", got)
			}
		})
	}
}

// TestLargePayloadsAreReadIntoMemoryThatIsThere: whoever sends batches of 1 MiB one after the other would else have the
// collector run all the time. A pool loses some of what it is given, with -race a quarter; one that is given nothing costs
// a payload for each.
func TestLargePayloadsAreReadIntoMemoryThatIsThere(t *testing.T) {
	s := startInside(t)
	if err := s.create("t", 1); err != nil {
		t.Fatal(err)
	}
	const requests = 48
	batch, _ := fullBatch(bytes.Repeat([]byte("v"), 1024), 1<<20-1<<10)
	large := strings.Repeat("v", 1<<20-1<<10)
	for _, verb := range []struct {
		name    string
		request []byte
	}{
		{"PRODUCE", fmt.Appendf(nil, "PRODUCE t/0 %d\r\n%s\r\n", len(batch), batch)},
		{"PUB", fmt.Appendf(nil, "PUB t/0 %d\r\n%s\r\n", len(large), large)},
	} {
		t.Run(verb.name, func(t *testing.T) {
			nc, r := s.hello(t, "CONNECT {}")
			run := func() {
				for range requests {
					if _, err := nc.Write(verb.request); err != nil {
						t.Fatal(err)
					}
					if line, err := r.ReadSlice('\n'); err != nil || !bytes.HasPrefix(line, []byte("+OK ")) {
						t.Fatalf("answered with %.80q, %v", line, err)
					}
				}
			}
			run()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			run()
			runtime.ReadMemStats(&after)
			if got := (after.TotalAlloc - before.TotalAlloc) / requests; got > uint64(len(verb.request))*9/10 {
				t.Errorf("%d bytes allocated for a request of %d", got, len(verb.request))
			} else {
				t.Logf("%d bytes allocated for a request of %d", got, len(verb.request))
			}
		})
	}
}
