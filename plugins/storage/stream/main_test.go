package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/storeframe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what must come.
const patience = time.Minute

func part(id int) storage.Partition {
	return storage.Partition{Topic: "orders", TopicID: "0123456789abcdef0123456789abcdef", ID: partitionID(id)}
}

// keeper is a store in memory, whose logs outlive it as a disk would. What it is to do wrong is set by the test.
type keeper struct {
	storage.StreamPlugin // nil: what is not written here is not called

	mu     sync.Mutex
	logs   map[storage.Partition]*kept
	leases storage.LeaseEpoch

	// before and after are called around the storing of a group, with no lock held.
	before, after func(r storage.AppendRequest) error
	// reading may replace what a read answers.
	reading func(batches []byte) ([]byte, error)
}

type kept struct {
	groups []storage.AppendRequest
	held   bool
	lease  storage.LeaseEpoch
	start  record.Offset
}

func newKeeper() *keeper { return &keeper{logs: make(map[storage.Partition]*kept)} }

func (k *keeper) Describe(context.Context) (storage.Description, error) {
	return storage.Description{Name: "keeper", Version: "1", Durability: "disk"}, nil
}

func (l *kept) end() record.Offset {
	if n := len(l.groups); n > 0 {
		return l.groups[n-1].Next
	}
	return l.start
}

func (k *keeper) Open(_ context.Context, r storage.OpenRequest) (storage.Opened, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.logs[r.Partition]
	if l == nil {
		if !r.Create {
			return storage.Opened{}, storage.ErrDataMissing
		}
		l = &kept{}
		k.logs[r.Partition] = l
	}
	k.leases++
	l.held, l.lease = true, k.leases
	o := storage.Opened{LogStart: l.start, Lease: storage.Lease{Epoch: l.lease, Base: l.end(), Next: l.end(), MaxTimestamp: -1}}
	for _, g := range l.groups {
		o.Sealed = append(o.Sealed, storage.Segment{Base: g.Base, Next: g.Next, Size: int64(len(g.Bytes)), MaxTimestamp: g.MaxTimestamp})
	}
	return o, nil
}

func (k *keeper) Append(_ context.Context, r storage.AppendRequest) error {
	k.mu.Lock()
	before, after := k.before, k.after
	k.mu.Unlock()
	if before != nil {
		if err := before(r); err != nil {
			return err
		}
	}
	if err := k.store(r); err != nil {
		return err
	}
	if after != nil {
		return after(r)
	}
	return nil
}

func (k *keeper) store(r storage.AppendRequest) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.logs[r.Partition]
	switch {
	case l.lease != r.Lease:
		return storage.ErrLeaseStale
	case slices.ContainsFunc(l.groups, func(g storage.AppendRequest) bool {
		return g.Base == r.Base && g.Epoch == r.Epoch && g.Sum == r.Sum
	}):
		return nil
	case r.Base != l.end():
		return storage.ErrHeldMismatch
	}
	r.Bytes = slices.Clone(r.Bytes)
	l.groups = append(l.groups, r)
	return nil
}

func (k *keeper) Read(_ context.Context, r storage.ReadRequest) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []byte
	for _, g := range k.logs[r.Partition].groups {
		if g.Next > r.Offset && (len(out) == 0 || int64(len(out)+len(g.Bytes)) <= r.Limit) {
			out = append(out, g.Bytes...)
		}
	}
	if len(out) == 0 {
		return nil, storage.ErrOffsetOutOfRange
	}
	if k.reading != nil {
		return k.reading(out)
	}
	return out, nil
}

func (k *keeper) Trim(_ context.Context, r storage.TrimRequest) (storage.Trimmed, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.logs[r.Partition]
	l.start = r.LogStart
	return storage.Trimmed{LogStart: r.LogStart, First: r.LogStart}, nil
}

func (k *keeper) Close(_ context.Context, r storage.CloseRequest) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.logs[r.Partition].held = false
	return nil
}

// machine is a Dir whose plugin is started anew whenever it is killed.
type machine struct {
	t       *testing.T
	dir     *Dir
	keeper  *keeper
	kills   atomic.Int32
	down    atomic.Bool // no successor is started
	started sync.WaitGroup
	dead    chan struct{} // tells the supervisor that an instance was killed
	over    context.CancelFunc
	server  *Server
	reasons []error
	mu      sync.Mutex
}

