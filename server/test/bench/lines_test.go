package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// linesBytes is how much a run publishes.
const linesBytes = 128 << 20

// lineRun is the shipped command reading a file of lines, and the Go client's Producer with as many records of that size.
type lineRun struct {
	*clientRun
	file string
}

// newLineRun writes the file.
func newLineRun(tb testing.TB, size, batches int) *lineRun {
	r := &lineRun{newClientRun(tb, size, batches, "batch"), filepath.Join(tb.TempDir(), "lines")}
	f, err := os.Create(r.file)
	if err != nil {
		tb.Fatal(err)
	}
	w := bufio.NewWriter(f)
	row := append(bytes.Clone(r.value), '\n')
	for range r.records() {
		if _, err = w.Write(row); err != nil {
			break
		}
	}
	if err := errors.Join(err, w.Flush(), f.Close()); err != nil {
		tb.Fatal(err)
	}
	return r
}

// publish runs pub --lines to its end. What it used of the processor counts as the client's.
func (r *lineRun) publish(topic string) (cost, error) {
	cmd := exec.CommandContext(r.ctx, harness.Binary("trunkline"), "-s", r.server.Client, "pub", topic, "--lines", "--file", r.file)
	took, err := clocked(r.server.PID(), func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		return cost{}, err
	}
	took.client = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	list, err := r.client.Offsets(r.ctx, topic+"/0@latest")
	if err == nil && int(list[0].HighWatermark) != r.records() {
		err = fmt.Errorf("%d of %d lines are there", list[0].HighWatermark, r.records())
	}
	return took, err
}

// round publishes the file, and the same records by the Producer.
func (r *lineRun) round() (lines, producer cost, err error) {
	var topics [2]string
	for i := range topics {
		if topics[i], err = r.topic(); err != nil {
			return lines, producer, err
		}
	}
	if lines, err = r.publish(topics[0]); err != nil {
		return lines, producer, err
	}
	if producer, err = clocked(r.server.PID(), func() error { return r.produce(topics[1]) }); err != nil {
		return lines, producer, err
	}
	return lines, producer, errors.Join(r.client.DeleteTopic(r.ctx, topics[0]), r.client.DeleteTopic(r.ctx, topics[1]))
}

// BenchmarkPubLines compares pub --lines, of a file in the page cache to one partition, every record on disk, with the Go
// client's Producer.
func BenchmarkPubLines(b *testing.B) {
	describe()
	for _, size := range []int{100, 1024} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			for b.Loop() {
				r := newLineRun(b, size, linesBytes>>20)
				var got direction
				inPairs(b, transferRounds, pidsOf(r.server), func(int) [2]cost {
					lines, producer, err := r.round()
					if err != nil {
						b.Fatal(err)
					}
					return [2]cost{lines, producer}
				}, func(c [2]cost) { got.add(c[0], c[1], int64(r.records()*size)) })
				got.report(b, r.records(), "producer")
				r.server.Kill()
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// TestPubLinesIsMeasurable runs a little of what the benchmark runs.
func TestPubLinesIsMeasurable(t *testing.T) {
	lines, producer, err := newLineRun(t, 1024, 2).round()
	if err != nil {
		t.Fatal(err)
	}
	if lines.took <= 0 || lines.client <= 0 || producer.took <= 0 {
		t.Errorf("%+v, %+v", lines, producer)
	}
}
