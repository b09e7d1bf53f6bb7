package filelog_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

const (
	recoveryPoint = "recovery-point-offset-checkpoint"
	logStart      = "log-start-offset-checkpoint"
)

func checkpointFile(dir, name string) string { return filepath.Join(dir, "logs", name) }

// logBytesRead is how much of segments was read.
func logBytesRead(fsys *faultfs.FS) (n int) {
	for _, c := range fsys.Calls(faultfs.On(faultfs.Read, "*.log")) {
		n += c.Len
	}
	return n
}

// TestRestartScansOnlyWhatWasNotNoted: a process is killed in the middle of much, a second after the last note.
func TestRestartScansOnlyWhatWasNotNoted(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 300, 20_000)
	w.Roll()
	fill(w, 300, 20_000)
	w.Note()
	eventually(t, "checkpoint written", func() bool {
		text, err := os.ReadFile(checkpointFile(dir, recoveryPoint))
		return err == nil && string(text) == "0\n1\norders 2 600\n"
	})
	fill(w, 10, 20_000)
	w.Let() // and the store is left as it is
	fsys := faultfs.New(vfs.OS())
	_, opened := storagetest.NewWriter(t, newStore(t, dir, fsys), storagetest.Recover(storagetest.Part(), "next"))
	if opened.Lease.Next != 610 || opened.Cut != nil || opened.Sealed[0].Next != 300 || opened.Sealed[0].MaxTimestamp != 300 {
		t.Errorf("opened %+v, cut %+v", opened, opened.Cut)
	}
	if n := logBytesRead(fsys); n < 200_000 || n > 500_000 {
		t.Errorf("read %d bytes of 12 MB, of which 200 KB were not noted", n)
	}
}

func TestCheckpointsThatAreOfNoUseCostOnlyTime(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 20, 1000)
	w.Roll()
	fill(w, 20, 1000)
	w.Note()
	w.Let()
	stop(t, s)
	path := checkpointFile(dir, recoveryPoint+".by-id")
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"sound": string(sound), "empty": "", "cut short": string(sound[:len(sound)-3]),
		"a flipped bit":     strings.Replace(string(sound), " 40 ", " 60 ", 1),
		"another version":   strings.Replace(string(sound), "1\n", "2\n", 1),
		"zeros":             string(make([]byte, 100)),
		"another topic's":   strings.ReplaceAll(string(sound), "0123456789abcdef", "ffff456789abcdef"),
		"an oversized file": strings.Repeat("x", 1<<21),
	} {
		write(t, path, text)
		s := newStore(t, dir, nil)
		w, opened := storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
		if opened.Lease.Next != 40 || opened.Cut != nil || opened.LogStart != 0 {
			t.Errorf("%s: opened %+v", name, opened)
		}
		w.Let()
		stop(t, s)
		if again, err := os.ReadFile(path); err != nil || !slices.Equal(again, sound) {
			t.Errorf("%s: it became %q, %v", name, again, err)
		}
	}
}

func TestDamageBelowTheRecoveryPointIsQuarantined(t *testing.T) {
	for name, spoil := range map[string]func(path string, size int64) error{
		"the end is gone":  func(p string, size int64) error { return os.Truncate(p, size-100) },
		"all of it":        func(p string, _ int64) error { return os.Truncate(p, 0) },
		"a flipped bit":    func(p string, size int64) error { return flipAt(p, size-50) },
		"zeros at the end": func(p string, size int64) error { return errors.Join(os.Truncate(p, size-100), os.Truncate(p, size)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := newStore(t, dir, nil)
			w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
			fill(w, 10, 1000)
			w.Note()
			size := w.Position()
			w.Let()
			stop(t, s)
			if err := spoil(segmentFile(dir, 0), size); err != nil {
				t.Fatal(err)
			}
			r := storagetest.Recover(storagetest.Part(), "next")
			r.Lazy = true // even then: it was synced
			_, err := newStore(t, dir, nil).Open(context.Background(), r)
			if !errors.Is(err, storage.ErrQuarantined) || !strings.Contains(err.Error(), ", 10)") {
				t.Errorf("open: %v", err)
			}
			if exists(partDir(dir)) {
				t.Error("it is still under logs/")
			}
		})
	}
}

func flipAt(path string, at int64) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[at] ^= 4
	return os.WriteFile(path, b, 0o600)
}

func TestUnreadDamageBelowTheRecoveryPointIsTheReadersToFind(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 50, 1000)
	w.Roll()
	fill(w, 1, 10)
	w.Note()
	w.Let()
	stop(t, s)
	if err := flipAt(segmentFile(dir, 0), 500); err != nil {
		t.Fatal(err)
	}
	s = newStore(t, dir, nil)
	_, opened := storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
	if opened.Lease.Next != 51 || opened.Cut != nil {
		t.Errorf("opened %+v", opened)
	}
}

