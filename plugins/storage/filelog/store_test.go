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
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func newStore(t *testing.T, dir string, fsys vfs.FS) *filelog.Store {
	t.Helper()
	s, err := filelog.New(filelog.Options{Data: dir, FS: fsys})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() }) // a test that expects no error asks before
	return s
}

func partDir(dir string) string { return filepath.Join(dir, "logs", storagetest.Part().String()) }

func segmentFile(dir string, base record.Offset) string {
	return filepath.Join(partDir(dir), kafkalog.SegmentName(base))
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("never: %s", what)
		}
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func write(t *testing.T, path string, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestNewPartitionIsCompleteAndDurableBeforeItsName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b") // parents that are missing are synced too
	fsys := faultfs.New(vfs.OS())
	s := newStore(t, dir, fsys)
	fsys.Forget()
	storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	var got []string
	for _, c := range fsys.Calls(faultfs.Changing) {
		got = append(got, strings.ReplaceAll(c.String(), dir+"/", ""))
	}
	tmp := "tmp/0123456789abcdef0123456789abcdef-2"
	want := []string{
		"removeall " + tmp,
		"mkdir " + tmp,
		"create " + tmp + "/partition.metadata",
		"write " + tmp + "/partition.metadata 0+44",
		"sync " + tmp + "/partition.metadata",
		"create " + tmp + "/leader-epoch-checkpoint",
		"write " + tmp + "/leader-epoch-checkpoint 0+8",
		"sync " + tmp + "/leader-epoch-checkpoint",
		"create " + tmp + "/00000000000000000000.log",
		"sync " + tmp + "/00000000000000000000.log",
		"syncdir " + tmp,
		"rename " + tmp + " logs/orders-2",
		"syncdir logs",
		"syncdir tmp",
		"sync logs/orders-2/00000000000000000000.log", // before the scan
		"sync logs/orders-2/00000000000000000000.log", // before the end is reported
	}
	// The checkpoint of epoch 1 at offset 0 is there already; nothing else is written.
	if !slices.Equal(got, want) {
		t.Errorf("calls:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestEveryMissingParentIsSynced(t *testing.T) {
	root := t.TempDir()
	fsys := faultfs.New(vfs.OS())
	newStore(t, filepath.Join(root, "a", "b"), fsys)
	var synced []string
	for _, c := range fsys.Calls(func(c faultfs.Call) bool { return c.Op == faultfs.SyncDir }) {
		synced = append(synced, c.Path)
	}
	for _, want := range []string{root, filepath.Join(root, "a"), filepath.Join(root, "a", "b"), filepath.Join(root, "a", "b", "logs")} {
		if !slices.Contains(synced, want) {
			t.Errorf("%s was not synced, only %q", want, synced)
		}
	}
}

func TestStartClearsTmpAndFinishesTheTrash(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"tmp/orders-2.x", "trash/0123-4", "quarantine/keep.me"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, d, "file"), "x")
	}
	s := newStore(t, dir, nil)
	if got := names(t, filepath.Join(dir, "tmp")); len(got) != 0 {
		t.Errorf("tmp holds %q", got)
	}
	eventually(t, "trash empty", func() bool { return len(names(t, filepath.Join(dir, "trash"))) == 0 })
	if !exists(filepath.Join(dir, "quarantine/keep.me/file")) {
		t.Error("quarantine was touched")
	}
	if err := s.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := s.Stop(); err != nil {
		t.Errorf("second stop: %v", err)
	}
}

func TestTrashThatStaysIsReported(t *testing.T) {
	dir := t.TempDir()
	fsys := faultfs.New(vfs.OS())
	s := newStore(t, dir, fsys)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one")
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.RemoveAll, "*"), Times: -1, Err: syscall.EIO})
	if err := s.Delete(context.Background(), storagetest.Part()); err != nil {
		t.Fatalf("delete: %v", err)
	}
	eventually(t, "removal tried", func() bool {
		return len(fsys.Calls(func(c faultfs.Call) bool {
			return c.Op == faultfs.RemoveAll && strings.Contains(c.Path, "/trash/")
		})) > 0
	})
	if err := s.Stop(); !errors.Is(err, syscall.EIO) {
		t.Errorf("stop: %v", err)
	}
	newStore(t, dir, nil)
	eventually(t, "trash empty", func() bool { return len(names(t, filepath.Join(dir, "trash"))) == 0 })
}

