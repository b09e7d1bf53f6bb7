package filelog_test

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// fromKafka puts a directory under adopt/ as a broker leaves it: segments at 100 and 110, the first of them compacted, zero
// tails behind its indexes, and files of producers.
func fromKafka(t *testing.T, dir string, id partition.ID, topicID string) string {
	t.Helper()
	path := filepath.Join(dir, "adopt", kafkalog.PartitionDir("orders", id))
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	file := func(name string, content []byte) {
		if err := os.WriteFile(filepath.Join(path, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first := storagetest.Batch(100, 3, 1000, "a", "b")
	first = append(first, storagetest.Batch(105, 3, 2000, strings.Repeat("c", 5000))...) // 102 to 104 are gone
	first = append(first, storagetest.Batch(106, 4, 3000, "d")...)                       // and so are 107 to 109
	control := storagetest.Batch(111, 4, 4000, "commit")
	binary.BigEndian.PutUint16(control[21:], 1<<5|1<<4) // a transaction's marker
	binary.BigEndian.PutUint32(control[17:], crc(control[21:]))
	second := append(storagetest.Batch(110, 4, 3500, "e"), control...)
	file(kafkalog.SegmentName(100), first)
	file(kafkalog.SegmentName(110), second)
	file(kafkalog.IndexName(100), make([]byte, 4096))
	file(kafkalog.TimeIndexName(100), make([]byte, 4104))
	file(kafkalog.IndexName(110), make([]byte, 4096))
	file(kafkalog.EpochCheckpointName, []byte("0\n3\n3 100\n4 106\n7 112\n"))
	file("00000000000000000110.snapshot", []byte("producers"))
	file("00000000000000000100.txnindex", nil)
	if topicID != "" {
		metadata, err := kafkalog.PartitionMetadata(topicID)
		if err != nil {
			t.Fatal(err)
		}
		file(kafkalog.PartitionMetadataName, metadata)
	}
	return path
}

func adopting(epoch record.Epoch) storage.OpenRequest {
	r := storagetest.Creating(storagetest.Part(), "core")
	r.Adopt, r.Epoch = true, epoch
	return r
}

func TestAdoptsFromKafka(t *testing.T) {
	for _, topicID := range []string{"", storagetest.Part().TopicID} {
		dir := t.TempDir()
		s := newStore(t, dir, nil)
		ctx := context.Background()
		for id := range partition.ID(3) {
			fromKafka(t, dir, id, topicID)
		}
		a, err := s.Adoptable(ctx, "orders")
		if err != nil || a.TopicID != topicID || a.Partitions != 3 || !slices.Equal(a.Epochs, []record.Epoch{7, 7, 7}) {
			t.Fatalf("adoptable: %+v, %v", a, err)
		}
		w, opened := storagetest.NewWriter(t, s, adopting(8))
		if l := opened.Lease; opened.LogStart != 100 || l.Base != 110 || l.Next != 112 || l.MaxTimestamp != 4000 || opened.Cut != nil {
			t.Errorf("adopted %+v", opened)
		}
		if g := opened.Sealed; len(g) != 1 || g[0].Base != 100 || g[0].Next != 110 || g[0].MaxTimestamp != 3000 {
			t.Errorf("sealed %+v", g)
		}
		for off, want := range map[record.Offset]record.Offset{100: 100, 101: 100, 103: 100, 105: 105, 108: 106, 110: 110, 111: 111} {
			e, err := s.Locate(ctx, storage.LocateRequest{Partition: storagetest.Part(), Offset: off})
			if err != nil || e.Offset != want {
				t.Errorf("locate %d: %+v, %v", off, e, err)
				continue
			}
			_ = e.File.Close()
		}
		fill(w, 3, 10)
		w.Roll()
		fill(w, 1, 10)
		w.Note()
		w.Let()
		stop(t, s)
		verified(t, partDir(dir), kafkalog.VerifyOptions{Compacted: true})
		wantIndexes(t, partDir(dir), 100, true)
		for _, name := range names(t, partDir(dir)) {
			if strings.HasSuffix(name, ".snapshot") || strings.HasSuffix(name, ".txnindex") {
				t.Errorf("%s came along", name)
			}
		}
		if id, err := os.ReadFile(filepath.Join(partDir(dir), kafkalog.PartitionMetadataName)); err != nil || !strings.Contains(string(id), "topic_id") {
			t.Errorf("metadata %q, %v", id, err)
		}
		// Without a recovery point it is read again, and what compaction took is still no damage.
		remove(t, checkpointFile(dir, recoveryPoint+".by-id"))
		r := adopting(9) // repeated
		r.Instance = "next"
		_, opened = storagetest.NewWriter(t, newStore(t, dir, nil), r)
		if opened.Lease.Next != 116 || opened.LogStart != 100 || opened.Cut != nil {
			t.Errorf("opened again %+v, cut %+v", opened, opened.Cut)
		}
	}
}

func TestEpochsAreGatheredWhereTheCheckpointIsMissing(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	for id := range partition.ID(3) {
		remove(t, filepath.Join(fromKafka(t, dir, id, ""), kafkalog.EpochCheckpointName))
	}
	if a, err := s.Adoptable(context.Background(), "orders"); err != nil || a.Epochs[2] != 4 {
		t.Fatalf("adoptable: %+v, %v", a, err)
	}
	storagetest.NewWriter(t, s, adopting(5))
	if text, err := os.ReadFile(filepath.Join(partDir(dir), kafkalog.EpochCheckpointName)); err != nil || string(text) != "0\n3\n3 100\n4 106\n5 112\n" {
		t.Errorf("epochs %q, %v", text, err)
	}
}

func TestWhatCannotBeAdopted(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		spoil func(t *testing.T, path string)
		says  string
		early bool // Adoptable sees it already
	}{
		"a missing partition": {func(t *testing.T, p string) {
			if err := os.RemoveAll(strings.Replace(p, "orders-2", "orders-1", 1)); err != nil {
				t.Fatal(err)
			}
		}, "put it into", true},
		"another topic id": {func(t *testing.T, p string) {
			write(t, filepath.Join(p, kafkalog.PartitionMetadataName), "version: 0\ntopic_id: AAAAAAAAAAAAAAAAAAAAAQ\n")
		}, "partition.metadata", true},
		"no segment": {func(t *testing.T, p string) {
			remove(t, filepath.Join(p, kafkalog.SegmentName(100)))
			remove(t, filepath.Join(p, kafkalog.SegmentName(110)))
		}, ".log files", true},
		"a compaction under way": {func(t *testing.T, p string) { write(t, filepath.Join(p, "00000000000000000100.log.swap"), "x") }, "stop its Kafka broker cleanly", true},
		"message format 1": {func(t *testing.T, p string) {
			b, err := os.ReadFile(filepath.Join(p, kafkalog.SegmentName(110)))
			if err != nil {
				t.Fatal(err)
			}
			b[16] = 1
			write(t, filepath.Join(p, kafkalog.SegmentName(110)), string(b))
			remove(t, filepath.Join(p, kafkalog.EpochCheckpointName))
		}, "message format 2", true},
		"a torn tail": {func(t *testing.T, p string) {
			b, err := os.ReadFile(filepath.Join(p, kafkalog.SegmentName(110)))
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(p, kafkalog.SegmentName(110)), string(b[:len(b)-1]))
		}, "start and stop its Kafka broker", false},
		"a flipped bit": {func(t *testing.T, p string) {
			if err := flipAt(filepath.Join(p, kafkalog.SegmentName(100)), 200); err != nil {
				t.Fatal(err)
			}
		}, "position ", false},
		"no leader epochs": {func(t *testing.T, p string) {
			write(t, filepath.Join(p, kafkalog.SegmentName(110)), string(storagetest.Batch(110, -1, 1, "x")))
			write(t, filepath.Join(p, kafkalog.SegmentName(100)), string(storagetest.Batch(100, -1, 1, "x")))
		}, "leader epoch", false},
		"an empty segment inside another": {func(t *testing.T, p string) { write(t, filepath.Join(p, kafkalog.SegmentName(104)), "") }, "begins below", false},
		"an overlap": {func(t *testing.T, p string) {
			write(t, filepath.Join(p, kafkalog.SegmentName(104)), string(storagetest.Batch(104, 3, 1, "x")))
		}, "begins below", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := newStore(t, dir, nil)
			var path string
			for id := range partition.ID(3) {
				path = fromKafka(t, dir, id, storagetest.Part().TopicID)
			}
			c.spoil(t, path)
			_, err := s.Adoptable(ctx, "orders")
			if c.early != (err != nil) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("adoptable: %v", err)
			}
			if name == "a missing partition" {
				return
			}
			before := names(t, path)
			_, err = s.Open(ctx, adopting(8))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("adopted: %v", err)
			}
			for _, n := range before {
				if !exists(filepath.Join(path, n)) {
					t.Errorf("%s is gone", n)
				}
			}
			if exists(partDir(dir)) {
				t.Error("it has its place under logs/")
			}
		})
	}
}

