package storagerpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a store that says what a test puts into it, and lends any file.
type fake struct {
	mu     sync.Mutex
	dir    string
	err    error
	opened storage.Opened
	lease  storage.Lease
	extent storage.Extent
	desc   storage.Description
	lends  bool
	noted  storage.Note
	asked  storage.OpenRequest
	hang   chan struct{}         // not nil: calls wait for it, whatever their context says
	steps  chan storage.Progress // not nil: Open reports what comes, until it is closed

	kept kept
}

// kept is what the fake answers as a Keeper, and what it was asked.
type kept struct {
	expire    storage.ExpireRequest
	trim      storage.TrimRequest
	truncate  storage.TruncateRequest
	topic     string
	start     record.Offset
	trimmed   storage.Trimmed
	truncated storage.Opened
	adoption  storage.Adoption
}

func (f *fake) Expire(_ context.Context, r storage.ExpireRequest) (record.Offset, error) {
	f.kept.expire = r
	return f.kept.start, f.enter()
}

func (f *fake) Trim(_ context.Context, r storage.TrimRequest) (storage.Trimmed, error) {
	f.kept.trim = r
	return f.kept.trimmed, f.enter()
}

func (f *fake) Truncate(_ context.Context, r storage.TruncateRequest) (storage.Opened, error) {
	f.kept.truncate = r
	o := f.kept.truncated
	o.Lease.File = f.file()
	return o, f.enter()
}

func (f *fake) Adoptable(_ context.Context, topic string) (storage.Adoption, error) {
	f.kept.topic = topic
	return f.kept.adoption, f.enter()
}

func (f *fake) Room(context.Context) error { return f.enter() }

func (f *fake) enter() error {
	f.mu.Lock()
	hang, err := f.hang, f.err
	f.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return err
}

func (f *fake) file() storage.File {
	if !f.lends {
		return nil
	}
	file, err := os.CreateTemp(f.dir, "lent")
	if err != nil {
		panic(err)
	}
	return file
}

func (f *fake) Describe(context.Context) (storage.Description, error) {
	d := f.desc
	d.Canary = f.file()
	return d, f.enter()
}

func (f *fake) Open(ctx context.Context, r storage.OpenRequest) (storage.Opened, error) {
	if err := f.enter(); err != nil {
		return storage.Opened{}, err
	}
	if f.steps != nil {
		for p := range f.steps {
			storage.ReportProgress(ctx, p)
		}
	}
	f.asked = r
	o := f.opened
	o.Lease.File = f.file()
	return o, nil
}

func (f *fake) Roll(context.Context, storage.RollRequest) (storage.Lease, error) {
	l := f.lease
	l.File = f.file()
	return l, f.enter()
}

func (f *fake) Locate(context.Context, storage.LocateRequest) (storage.Extent, error) {
	e := f.extent
	e.File = f.file()
	return e, f.enter()
}

func (f *fake) Note(_ context.Context, n storage.Note) error {
	f.noted = n
	return f.enter()
}

func (f *fake) Close(context.Context, storage.CloseRequest) error { return f.enter() }

func (f *fake) Delete(context.Context, storage.Partition) error { return f.enter() }

