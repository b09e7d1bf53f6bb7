// Package storagetest is the conformance suite of storage plugins: what the core relies on, as cases that any Store has
// to pass, directly or through a process of its own.
//
// A case writes batches through the lent descriptor as the core does, ends the store (a process: by SIGKILL), starts
// another on the same directory, and looks at what is there. How a store lays out its directory is not asked. CasesFor
// leaves out what a store cannot be asked by what it says of itself.
package storagetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// TB is what the suite needs of a test; *testing.T is one.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	TempDir() string
	Cleanup(func())
}

// Opener starts a store on a data directory. The function it returns ends that store at once, without giving it a
// chance to finish anything, and returns when it is gone; it is called once.
type Opener func(dir string) (store storage.Plugin, end func())

// Case is one thing that the core relies on.
type Case struct {
	Name string
	Run  func(t TB, open Opener)
	// Outlives says that the case needs what was written to be there after store and core have ended. A store whose files
	// are pinned leaves such cases out.
	Outlives bool
}

// Run runs every case that applies on t. Who wants them apart ranges over CasesFor.
func Run(t TB, open Opener) {
	for _, c := range CasesFor(Describe(t, open)) {
		t.Logf("%s", c.Name)
		c.Run(t, open)
	}
}

// Describe starts a store and returns what it says of itself.
func Describe(t TB, open Opener) storage.Description {
	t.Helper()
	store, end := open(t.TempDir())
	defer end()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	d, err := store.Describe(ctx)
	if err != nil {
		t.Fatalf("describe: %v", err)
	}
	if d.Canary != nil {
		_ = d.Canary.Close() // not used
	}
	return d
}

// CasesFor are the cases that apply to a store which says this of itself.
func CasesFor(d storage.Description) []Case {
	switch {
	case d.Streams:
		var cases []Case
		for _, c := range StreamCases() {
			cases = append(cases, throughChannels(c))
		}
		return cases
	case d.Pinned:
		return slices.DeleteFunc(Cases(), func(c Case) bool { return c.Outlives })
	}
	return Cases()
}

// Cases returns the suite for stores that lend files which outlive them.
func Cases() []Case {
	return []Case{
		{"DescribesItselfAndLendsACanary", describes, false},
		{"MissingPartitionIsNotMadeSilently", missing, true},
		{"RefusesBadNames", badNames, false},
		{"RecoversWhatWasWritten", recovers, true},
		{"LeaseIsHeldOnce", heldOnce, false},
		{"ANewInstanceVoidsTheOldLease", voids, false},
		{"RollsAndRepeatsARoll", rolls, false},
		{"RefusesAWrongRoll", wrongRolls, false},
		{"LocatesEveryOffset", locates, true},
		{"NotesAreCheckedAndRepeatable", notes, false},
		{"ReadoptsWhatIsHeld", readopts, false},
		{"ReadoptionTouchesNothingOnAMismatch", mismatches, false},
		{"RollsInAnotherLifeAfterALostAnswer", lostAnswer, true},
		{"CutsATornTail", torn, true},
		{"CutsAtTheCeiling", ceiling, true},
		{"DeletesByID", deletes, true},
		{"PartitionsAreIndependent", independent, false},
		{"ReopensWhatWasParked", parks, false},
		{"TrimsAndRemembersIt", trims, true},
		{"TruncatesBetweenBatches", truncates, true},
		{"RefusesAWrongTruncation", wrongTruncations, false},
		{"ExpiresWholeSegments", expires, false},
		{"LazyTopicsAreNeverDirty", lazy, true},
		{"AdoptsOnlyWhatIsThere", adoptsNothing, false},
		{"HasRoom", room, false},
	}
}

// start opens a store for a case; it ends with the case at the latest.
func start(t TB, open Opener, dir string) (storage.Plugin, func()) {
	store, end := open(dir)
	var once sync.Once
	stop := func() { once.Do(end) }
	t.Cleanup(stop)
	return store, stop
}

func wantErr(t TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func wantValues(t TB, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("read back %q, want %q", got, want)
	}
}