// TestRecoveryPointIsLoweredBeforeACut: else a crash in between would leave a log that ends below what it is to have.
func TestRecoveryPointIsLoweredBeforeACut(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one")
	w.Append("two")
	w.Note()
	w.Let()
	stop(t, s)
	r := storagetest.Recover(storagetest.Part(), "core")
	r.Ceiling = 1
	fsys := faultfs.New(vfs.OS())
	s = newStore(t, dir, fsys)
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Create, recoveryPoint+".by-id.tmp"), Err: syscall.EIO})
	if _, err := s.Open(context.Background(), r); !errors.Is(err, syscall.EIO) {
		t.Fatalf("open: %v", err)
	}
	if info, err := os.Stat(segmentFile(dir, 0)); err != nil || info.Size() != w.Position() {
		t.Errorf("cut without the recovery point lowered: %v, %v", info, err)
	}
	fsys.Forget()
	_, opened := storagetest.NewWriter(t, s, r)
	if opened.Lease.Next != 1 || opened.Cut == nil || opened.Cut.Dirty {
		t.Errorf("opened %+v, cut %+v", opened.Lease, opened.Cut)
	}
	lowered, cut := -1, -1
	for i, c := range fsys.Calls(nil) {
		if c.Op == faultfs.SyncDir && filepath.Base(c.Path) == "logs" {
			lowered = i
		}
		if c.Op == faultfs.Replace && strings.HasSuffix(c.To, ".log") && cut < 0 {
			cut = i
		}
	}
	if lowered < 0 || cut < lowered {
		t.Errorf("lowered at call %d, cut at call %d", lowered, cut)
	}
}

func TestDeletedPartitionLeavesTheCheckpoints(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	ctx := context.Background()
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 3, 10)
	w.Note()
	if _, err := s.Trim(ctx, storage.TrimRequest{Partition: storagetest.Part(), Instance: "core", LogStart: 2}); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, storagetest.Part()); err != nil {
		t.Fatal(err)
	}
	other := storagetest.Part()
	other.TopicID = strings.Repeat("ab", 16)
	_, opened := storagetest.NewWriter(t, s, storagetest.Creating(other, "core"))
	if opened.LogStart != 0 {
		t.Errorf("the new topic begins at %d", opened.LogStart)
	}
	stop(t, s)
	for _, name := range []string{recoveryPoint, logStart} {
		text, err := os.ReadFile(checkpointFile(dir, name))
		if errors.Is(err, os.ErrNotExist) && name == recoveryPoint {
			continue // it was deleted before a point was due
		}
		if err != nil || string(text) != "0\n0\n" {
			t.Errorf("%s is %q, %v", name, text, err)
		}
	}
}

func TestLogStartIsDurableBeforeAnythingGoes(t *testing.T) {
	dir := t.TempDir()
	fsys := faultfs.New(vfs.OS())
	s := newStore(t, dir, fsys)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	for range 3 {
		w.Append("x")
		w.Roll()
	}
	ctx := context.Background()
	trim := storage.TrimRequest{Partition: storagetest.Part(), Instance: "core", LogStart: 2}
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.SyncDir, "logs"), Err: syscall.EIO})
	if _, err := s.Trim(ctx, trim); !errors.Is(err, syscall.EIO) {
		t.Errorf("trim: %v", err)
	}
	if !exists(segmentFile(dir, 0)) {
		t.Error("a segment went before the log start was durable")
	}
	fsys.Forget()
	if got, err := s.Trim(ctx, trim); err != nil || got.First != 2 {
		t.Fatalf("trim: %+v, %v", got, err)
	}
	var got []string
	for _, c := range fsys.Calls(faultfs.Changing) {
		if c.Op == faultfs.SyncDir || c.Op == faultfs.Remove && strings.HasSuffix(c.Path, ".log") {
			got = append(got, string(c.Op)+" "+filepath.Base(c.Path))
		}
	}
	want := []string{"syncdir logs", "remove " + kafkalog.SegmentName(0), "remove " + kafkalog.SegmentName(1), "syncdir orders-2"}
	left := got
	for _, w := range want { // others, of the recovery point, may come in between
		at := slices.Index(left, w)
		if at < 0 {
			t.Fatalf("calls %q, want %q in this order", got, want)
		}
		left = left[at+1:]
	}
	if exists(filepath.Join(partDir(dir), kafkalog.IndexName(0))) {
		t.Error("its index stays")
	}
	if text, err := os.ReadFile(checkpointFile(dir, logStart)); err != nil || string(text) != "0\n1\norders 2 2\n" {
		t.Errorf("%s is %q, %v", logStart, text, err)
	}
}

