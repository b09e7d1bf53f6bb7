package stream

import (
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

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/storeframe"
)

func partitionID(id int) partition.ID { return partition.ID(id) }

func readFull(r io.Reader, p []byte) (int, error) { return io.ReadFull(r, p) }

var errStore = errors.New("the disk is odd")

func TestAGroupWhoseAnswerIsLostIsThereOnce(t *testing.T) {
	for name, where := range map[string]func(k *keeper, f func(storage.AppendRequest) error){
		"before it was stored": func(k *keeper, f func(storage.AppendRequest) error) { k.before = f },
		"after it was stored":  func(k *keeper, f func(storage.AppendRequest) error) { k.after = f },
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeeper()
			m := newMachine(t, k)
			l, other := m.open(0), m.open(1)
			put(t, l, "one")
			var failed atomic.Int32
			k.mu.Lock()
			where(k, func(r storage.AppendRequest) error {
				if r.Partition == part(0) && failed.Add(1) <= 3 {
					return errStore
				}
				return nil
			})
			k.mu.Unlock()
			put(t, l, "two")
			put(t, l, "three")
			put(t, other, "elsewhere")
			wantContents(t, l, "one", "two", "three")
			wantContents(t, other, "elsewhere")
			if m.kills.Load() != 3 {
				t.Errorf("the store was replaced %d times", m.kills.Load())
			}
			if s := l.Stats(); s.Confirmed != 3 || s.LogStart != 0 || s.Bytes == 0 || s.Down != nil {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

func TestAnOutcomeThatNobodyCanTellIsUnknownAndSettledLater(t *testing.T) {
	for name, stored := range map[string]bool{"it was stored": true, "it was not": false} {
		t.Run(name, func(t *testing.T) {
			k := newKeeper()
			m := newMachine(t, k)
			l := m.open(0)
			put(t, l, "one")
			m.down.Store(true) // there will be no successor
			fail := func(storage.AppendRequest) error { return errStore }
			k.mu.Lock()
			if stored {
				k.after = fail
			} else {
				k.before = fail
			}
			k.mu.Unlock()
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if err := l.Append(ctx, group(l, "two")); !errors.Is(err, lend.ErrUnknown) {
				t.Fatalf("append: %v", err)
			}
			short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if err := l.Append(short, group(l, "never")); !errors.Is(err, lend.ErrNoStore) {
				t.Errorf("append without a store: %v", err)
			}
			k.mu.Lock()
			k.before, k.after = nil, nil
			k.mu.Unlock()
			m.down.Store(false)
			m.dead <- struct{}{}
			want := []string{"one", "three"}
			if stored {
				want = []string{"one", "two", "three"}
			}
			// Whoever appends finds out where the log ends by asking it, as a partition does.
			deadline, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for l.Append(deadline, group(l, "three")) != nil {
				if deadline.Err() != nil {
					t.Fatal("the log never goes on")
				}
			}
			wantContents(t, l, want...)
		})
	}
}

func TestAFullStoreIsADefiniteFailure(t *testing.T) {
	k := newKeeper()
	m := newMachine(t, k)
	l := m.open(0)
	k.mu.Lock()
	k.before = func(storage.AppendRequest) error { return fmt.Errorf("no room: %w", storage.ErrFull) }
	k.mu.Unlock()
	var full *lend.FullError
	if err := l.Append(t.Context(), group(l, "one")); !errors.As(err, &full) {
		t.Errorf("append to a full store: %v", err)
	}
	k.mu.Lock()
	k.before = nil
	k.mu.Unlock()
	put(t, l, "two")
	wantContents(t, l, "two")
	if m.kills.Load() != 0 {
		t.Errorf("a full store was replaced")
	}
}

func TestAStoreThatLostRecordsStopsThatPartition(t *testing.T) {
	k := newKeeper()
	m := newMachine(t, k)
	l, other := m.open(0), m.open(1)
	put(t, l, "one")
	put(t, l, "two")
	k.mu.Lock()
	k.logs[part(0)].groups = k.logs[part(0)].groups[:1]
	k.mu.Unlock()
	m.dir.mu.Lock()
	up := m.dir.up
	m.dir.mu.Unlock()
	m.dir.replace(up, errStore)
	put(t, other, "elsewhere") // waits for the successor
	if err := l.Append(t.Context(), group(l, "three")); !errors.Is(err, lend.ErrLostRecords) {
		t.Errorf("append to a log that lost a record: %v", err)
	}
	if s := l.Stats(); !errors.Is(s.Down, lend.ErrLostRecords) {
		t.Errorf("stats %+v", s)
	}
}

// mortal is a plugin that ends when it is asked to open a log.
type mortal struct{ storage.Plugin }

func (mortal) Open(context.Context, storage.OpenRequest) (storage.Opened, error) {
	return storage.Opened{}, fmt.Errorf("%w: open", storage.ErrGone)
}

func TestAPluginThatDiesInAdoptionStopsNoLog(t *testing.T) {
	m := newMachine(t, newKeeper())
	l := m.open(0)
	put(t, l, "one")
	adopt := func(p storage.Plugin) error {
		return m.dir.Adopt(t.Context(), &lend.Plugin{Store: p, Kill: func(error) {}})
	}
	m.dir.Orphan()
	waiting := make(chan error, 1)
	m.started.Go(func() { waiting <- l.Append(t.Context(), group(l, "two")) })
	for range 3 {
		if err := adopt(mortal{m.server}); !errors.Is(err, storage.ErrGone) {
			t.Errorf("adopted a plugin that is gone: %v", err)
		}
		if s := l.Stats(); s.Down != nil {
			t.Errorf("stats %+v", s)
		}
	}
	if err := errors.Join(adopt(m.server), <-waiting); err != nil {
		t.Fatal(err)
	}
	put(t, l, "three")
	wantContents(t, l, "one", "two", "three")

	// A log that no plugin survives stops in the end, so that the others go on.
	m.dir.Orphan()
	for i := range openTries {
		if err := adopt(mortal{m.server}); (err == nil) != (i == openTries-1) {
			t.Fatalf("adoption %d: %v", i, err)
		}
	}
	if s := l.Stats(); !errors.Is(s.Down, storage.ErrGone) {
		t.Errorf("stats %+v", s)
	}
	m.dir.Orphan()
	if err := adopt(m.server); err != nil {
		t.Fatal(err)
	}
	put(t, l, "four")
	wantContents(t, l, "one", "two", "three", "four")
}

// TestAReaderDoesNotAskForTheSameAgain: a store that answers only what lies before the offset would say so for ever.
func TestAReaderDoesNotAskForTheSameAgain(t *testing.T) {
	k := newKeeper()
	m := newMachine(t, k)
	l := m.open(0)
	put(t, l, "one")
	put(t, l, "two")
	k.mu.Lock()
	first := slices.Clone(k.logs[part(0)].groups[0].Bytes)
	k.reading = func([]byte) ([]byte, error) { return first, nil }
	k.mu.Unlock()
	r, err := l.NewReader(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Idle()
	for range 2 { // and whoever tries again hears the same
		if _, err := r.Next(t.Context(), 2); !errors.Is(err, ErrBadAnswer) {
			t.Fatalf("read: %v", err)
		}
	}
	if _, err := l.Extent(t.Context(), 1, 2, 1<<20); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("extent: %v", err)
	}
	k.mu.Lock()
	k.reading = nil
	k.mu.Unlock()
	if b, err := r.Next(t.Context(), 2); err != nil || b.BaseOffset() != 1 {
		t.Errorf("a store that is well again: %v", err)
	}
}

func TestADamagedBatchIsReportedAndPassedOver(t *testing.T) {
	k := newKeeper()
	m := newMachine(t, k)
	l := m.open(0)
	for _, v := range []string{"one", "two", "three"} {
		put(t, l, v)
	}
	k.mu.Lock()
	g := k.logs[part(0)].groups
	g[1].Bytes[len(g[1].Bytes)-1] ^= 1
	k.mu.Unlock()
	r, err := l.NewReader(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Idle()
	var seen []record.Offset
	damaged := 0
	for {
		b, err := r.Next(t.Context(), 3)
		var damage *lend.CorruptError
		if errors.As(err, &damage) {
			if damage.Offset != 1 {
				t.Fatalf("damage at %d: %v", damage.Offset, err)
			}
			damaged++
			r.Skip(t.Context())
			continue
		}
		if errors.Is(err, lend.ErrEnd) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, b.BaseOffset())
	}
	if damaged != 1 || fmt.Sprint(seen) != "[0 2]" {
		t.Errorf("read %v, %d times damaged", seen, damaged)
	}
}

func TestExtentsHoldWhatWasAskedFor(t *testing.T) {
	m := newMachine(t, newKeeper())
	l := m.open(0)
	for i := range 10 {
		put(t, l, strings.Repeat("x", 100)+fmt.Sprint(i))
	}
	one := int64(len(group(l, strings.Repeat("x", 100)+"0").Bytes))
	for _, c := range []struct {
		off, end record.Offset
		limit    int64
		size     int64
	}{{0, 10, 1 << 20, 10 * one}, {3, 10, 1, one}, {3, 5, 1 << 20, 2 * one}, {9, 10, 0, one}} {
		e, err := l.Extent(t.Context(), c.off, c.end, c.limit)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		if base, size := e.Place(); base != c.off || size != c.size {
			t.Errorf("%+v: [%d, …) of %d bytes", c, base, size)
		}
		e.Release()
	}
	if _, err := l.Extent(t.Context(), 10, 10, 1); !errors.Is(err, lend.ErrEnd) {
		t.Errorf("at the end: %v", err)
	}
	if _, err := l.Extent(t.Context(), 4, 11, 1<<20); err != nil {
		t.Errorf("up to the end: %v", err)
	}
}

func TestAnExtentIsSentWhole(t *testing.T) {
	m := newMachine(t, newKeeper())
	l := m.open(0)
	put(t, l, strings.Repeat("y", 900_000)) // more than a socket takes at once
	e, err := l.Extent(t.Context(), 0, 1, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = peer.Close() }()
	sent := make(chan error, 1)
	m.started.Go(func() {
		err := e.SendTo(conn.(*net.TCPConn), func() error { return conn.SetWriteDeadline(time.Now().Add(patience)) })
		sent <- errors.Join(err, conn.Close())
	})
	got, err := io.ReadAll(peer)
	if err := errors.Join(err, <-sent); err != nil {
		t.Fatal(err)
	}
	if string(got) != string(e.bytes) {
		t.Errorf("the peer has %d bytes of %d", len(got), len(e.bytes))
	}
}

// answer writes an answer's header and payload.
func answer(conn net.Conn, a storeframe.Answer, payload []byte) {
	a.Length = len(payload)
	_, _ = conn.Write(append(a.AppendTo(nil), payload...)) // who is gone hears nothing
}

func TestAcknowledgementsThatCannotBeRight(t *testing.T) {
	ack := func(r storeframe.Request) storeframe.Answer {
		return storeframe.Answer{Op: r.Op, Base: r.Base, Epoch: r.Epoch, Sum: r.Sum}
	}
	for name, c := range map[string]struct {
		play func(conn net.Conn, r storeframe.Request)
		want error
	}{
		"another offset": {func(conn net.Conn, r storeframe.Request) { a := ack(r); a.Base++; answer(conn, a, nil) }, ErrBadAnswer},
		"another epoch":  {func(conn net.Conn, r storeframe.Request) { a := ack(r); a.Epoch++; answer(conn, a, nil) }, ErrBadAnswer},
		"another sum":    {func(conn net.Conn, r storeframe.Request) { a := ack(r); a.Sum++; answer(conn, a, nil) }, ErrBadAnswer},
		"of a read":      {func(conn net.Conn, r storeframe.Request) { a := ack(r); a.Op = storeframe.OpRead; answer(conn, a, nil) }, ErrBadAnswer},
		"with a payload": {func(conn net.Conn, r storeframe.Request) { answer(conn, ack(r), []byte("thanks")) }, ErrBadAnswer},
		"garbage":        {func(conn net.Conn, _ storeframe.Request) { _, _ = conn.Write([]byte(strings.Repeat("garbage ", 10))) }, ErrBadAnswer},
		"a failure of its own": {func(conn net.Conn, r storeframe.Request) {
			a := ack(r)
			a.Status = storeframe.Failed
			answer(conn, a, []byte("\x1b[31mred"))
		}, ErrFailed},
		"half an answer": {func(conn net.Conn, r storeframe.Request) { a := ack(r); _, _ = conn.Write(a.AppendTo(nil)[:9]) }, ErrBroken},
		"no answer":      {func(net.Conn, storeframe.Request) {}, ErrBroken},
		"none in time": {func(conn net.Conn, _ storeframe.Request) {
			_, _ = conn.Read(make([]byte, 1)) // until the other end gives up
		}, ErrBroken},
	} {
		t.Run(name, func(t *testing.T) {
			p := &puppet{play: func(conn net.Conn) {
				if r, _, err := request(conn); err == nil {
					c.play(conn, r)
				}
			}}
			client := NewClient(p)
			client.appendsWait = 500 * time.Millisecond
			defer p.tasks.Wait()
			defer client.Hangup()
			o, err := client.Open(t.Context(), storage.OpenRequest{Partition: part(0)})
			if err != nil {
				t.Fatal(err)
			}
			var b record.Builder
			b.Reset(nil)
			b.Append(&record.Record{Value: []byte("x")})
			r := storage.AppendRequest{Partition: part(0), Lease: o.Lease.Epoch, Next: 1, Bytes: b.Finish(0, 0)}
			err = client.Append(t.Context(), r)
			if !errors.Is(err, c.want) {
				t.Errorf("append: %v, want %v", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "\x1b") {
				t.Errorf("the store's words are not cleaned: %q", err.Error())
			}
		})
	}
}

func TestALogWhoseStoreLiesStopsAlone(t *testing.T) {
	k := newKeeper()
	m := newMachine(t, k)
	other := m.open(1)
	p := &puppet{play: func(conn net.Conn) {
		if r, _, err := request(conn); err == nil {
			answer(conn, storeframe.Answer{Op: r.Op, Base: r.Base + 7, Epoch: r.Epoch, Sum: r.Sum}, nil)
		}
	}}
	client := NewClient(p)
	defer p.tasks.Wait()
	defer client.Hangup()
	m.dir.mu.Lock()
	up := m.dir.up
	m.dir.mu.Unlock()
	l := m.open(0)
	honest := up.client
	if _, err := client.Open(t.Context(), storage.OpenRequest{Partition: part(0)}); err != nil {
		t.Fatal(err)
	}
	honest.mu.Lock()
	swapped := honest.parts[part(0)].write
	client.mu.Lock()
	honest.parts[part(0)].write = client.parts[part(0)].write // the channel now leads to the liar
	client.mu.Unlock()
	honest.mu.Unlock()
	defer swapped.close()
	if err := l.Append(t.Context(), group(l, "one")); !errors.Is(err, lend.ErrUnknown) || !errors.Is(err, ErrBadAnswer) {
		t.Errorf("append: %v", err)
	}
	if err := l.Append(t.Context(), group(l, "two")); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("append to a log that was stopped: %v", err)
	}
	put(t, other, "elsewhere")
	if m.kills.Load() != 0 {
		t.Errorf("the store was replaced for one partition's lie")
	}
}

func TestReadsThatCannotBeRight(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(batches []byte) ([]byte, error)
		want   func(error) bool
	}{
		"nothing":       {func([]byte) ([]byte, error) { return nil, nil }, func(err error) bool { return errors.Is(err, ErrFailed) }},
		"no batches":    {func([]byte) ([]byte, error) { return []byte(strings.Repeat("no batch ", 20)), nil }, isDamage},
		"half a batch":  {func(b []byte) ([]byte, error) { return b[:len(b)/2], nil }, isDamage},
		"another place": {func(b []byte) ([]byte, error) { record.Batch(b).SetBase(5); return b, nil }, isDamage},
		"a failure":     {func([]byte) ([]byte, error) { return nil, errStore }, func(err error) bool { return errors.Is(err, ErrFailed) }},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeeper()
			m := newMachine(t, k)
			l := m.open(0)
			put(t, l, "one")
			k.mu.Lock()
			k.reading = c.answer
			k.mu.Unlock()
			if got, err := contents(t, l); !c.want(err) {
				t.Errorf("read %q, %v", got, err)
			}
			if m.kills.Load() != 0 {
				t.Errorf("the store was replaced")
			}
			put(t, l, "two")
		})
	}
}

