package storagetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/stream"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/storeframe"
)

// StreamOpener is an Opener of stores without files.
type StreamOpener func(dir string) (store storage.StreamPlugin, end func())

// StreamCase is one thing that the core relies on in a store without files.
type StreamCase struct {
	Name string
	Run  func(t TB, open StreamOpener)
}

// StreamCases returns the suite for stores without files.
func StreamCases() []StreamCase {
	return []StreamCase{
		{"DescribesItself", streamDescribes},
		{"MissingPartitionIsNotMadeSilently", streamMissing},
		{"RefusesBadNames", streamBadNames},
		{"KeepsWhatWasAppended", streamKeeps},
		{"KeepsGroupsOfAllSizes", streamSizes},
		{"LeaseIsHeldOnce", streamHeldOnce},
		{"ANewInstanceVoidsTheOldLease", streamVoids},
		{"TakesAGroupTwice", streamTwice},
		{"TakesAGroupTwiceInAnotherLife", streamTwiceInAnotherLife},
		{"RefusesWhatDoesNotFollow", streamMisplaced},
		{"RefusesDamage", streamDamage},
		{"ReadsByRange", streamReads},
		{"CutsAtTheCeiling", streamCeiling},
		{"TrimsAndRemembersIt", streamTrims},
		{"TruncatesBetweenBatches", streamTruncates},
		{"RefusesAWrongTruncation", streamWrongTruncations},
		{"ExpiresFromTheOldEnd", streamExpires},
		{"DeletesByID", streamDeletes},
		{"PartitionsAreIndependent", streamIndependent},
		{"HasRoom", streamRoom},
	}
}

// throughChannels makes a case of the suite for plugins of a case for stores without files.
func throughChannels(c StreamCase) Case {
	return Case{Name: c.Name, Outlives: true, Run: func(t TB, open Opener) {
		c.Run(t, func(dir string) (storage.StreamPlugin, func()) {
			p, end := open(dir)
			client := stream.NewClient(p)
			return client, func() { end(); client.Hangup() }
		})
	}}
}

// Sender is a core in small: it appends to one partition of a store without files.
type Sender struct {
	t         TB
	store     storage.StreamPlugin
	part      storage.Partition
	instance  string
	leader    record.Epoch
	lease     storage.LeaseEpoch
	next      record.Offset
	timestamp int64
}

// NewSender opens the partition and takes the lease.
func NewSender(t TB, store storage.StreamPlugin, r storage.OpenRequest) (*Sender, storage.Opened) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	o, err := store.Open(ctx, r)
	if err != nil {
		t.Fatalf("open %s: %v", r.Partition, err)
	}
	s := &Sender{t: t, store: store, part: r.Partition, instance: r.Instance, leader: r.Epoch}
	s.Resume(o)
	return s, o
}

// Resume goes on with a lease.
func (s *Sender) Resume(o storage.Opened) { s.lease, s.next = o.Lease.Epoch, o.Lease.Next }

// Group makes the next group: a batch of each list of values.
func (s *Sender) Group(batches ...[]string) storage.AppendRequest {
	s.t.Helper()
	r := storage.AppendRequest{
		Partition: s.part, Instance: s.instance, Lease: s.lease, Epoch: s.leader, Base: s.next, Next: s.next,
	}
	for _, values := range batches {
		s.timestamp++
		b := Batch(r.Next, s.leader, s.timestamp, values...)
		r.Bytes, r.Next, r.MaxTimestamp = append(r.Bytes, b...), b.NextOffset(), s.timestamp
	}
	var err error
	if r.Sum, err = storeframe.Sum(r.Bytes); err != nil {
		s.t.Fatalf("sum: %v", err)
	}
	return r
}

// Send appends a group that has to be taken.
func (s *Sender) Send(r storage.AppendRequest) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := s.store.Append(ctx, r); err != nil {
		s.t.Fatalf("append [%d, %d): %v", r.Base, r.Next, err)
	}
	s.next = r.Next
}

// Append sends values as one batch.
func (s *Sender) Append(values ...string) {
	s.t.Helper()
	s.Send(s.Group(values))
}

