package storagetest_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

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

// BenchmarkStream compares a store without files in this process with the same one behind channels in a process of its
// own: groups of eight batches of 64 KiB, as eight publishers of such batches make them, and of one.
func BenchmarkStream(b *testing.B) {
	for _, batches := range []int{8, 1} {
		for _, partitions := range []int{1, 4} {
			for _, path := range []string{"in", "process"} {
				b.Run(fmt.Sprintf("batch=64KiB/group=%d/partitions=%d/%s", batches, partitions, path), func(b *testing.B) {
					local := newSlab()
					defer func() { _ = local.Stop() }()
					var store storage.StreamPlugin = local
					if path == "process" {
						c := startChildOf(b, "slab", b.TempDir())
						client := stream.NewClient(c.store)
						defer func() { client.Hangup(); c.kill(b); c.close(b) }()
						store = client
					}
					benchmarkAppends(b, store, partitions, batches)
				})
			}
		}
	}
}

func benchmarkAppends(b *testing.B, store storage.StreamPlugin, partitions, batches int) {
	ctx := context.Background()
	var groups []storage.AppendRequest
	value := string(make([]byte, 64<<10-100))
	for id := range partitions {
		p := storagetest.Part()
		p.ID = partition.ID(id)
		if _, err := store.Open(ctx, storagetest.Creating(p, "a")); err != nil {
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
	b.SetBytes(int64(len(groups[0].Bytes)))
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i, r := range groups {
		n := b.N / partitions
		if i == 0 {
			n += b.N % partitions
		}
		wg.Go(func() {
			for range n {
				if err := store.Append(ctx, r); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