func describes(t TB, open Opener) {
	store, _ := start(t, open, t.TempDir())
	for range 2 {
		d, err := store.Describe(context.Background())
		if err != nil {
			t.Fatalf("describe: %v", err)
		}
		if d.Name == "" || d.Version == "" || d.Durability != "disk" && d.Durability != "memory" {
			t.Errorf("description %+v", d)
		}
		if err := vfs.OS().Probe(vfs.FromFd(int(d.Canary.Fd()), "canary")); err != nil {
			t.Errorf("canary does not take writes: %v", err)
		}
		if err := d.Canary.Close(); err != nil {
			t.Errorf("close the canary: %v", err)
		}
	}
}

func missing(t TB, open Opener) {
	dir := t.TempDir()
	store, end := start(t, open, dir)
	ctx := context.Background()
	_, err := store.Open(ctx, Recover(Part(), "a"))
	wantErr(t, "open what is not there", err, storage.ErrDataMissing)
	_, err = store.Locate(ctx, storage.LocateRequest{Partition: Part()})
	wantErr(t, "locate in what is not open", err, storage.ErrNotOpen)
	wantErr(t, "note for what is not open", store.Note(ctx, storage.Note{Partition: Part(), Instance: "a"}), storage.ErrNotOpen)
	_, err = store.Roll(ctx, storage.RollRequest{Partition: Part(), Instance: "a", Position: 1, Next: 1})
	wantErr(t, "roll what is not open", err, storage.ErrNotOpen)
	if err := store.Close(ctx, storage.CloseRequest{Partition: Part(), Instance: "a"}); err != nil {
		t.Errorf("close what is not open: %v", err)
	}

	w, opened := NewWriter(t, store, Creating(Part(), "a"))
	if l := opened.Lease; l.Base != 0 || l.Next != 0 || l.Position != 0 || l.MaxTimestamp != -1 || opened.Cut != nil {
		t.Errorf("new partition opened as %+v", opened)
	}
	w.Append("one")
	end()
	w.Let()
	store, _ = start(t, open, dir)
	_, opened = NewWriter(t, store, Recover(Part(), "b"))
	if opened.Lease.Next != 1 {
		t.Errorf("log ends at %d after one record", opened.Lease.Next)
	}
}

func badNames(t TB, open Opener) {
	store, _ := start(t, open, t.TempDir())
	for _, bad := range []storage.Partition{
		{Topic: "", TopicID: Part().TopicID},
		{Topic: "..", TopicID: Part().TopicID},
		{Topic: "../../etc", TopicID: Part().TopicID},
		{Topic: "a/b", TopicID: Part().TopicID},
		{Topic: "a\x00b", TopicID: Part().TopicID},
		{Topic: "orders", TopicID: "../../../../../../../../etc/pass"},
		{Topic: "orders", TopicID: ""},
		{Topic: "orders", TopicID: Part().TopicID, ID: -1},
	} {
		if o, err := store.Open(context.Background(), Creating(bad, "a")); err == nil {
			t.Errorf("opened %+v as %+v", bad, o)
		}
		if err := store.Delete(context.Background(), bad); err == nil {
			t.Errorf("deleted %+v", bad)
		}
	}
}

func recovers(t TB, open Opener) {
	dir := t.TempDir()
	store, end := start(t, open, dir)
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	w.Append("one", "two")
	w.Append("", "four")
	w.Roll()
	w.Append("five")
	position := w.Position()
	end()
	w.Let()

	store, _ = start(t, open, dir)
	_, opened := NewWriter(t, store, Recover(Part(), "b"))
	if opened.Cut != nil {
		t.Errorf("sound log was cut: %+v", *opened.Cut)
	}
	if l := opened.Lease; l.Base != 4 || l.Next != 5 || l.Position != position || l.MaxTimestamp != 3 {
		t.Errorf("recovered to %+v, want [4, 5) at %d", l, position)
	}
	if len(opened.Sealed) != 1 || opened.Sealed[0].Next != 4 || opened.Sealed[0].MaxTimestamp != 2 {
		t.Errorf("sealed segments %+v", opened.Sealed)
	}
	wantValues(t, Read(t, store, Part(), 5), "one", "two", "", "four", "five")
}