func TestCanaryIsMadeAgain(t *testing.T) {
	dir := t.TempDir()
	canary := filepath.Join(dir, "logs", ".canary")
	if err := newStore(t, dir, nil).Stop(); err != nil {
		t.Fatal(err)
	}
	write(t, canary, "short")
	newStore(t, dir, nil)
	if info, err := os.Stat(canary); err != nil || info.Size() < 4096 {
		t.Errorf("canary is %v, %v", info, err)
	}
}

func TestLeaseEpochsGrowOverStarts(t *testing.T) {
	dir := t.TempDir()
	var last storage.LeaseEpoch
	for i := range 3 {
		s := newStore(t, dir, nil)
		r := storagetest.Creating(storagetest.Part(), "core") // the same core, that closed in between
		w, opened := storagetest.NewWriter(t, s, r)
		if opened.Lease.Epoch <= last {
			t.Errorf("start %d: lease %d after %d", i, opened.Lease.Epoch, last)
		}
		last = opened.Lease.Epoch
		w.Surrender()
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	// A directory that was put back from a copy knows less than the core.
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "core"))
	r := storagetest.Recover(storagetest.Part(), "core")
	r.Held = w.Held()
	r.Held.Lease = 1 << 60
	opened, err := s.Open(context.Background(), r)
	if err != nil || opened.Lease.Epoch <= 1<<60 {
		t.Errorf("re-adopted as %+v, %v", opened.Lease, err)
	}
}

func TestGenerationThatCannotBeReadStopsTheStart(t *testing.T) {
	dir := t.TempDir()
	if err := newStore(t, dir, nil).Stop(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "logs", ".generation"), "many\n")
	if s, err := filelog.New(filelog.Options{Data: dir}); err == nil {
		_ = s.Stop()
		t.Error("started with a generation that cannot be read")
	}
}

func TestSpareIsMadeAndUsed(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	spare := filepath.Join(partDir(dir), "next.spare")
	if exists(spare) {
		t.Error("a spare for a partition that nobody writes")
	}
	w.Append("one")
	w.Note()
	for range 3 {
		eventually(t, "spare made", func() bool { return exists(spare) })
		before, err := vfs.OS().Stat(spare)
		if err != nil {
			t.Fatal(err)
		}
		w.Note() // and the maker has let go of it, or the roll waits for it
		w.Roll()
		if w.Lease().Ino != before.Ino {
			t.Errorf("rolled to inode %d, the spare is %d", w.Lease().Ino, before.Ino)
		}
		w.Append("more")
	}
	w.Surrender()
	if err := s.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestRollWithoutASpare(t *testing.T) {
	dir := t.TempDir()
	fsys := faultfs.New(vfs.OS())
	s := newStore(t, dir, fsys)
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Create, "*.spare"), Times: -1, Err: syscall.ENOSPC})
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one")
	w.Note()
	w.Roll()
	w.Append("two")
	w.Roll()
	w.Append("three")
	w.Note()
	if got := storagetest.Read(t, s, storagetest.Part(), 3); !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Errorf("read %q", got)
	}
	eventually(t, "spare tried", func() bool { return len(fsys.Calls(faultfs.On(faultfs.Create, "*.spare"))) > 0 })
	if err := s.Stop(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("stop: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	fsys := faultfs.New(vfs.OS())
	s := newStore(t, dir, fsys)
	ctx := context.Background()
	for _, errno := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Write, "partition.metadata"), Short: 7, Err: errno})
		_, err := s.Open(ctx, storagetest.Creating(storagetest.Part(), "core"))
		if !errors.Is(err, storage.ErrFull) || !errors.Is(err, errno) {
			t.Errorf("create on a full disk: %v", err)
		}
		if exists(partDir(dir)) {
			t.Error("half a partition got its name")
		}
	}
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one")
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Create, "*.log"), Err: syscall.ENOSPC})
	if _, err := s.Roll(ctx, w.RollRequest()); !errors.Is(err, storage.ErrFull) {
		t.Errorf("roll on a full disk: %v", err)
	}
	w.Append("two")
	w.Roll() // there is room again

	// What recovery would cut has to be saved first, so on a full disk nothing is cut.
	w.Append("three")
	w.Raw([]byte("torn"), w.Position())
	w.Let()
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Write, "*.cut-*"), Short: 2, Err: syscall.ENOSPC})
	_, err := s.Open(ctx, storagetest.Recover(storagetest.Part(), "next"))
	if !errors.Is(err, storage.ErrFull) {
		t.Errorf("recover on a full disk: %v", err)
	}
	if info, err := os.Stat(segmentFile(dir, 2)); err != nil || info.Size() != w.Position()+4 {
		t.Errorf("the segment was touched: %v, %v", info, err)
	}
	if found, _ := filepath.Glob(filepath.Join(partDir(dir), "*.cut-*")); len(found) != 0 {
		t.Errorf("half a copy stays: %q", found)
	}
	if _, opened := storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next")); opened.Cut == nil {
		t.Error("nothing was cut")
	}
}