// connect puts a client before impl. The plugin's end of the socket comes along, for what a plugin must not do.
func connect(t *testing.T, impl storage.Plugin) (*client, *Socket) {
	t.Helper()
	core, child, err := SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(child.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	plugin, err := SocketFromFd(fd)
	if err := errors.Join(err, child.Close()); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "tl")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	Register(server, impl, plugin)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	conn, err := grpc.NewClient("unix:"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
		if err := errors.Join(conn.Close(), plugin.Close(), core.Close(), core.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	c, ok := NewClient(conn, core).(*client)
	if !ok {
		t.Fatal("NewClient returned something else")
	}
	return c, plugin
}

func part() storage.Partition {
	return storage.Partition{Topic: "orders", TopicID: strings.Repeat("0f", 16), ID: 2}
}

func recoverRequest() storage.OpenRequest {
	return storage.OpenRequest{Partition: part(), Instance: "a", Epoch: 4, SegmentBytes: 9, Ceiling: -1}
}

func TestErrorsKeepTheirIdentity(t *testing.T) {
	f := &fake{dir: t.TempDir()}
	c, _ := connect(t, f)
	for _, k := range knownErrors() {
		if !storage.IsAnswer(k.err) {
			t.Errorf("%v is not taken for an answer", k.err)
		}
		f.err = fmt.Errorf("open orders-2: %w: it is like that", k.err)
		_, err := c.Open(context.Background(), recoverRequest())
		if !errors.Is(err, k.err) || !strings.Contains(err.Error(), "it is like that") {
			t.Errorf("%v came as %v", f.err, err)
		}
		for _, other := range knownErrors() {
			if other.err != k.err && errors.Is(err, other.err) {
				t.Errorf("%v is also %v", err, other.err)
			}
		}
	}
	f.err = errors.New("something else")
	err := c.Delete(context.Background(), part())
	var plugin *PluginError
	if !errors.As(err, &plugin) || plugin.Method != "delete" || plugin.Err != nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("came as %v", err)
	}
	f.err = context.DeadlineExceeded // the plugin's own deadline: what it did is not known
	if err := c.Delete(context.Background(), part()); !errors.Is(err, ErrDeadline) {
		t.Errorf("came as %v", err)
	}
}

func TestEveryFieldTravels(t *testing.T) {
	f := &fake{
		dir: t.TempDir(), lends: true,
		opened: storage.Opened{
			Lease:    storage.Lease{Epoch: 1 << 40, Base: 3, Next: 5, Position: 77, MaxTimestamp: 99, Dev: 1 << 33, Ino: 1 << 50},
			LogStart: 1,
			Sealed:   []storage.Segment{{Base: 0, Next: 2, Size: 8, MaxTimestamp: -1}, {Base: 2, Next: 3, Size: 9, MaxTimestamp: 6}},
			Cut:      &storage.Cut{Offset: 5, Bytes: 12, Reason: "torn", SavedAs: "x.cut-1", Dirty: true},
		},
	}
	c, _ := connect(t, f)
	r := storage.OpenRequest{
		Partition: part(), Instance: "nonce", Create: true, Epoch: 4, SegmentBytes: 1 << 33, Ceiling: 5, Lazy: true, Adopt: true,
	}
	o, err := c.Open(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	file := o.Lease.File
	o.Lease.File = nil
	if got, want := fmt.Sprintf("%+v %+v", o, *o.Cut), fmt.Sprintf("%+v %+v", f.opened, *f.opened.Cut); dropPointers(got) != dropPointers(want) {
		t.Errorf("answer came as\n%s, want\n%s", got, want)
	}
	if got, want := fmt.Sprintf("%+v", f.asked), fmt.Sprintf("%+v", r); got != want {
		t.Errorf("request came as\n%s, want\n%s", got, want)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		t.Errorf("lent file: %v", err)
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	if err := file.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	n := storage.Note{
		Partition: part(), Instance: "nonce", Lease: 7, Position: 9, Next: 11,
		Entries: []storage.Entry{{Last: 1, Position: 2, MaxTimestamp: 3, MaxOffset: 1}, {Last: 4, Position: 5, MaxTimestamp: -6, MaxOffset: 3}},
	}
	if err := c.Note(context.Background(), n); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprintf("%+v", f.noted), fmt.Sprintf("%+v", n); got != want {
		t.Errorf("note came as\n%s, want\n%s", got, want)
	}
}

// dropPointers takes addresses out of a printed value.
func dropPointers(s string) string {
	before, after, found := strings.Cut(s, "Cut:0x")
	if !found {
		return s
	}
	return before + after[strings.IndexByte(after, '}'):]
}

func TestDescriptorsAreNotLeaked(t *testing.T) {
	f := &fake{dir: t.TempDir(), lends: true, desc: storage.Description{Name: "x", Durability: "disk"}}
	c, _ := connect(t, f)
	use := func() {
		d, err := c.Describe(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		_ = d.Canary.Close()
		f.desc.Durability = "hope" // an answer that is refused: its descriptor must go too
		if _, err := c.Describe(context.Background()); !errors.Is(err, ErrBadAnswer) {
			t.Fatalf("durability %q: %v", f.desc.Durability, err)
		}
		f.desc.Durability = "disk"
		f.err = storage.ErrFull
		if _, err := c.Describe(context.Background()); !errors.Is(err, storage.ErrFull) {
			t.Fatal(err)
		}
		f.err = nil
	}
	f.lends = true
	use()
	before := openDescriptors(t)
	for range 20 {
		use()
	}
	// The fake itself leaves the file open that it made for a failing call.
	if after := openDescriptors(t); after > before+20 {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestAnswersThatCannotBeRight(t *testing.T) {
	f := &fake{dir: t.TempDir(), lends: true}
	c, _ := connect(t, f)
	good := storage.Opened{
		Lease:  storage.Lease{Epoch: 9, Base: 3, Next: 5, Position: 77},
		Sealed: []storage.Segment{{Base: 0, Next: 2, Size: 8}, {Base: 2, Next: 3, Size: 9}},
	}
	held := &storage.Held{Lease: 8, Base: 3, Next: 5, Position: 77}
	for name, spoil := range map[string]func(r *storage.OpenRequest, o *storage.Opened){
		"no lease epoch":         func(_ *storage.OpenRequest, o *storage.Opened) { o.Lease.Epoch = 0 },
		"negative position":      func(_ *storage.OpenRequest, o *storage.Opened) { o.Lease.Position = -1 },
		"next below base":        func(_ *storage.OpenRequest, o *storage.Opened) { o.Lease.Next = 2 },
		"records without bytes":  func(_ *storage.OpenRequest, o *storage.Opened) { o.Lease.Position = 0 },
		"bytes without records":  func(_ *storage.OpenRequest, o *storage.Opened) { o.Lease.Next = 3 },
		"a gap":                  func(_ *storage.OpenRequest, o *storage.Opened) { o.Sealed[0].Next = 1 },
		"an overlap":             func(_ *storage.OpenRequest, o *storage.Opened) { o.Sealed[1].Base = 1 },
		"descending segments":    func(_ *storage.OpenRequest, o *storage.Opened) { o.Sealed[0], o.Sealed[1] = o.Sealed[1], o.Sealed[0] },
		"a segment without size": func(_ *storage.OpenRequest, o *storage.Opened) { o.Sealed[1].Size = 0 },
		"a gap before active":    func(_ *storage.OpenRequest, o *storage.Opened) { o.Sealed = o.Sealed[:1] },
		"log start above end":    func(_ *storage.OpenRequest, o *storage.Opened) { o.LogStart = 6 },
		"an offset too high":     func(_ *storage.OpenRequest, o *storage.Opened) { o.Lease.Next = math.MaxInt64 },
		"a position too high":    func(_ *storage.OpenRequest, o *storage.Opened) { o.Lease.Position = math.MaxInt64 },
		"a segment too large":    func(_ *storage.OpenRequest, o *storage.Opened) { o.Sealed[0].Size = math.MaxInt64 },
		"log start below":        func(_ *storage.OpenRequest, o *storage.Opened) { o.LogStart = -1 },
		"above the ceiling":      func(r *storage.OpenRequest, _ *storage.Opened) { r.Ceiling = 4 },
		"a cut elsewhere":        func(_ *storage.OpenRequest, o *storage.Opened) { o.Cut = &storage.Cut{Offset: 4} },
		"held, same epoch":       func(r *storage.OpenRequest, _ *storage.Opened) { r.Held.Lease = 9 },
		"held, another position": func(r *storage.OpenRequest, _ *storage.Opened) { r.Held.Position = 78 },
		"held, another end":      func(r *storage.OpenRequest, _ *storage.Opened) { r.Held.Next = 6 },
		"held, another inode":    func(r *storage.OpenRequest, _ *storage.Opened) { r.Held.Ino = 1 },
		"held, and cut":          func(_ *storage.OpenRequest, o *storage.Opened) { o.Cut = &storage.Cut{Offset: 5} },
	} {
		r := recoverRequest()
		if strings.HasPrefix(name, "held") {
			h := *held
			r.Held = &h
		}
		f.opened = good
		f.opened.Sealed = append([]storage.Segment(nil), good.Sealed...)
		if o, err := c.Open(context.Background(), r); err != nil {
			t.Fatalf("%s: the good answer: %v", name, err)
		} else {
			_ = o.Lease.File.Close()
		}
		spoil(&r, &f.opened)
		if _, err := c.Open(context.Background(), r); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("open with %s: %v", name, err)
		}
	}
	f.lends, f.opened = false, good
	if _, err := c.Open(context.Background(), recoverRequest()); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("open without a file: %v", err)
	}
	r := recoverRequest()
	r.Held = held
	if o, err := c.Open(context.Background(), r); err != nil || o.Lease.File != nil {
		t.Errorf("re-adoption needs no file: %v", err)
	}
}

func TestRollsAndExtentsThatCannotBeRight(t *testing.T) {
	f := &fake{dir: t.TempDir(), lends: true}
	c, _ := connect(t, f)
	ctx := context.Background()
	roll := storage.RollRequest{Partition: part(), Instance: "a", Lease: 4, Position: 9, Next: 7}
	for _, l := range []storage.Lease{
		{}, {Epoch: 4, Base: 7, Next: 7}, {Epoch: 5, Base: 6, Next: 6}, {Epoch: 5, Base: 7, Next: 8, Position: 70}, {Epoch: 5, Base: -7, Next: -7},
	} {
		f.lease = l
		if _, err := c.Roll(ctx, roll); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("roll to %+v: %v", l, err)
		}
	}
	f.lease = storage.Lease{Epoch: 5, Base: 7, Next: 7, MaxTimestamp: -1}
	l, err := c.Roll(ctx, roll)
	if err != nil {
		t.Fatalf("a good roll: %v", err)
	}
	_ = l.File.Close()

	locate := storage.LocateRequest{Partition: part(), Offset: 5}
	segment := storage.Segment{Base: 3, Next: 9, Size: 100}
	for _, e := range []storage.Extent{
		{Segment: segment, Offset: 6}, {Segment: segment, Offset: 2}, {Segment: segment, Offset: 4, Position: -1},
		{Segment: segment, Offset: 4, Position: 101}, {Segment: storage.Segment{Base: 3, Next: 2}, Offset: 3},
		{Segment: storage.Segment{Base: 1, Next: 3, Size: 100}, Offset: 4}, {Segment: storage.Segment{Base: -1, Next: 9, Size: 100}},
		{Segment: storage.Segment{Base: 3, Next: 9, Size: math.MaxInt64}, Offset: 4}, {Segment: storage.Segment{Base: 3, Next: math.MaxInt64, Size: 100}, Offset: 4},
	} {
		f.extent = e
		if _, err := c.Locate(ctx, locate); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("extent %+v: %v", e, err)
		}
	}
	f.extent = storage.Extent{Segment: segment, Offset: 4, Position: 50}
	e, err := c.Locate(ctx, locate)
	if err != nil {
		t.Fatalf("a good extent: %v", err)
	}
	_ = e.File.Close()
	f.lends = false
	_, rollErr := c.Roll(ctx, roll)
	_, locateErr := c.Locate(ctx, locate)
	if !errors.Is(rollErr, ErrBadAnswer) || !errors.Is(locateErr, ErrBadAnswer) {
		t.Errorf("answers without a file: %v, %v", rollErr, locateErr)
	}
}

func TestCallsEndAtTheirOwnDeadline(t *testing.T) {
	f := &fake{dir: t.TempDir(), hang: make(chan struct{})}
	c, _ := connect(t, f)
	defer close(f.hang)
	c.deadlineOf = func(string) time.Duration { return 50 * time.Millisecond }
	ctx := context.Background()
	_, openErr := c.Open(ctx, recoverRequest())
	for what, err := range map[string]error{
		"open": openErr, "note": c.Note(ctx, storage.Note{Partition: part()}),
		"close": c.Close(ctx, storage.CloseRequest{Partition: part()}), "delete": c.Delete(ctx, part()),
	} {
		if !errors.Is(err, ErrDeadline) { // either end may see first that the time is over
			t.Errorf("%s by a hanging store: %v", what, err)
		}
	}
	c.deadlineOf = deadlineOf
	given, cancel := context.WithCancelCause(ctx)
	up := errors.New("given up")
	cancel(up)
	if err := c.Delete(given, part()); !errors.Is(err, ErrDeadline) || !errors.Is(err, up) {
		t.Errorf("delete that was given up: %v", err)
	}
}

func TestDeadlinesAreFinite(t *testing.T) {
	for _, m := range []string{methodDescribe, methodRoll, methodLocate, methodNote, methodClose, methodDelete, methodExpire, methodTrim} {
		if d := deadlineOf(m); d <= 0 || d > 10*time.Second {
			t.Errorf("%s may take %v", m, d)
		}
	}
	for _, m := range []string{methodOpen, methodTruncate, methodAdoptable, methodRoom} {
		if d := deadlineOf(m); d < 30*time.Second || d > time.Minute {
			t.Errorf("%s may take %v", m, d)
		}
	}
}

// plant sends what a plugin must not send.
func plant(t *testing.T, s *Socket, message []byte, fds ...int) {
	t.Helper()
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := s.conn.WriteMsgUnix(message, rights, nil); err != nil {
		t.Fatal(err)
	}
}

func TestWrongMessagesOnTheSocket(t *testing.T) {
	id := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	fd := int(null.Fd())
	for name, c := range map[string]struct {
		send func(t *testing.T, s *Socket)
		all  bool // nothing on this socket is believed any more
	}{
		"no descriptor":    {send: func(t *testing.T, s *Socket) { plant(t, s, id(7)) }},
		"two descriptors":  {send: func(t *testing.T, s *Socket) { plant(t, s, id(7), fd, fd) }},
		"many descriptors": {send: func(t *testing.T, s *Socket) { plant(t, s, id(7), fd, fd, fd, fd, fd, fd, fd, fd, fd, fd) }},
		"a short message":  {send: func(t *testing.T, s *Socket) { plant(t, s, id(7)[:5], fd) }, all: true},
		"a long message":   {send: func(t *testing.T, s *Socket) { plant(t, s, append(id(7), 1), fd) }, all: true},
		"id zero":          {send: func(t *testing.T, s *Socket) { plant(t, s, id(0), fd) }, all: true},
		"an id twice":      {send: func(t *testing.T, s *Socket) { plant(t, s, id(7), fd); plant(t, s, id(7), fd) }, all: true},
	} {
		t.Run(name, func(t *testing.T) {
			core, plugin := pair(t)
			call := core.begin()
			defer core.end(call)
			before := openDescriptors(t)
			c.send(t, plugin)
			plant(t, plugin, id(8), fd)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if name == "an id twice" {
				waitFailed(t, core)
			}
			f, err := core.take(ctx, 7)
			if !errors.Is(err, ErrBadAnswer) {
				t.Errorf("take: %v, %v", f, err)
			}
			f, err = core.take(ctx, 8)
			if c.all != errors.Is(err, ErrBadAnswer) {
				t.Errorf("the next one: %v, %v", f, err)
			}
			if err == nil {
				_ = f.Close()
			}
			after := openDescriptors(t)
			for end := time.Now().Add(time.Minute); after > before && time.Now().Before(end); after = openDescriptors(t) {
				<-time.After(time.Millisecond) // both ends close what they do not keep in goroutines of their own
			}
			if after > before {
				t.Errorf("%d descriptors, %d before", after, before)
			}
		})
	}
}

func waitFailed(t *testing.T, s *Socket) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		s.mu.Lock()
		err, wake := s.err, s.wake
		s.mu.Unlock()
		if err != nil {
			return
		}
		select {
		case <-wake:
		case <-time.After(time.Until(deadline)):
		}
	}
	t.Fatal("the socket never failed")
}

