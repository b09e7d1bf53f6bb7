package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/storeframe"
)

// windows counts what this process has of windows: mappings and descriptors.
func windows(t *testing.T) (mapped, open int) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.Contains(to, "trunkline window") {
			open++
		}
	}
	return strings.Count(string(maps), "trunkline window"), open
}

// wantWindows waits until that is what is left: a channel's two ends close one after the other.
func wantWindows(t *testing.T, mapped, open int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		m, o := windows(t)
		if m == mapped && o == open {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d windows are mapped and %d open, want %d and %d", m, o, mapped, open)
		}
	}
}

// pairing is a client with what serves it, and a log opened there.
type pairing struct {
	server *Server
	client *Client
	lease  storage.LeaseEpoch
	next   record.Offset
}

func newPairing(t *testing.T, impl storage.StreamPlugin) *pairing {
	t.Helper()
	p := &pairing{server: Serve(impl)}
	p.client = NewClient(p.server)
	t.Cleanup(func() {
		p.client.Hangup()
		if err := p.server.Stop(); err != nil {
			t.Error(err)
		}
		wantWindows(t, 0, 0)
	})
	p.open(t)
	return p
}

// open takes a lease, and so another channel.
func (p *pairing) open(t *testing.T) {
	t.Helper()
	o, err := p.client.Open(t.Context(), storage.OpenRequest{Partition: part(0), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	p.lease, p.next = o.Lease.Epoch, o.Lease.Next
}

// sized makes a group of one batch of that many bytes, with a content of its own.
func (p *pairing) sized(t *testing.T, size int) storage.AppendRequest {
	t.Helper()
	value := bytes.Repeat([]byte{byte(p.next), byte(size), 'x'}, size/3+1)
	var batch record.Batch
	for n := size - 76; len(batch) < size; n++ { // how many bytes a length takes depends on it
		var b record.Builder
		b.Reset(nil)
		b.Append(&record.Record{Timestamp: 5, Value: value[:n]})
		batch = b.Finish(p.next, 0)
	}
	if len(batch) != size {
		t.Fatalf("a batch of %d bytes, want %d", len(batch), size)
	}
	r := storage.AppendRequest{Partition: part(0), Lease: p.lease, Base: p.next, Next: p.next + 1, MaxTimestamp: 5, Bytes: batch}
	var err error
	if r.Sum, err = storeframe.Sum(r.Bytes); err != nil {
		t.Fatal(err)
	}
	return r
}

func (p *pairing) append(t *testing.T, r storage.AppendRequest) {
	t.Helper()
	if err := p.client.Append(t.Context(), r); err != nil {
		t.Fatalf("append of %d bytes: %v", len(r.Bytes), err)
	}
	p.next = r.Next
}

func (p *pairing) state() windowState {
	p.client.mu.Lock()
	defer p.client.mu.Unlock()
	w := &p.client.parts[part(0)].write.shared
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

func TestGroupsOfAllSizesArriveWhole(t *testing.T) {
	k := newKeeper()
	p := newPairing(t, k)
	sizes := []int{
		200, windowMin - 1, windowMin, windowMin + 1, 300, 64 << 10, windowBytes - 1, windowBytes, windowBytes + 1,
		keepMax + 1, 3 << 20, windowMin, 100, windowBytes, 70_000,
	}
	var want [][]byte
	for i, size := range sizes {
		r := p.sized(t, size)
		want = append(want, slices.Clone(r.Bytes))
		p.append(t, r)
		if got := p.state(); (got == windowTaken) != (i >= 2) {
			t.Errorf("after %d groups, of which the last has %d bytes, the window is in state %d", i+1, size, got)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	groups := k.logs[part(0)].groups
	if len(groups) != len(want) {
		t.Fatalf("%d groups arrived of %d", len(groups), len(want))
	}
	for i, g := range groups {
		if !bytes.Equal(g.Bytes, want[i]) {
			t.Errorf("group %d of %d bytes arrived as another of %d", i, len(want[i]), len(g.Bytes))
		}
	}
	wantWindows(t, 2, 0) // both ends map it, and need no descriptor any more
}

func TestALargeGroupWhoseAnswerIsLostIsThereOnce(t *testing.T) {
	k := newKeeper()
	m := newMachine(t, k)
	l := m.open(0)
	large := func(c string) string { return strings.Repeat(c, 100_000) }
	put(t, l, large("a"))
	put(t, l, large("b")) // placed
	var failed atomic.Int32
	fail := func(storage.AppendRequest) error {
		if failed.Add(1) == 2 {
			return errStore
		}
		return nil
	}
	k.mu.Lock()
	k.before, k.after = fail, fail // of four calls the second fails: after it was stored
	k.mu.Unlock()
	put(t, l, large("c"))
	put(t, l, large("d"))
	wantContents(t, l, large("a"), large("b"), large("c"), large("d"))
	if m.kills.Load() != 1 {
		t.Errorf("the store was replaced %d times", m.kills.Load())
	}
}

// TestAStoreThatIsLateStillSeesItsGroup: the core has given up, has opened again and goes on, while the store still reads.
func TestAStoreThatIsLateStillSeesItsGroup(t *testing.T) {
	k := newKeeper()
	p := newPairing(t, k)
	p.append(t, p.sized(t, windowMin)) // takes the window
	first := p.sized(t, windowMin)
	entered, leave := make(chan []byte), make(chan struct{})
	k.mu.Lock()
	k.before = func(r storage.AppendRequest) error {
		if bytes.Equal(r.Bytes, first.Bytes) {
			entered <- r.Bytes
			<-leave
		}
		return nil
	}
	k.mu.Unlock()
	failed := make(chan error, 1)
	go func() { failed <- p.client.Append(t.Context(), first) }()
	held := <-entered
	p.client.drop(part(0)) // as at the deadline
	if err := <-failed; !errors.Is(err, ErrBroken) {
		t.Errorf("append to a store that hangs: %v", err)
	}
	p.open(t)
	for range 3 {
		other := p.sized(t, windowMin+7)
		p.append(t, other)
	}
	if !bytes.Equal(held, first.Bytes) {
		t.Errorf("the group changed under the store")
	}
	close(leave)
}

func TestHangingUpBesideAppends(t *testing.T) {
	for range 20 {
		p := newPairing(t, newKeeper())
		p.append(t, p.sized(t, windowBytes))
		r := p.sized(t, windowBytes)
		failed := make(chan error, 1)
		begun := make(chan struct{})
		go func() {
			close(begun)
			for {
				if err := p.client.Append(t.Context(), r); err != nil { // the store knows the group, and takes it again
					failed <- err
					return
				}
			}
		}()
		<-begun
		p.client.Hangup()
		if err := <-failed; !errors.Is(err, ErrBroken) && !errors.Is(err, storage.ErrNotOpen) {
			t.Errorf("append on a channel that was hung up: %v", err)
		}
	}
}

// TestAStoreThatKnowsNoWindowsIsSentEverything: it reads the socket, drops the descriptor and says nothing of it.
func TestAStoreThatKnowsNoWindowsIsSentEverything(t *testing.T) {
	var groups atomic.Int32
	p := &puppet{play: func(conn net.Conn) {
		for {
			r, payload, err := request(conn)
			if err != nil {
				return
			}
			if sum, err := storeframe.Sum(payload); err == nil && sum == r.Sum && !r.Placed {
				groups.Add(1)
			}
			answer(conn, storeframe.Answer{Op: r.Op, Base: r.Base, Epoch: r.Epoch, Sum: r.Sum}, nil)
		}
	}}
	c := &pairing{client: NewClient(p)}
	defer p.tasks.Wait()
	defer c.client.Hangup()
	c.open(t)
	for range 3 {
		c.append(t, c.sized(t, 200_000))
	}
	if groups.Load() != 3 || c.state() != windowRefused {
		t.Errorf("%d groups of 3 arrived, the window is in state %d", groups.Load(), c.state())
	}
	wantWindows(t, 0, 0)
}

func TestAWindowThatWasNotOfferedCannotBeTaken(t *testing.T) {
	p := &puppet{play: func(conn net.Conn) {
		if r, _, err := request(conn); err == nil {
			answer(conn, storeframe.Answer{Op: r.Op, Window: true, Base: r.Base, Epoch: r.Epoch, Sum: r.Sum}, nil)
		}
	}}
	c := &pairing{client: NewClient(p)}
	defer p.tasks.Wait()
	defer c.client.Hangup()
	c.open(t)
	if err := c.client.Append(t.Context(), c.sized(t, 200)); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("append: %v", err)
	}
}

// served is the core's end of a channel to append through, played by hand, and what is at the other.
func served(t *testing.T) (*pairing, *channel) {
	t.Helper()
	p := newPairing(t, newKeeper())
	o, err := p.server.Open(t.Context(), storage.OpenRequest{Partition: part(0), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	p.lease = o.Lease.Epoch
	ch, err := dial(o.Lease.File)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ch.close)
	if err := ch.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return p, ch
}

// frame is what an append sends first.
func frame(r storage.AppendRequest, placed bool) storeframe.Request {
	return storeframe.Request{
		Op: storeframe.OpAppend, Length: len(r.Bytes), Placed: placed, Lease: uint64(r.Lease), Base: r.Base, Next: r.Next,
		Epoch: r.Epoch, Sum: r.Sum, MaxTimestamp: r.MaxTimestamp,
	}
}

// sealed makes memory of a size with seals.
func sealed(t *testing.T, size int64, seals int) int {
	t.Helper()
	fd, err := unix.MemfdCreate("trunkline window", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err == nil {
		err = unix.Ftruncate(fd, size)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestOnlyOneSealedWindowIsTaken(t *testing.T) {
	const fixed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	for name, c := range map[string]struct {
		offer func(t *testing.T) []int
		taken bool
	}{
		"a window":    {func(t *testing.T) []int { return []int{sealed(t, windowBytes, fixed)} }, true},
		"two windows": {func(t *testing.T) []int { return []int{sealed(t, windowBytes, fixed), sealed(t, windowBytes, fixed)} }, false},
		"more than there is room for": {func(t *testing.T) (fds []int) {
			for range 3 * descriptorsMax {
				fds = append(fds, sealed(t, windowBytes, fixed))
			}
			return fds
		}, false},
		"one that can shrink":   {func(t *testing.T) []int { return []int{sealed(t, windowBytes, unix.F_SEAL_GROW)} }, false},
		"one that is too small": {func(t *testing.T) []int { return []int{sealed(t, windowBytes-1, fixed)} }, false},
		"one that cannot be written to": {func(t *testing.T) []int {
			return []int{sealed(t, windowBytes, fixed|unix.F_SEAL_WRITE)}
		}, false},
		"a file": {func(t *testing.T) []int {
			fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			return []int{fd}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p, ch := served(t)
			r := p.sized(t, windowMin)
			f := frame(r, false)
			fds := c.offer(t)
			_, _, err := ch.conn.(*net.UnixConn).WriteMsgUnix(f.AppendTo(nil), unix.UnixRights(fds...), nil)
			for _, fd := range fds {
				err = errors.Join(err, unix.Close(fd))
			}
			if err == nil {
				_, err = ch.conn.Write(r.Bytes)
			}
			if err != nil {
				t.Fatal(err)
			}
			var head [storeframe.AnswerBytes]byte
			if _, err := io.ReadFull(ch.conn, head[:]); err != nil {
				t.Fatal(err)
			}
			a, err := storeframe.ParseAnswer(head[:])
			if err != nil || a.Status != storeframe.OK || a.Window != c.taken {
				t.Errorf("answered %+v, %v", a, err)
			}
			mapped := 0
			if c.taken {
				mapped = 1
			}
			wantWindows(t, mapped, 0)
		})
	}
}

func TestAGroupThatIsPlacedNowhereEndsItsChannelOnly(t *testing.T) {
	for name, c := range map[string]struct {
		window bool
		length int
	}{"no window": {false, windowMin}, "beyond the window": {true, windowBytes + 1}} {
		t.Run(name, func(t *testing.T) {
			p, ch := served(t)
			if c.window {
				r := p.sized(t, windowMin)
				if a, _, err := ch.ask(frame(r, false), r.Bytes, nil, patience); err != nil || !a.Window {
					t.Fatalf("answered %+v, %v", a, err)
				}
				p.next++
			}
			f := frame(p.sized(t, c.length), true)
			if _, err := ch.conn.Write(f.AppendTo(nil)); err != nil {
				t.Fatal(err)
			}
			if n, err := ch.conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("the channel goes on: %d, %v", n, err)
			}
			p.open(t)
			p.append(t, p.sized(t, windowMin))
		})
	}
}

// TestAGroupThatIsDamagedInItsWindowIsRefused: what lies there is checked as what is sent.
func TestAGroupThatIsDamagedInItsWindowIsRefused(t *testing.T) {
	k := newKeeper()
	p := newPairing(t, k)
	p.append(t, p.sized(t, windowMin))
	if p.state() != windowTaken {
		t.Fatal("there is no window")
	}
	r := p.sized(t, windowMin)
	r.Bytes[20] ^= 1 // of the header, which the sum covers
	if err := p.client.Append(t.Context(), r); !errors.Is(err, ErrFailed) {
		t.Errorf("append of a damaged group: %v", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := len(k.logs[part(0)].groups); n != 1 {
		t.Errorf("%d groups are there", n)
	}
}

// sink takes everything and keeps nothing.
type sink struct{ storage.StreamPlugin }

func (sink) Open(context.Context, storage.OpenRequest) (storage.Opened, error) {
	return storage.Opened{Lease: storage.Lease{Epoch: 1, MaxTimestamp: -1}}, nil
}

func (sink) Append(context.Context, storage.AppendRequest) error { return nil }

func TestAppendsAllocateNothing(t *testing.T) {
	for _, size := range []int{200, windowMin - 1, windowMin, windowBytes} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			p := newPairing(t, sink{})
			r := p.sized(t, size)
			if n := testing.AllocsPerRun(100, func() { p.append(t, r) }); n != 0 {
				t.Errorf("an append of %d bytes makes %v allocations, on both sides together", size, n)
			}
		})
	}
}
