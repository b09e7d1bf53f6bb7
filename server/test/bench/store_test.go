package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

const (
	readBytes  = 256 << 20 // of one run
	readRounds = 9
	sendBytes  = 1 << 20 // of one sendfile, on both sides
)

// withLeased runs f with the shipped store as a child process.
func withLeased(b *testing.B, f func(c *core)) {
	b.Helper()
	c, err := leased(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := c.close(); err != nil {
			b.Error(err)
		}
	}()
	f(c)
}

// fillLog appends batches of 64 KiB until the log has so many bytes, and returns its end.
func fillLog(b *testing.B, l *lend.Log, bytes int) record.Offset {
	b.Helper()
	batch, next := filledBatch(), record.Offset(0)
	for written := 0; written < bytes; written += len(batch) {
		next = write(b, l, batch, next)
	}
	return next
}

// drainer is a connection whose other end reads and forgets.
func drainer(b *testing.B) *net.TCPConn {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var reader sync.WaitGroup
	reader.Go(func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, nc)
		_ = nc.Close()
	})
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _, _ = nc.Close(), ln.Close(); reader.Wait() })
	return nc.(*net.TCPConn)
}

// BenchmarkSendfile sends a log over loopback, extent by extent as a FETCH does, and the same files by plain sendfile.
func BenchmarkSendfile(b *testing.B) {
	describe()
	withLeased(b, func(c *core) {
		l := c.open(b, 0, segmentBytes)
		end := fillLog(b, l, readBytes)
		dir := filepath.Join(c.data, "logs", partitionOf(0).String())
		nc := drainer(b)
		for b.Loop() {
			var ratios, ours []float64
			inPairs(b, readRounds, c.pids, func(int) [2]float64 {
				return [2]float64{sendLog(b, l, end, nc), sendFiles(b, dir, nc)}
			}, func(got [2]float64) {
				ours = append(ours, got[0])
				ratios = append(ratios, got[0]/got[1])
			})
			b.Logf("%s MB/s; to plain sendfile, by pair: %s", spread(ours), spread(ratios))
			b.ReportMetric(median(ours), "MB/s")
			b.ReportMetric(median(ratios), "ratio")
		}
	})
}

func sendLog(b *testing.B, l *lend.Log, end record.Offset, nc *net.TCPConn) float64 {
	b.Helper()
	start, sent := time.Now(), int64(0)
	for off := record.Offset(0); off < end; {
		e, err := l.Extent(b.Context(), off, end, sendBytes)
		if err != nil {
			b.Fatal(err)
		}
		if err := e.SendTo(nc, func() error { return nil }); err != nil {
			b.Fatal(err)
		}
		off, sent = e.Next, sent+e.Size
		e.Release()
	}
	return float64(sent) / 1e6 / time.Since(start).Seconds()
}

func sendFiles(b *testing.B, dir string, nc *net.TCPConn) float64 {
	b.Helper()
	start, sent := time.Now(), int64(0)
	for _, path := range segmentsOf(b, dir) {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		n, err := nc.ReadFrom(f) // by sendfile: it is a file, whole
		if err != nil {
			b.Fatal(err)
		}
		sent += n
		_ = f.Close()
	}
	return float64(sent) / 1e6 / time.Since(start).Seconds()
}

func segmentsOf(b *testing.B, dir string) []string {
	b.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(paths) == 0 {
		b.Fatalf("segments in %s: %v", dir, err)
	}
	slices.Sort(paths)
	return paths
}

// BenchmarkDurable appends and syncs, against bare pwrite and fdatasync of the same sizes on the same file system.
func BenchmarkDurable(b *testing.B) {
	describe()
	for _, size := range []int{64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("size=%dKiB", size>>10), func(b *testing.B) {
			withLeased(b, func(c *core) {
				for b.Loop() {
					compareDurable(b, c, size)
				}
			})
		})
	}
}

const durableTime = 500 * time.Millisecond // of one run of one side

