package storagetest

import (
	"context"
	"fmt"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// parks: a core that gave a lease back finds everything as it was, and the log goes on.
func parks(t TB, open Opener) {
	store, _ := start(t, open, t.TempDir())
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	w.Append("one")
	w.Roll()
	for i := range 3 {
		w.Append(fmt.Sprint(i))
		if i > 0 {
			w.Note()
		}
		before := w.Lease()
		w.Surrender()
		opened := w.Reopen()
		if l := opened.Lease; l.Next != record.Offset(i+2) || l.Position != w.Position() || l.Ino != before.Ino || l.Epoch <= before.Epoch || opened.Cut != nil {
			t.Errorf("parked at %d under lease %d, opened %+v, cut %+v", i+2, before.Epoch, l, opened.Cut)
		}
		if len(opened.Sealed) != 1 {
			t.Errorf("sealed segments %+v", opened.Sealed)
		}
	}
	w.Roll()
	w.Append("last")
	w.Note()
	wantValues(t, Read(t, store, Part(), 5), "one", "0", "1", "2", "last")
}

// rolled writes one record a segment, [0, n), and one more into the active one.
func rolled(t TB, store storage.Plugin, n int) *Writer {
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	for i := range n {
		w.Append(fmt.Sprint(i))
		w.Roll()
	}
	w.Append(fmt.Sprint(n))
	w.Note()
	return w
}

func trims(t TB, open Opener) {
	dir := t.TempDir()
	store, end := start(t, open, dir)
	ctx := context.Background()
	_, err := store.Trim(ctx, storage.TrimRequest{Partition: Part(), Instance: "a", LogStart: 1})
	wantErr(t, "trim what is not open", err, storage.ErrNotOpen)
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	w.Append("0", "1")
	w.Append("2", "3")
	w.Roll()
	w.Append("4", "5")
	w.Note()
	_, err = store.Trim(ctx, storage.TrimRequest{Partition: Part(), Instance: "b", LogStart: 1})
	wantErr(t, "trim by another core", err, storage.ErrLeaseStale)
	for _, c := range []struct{ ask, start, first record.Offset }{
		{1, 1, 0}, {1, 1, 0}, {0, 1, 0}, {3, 3, 0}, {5, 5, 4}, {5, 5, 4}, {4, 5, 4}, {6, 6, 4},
	} {
		got, err := store.Trim(ctx, storage.TrimRequest{Partition: Part(), Instance: "a", LogStart: c.ask})
		if err != nil || got.LogStart != c.start || got.First != c.first {
			t.Errorf("trim to %d: %+v, %v", c.ask, got, err)
		}
		_, err = store.Locate(ctx, storage.LocateRequest{Partition: Part(), Offset: c.start - 1})
		wantErr(t, "locate below the log start", err, storage.ErrOffsetOutOfRange)
	}
	end() // right after the answer
	w.Append("6")
	w.Let()
	store, _ = start(t, open, dir)
	_, opened := NewWriter(t, store, Recover(Part(), "b"))
	if opened.LogStart != 6 || opened.Lease.Base != 4 || opened.Lease.Next != 7 || len(opened.Sealed) != 0 || opened.Cut != nil {
		t.Errorf("after the trim: %+v, cut %+v", opened, opened.Cut)
	}
	wantValues(t, ReadFrom(t, store, Part(), Span{From: 6, End: 7}), "6")
}

func truncates(t TB, open Opener) {
	for _, c := range []struct{ to, base record.Offset }{
		{7, 6}, {6, 6}, {5, 3}, {4, 3}, {3, 3}, {1, 0}, {0, 0},
	} {
		dir := t.TempDir()
		store, end := start(t, open, dir)
		w, _ := NewWriter(t, store, Creating(Part(), "a"))
		for i := range 7 {
			if i == 3 || i == 6 {
				w.Roll()
			}
			w.Append(fmt.Sprint(i))
		}
		w.Note()
		lease := w.Lease().Epoch
		w.Surrender()
		r := storage.TruncateRequest{Partition: Part(), Instance: "a", Lease: lease, Next: c.to, Epoch: 2}
		opened, err := store.Truncate(context.Background(), r)
		if err != nil {
			t.Errorf("truncate to %d: %v", c.to, err)
			continue
		}
		if l := opened.Lease; l.Next != c.to || l.Base != c.base || l.Epoch <= lease || opened.Cut != nil || opened.LogStart != 0 {
			t.Errorf("truncated to %d: %+v", c.to, opened)
		}
		w.Resume(opened)
		w.leader = 2
		w.Append("new")
		w.Roll()
		w.Append("newer")
		w.Note()
		var want []string
		for i := range int(c.to) {
			want = append(want, fmt.Sprint(i))
		}
		want = append(want, "new", "newer")
		wantValues(t, Read(t, store, Part(), c.to+2), want...)
		end()
		w.Let()
		store, _ = start(t, open, dir)
		again := Recover(Part(), "b")
		again.Epoch = 3
		_, opened = NewWriter(t, store, again)
		if opened.Cut != nil || opened.Lease.Next != c.to+2 {
			t.Errorf("truncated to %d, recovered to %+v, cut %+v", c.to, opened.Lease, opened.Cut)
		}
		wantValues(t, Read(t, store, Part(), c.to+2), want...)
	}
}

func wrongTruncations(t TB, open Opener) {
	store, _ := start(t, open, t.TempDir())
	ctx := context.Background()
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	w.Append("0", "1")
	w.Append("2")
	w.Note()
	good := storage.TruncateRequest{Partition: Part(), Instance: "a", Lease: w.Lease().Epoch, Next: 2, Epoch: 1}
	_, err := store.Truncate(ctx, good)
	wantErr(t, "truncate what is held", err, storage.ErrLeaseHeld)
	w.Surrender()
	for name, c := range map[string]struct {
		spoil func(r *storage.TruncateRequest)
		want  error
	}{
		"another core":     {func(r *storage.TruncateRequest) { r.Instance = "b" }, storage.ErrLeaseStale},
		"an old lease":     {func(r *storage.TruncateRequest) { r.Lease-- }, storage.ErrLeaseStale},
		"beyond the end":   {func(r *storage.TruncateRequest) { r.Next = 4 }, storage.ErrOffsetOutOfRange},
		"below the start":  {func(r *storage.TruncateRequest) { r.Next = -1 }, storage.ErrOffsetOutOfRange},
		"another topic id": {func(r *storage.TruncateRequest) { r.Partition.TopicID = "f" + r.Partition.TopicID[1:] }, storage.ErrNotOpen},
	} {
		r := good
		c.spoil(&r)
		_, err := store.Truncate(ctx, r)
		wantErr(t, name, err, c.want)
	}
	inside := good
	inside.Next = 1
	if o, err := store.Truncate(ctx, inside); err == nil {
		t.Errorf("truncated inside a batch: %+v", o)
	}
	w.Reopen()
	w.Append("3")
	w.Note()
	wantValues(t, Read(t, store, Part(), 4), "0", "1", "2", "3") // nothing was touched
}

func expires(t TB, open Opener) {
	store, _ := start(t, open, t.TempDir())
	ctx := context.Background()
	ask := storage.ExpireRequest{Partition: Part(), Instance: "a", RetentionBytes: -1, Limit: 99}
	_, err := store.Expire(ctx, ask)
	wantErr(t, "expire what is not open", err, storage.ErrNotOpen)
	rolled(t, store, 4)
	size := int64(len(Batch(0, 1, 1, "0")))
	for name, c := range map[string]struct {
		bytes int64
		limit record.Offset
		want  record.Offset
	}{
		"no limit":                      {-1, 99, 0},
		"everything fits":               {5 * size, 99, 0},
		"two have to stay":              {2 * size, 99, 3},
		"a byte more":                   {2*size + 1, 99, 2},
		"nothing has to stay":           {0, 99, 4},
		"not above the high watermark":  {0, 2, 2},
		"nor inside a segment below it": {0, 0, 0},
	} {
		r := ask
		r.RetentionBytes, r.Limit = c.bytes, c.limit
		if got, err := store.Expire(ctx, r); err != nil || got != c.want {
			t.Errorf("%s: %d, %v, want %d", name, got, err, c.want)
		}
	}
	old := ask
	old.RetentionTime = time.Hour
	if got, err := store.Expire(ctx, old); err != nil || got != 0 {
		t.Errorf("segments of just now expire at %d, %v", got, err)
	}
	wantValues(t, Read(t, store, Part(), 5), "0", "1", "2", "3", "4") // it only proposes
	if _, err := store.Trim(ctx, storage.TrimRequest{Partition: Part(), Instance: "a", LogStart: 3}); err != nil {
		t.Fatalf("trim: %v", err)
	}
	if got, err := store.Expire(ctx, ask); err != nil || got != 3 {
		t.Errorf("after a trim to 3: %d, %v", got, err)
	}
	other := ask
	other.Instance = "b"
	_, err = store.Expire(ctx, other)
	wantErr(t, "expire by another core", err, storage.ErrLeaseStale)
}

// lazy: what recovery cuts off a topic that is acknowledged before it is synced was never promised.
func lazy(t TB, open Opener) {
	for _, promised := range []bool{true, false} {
		dir := t.TempDir()
		store, end := start(t, open, dir)
		w, _ := NewWriter(t, store, Creating(Part(), "a"))
		w.Append("kept")
		w.Raw(make([]byte, 3<<20), w.Position()) // more than a group
		end()
		w.Let()
		store, _ = start(t, open, dir)
		r := Recover(Part(), "b")
		r.Lazy = !promised
		_, opened := NewWriter(t, store, r)
		if c := opened.Cut; c == nil || c.Bytes != 3<<20 || c.Dirty != promised || c.SavedAs == "" {
			t.Errorf("promised %v: cut %+v", promised, c)
		}
	}
}

func adoptsNothing(t TB, open Opener) {
	store, _ := start(t, open, t.TempDir())
	ctx := context.Background()
	_, err := store.Adoptable(ctx, "orders")
	wantErr(t, "adoptable where nothing lies", err, storage.ErrDataMissing)
	r := Creating(Part(), "a")
	r.Adopt = true
	_, err = store.Open(ctx, r)
	wantErr(t, "adopt what is not there", err, storage.ErrDataMissing)
	for _, name := range []string{"", "..", "../../etc", "a/b"} {
		if a, err := store.Adoptable(ctx, name); err == nil {
			t.Errorf("adoptable %q: %+v", name, a)
		}
	}
}

func room(t TB, open Opener) {
	store, _ := start(t, open, t.TempDir())
	for range 2 {
		if err := store.Room(context.Background()); err != nil {
			t.Errorf("room on a disk that is not full: %v", err)
		}
	}
}