func heldOnce(t TB, open Opener) {
	store, _ := start(t, open, t.TempDir())
	w, first := NewWriter(t, store, Creating(Part(), "a"))
	_, err := store.Open(context.Background(), Recover(Part(), "a"))
	wantErr(t, "open what is held", err, storage.ErrLeaseHeld)
	w.Append("one")
	w.Surrender()
	again, second := NewWriter(t, store, Recover(Part(), "a"))
	if second.Lease.Next != 1 || second.Lease.Epoch <= first.Lease.Epoch {
		t.Errorf("second lease %+v after %+v", second.Lease, first.Lease)
	}
	stale := storage.CloseRequest{Partition: Part(), Instance: "a", Lease: first.Lease.Epoch}
	wantErr(t, "close with an old lease", store.Close(context.Background(), stale), storage.ErrLeaseStale)
	again.Append("two")
	again.Surrender()
	if err := store.Close(context.Background(), storage.CloseRequest{Partition: Part(), Instance: "a", Lease: second.Lease.Epoch}); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func voids(t TB, open Opener) {
	store, _ := start(t, open, t.TempDir())
	old, _ := NewWriter(t, store, Creating(Part(), "a"))
	old.Append("one")
	roll, note := old.RollRequest(), old.NoteRequest()
	old.Let()
	fresh, _ := NewWriter(t, store, Recover(Part(), "b"))
	_, err := store.Roll(context.Background(), roll)
	wantErr(t, "roll of a core that is gone", err, storage.ErrLeaseStale)
	wantErr(t, "note of a core that is gone", store.Note(context.Background(), note), storage.ErrLeaseStale)
	fresh.Append("two")
	fresh.Note()
	wantValues(t, Read(t, store, Part(), 2), "one", "two")
}

func rolls(t TB, open Opener) {
	store, _ := start(t, open, t.TempDir())
	ctx := context.Background()
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	for i := range 5 {
		w.Append(fmt.Sprint(i))
		if i%2 == 0 {
			w.Note()
		}
		request := w.RollRequest()
		w.Roll()
		again, err := store.Roll(ctx, request)
		if err != nil {
			t.Fatalf("the same roll again: %v", err)
		}
		_ = again.File.Close()
		if l := w.Lease(); again.Epoch != l.Epoch || again.Base != l.Base || again.Ino != l.Ino {
			t.Errorf("the same roll gave %+v, then %+v", l, again)
		}
	}
	wantValues(t, Read(t, store, Part(), 5), "0", "1", "2", "3", "4")
}

func wrongRolls(t TB, open Opener) {
	store, _ := start(t, open, t.TempDir())
	ctx := context.Background()
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	if l, err := store.Roll(ctx, w.RollRequest()); err == nil {
		t.Errorf("rolled an empty segment to %+v", l)
	}
	w.Append("one")
	wrong := w.RollRequest()
	wrong.Position++
	_, err := store.Roll(ctx, wrong)
	wantErr(t, "roll at a position beyond the file", err, storage.ErrHeldMismatch)
	wrong = w.RollRequest()
	wrong.Position--
	_, err = store.Roll(ctx, wrong)
	wantErr(t, "roll below the file's end", err, storage.ErrHeldMismatch)
	wrong = w.RollRequest()
	wrong.Lease--
	_, err = store.Roll(ctx, wrong)
	wantErr(t, "roll with an old lease", err, storage.ErrLeaseStale)
	wrong = w.RollRequest()
	wrong.Instance = "b"
	_, err = store.Roll(ctx, wrong)
	wantErr(t, "roll of another core", err, storage.ErrLeaseStale)
	w.Roll()
	w.Append("two")
	wantValues(t, Read(t, store, Part(), 1), "one")
}

func locates(t TB, open Opener) {
	dir := t.TempDir()
	store, end := start(t, open, dir)
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	long := string(make([]byte, 10_000))
	for i := range 120 { // 1.2 MB in two segments: several index intervals each
		w.Append(long, "x", "y")
		if i%10 == 9 {
			w.Note()
		}
		if i == 59 {
			w.Roll()
		}
	}
	w.Note()
	check := func() {
		for off := record.Offset(0); off < 360; off++ {
			if b := batchAt(t, store, Part(), off); b.BaseOffset() != off-off%3 {
				t.Fatalf("offset %d found in the batch of %d", off, b.BaseOffset())
			}
		}
		_, err := store.Locate(context.Background(), storage.LocateRequest{Partition: Part(), Offset: -1})
		wantErr(t, "locate below the log", err, storage.ErrOffsetOutOfRange)
	}
	check()
	e, err := store.Locate(context.Background(), storage.LocateRequest{Partition: Part(), Offset: 360})
	if err != nil || e.Offset != 360 || e.Position != w.Position() {
		t.Fatalf("locate at the end of the active segment: %+v, %v", e, err)
	}
	_ = e.File.Close()

	end()
	store, end = start(t, open, dir)
	w.Readopt(store) // without an index
	check()
	end()
	w.Let()
	store, _ = start(t, open, dir)
	w, _ = NewWriter(t, store, Recover(Part(), "b")) // with the scan's
	check()
	w.Surrender()
	_, err = store.Locate(context.Background(), storage.LocateRequest{Partition: Part(), Offset: 180})
	wantErr(t, "locate in an active segment that is not lent", err, storage.ErrOffsetOutOfRange)
}

func notes(t TB, open Opener) {
	store, _ := start(t, open, t.TempDir())
	ctx := context.Background()
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	w.Append("one")
	first := w.NoteRequest()
	w.Append("two")
	second := w.NoteRequest()
	for _, n := range []storage.Note{second, first, second} {
		if err := store.Note(ctx, n); err != nil {
			t.Errorf("note up to %d: %v", n.Next, err)
		}
	}
	wantValues(t, Read(t, store, Part(), 2), "one", "two")
	stale := second
	stale.Lease++
	wantErr(t, "note with a lease that was never given", store.Note(ctx, stale), storage.ErrLeaseStale)
	wrong := second
	wrong.Entries = []storage.Entry{{Last: 1, Position: second.Position}}
	if err := store.Note(ctx, wrong); err == nil {
		t.Errorf("took an index entry at the end of what was written")
	}
}

func readopts(t TB, open Opener) {
	dir := t.TempDir()
	store, end := start(t, open, dir)
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	w.Append("one")
	w.Roll()
	w.Append("two")
	end()
	w.Append("three") // with nobody there
	w.Raw([]byte("a write under way"), w.Position())

	store, _ = start(t, open, dir)
	opened := w.Readopt(store)
	if info, err := w.file.Stat(); err != nil || info.Size <= w.Position() {
		t.Errorf("a held segment was cut to %d bytes, err %v", info.Size, err)
	}
	if err := w.file.Truncate(w.Position()); err != nil {
		t.Fatalf("cut: %v", err)
	}
	w.Append("four")
	if opened.LogStart != 0 || len(opened.Sealed) != 1 || opened.Sealed[0].Base != 0 || opened.Sealed[0].Next != 1 {
		t.Errorf("re-adopted as %+v", opened)
	}
	w.Append("five")
	w.Roll()
	w.Append("six")
	w.Note()
	wantValues(t, Read(t, store, Part(), 6), "one", "two", "three", "four", "five", "six")
}

func mismatches(t TB, open Opener) {
	dir := t.TempDir()
	store, end := start(t, open, dir)
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	w.Append("one")
	w.Roll()
	w.Append("two")
	w.Append("three")
	end()
	store, _ = start(t, open, dir)
	for name, spoil := range map[string]func(*storage.OpenRequest){
		"position beyond the file": func(r *storage.OpenRequest) { r.Held.Position++ },
		"another inode":            func(r *storage.OpenRequest) { r.Held.Ino++ },
		"a segment that is sealed": func(r *storage.OpenRequest) { r.Held.Base, r.Held.Next, r.Held.Position = 0, 1, 1 },
		"a segment that never was": func(r *storage.OpenRequest) { r.Held.Base, r.Held.Next = 7, 8 },
		"another topic id":         func(r *storage.OpenRequest) { r.Partition.TopicID = "f" + r.Partition.TopicID[1:] },
		"another partition":        func(r *storage.OpenRequest) { r.Partition.ID = 3 },
	} {
		r := Recover(Part(), "a")
		r.Held = w.Held()
		spoil(&r)
		_, err := store.Open(context.Background(), r)
		wantErr(t, name, err, storage.ErrHeldMismatch)
	}
	w.Readopt(store)
	w.Note()
	wantValues(t, Read(t, store, Part(), 3), "one", "two", "three")
}

// lostAnswer: the store sealed and died, and the core, which never heard of it, went on in the old segment.
func lostAnswer(t TB, open Opener) {
	dir := t.TempDir()
	store, end := start(t, open, dir)
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	w.Append("one")
	lost, err := store.Roll(context.Background(), w.RollRequest())
	if err != nil {
		t.Fatalf("roll: %v", err)
	}
	_ = lost.File.Close()
	end()
	w.Append("two")

	store, end = start(t, open, dir)
	w.Readopt(store)
	w.Append("three")
	w.Roll()
	w.Append("four")
	lost, err = store.Roll(context.Background(), w.RollRequest())
	if err != nil {
		t.Fatalf("roll: %v", err)
	}
	_ = lost.File.Close()
	end()
	w.Append("five")
	w.Let() // and now the core dies too

	store, _ = start(t, open, dir)
	w, opened := NewWriter(t, store, Recover(Part(), "b"))
	if opened.Cut != nil || opened.Lease.Next != 5 {
		t.Errorf("recovered to %+v, cut %+v", opened.Lease, opened.Cut)
	}
	w.Append("six")
	w.Roll()
	wantValues(t, Read(t, store, Part(), 6), "one", "two", "three", "four", "five", "six")
}

func torn(t TB, open Opener) {
	dir := t.TempDir()
	instance := 0
	values := []string{}
	for _, tailAt := range []func(next record.Offset) []byte{
		func(record.Offset) []byte { return make([]byte, 2288) },
		func(record.Offset) []byte { return []byte("no batch at all") },
		func(next record.Offset) []byte { return Batch(next, 1, 9, "cut short")[:70] },
		func(next record.Offset) []byte { return Batch(next+1, 1, 9, "from elsewhere") },
		func(next record.Offset) []byte { return Batch(next, 0, 9, "of another epoch") },
		func(next record.Offset) []byte { return append(Batch(next, 1, 9, "with a flipped bit")[:80], 0xff) },
	} {
		instance++
		store, end := start(t, open, dir)
		w, _ := NewWriter(t, store, Creating(Part(), fmt.Sprint("core", instance)))
		w.Append("kept")
		values = append(values, "kept")
		tail := tailAt(w.Next())
		w.Raw(tail, w.Position())
		end()
		w.Let()

		store, end = start(t, open, dir)
		w, opened := NewWriter(t, store, Recover(Part(), fmt.Sprint("next", instance)))
		c := opened.Cut
		if c == nil || c.Offset != record.Offset(len(values)) || c.Bytes != int64(len(tail)) || c.Reason == "" || c.SavedAs == "" || c.Dirty {
			t.Errorf("tail %q: cut is %+v", tail[:min(len(tail), 20)], c)
		}
		wantValues(t, Read(t, store, Part(), opened.Lease.Next), values...)
		end()
		w.Let()
	}
}

func ceiling(t TB, open Opener) {
	dir := t.TempDir()
	store, end := start(t, open, dir)
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	w.Append("one", "two")
	w.Append("three")
	w.Roll()
	w.Append("four")
	end()
	w.Let()

	store, end = start(t, open, dir)
	r := Recover(Part(), "a")
	r.Ceiling = 2
	w, opened := NewWriter(t, store, r)
	if opened.Lease.Next != 2 || opened.Cut == nil || opened.Cut.Dirty || opened.Cut.Offset != 2 {
		t.Errorf("ceiling 2: opened %+v, cut %+v", opened.Lease, opened.Cut)
	}
	w.Append("five")
	wantValues(t, Read(t, store, Part(), 2), "one", "two")
	end()
	w.Let()

	store, _ = start(t, open, dir)
	r.Ceiling = 9
	_, opened = NewWriter(t, store, r)
	if opened.Lease.Next != 3 || opened.Cut == nil || !opened.Cut.Dirty {
		t.Errorf("ceiling above the end: opened %+v, cut %+v", opened.Lease, opened.Cut)
	}
	wantValues(t, Read(t, store, Part(), 3), "one", "two", "five")
}

func deletes(t TB, open Opener) {
	dir := t.TempDir()
	store, end := start(t, open, dir)
	ctx := context.Background()
	if err := store.Delete(ctx, Part()); err != nil {
		t.Errorf("delete what is not there: %v", err)
	}
	w, _ := NewWriter(t, store, Creating(Part(), "a"))
	w.Append("one")
	other := Part()
	other.TopicID = "f" + other.TopicID[1:]
	if err := store.Delete(ctx, other); err != nil {
		t.Errorf("delete of another id: %v", err)
	}
	w.Append("two")
	w.Note()
	wantValues(t, Read(t, store, Part(), 2), "one", "two")
	if err := store.Delete(ctx, Part()); err != nil {
		t.Fatalf("delete: %v", err)
	}
	wantErr(t, "note after the delete", store.Note(ctx, w.NoteRequest()), storage.ErrNotOpen)
	w.Let()
	_, err := store.Open(ctx, Recover(Part(), "a"))
	wantErr(t, "open after the delete", err, storage.ErrDataMissing)

	w, opened := NewWriter(t, store, Creating(other, "a"))
	if opened.Lease.Next != 0 {
		t.Errorf("a new topic begins at %d", opened.Lease.Next)
	}
	w.Append("new")
	w.Surrender()
	end()

	store, _ = start(t, open, dir)
	if err := store.Delete(ctx, Part()); err != nil { // the old one, once more
		t.Errorf("second delete: %v", err)
	}
	NewWriter(t, store, Recover(other, "b"))
	wantValues(t, Read(t, store, other, 1), "new")
	if err := store.Delete(ctx, other); err != nil {
		t.Errorf("delete what is held: %v", err)
	}
}

// independentPartitions is enough to fill the socket that descriptors travel on more than once, were it not drained.
const independentPartitions = 300

func independent(t TB, open Opener) {
	store, _ := start(t, open, t.TempDir())
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32) // as many as a core opens at once
	for id := range independentPartitions {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := useOne(store, partition.ID(id)); err != nil {
				t.Errorf("partition %d: %v", id, err)
			}
		})
	}
	wg.Wait()
}

// useOne opens a partition, writes a batch and gives it back; it may run in any goroutine.
func useOne(store storage.Store, id partition.ID) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	p := Part()
	p.ID = id
	opened, err := store.Open(ctx, Creating(p, "a"))
	if err != nil {
		return err
	}
	defer func() { _ = opened.Lease.File.Close() }() // synced below
	f := vfs.FromFd(int(opened.Lease.File.Fd()), "lent")
	batch := Batch(0, 1, 1, p.String())
	if _, err := f.WriteAt(batch, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	err = store.Note(ctx, storage.Note{Partition: p, Instance: "a", Lease: opened.Lease.Epoch, Position: int64(len(batch)), Next: 1})
	if err != nil {
		return err
	}
	e, err := store.Locate(ctx, storage.LocateRequest{Partition: p, Offset: 0})
	if err != nil {
		return err
	}
	defer func() { _ = e.File.Close() }() // only read
	_, err = readBatch(vfs.FromFd(int(e.File.Fd()), "lent"), e.Position)
	return err
}