func compareDurable(b *testing.B, c *core, size int) {
	b.Helper()
	var ratios, ours []float64
	inPairs(b, readRounds, c.pids, func(n int) [2]float64 {
		part := partitionOf(1000*size + n)
		l, _, err := c.dir.Open(b.Context(), part, lend.OpenOptions{Create: true, Settings: lend.Settings{SegmentBytes: 1 << 30}})
		if err != nil {
			b.Fatal(err)
		}
		batch, next, written := batchOf(size), record.Offset(0), 0
		start := time.Now()
		for time.Since(start) < durableTime {
			next = write(b, l, batch, next)
			written += len(batch)
		}
		leased := float64(written) / 1e6 / time.Since(start).Seconds()
		if err := c.dir.Delete(b.Context(), part); err != nil {
			b.Fatal(err)
		}
		return [2]float64{leased, bareDurable(b, filepath.Join(c.data, "bare"), batch)}
	}, func(got [2]float64) {
		ours = append(ours, got[0])
		ratios = append(ratios, got[0]/got[1])
	})
	b.Logf("%s MB/s on %s; to bare pwrite and fdatasync, by pair: %s", spread(ours), fileSystem(c.data), spread(ratios))
	b.ReportMetric(median(ours), "MB/s")
	b.ReportMetric(median(ratios), "ratio")
}

func bareDurable(b *testing.B, path string, batch []byte) float64 {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _, _ = f.Close(), os.Remove(path) }()
	written := int64(0)
	start := time.Now()
	for time.Since(start) < durableTime {
		_, err := f.WriteAt(batch, written)
		if err == nil {
			err = unix.Fdatasync(int(f.Fd()))
		}
		if err != nil {
			b.Fatal(err)
		}
		written += int64(len(batch))
	}
	return float64(written) / 1e6 / time.Since(start).Seconds()
}

// batchOf is a batch of about that size, of records of 1000 bytes.
func batchOf(size int) record.Batch {
	var bu record.Builder
	bu.Reset(make([]byte, 0, size))
	r := record.Record{Timestamp: 1, Value: []byte(strings.Repeat("v", 1000))}
	for bu.Size()+record.EncodedBound(&r) <= size {
		bu.Append(&r)
	}
	return bu.Finish(0, 0)
}

// BenchmarkRecovery opens a log of one segment whose recovery point is lost, so that all of it is scanned, against
// reading the file. Both read from the disk: neither finds it in the cache.
func BenchmarkRecovery(b *testing.B) {
	describe()
	for b.Loop() {
		data := b.TempDir()
		c, err := leased(data)
		if err != nil {
			b.Fatal(err)
		}
		fillLog(b, c.open(b, 0, 1<<30), readBytes)
		if err := c.close(); err != nil {
			b.Fatal(err)
		}
		path := segmentsOf(b, filepath.Join(data, "logs", partitionOf(0).String()))[0]
		var ratios, speeds []float64
		for range readRounds {
			plain := readCold(b, path)
			scanned := recoverCold(b, data, path)
			speeds = append(speeds, scanned)
			ratios = append(ratios, scanned/plain)
		}
		b.Logf("%s MB/s; to reading the file, by pair: %s", spread(speeds), spread(ratios))
		b.ReportMetric(median(speeds), "MB/s")
		b.ReportMetric(median(ratios), "ratio")
	}
}

// cold writes a file back and takes it out of the cache.
func cold(b *testing.B, path string) (f *os.File, size int64) {
	b.Helper()
	f, err := os.Open(path)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	info, statErr := f.Stat()
	if err := errors.Join(err, statErr); err != nil {
		b.Fatal(err)
	}
	return f, info.Size()
}