func TestFailedSyncOfARollStopsThePartition(t *testing.T) {
	dir := t.TempDir()
	fsys := faultfs.New(vfs.OS())
	s := newStore(t, dir, fsys)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one")
	fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.SyncDir, "orders-2"), Err: syscall.EIO})
	for range 2 { // the second sync would succeed, and prove nothing
		if _, err := s.Roll(context.Background(), w.RollRequest()); !errors.Is(err, syscall.EIO) {
			t.Errorf("roll: %v", err)
		}
	}
	if err := s.Note(context.Background(), w.NoteRequest()); !errors.Is(err, syscall.EIO) {
		t.Errorf("note: %v", err)
	}
	// The next life meets an empty segment that the core never heard of.
	w.Append("two")
	s2 := newStore(t, dir, nil)
	w.Readopt(s2)
	w.Roll()
	w.Append("three")
	w.Note()
	if got := storagetest.Read(t, s2, storagetest.Part(), 3); len(got) != 3 {
		t.Errorf("read %q", got)
	}
}

func TestRollThatFailedHalfwayIsRepeated(t *testing.T) {
	for _, withSpare := range []bool{false, true} {
		dir := t.TempDir()
		fsys := faultfs.New(vfs.OS())
		s := newStore(t, dir, fsys)
		w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
		w.Append("one")
		if withSpare {
			w.Note()
			eventually(t, "spare made", func() bool { return exists(filepath.Join(partDir(dir), "next.spare")) })
		}
		fsys.Inject(faultfs.Fault{Match: faultfs.On(faultfs.Open, kafkalog.SegmentName(1)), Err: syscall.EMFILE})
		if _, err := s.Roll(context.Background(), w.RollRequest()); !errors.Is(err, syscall.EMFILE) {
			t.Errorf("roll: %v", err)
		}
		w.Roll() // the new name is there already
		w.Append("two")
		w.Note()
		if got := storagetest.Read(t, s, storagetest.Part(), 2); !slices.Equal(got, []string{"one", "two"}) {
			t.Errorf("read %q", got)
		}
	}
}

func TestRollOverAFileThatIsInUse(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one")
	request := w.RollRequest()
	write(t, segmentFile(dir, 1), "somebody's")
	if _, err := s.Roll(context.Background(), request); !errors.Is(err, storage.ErrHeldMismatch) {
		t.Errorf("roll: %v", err)
	}
	if b, err := os.ReadFile(segmentFile(dir, 1)); err != nil || string(b) != "somebody's" {
		t.Errorf("the file in the way is %q, %v", b, err)
	}
	remove(t, segmentFile(dir, 1))
	w.Roll()
	w.Append("two")
	if _, err := s.Roll(context.Background(), request); !errors.Is(err, storage.ErrLeaseStale) {
		t.Errorf("a roll repeated after its lease was used: %v", err)
	}
}

