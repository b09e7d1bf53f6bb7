package lend_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var part = storage.Partition{Topic: "t", TopicID: strings.Repeat("0f", 16)}

// bench is a core and a store that share a file system which can fail.
type bench struct {
	t    *testing.T
	data string
	fs   *faultfs.FS
	dir  *lend.Dir
	end  func()

	mu     sync.Mutex
	store  *filelog.Store
	killed int
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, data: t.TempDir(), fs: faultfs.New(vfs.OS())}
	b.dir = lend.NewDir(lend.Options{FS: b.fs, Instance: "core-1", Budget: lend.NewBudget(2)})
	b.restartStore()
	b.runDir()
	t.Cleanup(func() {
		b.end()
		_ = b.dir.Close()
		b.stopStore()
	})
	return b
}

// runDir looks after the directory, as the broker does, until b.end.
func (b *bench) runDir() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	dir := b.dir
	go func() {
		defer close(done)
		_ = dir.Run(ctx)
	}()
	b.end = func() { cancel(); <-done }
}

// patience is how long a test waits for what has to happen, on a machine that is slow.
const patience = 2 * time.Minute

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); <-time.After(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// restartStore replaces the store as a supervisor does after a death.
func (b *bench) restartStore() {
	b.t.Helper()
	b.stopStore()
	b.dir.Orphan()
	s, err := filelog.New(filelog.Options{Data: b.data, FS: b.fs})
	if err != nil {
		b.t.Fatal(err)
	}
	b.mu.Lock()
	b.store = s
	b.mu.Unlock()
	p := &lend.Plugin{Store: s, Kill: func(error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.killed++
	}}
	if err := b.dir.Adopt(context.Background(), p); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) stopStore() {
	b.mu.Lock()
	s := b.store
	b.store = nil
	b.mu.Unlock()
	if s != nil {
		_ = s.Stop()
	}
}

func (b *bench) open(create bool, segmentBytes int64) *lend.Log {
	b.t.Helper()
	l, _, err := b.dir.Open(context.Background(), part, lend.OpenOptions{Create: create, Settings: lend.Settings{SegmentBytes: segmentBytes}})
	if err != nil {
		b.t.Fatal(err)
	}
	return l
}

// group makes a batch of values at the end of l.
func group(l *lend.Log, values ...string) lend.Group {
	var b record.Builder
	b.Reset(nil)
	for i, v := range values {
		b.Append(&record.Record{Timestamp: int64(1000 + i), Value: []byte(v)})
	}
	batch := b.Finish(l.End(), l.Epoch())
	return lend.Group{Bytes: batch, Base: batch.BaseOffset(), Next: batch.NextOffset(), MaxTimestamp: batch.MaxTimestamp()}
}

func add(l *lend.Log, values ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return l.Append(ctx, group(l, values...))
}

func mustAdd(t *testing.T, l *lend.Log, values ...string) {
	t.Helper()
	if err := add(l, values...); err != nil {
		t.Fatal(err)
	}
}

// read returns every value from off on.
func read(t *testing.T, l *lend.Log, off record.Offset) (values []string) {
	t.Helper()
	ctx := context.Background()
	r, err := l.NewReader(ctx, off)
	if err != nil {
		t.Fatal(err)
	}
	var rec record.Record
	for {
		b, err := r.Next(ctx, l.End())
		if errors.Is(err, lend.ErrEnd) {
			return values
		}
		if err != nil {
			t.Fatal(err)
		}
		for it := record.NewIterator(b); ; {
			o, ok := it.Next(&rec)
			if !ok {
				break
			}
			if o >= off {
				values = append(values, string(rec.Value))
			}
		}
	}
}

func want(t *testing.T, got []string, values ...string) {
	t.Helper()
	if strings.Join(got, " ") != strings.Join(values, " ") {
		t.Errorf("read %q, want %q", got, values)
	}
}

func TestAppendedRecordsAreReadFromEveryOffset(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 300)
	var all []string
	for i := range 50 {
		v := fmt.Sprintf("v%d", i)
		all = append(all, v)
		mustAdd(t, l, v)
	}
	if s := l.Stats(); s.Segments < 10 || s.Confirmed != 50 {
		t.Fatalf("stats %+v: rolls expected", s)
	}
	for off := range 51 {
		want(t, read(t, l, record.Offset(off)), all[off:]...)
	}
	if _, err := l.NewReader(context.Background(), 51); !errors.Is(err, storage.ErrOffsetOutOfRange) {
		t.Errorf("beyond the end: %v", err)
	}
}

