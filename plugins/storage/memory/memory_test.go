package memory_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/memory"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
)

const room = 64 << 20

// rolled writes so many records, a segment each, and one more into the active one.
func rolled(t *testing.T, s *memory.Store, n int) *storagetest.Writer {
	t.Helper()
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "a"))
	for i := range n {
		w.Append(fmt.Sprint(i))
		w.Roll()
	}
	w.Append(fmt.Sprint(n))
	w.Note()
	return w
}

func TestALogOutlivesItsStoreInTheHandsOfTheCore(t *testing.T) {
	dir := t.TempDir()
	w := rolled(t, start(t, dir, room), 3)
	for life := range 3 {
		s := start(t, dir, room)
		o := w.Readopt(s)
		if len(o.Sealed) != 3+life || o.LogStart != 0 {
			t.Fatalf("life %d: re-adopted %+v", life, o)
		}
		w.Append(fmt.Sprint(4 + life))
		w.Roll()
		w.Note()
		if got := len(storagetest.Read(t, s, storagetest.Part(), w.Next())); got != 5+life {
			t.Errorf("life %d: read %d records", life, got)
		}
		stop(t, s)
	}
}

func TestWhatWasTrimmedStaysTrimmedOverTheStoresLife(t *testing.T) {
	s := start(t, t.TempDir(), room)
	rolled(t, s, 4)
	ctx := context.Background()
	for _, c := range []struct{ ask, start, first int }{{1, 1, 1}, {0, 1, 1}, {3, 3, 3}, {5, 5, 4}} {
		got, err := s.Trim(ctx, storage.TrimRequest{Partition: storagetest.Part(), Instance: "a", LogStart: offset(c.ask)})
		if err != nil || int(got.LogStart) != c.start || int(got.First) != c.first {
			t.Errorf("trim to %d: %+v, %v", c.ask, got, err)
		}
		_, err = s.Locate(ctx, storage.LocateRequest{Partition: storagetest.Part(), Offset: offset(c.start - 1)})
		if !errors.Is(err, storage.ErrOffsetOutOfRange) {
			t.Errorf("locate below the log start: %v", err)
		}
	}
}

func TestTruncatesBetweenBatches(t *testing.T) {
	for _, c := range []struct{ to, base int }{{4, 3}, {3, 3}, {2, 2}, {1, 1}, {0, 0}} {
		s := start(t, t.TempDir(), room)
		w := rolled(t, s, 3)
		lease := w.Lease().Epoch
		w.Surrender()
		o, err := s.Truncate(context.Background(), storage.TruncateRequest{
			Partition: storagetest.Part(), Instance: "a", Lease: lease, Next: offset(c.to), Epoch: 1,
		})
		if err != nil {
			t.Fatalf("truncate to %d: %v", c.to, err)
		}
		if l := o.Lease; int(l.Next) != c.to || int(l.Base) != c.base || l.Epoch <= lease || len(o.Sealed) != c.base {
			t.Errorf("truncated to %d: %+v", c.to, o)
		}
		w.Resume(o)
		w.Append("new")
		w.Roll()
		w.Append("newer")
		w.Note()
		got := storagetest.Read(t, s, storagetest.Part(), offset(c.to+2))
		if len(got) != c.to+2 || got[c.to] != "new" {
			t.Errorf("truncated to %d: %q", c.to, got)
		}
	}
}

func TestOffsetsAreNeverGivenTwice(t *testing.T) {
	dir := t.TempDir()
	last := offset(0)
	for life := range 6 {
		s := start(t, dir, room)
		w, o := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), fmt.Sprint("core", life)))
		if o.Lease.Next < last || o.LogStart != o.Lease.Next || o.Lease.Position != 0 || len(o.Sealed) != 0 {
			t.Fatalf("life %d: opened %+v, offsets up to %d were given", life, o, last)
		}
		if life > 0 && life%2 == 0 && o.Lease.Next != last {
			t.Errorf("life %d: an end in order left a gap from %d to %d", life, last, o.Lease.Next)
		}
		for i := range 3 {
			w.Append(fmt.Sprint(i))
			w.Roll()
		}
		w.Append("last")
		last = w.Next()
		if life%2 == 1 {
			w.Surrender()
		}
		w.Let()
		stop(t, s)
	}
}

func TestTheCapIsKept(t *testing.T) {
	s := start(t, t.TempDir(), 3<<20) // a segment of the suite has 1 MiB
	ctx := context.Background()
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "a"))
	if err := s.Room(ctx); err != nil {
		t.Errorf("room: %v", err)
	}
	big := strings.Repeat("x", 900<<10)
	w.Append(big)
	w.Roll()
	w.Append(big)
	w.Roll()
	w.Append(big)
	before := w.Lease()
	if err := w.TryRoll(); !errors.Is(err, storage.ErrFull) {
		t.Fatalf("a fourth segment: %v", err)
	}
	w.Append("the active one is as it was")
	other := storagetest.Part()
	other.ID = 7
	if _, err := s.Open(ctx, storagetest.Creating(other, "a")); !errors.Is(err, storage.ErrFull) {
		t.Errorf("another partition: %v", err)
	}
	if _, err := s.Trim(ctx, storage.TrimRequest{Partition: storagetest.Part(), Instance: "a", LogStart: 2}); err != nil {
		t.Fatal(err)
	}
	w.Roll()
	if w.Lease().Epoch <= before.Epoch {
		t.Errorf("lease %d after %d", w.Lease().Epoch, before.Epoch)
	}
	if err := s.Delete(ctx, storagetest.Part()); err != nil {
		t.Fatal(err)
	}
	for id := range 3 {
		other.ID = storagetest.Part().ID
		other.Topic = fmt.Sprint("other", id)
		if _, err := openOnce(ctx, s, other); err != nil {
			t.Errorf("partition %d after the delete: %v", id, err)
		}
	}
}

