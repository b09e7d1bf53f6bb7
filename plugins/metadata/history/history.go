// Package history is what happened lately in a metadata store, kept in memory for watchers: a help for implementations
// of the contract. The store calls Add with each commit once it is durable, in order of revisions, and Watch makes its
// watchers.
//
// It assumes that it is told of every commit, or of the gap (Reset). It stores nothing.
package history

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

// The history is bounded both ways. A watcher that reads at all stays far within it; one that does not lists again.
const (
	historyEventsMax = 16 << 10
	historyBytesMax  = 8 << 20
	// nextEventsMax bounds what one Next returns, to the end of the commit in which it is reached.
	nextEventsMax = 512
)

// ErrClosed says that the history or the watch was closed.
var ErrClosed = errors.New("metadata store or watch is closed")

// History is what happened lately. It is safe for concurrent use, but Add and Reset want one caller.
type History struct {
	mu     sync.Mutex
	events []metadata.Event // ascending by revision, keys ascending within one
	bytes  int              // of keys and values in events
	// floor is the newest revision whose events are no longer (all) here.
	// Invariant: floor < events[0].Revision, and everything in (floor, current] is in events.
	floor   metadata.Revision
	current metadata.Revision
	changed chan struct{} // closed and replaced by each change
	closed  bool
}

// New returns a history that begins after revision.
func New(revision metadata.Revision) *History {
	return &History{floor: revision, current: revision, changed: make(chan struct{})}
}

// Add takes the events of one commit, which is durable, and wakes watchers. Calls come in the order of revisions.
func (h *History) Add(revision metadata.Revision, events []metadata.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ev := range events {
		h.bytes += len(ev.Key) + len(ev.Value)
	}
	h.events = append(h.events, events...)
	h.current = revision
	h.trimLocked()
	h.wakeLocked()
}

// trimLocked drops whole commits from the front, but never the newest one: whoever waits gets it.
func (h *History) trimLocked() {
	drop := 0
	for (len(h.events)-drop > historyEventsMax || h.bytes > historyBytesMax) && h.events[drop].Revision < h.current {
		h.floor = h.events[drop].Revision
		for h.events[drop].Revision == h.floor {
			h.bytes -= len(h.events[drop].Key) + len(h.events[drop].Value)
			drop++
		}
	}
	if drop > 0 {
		h.events = slices.Delete(h.events, 0, drop)
	}
}

func (h *History) wakeLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// Reset begins again after revision, because commits before it are not known: who waits for one of them is told to list
// again.
func (h *History) Reset(revision metadata.Revision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events, h.bytes = nil, 0
	h.floor, h.current = revision, revision
	h.wakeLocked()
}

// Close ends all watches. It is safe to call twice.
func (h *History) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.closed = true
		h.wakeLocked()
	}
}

// Watch returns a watcher of what happens below prefix above after; ErrCompacted when that is not all known.
func (h *History) Watch(prefix string, after metadata.Revision) (metadata.Watcher, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, ErrClosed
	}
	if err := h.hasLocked(after); err != nil {
		return nil, err
	}
	return &watcher{history: h, prefix: prefix, after: after, done: make(chan struct{})}, nil
}

// hasLocked says whether everything above after is here. A revision that was never reached is of another store: that,
// too, is cured by listing again.
func (h *History) hasLocked(after metadata.Revision) error {
	if after < h.floor || after > h.current {
		return fmt.Errorf("%w: revision %d is not in [%d, %d]", metadata.ErrCompacted, after, h.floor, h.current)
	}
	return nil
}

// since returns events below prefix above after, and up to which revision they go; or a channel that is closed when
// there may be more.
func (h *History) since(prefix string, after metadata.Revision) ([]metadata.Event, metadata.Revision, <-chan struct{}, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, 0, nil, ErrClosed
	}
	if err := h.hasLocked(after); err != nil {
		return nil, 0, nil, err
	}
	first, _ := slices.BinarySearchFunc(h.events, after+1, func(e metadata.Event, r metadata.Revision) int {
		return int(e.Revision - r)
	})
	var found []metadata.Event
	for _, ev := range h.events[first:] {
		if len(found) >= nextEventsMax && ev.Revision != after {
			return found, after, nil, nil
		}
		after = ev.Revision
		if strings.HasPrefix(ev.Key, prefix) {
			ev.Value = slices.Clone(ev.Value) // the reader owns what it gets
			found = append(found, ev)
		}
	}
	return found, h.current, h.changed, nil
}

// watcher reads the history from a revision on.
type watcher struct {
	history *History
	prefix  string
	once    sync.Once
	done    chan struct{}

	mu    sync.Mutex
	after metadata.Revision // everything up to it was returned
}

var _ metadata.Watcher = (*watcher)(nil)

// Next returns what happened since the last call, waiting for it.
func (w *watcher) Next(ctx context.Context) ([]metadata.Event, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		events, changed, err := w.advance()
		if err != nil || len(events) > 0 {
			return events, err
		}
		select {
		case <-changed:
		case <-w.done:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (w *watcher) advance() ([]metadata.Event, <-chan struct{}, error) {
	select {
	case <-w.done:
		return nil, nil, ErrClosed
	default:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	events, upTo, changed, err := w.history.since(w.prefix, w.after)
	if err == nil {
		w.after = upTo
	}
	return events, changed, err
}

// Close ends the watch and wakes Next.
func (w *watcher) Close() error {
	w.once.Do(func() { close(w.done) })
	return nil
}
