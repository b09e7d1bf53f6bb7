package lend_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// TestAFetchFindsALogThatIsBeingCut: there is a moment without segments.
func TestAFetchFindsALogThatIsBeingCut(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 1<<20)
	mustAdd(t, l, "a")
	mustAdd(t, l, "b")
	over := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				e, err := l.Extent(context.Background(), 0, 1, 1<<20)
				switch {
				case err == nil:
					e.Release()
				case !errors.Is(err, lend.ErrMoved) && !errors.Is(err, lend.ErrTruncating) && !errors.Is(err, storage.ErrNotOpen):
					t.Error(err)
					return
				}
			}
		})
	}
	for epoch := range record.Epoch(200) {
		if err := l.Truncate(context.Background(), 2, epoch+1); err != nil {
			t.Error(err)
			break
		}
	}
	close(over)
	readers.Wait()
}
