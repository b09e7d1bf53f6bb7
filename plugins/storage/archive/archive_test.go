package archive_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/crashfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/archive"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// world is what a client knows of a partition: what it was told, and what was under way.
type world struct {
	created    bool
	acked      []string // by offset
	start      record.Offset
	maybe      []string      // a group without an outcome: all of it, or nothing
	maybeStart record.Offset // a trim without one
	maybeEnd   record.Offset // a truncation without one; -1: none
	deleting   bool
}

// script uses a store until a call fails, and says what came of it.
func script(s *archive.Store) (w world) {
	ctx := context.Background()
	w.maybeEnd = -1
	o, err := s.Open(ctx, storagetest.Creating(storagetest.Part(), "a"))
	if err != nil {
		return w
	}
	w.created = true
	lease := o.Lease.Epoch
	put := func(values ...string) bool {
		r := request(lease, record.Offset(len(w.acked)), values...)
		if err := s.Append(ctx, r); err != nil {
			w.maybe = values
			return false
		}
		w.acked = append(w.acked, values...)
		return true
	}
	// The truncation is to end in the middle of the second group.
	if !put("first 0") || !put("first 1", "first 2", "first 3") || !put("first 4") {
		return w
	}
	w.maybeStart = 1
	if _, err := s.Trim(ctx, storage.TrimRequest{Partition: storagetest.Part(), Instance: "a", LogStart: 1}); err != nil {
		return w
	}
	w.start = 1
	if err := s.Close(ctx, storage.CloseRequest{Partition: storagetest.Part(), Instance: "a", Lease: lease}); err != nil {
		return w
	}
	w.maybeEnd = 3
	o, err = s.Truncate(ctx, storage.TruncateRequest{Partition: storagetest.Part(), Instance: "a", Lease: lease, Next: 3, Epoch: 1})
	if err != nil {
		return w
	}
	lease, w.acked, w.maybeEnd = o.Lease.Epoch, w.acked[:3], -1
	if !put("second 3") || !put("second 4") {
		return w
	}
	w.deleting = true
	if err := s.Delete(ctx, storagetest.Part()); err == nil {
		w.created = false
	}
	return w
}

// request is a group of one batch for each value.
func request(lease storage.LeaseEpoch, base record.Offset, values ...string) storage.AppendRequest {
	r := storage.AppendRequest{
		Partition: storagetest.Part(), Instance: "a", Lease: lease, Epoch: 1, Base: base, Next: base, MaxTimestamp: 1,
	}
	for _, v := range values {
		b := storagetest.Batch(r.Next, 1, 1, v)
		r.Bytes, r.Next = append(r.Bytes, b...), b.NextOffset()
	}
	r.Sum = sumOf(r.Bytes)
	return r
}

// judge opens what a crash has left and holds it against what the client knows.
func judge(t *testing.T, s *archive.Store, w world) {
	t.Helper()
	o, err := s.Open(context.Background(), storagetest.Recover(storagetest.Part(), "b"))
	if errors.Is(err, storage.ErrDataMissing) && (!w.created || w.deleting) {
		return // it was never said to be there, or may be gone
	}
	if err != nil {
		t.Errorf("open: %v", err)
		return
	}
	if !w.created && w.deleting {
		t.Errorf("a deleted partition is there")
		return
	}
	end := o.Lease.Next
	acked := record.Offset(len(w.acked))
	if end != acked && end != acked+record.Offset(len(w.maybe)) && end != w.maybeEnd || o.LogStart != w.start && o.LogStart != w.maybeStart {
		t.Errorf("the log is [%d, %d), expected an end of %d (+%d, or %d) and a start of %d or %d", o.LogStart, end, acked, len(w.maybe), w.maybeEnd, w.start, w.maybeStart)
		return
	}
	want := slices.Concat(w.acked, w.maybe)
	for i, got := range storagetest.ReadStream(t, s, storagetest.Span{From: o.LogStart, End: end}, 1<<20) {
		if got != want[int(o.LogStart)+i] {
			t.Errorf("offset %d holds %q, want %q", int(o.LogStart)+i, got, want[int(o.LogStart)+i])
		}
	}
	if err := s.Append(context.Background(), func() storage.AppendRequest {
		r := request(o.Lease.Epoch, end, "after")
		r.Instance = "b"
		return r
	}()); err != nil {
		t.Errorf("the log does not go on: %v", err)
	}
}

