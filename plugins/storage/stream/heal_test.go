package stream

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
)

// refusing is a plugin that does not open logs, for a reason, as long as it has one.
type refusing struct {
	storage.Plugin
	why   atomic.Pointer[error]
	asked atomic.Int64
}

func (r *refusing) Open(ctx context.Context, q storage.OpenRequest) (storage.Opened, error) {
	r.asked.Add(1)
	if why := r.why.Load(); why != nil {
		return storage.Opened{}, *why
	}
	return r.Plugin.Open(ctx, q)
}

// refuse has a plugin adopted that refuses for that reason, and looks after the directory until the test ends.
func (m *machine) refuse(why error) (*refusing, <-chan error) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.dir.Run(ctx)
	}()
	m.t.Cleanup(func() { cancel(); <-done })
	m.dir.Orphan()
	r := &refusing{Plugin: m.server}
	r.why.Store(&why)
	killed := make(chan error, 8)
	if err := m.dir.Adopt(context.Background(), &lend.Plugin{Store: r, Kill: func(err error) { killed <- err }}); err != nil {
		m.t.Fatal(err)
	}
	return r, killed
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); <-time.After(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestALogThatWasRefusedInAdoptionIsTriedAgain(t *testing.T) {
	for name, why := range map[string]error{"an error": errors.New("the moon is full"), "missing": storage.ErrDataMissing} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, newKeeper())
			l := m.open(0)
			put(t, l, "one")
			r, killed := m.refuse(why)
			if err := l.Stats().Down; !errors.Is(err, why) {
				t.Fatalf("the log is down: %v", err)
			}
			asked := r.asked.Load()
			soon(t, "it is tried again", func() bool { return r.asked.Load() > asked })
			r.why.Store(nil)
			soon(t, "it is back", func() bool { return l.Stats().Down == nil })
			put(t, l, "two")
			wantContents(t, l, "one", "two")
			if len(killed) > 0 {
				t.Errorf("the plugin was ended: %v", <-killed)
			}
		})
	}
}

func TestAPluginThatDoesNotAnswerIsNotAskedTwice(t *testing.T) {
	m := newMachine(t, newKeeper())
	l := m.open(0)
	put(t, l, "one")
	r, killed := m.refuse(fmt.Errorf("%w: open", storage.ErrNoAnswer))
	if err := <-killed; !errors.Is(err, storage.ErrNoAnswer) || r.asked.Load() != 1 {
		t.Fatalf("ended for %v, asked %d times", err, r.asked.Load())
	}
	m.dir.Orphan()
	if err := m.dir.Adopt(context.Background(), &lend.Plugin{Store: m.server, Kill: func(error) {}}); err != nil {
		t.Fatal(err)
	}
	soon(t, "it is back", func() bool { return l.Stats().Down == nil })
	put(t, l, "two")
	wantContents(t, l, "one", "two")
}

// TestAStoreThatRefusesOneLogServesTheOthers: an answer, whatever it says, is no reason to replace who gave it.
func TestAStoreThatRefusesOneLogServesTheOthers(t *testing.T) {
	m := newMachine(t, newKeeper())
	_, killed := m.refuse(errors.New("the moon is full"))
	if _, _, err := m.dir.Open(t.Context(), part(7), lend.OpenOptions{Create: true}); err == nil || len(killed) > 0 {
		t.Errorf("%v, ended %d times", err, len(killed))
	}
}
