package lend_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
)

// reluctant is a store that answers opens as it is told.
type reluctant struct {
	*filelog.Store
	opens atomic.Int64
	mu    sync.Mutex
	says  func(storage.OpenRequest) error
}

func (r *reluctant) will(says func(storage.OpenRequest) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.says = says
}

func (r *reluctant) Open(ctx context.Context, q storage.OpenRequest) (storage.Opened, error) {
	r.opens.Add(1)
	r.mu.Lock()
	says := r.says
	r.mu.Unlock()
	if says != nil {
		if err := says(q); err != nil {
			return storage.Opened{}, err
		}
	}
	return r.Store.Open(ctx, q)
}

// always answers so.
func always(err error) func(storage.OpenRequest) error {
	return func(storage.OpenRequest) error { return err }
}

// reluctantStore makes a successor adopted that answers so, and returns it with a channel on which it is told that it is
// to end.
func reluctantStore(b *bench, says func(storage.OpenRequest) error) (*reluctant, <-chan error) {
	b.t.Helper()
	b.dir.Orphan()
	r := &reluctant{Store: b.freshStore(), says: says}
	killed := make(chan error, 16)
	if err := b.dir.Adopt(context.Background(), &lend.Plugin{Store: r, Kill: func(err error) { killed <- err }}); err != nil {
		b.t.Fatal(err)
	}
	return r, killed
}

func upAgain(t *testing.T, l *lend.Log) {
	t.Helper()
	eventually(t, "the log is back", func() bool { return l.Stats().Down == nil })
}

func TestALogThatHadNoAnswerInReadoptionKeepsWhatItHolds(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 1<<20)
	mustAdd(t, l, "a")
	late := fmt.Errorf("%w: open", storage.ErrNoAnswer)
	r, killed := reluctantStore(b, always(late))
	if err := l.Stats().Down; !errors.Is(err, storage.ErrNoAnswer) {
		t.Fatalf("the log is down: %v", err)
	}
	if err := add(l, "refused"); !errors.Is(err, storage.ErrNoAnswer) {
		t.Errorf("append: %v", err)
	}
	// The call may be under way yet: the plugin is ended, and not asked twice.
	if err := <-killed; !errors.Is(err, storage.ErrNoAnswer) {
		t.Errorf("killed for %v", err)
	}
	if n := r.opens.Load(); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
	// The successor's adoption does not wait for it; then it is asked with what is held.
	var held atomic.Bool
	_, again := reluctantStore(b, func(q storage.OpenRequest) error {
		held.Store(q.Held != nil)
		return nil
	})
	upAgain(t, l)
	if !held.Load() {
		t.Error("it was recovered, and not adopted")
	}
	mustAdd(t, l, "b")
	want(t, read(t, l, 0), "a", "b")
	if len(again) > 0 {
		t.Errorf("its successor was ended: %v", <-again)
	}
}

func TestALogThatWasRefusedInReadoptionIsTriedAgain(t *testing.T) {
	for name, refusal := range map[string]error{
		"an error": errors.New("the moon is full"), "full": storage.ErrFull, "set aside": storage.ErrQuarantined, "missing": storage.ErrDataMissing,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			l := b.open(true, 1<<20)
			mustAdd(t, l, "a")
			r, killed := reluctantStore(b, always(refusal))
			if err := l.Stats().Down; !errors.Is(err, refusal) {
				t.Fatalf("the log is down: %v", err)
			}
			asked := r.opens.Load()
			eventually(t, "it is tried again", func() bool { return r.opens.Load() > asked })
			if l.Stats().Down == nil {
				t.Error("the log is up")
			}
			r.will(nil)
			upAgain(t, l)
			mustAdd(t, l, "b")
			want(t, read(t, l, 0), "a", "b")
			if len(killed) > 0 {
				t.Errorf("the plugin was ended: %v", <-killed)
			}
		})
	}
}

// TestWhatTheStoreDeniesIsNotAdopted: neither by trying again, nor by another plugin.
func TestWhatTheStoreDeniesIsNotAdopted(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 1<<20)
	mustAdd(t, l, "a")
	b.end() // the file is another one, of the same length
	path := filepath.Join(b.data, "logs", "t-0", "00000000000000000000.log")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(path+".new", text, 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	b.runDir()
	for range 3 {
		r, _ := reluctantStore(b, nil)
		asked := r.opens.Load()
		other := part
		other.ID = 1
		o, _, err := b.dir.Open(context.Background(), other, lend.OpenOptions{Create: true, Settings: lend.Settings{SegmentBytes: 1 << 20}})
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := l.Stats().Down; !errors.Is(err, storage.ErrHeldMismatch) || asked > 1 {
			t.Fatalf("asked %d times, the log is down: %v", asked, err)
		}
	}
}