func TestPowerLossAfterEveryCall(t *testing.T) {
	for n := 0; ; n++ {
		fsys := crashfs.New(crashfs.Options{})
		fsys.StopAfter(n)
		var w world
		w.maybeEnd = -1
		if s, err := archive.New(archive.Options{Data: "/data", FS: fsys}); err == nil {
			w = script(s)
			stop(t, s)
		}
		if !fsys.Gone() {
			if n < 20 || w.created {
				t.Fatalf("the script ended after %d calls: %+v", n, w)
			}
			t.Logf("crashed after each of %d calls", n)
			return
		}
		for seed := range uint64(5) {
			next := fsys.Crash(seed)
			s, err := archive.New(archive.Options{Data: "/data", FS: next})
			if err != nil {
				t.Fatalf("start after call %d, seed %d: %v", n, seed, err)
			}
			judge(t, s, w)
			stop(t, s)
			if t.Failed() {
				t.Fatalf("after call %d, seed %d", n, seed)
			}
		}
	}
}

func TestACallThatFailsIsNotAnswered(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 0; ; n++ {
			dir := t.TempDir()
			fsys := faultfs.New(vfs.OS())
			s, err := archive.New(archive.Options{Data: dir, FS: fsys})
			if err != nil {
				t.Fatal(err)
			}
			fsys.Forget()
			fsys.Inject(faultfs.Fault{Match: faultfs.Changing, Skip: n, Err: syscall.EIO, After: after})
			w := script(s)
			fsys.Clear()
			made := len(fsys.Calls(faultfs.Changing))
			stop(t, s)
			if made <= n { // none failed
				if n < 20 || w.created {
					t.Fatalf("the script ended after %d calls: %+v", n, w)
				}
				break
			}
			s, err = archive.New(archive.Options{Data: dir})
			if err != nil {
				t.Fatal(err)
			}
			judge(t, s, w)
			stop(t, s)
			if t.Failed() {
				t.Fatalf("call %d failed, after it was done: %v", n, after)
			}
		}
	}
}

func TestAFullDiskIsDefinite(t *testing.T) {
	fsys := faultfs.New(vfs.OS())
	dir := t.TempDir()
	s := start(t, archive.Options{Data: dir, FS: fsys})
	w, _ := storagetest.NewSender(t, s, storagetest.Creating(storagetest.Part(), "a"))
	w.Append("one")
	refused := w.Group([]string{"refused"})
	for _, op := range []faultfs.Op{faultfs.Create, faultfs.Write, faultfs.Sync, faultfs.Replace} {
		fsys.Inject(faultfs.Fault{Match: faultfs.On(op, ""), Err: syscall.ENOSPC, Short: 10})
		if err := s.Append(context.Background(), refused); !errors.Is(err, storage.ErrFull) {
			t.Errorf("no space at %s: %v", op, err)
		}
		fsys.Clear()
	}
	// Once the object has its name nobody can say what comes of it.
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.SyncDir, ""), Err: syscall.ENOSPC})
	if err := s.Append(context.Background(), refused); err == nil || errors.Is(err, storage.ErrFull) {
		t.Errorf("no space at the directory's sync: %v", err)
	}
	fsys.Clear()
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Write, ""), Times: -1, Err: syscall.ENOSPC})
	if err := s.Room(context.Background()); !errors.Is(err, storage.ErrFull) {
		t.Errorf("room on a full disk: %v", err)
	}
	fsys.Clear()
	if err := s.Room(context.Background()); err != nil {
		t.Errorf("room: %v", err)
	}
}

