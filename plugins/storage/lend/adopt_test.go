package lend_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// slowProbe holds the first probe after it was armed.
type slowProbe struct {
	vfs.FS
	armed         atomic.Bool
	entered, goOn chan struct{}
}

func (s *slowProbe) Probe(f vfs.File) error {
	if s.armed.CompareAndSwap(true, false) {
		close(s.entered)
		<-s.goOn
	}
	return s.FS.Probe(f)
}

func TestPluginThatRestartsBesideASyncFencesNothing(t *testing.T) {
	b := newBench(t)
	fs := &slowProbe{FS: b.fs, entered: make(chan struct{}), goOn: make(chan struct{})}
	d := lend.NewDir(lend.Options{FS: fs, Instance: "core-2"})
	defer func() { _ = d.Close() }()
	if err := d.Adopt(context.Background(), &lend.Plugin{Store: b.store, Kill: func(error) {}}); err != nil {
		t.Fatal(err)
	}
	l, _, err := d.Open(context.Background(), part, lend.OpenOptions{Create: true, Settings: lend.Settings{SegmentBytes: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	fs.armed.Store(true)
	appended, adopted := make(chan error, 1), make(chan error, 1)
	go func() { appended <- add(l, "a") }()
	<-fs.entered
	b.stopStore()
	d.Orphan()
	next, err := filelog.New(filelog.Options{Data: b.data, FS: b.fs})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = next.Stop() }()
	go func() { adopted <- d.Adopt(context.Background(), &lend.Plugin{Store: next, Kill: func(error) {}}) }()
	close(fs.goOn)
	if err := <-appended; err != nil || d.Healthy() != nil {
		t.Errorf("append: %v; directory: %v", err, d.Healthy())
	}
	if err := <-adopted; err != nil {
		t.Error(err)
	}
	mustAdd(t, l, "b")
}

func TestGroupOfAnOldLeaderEpochIsRefused(t *testing.T) {
	b := newBench(t)
	l := b.openLazy(lend.Sync{Mode: lend.SyncNever})
	mustAdd(t, l, "a")
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	stamped := group(l, "under the old epoch")
	b.dir.Fence(errors.New("another partition's sync failed"))
	b.restartStore()
	if err := l.Append(context.Background(), stamped); err == nil {
		t.Fatalf("appended under epoch %d, the log has %d", record.Batch(stamped.Bytes).Epoch(), l.Epoch())
	}
	mustAdd(t, l, "b")
	want(t, read(t, l, 0), "a", "b")
}

// mortal is a store that ends when it is asked to take a held log over.
type mortal struct{ *filelog.Store }

func (m mortal) Open(ctx context.Context, r storage.OpenRequest) (storage.Opened, error) {
	if r.Held != nil {
		return storage.Opened{}, fmt.Errorf("%w: open", storage.ErrGone)
	}
	return m.Store.Open(ctx, r)
}

func TestPluginThatDiesInReadoptionCostsNoLease(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 1<<20)
	mustAdd(t, l, "a")
	adopt := func(wrap func(*filelog.Store) storage.Plugin) error {
		return b.dir.Adopt(context.Background(), &lend.Plugin{Store: wrap(b.freshStore()), Kill: func(error) {}})
	}
	dies := func(s *filelog.Store) storage.Plugin { return mortal{s} }
	lives := func(s *filelog.Store) storage.Plugin { return s }
	for range 3 {
		if err := adopt(dies); !errors.Is(err, storage.ErrGone) {
			t.Fatalf("adopted a plugin that is gone: %v", err)
		}
		mustAdd(t, l, "more")
		want(t, read(t, l, 0)[:1], "a")
	}
	if err := adopt(lives); err != nil {
		t.Fatal(err)
	}
	mustAdd(t, l, "b")
	want(t, read(t, l, 0), "a", "more", "more", "more", "b")

	// A log that no plugin survives is opened by recovery in the end, so that the others go on.
	for i := range 4 {
		if err := adopt(dies); (err == nil) != (i == 3) {
			t.Fatalf("adoption %d: %v", i, err)
		}
	}
	if l.Stats().Down == nil {
		t.Fatal("the log still has its lease")
	}
	if err := adopt(dies); err != nil {
		t.Fatal(err)
	}
	want(t, read(t, l, 0), "a", "more", "more", "more", "b")
}

// halfway is a store that ends in a truncation: when the end is gone, and before it answers.
type halfway struct{ *filelog.Store }

func (h halfway) Truncate(ctx context.Context, r storage.TruncateRequest) (storage.Opened, error) {
	o, err := h.Store.Truncate(ctx, r)
	if err != nil {
		return o, err
	}
	return storage.Opened{}, errors.Join(fmt.Errorf("%w: truncate", storage.ErrGone), o.Lease.File.Close())
}

func TestPluginThatDiesInATruncationLeavesItToItsSuccessor(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 300)
	for i := range 20 {
		mustAdd(t, l, fmt.Sprintf("v%d", i))
	}
	adopt := func(wrap func(*filelog.Store) storage.Plugin) {
		if err := b.dir.Adopt(context.Background(), &lend.Plugin{Store: wrap(b.freshStore()), Kill: func(error) {}}); err != nil {
			t.Fatal(err)
		}
	}
	adopt(func(s *filelog.Store) storage.Plugin { return halfway{s} })
	if err := l.Truncate(context.Background(), 11, 3); !errors.Is(err, storage.ErrGone) {
		t.Fatal(err)
	}
	adopt(func(s *filelog.Store) storage.Plugin { return s })
	if s := l.Stats(); s.Down != nil || s.Confirmed != 11 {
		t.Fatalf("the log is %+v", s)
	}
	if err := l.Truncate(context.Background(), 11, 3); err != nil {
		t.Fatal(err)
	}
	mustAdd(t, l, "other")
	want(t, read(t, l, 9), "v9", "v10", "other")
}
