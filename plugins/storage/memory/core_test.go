package memory_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/plugins/storage/memory"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// core is a core with room for one descriptor, were files not pinned.
func core(t *testing.T, s *memory.Store) *lend.Dir {
	t.Helper()
	d := lend.NewDir(lend.Options{Instance: "core", Budget: lend.NewBudget(1)})
	t.Cleanup(func() { _ = d.Close() })
	adopt(t, d, s)
	return d
}

func adopt(t *testing.T, d *lend.Dir, s *memory.Store) {
	t.Helper()
	if err := d.Adopt(t.Context(), &lend.Plugin{Store: s, Kill: func(error) {}}); err != nil {
		t.Fatal(err)
	}
}

func openLog(t *testing.T, d *lend.Dir, set lend.Settings) *lend.Log {
	t.Helper()
	l, _, err := d.Open(t.Context(), storagetest.Part(), lend.OpenOptions{Create: true, Epoch: 1, Settings: set})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func put(t *testing.T, l *lend.Log, value string) {
	t.Helper()
	base := l.End()
	b := storagetest.Batch(base, 1, 1, value)
	if err := l.Append(t.Context(), lend.Group{Bytes: b, Base: base, Next: base + 1, MaxTimestamp: 1}); err != nil {
		t.Fatal(err)
	}
}

// read counts the batches of a log, which follow each other.
func read(t *testing.T, l *lend.Log) int {
	t.Helper()
	r, err := l.NewReader(t.Context(), l.Stats().LogStart)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		_, err := r.Next(t.Context(), l.End())
		if errors.Is(err, lend.ErrEnd) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheCoreKeepsEverySegmentOverTheStoresLives(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir, room)
	d := core(t, s)
	l := openLog(t, d, lend.Settings{SegmentBytes: 100})
	for life := range 4 {
		for i := range 10 {
			put(t, l, fmt.Sprint(life, i))
		}
		d.Orphan()
		stop(t, s)
		if got := read(t, l); got != 10*(life+1) {
			t.Errorf("without a store %d records are there", got)
		}
		s = start(t, dir, room)
		adopt(t, d, s)
		if got := read(t, l); got != 10*(life+1) || l.Stats().Down != nil {
			t.Errorf("life %d: %d records, %+v", life, got, l.Stats())
		}
	}
}

func TestRetentionIsAppliedAtEachRoll(t *testing.T) {
	d := core(t, start(t, t.TempDir(), room))
	l := openLog(t, d, lend.Settings{SegmentBytes: 1000, Retention: &lend.Retention{Bytes: 4000}})
	for i := range 500 {
		put(t, l, fmt.Sprint(i))
		if s := l.Stats(); s.Bytes > 6000 {
			t.Fatalf("after %d records there are %d bytes", i+1, s.Bytes)
		}
	}
	if s := l.Stats(); s.LogStart == 0 || read(t, l) != int(s.Confirmed-s.LogStart) {
		t.Errorf("in the end: %+v", s)
	}
}

func TestASegmentTakesNoMoreRecordsThanItsFloorCovers(t *testing.T) {
	d := core(t, start(t, t.TempDir(), room))
	l := openLog(t, d, lend.Settings{SegmentBytes: 1 << 20})
	most := d.Description().SegmentRecords
	// A batch that says it holds very many records, as one that is compressed may.
	b := storagetest.Batch(0, 1, 1, "one")
	var many *lend.TooManyError
	err := l.Append(t.Context(), lend.Group{Bytes: b, Base: 0, Next: record.Offset(most + 1), MaxTimestamp: 1})
	if !errors.As(err, &many) || many.Max != most {
		t.Errorf("a group beyond the bound: %v", err)
	}
	if err := l.Append(t.Context(), lend.Group{Bytes: b, Base: 0, Next: record.Offset(most), MaxTimestamp: 1}); err != nil {
		t.Fatal(err)
	}
	put(t, l, "next")
	if s := l.Stats(); s.Segments != 2 {
		t.Errorf("a full segment was not rolled: %+v", s)
	}
}

func TestAFullStoreIsDefiniteAndClosesNobodyElseOut(t *testing.T) {
	d := core(t, start(t, t.TempDir(), 64<<10))
	l := openLog(t, d, lend.Settings{SegmentBytes: 40_000})
	put(t, l, string(make([]byte, 30_000)))
	base := l.End()
	b := storagetest.Batch(base, 1, 1, string(make([]byte, 30_000)))
	var full *lend.FullError
	if err := l.Append(t.Context(), lend.Group{Bytes: b, Base: base, Next: base + 1}); !errors.As(err, &full) || !errors.Is(err, storage.ErrFull) {
		t.Errorf("a segment beyond the cap: %v", err)
	}
	put(t, l, "a small one")
	if got := read(t, l); got != 2 {
		t.Errorf("%d records are there", got)
	}
}