func TestAnAnswerComesAfterObjectAndNameAreSynced(t *testing.T) {
	fsys := faultfs.New(vfs.OS())
	s := start(t, archive.Options{Data: t.TempDir(), FS: fsys})
	w, _ := storagetest.NewSender(t, s, storagetest.Creating(storagetest.Part(), "a"))
	fsys.Forget()
	w.Append("one")
	var did []string
	for _, c := range fsys.Calls(faultfs.Changing) {
		did = append(did, string(c.Op))
	}
	if got, want := strings.Join(did, " "), "create write sync replace syncdir"; got != want {
		t.Errorf("an append is %q, want %q", got, want)
	}
}

func TestDamageIsNamedAndTouchesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, f vfs.FS, dir string, objects []string)
		want  error
	}{
		"a hole": {func(t *testing.T, f vfs.FS, dir string, objects []string) {
			if err := f.Remove(dir + "/" + objects[1]); err != nil {
				t.Fatal(err)
			}
		}, storage.ErrQuarantined},
		"something else": {func(t *testing.T, f vfs.FS, dir string, _ []string) {
			if err := vfs.WriteDurably(f, dir+"/notes.txt", []byte("hello")); err != nil {
				t.Fatal(err)
			}
		}, storage.ErrFormat},
		"another topic's mark": {func(t *testing.T, f vfs.FS, dir string, _ []string) {
			if err := vfs.WriteDurably(f, dir+"/partition", []byte("1 ffffffffffffffffffffffffffffffff\n")); err != nil {
				t.Fatal(err)
			}
		}, storage.ErrDataMissing},
		"a mark of a later format": {func(t *testing.T, f vfs.FS, dir string, _ []string) {
			if err := vfs.WriteDurably(f, dir+"/partition", []byte("2 "+storagetest.Part().TopicID+"\n")); err != nil {
				t.Fatal(err)
			}
		}, storage.ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			s := start(t, archive.Options{Data: data})
			w, _ := storagetest.NewSender(t, s, storagetest.Creating(storagetest.Part(), "a"))
			for i := range 3 {
				w.Append(fmt.Sprint(i))
			}
			stop(t, s)
			dir := data + "/archive/" + storagetest.Part().String()
			objects := list(t, dir)
			c.spoil(t, vfs.OS(), dir, objects)
			before := list(t, dir)
			s = start(t, archive.Options{Data: data})
			if o, err := s.Open(context.Background(), storagetest.Recover(storagetest.Part(), "b")); !errors.Is(err, c.want) {
				t.Errorf("opened %+v, %v, want %v", o, err, c.want)
			}
			if after := list(t, dir); !slices.Equal(before, after) {
				t.Errorf("there were %q, now %q", before, after)
			}
		})
	}
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := vfs.OS().ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// hands is a clock that a test moves.
type hands struct{ now time.Duration }

func (h *hands) Wall() time.Time        { return time.Unix(1_700_000_000, 0).Add(h.now) }
func (h *hands) Elapsed() time.Duration { return h.now }

func TestObjectsGrowOldOverRestarts(t *testing.T) {
	data, clock := t.TempDir(), &hands{}
	s := start(t, archive.Options{Data: data, Clock: clock})
	w, _ := storagetest.NewSender(t, s, storagetest.Creating(storagetest.Part(), "a"))
	for i := range 4 {
		w.Append(fmt.Sprint(i))
		clock.now += time.Hour
	}
	stop(t, s)
	s = start(t, archive.Options{Data: data, Clock: clock})
	storagetest.NewSender(t, s, storagetest.Recover(storagetest.Part(), "b"))
	for age, want := range map[time.Duration]record.Offset{10 * time.Hour: 0, 150 * time.Minute: 2, time.Minute: 3} {
		got, err := s.Expire(context.Background(), storage.ExpireRequest{
			Partition: storagetest.Part(), Instance: "b", RetentionTime: age, RetentionBytes: -1, Limit: 99,
		})
		if err != nil || got != want {
			t.Errorf("retention of %v: %d, %v, want %d", age, got, err, want)
		}
	}
}
