package lend_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
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
