package lend_test

import (
	"context"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// tardy is a store whose next answer to Locate is on its way while something else happens.
type tardy struct {
	storage.Plugin
	meanwhile *func()
}

func (s tardy) Locate(ctx context.Context, r storage.LocateRequest) (storage.Extent, error) {
	e, err := s.Plugin.Locate(ctx, r)
	if f := *s.meanwhile; f != nil {
		*s.meanwhile = nil
		f()
	}
	return e, err
}

// TestALogThatIsParkedWhileItIsLookedUpCostsNoDescriptor: the reader's file must not stand where the writer's is to go.
func TestALogThatIsParkedWhileItIsLookedUpCostsNoDescriptor(t *testing.T) {
	b := newBench(t) // two descriptors
	var meanwhile func()
	if err := b.dir.Adopt(context.Background(), &lend.Plugin{Store: tardy{b.freshStore(), &meanwhile}, Kill: func(error) { b.killed++ }}); err != nil {
		t.Fatal(err)
	}
	for _, l := range b.openMany(2, true, lend.Settings{SegmentBytes: 1 << 20}) {
		mustAdd(t, l, "a")
		mustAdd(t, l, "b")
		if err := l.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	logs := b.openMany(2, false, lend.Settings{SegmentBytes: 1 << 20}) // where their batches lie is not known any more
	for off := range record.Offset(4) {
		mustAdd(t, logs[0], "x") // the one that is not used
		meanwhile = func() { mustAdd(t, logs[1], "y") }
		r, err := logs[0].NewReader(context.Background(), 1)
		if err != nil {
			t.Fatal(err)
		}
		if batch, err := r.Next(context.Background(), logs[0].End()); err != nil || batch.BaseOffset() != 1 {
			t.Fatalf("round %d: %v", off, err)
		}
		r.Idle()
	}
	for _, l := range logs {
		mustAdd(t, l, "z")
	}
	eventually(t, "two segments are open at most", func() bool { return b.descriptors() <= 2 })
}
