package lend_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// openMany opens n partitions.
func (b *bench) openMany(n int, create bool, s lend.Settings) []*lend.Log {
	b.t.Helper()
	logs := make([]*lend.Log, n)
	for i := range logs {
		p := part
		p.ID = partition.ID(i)
		l, _, err := b.dir.Open(context.Background(), p, lend.OpenOptions{Create: create, Settings: s})
		if err != nil {
			b.t.Fatal(err)
		}
		logs[i] = l
	}
	return logs
}

// descriptors counts what this process has open of the bench's segments.
func (b *bench) descriptors() (n int) {
	b.t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && strings.HasPrefix(to, b.data) && filepath.Ext(strings.TrimSuffix(to, " (deleted)")) == ".log" {
			n++
		}
	}
	return n
}

func TestManyPartitionsLiveOnFewDescriptors(t *testing.T) {
	b := newBench(t) // two descriptors
	logs := b.openMany(12, true, lend.Settings{SegmentBytes: 300})
	for round := range 6 {
		for i, l := range logs {
			mustAdd(t, l, fmt.Sprintf("p%d r%d", i, round))
		}
	}
	for i, l := range logs {
		got := read(t, l, 0)
		if len(got) != 6 || got[5] != fmt.Sprintf("p%d r5", i) {
			t.Errorf("partition %d: %q", i, got)
		}
		if s := l.Stats(); s.Segments < 2 || s.Down != nil {
			t.Errorf("partition %d: %+v", i, s)
		}
	}
	// The store, which is in this process too, opens some for a moment.
	eventually(t, "two segments are open at most", func() bool { return b.descriptors() <= 2 })
	if b.killed > 0 {
		t.Errorf("the store was killed %d times", b.killed)
	}
}

func TestReaderOfAParkedLogGoesOnWhereItStood(t *testing.T) {
	b := newBench(t)
	logs := b.openMany(5, true, lend.Settings{SegmentBytes: 1 << 20})
	ctx := context.Background()
	mustAdd(t, logs[0], "a")
	r, err := logs[0].NewReader(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(ctx, 1); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		for _, l := range logs[1:] {
			mustAdd(t, l, "x") // and the first is parked
		}
		mustAdd(t, logs[0], "b")
		for _, l := range logs[1:] {
			mustAdd(t, l, "x")
		}
		got, err := r.Next(ctx, logs[0].End())
		if err != nil || got.NextOffset() != logs[0].End() {
			t.Fatalf("%v", err)
		}
	}
}

func TestParkedLogsOutliveTheStore(t *testing.T) {
	b := newBench(t)
	logs := b.openMany(8, true, lend.Settings{SegmentBytes: 300})
	for i := range 40 {
		mustAdd(t, logs[i%8], fmt.Sprintf("v%d", i))
	}
	b.restartStore()
	for i, l := range logs {
		if got := read(t, l, 0); len(got) != 5 || got[4] != fmt.Sprintf("v%d", 32+i) {
			t.Errorf("partition %d: %q", i, got)
		}
		mustAdd(t, l, "more")
	}
	b.restartStore()
	for _, l := range logs { // retention reaches a parked log, of which the new store has not heard
		if start, err := l.Trim(context.Background(), 3); err != nil || start != 3 {
			t.Fatalf("start %d, %v", start, err)
		}
		want(t, read(t, l, 5), "more")
	}
}

func TestParkedLogsOutliveAFence(t *testing.T) {
	b := newBench(t)
	logs := b.openMany(6, true, lend.Settings{SegmentBytes: 1 << 20})
	for i := range 24 {
		mustAdd(t, logs[i%6], fmt.Sprintf("v%d", i))
	}
	b.fs.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Write, "*.log"), Err: syscall.EIO, Short: 10})
	if err := add(logs[5], "unknown"); !errors.Is(err, lend.ErrUnknown) {
		t.Fatal(err)
	}
	b.fs.Clear()
	if err := add(logs[0], "refused"); !errors.Is(err, lend.ErrFenced) {
		t.Errorf("a parked log of a fenced directory: %v", err)
	}
	b.restartStore()
	for i, l := range logs {
		if got := read(t, l, 0); len(got) != 4 || l.Epoch() != 0 {
			t.Errorf("partition %d, epoch %d: %q", i, l.Epoch(), got)
		}
		mustAdd(t, l, "more")
	}
}