// Surrender gives the lease back.
func (s *Sender) Surrender() {
	s.t.Helper()
	err := s.store.Close(context.Background(), storage.CloseRequest{Partition: s.part, Instance: s.instance, Lease: s.lease, Next: s.next})
	if err != nil {
		s.t.Fatalf("close: %v", err)
	}
}

// ReadStream returns the values of a span that begins with a batch, read in pieces of so many bytes.
func ReadStream(t TB, store storage.StreamPlugin, span Span, limit int64) []string {
	t.Helper()
	var values []string
	for off := span.From; off < span.End; {
		for _, b := range readAt(t, store, off, limit) {
			if b.BaseOffset() != off {
				t.Fatalf("batch for %d begins at %d", off, b.BaseOffset())
			}
			it := record.NewIterator(b)
			var r record.Record
			for {
				if _, ok := it.Next(&r); !ok {
					break
				}
				values = append(values, string(r.Value))
			}
			if err := it.Err(); err != nil {
				t.Fatalf("records at %d: %v", off, err)
			}
			off = b.NextOffset()
		}
	}
	return values
}

// readAt returns the checked batches of one read.
func readAt(t TB, store storage.StreamPlugin, off record.Offset, limit int64) []record.Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	data, err := store.Read(ctx, storage.ReadRequest{Partition: Part(), Offset: off, Limit: limit, Into: make([]byte, 0, 4096)})
	if err != nil {
		t.Fatalf("read at %d: %v", off, err)
	}
	var batches []record.Batch
	size := len(data)
	for len(data) > 0 {
		n, err := record.SizeOf(data)
		if err != nil || n > len(data) {
			t.Fatalf("read at %d: %d bytes that are no batch: %v", off, len(data), err)
		}
		b := record.Batch(data[:n])
		if err := b.Check(); err != nil {
			t.Fatalf("read at %d: %v", off, err)
		}
		batches, data = append(batches, b), data[n:]
	}
	if len(batches) == 0 || batches[0].LastOffset() < off || batches[0].BaseOffset() > off {
		t.Fatalf("read at %d: %d batches", off, len(batches))
	}
	if len(batches) > 1 && int64(size) > limit {
		t.Errorf("read at %d: %d batches of %d bytes, asked for %d", off, len(batches), size, limit)
	}
	return batches
}

func startStream(t TB, open StreamOpener, dir string) (storage.StreamPlugin, func()) {
	store, end := open(dir)
	var once sync.Once
	stop := func() { once.Do(end) }
	t.Cleanup(stop)
	return store, stop
}

func streamDescribes(t TB, open StreamOpener) {
	store, _ := startStream(t, open, t.TempDir())
	d, err := store.Describe(context.Background())
	if err != nil || d.Name == "" || d.Version == "" || d.Durability != "disk" && d.Durability != "memory" || d.Canary != nil || d.Pinned {
		t.Errorf("description %+v, %v", d, err)
	}
}

func streamMissing(t TB, open StreamOpener) {
	dir := t.TempDir()
	store, end := startStream(t, open, dir)
	ctx := context.Background()
	_, err := store.Open(ctx, Recover(Part(), "a"))
	wantErr(t, "open what is not there", err, storage.ErrDataMissing)
	_, err = store.Read(ctx, storage.ReadRequest{Partition: Part(), Limit: 1})
	wantErr(t, "read what is not open", err, storage.ErrNotOpen)
	if err := store.Close(ctx, storage.CloseRequest{Partition: Part(), Instance: "a"}); err != nil {
		t.Errorf("close what is not open: %v", err)
	}
	s, o := NewSender(t, store, Creating(Part(), "a"))
	if o.Lease.Next != 0 || o.LogStart != 0 || len(o.Sealed) != 0 || o.Cut != nil {
		t.Errorf("new partition opened as %+v", o)
	}
	_, err = store.Read(ctx, storage.ReadRequest{Partition: Part(), Limit: 1})
	wantErr(t, "read at the end", err, storage.ErrOffsetOutOfRange)
	s.Append("one")
	end()
	store, _ = startStream(t, open, dir)
	if _, o = NewSender(t, store, Recover(Part(), "b")); o.Lease.Next != 1 {
		t.Errorf("log ends at %d after one record", o.Lease.Next)
	}
}

