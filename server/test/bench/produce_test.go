package bench

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const (
	// transferBytes is what one run of PRODUCE or FETCH moves, in batches of batchBytes.
	transferBytes  = 192 << 20
	transferRounds = 7
)

// speed is what a run reached, in MB/s.
func speed(bytes int64, took time.Duration) float64 { return float64(bytes) / 1e6 / took.Seconds() }

// tcp dials, with a deadline for all that follows.
func tcp(addr string) (net.Conn, *bufio.Reader, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	return nc, bufio.NewReaderSize(nc, 1<<20), nc.SetDeadline(time.Now().Add(runPatience))
}

// produceTo writes batches to a fresh topic, pipelined, and checks every answer.
func produceTo(s *harness.Server, topic, sync string, total int) (float64, error) {
	control := s.Dial()
	defer func() { _ = control.Conn().Close() }()
	if got := control.Ask("TOPIC CREATE " + topic + " sync=" + sync); got != "+OK "+topic {
		return 0, errors.New(got)
	}
	batch := filledBatch()
	frame := append(fmt.Appendf(nil, "PRODUCE %s/0 %d\r\n", topic, len(batch)), batch...)
	frame = append(frame, "\r\n"...)
	durability := map[string]string{"never": "page", "batch": "disk"}[sync]
	nc, r, err := tcp(s.Client)
	if err != nil {
		return 0, err
	}
	defer func() { _ = nc.Close() }()
	if _, err := r.ReadSlice('\n'); err != nil { // INFO
		return 0, err
	}
	count, took := total/len(batch), time.Duration(0)
	start := time.Now()
	err = pipelined(nc, frame, count, func(i int) error {
		line, err := r.ReadSlice('\n')
		if want := fmt.Sprintf("+OK %s/0@%d %s\r\n", topic, i*int(batch.Count()), durability); err == nil && string(line) != want {
			err = fmt.Errorf("answered with %q, want %q", line, want)
		}
		return err
	})
	took = time.Since(start)
	if err != nil {
		return 0, err
	}
	return speed(int64(count)*int64(len(batch)), took), nil
}

// dropTopic deletes a topic, behind the clock.
func dropTopic(s *harness.Server, topic string) error {
	control := s.Dial()
	defer func() { _ = control.Conn().Close() }()
	if got := control.Ask("TOPIC DELETE " + topic); got != "+OK "+topic {
		return errors.New(got)
	}
	return nil
}

// pipelined writes frame count times and reads the answers meanwhile.
func pipelined(nc net.Conn, frame []byte, count int, answer func(i int) error) error {
	var writer errgroup.Group
	writer.Go(func() error {
		for range count {
			if _, err := nc.Write(frame); err != nil {
				return err
			}
		}
		return nil
	})
	for i := range count {
		if err := answer(i); err != nil {
			_ = nc.Close() // ends the writer
			_ = writer.Wait()
			return err
		}
	}
	return writer.Wait()
}

