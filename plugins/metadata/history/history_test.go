package history

import (
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHistoryIsBounded(t *testing.T) {
	for _, tc := range []struct {
		name    string
		commits int
		events  func(metadata.Revision) []metadata.Event
	}{
		{"by events", historyEventsMax + 100, func(r metadata.Revision) []metadata.Event {
			return []metadata.Event{{Entry: metadata.Entry{Key: "/a", Revision: r}}}
		}},
		{"by bytes", 40, func(r metadata.Revision) []metadata.Event {
			value := make([]byte, historyBytesMax/20)
			return []metadata.Event{{Entry: metadata.Entry{Key: "/a", Value: value, Revision: r}}, {Entry: metadata.Entry{Key: "/b", Revision: r}}}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := New(0)
			slow, err := h.Watch("/", 0)
			if err != nil {
				t.Fatal(err)
			}
			for r := range metadata.Revision(tc.commits) {
				h.Add(r+1, tc.events(r+1))
			}
			if len(h.events) > historyEventsMax || h.bytes > historyBytesMax {
				t.Errorf("%d events, %d bytes", len(h.events), h.bytes)
			}
			if h.floor == 0 || h.events[0].Revision != h.floor+1 || h.current != metadata.Revision(tc.commits) {
				t.Errorf("floor %d, first %d, current %d", h.floor, h.events[0].Revision, h.current)
			}
			if _, err := slow.Next(t.Context()); !errors.Is(err, metadata.ErrCompacted) {
				t.Errorf("a watcher that missed something is told %v", err)
			}
			w, err := h.Watch("/", h.floor)
			if err != nil {
				t.Fatal(err)
			}
			for next := h.floor + 1; next <= h.current; {
				events, err := w.Next(t.Context())
				if err != nil || events[0].Revision != next || len(events) > nextEventsMax+1 {
					t.Fatalf("%d events from %d on, %v; want from %d on", len(events), events[0].Revision, err, next)
				}
				next = events[len(events)-1].Revision + 1
			}
		})
	}
}

func TestHugeCommitStaysForThoseWhoWait(t *testing.T) {
	h := New(0)
	w, err := h.Watch("/", 0)
	if err != nil {
		t.Fatal(err)
	}
	h.Add(1, []metadata.Event{{Entry: metadata.Entry{Key: "/k", Value: make([]byte, 2*historyBytesMax), Revision: 1}}})
	if events, err := w.Next(t.Context()); err != nil || len(events) != 1 {
		t.Fatalf("%d events, %v", len(events), err)
	}
}

func event(key string, revision metadata.Revision) []metadata.Event {
	return []metadata.Event{{Entry: metadata.Entry{Key: key, Revision: revision}}}
}

func TestResetTellsWatchersToListAgain(t *testing.T) {
	h := New(5)
	behind, err := h.Watch("/", 5)
	if err != nil {
		t.Fatal(err)
	}
	h.Add(7, event("/a", 7))
	abreast, err := h.Watch("/", 7)
	if err != nil {
		t.Fatal(err)
	}
	h.Reset(9)
	for name, after := range map[string]metadata.Revision{"before the gap": 7, "in the future": 10} {
		if _, err := h.Watch("/", after); !errors.Is(err, metadata.ErrCompacted) {
			t.Errorf("watch %s: %v", name, err)
		}
	}
	for _, w := range []metadata.Watcher{behind, abreast} {
		if _, err := w.Next(t.Context()); !errors.Is(err, metadata.ErrCompacted) {
			t.Errorf("next: %v", err)
		}
	}
	w, err := h.Watch("/", 9)
	if err != nil {
		t.Fatal(err)
	}
	h.Add(12, event("/a", 12))
	if events, err := w.Next(t.Context()); err != nil || len(events) != 1 || events[0].Revision != 12 {
		t.Errorf("after the gap: %+v, %v", events, err)
	}
	h.Close()
	h.Close()
	if _, err := w.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := h.Watch("/", 12); !errors.Is(err, ErrClosed) {
		t.Errorf("watch after Close: %v", err)
	}
}