func streamBadNames(t TB, open StreamOpener) {
	store, _ := startStream(t, open, t.TempDir())
	for _, bad := range []storage.Partition{
		{Topic: "", TopicID: Part().TopicID}, {Topic: "..", TopicID: Part().TopicID}, {Topic: "a/b", TopicID: Part().TopicID},
		{Topic: "a\x00b", TopicID: Part().TopicID}, {Topic: "orders", TopicID: "../../../../../../../../etc/pass"},
		{Topic: "orders", TopicID: ""}, {Topic: "orders", TopicID: Part().TopicID, ID: -1},
	} {
		if o, err := store.Open(context.Background(), Creating(bad, "a")); err == nil {
			t.Errorf("opened %+v as %+v", bad, o)
		}
		if err := store.Delete(context.Background(), bad); err == nil {
			t.Errorf("deleted %+v", bad)
		}
	}
}

func streamKeeps(t TB, open StreamOpener) {
	dir := t.TempDir()
	store, end := startStream(t, open, dir)
	s, _ := NewSender(t, store, Creating(Part(), "a"))
	s.Append("one", "two")
	s.Send(s.Group([]string{"", "four"}, []string{"five"}))
	want := []string{"one", "two", "", "four", "five"}
	wantValues(t, ReadStream(t, store, Span{End: 5}, 1<<20), want...)
	end()
	store, _ = startStream(t, open, dir)
	s, o := NewSender(t, store, Recover(Part(), "b"))
	if o.Lease.Next != 5 || o.LogStart != 0 || o.Cut != nil {
		t.Errorf("recovered to %+v", o)
	}
	var latest int64 = -1
	for _, run := range o.Sealed {
		latest = max(latest, run.MaxTimestamp)
	}
	if latest != 3 {
		t.Errorf("latest timestamp %d in %+v", latest, o.Sealed)
	}
	s.Append("six")
	wantValues(t, ReadStream(t, store, Span{End: 6}, 1), append(want, "six")...)
}

// streamSizes: small groups travel otherwise than large ones, and than those that are larger still.
func streamSizes(t TB, open StreamOpener) {
	store, _ := startStream(t, open, t.TempDir())
	s, _ := NewSender(t, store, Creating(Part(), "a"))
	var want []string
	for i, size := range []int{10, 20_000, 100, 200_000, 1 << 20, 1<<20 - 100, 3 << 20, 30_000, 0, 50_000} {
		value := strings.Repeat(string(rune('a'+i)), size)
		want = append(want, value)
		s.Append(value)
	}
	s.Send(s.Group(want[1:2], want[3:4], want[7:8]))
	want = append(want, want[1], want[3], want[7])
	got := ReadStream(t, store, Span{End: record.Offset(len(want))}, 1<<20)
	if len(got) != len(want) {
		t.Fatalf("read back %d values of %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] { // too long to be shown
			t.Errorf("value %d of %d bytes came back as another of %d", i, len(want[i]), len(got[i]))
		}
	}
}

func streamHeldOnce(t TB, open StreamOpener) {
	store, _ := startStream(t, open, t.TempDir())
	s, first := NewSender(t, store, Creating(Part(), "a"))
	_, err := store.Open(context.Background(), Recover(Part(), "a"))
	wantErr(t, "open what is held", err, storage.ErrLeaseHeld)
	s.Append("one")
	s.Surrender()
	_, second := NewSender(t, store, Recover(Part(), "a"))
	if second.Lease.Next != 1 || second.Lease.Epoch <= first.Lease.Epoch {
		t.Errorf("second lease %+v after %+v", second.Lease, first.Lease)
	}
	err = store.Close(context.Background(), storage.CloseRequest{Partition: Part(), Instance: "a", Lease: first.Lease.Epoch})
	wantErr(t, "close with an old lease", err, storage.ErrLeaseStale)
}

