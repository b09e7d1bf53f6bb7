package lend_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// slowSync is a file system on whose files every sync takes longer.
type slowSync struct {
	vfs.FS
	delay time.Duration
}

func (s slowSync) Reopen(f vfs.File) (vfs.File, error) {
	r, err := s.FS.Reopen(f)
	return slowFile{r, s.delay}, err
}

type slowFile struct {
	vfs.File
	delay time.Duration
}

func (f slowFile) Sync() error {
	if f.delay > 0 {
		<-time.After(f.delay)
	}
	return f.File.Sync()
}

const (
	manyPartitions = 100
	syncDelay      = 2 * time.Millisecond
	syncRun        = 3 * time.Second
)

// BenchmarkSlowSync appends 4 KiB at a time, one group outstanding a partition, to one partition and to a hundred, with
// and without a delay in each sync; and to one partition as many bytes at a time as a hundred have outstanding, beside
// bare files that are written and synced like that. It reports the rate of a hundred against that of the one.
func BenchmarkSlowSync(b *testing.B) {
	for name, c := range map[string]struct {
		delay time.Duration
		alone int    // batches of 4 KiB in a group of the one
		under string // where the files lie; empty: on disk
	}{
		"delay=2ms/same-group":        {syncDelay, 1, ""},
		"delay=2ms/same-group/memory": {syncDelay, 1, "/dev/shm"}, // the disk's own share taken away
		"delay=0/same-outstanding":    {0, manyPartitions, ""},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				many := appendFor(b, c.under, load{delay: c.delay, partitions: manyPartitions, batches: 1})
				one := appendFor(b, c.under, load{delay: c.delay, partitions: 1, batches: c.alone})
				b.ReportMetric(one/1e6, "one-MB/s")
				b.ReportMetric(many/1e6, "many-MB/s")
				b.ReportMetric(many/one, "ratio")
				if c.alone > 1 {
					bytes := len(kibibytes4()) // no whole page: its last one is written again by the next, as of a log
					manyFiles := bareFor(b, manyPartitions, bytes, unix.Fdatasync)
					oneFile := bareFor(b, 1, c.alone*bytes, unix.Fdatasync)
					b.ReportMetric(bareFor(b, manyPartitions, bytes, together())/oneFile, "bare-syncfs-ratio")
					b.ReportMetric(manyFiles/oneFile, "bare-ratio")
					b.ReportMetric(many/manyFiles, "many-of-bare")
					b.ReportMetric(one/oneFile, "one-of-bare")
				}
			}
		})
	}
}

// load is what appendFor runs: groups of so many batches of 4 KiB, one outstanding a partition.
type load struct {
	delay      time.Duration
	partitions int
	batches    int
	bare       bool // nothing is preallocated
}

// bareSync is a file system that preallocates nothing.
type bareSync struct{ vfs.FS }

func (s bareSync) Reopen(f vfs.File) (vfs.File, error) {
	r, err := s.FS.Reopen(f)
	return bareFile{r}, err
}

type bareFile struct{ vfs.File }

func (bareFile) Preallocate(int64, int64) error { return syscall.EOPNOTSUPP }

// BenchmarkPreallocation appends with a sync for each group, with blocks ahead and without, by turns.
func BenchmarkPreallocation(b *testing.B) {
	for name, o := range map[string]load{
		"partitions=1/batch=4KiB":    {partitions: 1, batches: 1},
		"partitions=1/batch=400KiB":  {partitions: 1, batches: 100},
		"partitions=100/batch=4KiB":  {partitions: manyPartitions, batches: 1},
		"partitions=100/batch=64KiB": {partitions: manyPartitions, batches: 16},
	} {
		b.Run(name, func(b *testing.B) {
			var with, without float64
			n := 0
			for b.Loop() {
				o.bare = n%2 == 0 // who comes first changes, too
				first := appendFor(b, "", o)
				o.bare = !o.bare
				second := appendFor(b, "", o)
				if o.bare {
					first, second = second, first
				}
				without, with, n = without+first, with+second, n+1
			}
			b.ReportMetric(without/float64(n)/1e6, "without-MB/s")
			b.ReportMetric(with/float64(n)/1e6, "with-MB/s")
			b.ReportMetric(with/without, "ratio")
		})
	}
}