// TestUnsyncedLogIsSyncedBeforeItIsParked has one that is acknowledged from the page cache.
func TestUnsyncedLogIsSyncedBeforeItIsParked(t *testing.T) {
	b := newBench(t)
	logs := b.openMany(4, true, lend.Settings{SegmentBytes: 1 << 20, Sync: lend.Sync{Mode: lend.SyncNever}})
	mustAdd(t, logs[0], "a", "b")
	if logs[0].Durable() != 0 {
		t.Fatal("durable at once")
	}
	for _, l := range logs[1:] {
		mustAdd(t, l, "x")
	}
	if got := logs[0].Durable(); got != 2 {
		t.Errorf("parked, and durable up to %d", got)
	}
	b.fs.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Sync, "*.log"), Err: syscall.EIO})
	fenced := b.dir.Fenced()
	mustAdd(t, logs[3], "y")
	for _, l := range logs[:3] { // parks what is not synced, and that fails
		_ = add(l, "z")
	}
	select {
	case <-fenced:
	default:
		t.Error("a failed sync before parking does not fence the directory")
	}
}

// TestAStoreThatFailsWhileParkingIsReplaced loses the answer to what takes a lease back.
func TestAStoreThatFailsWhileParkingIsReplaced(t *testing.T) {
	b := newBench(t)
	var fail atomic.Bool
	broken := deaf{Plugin: b.freshStore(), fail: &fail}
	if err := b.dir.Adopt(context.Background(), &lend.Plugin{Store: broken, Kill: func(error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.killed++
	}}); err != nil {
		t.Fatal(err)
	}
	logs := b.openMany(2, true, lend.Settings{SegmentBytes: 1 << 20})
	mustAdd(t, logs[0], "a")
	mustAdd(t, logs[1], "b")
	fail.Store(true)
	third := part
	third.ID = 2
	done := make(chan error, 1)
	go func() {
		_, _, err := b.dir.Open(context.Background(), third, lend.OpenOptions{Create: true, Settings: lend.Settings{SegmentBytes: 1 << 20}})
		done <- err
	}()
	b.waitKilled(1)
	b.restartStore()
	if err := <-done; err != nil && !strings.Contains(err.Error(), "LEASE_HELD") {
		t.Fatal(err)
	}
	want(t, read(t, logs[0], 0), "a")
	want(t, read(t, logs[1], 0), "b")
	mustAdd(t, logs[0], "c")
	mustAdd(t, logs[1], "d")
}

// deaf does not hear when a lease is given back.
type deaf struct {
	storage.Plugin
	fail *atomic.Bool
}

func (d deaf) Close(ctx context.Context, r storage.CloseRequest) error {
	if d.fail.Load() {
		return errors.New("connection reset")
	}
	return d.Plugin.Close(ctx, r)
}

// TestPublishersReadersAndRestartsShareFewDescriptors is for the race detector, and for deadlocks.
func TestPublishersReadersAndRestartsShareFewDescriptors(t *testing.T) {
	const partitions, records, restarts = 6, 16, 4
	b := newBench(t)
	logs := b.openMany(partitions, true, lend.Settings{SegmentBytes: 500})
	var writers, readers sync.WaitGroup
	over := make(chan struct{})
	defer func() { close(over); readers.Wait() }()
	defer writers.Wait()
	for i, l := range logs {
		writers.Go(func() {
			for n := range records {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				err := l.Append(ctx, group(l, fmt.Sprintf("p%d n%d", i, n)))
				cancel()
				if err != nil {
					t.Errorf("partition %d, record %d: %v", i, n, err)
					return
				}
			}
		})
	}
	for _, l := range logs[:partitions/2] {
		readers.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
					readAll(t, l)
				}
			}
		})
	}
	for n := range restarts {
		eventually(t, "more is written", func() bool { return total(logs) >= record.Offset((n+1)*partitions*records/(restarts+1)) })
		b.restartStore()
	}
	writers.Wait()
	for i, l := range logs {
		got := read(t, l, 0)
		if len(got) != records || got[records-1] != fmt.Sprintf("p%d n%d", i, records-1) {
			t.Errorf("partition %d has %d records", i, len(got))
		}
	}
}