func streamVoids(t TB, open StreamOpener) {
	store, _ := startStream(t, open, t.TempDir())
	old, _ := NewSender(t, store, Creating(Part(), "a"))
	old.Append("one")
	late := old.Group([]string{"late"})
	fresh, _ := NewSender(t, store, Recover(Part(), "b"))
	if err := store.Append(context.Background(), late); err == nil {
		t.Errorf("took a group of a core that is gone")
	}
	// Its channel may have gone with it.
	fresh, _ = again(t, store, fresh)
	fresh.Append("two")
	wantValues(t, ReadStream(t, store, Span{End: 2}, 1<<20), "one", "two")
}

// again takes the lease anew for another instance of the core.
func again(t TB, store storage.StreamPlugin, s *Sender) (*Sender, storage.Opened) {
	t.Helper()
	return NewSender(t, store, Recover(s.part, s.instance+"'"))
}

func streamTwice(t TB, open StreamOpener) {
	store, _ := startStream(t, open, t.TempDir())
	s, _ := NewSender(t, store, Creating(Part(), "a"))
	one := s.Group([]string{"one"}, []string{"two", "three"})
	s.Send(one)
	s.Send(one)
	two := s.Group([]string{"four"})
	s.Send(two)
	s.Send(two)
	wantValues(t, ReadStream(t, store, Span{End: 4}, 1<<20), "one", "two", "three", "four")
}

func streamTwiceInAnotherLife(t TB, open StreamOpener) {
	dir := t.TempDir()
	store, end := startStream(t, open, dir)
	s, _ := NewSender(t, store, Creating(Part(), "a"))
	s.Append("one")
	group := s.Group([]string{"two"})
	s.Send(group)
	end()
	store, _ = startStream(t, open, dir)
	s, o := NewSender(t, store, Recover(Part(), "a"))
	if o.Lease.Next != 2 {
		t.Fatalf("recovered to %d", o.Lease.Next)
	}
	group.Lease = s.lease
	s.Send(group)
	s.Append("three")
	wantValues(t, ReadStream(t, store, Span{End: 3}, 1<<20), "one", "two", "three")
}

func streamMisplaced(t TB, open StreamOpener) {
	store, _ := startStream(t, open, t.TempDir())
	ctx := context.Background()
	s, _ := NewSender(t, store, Creating(Part(), "a"))
	s.Append("one")
	s.Append("two")
	end := s.next
	for name, base := range map[string]record.Offset{"a gap": end + 1, "another group where one is": 1, "below the log": 0} {
		s.next = base
		other := s.Group([]string{"other"}, []string{"still"})
		wantErr(t, name, store.Append(ctx, other), storage.ErrHeldMismatch)
	}
	s.next = end
	stale := s.Group([]string{"stale"})
	stale.Lease--
	wantErr(t, "an old lease", store.Append(ctx, stale), storage.ErrLeaseStale)
	s.Append("three")
	wantValues(t, ReadStream(t, store, Span{End: 3}, 1<<20), "one", "two", "three")
}

func streamDamage(t TB, open StreamOpener) {
	store, _ := startStream(t, open, t.TempDir())
	s, _ := NewSender(t, store, Creating(Part(), "a"))
	for name, spoil := range map[string]func(r *storage.AppendRequest){
		"a flipped bit": func(r *storage.AppendRequest) { r.Bytes[len(r.Bytes)-1] ^= 1 },
		"a wrong end":   func(r *storage.AppendRequest) { r.Next++ },
		"another epoch": func(r *storage.AppendRequest) { r.Epoch++ },
	} {
		r := s.Group([]string{"sound"})
		spoil(&r)
		if err := store.Append(context.Background(), r); err == nil {
			t.Errorf("took a group with %s", name)
		}
		s, _ = again(t, store, s)
	}
	s.Append("one")
	wantValues(t, ReadStream(t, store, Span{End: 1}, 1<<20), "one")
}