func TestCrashAtEveryCallOfAnAdoption(t *testing.T) {
	for at := 0; ; at++ {
		dir := t.TempDir()
		fsys := faultfs.New(vfs.OS())
		dying := newStore(t, dir, fsys)
		fromKafka(t, dir, 2, "")
		fsys.Inject(faultfs.Fault{Match: faultfs.Changing, Skip: at, Times: -1, Err: syscall.EIO})
		opened, err := dying.Open(context.Background(), adopting(8))
		_ = dying.Stop()
		if err == nil {
			_ = opened.Lease.File.Close()
			if at < 15 {
				t.Errorf("an adoption makes only %d calls", at)
			}
			return
		}
		s := newStore(t, dir, nil)
		r := adopting(9)
		r.Instance = "next"
		_, opened = storagetest.NewWriter(t, s, r)
		if opened.Lease.Next != 112 || opened.LogStart != 100 || opened.Cut != nil {
			t.Errorf("crash at call %d (%v): %+v, cut %+v", at, err, opened, opened.Cut)
		}
		stop(t, s)
		verified(t, partDir(dir), kafkalog.VerifyOptions{Compacted: true})
	}
}

// handClock is a clock that a test sets.
type handClock struct {
	wall    time.Time
	elapsed time.Duration
}

func (c *handClock) Wall() time.Time        { return c.wall }
func (c *handClock) Elapsed() time.Duration { return c.elapsed }

