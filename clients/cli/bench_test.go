package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/clients/cli/measure"
	"github.com/trunkline-mq/trunkline/clients/internal/scripted"
)

// pubs is what bench produce sends for so many records of two bytes.
func pubs(count int) string {
	return strings.Repeat("> PUB one 2\n> "+string(measure.Payload(2))+"\n", count)
}

func TestBenchProduceChecksEveryAnswer(t *testing.T) {
	const ok = `^3 of 3 records acknowledged \(disk\), partitions: 2, 2 B each, in \d+\.\d\d s
[\d,]+ records/s, \d+\.\d MB/s
answered within \(ms\): half \d+\.\d{3}, 90 % \d+\.\d{3}, 99 % \d+\.\d{3}, 99\.9 % \d+\.\d{3}, all \d+\.\d{3}
$`
	for name, c := range map[string]struct {
		answers  string
		code     int
		out, err string // patterns
	}{
		"each partition from anywhere on": {"< +OK one/1@7 disk\n< +OK one/0@0 disk\n< +OK one/1@8 disk", 0, ok, `^$`},
		"an offset is left out":           {"< +OK one/0@0 disk\n< +OK one/0@2 disk\n< +OK one/0@3 disk", 1, `^3 of 3 `, `^trunkline: record 1 was acknowledged as one/0@2, behind 0: `},
		"an offset comes twice":           {"< +OK one/0@0 disk\n< +OK one/0@0 disk\n< +OK one/0@1 disk", 1, `^3 of 3 `, `^trunkline: record 1 was acknowledged as one/0@0, behind 0: `},
		"a record is refused":             {"< +OK one/0@0 disk\n< -ERR STORAGE_FULL 'full; clean'\n< +OK one/0@1 page", 1, `^2 of 3 records acknowledged \(disk, page\), `, `^trunkline: record 1: STORAGE_FULL: full\ncause: The disk .*\nfix: clean\n$`},
		"nothing is taken":                {strings.Repeat("< -ERR STORAGE_FULL 'full; clean'\n", 3), 1, `^0 of 3 records acknowledged, partitions: 0`, `^trunkline: record 0: STORAGE_FULL`},
	} {
		t.Run(name, func(t *testing.T) {
			address := scripted.Start(t, named+pubs(3)+"> PING\n"+c.answers+"\n< PONG")
			got := runWith(t, t.Context(), nil, "bench", "produce", "one", "--pub", "--count", "3", "--size", "2", "-s", address)
			if got.code != c.code || !regexp.MustCompile(c.out).MatchString(got.out) || !regexp.MustCompile(c.err).MatchString(got.err) {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestBenchProduceAsJSON(t *testing.T) {
	script := named + "> TOPIC CREATE one partitions=4\n< +OK one\n" + pubs(2) + "> PING\n< +OK one/3@0 disk\n< +OK one/3@1 disk\n< PONG"
	got := runWith(t, t.Context(), nil, "bench", "produce", "one", "--pub", "--count", "2", "--size", "2", "--partitions", "4", "--json", "-s", scripted.Start(t, script))
	var p measure.Result
	if err := json.Unmarshal([]byte(got.out), &p); err != nil || got.code != 0 || got.err != "" {
		t.Fatalf("%+v: %v", got, err)
	}
	if p.Address != "one" || p.Sent != 2 || p.Acknowledged != 2 || p.Durability["disk"] != 2 || p.Partitions != 1 || p.Size != 2 ||
		p.Seconds <= 0 || p.RecordsPerSecond <= 0 || math.Abs(p.BytesPerSecond-2*p.RecordsPerSecond) > 1e-6*p.BytesPerSecond || p.Answered == nil || p.Answered.P50 <= 0 || p.Answered.Max < p.Answered.P50 {
		t.Errorf("%+v", p)
	}
}

func TestBenchProduceReportsWhatTheLinkTook(t *testing.T) {
	script := named + pubs(2) + "< +OK one/0@0 disk\ncut"
	got := runWith(t, t.Context(), nil, "bench", "produce", "one", "--pub", "--count", "2", "--size", "2", "-s", scripted.Start(t, script))
	if got.code != 1 || !strings.HasPrefix(got.out, "1 of 2 records acknowledged (disk)") || !strings.HasPrefix(got.err, "trunkline: record 1: link ended before the answer, outcome unknown") {
		t.Errorf("%+v", got)
	}
}

func TestBenchProduceKeepsToItsWindow(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const count, window = 6, 2
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := answerByTwos(ln, count, window); err != nil {
			t.Error(err)
		}
	})
	got := runWith(t, t.Context(), nil, "bench", "produce", "one", "--pub", "--count", fmt.Sprint(count), "--window", fmt.Sprint(window), "-s", ln.Addr().String())
	wg.Wait()
	if got.code != 0 || !strings.HasPrefix(got.out, "6 of 6 records acknowledged (disk)") {
		t.Errorf("%+v", got)
	}
}

// answerByTwos is a server that waits for a whole window, sees that nothing more comes, and answers it.
func answerByTwos(ln net.Listener, count, window int) error {
	conn, err := ln.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	info, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(named), "< "), "\n")
	fmt.Fprintf(conn, "%s\r\n+OK\r\n", info)
	in := bufio.NewReader(conn)
	if _, err := in.ReadString('\n'); err != nil { // CONNECT
		return err
	}
	for first := 0; first < count; first += window {
		for range 2 * window { // PUB and its payload
			if _, err := in.ReadString('\n'); err != nil {
				return err
			}
		}
		conn.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
		if b, err := in.Peek(1); first+window < count && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("beyond the window of %d came %q, %v", window, b, err)
		}
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		for i := range window {
			fmt.Fprintf(conn, "+OK one/0@%d disk\r\n", first+i)
		}
	}
	fmt.Fprint(conn, "PONG\r\n")
	_, _ = in.ReadString(0) // until the client is gone
	return nil
}

func TestBenchHearsTheWholeTopicOfAKey(t *testing.T) {
	for _, kind := range []string{"latency", "pubsub"} {
		address := scripted.Start(t, named, named+"> SUB one 1\n< -ERR NOT_SUPPORTED 'later; wait'")
		got := runWith(t, t.Context(), nil, "bench", kind, "one#k", "-s", address)
		if got.code != 1 || got.err != taught("trunkline: subscribe to one: NOT_SUPPORTED: later", "wait") {
			t.Errorf("%s: %+v", kind, got)
		}
	}
}

func TestBenchUsage(t *testing.T) {
	for _, args := range []string{"bench", "bench frob", "bench produce", "bench produce one two", "bench produce one --count 0", "bench produce one --size -1",
		"bench produce one --partitions 0", "bench produce one --rate 0", "bench produce one --acks 2", "bench produce one --compression zip", "bench produce one --pub --acks 1", "bench produce one --rate NaN", "bench produce one --csv --json", "bench pubsub one --size 15", "bench latency one --size 1", "bench consume one#k", "bench consume one --size 3", "bench produce one --window 0", "bench produce one@3"} {
		if got := runWith(t, t.Context(), nil, strings.Fields(args)...); got.code != 2 || got.out != "" || strings.Count(got.err, "\n") != 1 {
			t.Errorf("%s: %+v", args, got)
		}
	}
}