func isDamage(err error) bool {
	var damage *lend.CorruptError
	return errors.As(err, &damage)
}

func TestWhatIsLentHasToBeAChannel(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]storage.File{"nothing": nil, "a file": null} {
		if _, err := dial(f); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestASendersFrameThatIsMalformedEndsItsChannelOnly(t *testing.T) {
	k := newKeeper()
	s := Serve(k)
	defer func() { _ = s.Stop() }()
	o, err := s.Open(t.Context(), storage.OpenRequest{Partition: part(0), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	ch, err := dial(o.Lease.File)
	if err != nil {
		t.Fatal(err)
	}
	defer ch.close()
	if _, err := ch.conn.Write([]byte(strings.Repeat("!", storeframe.RequestBytes))); err != nil {
		t.Fatal(err)
	}
	if err := ch.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if n, err := ch.conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the channel goes on: %d, %v", n, err)
	}
	if _, err := s.Open(t.Context(), storage.OpenRequest{Partition: part(1), Create: true}); err != nil {
		t.Errorf("another partition: %v", err)
	}
}

func TestBytesUnderWayAreBounded(t *testing.T) {
	k := newKeeper()
	m := newMachine(t, k)
	l := m.open(0)
	if !m.dir.flight.TryAcquire(flightBytes) {
		t.Fatal("something is under way")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := l.Append(ctx, group(l, "one")); !errors.Is(err, lend.ErrNoStore) {
		t.Errorf("append beyond the bound: %v", err)
	}
	m.dir.flight.Release(flightBytes)
	put(t, l, "two")
	wantContents(t, l, "two")
}