func TestSegmentsExpireByTheRetentionClock(t *testing.T) {
	dir := t.TempDir()
	const day = 24 * time.Hour
	clock := &handClock{wall: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	begin := func() *filelog.Store {
		s, err := filelog.New(filelog.Options{Data: dir, Clock: clock})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	pass := func(d time.Duration) { clock.wall, clock.elapsed = clock.wall.Add(d), clock.elapsed+d }
	expire := func(s *filelog.Store, instance string, want record.Offset) {
		t.Helper()
		r := storage.ExpireRequest{Partition: storagetest.Part(), Instance: instance, RetentionTime: 7 * day, RetentionBytes: -1, Limit: 99}
		if got, err := s.Expire(context.Background(), r); err != nil || got != want {
			t.Errorf("expire: %d, %v, want %d", got, err, want)
		}
	}
	s := begin()
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	for range 3 { // sealed at day 0, 1, 2
		w.Append("x")
		w.Roll()
		pass(day)
	}
	w.Append("x")
	w.Note()
	expire(s, "core", 0)
	clock.wall = clock.wall.AddDate(10, 0, 0) // years ahead, for an hour
	pass(time.Hour)
	expire(s, "core", 0)
	clock.wall = clock.wall.AddDate(-10, 0, 0)
	pass(4*day - time.Hour) // day 7
	expire(s, "core", 1)
	clock.wall = clock.wall.AddDate(-20, 0, 0) // years behind, for good
	pass(day)
	expire(s, "core", 2)
	w.Let()
	stop(t, s)
	s = begin() // stamps and clock outlast the process
	w, _ = storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
	expire(s, "next", 2)
	w.Let()
	stop(t, s)
	remove(t, filepath.Join(partDir(dir), "segment-times")) // a lost stamp means now
	s = begin()
	w, _ = storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "last"))
	expire(s, "last", 0)
	pass(7 * day)
	expire(s, "last", 3)
	w.Let()
	stop(t, s)
	remove(t, filepath.Join(dir, "logs", "retention-clock")) // and stamps of a lost clock mean nothing
	pass(100 * day)
	s = begin()
	w, _ = storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "again"))
	expire(s, "again", 0)
	w.Let()
	stop(t, s)
	if _, err := s.Expire(context.Background(), storage.ExpireRequest{Partition: storagetest.Part(), RetentionTime: -1}); !errors.Is(err, filelog.ErrInvalid) {
		t.Errorf("negative retention: %v", err)
	}
}

func crc(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
