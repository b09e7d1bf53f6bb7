package lend

import (
	"context"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/failpoint"
	"github.com/trunkline-mq/trunkline/plugins/storage"
)

// entriesMax bounds what a log keeps for a plugin that acknowledges nothing. The oldest go first: an index entry is a
// shortcut, and a store without it scans a little further.
const entriesMax = 1 << 16

// notes are the index entries of one log that no plugin has acknowledged. Guarded by Log.mu.
type notes struct {
	entries []storage.Entry
	sent    int   // entries[:sent] are in a call
	since   int64 // bytes written since the last entry
	pending bool  // the end has moved since the last note
	sending bool  // a call is under way
}

// indexInterval is Kafka's index.interval.bytes.
const indexInterval = 4096

// due reports whether a batch of n bytes gets an entry.
func (n *notes) due(bytes int64) bool {
	n.pending = true
	due := n.since > indexInterval
	if due {
		n.since = 0
	}
	n.since += bytes
	return due
}

func (n *notes) add(e storage.Entry) {
	if len(n.entries) == entriesMax {
		n.entries = append(n.entries[:0], n.entries[entriesMax/2:]...)
		n.sent = max(0, n.sent-entriesMax/2)
	}
	n.entries = append(n.entries, e)
}

// replay makes everything unacknowledged due again.
func (n *notes) replay() { n.sent, n.pending = 0, true }

// noteEvery is how long a written batch may stay unknown to the plugin.
const noteEvery = time.Second

// tick is how often the directory looks after its logs: fine enough for the shortest sync interval that makes sense.
const tick = 50 * time.Millisecond

// Run looks after the directory until ctx ends: it syncs logs whose interval is over, and, beside that, tells the plugin
// what was written and asks whether a full disk takes records again: a plugin that is slow delays no sync. Logs that are
// down are tried again. Notes that fail are repeated later: they carry nothing that recovery would not find by scanning.
func (d *Dir) Run(ctx context.Context) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(func() {
		every(ctx, noteEvery, func(time.Time) { d.noteAll(ctx, d.all()) })
	})
	tasks.Go(func() { d.healAll(ctx, &tasks) })
	every(ctx, tick, func(now time.Time) {
		for _, l := range d.all() {
			l.syncIfDue(now, tasks.Go)
		}
	})
	return nil
}

// every calls do, with a pause between two calls, until ctx ends.
func every(ctx context.Context, pause time.Duration, do func(now time.Time)) {
	t := time.NewTicker(pause)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			do(now)
		}
	}
}

func (d *Dir) all() []*Log {
	d.mu.Lock()
	defer d.mu.Unlock()
	logs := make([]*Log, 0, len(d.logs))
	for l := range d.logs {
		logs = append(logs, l)
	}
	return logs
}

func (d *Dir) noteAll(ctx context.Context, logs []*Log) {
	d.mu.Lock()
	p := d.plugin
	d.mu.Unlock()
	if p == nil {
		return
	}
	d.askRoom(ctx, p)
	for _, l := range logs {
		if !l.sendNotes(ctx, p) {
			return
		}
	}
}

// sendNotes reports false when p is of no more use.
func (l *Log) sendNotes(ctx context.Context, p *Plugin) bool {
	l.mu.Lock()
	if l.down != nil || !l.notes.pending || l.notes.sending {
		l.mu.Unlock()
		return true
	}
	n := storage.Note{
		Partition: l.part, Instance: l.dir.instance, Lease: l.lease, Position: l.synced.position, Next: l.synced.next,
	}
	for _, e := range l.notes.entries {
		if e.Last < n.Next {
			n.Entries = append(n.Entries, e)
		}
	}
	l.notes.sent = len(n.Entries)
	l.notes.pending, l.notes.sending = l.synced.next < l.confirmed, true
	l.mu.Unlock()
	failpoint.Hit("core.note.sending")
	err := p.Store.Note(ctx, n)
	failpoint.Hit("core.note.answered")
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notes.sending = false
	if err != nil {
		l.notes.replay()
		l.dir.log.Debug("note was not taken", "partition", l.part.String(), "err", err)
		return ctx.Err() == nil && l.dir.isPlugin(p)
	}
	if n.Lease == l.lease {
		l.notes.entries = append(l.notes.entries[:0], l.notes.entries[l.notes.sent:]...)
	}
	l.notes.sent = 0
	return true
}

func (d *Dir) isPlugin(p *Plugin) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.plugin == p
}