func TestOpenedLogReadsWhatAnotherCoreWrote(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 300)
	for i := range 20 {
		mustAdd(t, l, fmt.Sprintf("v%d", i))
	}
	if err := b.dir.Close(); err != nil {
		t.Fatal(err)
	}
	b.dir = lend.NewDir(lend.Options{FS: b.fs, Instance: "core-2", Budget: lend.NewBudget(2)})
	b.restartStore()
	l = b.open(false, 300)
	if got := read(t, l, 7); len(got) != 13 || got[0] != "v7" {
		t.Errorf("read %q", got)
	}
	mustAdd(t, l, "more")
	want(t, read(t, l, 19), "v19", "more")
}

func TestAppendsGoOnWithoutAStoreUntilTheLogRolls(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 300)
	mustAdd(t, l, "a")
	b.stopStore()
	b.dir.Orphan()
	mustAdd(t, l, "b")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	for {
		err := l.Append(ctx, group(l, "c"))
		if err == nil {
			continue
		}
		if !errors.Is(err, lend.ErrNoStore) {
			t.Fatal(err)
		}
		break
	}
	end := l.End()
	done := make(chan error, 1)
	go func() { done <- add(l, "waits for the store") }()
	b.restartStore()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want(t, read(t, l, end), "waits for the store")
	want(t, read(t, l, 0)[:2], "a", "b")
}

func TestFullDiskIsADefiniteFailure(t *testing.T) {
	for _, errno := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		t.Run(errno.Error(), func(t *testing.T) {
			b := newBench(t)
			l := b.open(true, 1<<20)
			mustAdd(t, l, "a")
			b.fs.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Write, "*.log"), Err: errno, Short: 30})
			var full *lend.FullError
			if err := add(l, "lost"); !errors.As(err, &full) || !errors.Is(err, errno) {
				t.Fatalf("got %v", err)
			}
			eventually(t, "records are taken again", func() bool { return add(l, "b") == nil })
			want(t, read(t, l, 0), "a", "b")
		})
	}
}

func TestUnknownOutcomeFencesTheDirectoryAndRecoveryCutsAtTheLastSync(t *testing.T) {
	faults := map[string]faultfs.Fault{
		"failed sync":             {Match: faultfs.On(faultfs.Sync, "*.log"), Err: syscall.EIO},
		"sync on a full disk":     {Match: faultfs.On(faultfs.Sync, "*.log"), Err: syscall.ENOSPC},
		"sync that was done":      {Match: faultfs.On(faultfs.Sync, "*.log"), Err: syscall.EIO, After: true},
		"failed write":            {Match: faultfs.On(faultfs.Write, "*.log"), Err: syscall.EIO, Short: 10},
		"canary":                  {Match: faultfs.On(faultfs.Probe, ""), Err: syscall.EROFS},
		"size that cannot be had": {Match: faultfs.On(faultfs.FileStat, "*.log"), Err: syscall.EIO},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			l := b.open(true, 1<<20)
			mustAdd(t, l, "a", "b")
			fenced := b.dir.Fenced()
			b.fs.Inject(fault)
			if err := add(l, "unknown"); !errors.Is(err, lend.ErrUnknown) {
				t.Fatalf("got %v", err)
			}
			select {
			case <-fenced:
			default:
				t.Fatal("directory is not fenced")
			}
			if err := add(l, "refused"); !errors.Is(err, lend.ErrFenced) {
				t.Fatalf("append to a fenced directory: %v", err)
			}
			if b.dir.Healthy() == nil {
				t.Error("a fenced directory is called healthy")
			}
			b.fs.Clear()
			recovered := b.dir.Recovered()
			b.restartStore()
			<-recovered
			want(t, read(t, l, 0), "a", "b")
			mustAdd(t, l, "c")
			want(t, read(t, l, 0), "a", "b", "c")
		})
	}
}