// pair makes both ends in one process.
func pair(t *testing.T) (core, plugin *Socket) {
	t.Helper()
	core, child, err := SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(child.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	plugin, err = SocketFromFd(fd)
	if err := errors.Join(err, child.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(plugin.Close(), core.Close()); err != nil {
			t.Error(err)
		}
	})
	return core, plugin
}

func TestUnclaimedDescriptorsAreClosedWithTheirCall(t *testing.T) {
	core, plugin := pair(t)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	before := openDescriptors(t)
	long, short := core.begin(), core.begin()
	for range 3 * unclaimedSlack { // more than may wait
		if _, err := plugin.send(file); err != nil {
			t.Fatal(err)
		}
	}
	last, err := plugin.send(file)
	if err != nil {
		t.Fatal(err)
	}
	core.end(short)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	f, err := core.take(ctx, 1) // the long call is still under way: its file may be any of them
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	core.end(long)
	// Everything was dropped, and what comes now belongs to nobody.
	gone, stop := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer stop()
	if _, err := core.take(gone, last); !errors.Is(err, ErrDeadline) {
		t.Errorf("take of what nobody waited for: %v", err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for openDescriptors(t) > before {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d descriptors, %d before", openDescriptors(t), before)
		}
	}
}

func TestTheSocketIsDrainedWhateverHappens(t *testing.T) {
	core, plugin := pair(t)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	plant(t, plugin, []byte("?"))
	for range 2000 { // several times what it holds
		if _, err := plugin.send(file); err != nil {
			t.Fatal(err)
		}
	}
	if err := core.Close(); err != nil {
		t.Error(err)
	}
	if _, err := plugin.send(file); err == nil {
		t.Error("sent to a core that is gone")
	}
	if _, err := core.take(context.Background(), 1); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("take: %v", err)
	}
}