func TestLogStartAboveTheEndIsAnEmptyLogThere(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 3, 10)
	w.Roll()
	fill(w, 3, 10)
	w.Note()
	if _, err := s.Trim(context.Background(), storage.TrimRequest{Partition: storagetest.Part(), Instance: "core", LogStart: 6}); err != nil {
		t.Fatal(err)
	}
	w.Let()
	stop(t, s)
	remove(t, checkpointFile(dir, recoveryPoint+".by-id")) // else what follows is damage
	truncate(t, segmentFile(dir, 3), 0)
	for range 2 {
		s = newStore(t, dir, nil)
		w, opened := storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
		if opened.LogStart != 6 || opened.Lease.Next != 6 || opened.Lease.Base != 6 || len(opened.Sealed) != 0 {
			t.Errorf("opened %+v", opened)
		}
		w.Let()
		stop(t, s)
	}
}

// TestCrashAtEveryCallOfTrimAndTruncate lets the store die at each call of both; the next life finds one end or the
// other, and what the recovery point covers is never missing.
func TestCrashAtEveryCallOfTrimAndTruncate(t *testing.T) {
	ctx := context.Background()
	ops := map[string]func(s storage.Plugin, lease storage.LeaseEpoch) error{
		"trim": func(s storage.Plugin, _ storage.LeaseEpoch) error {
			_, err := s.Trim(ctx, storage.TrimRequest{Partition: storagetest.Part(), Instance: "core", LogStart: 7})
			return err
		},
	}
	for _, next := range []record.Offset{8, 6, 4, 3, 0} {
		ops[fmt.Sprint("truncate to ", next)] = func(s storage.Plugin, lease storage.LeaseEpoch) error {
			o, err := s.Truncate(ctx, storage.TruncateRequest{Partition: storagetest.Part(), Instance: "core", Lease: lease, Next: next, Epoch: 2})
			if err == nil {
				err = o.Lease.File.Close()
			}
			return err
		}
	}
	for name, op := range ops {
		points := 0
		for at := 0; ; at++ {
			dir := t.TempDir()
			fsys := faultfs.New(vfs.OS())
			s := newStore(t, dir, fsys)
			w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
			for i := range 9 {
				if i > 0 && i%3 == 0 {
					w.Roll()
				}
				w.Append(fmt.Sprint(i))
			}
			w.Note()
			if name != "trim" {
				w.Surrender()
			}
			fsys.Inject(faultfs.Fault{Match: faultfs.Changing, Skip: at, Times: -1, Err: syscall.EIO})
			err := op(s, w.Lease().Epoch)
			_ = s.Stop() // it has died: what it still tries fails
			w.Let()
			r := storagetest.Recover(storagetest.Part(), "next")
			r.Epoch = 3
			s = newStore(t, dir, nil)
			after, opened := storagetest.NewWriter(t, s, r)
			next, start := opened.Lease.Next, opened.LogStart
			if opened.Cut != nil || start > next || name == "trim" && (next != 9 || start != 0 && start != 7) {
				t.Errorf("%s, crash at call %d (%v): opened %+v, cut %+v", name, at, err, opened, opened.Cut)
			}
			var want []string
			for i := start; i < next; i++ {
				want = append(want, fmt.Sprint(i))
			}
			if got := storagetest.ReadFrom(t, s, storagetest.Part(), storagetest.Span{From: start, End: next}); !slices.Equal(got, want) {
				t.Errorf("%s, crash at call %d: read %q, want %q", name, at, got, want)
			}
			after.Append("on")
			after.Roll()
			after.Append("and on")
			after.Let()
			stop(t, s)
			verified(t, partDir(dir), kafkalog.VerifyOptions{LogStart: start})
			if err == nil {
				break
			}
			points++
		}
		if points < 5 {
			t.Errorf("%s: only %d calls", name, points)
		}
		t.Logf("%s: crashed at %d points", name, points)
	}
}

func TestTruncateLeavesTheOldInodeAlone(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 10, 2000)
	w.Note()
	size := w.Position()
	reader, err := vfs.OS().Open(segmentFile(dir, 0), vfs.Read)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	old := w.Lease()
	w.Surrender()
	opened, err := s.Truncate(context.Background(), storage.TruncateRequest{Partition: storagetest.Part(), Instance: "core", Lease: old.Epoch, Next: 6, Epoch: 5})
	if err != nil {
		t.Fatal(err)
	}
	w.Resume(opened)
	if opened.Lease.Ino == old.Ino || opened.Lease.MaxTimestamp != 6 {
		t.Errorf("lent %+v, and before it was %+v", opened.Lease, old)
	}
	if info, err := reader.Stat(); err != nil || info.Size != size {
		t.Errorf("the old inode has %d bytes of %d, %v", info.Size, size, err)
	}
	if text, err := os.ReadFile(filepath.Join(partDir(dir), kafkalog.EpochCheckpointName)); err != nil || string(text) != "0\n2\n1 0\n5 6\n" {
		t.Errorf("epochs %q, %v", text, err)
	}
	stop(t, s)
	wantIndexes(t, partDir(dir), 0, false)
}