func TestFailedCutAfterAFullDiskIsUnknown(t *testing.T) {
	for name, op := range map[string]faultfs.Op{"truncate": faultfs.Truncate, "sync": faultfs.Sync} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			l := b.open(true, 1<<20)
			mustAdd(t, l, "a")
			b.fs.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Write, "*.log"), Err: syscall.ENOSPC, Short: 30})
			b.fs.Inject(faultfs.Fault{Match: faultfs.On(op, "*.log"), Err: syscall.EIO})
			if err := add(l, "unknown"); !errors.Is(err, lend.ErrUnknown) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestTwoFencesInARowTakeTheDirectoryOffline(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 1<<20)
	for range 2 {
		b.fs.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Sync, "*.log"), Err: syscall.EIO})
		if err := add(l, "x"); !errors.Is(err, lend.ErrUnknown) {
			t.Fatal(err)
		}
		if b.dir.Healthy() == nil {
			t.Fatal("healthy")
		}
		err := b.dir.Adopt(context.Background(), &lend.Plugin{Store: b.freshStore(), Kill: func(error) {}})
		if err != nil && !errors.Is(err, lend.ErrOffline) {
			t.Fatal(err)
		}
	}
	if err := add(l, "x"); err == nil {
		t.Error("an offline directory takes records")
	}
}

func (b *bench) freshStore() *filelog.Store {
	b.stopStore()
	b.dir.Orphan()
	s, err := filelog.New(filelog.Options{Data: b.data, FS: b.fs})
	if err != nil {
		b.t.Fatal(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.store = s
	return s
}

func TestStoreThatDiesInARollIsAskedAgain(t *testing.T) {
	for name, after := range map[string]bool{"before it": false, "after it": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			l := b.open(true, 200)
			mustAdd(t, l, "a")
			mustAdd(t, l, "b")
			b.fs.Inject(faultfs.Fault{Match: faultfs.On(faultfs.SyncDir, "t-0"), Err: syscall.EIO, After: after, Times: -1})
			done := make(chan error, 1)
			go func() { done <- add(l, strings.Repeat("c", 300)) }()
			b.waitKilled(1)
			b.fs.Clear()
			b.restartStore()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			want(t, read(t, l, 0), "a", "b", strings.Repeat("c", 300))
		})
	}
}

func (b *bench) waitKilled(n int) {
	b.t.Helper()
	eventually(b.t, "the store is killed", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.killed >= n
	})
}

func syncs(b *bench) int { return len(b.fs.Calls(faultfs.On(faultfs.Sync, "*.log"))) }

