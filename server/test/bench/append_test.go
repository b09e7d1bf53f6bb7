package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagerpc"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const (
	batchBytes   = 64 << 10
	segmentBytes = 16 << 20 // so that rolls count
	runBytes     = 256 << 20
	pairs        = 15
)

// core is the core's side of one log directory, and the store behind it.
type core struct {
	data  string
	dir   *lend.Dir
	pids  []int // whose processor time counts
	close func() error
}

// inProcess has the store in this process, called directly.
func inProcess(data string) (*core, error) {
	store, err := filelog.New(filelog.Options{Data: data})
	if err != nil {
		return nil, err
	}
	c := &core{data: data, dir: lend.NewDir(lend.Options{Instance: "in process"}), pids: []int{os.Getpid()}}
	if err := c.dir.Adopt(context.Background(), &lend.Plugin{Store: store, Kill: func(error) {}}); err != nil {
		return nil, errors.Join(err, store.Stop())
	}
	stop := c.lookAfter()
	c.close = func() error { return errors.Join(stop(), c.dir.Close(), store.Stop()) }
	return c, nil
}

// lookAfter sends the store its notes, as the broker does, until stop.
func (c *core) lookAfter() (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	var tasks errgroup.Group
	tasks.Go(func() error { return c.dir.Run(ctx) })
	return func() error {
		cancel()
		return tasks.Wait()
	}
}

// leased has the shipped store as a child process, as the server has it: go-plugin, gRPC, lent descriptors.
func leased(data string) (*core, error) {
	c := &core{data: data, dir: lend.NewDir(lend.Options{Instance: "leased"})}
	run, err := os.MkdirTemp("", "tlbench") // a socket's path has to be short
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]string{"data": data})
	if err != nil {
		return nil, err
	}
	var sock *storagerpc.Socket
	up := host.New(host.Spec{
		Kind: "storage", Name: "filelog", Command: []string{harness.Binary("trunkline-server"), "plugin", "storage", "filelog"},
		Config: config, RunDir: run,
		Files: func() ([]*os.File, error) {
			ours, child, err := storagerpc.SocketPair()
			sock = ours
			return []*os.File{child}, err
		},
		OnUp: func(ctx context.Context, inst *host.Instance) error {
			c.pids = []int{os.Getpid(), inst.PID()}
			return c.dir.Adopt(ctx, &lend.Plugin{Store: storagerpc.NewClient(inst.Conn(), sock), Kill: inst.Kill})
		},
	}, host.Options{Logger: slog.New(slog.DiscardHandler)})
	if err := up.Start(context.Background()); err != nil {
		return nil, errors.Join(err, os.RemoveAll(run))
	}
	ctx, cancel := context.WithCancel(context.Background())
	var tasks errgroup.Group
	tasks.Go(func() error { return up.Run(ctx) })
	stop := c.lookAfter()
	c.close = func() error {
		err := errors.Join(stop(), c.dir.Close())
		cancel()
		_ = tasks.Wait() // says that it was cancelled
		return errors.Join(err, sock.Close(), os.RemoveAll(run))
	}
	return c, nil
}

// sample is one run's speed.
type sample struct{ megabytes, cpuPerGB float64 }

// partitionOf is what a round writes to.
func partitionOf(round int) storage.Partition {
	return storage.Partition{Topic: "bench", TopicID: fmt.Sprintf("%032x", round+1)}
}

