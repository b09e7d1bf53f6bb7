package lend_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/plugins/storage/memory"
)

// sharing makes b's directory one of those that share a budget.
func (b *bench) sharing(shared *lend.Budget) *bench {
	b.t.Helper()
	b.end()
	_ = b.dir.Close()
	b.dir = lend.NewDir(lend.Options{FS: b.fs, Instance: "core-1", Budget: shared})
	b.restartStore()
	b.runDir()
	return b
}

func TestDirectoriesShareOneBudget(t *testing.T) {
	shared := lend.NewBudget(3)
	a, b := newBench(t).sharing(shared), newBench(t).sharing(shared)
	set := lend.Settings{SegmentBytes: 300}
	logsA, logsB := a.openMany(5, true, set), b.openMany(5, true, set)
	for round := range 4 {
		for i := range logsA {
			mustAdd(t, logsA[i], fmt.Sprintf("a%d r%d", i, round))
			mustAdd(t, logsB[i], fmt.Sprintf("b%d r%d", i, round))
		}
	}
	for i := range logsA {
		if got := read(t, logsA[i], 0); len(got) != 4 || got[3] != fmt.Sprintf("a%d r3", i) {
			t.Errorf("%q", got)
		}
		if got := read(t, logsB[i], 0); len(got) != 4 || got[3] != fmt.Sprintf("b%d r3", i) {
			t.Errorf("%q", got)
		}
	}
	eventually(t, "three segments are open at most", func() bool { return a.descriptors()+b.descriptors() <= 3 })
}

// TestADirectoryThatIsFencedHoldsUpNoOther has the least recently used logs where nothing can be parked.
func TestADirectoryThatIsFencedHoldsUpNoOther(t *testing.T) {
	shared := lend.NewBudget(3)
	a, b := newBench(t).sharing(shared), newBench(t).sharing(shared)
	set := lend.Settings{SegmentBytes: 1 << 20}
	logsA := a.openMany(2, true, set)
	a.fs.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Sync, "*.log"), Err: syscall.EIO})
	if err := add(logsA[0], "unknown"); !errors.Is(err, lend.ErrUnknown) {
		t.Fatal(err)
	}
	logsB := b.openMany(3, true, set) // with the one descriptor that is left
	for range 3 {
		for i, l := range logsB {
			mustAdd(t, l, fmt.Sprint(i))
		}
	}
}

func TestPinnedSegmentsCountAndLeaveSomeToOthers(t *testing.T) {
	shared := lend.NewBudget(8)
	pinned := lend.NewDir(lend.Options{FS: vfs.OS(), Instance: "core-1", Budget: shared})
	t.Cleanup(func() { _ = pinned.Close() })
	store, err := memory.New(memory.Options{Data: t.TempDir(), Cap: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Stop() })
	if err := pinned.Adopt(t.Context(), &lend.Plugin{Store: store, Kill: func(error) {}}); err != nil {
		t.Fatal(err)
	}
	m := &bench{t: t, dir: pinned}
	set := lend.Settings{SegmentBytes: 1 << 20}
	kept := m.openMany(5, true, set)
	onDisk := newBench(t).sharing(shared)
	logs := onDisk.openMany(6, true, set)
	for i, l := range logs {
		mustAdd(t, l, fmt.Sprint(i))
	}
	eventually(t, "what is pinned leaves three", func() bool { return onDisk.descriptors() == 3 })
	for _, l := range kept {
		mustAdd(t, l, "m")
	}
	for i := range 20 { // more than there are
		p := part
		p.Topic = fmt.Sprint("more", i)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		_, _, err := pinned.Open(ctx, p, lend.OpenOptions{Create: true, Settings: set})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, l := range logs {
		mustAdd(t, l, fmt.Sprint(i))
	}
	eventually(t, "a quarter is left", func() bool { return onDisk.descriptors() == 2 })
}