func TestAPluginIsNotAskedAgainForWhatItLiedAbout(t *testing.T) {
	b := newBench(t)
	open := func() error {
		l, _, err := b.dir.Open(context.Background(), part, lend.OpenOptions{Create: true, Settings: lend.Settings{SegmentBytes: 1 << 20}})
		if err == nil {
			mustAdd(t, l, "a")
		}
		return err
	}
	r, killed := reluctantStore(b, always(fmt.Errorf("%w: a lease of nothing", storage.ErrBadAnswer)))
	for range 3 {
		if err := open(); !errors.Is(err, storage.ErrBadAnswer) {
			t.Fatal(err)
		}
	}
	if n := r.opens.Load(); n != 1 || len(killed) > 0 {
		t.Errorf("it was asked %d times, and ended %d times", n, len(killed))
	}
	reluctantStore(b, nil)
	if err := open(); err != nil {
		t.Error(err)
	}
}

func TestAPluginThatHoldsWhatNobodyKnowsOfIsEnded(t *testing.T) {
	b := newBench(t)
	open := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, _, err := b.dir.Open(ctx, part, lend.OpenOptions{Create: true, Wait: 1, Settings: lend.Settings{SegmentBytes: 1 << 20}})
		return err
	}
	r, killed := reluctantStore(b, nil)
	r.will(func(q storage.OpenRequest) error { // it is carried out, and the answer lost
		o, err := r.Store.Open(context.Background(), q)
		if err == nil {
			_ = o.Lease.File.Close()
			err = fmt.Errorf("%w: open", storage.ErrNoAnswer)
		}
		return err
	})
	if err := open(); !errors.Is(err, storage.ErrNoAnswer) {
		t.Fatal(err)
	}
	if err := open(); !errors.Is(err, lend.ErrNoStore) || len(killed) != 1 {
		t.Fatalf("%v, ended %d times", err, len(killed))
	}
	if err := open(); !errors.Is(err, lend.ErrNoStore) || len(killed) != 1 {
		t.Fatalf("%v, ended %d times", err, len(killed))
	}
	reluctantStore(b, nil)
	if err := open(); err != nil {
		t.Error(err)
	}
}

func TestADeletionWaitsForNoOpenThatHadNoAnswer(t *testing.T) {
	b := newBench(t)
	r, killed := reluctantStore(b, always(fmt.Errorf("%w: open", storage.ErrNoAnswer)))
	if _, _, err := b.dir.Open(context.Background(), part, lend.OpenOptions{Create: true}); !errors.Is(err, storage.ErrNoAnswer) {
		t.Fatal(err)
	}
	deleted := make(chan error, 1)
	go func() { deleted <- b.dir.Delete(context.Background(), part) }()
	<-killed
	if r.opens.Load() != 1 {
		t.Error("it was asked again")
	}
	reluctantStore(b, nil)
	if err := <-deleted; err != nil {
		t.Error(err)
	}
}

// TestASegmentThatIsSaidToBeEndlessIsDamage: whatever a store says of a segment's size, what is read is bounded by the
// file.
func TestASegmentThatIsSaidToBeEndlessIsDamage(t *testing.T) {
	b := newBench(t)
	l := b.open(true, 200)
	for i := range 4 {
		mustAdd(t, l, fmt.Sprintf("v%d", i))
	}
	if err := l.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	s := liar{Plugin: b.freshStore(), lie: func(o *storage.Opened) { o.Sealed[0].Size = math.MaxInt64 }}
	b.dir.Orphan()
	if err := b.dir.Adopt(context.Background(), &lend.Plugin{Store: s, Kill: func(error) {}}); err != nil {
		t.Fatal(err)
	}
	l = b.open(false, 200)
	if n := l.Stats().Segments; n < 2 {
		t.Fatalf("%d segments", n)
	}
	f, err := os.OpenFile(filepath.Join(b.data, "logs", "t-0", "00000000000000000000.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("torn"); errors.Join(err, f.Close()) != nil {
		t.Fatal(err)
	}
	r, err := l.NewReader(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for {
		_, err = r.Next(context.Background(), l.End())
		if err != nil {
			break
		}
	}
	var damage *lend.CorruptError
	if !errors.As(err, &damage) {
		t.Errorf("got %v", err)
	}
}