func streamReads(t TB, open StreamOpener) {
	store, _ := startStream(t, open, t.TempDir())
	s, _ := NewSender(t, store, Creating(Part(), "a"))
	long := strings.Repeat("x", 3000)
	for range 30 {
		s.Send(s.Group([]string{long, "a", "b"}, []string{"c"}, []string{long, "d"}))
	}
	for off := record.Offset(0); off < 180; off++ {
		for _, limit := range []int64{1, 4000, 100_000} {
			b := readAt(t, store, off, limit)
			if limit == 1 && len(b) != 1 {
				t.Fatalf("read of 1 byte at %d: %d batches", off, len(b))
			}
		}
	}
	if got := len(ReadStream(t, store, Span{End: 180}, 10_000)); got != 180 {
		t.Errorf("read %d records of 180", got)
	}
	for _, off := range []record.Offset{-1, 180, 1000} {
		if off < 0 {
			continue // no frame can carry it
		}
		_, err := store.Read(context.Background(), storage.ReadRequest{Partition: Part(), Offset: off, Limit: 1})
		wantErr(t, fmt.Sprintf("read at %d", off), err, storage.ErrOffsetOutOfRange)
	}
}

func streamCeiling(t TB, open StreamOpener) {
	dir := t.TempDir()
	store, end := startStream(t, open, dir)
	s, _ := NewSender(t, store, Creating(Part(), "a"))
	s.Send(s.Group([]string{"one", "two"}, []string{"three"}))
	s.Append("four")
	end()
	store, end = startStream(t, open, dir)
	r := Recover(Part(), "b")
	r.Ceiling = 2
	s, o := NewSender(t, store, r)
	if o.Lease.Next != 2 || o.Cut == nil || o.Cut.Dirty || o.Cut.Offset != 2 {
		t.Errorf("ceiling 2: opened %+v, cut %+v", o.Lease, o.Cut)
	}
	s.Append("five")
	end()
	store, _ = startStream(t, open, dir)
	r.Instance, r.Ceiling = "c", 9
	if _, o = NewSender(t, store, r); o.Lease.Next != 3 || o.Cut == nil || !o.Cut.Dirty {
		t.Errorf("ceiling above the end: opened %+v, cut %+v", o.Lease, o.Cut)
	}
	wantValues(t, ReadStream(t, store, Span{End: 3}, 1<<20), "one", "two", "five")
}

func streamTrims(t TB, open StreamOpener) {
	dir := t.TempDir()
	store, end := startStream(t, open, dir)
	ctx := context.Background()
	_, err := store.Trim(ctx, storage.TrimRequest{Partition: Part(), Instance: "a", LogStart: 1})
	wantErr(t, "trim what is not open", err, storage.ErrNotOpen)
	s, _ := NewSender(t, store, Creating(Part(), "a"))
	for i := range 6 {
		s.Append(fmt.Sprint(i))
	}
	_, err = store.Trim(ctx, storage.TrimRequest{Partition: Part(), Instance: "b", LogStart: 1})
	wantErr(t, "trim by another core", err, storage.ErrLeaseStale)
	for _, c := range []struct{ ask, want record.Offset }{{2, 2}, {2, 2}, {1, 2}, {4, 4}} {
		got, err := store.Trim(ctx, storage.TrimRequest{Partition: Part(), Instance: "a", LogStart: c.ask})
		if c.ask < c.want { // told as it is
			if err == nil && got.LogStart != c.want {
				t.Errorf("trim to %d: %+v", c.ask, got)
			}
			continue
		}
		if err != nil || got.LogStart != c.want || got.First > got.LogStart {
			t.Errorf("trim to %d: %+v, %v", c.ask, got, err)
		}
		_, err = store.Read(ctx, storage.ReadRequest{Partition: Part(), Offset: c.want - 1, Limit: 1})
		wantErr(t, "read below the log start", err, storage.ErrOffsetOutOfRange)
	}
	end() // right after the answer
	store, end = startStream(t, open, dir)
	_, o := NewSender(t, store, Recover(Part(), "b"))
	if o.LogStart != 4 || o.Lease.Next != 6 || o.Cut != nil {
		t.Errorf("after the trim: %+v", o)
	}
	wantValues(t, ReadStream(t, store, Span{From: 4, End: 6}, 1<<20), "4", "5")
	if got, err := store.Trim(ctx, storage.TrimRequest{Partition: Part(), Instance: "b", LogStart: 6}); err != nil || got.LogStart != 6 {
		t.Errorf("trim to the end: %+v, %v", got, err)
	}
	end()
	store, _ = startStream(t, open, dir)
	s, o = NewSender(t, store, Recover(Part(), "c"))
	if o.LogStart != 6 || o.Lease.Next != 6 {
		t.Errorf("an empty log is [%d, %d)", o.LogStart, o.Lease.Next)
	}
	s.Append("6")
	wantValues(t, ReadStream(t, store, Span{From: 6, End: 7}, 1<<20), "6")
}