func TestSocketThatEnds(t *testing.T) {
	core, plugin := pair(t)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	call := core.begin()
	defer core.end(call)
	id, err := plugin.send(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := plugin.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := core.take(context.Background(), id) // was sent before the end
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if _, err := core.take(context.Background(), id+1); !errors.Is(err, ErrUnavailable) {
		t.Errorf("take after the end: %v", err)
	}
}

func TestDescriptorThatIsNoSocket(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "f")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if _, err := SocketFromFd(int(file.Fd())); err == nil {
		t.Error("a file was taken for the lend socket")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(fds[:])
	if _, err := SocketFromFd(fds[0]); err == nil {
		t.Error("a stream socket was taken for the lend socket")
	}
	if _, err := SocketFromFd(-1); err == nil {
		t.Error("no descriptor was taken for the lend socket")
	}
}

func TestNoDescriptorsLeft(t *testing.T) {
	core, plugin := pair(t)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	call := core.begin()
	defer core.end(call)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	probe, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(probe)
	low := limit
	low.Cur = uint64(probe) // the lowest free number is already too high
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	id, err := plugin.send(file)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var takeErr error
	if err == nil {
		_, takeErr = core.take(ctx, id)
	}
	if err := errors.Join(err, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(takeErr, ErrDescriptorLost) {
		t.Errorf("take: %v", takeErr)
	}
}

func TestSimulatedFilesCannotBeSent(t *testing.T) {
	_, plugin := pair(t)
	if _, err := plugin.send(noDescriptor{}); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("send: %v", err)
	}
}

type noDescriptor struct{}

func (noDescriptor) Fd() uintptr  { return ^uintptr(0) }
func (noDescriptor) Close() error { return nil }
