package zookeeper

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

// mirror is the copy of all keys at one place of the log. The follower alone changes it.
type mirror struct {
	mu       sync.Mutex
	loaded   bool
	trouble  error // why it is not loaded, where that is known
	at       place
	revision metadata.Revision // of the newest commit that is in it
	turn     int64             // commits in a generation
	entries  map[string]metadata.Entry
	pending  map[string]*pending // commits of this store whose outcome is not known yet, by id
	changed  chan struct{}       // closed and replaced by each change
}

// pending is a commit of this store that is under way. All but txn is guarded by the mirror's mutex.
type pending struct {
	id       string
	txn      metadata.Txn
	seen     bool              // it is in the log
	revision metadata.Revision // then
	missed   bool              // part of the log was never read, and it may be there
}

func newMirror() *mirror {
	return &mirror{
		entries: make(map[string]metadata.Entry), pending: make(map[string]*pending), changed: make(chan struct{}),
	}
}

func (m *mirror) wakeLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// await waits until the mirror is loaded. It does not wait for what waiting does not mend.
func (m *mirror) await(ctx context.Context, l *link) error {
	for {
		m.mu.Lock()
		loaded, trouble, changed := m.loaded, m.trouble, m.changed
		m.mu.Unlock()
		switch {
		case trouble != nil:
			return trouble
		case loaded:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return l.unavailable(ctx)
		}
	}
}

// fail says why there is nothing to read.
func (m *mirror) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(m.trouble, ErrClosed) {
		return
	}
	m.loaded, m.trouble = false, err
	m.wakeLocked()
}

// content is all there is at one place.
type content struct {
	at       place
	revision metadata.Revision
	turn     int64
	entries  map[string]metadata.Entry
}

// load takes everything anew. What was pending may be in what was missed.
func (m *mirror) load(c content) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(m.trouble, ErrClosed) {
		return
	}
	m.loaded, m.trouble = true, nil
	m.at, m.revision, m.turn, m.entries = c.at, c.revision, c.turn, c.entries
	for _, p := range m.pending {
		p.missed = p.missed || !p.seen
	}
	m.wakeLocked()
}

// apply takes one change in; the place after it is to.
func (m *mirror) apply(c change, events []metadata.Event, revision metadata.Revision, to place) {
	m.mu.Lock()
	defer m.mu.Unlock()
	applyTo(m.entries, events)
	m.at, m.revision = to, revision
	if p := m.pending[c.ID]; p != nil {
		p.seen, p.revision = true, revision
	}
	m.wakeLocked()
}

func applyTo(entries map[string]metadata.Entry, events []metadata.Event) {
	for _, ev := range events {
		if ev.Deleted {
			delete(entries, ev.Key)
		} else {
			entries[ev.Key] = ev.Entry
		}
	}
}

// own is the value that a commit of this store wrote.
func (m *mirror) own(id, key string) ([]byte, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pending[id]; p != nil {
		for _, put := range p.txn.Puts {
			if put.Key == key {
				return slices.Clone(put.Value), true
			}
		}
	}
	return nil, false
}

func (m *mirror) begin(p *pending) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending[p.id] = p
}

func (m *mirror) end(p *pending) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pending, p.id)
}

func (m *mirror) outcome(p *pending) (seen bool, revision metadata.Revision, missed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.seen, p.revision, p.missed
}

func (m *mirror) place() place {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at
}

func (m *mirror) watch() (place, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at, m.changed
}

// list copies what is below prefix.
func (m *mirror) list(prefix string) metadata.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	snap := metadata.Snapshot{Revision: m.revision}
	for key, e := range m.entries {
		if strings.HasPrefix(key, prefix) {
			e.Value = slices.Clone(e.Value)
			snap.Entries = append(snap.Entries, e)
		}
	}
	slices.SortFunc(snap.Entries, func(a, b metadata.Entry) int { return cmp.Compare(a.Key, b.Key) })
	return snap
}

// owned returns the keys of sessions, without values.
func (m *mirror) owned() []metadata.Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []metadata.Entry
	for _, e := range m.entries {
		if e.Session != metadata.NoSession {
			e.Value = nil
			found = append(found, e)
		}
	}
	return found
}

// view is what planning a transaction has to know: the keys it touches, all as of one place.
type view struct {
	at       place
	revision metadata.Revision
	turn     int64
	entries  map[string]metadata.Entry // without values; only keys that exist
}

func (m *mirror) view(t metadata.Txn) view {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := view{at: m.at, revision: m.revision, turn: m.turn, entries: make(map[string]metadata.Entry)}
	look := func(key string) {
		if e, ok := m.entries[key]; ok {
			e.Value = nil
			v.entries[key] = e
		}
	}
	for _, g := range t.Guards {
		look(g.Key)
	}
	for _, p := range t.Puts {
		look(p.Key)
	}
	for _, key := range t.Deletes {
		look(key)
	}
	return v
}

func (m *mirror) isLoaded() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.loaded
}

// unload says that everything has to be read anew; until then calls wait.
func (m *mirror) unload() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loaded = false
}