// sinkInto does the same with the bare sink.
func sinkInto(addr string, total int) (float64, error) {
	batch := filledBatch()
	frame := append(binary.BigEndian.AppendUint32(nil, uint32(len(batch))), batch...)
	nc, r, err := tcp(addr)
	if err != nil {
		return 0, err
	}
	defer func() { _ = nc.Close() }()
	count := total / len(batch)
	start := time.Now()
	err = pipelined(nc, frame, count, func(int) error {
		got, err := r.ReadByte()
		if err == nil && got != '+' {
			err = fmt.Errorf("answered with %q", got)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return speed(int64(count)*int64(len(batch)), time.Since(start)), nil
}

// bareSyncs writes pieces of 1 MiB to a file, each synced before the next: what a disk gives to who waits for it.
func bareSyncs(dir string, total int) (float64, error) {
	file, err := os.CreateTemp(dir, "bare")
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close(); _ = os.Remove(file.Name()) }()
	piece := bytes.Repeat([]byte("v"), 1<<20)
	start := time.Now()
	for at := 0; at < total; at += len(piece) {
		if _, err := file.WriteAt(piece, int64(at)); err != nil {
			return 0, err
		}
		if err := unix.Fdatasync(int(file.Fd())); err != nil {
			return 0, err
		}
	}
	return speed(int64(total), time.Since(start)), nil
}

// ratios measures pairs, a against b, and reports the medians.
func ratios(b *testing.B, name string, ours []int, run, against func(round int) (float64, error)) {
	b.Helper()
	var all, own, other []float64
	inPairs(b, transferRounds, ours, func(n int) [2]float64 {
		mine, err := run(n)
		if err != nil {
			b.Fatal(err)
		}
		theirs, err := against(n)
		if err != nil {
			b.Fatal(err)
		}
		return [2]float64{mine, theirs}
	}, func(got [2]float64) {
		own, other, all = append(own, got[0]), append(other, got[1]), append(all, got[0]/got[1])
	})
	b.Logf("%s: %s against %s, ratio %s", name, spread(own), spread(other), spread(all))
	b.ReportMetric(median(all), name+"-ratio")
}

// pidsOf are the processes of a server, a peer and this one.
func pidsOf(s *harness.Server, peers ...int) []int {
	ours := append([]int{os.Getpid(), s.PID()}, peers...)
	for _, pid := range s.Plugins() {
		ours = append(ours, pid)
	}
	return ours
}

// BenchmarkProduce compares PRODUCE of 64 KiB batches, of one connection to one partition, with what is the least that
// could be done: unsynced, a process that takes frames from a socket, checks their CRC and writes them; synced, a loop
// that writes 1 MiB and waits for the disk.
func BenchmarkProduce(b *testing.B) {
	describe()
	for b.Loop() {
		s := harness.Start(b)
		addr, peer := startPeerAs(b, peerSink+":"+b.TempDir())
		produce := func(sync string) func(n int) (float64, error) {
			return func(n int) (float64, error) {
				topic := fmt.Sprintf("%s%d", sync, n)
				got, err := produceTo(s, topic, sync, transferBytes)
				return got, errors.Join(err, dropTopic(s, topic))
			}
		}
		ratios(b, "never", pidsOf(s, peer), produce("never"), func(int) (float64, error) { return sinkInto(addr, transferBytes) })
		dir := b.TempDir()
		ratios(b, "batch", pidsOf(s), produce("batch"), func(int) (float64, error) { return bareSyncs(dir, transferBytes) })
		s.Kill()
	}
}

// fetchFrom reads a partition from its first record to its last, in answers of 1 MiB, two asked for at a time.
func fetchFrom(s *harness.Server, topic string, total int64) (float64, error) {
	nc, r, err := tcp(s.Client)
	if err != nil {
		return 0, err
	}
	defer func() { _ = nc.Close() }()
	if _, err := r.ReadSlice('\n'); err != nil { // INFO
		return 0, err
	}
	perBatch := int64(filledBatch().Count())
	size := int64(len(filledBatch()))
	per := (1 << 20) / size * perBatch // records of an answer
	ask := func(offset int64) error {
		_, err := fmt.Fprintf(nc, "FETCH %s/0@%d max=1MiB\r\n", topic, offset)
		return err
	}
	start := time.Now()
	next, got := int64(0), int64(0)
	if err := ask(0); err != nil {
		return 0, err
	}
	for got < total {
		if next += per; next < total/size*perBatch {
			if err := ask(next); err != nil {
				return 0, err
			}
		}
		n, err := discardAnswer(r)
		if err != nil {
			return 0, err
		}
		got += n
	}
	return speed(got, time.Since(start)), nil
}

// discardAnswer reads the answer of a FETCH and returns how many bytes its batches had.
func discardAnswer(r *bufio.Reader) (int64, error) {
	var total int64
	for {
		line, err := r.ReadString('\n')
		switch {
		case err != nil:
			return total, err
		case line == "+OK\r\n":
			return total, nil
		case !strings.HasPrefix(line, "BATCH "):
			return total, fmt.Errorf("answered with %q", line)
		}
		n, err := strconv.ParseInt(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 10, 64)
		if err != nil {
			return total, err
		}
		if _, err := io.CopyN(io.Discard, r, n+2); err != nil {
			return total, err
		}
		total += n
	}
}

func sourceFrom(addr string, total int64) (float64, error) {
	nc, r, err := tcp(addr)
	if err != nil {
		return 0, err
	}
	defer func() { _ = nc.Close() }()
	start := time.Now()
	if _, err := nc.Write([]byte{'?'}); err != nil {
		return 0, err
	}
	if _, err := io.CopyN(io.Discard, r, total); err != nil {
		return 0, err
	}
	return speed(total, time.Since(start)), nil
}

// BenchmarkFetch compares FETCH with a process that sends a file of the same size by sendfile and does nothing else. Both
// files lie in the page cache.
func BenchmarkFetch(b *testing.B) {
	describe()
	for b.Loop() {
		s := harness.Start(b)
		if _, err := produceTo(s, "t", "never", transferBytes); err != nil {
			b.Fatal(err)
		}
		total := transferBytes / int64(len(filledBatch())) * int64(len(filledBatch()))
		dir := b.TempDir()
		if err := os.WriteFile(dir+"/file", make([]byte, total), 0o644); err != nil {
			b.Fatal(err)
		}
		addr, peer := startPeerAs(b, peerSource+":"+dir)
		ratios(b, "fetch", pidsOf(s, peer), func(int) (float64, error) { return fetchFrom(s, "t", total) },
			func(int) (float64, error) { return sourceFrom(addr, total) })
		s.Kill()
	}
}

// TestTransfersAreMeasurable runs a little of what the benchmarks run.
func TestTransfersAreMeasurable(t *testing.T) {
	const total = 4 << 20
	s := harness.Start(t)
	for _, sync := range []string{"never", "batch"} {
		if got, err := produceTo(s, sync, sync, total); err != nil || got <= 0 {
			t.Errorf("sync=%s: %v MB/s, %v", sync, got, err)
		}
	}
	whole := total / int64(len(filledBatch())) * int64(len(filledBatch()))
	if got, err := fetchFrom(s, "never", whole); err != nil || got <= 0 {
		t.Errorf("FETCH: %v MB/s, %v", got, err)
	}
	dir := t.TempDir()
	addr, _ := startPeerAs(t, peerSink+":"+dir)
	if got, err := sinkInto(addr, total); err != nil || got <= 0 {
		t.Errorf("sink: %v MB/s, %v", got, err)
	}
	if got, err := os.ReadFile(dir + "/file"); err != nil || int64(len(got)) != whole || record.Batch(got[:len(filledBatch())]).Check() != nil {
		t.Errorf("the sink's file has %d bytes of %d, %v", len(got), whole, err)
	}
	addr, _ = startPeerAs(t, peerSource+":"+dir)
	if got, err := sourceFrom(addr, whole); err != nil || got <= 0 {
		t.Errorf("source: %v MB/s, %v", got, err)
	}
	if got, err := bareSyncs(dir, total); err != nil || got <= 0 {
		t.Errorf("bare: %v MB/s, %v", got, err)
	}
}