func total(logs []*lend.Log) (sum record.Offset) {
	for _, l := range logs {
		sum += l.End()
	}
	return sum
}

// readAll walks a log while it is written, and may be turned away when it is opened anew.
func readAll(t *testing.T, l *lend.Log) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for off := record.Offset(0); off < l.End(); {
		r, err := l.NewReader(ctx, off)
		if err == nil {
			var batch record.Batch
			if batch, err = r.Next(ctx, l.End()); err == nil {
				off = batch.NextOffset()
			}
			r.Idle()
		}
		if err != nil && !errors.Is(err, lend.ErrMoved) && !errors.Is(err, lend.ErrEnd) && !errors.Is(err, storage.ErrNotOpen) {
			t.Errorf("read at %d: %v", off, err)
			return
		}
	}
}

// slow is a store that does not answer notes until it is told to.
type slow struct {
	storage.Plugin
	noted  chan struct{}
	answer chan struct{}
}

func (s slow) Note(ctx context.Context, n storage.Note) error {
	select {
	case s.noted <- struct{}{}:
	default:
	}
	<-s.answer
	return s.Plugin.Note(ctx, n)
}

func TestASlowStoreDelaysNoIntervalSync(t *testing.T) {
	b := newBench(t)
	s := slow{Plugin: b.freshStore(), noted: make(chan struct{}, 1), answer: make(chan struct{})}
	if err := b.dir.Adopt(context.Background(), &lend.Plugin{Store: s, Kill: func(error) {}}); err != nil {
		t.Fatal(err)
	}
	defer close(s.answer)
	l := b.openLazy(lend.Sync{Mode: lend.SyncInterval, Interval: 50 * time.Millisecond})
	mustAdd(t, l, "a")
	<-s.noted // and nobody answers
	mustAdd(t, l, "b")
	eventually(t, "what came after is synced", func() bool { return l.Durable() == 2 })
}

func TestAnAgedSegmentWaitsForNoStore(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 1<<20)
	if err := l.Alter(lend.Settings{SegmentBytes: 1 << 20, SegmentTime: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	mustAdd(t, l, "a")
	eventually(t, "the segment is aged", l.Aged)
	b.stopStore()
	b.dir.Orphan()
	if err := l.RollAged(context.Background()); err != nil { // it would wait for ever
		t.Fatal(err)
	}
	mustAdd(t, l, "b")
	b.restartStore()
	eventually(t, "it is rolled when there is a store", func() bool {
		return l.RollAged(context.Background()) == nil && l.Stats().Segments == 2
	})
}

func TestAnAgedSegmentOfAParkedLogIsRolled(t *testing.T) {
	b := newBench(t)
	logs := b.openMany(4, true, lend.Settings{SegmentBytes: 1 << 20, SegmentTime: time.Millisecond})
	for _, l := range logs {
		mustAdd(t, l, "a")
	}
	for _, l := range logs {
		eventually(t, "the segment is aged and rolled", func() bool {
			return l.RollAged(context.Background()) == nil && l.Stats().Segments == 2
		})
		want(t, read(t, l, 0), "a")
	}
}

// TestExtentsHoldNoMoreThanTheBudget is a fetch of many partitions: what does not fit is said, and comes later.
func TestExtentsHoldNoMoreThanTheBudget(t *testing.T) {
	b := newBench(t) // two descriptors
	logs := b.openMany(4, true, lend.Settings{SegmentBytes: 1 << 20})
	for _, l := range logs {
		mustAdd(t, l, "a")
	}
	ctx := context.Background()
	var held []*lend.Extent
	crowded := 0
	for _, l := range logs {
		e, err := l.Extent(ctx, 0, 1, 1<<20)
		switch {
		case errors.Is(err, lend.ErrCrowded):
			crowded++
		case err != nil:
			t.Fatal(err)
		default:
			held = append(held, e)
		}
	}
	if len(held) != 2 || crowded != 2 {
		t.Errorf("%d held, %d refused", len(held), crowded)
	}
	for _, e := range held {
		e.Release()
	}
	for _, l := range logs {
		e, err := l.Extent(ctx, 0, 1, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		e.Release()
	}
}