// appendFor returns the bytes a second that partitions take together.
func appendFor(b *testing.B, under string, o load) float64 {
	b.Helper()
	delay, partitions, batches := o.delay, o.partitions, o.batches
	data, err := os.MkdirTemp(under, "tlbench")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(data) }()
	store, err := filelog.New(filelog.Options{Data: data})
	if err != nil {
		b.Fatal(err)
	}
	var fs vfs.FS = slowSync{vfs.OS(), delay}
	if o.bare {
		fs = bareSync{fs}
	}
	d := lend.NewDir(lend.Options{FS: fs, Instance: "bench", SyncParallel: partitions})
	if err := d.Adopt(context.Background(), &lend.Plugin{Store: store, Kill: func(error) {}}); err != nil {
		b.Fatal(err)
	}
	defer func() { _, _ = d.Close(), store.Stop() }()
	logs := make([]*lend.Log, partitions)
	for i := range logs {
		p := part
		p.ID = partition.ID(i)
		if logs[i], _, err = d.Open(context.Background(), p, lend.OpenOptions{Create: true, Settings: lend.Settings{SegmentBytes: 1 << 30}}); err != nil {
			b.Fatal(err)
		}
	}
	sizes := make([]int64, partitions)
	start := time.Now()
	var writers sync.WaitGroup
	for i, l := range logs {
		writers.Go(func() {
			one := kibibytes4()
			bytes := slices.Repeat([]byte(one), batches)
			for time.Since(start) < syncRun {
				g := lend.Group{Bytes: bytes, Base: l.End(), Next: l.End()}
				for at := 0; at < len(bytes); at += len(one) {
					batch := record.Batch(bytes[at : at+len(one)])
					batch.SetBase(g.Next)
					g.Next = batch.NextOffset()
				}
				if err := l.Append(context.Background(), g); err != nil {
					b.Error(err)
					return
				}
				sizes[i] += int64(len(g.Bytes))
			}
		})
	}
	writers.Wait()
	took := time.Since(start).Seconds()
	var sum int64
	for _, n := range sizes {
		sum += n
	}
	return float64(sum) / took
}

// bareFor returns the bytes a second that so many files take together, each of which is written by itself, so many bytes
// at a time, and then synced by sync: what the file system gives to somebody who does nothing else.
func bareFor(b *testing.B, files, bytes int, sync func(fd int) error) float64 {
	b.Helper()
	data := b.TempDir()
	var sum atomic.Int64
	var writers errgroup.Group
	start := time.Now()
	for i := range files {
		dir := filepath.Join(data, fmt.Sprint(i)) // of its own, as a partition's
		if err := os.Mkdir(dir, 0o700); err != nil {
			b.Fatal(err)
		}
		f, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			b.Fatal(err)
		}
		writers.Go(func() error {
			defer func() { _ = f.Close() }() // everything is synced
			buf := make([]byte, bytes)
			for pos := int64(0); time.Since(start) < syncRun; pos += int64(bytes) {
				_, err := f.WriteAt(buf, pos)
				if err := errors.Join(err, sync(int(f.Fd()))); err != nil {
					return err
				}
				sum.Add(int64(bytes))
			}
			return nil
		})
	}
	if err := writers.Wait(); err != nil {
		b.Fatal(err)
	}
	return float64(sum.Load()) / time.Since(start).Seconds()
}

// together returns a sync of the whole file system: all that wait for one share it, and the next one begins when it ends.
func together() func(fd int) error {
	var mu, turn sync.Mutex
	type round struct {
		once sync.Once
		err  error
	}
	next := &round{}
	return func(fd int) error {
		mu.Lock()
		mine := next
		mu.Unlock()
		mine.once.Do(func() {
			turn.Lock()
			defer turn.Unlock()
			mu.Lock()
			next = &round{} // who comes from now on has written too late for this one
			mu.Unlock()
			mine.err = unix.Syncfs(fd)
		})
		return mine.err
	}
}

// kibibytes4 is a batch of one record, of about 4 KiB.
func kibibytes4() record.Batch {
	var bu record.Builder
	bu.Reset(nil)
	bu.Append(&record.Record{Timestamp: 1, Value: []byte(strings.Repeat("v", 4<<10-100))})
	return bu.Finish(0, 0)
}

func BenchmarkAppendToParkedLogs(b *testing.B) {
	store, err := filelog.New(filelog.Options{Data: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	for _, budget := range []int{100, 10} { // of which all fit, and of which each append parks another
		b.Run(fmt.Sprintf("descriptors=%d", budget), func(b *testing.B) {
			d := lend.NewDir(lend.Options{Instance: fmt.Sprint("bench", budget, b.N), Budget: lend.NewBudget(budget)})
			if err := d.Adopt(context.Background(), &lend.Plugin{Store: store, Kill: func(error) {}}); err != nil {
				b.Fatal(err)
			}
			defer func() { _ = d.Close() }()
			var logs []*lend.Log
			for i := range 50 {
				p := part
				p.ID = partition.ID(i)
				l, _, err := d.Open(context.Background(), p, lend.OpenOptions{Create: true, Settings: lend.Settings{
					SegmentBytes: 1 << 30, Sync: lend.Sync{Mode: lend.SyncNever},
				}})
				if err != nil {
					b.Fatal(err)
				}
				logs = append(logs, l)
			}
			n := 0
			for b.Loop() {
				if err := add(logs[n%len(logs)], "x"); err != nil {
					b.Fatal(err)
				}
				n++
			}
		})
	}
	if err := store.Stop(); err != nil {
		b.Fatal(err)
	}
}