func streamTruncates(t TB, open StreamOpener) {
	for _, to := range []record.Offset{7, 6, 4, 3, 1, 0} {
		dir := t.TempDir()
		store, end := startStream(t, open, dir)
		s, _ := NewSender(t, store, Creating(Part(), "a"))
		s.Send(s.Group([]string{"0"}, []string{"1"}, []string{"2"}))
		s.Send(s.Group([]string{"3"}, []string{"4"}, []string{"5"}))
		s.Append("6")
		lease := s.lease
		s.Surrender()
		o, err := store.Truncate(context.Background(), storage.TruncateRequest{Partition: Part(), Instance: "a", Lease: lease, Next: to, Epoch: 2})
		if err != nil {
			t.Errorf("truncate to %d: %v", to, err)
			continue
		}
		if o.Lease.Next != to || o.Lease.Epoch <= lease || o.LogStart != 0 || o.Cut != nil {
			t.Errorf("truncated to %d: %+v", to, o)
		}
		s.Resume(o)
		s.leader = 2
		s.Append("new")
		var want []string
		for i := range int(to) {
			want = append(want, fmt.Sprint(i))
		}
		want = append(want, "new")
		wantValues(t, ReadStream(t, store, Span{End: to + 1}, 1<<20), want...)
		end()
		store, _ = startStream(t, open, dir)
		if _, o = NewSender(t, store, Recover(Part(), "b")); o.Lease.Next != to+1 || o.Cut != nil {
			t.Errorf("truncated to %d, recovered to %+v", to, o)
		}
		wantValues(t, ReadStream(t, store, Span{End: to + 1}, 1<<20), want...)
	}
}

