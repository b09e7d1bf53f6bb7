package storagetest_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/plugins/storage/stream"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/storeframe"
)

// slabBytes is where a slab begins again: what is measured is the way to memory, not a disk.
const slabBytes = 64 << 20

// slab is a store without files that writes its groups into one file in memory each partition: the least a store can do.
type slab struct {
	storage.StreamPlugin // nil: what is not written here is not called
	mu                   sync.Mutex
	files                map[storage.Partition]*slabFile
}

type slabFile struct {
	file vfs.File
	pos  int64
}

func newSlab() *slab { return &slab{files: map[storage.Partition]*slabFile{}} }

func (s *slab) Describe(context.Context) (storage.Description, error) {
	return storage.Description{Name: "slab", Version: "1", Durability: "memory"}, nil
}

func (s *slab) Open(_ context.Context, r storage.OpenRequest) (storage.Opened, error) {
	fd, err := unix.MemfdCreate("slab", unix.MFD_CLOEXEC)
	if err != nil {
		return storage.Opened{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[r.Partition] = &slabFile{file: vfs.FromFd(fd, "slab")}
	return storage.Opened{Lease: storage.Lease{Epoch: 1, MaxTimestamp: -1}}, nil
}

// Stop closes the files.
func (s *slab) Stop() error {
	for _, f := range s.files {
		_ = f.file.Close() // memory
	}
	return nil
}

func (s *slab) Append(_ context.Context, r storage.AppendRequest) error {
	s.mu.Lock()
	f := s.files[r.Partition]
	s.mu.Unlock()
	if f.pos+int64(len(r.Bytes)) > slabBytes {
		f.pos = 0
	}
	_, err := f.file.WriteAt(r.Bytes, f.pos)
	f.pos += int64(len(r.Bytes))
	return err
}

// pairBytes is what each side of a pair appends: a few milliseconds' work, so that what else runs on the machine hits
// both sides, or misses both.
const pairBytes = 32 << 20

// BenchmarkStream compares a store without files in this process with the same one behind channels in a process of its
// own: groups of eight batches of 64 KiB, as eight publishers of such batches make them, and of one. Both sides take
// turns, and what counts is how they compare within a pair.
func BenchmarkStream(b *testing.B) {
	for _, batches := range []int{8, 1} {
		for _, partitions := range []int{1, 4} {
			b.Run(fmt.Sprintf("batch=64KiB/group=%d/partitions=%d", batches, partitions), func(b *testing.B) {
				compareStreams(b, partitions, batches)
			})
		}
	}
}

// side is one of the two ways to a store, with groups to be appended there.
type side struct {
	store  storage.StreamPlugin
	pids   []int // whose processor time counts
	groups []storage.AppendRequest
	speeds []float64 // MB/s of every pair
	cpu    []float64 // CPU seconds per GB
}

func compareStreams(b *testing.B, partitions, batches int) {
	local := newSlab()
	defer func() { _ = local.Stop() }()
	c := startChildOf(b, "slab", b.TempDir())
	client := stream.NewClient(c.store)
	defer func() { client.Hangup(); c.kill(b); c.close(b) }()
	in := &side{store: local, pids: []int{os.Getpid()}, groups: openGroups(b, local, partitions, batches)}
	process := &side{store: client, pids: []int{os.Getpid(), c.cmd.Process.Pid}, groups: openGroups(b, client, partitions, batches)}
	for _, s := range []*side{in, process} {
		s.append(b)
		s.speeds, s.cpu = nil, nil // the first round finds cold memory
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		order := []*side{in, process}
		if n%2 == 1 { // who comes first finds the caches in another state
			slices.Reverse(order)
		}
		for _, s := range order {
			s.append(b)
		}
	}
	var speed, cpu []float64
	for i := range in.speeds {
		speed = append(speed, process.speeds[i]/in.speeds[i])
		cpu = append(cpu, process.cpu[i]/in.cpu[i])
	}
	b.Logf("%d pairs; in process %s MB/s, a process of its own %s MB/s; by pair: MB/s %s, CPU %s", len(speed),
		spread(in.speeds), spread(process.speeds), spread(speed), spread(cpu))
	b.ReportMetric(median(in.speeds), "in-MB/s")
	b.ReportMetric(median(process.speeds), "process-MB/s")
	b.ReportMetric(median(speed), "MB/s-ratio")
	b.ReportMetric(median(cpu), "CPU-ratio")
}

// openGroups opens partitions and makes a group for each.
func openGroups(b *testing.B, store storage.StreamPlugin, partitions, batches int) (groups []storage.AppendRequest) {
	b.Helper()
	value := string(make([]byte, 64<<10-100))
	for id := range partitions {
		p := storagetest.Part()
		p.ID = partition.ID(id)
		if _, err := store.Open(b.Context(), storagetest.Creating(p, "a")); err != nil {
			b.Fatal(err)
		}
		r := storage.AppendRequest{Partition: p, Instance: "a", Lease: 1, Epoch: 1, Next: record.Offset(batches), MaxTimestamp: 1}
		for i := range batches {
			r.Bytes = append(r.Bytes, storagetest.Batch(record.Offset(i), 1, 1, value)...)
		}
		var err error
		if r.Sum, err = storeframe.Sum(r.Bytes); err != nil {
			b.Fatal(err)
		}
		groups = append(groups, r)
	}
	return groups
}

// append appends pairBytes, every partition its share at the same time.
func (s *side) append(b *testing.B) {
	b.Helper()
	share := pairBytes / len(s.groups)
	cpu, start := cpuSeconds(b, s.pids), time.Now()
	var wg sync.WaitGroup
	for _, r := range s.groups {
		wg.Go(func() {
			for sent := 0; sent < share; sent += len(r.Bytes) {
				if err := s.store.Append(b.Context(), r); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	s.speeds = append(s.speeds, pairBytes/1e6/took.Seconds())
	s.cpu = append(s.cpu, (cpuSeconds(b, s.pids)-cpu)/(pairBytes/1e9))
}

// cpuSeconds is the processor time that processes have used so far.
func cpuSeconds(b *testing.B, pids []int) (sum float64) {
	b.Helper()
	// The clock of a process, as clock_getcpuclockid makes it: getrusage knows children only once they have ended.
	const scheduled = 2
	for _, pid := range pids {
		var ts unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|scheduled), &ts); err != nil {
			b.Fatalf("processor time of %d: %v", pid, err)
		}
		sum += float64(ts.Nano()) / 1e9
	}
	return sum
}

// median is the middle one; spread says with it the range that holds the middle half.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func spread(values []float64) string {
	sorted := slices.Sorted(slices.Values(values))
	return fmt.Sprintf("%.3g (%.3g to %.3g)", median(values), sorted[len(sorted)/4], sorted[len(sorted)*3/4])
}
