package storagetest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagerpc"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	storagepb "github.com/trunkline-mq/trunkline/protocol/pluginpb/storage/v1"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// liePrefix begins the kind of a store that lies about one partition, and is honest about the others.
const liePrefix = "liar:"

// lied is the partition that a liar lies about.
func lied() storage.Partition {
	p := storagetest.Part()
	p.ID = 9
	return p
}

// liar is a filelog that does not tell the truth.
type liar struct {
	*filelog.Store
	lie   string
	other storage.File // of an honest partition
}

func newLiar(kind, data string) (stoppable, error) {
	lie, ok := strings.CutPrefix(kind, liePrefix)
	if !ok {
		return nil, fmt.Errorf("no store %q", kind)
	}
	s, err := filelog.New(filelog.Options{Data: data})
	return &liar{Store: s, lie: lie}, err
}

// reopened is f's file under other flags.
func reopened(f storage.File, flags int) storage.File {
	file, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags, 0)
	if err != nil {
		panic(err)
	}
	_ = f.Close()
	return file
}

func (l *liar) Open(ctx context.Context, r storage.OpenRequest) (storage.Opened, error) {
	o, err := l.Store.Open(ctx, r)
	if err != nil {
		return o, err
	}
	if r.Partition != lied() {
		if l.other, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", o.Lease.File.Fd()), os.O_RDWR, 0); err != nil {
			return o, err
		}
		return o, nil
	}
	switch l.lie {
	case "a wrong offset":
		o.Lease.Next += 5
	case "a wrong position":
		o.Lease.Base, o.Lease.Next, o.Lease.Position, o.LogStart = 0, 7, 700, 0
	case "another partition":
		var st unix.Stat_t
		if err := unix.Fstat(int(l.other.Fd()), &st); err != nil {
			return o, err
		}
		_ = o.Lease.File.Close()
		o.Lease.File, o.Lease.Dev, o.Lease.Ino = l.other, st.Dev, st.Ino
		o.Lease.Position, o.Lease.Next = st.Size, 1
	case "a wrong count":
		o.Sealed = append(o.Sealed, storage.Segment{Base: 0, Next: 3, Size: 10})
	case "another inode":
		o.Lease.Ino++
	case "no descriptor":
		_ = o.Lease.File.Close()
		o.Lease.File = nil
	case "a descriptor for appending":
		o.Lease.File = reopened(o.Lease.File, os.O_RDWR|os.O_APPEND)
	case "a descriptor for reading":
		o.Lease.File = reopened(o.Lease.File, os.O_RDONLY)
	case "no regular file":
		_ = o.Lease.File.Close()
		o.Lease.File, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	return o, err
}

func (l *liar) Roll(ctx context.Context, r storage.RollRequest) (storage.Lease, error) {
	if r.Partition != lied() {
		return l.Store.Roll(ctx, r)
	}
	switch l.lie {
	case "a crash":
		os.Exit(7)
	case "a hang":
		<-make(chan struct{})
	case "a late answer":
		lease, err := l.Store.Roll(ctx, r)
		<-time.After(7 * time.Second) // the deadline is 5 s
		return lease, err
	}
	lease, err := l.Store.Roll(ctx, r)
	if l.lie == "a roll to elsewhere" {
		lease.Base, lease.Next = lease.Base+1, lease.Next+1
	}
	if l.lie == "a roll into the same file" && err == nil {
		lease.Epoch = r.Lease
	}
	return lease, err
}

func (l *liar) Locate(ctx context.Context, r storage.LocateRequest) (storage.Extent, error) {
	e, err := l.Store.Locate(ctx, r)
	if err != nil || r.Partition != lied() {
		return e, err
	}
	switch l.lie {
	case "an extent beyond the file":
		e.Size, e.Position = e.Size+1<<20, e.Size+1<<19
	case "an extent of another segment":
		e.Base, e.Next = e.Base+1, e.Next+1
		e.Offset = e.Base
	}
	return e, nil
}