func streamWrongTruncations(t TB, open StreamOpener) {
	store, _ := startStream(t, open, t.TempDir())
	ctx := context.Background()
	s, _ := NewSender(t, store, Creating(Part(), "a"))
	s.Append("0", "1")
	good := storage.TruncateRequest{Partition: Part(), Instance: "a", Lease: s.lease, Next: 2, Epoch: 1}
	_, err := store.Truncate(ctx, good)
	wantErr(t, "truncate what is held", err, storage.ErrLeaseHeld)
	s.Surrender()
	for name, c := range map[string]struct {
		spoil func(r *storage.TruncateRequest)
		want  error
	}{
		"another core":     {func(r *storage.TruncateRequest) { r.Instance = "b" }, storage.ErrLeaseStale},
		"an old lease":     {func(r *storage.TruncateRequest) { r.Lease-- }, storage.ErrLeaseStale},
		"beyond the end":   {func(r *storage.TruncateRequest) { r.Next = 4 }, storage.ErrOffsetOutOfRange},
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
	s, _ = again(t, store, s)
	s.Append("2")
	wantValues(t, ReadStream(t, store, Span{End: 3}, 1<<20), "0", "1", "2") // nothing was touched
}

func streamExpires(t TB, open StreamOpener) {
	store, _ := startStream(t, open, t.TempDir())
	ctx := context.Background()
	ask := storage.ExpireRequest{Partition: Part(), Instance: "a", RetentionBytes: -1, Limit: 99}
	_, err := store.Expire(ctx, ask)
	wantErr(t, "expire what is not open", err, storage.ErrNotOpen)
	s, _ := NewSender(t, store, Creating(Part(), "a"))
	for i := range 5 {
		s.Append(fmt.Sprint(i))
	}
	size := int64(len(Batch(0, 1, 1, "0")))
	for name, c := range map[string]struct {
		bytes    int64
		limit    record.Offset
		min, max record.Offset
	}{
		"no limit":                     {-1, 99, 0, 0},
		"everything fits":              {5 * size, 99, 0, 0},
		"two have to stay":             {2 * size, 99, 0, 3},
		"next to nothing has to stay":  {1, 99, 1, 4},
		"not above the high watermark": {0, 2, 0, 2},
	} {
		r := ask
		r.RetentionBytes, r.Limit = c.bytes, c.limit
		if got, err := store.Expire(ctx, r); err != nil || got < c.min || got > c.max {
			t.Errorf("%s: %d, %v, want [%d, %d]", name, got, err, c.min, c.max)
		}
	}
	wantValues(t, ReadStream(t, store, Span{End: 5}, 1<<20), "0", "1", "2", "3", "4") // it only proposes
	other := ask
	other.Instance = "b"
	_, err = store.Expire(ctx, other)
	wantErr(t, "expire by another core", err, storage.ErrLeaseStale)
}

func streamDeletes(t TB, open StreamOpener) {
	dir := t.TempDir()
	store, end := startStream(t, open, dir)
	ctx := context.Background()
	if err := store.Delete(ctx, Part()); err != nil {
		t.Errorf("delete what is not there: %v", err)
	}
	s, _ := NewSender(t, store, Creating(Part(), "a"))
	s.Append("one")
	other := Part()
	other.TopicID = "f" + other.TopicID[1:]
	if err := store.Delete(ctx, other); err != nil {
		t.Errorf("delete of another id: %v", err)
	}
	wantValues(t, ReadStream(t, store, Span{End: 1}, 1<<20), "one")
	if err := store.Delete(ctx, Part()); err != nil {
		t.Fatalf("delete: %v", err)
	}
	if err := store.Append(ctx, s.Group([]string{"two"})); !errors.Is(err, storage.ErrNotOpen) {
		t.Errorf("append after the delete: %v", err)
	}
	_, err := store.Open(ctx, Recover(Part(), "a"))
	wantErr(t, "open after the delete", err, storage.ErrDataMissing)
	s, o := NewSender(t, store, Creating(other, "a"))
	if o.Lease.Next != 0 {
		t.Errorf("a new topic begins at %d", o.Lease.Next)
	}
	s.Append("new")
	end()
	store, _ = startStream(t, open, dir)
	if err := store.Delete(ctx, Part()); err != nil { // the old one, once more
		t.Errorf("second delete: %v", err)
	}
	if _, o = NewSender(t, store, Recover(other, "b")); o.Lease.Next != 1 {
		t.Errorf("the new topic ends at %d", o.Lease.Next)
	}
}

// streamPartitions is enough to fill the socket that channels travel on, were it not drained.
const streamPartitions = 150

func streamIndependent(t TB, open StreamOpener) {
	store, _ := startStream(t, open, t.TempDir())
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32)
	for id := range streamPartitions {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := streamOne(store, partition.ID(id)); err != nil {
				t.Errorf("partition %d: %v", id, err)
			}
		})
	}
	wg.Wait()
}

// streamOne opens a partition, appends, reads and gives it back; it may run in any goroutine.
func streamOne(store storage.StreamPlugin, id partition.ID) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	p := Part()
	p.ID = id
	o, err := store.Open(ctx, Creating(p, "a"))
	if err != nil {
		return err
	}
	b := Batch(0, 1, 1, p.String())
	sum, err := storeframe.Sum(b)
	if err != nil {
		return err
	}
	err = store.Append(ctx, storage.AppendRequest{
		Partition: p, Instance: "a", Lease: o.Lease.Epoch, Epoch: 1, Next: 1, MaxTimestamp: 1, Sum: sum, Bytes: b,
	})
	if err != nil {
		return err
	}
	data, err := store.Read(ctx, storage.ReadRequest{Partition: p, Limit: 1 << 20})
	if err != nil {
		return err
	}
	if string(data) != string(b) {
		return fmt.Errorf("read %d bytes of another log", len(data))
	}
	return store.Close(ctx, storage.CloseRequest{Partition: p, Instance: "a", Lease: o.Lease.Epoch, Next: 1})
}

func streamRoom(t TB, open StreamOpener) {
	store, _ := startStream(t, open, t.TempDir())
	for range 2 {
		if err := store.Room(context.Background()); err != nil {
			t.Errorf("room on a disk that is not full: %v", err)
		}
	}
}