func TestLentFileUnwraps(t *testing.T) {
	s := newStore(t, t.TempDir(), faultfs.New(vfs.OS()))
	d, err := s.Describe(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	lent, ok := d.Canary.(*filelog.Lent)
	if !ok || lent.VFS().Fd() != int(lent.Fd()) {
		t.Errorf("lent is %T", d.Canary)
	}
	if err := d.Canary.Close(); err != nil {
		t.Error(err)
	}
}

func TestStartOnADiskThatFails(t *testing.T) {
	for at := 0; ; at++ {
		fsys := faultfs.New(vfs.OS())
		fsys.Inject(faultfs.Fault{Match: faultfs.Changing, Skip: at, Err: syscall.ENOSPC})
		dir := t.TempDir()
		s, err := filelog.New(filelog.Options{Data: filepath.Join(dir, "data"), FS: fsys})
		if err == nil {
			if at < 15 {
				t.Errorf("a start makes only %d calls", at)
			}
			fsys.Clear()
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
			return
		}
		if !errors.Is(err, storage.ErrFull) {
			t.Errorf("call %d: %v", at, err)
		}
		newStore(t, filepath.Join(dir, "data"), nil) // what was made by then is no hindrance
	}
}

func TestDiskErrorsWhileRecovering(t *testing.T) {
	dir := t.TempDir()
	fsys := faultfs.New(vfs.OS())
	s := newStore(t, dir, fsys)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Append("one")
	w.Let()
	for _, f := range []faultfs.Fault{
		{Match: faultfs.On(faultfs.Sync, "*.log")},
		{Match: faultfs.On(faultfs.Sync, "*.log"), Skip: 1}, // the one after the scan
		{Match: faultfs.On(faultfs.DropCache, "*.log")},
		{Match: faultfs.On(faultfs.Read, "*.log")},
		{Match: faultfs.On(faultfs.FileStat, "*.log")},
		{Match: faultfs.On(faultfs.ReadDir, "orders-2")},
		{Match: faultfs.On(faultfs.Stat, "orders-2")},
		{Match: faultfs.On(faultfs.Read, "leader-epoch-checkpoint")},
		{Match: faultfs.On(faultfs.Read, "partition.metadata")},
	} {
		f.Err = syscall.EIO
		fsys.Inject(f)
		if _, err := s.Open(context.Background(), storagetest.Recover(storagetest.Part(), "next")); !errors.Is(err, syscall.EIO) {
			t.Errorf("%+v: opened with %v", f, err)
		}
	}
	w, opened := storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
	if opened.Cut != nil || opened.Lease.Next != 1 {
		t.Errorf("after all that: %+v", opened)
	}
	w.Append("two")
}

func TestForeignDirectoryIsSetAside(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	ctx := context.Background()
	old := storagetest.Part()
	old.TopicID = strings.Repeat("ab", 16)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(old, "core"))
	w.Append("theirs")
	w.Let()
	_, err := s.Open(ctx, storagetest.Recover(storagetest.Part(), "next"))
	if !errors.Is(err, storage.ErrDataMissing) {
		t.Errorf("open over a foreign directory: %v", err)
	}
	aside := filepath.Join(dir, "quarantine", "orders-2."+old.TopicID)
	if !exists(filepath.Join(aside, kafkalog.SegmentName(0))) {
		t.Error("the foreign directory is not in quarantine")
	}
	if err := os.Rename(aside, partDir(dir)); err != nil {
		t.Fatal(err)
	}
	_, opened := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "next"))
	if opened.Lease.Next != 0 || !exists(aside) {
		t.Errorf("created %+v beside a foreign directory", opened.Lease)
	}
}

func TestUnidentifiedDirectory(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"gone":    os.Remove,
		"garbage": func(p string) error { return os.WriteFile(p, []byte("?"), 0o600) },
		"empty":   func(p string) error { return os.Truncate(p, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := newStore(t, dir, nil)
			ctx := context.Background()
			w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
			w.Append("one")
			w.Surrender()
			if err := spoil(filepath.Join(partDir(dir), kafkalog.PartitionMetadataName)); err != nil {
				t.Fatal(err)
			}
			r := storagetest.Recover(storagetest.Part(), "core")
			r.Held = w.Held()
			if _, err := s.Open(ctx, r); !errors.Is(err, storage.ErrHeldMismatch) {
				t.Errorf("re-adopt: %v", err)
			}
			if err := s.Delete(ctx, storagetest.Part()); err != nil || !exists(segmentFile(dir, 0)) {
				t.Errorf("delete: %v; what nobody can name has to stay", err)
			}
			for range 2 {
				if _, err := s.Open(ctx, storagetest.Recover(storagetest.Part(), "next")); !errors.Is(err, storage.ErrQuarantined) {
					t.Errorf("open: %v", err)
				}
			}
		})
	}
}

func TestUnidentifiedDirectoryInTheWayOfANewPartition(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	if err := os.Mkdir(partDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(partDir(dir), "lost+found"), "x")
	storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	if !exists(filepath.Join(dir, "quarantine", "orders-2.unknown", "lost+found")) {
		t.Errorf("quarantine holds %q", names(t, filepath.Join(dir, "quarantine")))
	}
}

func TestNewerFormatIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	w.Surrender()
	path := filepath.Join(partDir(dir), kafkalog.PartitionMetadataName)
	write(t, path, "version: 1\ntopic_id: whatever\n")
	for _, r := range []storage.OpenRequest{
		storagetest.Recover(storagetest.Part(), "a"), storagetest.Creating(storagetest.Part(), "a"),
	} {
		if _, err := s.Open(context.Background(), r); !errors.Is(err, storage.ErrFormat) {
			t.Errorf("open: %v", err)
		}
	}
	if err := s.Delete(context.Background(), storagetest.Part()); !errors.Is(err, storage.ErrFormat) {
		t.Errorf("delete: %v", err)
	}
	if !exists(path) {
		t.Error("the directory was moved")
	}
}

func TestLeaderEpochs(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	path := filepath.Join(partDir(dir), kafkalog.EpochCheckpointName)
	open := func(epoch record.Epoch) (*storagetest.Writer, storage.Opened) {
		r := storagetest.Creating(storagetest.Part(), fmt.Sprint("core", epoch))
		r.Epoch = epoch
		return storagetest.NewWriter(t, s, r)
	}
	checkpoint := func(want string) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil || string(text) != want {
			t.Errorf("checkpoint is %q, %v; want %q", text, err, want)
		}
	}
	w, _ := open(1)
	checkpoint("0\n1\n1 0\n")
	w.Append("one")
	w.Let()
	w, _ = open(3)
	checkpoint("0\n2\n1 0\n3 1\n")
	w.Let()
	w, _ = open(4) // nothing was written under 3
	checkpoint("0\n2\n1 0\n4 1\n")
	w.Append("two")
	w.Append("three")
	end := w.Position()
	w.Let()
	for name, text := range map[string]string{
		"stale":   "0\n3\n1 0\n4 1\n9 77\n", // beyond the recovered end
		"gone":    "",
		"garbage": "0\nnine\n",
	} {
		write(t, path, text)
		if name == "gone" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		r := storagetest.Recover(storagetest.Part(), name)
		r.Epoch = 5
		w, opened := storagetest.NewWriter(t, s, r)
		if opened.Cut != nil || opened.Lease.Position != end {
			t.Errorf("%s: opened %+v, cut %+v", name, opened.Lease, opened.Cut)
		}
		checkpoint("0\n3\n1 0\n4 1\n5 3\n")
		w.Let()
	}
	r := storagetest.Recover(storagetest.Part(), "old")
	r.Epoch = 3
	if o, err := s.Open(context.Background(), r); err == nil {
		t.Errorf("opened under an epoch older than the log's: %+v", o)
	}
	checkpoint("0\n3\n1 0\n4 1\n5 3\n")
}

func TestIndexThatLies(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	long := strings.Repeat("x", 50_000)
	for range 10 {
		w.Append(long)
	}
	n := w.NoteRequest()
	n.Entries = []storage.Entry{{Last: 3, Position: 200_001}, {Last: 5, Position: 300_007}}
	if err := s.Note(context.Background(), n); err != nil {
		t.Fatal(err)
	}
	if got := storagetest.Read(t, s, storagetest.Part(), 10); len(got) != 10 {
		t.Errorf("read %d records", len(got))
	}
}

func TestCallsForABusyPartitionEndWithTheirContext(t *testing.T) {
	dir := t.TempDir()
	blocked, release := make(chan struct{}), make(chan struct{})
	fsys := &blockingFS{FS: vfs.OS(), blocked: blocked, release: release}
	s := newStore(t, dir, fsys)
	done := make(chan error, 1)
	go func() {
		_, err := s.Open(context.Background(), storagetest.Creating(storagetest.Part(), "core"))
		done <- err
	}()
	<-blocked
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Delete(ctx, storagetest.Part()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("delete beside a hanging open: %v", err)
	}
	other := storagetest.Part()
	other.ID = 3
	storagetest.NewWriter(t, s, storagetest.Creating(other, "core")) // others do not wait
	close(release)
	if err := <-done; err != nil {
		t.Errorf("open: %v", err)
	}
	cancelled, stop := context.WithCancel(context.Background())
	w, _ := storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
	w.Append("one")
	w.Let()
	stop()
	if _, err := s.Open(cancelled, storagetest.Recover(storagetest.Part(), "late")); !errors.Is(err, context.Canceled) {
		t.Errorf("open with a context that is over: %v", err)
	}
}

// blockingFS hangs in the first rename until it is released.
type blockingFS struct {
	vfs.FS
	blocked, release chan struct{}
	used             bool
}

func (b *blockingFS) Rename(oldpath, newpath string) error {
	if !b.used {
		b.used = true
		close(b.blocked)
		<-b.release
	}
	return b.FS.Rename(oldpath, newpath)
}