func readCold(b *testing.B, path string) float64 {
	b.Helper()
	f, size := cold(b, path)
	defer func() { _ = f.Close() }()
	buf := make([]byte, 1<<20) // what the scan reads at once
	start := time.Now()
	for {
		_, err := f.Read(buf)
		if errors.Is(err, io.EOF) {
			return float64(size) / 1e6 / time.Since(start).Seconds()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func recoverCold(b *testing.B, data, path string) float64 {
	b.Helper()
	for _, name := range []string{
		filepath.Join(data, "logs", "recovery-point-offset-checkpoint"),
		strings.TrimSuffix(path, ".log") + ".index", strings.TrimSuffix(path, ".log") + ".timeindex",
	} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			b.Fatal(err)
		}
	}
	f, size := cold(b, path)
	_ = f.Close()
	c, err := leased(data)
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	l, _, err := c.dir.Open(b.Context(), partitionOf(0), lend.OpenOptions{Settings: lend.Settings{SegmentBytes: 1 << 30}})
	took := time.Since(start)
	if err != nil {
		b.Fatal(err)
	}
	if s := l.Stats(); s.Bytes != size {
		b.Fatalf("%d bytes of %d were recovered", s.Bytes, size)
	}
	if err := c.close(); err != nil {
		b.Fatal(err)
	}
	return float64(size) / 1e6 / took.Seconds()
}

const (
	sealedPartitions = 1000
	sealedSegments   = 10
	sealedAtOnce     = 32 // as the broker opens them
)

// BenchmarkOpenSealed opens many partitions of sealed segments, as a start does after a clean end.
func BenchmarkOpenSealed(b *testing.B) {
	describe()
	data := b.TempDir()
	makeSealed(b, data)
	for b.Loop() {
		var ms []float64
		for range 5 {
			c, err := leased(data)
			if err != nil {
				b.Fatal(err)
			}
			var logs openLogs
			start := time.Now()
			atOnce(sealedPartitions, func(id partition.ID) {
				if _, err := logs.open(b.Context(), c, id, false); err != nil {
					b.Error(err)
				}
			})
			ms = append(ms, float64(time.Since(start).Microseconds())/1000)
			logs.close(b)
			if err := c.close(); err != nil {
				b.Fatal(err)
			}
		}
		b.Logf("%s ms for %d partitions of %d sealed segments", spread(ms), sealedPartitions, sealedSegments)
		b.ReportMetric(median(ms), "ms")
	}
}

// openLogs is what a run has open.
type openLogs struct {
	mu  sync.Mutex
	all []*lend.Log
}

func (o *openLogs) open(ctx context.Context, c *core, id partition.ID, create bool) (*lend.Log, error) {
	p := storage.Partition{Topic: "sealed", TopicID: fmt.Sprintf("%032x", 1), ID: id}
	l, _, err := c.dir.Open(ctx, p, lend.OpenOptions{Create: create, Settings: lend.Settings{
		SegmentBytes: 1 << 10, Sync: lend.Sync{Mode: lend.SyncNever},
	}})
	if err == nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.all = append(o.all, l)
	}
	return l, err
}

// atOnce calls f for every partition, so many at once as a start does.
func atOnce(n int, f func(partition.ID)) {
	slots := make(chan struct{}, sealedAtOnce)
	var wg sync.WaitGroup
	for id := range partition.ID(n) {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(id)
		})
	}
	wg.Wait()
}

// makeSealed leaves the partitions behind as a clean end does.
func makeSealed(b *testing.B, data string) {
	b.Helper()
	c, err := leased(data)
	if err != nil {
		b.Fatal(err)
	}
	var logs openLogs
	atOnce(sealedPartitions, func(id partition.ID) {
		l, err := logs.open(b.Context(), c, id, true)
		if err != nil {
			b.Error(err)
			return
		}
		batch := batchOf(16 << 10)
		for range sealedSegments + 1 { // each of them is larger than a segment is to be
			batch.SetBase(l.End())
			g := lend.Group{Bytes: batch, Base: l.End(), Next: batch.NextOffset(), MaxTimestamp: batch.MaxTimestamp()}
			if err := l.Append(b.Context(), g); err != nil {
				b.Error(err)
				return
			}
		}
	})
	logs.close(b)
	if err := c.close(); err != nil {
		b.Fatal(err)
	}
}

// close gives them back.
func (o *openLogs) close(b *testing.B) {
	b.Helper()
	var wg sync.WaitGroup
	for _, l := range o.all {
		wg.Go(func() {
			if err := l.Close(b.Context()); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
}