// served is a child that a Dir has adopted.
type served struct {
	*child
	dead atomic.Bool
}

// adopt starts a child of a kind and hands it to d.
func adopt(t *testing.T, d *lend.Dir, kind, dir string) *served {
	t.Helper()
	s := &served{child: startChildOf(t, kind, dir)}
	p := &lend.Plugin{Store: s.store, Kill: func(error) { s.end(t) }}
	if err := d.Adopt(t.Context(), p); err != nil {
		t.Fatalf("adopt a store that is honest so far: %v", err)
	}
	t.Cleanup(func() {
		s.end(t)
		s.close(t)
	})
	return s
}

func (s *served) end(t *testing.T) {
	if !s.dead.Swap(true) {
		s.kill(t)
	}
}

// put appends one record.
func put(l *lend.Log, ctx context.Context, value string) error {
	base := l.End()
	b := storagetest.Batch(base, l.Epoch(), 1, value)
	return l.Append(ctx, lend.Group{Bytes: b, Base: base, Next: base + 1, MaxTimestamp: 1})
}

func openAt(t *testing.T, d *lend.Dir, p storage.Partition) (*lend.Log, error) {
	t.Helper()
	l, _, err := d.Open(t.Context(), p, lend.OpenOptions{Create: true, Epoch: 1, Settings: lend.Settings{SegmentBytes: 100}})
	return l, err
}

func values(t *testing.T, l *lend.Log) (all []string, err error) {
	t.Helper()
	r, err := l.NewReader(t.Context(), 0)
	if err != nil {
		return nil, err
	}
	for {
		b, err := r.Next(t.Context(), l.End())
		if errors.Is(err, lend.ErrEnd) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		it := record.NewIterator(b)
		var one record.Record
		for {
			if _, ok := it.Next(&one); !ok {
				break
			}
			all = append(all, string(one.Value))
		}
	}
}

// honest checks that another partition takes and gives records.
func honest(t *testing.T, l *lend.Log) {
	t.Helper()
	before := l.End()
	ctx, cancel := context.WithTimeout(t.Context(), storagetest.Patience)
	defer cancel()
	if err := put(l, ctx, fmt.Sprint(before)); err != nil {
		t.Errorf("another partition does not go on: %v", err)
	}
	got, err := values(t, l)
	if err != nil || len(got) != int(before)+1 {
		t.Errorf("another partition holds %q, %v", got, err)
	}
}

func TestLiesAtAnOpenStopThatPartition(t *testing.T) {
	for lie, want := range map[string]error{
		"a wrong offset": storagerpc.ErrBadAnswer, "a wrong position": lend.ErrLied, "another partition": lend.ErrLied,
		"a wrong count": storagerpc.ErrBadAnswer, "another inode": lend.ErrLied, "no descriptor": storagerpc.ErrBadAnswer,
		"a descriptor for appending": lend.ErrLied, "a descriptor for reading": lend.ErrLied, "no regular file": lend.ErrLied,
	} {
		t.Run(lie, func(t *testing.T) {
			d := lend.NewDir(lend.Options{Instance: "core"})
			defer func() { _ = d.Close() }()
			adopt(t, d, liePrefix+lie, t.TempDir())
			other, err := openAt(t, d, storagetest.Part())
			if err != nil {
				t.Fatal(err)
			}
			if err := put(other, t.Context(), "0"); err != nil {
				t.Fatal(err)
			}
			if _, err := openAt(t, d, lied()); !errors.Is(err, want) {
				t.Errorf("opened with %s: %v, want %v", lie, err, want)
			}
			honest(t, other)
			if err := d.Healthy(); err != nil {
				t.Errorf("the directory: %v", err)
			}
		})
	}
}