func (b *bench) openLazy(s lend.Sync) *lend.Log {
	b.t.Helper()
	l, _, err := b.dir.Open(context.Background(), part, lend.OpenOptions{
		Create: true, Settings: lend.Settings{SegmentBytes: 1 << 20, Sync: s},
		Advance: func(context.Context) (record.Epoch, error) { return 1, nil },
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return l
}

func TestSyncIsASetting(t *testing.T) {
	t.Run("never", func(t *testing.T) {
		b := newBench(t)
		l := b.openLazy(lend.Sync{Mode: lend.SyncNever})
		before := syncs(b)
		for range 10 {
			mustAdd(t, l, "a")
		}
		if n := syncs(b) - before; n != 0 {
			t.Errorf("%d syncs", n)
		}
		if got := read(t, l, 0); len(got) != 10 {
			t.Errorf("read %q", got)
		}
		if err := l.Alter(lend.Settings{SegmentBytes: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		if n := syncs(b) - before; n != 1 {
			t.Errorf("%d syncs when it is altered to batch, 1 expected", n)
		}
		mustAdd(t, l, "b")
		if n := syncs(b) - before; n != 2 {
			t.Errorf("%d syncs after a further append, 2 expected", n)
		}
	})
	t.Run("interval", func(t *testing.T) {
		b := newBench(t)
		l := b.openLazy(lend.Sync{Mode: lend.SyncInterval, Interval: 60 * time.Millisecond})
		before := syncs(b)
		mustAdd(t, l, "a")
		if n := syncs(b) - before; n != 0 {
			t.Errorf("%d syncs at once", n)
		}
		eventually(t, "a sync", func() bool { return syncs(b)-before == 1 })
	})
}

func TestFailedBackgroundSyncFencesAndRecoveryTakesANewEpoch(t *testing.T) {
	b := newBench(t)
	l := b.openLazy(lend.Sync{Mode: lend.SyncInterval, Interval: 50 * time.Millisecond})
	fenced := b.dir.Fenced()
	b.fs.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Sync, "*.log"), Err: syscall.EIO})
	mustAdd(t, l, "a")
	<-fenced
	if err := add(l, "b"); !errors.Is(err, lend.ErrFenced) {
		t.Errorf("got %v", err)
	}
	b.restartStore()
	if l.Epoch() != 1 {
		t.Errorf("epoch %d", l.Epoch())
	}
	mustAdd(t, l, "c")
	got := read(t, l, 0)
	if len(got) == 0 || got[len(got)-1] != "c" {
		t.Errorf("read %q", got)
	}
}

func TestAgedSegmentIsRolledAndAnEmptyOneNever(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 1<<20)
	if err := l.Alter(lend.Settings{SegmentBytes: 1 << 20, SegmentTime: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if l.Aged() {
		t.Error("an empty segment is called aged")
	}
	mustAdd(t, l, "a")
	eventually(t, "the segment is aged", l.Aged)
	if err := l.RollAged(context.Background()); err != nil {
		t.Fatal(err)
	}
	if s := l.Stats(); s.Segments != 2 || l.Aged() {
		t.Errorf("%+v", s)
	}
	if err := l.RollAged(context.Background()); err != nil || l.Stats().Segments != 2 {
		t.Errorf("an empty segment was rolled: %v", err)
	}
	mustAdd(t, l, "b")
	want(t, read(t, l, 0), "a", "b")
}

func TestDamageIsNamedAndPassedOver(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 1<<20)
	mustAdd(t, l, "a")
	first := l.Stats().Bytes
	mustAdd(t, l, "b")
	second := l.Stats().Bytes
	mustAdd(t, l, "c")
	for name, at := range map[string]int64{"payload": second - 1, "length": first + 8, "magic": first + 16} {
		t.Run(name, func(t *testing.T) {
			f, err := vfs.OS().Open(b.data+"/logs/t-0/00000000000000000000.log", vfs.Write)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			old := make([]byte, 1)
			if _, err := f.ReadAt(old, at); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte{old[0] ^ 0x55}, at); err != nil {
				t.Fatal(err)
			}
			defer func() { _, _ = f.WriteAt(old, at) }()
			r, err := l.NewReader(context.Background(), 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Next(context.Background(), l.End()); err != nil {
				t.Fatal(err)
			}
			var damage *lend.CorruptError
			for range 2 { // it stays until it is passed over
				if _, err := r.Next(context.Background(), l.End()); !errors.As(err, &damage) || damage.Offset != 1 {
					t.Fatalf("got %v", err)
				}
			}
			next := r.Skip(context.Background())
			if name == "payload" && next != 2 {
				t.Errorf("goes on at %d, want 2", next)
			}
			if next <= 1 || next > 3 {
				t.Errorf("goes on at %d", next)
			}
		})
	}
}

func TestReadErrorIsDamageOfThatPlaceOnly(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 1<<20)
	mustAdd(t, l, "a")
	b.fs.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Read, "*.log"), Err: syscall.EIO})
	r, err := l.NewReader(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	var damage *lend.CorruptError
	if _, err := r.Next(context.Background(), l.End()); !errors.As(err, &damage) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("got %v", err)
	}
	want(t, read(t, l, 0), "a")
	mustAdd(t, l, "b")
}