// openOnce opens a partition and closes what was lent.
func openOnce(ctx context.Context, s *memory.Store, p storage.Partition) (storage.Opened, error) {
	o, err := s.Open(ctx, storagetest.Creating(p, "a"))
	if err == nil {
		err = o.Lease.File.Close()
	}
	return o, err
}

func TestWhatIsHeldIsTakenWhateverTheCapSays(t *testing.T) {
	dir := t.TempDir()
	w := rolled(t, start(t, dir, room), 3)
	s := start(t, dir, 1<<20)
	w.Readopt(s)
	if err := w.TryRoll(); !errors.Is(err, storage.ErrFull) {
		t.Errorf("a further segment beyond the cap: %v", err)
	}
	w.Append("on")
}

func TestWhatIsHeldHasToBeWhatCameWithIt(t *testing.T) {
	dir := t.TempDir()
	w := rolled(t, start(t, dir, room), 2)
	s := start(t, dir, room)
	for name, spoil := range map[string]func(h *storage.Held){
		"no active file":           func(h *storage.Held) { h.File = nil },
		"no sealed file":           func(h *storage.Held) { h.Sealed[1].File = nil },
		"a gap":                    func(h *storage.Held) { h.Sealed = h.Sealed[1:]; h.Sealed[0].Next-- },
		"a short sealed file":      func(h *storage.Held) { h.Sealed[0].Size += 100 },
		"a log start above":        func(h *storage.Held) { h.LogStart = h.Next + 1 },
		"more than a segment":      func(h *storage.Held) { h.Next += 1 << 30 },
		"the files in a wrong way": func(h *storage.Held) { h.File = h.Sealed[0].File },
	} {
		r := storagetest.Recover(storagetest.Part(), "a")
		r.Held = w.Held()
		r.Held.Sealed = append([]storage.HeldSegment(nil), r.Held.Sealed...)
		spoil(r.Held)
		if o, err := s.Open(context.Background(), r); !errors.Is(err, storage.ErrHeldMismatch) {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
	}
	w.Readopt(s) // nothing was touched
}

func TestDeletesByID(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir, room)
	ctx := context.Background()
	w := rolled(t, s, 2)
	other := storagetest.Part()
	other.TopicID = "f" + other.TopicID[1:]
	for _, p := range []storage.Partition{other, storagetest.Part(), storagetest.Part()} {
		if err := s.Delete(ctx, p); err != nil {
			t.Errorf("delete %s: %v", p.TopicID, err)
		}
		if p == other {
			w.Append("still there")
			w.Note()
		}
	}
	if err := s.Note(ctx, w.NoteRequest()); !errors.Is(err, storage.ErrNotOpen) {
		t.Errorf("note after the delete: %v", err)
	}
	if _, err := s.Open(ctx, storagetest.Recover(storagetest.Part(), "a")); !errors.Is(err, storage.ErrDataMissing) {
		t.Errorf("open after the delete: %v", err)
	}
	if o, err := openOnce(ctx, s, other); err != nil || o.Lease.Next != 0 {
		t.Errorf("a new topic of that name: %+v, %v", o, err)
	}
}

func TestFloorsThatCannotBeRead(t *testing.T) {
	for name, text := range map[string]string{"garbage": "hello", "nothing": "", "a later format": "2 " + storagetest.Part().TopicID + " 5\n", "a negative floor": "1 " + storagetest.Part().TopicID + " -5\n"} {
		dir := t.TempDir()
		s := start(t, dir, room)
		if err := os.WriteFile(filepath.Join(dir, "memory", storagetest.Part().String()), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Open(context.Background(), storagetest.Creating(storagetest.Part(), "a")); !errors.Is(err, storage.ErrFormat) {
			t.Errorf("a floor of %s: %v", name, err)
		}
	}
}

func TestNoSegmentIsLentWithoutItsFloor(t *testing.T) {
	dir := t.TempDir()
	if err := vfs.MakeDirs(vfs.OS(), filepath.Join(dir, "memory")); err != nil {
		t.Fatal(err)
	}
	f := faultfs.New(vfs.OS())
	s, err := memory.New(memory.Options{Data: dir, Cap: room, FS: f})
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, s)
	f.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Sync, ""), Err: syscall.EIO})
	if _, err := s.Open(context.Background(), storagetest.Creating(storagetest.Part(), "a")); err == nil {
		t.Fatal("a partition was opened whose floor could not be synced")
	}
	w, o := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "a"))
	if o.Lease.Next != 0 {
		t.Errorf("opened %+v", o)
	}
	w.Append("one")
}

func TestRetentionTakesWhatIsOldAndWhatIsTooMuch(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	s, err := memory.New(memory.Options{Data: t.TempDir(), Cap: room, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, s)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "a"))
	for i := range 4 {
		w.Append(fmt.Sprint(i))
		w.Roll()
		now = now.Add(time.Hour)
	}
	w.Append("4")
	w.Note()
	for age, want := range map[time.Duration]int{10 * time.Hour: 0, 150 * time.Minute: 2, 30 * time.Minute: 4} {
		got, err := s.Expire(context.Background(), storage.ExpireRequest{
			Partition: storagetest.Part(), Instance: "a", RetentionTime: age, RetentionBytes: -1, Limit: 99,
		})
		if err != nil || int(got) != want {
			t.Errorf("retention of %v: %d, %v, want %d", age, got, err, want)
		}
	}
}