func TestLiesAtARoll(t *testing.T) {
	for _, lie := range []string{"a crash", "a hang", "a late answer", "a roll to elsewhere", "a roll into the same file"} {
		t.Run(lie, func(t *testing.T) {
			t.Parallel()
			d := lend.NewDir(lend.Options{Instance: "core"})
			defer func() { _ = d.Close() }()
			dir := t.TempDir()
			bad := adopt(t, d, liePrefix+lie, dir)
			other, err := openAt(t, d, storagetest.Part())
			if err != nil {
				t.Fatal(err)
			}
			l, err := openAt(t, d, lied())
			if err != nil {
				t.Fatal(err)
			}
			if err := put(l, t.Context(), "one"); err != nil {
				t.Fatal(err)
			}
			// The second record needs a roll. The plugin is killed for what it does, and there is no other yet.
			ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
			defer cancel()
			if err := put(l, ctx, "two"); !errors.Is(err, lend.ErrNoStore) {
				t.Errorf("append that needs a roll: %v", err)
			}
			if err := put(other, t.Context(), "0"); err != nil {
				t.Errorf("another partition needs no plugin: %v", err)
			}
			bad.end(t) // where it was only its connection that failed
			d.Orphan()
			adopt(t, d, "filelog", dir)
			if err := put(l, t.Context(), "two"); err != nil {
				t.Errorf("append with an honest successor: %v", err)
			}
			if got, err := values(t, l); err != nil || fmt.Sprint(got) != "[one two]" {
				t.Errorf("the log holds %q, %v", got, err)
			}
			honest(t, other)
		})
	}
}

func TestLiesAboutWhereThingsLie(t *testing.T) {
	for lie, named := range map[string]func(error) bool{
		"an extent beyond the file": func(err error) bool {
			var damage *lend.CorruptError
			return errors.As(err, &damage) || errors.Is(err, lend.ErrLied)
		},
		"an extent of another segment": func(err error) bool {
			return errors.Is(err, storagerpc.ErrBadAnswer) || errors.Is(err, lend.ErrLied)
		},
	} {
		t.Run(lie, func(t *testing.T) {
			dir := t.TempDir()
			first := lend.NewDir(lend.Options{Instance: "first"})
			good := adopt(t, first, "filelog", dir)
			l, err := openAt(t, first, lied())
			if err != nil {
				t.Fatal(err)
			}
			for range 4 {
				if err := put(l, t.Context(), "x"); err != nil {
					t.Fatal(err)
				}
			}
			_ = first.Close()
			good.end(t)

			d := lend.NewDir(lend.Options{Instance: "second"})
			defer func() { _ = d.Close() }()
			adopt(t, d, liePrefix+lie, dir)
			other, err := openAt(t, d, storagetest.Part())
			if err != nil {
				t.Fatal(err)
			}
			if l, err = openAt(t, d, lied()); err != nil {
				t.Fatal(err)
			}
			if got, err := values(t, l); !named(err) {
				t.Errorf("%s: read %q, %v", lie, got, err)
			}
			honest(t, other)
		})
	}
}

// twice is a server of the wire that answers an Open with two descriptors in one message.
type twice struct {
	storagepb.UnimplementedStorageServer
	sock *net.UnixConn
}

func (s twice) Open(_ *storagepb.OpenRequest, stream grpc.ServerStreamingServer[storagepb.OpenResponse]) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	fd := int(null.Fd())
	if _, _, err := s.sock.WriteMsgUnix(binary.BigEndian.AppendUint64(nil, 1), unix.UnixRights(fd, fd), nil); err != nil {
		return err
	}
	return stream.Send(&storagepb.OpenResponse{Step: &storagepb.OpenResponse_Opened{
		Opened: &storagepb.Opened{Lease: &storagepb.Lease{Epoch: 1, MaxTimestamp: -1, Lend: 1}},
	}})
}

func TestTwoDescriptorsAtOnceAreRefused(t *testing.T) {
	client := wire(t, func(s *grpc.Server, sock *net.UnixConn) { storagepb.RegisterStorageServer(s, twice{sock: sock}) })
	if o, err := client.Open(t.Context(), storagetest.Creating(storagetest.Part(), "a")); !errors.Is(err, storagerpc.ErrBadAnswer) {
		t.Errorf("opened with two descriptors: %+v, %v", o, err)
	}
}