func TestWhatTheStoreSaysIsChecked(t *testing.T) {
	lies := map[string]func(*storage.Opened){
		"no descriptor": func(o *storage.Opened) { o.Lease.File = nil },
		"position":      func(o *storage.Opened) { o.Lease.Position += 10 },
		"inode":         func(o *storage.Opened) { o.Lease.Ino++ },
	}
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			s := liar{Plugin: b.freshStore(), lie: lie}
			if err := b.dir.Adopt(context.Background(), &lend.Plugin{Store: s, Kill: func(error) {}}); err != nil {
				t.Fatal(err)
			}
			_, _, err := b.dir.Open(context.Background(), part, lend.OpenOptions{Create: true, Settings: lend.Settings{SegmentBytes: 1 << 20}})
			if !errors.Is(err, lend.ErrLied) {
				t.Errorf("got %v", err)
			}
		})
	}
}

type liar struct {
	storage.Plugin
	lie func(*storage.Opened)
}

func (l liar) Open(ctx context.Context, r storage.OpenRequest) (storage.Opened, error) {
	o, err := l.Plugin.Open(ctx, r)
	if err == nil {
		file := o.Lease.File
		l.lie(&o)
		if o.Lease.File == nil {
			_ = file.Close()
		}
	}
	return o, err
}

func TestTwoPartitionsNeverShareASegment(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 1<<20)
	mustAdd(t, l, "a")
	s := thief{Plugin: b.freshStore(), path: b.data + "/logs/t-0/00000000000000000000.log"}
	if err := b.dir.Adopt(context.Background(), &lend.Plugin{Store: s, Kill: func(error) {}}); err != nil {
		t.Fatal(err)
	}
	other := part
	other.ID = 1
	if _, _, err := b.dir.Open(context.Background(), other, lend.OpenOptions{Create: true, Settings: lend.Settings{SegmentBytes: 1 << 20}}); !errors.Is(err, lend.ErrLied) {
		t.Errorf("got %v", err)
	}
	mustAdd(t, l, "b")
	want(t, read(t, l, 0), "a", "b")
}

// thief lends partition 1 the segment of partition 0.
type thief struct {
	storage.Plugin
	path string
}

func (s thief) Open(ctx context.Context, r storage.OpenRequest) (storage.Opened, error) {
	o, err := s.Plugin.Open(ctx, r)
	if err != nil || r.Partition.ID != 1 {
		return o, err
	}
	_ = o.Lease.File.Close()
	f, err := vfs.OS().Open(s.path, vfs.Write)
	if err != nil {
		return o, err
	}
	info, err := f.Stat()
	o.Lease.File, o.Lease.Dev, o.Lease.Ino, o.Lease.Position = stolen{f}, info.Dev, info.Ino, info.Size
	return o, err
}

type stolen struct{ vfs.File }

func (s stolen) Fd() uintptr { return uintptr(s.File.Fd()) }

func TestManySegmentsAreReadWithFewDescriptors(t *testing.T) {
	b := newBench(t) // two sealed segments open at most
	l := b.open(true, 200)
	for i := range 40 {
		mustAdd(t, l, fmt.Sprintf("v%d", i))
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				if got := read(t, l, 0); len(got) != 40 {
					t.Errorf("read %d records", len(got))
				}
			}
		})
	}
	wg.Wait()
}