func newMachine(t *testing.T, k *keeper) *machine {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m := &machine{t: t, dir: NewDir(Options{Instance: "core"}), keeper: k, dead: make(chan struct{}, 64), over: cancel}
	m.start()
	m.started.Go(func() { m.supervise(ctx) })
	t.Cleanup(func() {
		cancel()
		m.started.Wait()
		if err := errors.Join(m.dir.Close(), m.server.Stop()); err != nil {
			t.Errorf("end: %v", err)
		}
	})
	return m
}

// start starts an instance and has it adopted.
func (m *machine) start() {
	m.server = Serve(m.keeper)
	var once sync.Once
	p := &lend.Plugin{Store: m.server, Kill: func(reason error) {
		once.Do(func() {
			m.kills.Add(1)
			m.mu.Lock()
			m.reasons = append(m.reasons, reason)
			m.mu.Unlock()
			m.dead <- struct{}{}
		})
	}}
	if err := m.dir.Adopt(context.Background(), p); err != nil {
		m.t.Errorf("adopt: %v", err)
	}
}

func (m *machine) supervise(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.dead:
		}
		m.dir.Orphan()
		if err := m.server.Stop(); err != nil {
			m.t.Errorf("stop: %v", err)
		}
		if !m.down.Load() {
			m.start()
		}
	}
}

// open opens a partition, which is made.
func (m *machine) open(id int) *Log {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	l, cut, err := m.dir.Open(ctx, part(id), lend.OpenOptions{Create: true, Epoch: 3, Settings: lend.Settings{SegmentBytes: 1 << 20}})
	if err != nil || cut != nil {
		m.t.Fatalf("open: %v, %+v", err, cut)
	}
	return l
}

// group makes one batch of a value.
func group(l *Log, value string) lend.Group {
	var b record.Builder
	b.Reset(nil)
	b.Append(&record.Record{Timestamp: 5, Value: []byte(value)})
	base := l.End()
	return lend.Group{Bytes: b.Finish(base, l.Epoch()), Base: base, Next: base + 1, MaxTimestamp: 5}
}

// put appends a value that has to be taken.
func put(t *testing.T, l *Log, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := l.Append(ctx, group(l, value)); err != nil {
		t.Fatalf("append %q: %v", value, err)
	}
}

// contents reads the whole log.
func contents(t *testing.T, l *Log) (values []string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := l.NewReader(ctx, l.Stats().LogStart)
	if err != nil {
		return nil, err
	}
	defer r.Idle()
	for {
		b, err := r.Next(ctx, l.End())
		if errors.Is(err, lend.ErrEnd) {
			return values, nil
		}
		if err != nil {
			return values, err
		}
		it := record.NewIterator(b)
		var one record.Record
		for {
			if _, ok := it.Next(&one); !ok {
				break
			}
			values = append(values, string(one.Value))
		}
	}
}

func wantContents(t *testing.T, l *Log, want ...string) {
	t.Helper()
	got, err := contents(t, l)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("the log holds %q, %v, want %q", got, err, want)
	}
}

// puppet is a plugin whose channels a test plays by hand.
type puppet struct {
	storage.Plugin // nil: what is not written here is not called
	play           func(conn net.Conn)
	tasks          sync.WaitGroup
}

func (p *puppet) Describe(context.Context) (storage.Description, error) {
	return storage.Description{Name: "puppet", Version: "1", Durability: "disk", Streams: true}, nil
}

func (p *puppet) channel() (storage.File, error) {
	lent, conn, err := pair()
	if err != nil {
		return nil, err
	}
	p.tasks.Go(func() {
		defer func() { _ = conn.Close() }()
		p.play(conn)
	})
	return lent, nil
}

func (p *puppet) Open(context.Context, storage.OpenRequest) (storage.Opened, error) {
	f, err := p.channel()
	return storage.Opened{Lease: storage.Lease{Epoch: 1, MaxTimestamp: -1, File: f}}, err
}

func (p *puppet) Locate(_ context.Context, r storage.LocateRequest) (storage.Extent, error) {
	f, err := p.channel()
	return storage.Extent{Segment: storage.Segment{Base: r.Offset, Next: r.Offset}, Offset: r.Offset, File: f}, err
}

// request reads one request off a channel.
func request(conn net.Conn) (storeframe.Request, []byte, error) {
	var head [storeframe.RequestBytes]byte
	if _, err := readFull(conn, head[:]); err != nil {
		return storeframe.Request{}, nil, err
	}
	r, err := storeframe.ParseRequest(head[:])
	if err != nil {
		return r, nil, fmt.Errorf("request: %w", err)
	}
	payload := make([]byte, r.Length)
	_, err = readFull(conn, payload)
	return r, payload, err
}