// open makes a round's partition.
func (c *core) open(t testing.TB, round int, segment int64) *lend.Log {
	t.Helper()
	l, _, err := c.dir.Open(t.Context(), partitionOf(round), lend.OpenOptions{
		Create: true, Settings: lend.Settings{SegmentBytes: segment, Sync: lend.Sync{Mode: lend.SyncNever}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// write appends one batch and returns the offset behind it.
func write(t testing.TB, l *lend.Log, batch record.Batch, base record.Offset) record.Offset {
	batch.SetBase(base)
	g := lend.Group{Bytes: batch, Base: base, Next: batch.NextOffset(), MaxTimestamp: batch.MaxTimestamp()}
	if err := l.Append(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	return g.Next
}

// append writes runBytes in batches of batchBytes to a fresh partition and deletes it, so that nothing of it has to be
// written back later.
func (c *core) append(t testing.TB, round int) sample {
	t.Helper()
	l := c.open(t, round, segmentBytes)
	batch, next, written := filledBatch(), record.Offset(0), 0
	cpu, start := c.cpu(t), time.Now()
	for written < runBytes {
		next = write(t, l, batch, next)
		written += len(batch)
	}
	took := time.Since(start)
	used := c.cpu(t) - cpu
	if s := l.Stats(); s.Confirmed != next || s.Segments < runBytes/segmentBytes {
		t.Fatalf("%d records written, the log ends at %d with %d segments", next, s.Confirmed, s.Segments)
	}
	c.remove(t, round)
	return sample{float64(written) / 1e6 / took.Seconds(), used / (float64(written) / 1e9)}
}

// remove deletes a round's partition. The store does that later, beside other work; the next round must not pay for it.
func (c *core) remove(t testing.TB, round int) {
	t.Helper()
	if err := c.dir.Delete(t.Context(), partitionOf(round)); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "deleted segments are gone", func() bool {
		left, err := os.ReadDir(filepath.Join(c.data, "trash"))
		return err == nil && len(left) == 0
	})
}

func (c *core) cpu(t testing.TB) (sum float64) {
	t.Helper()
	for _, pid := range c.pids {
		one, err := cpuSeconds(pid)
		if err != nil {
			t.Fatal(err)
		}
		sum += one
	}
	return sum
}

// filledBatch is a batch of batchBytes with records of 1000 bytes.
func filledBatch() record.Batch {
	var b record.Builder
	b.Reset(make([]byte, 0, batchBytes))
	r := record.Record{Timestamp: 1, Value: []byte(strings.Repeat("v", 1000))}
	for b.Size()+record.EncodedBound(&r) <= batchBytes {
		b.Append(&r)
	}
	return b.Finish(0, 0)
}

// BenchmarkAppend compares appends through the lease with the same code in one process, into the page cache: a segment
// is synced once, when it is sealed, on both sides. In memory even that costs nothing, and what is left is the code.
func BenchmarkAppend(b *testing.B) {
	describe()
	for _, where := range []struct{ name, dir string }{{"disk", ""}, {"memory", "/dev/shm"}} {
		b.Run(where.name, func(b *testing.B) {
			for b.Loop() {
				compareAppends(b, where.dir)
			}
		})
	}
}

func compareAppends(b *testing.B, under string) {
	root, err := os.MkdirTemp(under, "tlbench")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(root) }()
	var ours []int
	sides := map[string]*core{}
	for name, open := range map[string]func(string) (*core, error){"in-process": inProcess, "leased": leased} {
		data := filepath.Join(root, name)
		if err := os.Mkdir(data, 0o700); err != nil {
			b.Fatal(err)
		}
		c, err := open(data)
		if err != nil {
			b.Fatal(err)
		}
		defer func() {
			if err := c.close(); err != nil {
				b.Error(err)
			}
		}()
		sides[name] = c
		ours = append(ours, c.pids...)
	}
	speed, cpu := map[string][]float64{}, map[string][]float64{}
	var speedRatio, cpuRatio []float64
	inPairs(b, pairs, ours, func(n int) map[string]sample {
		order := []string{"in-process", "leased"}
		if n%2 == 1 { // who comes first finds the caches in another state
			slices.Reverse(order)
		}
		got := map[string]sample{}
		for _, name := range order {
			got[name] = sides[name].append(b, n)
		}
		return got
	}, func(got map[string]sample) {
		for name, s := range got {
			speed[name] = append(speed[name], s.megabytes)
			cpu[name] = append(cpu[name], s.cpuPerGB)
		}
		speedRatio = append(speedRatio, got["leased"].megabytes/got["in-process"].megabytes)
		cpuRatio = append(cpuRatio, got["leased"].cpuPerGB/got["in-process"].cpuPerGB)
	})
	for _, name := range []string{"in-process", "leased"} {
		b.Logf("%-10s %s MB/s, %s CPU s/GB", name, spread(speed[name]), spread(cpu[name]))
	}
	b.Logf("leased / in-process, by pair: MB/s %s, CPU %s", spread(speedRatio), spread(cpuRatio))
	b.ReportMetric(median(speed["leased"]), "leased-MB/s")
	b.ReportMetric(median(speedRatio), "MB/s-ratio")
	b.ReportMetric(median(cpuRatio), "CPU-ratio")
}
