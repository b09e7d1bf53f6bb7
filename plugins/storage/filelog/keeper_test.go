package filelog_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func TestParkedPartitionIsNotScanned(t *testing.T) {
	dir := t.TempDir()
	fsys := faultfs.New(vfs.OS())
	s := newStore(t, dir, fsys)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 200, 5000)
	w.Note()
	fill(w, 3, 5000) // known to the store by the surrender only
	w.Surrender()
	fsys.Forget()
	opened := w.Reopen()
	if opened.Lease.Next != 203 || opened.Lease.MaxTimestamp != 203 {
		t.Errorf("opened %+v", opened.Lease)
	}
	if n := len(fsys.Calls(faultfs.On(faultfs.Sync, "*.log"))); n != 0 || logBytesRead(fsys) > 100_000 {
		t.Errorf("%d syncs of segments, %d bytes of them read", n, logBytesRead(fsys))
	}
	fill(w, 3, 5000)
	w.Roll()
	fill(w, 1, 1)
	w.Note()
	stop(t, s)
	verified(t, partDir(dir), kafkalog.VerifyOptions{})
	wantIndexes(t, partDir(dir), 0, true)
}

func TestParkedPartitionThatChangedIsScanned(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one")
	w.Surrender()
	b, err := os.ReadFile(segmentFile(dir, 0))
	if err != nil {
		t.Fatal(err)
	}
	write(t, segmentFile(dir, 0), string(b)+"torn")
	opened := w.Reopen()
	if opened.Cut == nil || opened.Cut.Bytes != 4 || opened.Lease.Next != 1 {
		t.Errorf("opened %+v, cut %+v", opened.Lease, opened.Cut)
	}
}

func TestTruncationNeedsToKnowWhereTheLogEnds(t *testing.T) {
	s := newStore(t, t.TempDir(), nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 3, 10)
	w.Note()
	ctx := context.Background()
	// A core that closes without saying where: it has lost its place, and recovery has to find it.
	if err := s.Close(ctx, storage.CloseRequest{Partition: storagetest.Part(), Instance: "core", Lease: w.Lease().Epoch}); err != nil {
		t.Fatal(err)
	}
	_, err := s.Truncate(ctx, storage.TruncateRequest{Partition: storagetest.Part(), Instance: "core", Lease: w.Lease().Epoch, Next: 2, Epoch: 1})
	if err == nil {
		t.Error("truncated a log whose end is not known")
	}
	if opened := w.Reopen(); opened.Lease.Next != 3 {
		t.Errorf("opened %+v", opened.Lease)
	}
}

func TestUnknownGapsFileStopsThePartition(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 1, 1)
	w.Let()
	// What it allows decides about what is cut, so it is not guessed.
	write(t, filepath.Join(partDir(dir), "adopted-below"), "17\n")
	if _, err := s.Open(context.Background(), storagetest.Recover(storagetest.Part(), "next")); err == nil {
		t.Error("opened")
	}
}

// TestCallsBesideEachOther writes, rolls and notes while others locate, expire and trim.
func TestCallsBesideEachOther(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 1, 10)
	w.Note()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for off := record.Offset(0); ctx.Err() == nil; off = (off + 7) % 600 {
				e, err := s.Locate(ctx, storage.LocateRequest{Partition: storagetest.Part(), Offset: off})
				switch {
				case err == nil:
					if e.Offset > off {
						t.Errorf("locate %d: %+v", off, e)
					}
					_ = e.File.Close()
				case ctx.Err() == nil && !errors.Is(err, storage.ErrOffsetOutOfRange) && !errors.Is(err, os.ErrNotExist):
					t.Errorf("locate %d: %v", off, err)
				}
			}
		})
	}
	for i := range 30 {
		fill(w, 20, 2000)
		w.Note()
		if i%3 == 2 {
			w.Roll()
		}
		start, err := s.Expire(ctx, storage.ExpireRequest{Partition: storagetest.Part(), Instance: "core", RetentionBytes: 300_000, Limit: w.Next()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Trim(ctx, storage.TrimRequest{Partition: storagetest.Part(), Instance: "core", LogStart: start}); err != nil {
			t.Fatal(err)
		}
		if i == 20 {
			lease := w.Lease().Epoch
			w.Surrender()
			o, err := s.Truncate(ctx, storage.TruncateRequest{Partition: storagetest.Part(), Instance: "core", Lease: lease, Next: w.Next() - 10, Epoch: 1})
			if err != nil {
				t.Fatal(err)
			}
			w.Resume(o)
		}
	}
	cancel()
	wg.Wait()
	w.Note()
	stop(t, s)
	bases := 0
	for _, n := range names(t, partDir(dir)) {
		if _, ok := kafkalog.ParseSegmentName(n); ok {
			bases++
		}
	}
	if bases < 3 || bases > 6 {
		t.Errorf("%d segments are left: %s", bases, fmt.Sprint(names(t, partDir(dir))))
	}
	text, err := os.ReadFile(checkpointFile(dir, logStart))
	if err != nil {
		t.Fatal(err)
	}
	start, _, err := kafkalog.FindOffset(text, "orders", 2)
	if err != nil {
		t.Fatal(err)
	}
	verified(t, partDir(dir), kafkalog.VerifyOptions{LogStart: start})
}
