package lend

import (
	"context"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
)

// entriesMax bounds what a log keeps for a plugin that acknowledges nothing. The oldest go first: an index entry is a
// shortcut, and a store without it scans a little further.
const entriesMax = 4096

// notes are the index entries of one log that no plugin has acknowledged. Guarded by Log.mu.
type notes struct {
	entries []storage.Entry
	sent    int // entries[:sent] are in a call
}

func (n *notes) add(e storage.Entry) {
	if len(n.entries) == entriesMax {
		n.entries = append(n.entries[:0], n.entries[entriesMax/2:]...)
		n.sent = max(0, n.sent-entriesMax/2)
	}
	n.entries = append(n.entries, e)
}

// replay makes everything unacknowledged due again.
func (n *notes) replay() { n.sent = 0 }

// noteEvery is how long a written batch may stay unknown to the plugin.
const noteEvery = time.Second

// Run sends notes to the plugin until ctx ends. A note that fails is repeated later: notes carry nothing that recovery
// would not find by scanning.
func (d *Dir) Run(ctx context.Context) error {
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		d.mu.Lock()
		p := d.plugin
		logs := make([]*Log, 0, len(d.logs))
		for l := range d.logs {
			logs = append(logs, l)
		}
		d.mu.Unlock()
		if p == nil {
			continue
		}
		for _, l := range logs {
			if !l.sendNotes(ctx, p) {
				break
			}
		}
	}
}

// sendNotes reports false when p is of no more use.
func (l *Log) sendNotes(ctx context.Context, p *Plugin) bool {
	l.mu.Lock()
	if l.down != nil || len(l.notes.entries) == 0 {
		l.mu.Unlock()
		return true
	}
	active := l.segments[len(l.segments)-1]
	n := storage.Note{
		Partition: l.part, Instance: l.dir.instance, Lease: l.lease, Position: active.size, Next: active.next,
		Entries: append([]storage.Entry(nil), l.notes.entries...),
	}
	l.notes.sent = len(n.Entries)
	l.mu.Unlock()
	err := p.Store.Note(ctx, n)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.notes.replay()
		l.dir.log.Debug("note was not taken", "partition", l.part.String(), "err", err)
		return ctx.Err() == nil && l.dir.isPlugin(p)
	}
	l.notes.entries = append(l.notes.entries[:0], l.notes.entries[l.notes.sent:]...)
	l.notes.sent = 0
	return true
}

func (d *Dir) isPlugin(p *Plugin) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.plugin == p
}
