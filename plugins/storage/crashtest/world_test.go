package crashtest

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/crashfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// point is the machine as it was when a call had just changed something, and what was promised by then.
type point struct {
	step string
	call crashfs.Call
	disk *crashfs.FS
	book book
}

// world runs the script on one machine. What a step does goes by its methods: they write down in the book what may
// happen before a call is made, and what is certain after it was answered.
type world struct {
	t    *testing.T
	ctx  context.Context
	m    *machine
	boot int
	logs map[string]*lend.Log // by topic name
	made int                  // values so far

	mu     sync.Mutex // guards what follows, and the histories in book
	step   string
	book   map[string]*history // by topic name
	points []point
	old    book // of topics that are deleted, by name and id
}

// run makes a world, does the steps, and returns a point for every call that changed something.
func run(t *testing.T, o crashfs.Options, steps []step) (points []point, core, plugin int) {
	disk := crashfs.New(o)
	w := &world{t: t, logs: map[string]*lend.Log{}, book: map[string]*history{}, old: book{}}
	disk.Watch(w.watch)
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	w.ctx = ctx
	w.start(disk)
	for _, s := range steps {
		w.mu.Lock()
		w.step = s.name
		w.mu.Unlock()
		s.do(w)
		if t.Failed() {
			t.Fatalf("in the step %q", s.name)
		}
		core, plugin = core+w.count(w.m.core), plugin+w.count(w.m.plugin)
	}
	if err := w.m.end(); err != nil {
		t.Fatalf("at the end of the script: %v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.points, core, plugin
}

// count counts the changing calls of one side since the last time.
func (w *world) count(side *faultfs.FS) int {
	n := len(side.Calls(faultfs.Changing))
	side.Forget()
	return n
}

// watch takes down a point.
func (w *world) watch(c crashfs.Call, stopped *crashfs.FS) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := maps.Clone(w.old)
	for _, h := range w.book {
		b[h.name()] = *h
	}
	w.points = append(w.points, point{step: w.step, call: c, disk: stopped, book: b})
}

func (w *world) start(disk *crashfs.FS) {
	w.t.Helper()
	w.boot++
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	m, err := boot(ctx, disk, instance(w.boot))
	if err != nil {
		w.t.Fatalf("start: %v", err)
	}
	w.m = m
}

func instance(n int) string { return "core-" + string(rune('a'+n)) }

// change notes something in a topic's history.
func (w *world) change(topic string, note func(h *history)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	note(w.book[topic])
}

func (w *world) history(topic string) history {
	w.mu.Lock()
	defer w.mu.Unlock()
	return *w.book[topic]
}

// open opens a topic's log and judges what is in it.
func (w *world) open(topic string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	h := w.history(topic)
	l, cut, err := w.m.open(ctx, &h, func(context.Context) (record.Epoch, error) { return w.advance(topic), nil })
	if err != nil {
		w.t.Fatalf("open %s: %v", topic, err)
	}
	if cut != nil {
		w.t.Errorf("%s was cut without a crash: %+v", topic, *cut)
	}
	w.logs[topic] = l
	w.change(topic, func(h *history) {
		h.life = live
		h.settled(l.Stats().LogStart, l.End())
	})
	w.verify(topic)
}

// advance gives a topic a new leader epoch.
func (w *world) advance(topic string) (next record.Epoch) {
	w.change(topic, func(h *history) {
		h.epoch++
		next = h.epoch
	})
	return next
}

// verify reads a whole log and judges it.
func (w *world) verify(topic string) {
	w.t.Helper()
	h, l := w.history(topic), w.logs[topic]
	f := found{start: l.Stats().LogStart, end: l.End()}
	var err error
	if f.values, err = read(w.ctx, l, f.start, f.end); err != nil {
		w.t.Errorf("read %s: %v", topic, err)
	}
	for _, wrong := range h.judge(f) {
		w.t.Error(wrong)
	}
}

// create makes a topic of one partition.
func (w *world) create(topic string, s lend.Settings) {
	w.t.Helper()
	w.mu.Lock()
	w.book[topic] = &history{part: part(topic, len(w.old)+len(w.book)), settings: s, epoch: 1}
	w.mu.Unlock()
	w.open(topic)
}

// append writes one group: batches of records of that many bytes. It returns what Append answered.
func (w *world) append(topic string, batches ...[]int) error {
	w.t.Helper()
	l := w.logs[topic]
	var values [][]string
	var flat []string
	for _, sizes := range batches {
		var batch []string
		for _, n := range sizes {
			w.made++
			batch = append(batch, value(topic, w.made, n))
		}
		values, flat = append(values, batch), append(flat, batch...)
	}
	g := group(l, values)
	before := w.history(topic).end()
	if g.Base != before {
		w.t.Fatalf("%s ends at %d, its history at %d", topic, g.Base, before)
	}
	w.change(topic, func(h *history) {
		base := h.end()
		for _, batch := range values {
			h.bases = append(h.bases, base)
			base += record.Offset(len(batch))
		}
		h.values = append(h.values, flat...)
	})
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	err := l.Append(ctx, g)
	w.change(topic, func(h *history) {
		switch {
		case errors.Is(err, lend.ErrUnknown): // it may be there, until a recovery has decided
		case err != nil:
			h.cut(before)
			h.refused = append(h.refused, flat...)
		case h.batched():
			h.durable = h.end()
		}
	})
	return err
}

// put is append that has to succeed.
func (w *world) put(topic string, batches ...[]int) {
	w.t.Helper()
	if err := w.append(topic, batches...); err != nil {
		w.t.Fatalf("append to %s: %v", topic, err)
	}
}

// refuse is append that must fail with certainty, with a full disk.
func (w *world) refuse(topic string, batches ...[]int) {
	w.t.Helper()
	var full *lend.FullError
	if err := w.append(topic, batches...); !errors.As(err, &full) {
		w.t.Fatalf("append to %s on a full disk: %v", topic, err)
	}
}

// sync makes a log durable.
func (w *world) sync(topic string) {
	w.t.Helper()
	end := w.history(topic).end()
	if err := w.logs[topic].Sync(); err != nil {
		w.t.Fatalf("sync %s: %v", topic, err)
	}
	w.change(topic, func(h *history) { h.durable = end })
}

// alter changes a topic's settings, in metadata first, as the broker does.
func (w *world) alter(topic string, s lend.Settings) {
	w.t.Helper()
	w.change(topic, func(h *history) { h.settings = s })
	if err := w.logs[topic].Alter(s); err != nil {
		w.t.Fatalf("alter %s: %v", topic, err)
	}
	w.change(topic, func(h *history) {
		if h.batched() {
			h.durable = h.end()
		}
	})
}

// move runs a call that moves a log start, to limit at most.
func (w *world) move(topic string, limit record.Offset, call func(context.Context, *lend.Log) (record.Offset, error)) record.Offset {
	w.t.Helper()
	w.change(topic, func(h *history) { h.startMax = limit })
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	start, err := call(ctx, w.logs[topic])
	if err != nil {
		w.t.Fatalf("move the log start of %s: %v", topic, err)
	}
	w.change(topic, func(h *history) { h.start, h.startMax = start, start })
	w.verify(topic)
	return start
}

// trim moves a log start to an offset.
func (w *world) trim(topic string, to record.Offset) {
	w.t.Helper()
	start := w.move(topic, to, func(ctx context.Context, l *lend.Log) (record.Offset, error) { return l.Trim(ctx, to) })
	if start != to {
		w.t.Errorf("trimmed %s to %d, asked for %d", topic, start, to)
	}
}

// expire lets retention take what it may, and it has to be something.
func (w *world) expire(topic string, age time.Duration, bytes int64) {
	w.t.Helper()
	before, end := w.history(topic).start, w.history(topic).end()
	start := w.move(topic, end, func(ctx context.Context, l *lend.Log) (record.Offset, error) { return l.Expire(ctx, age, bytes, end) })
	if start <= before {
		w.t.Errorf("retention of %s took nothing: it starts at %d", topic, start)
	}
}

// truncate takes the last batches of a log off.
func (w *world) truncate(topic string, batches int) {
	w.t.Helper()
	h := w.history(topic)
	to := h.bases[len(h.bases)-batches]
	epoch := w.advance(topic)
	w.change(topic, func(h *history) { h.durable = min(h.durable, to) })
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	if err := w.logs[topic].Truncate(ctx, to, epoch); err != nil {
		w.t.Fatalf("truncate %s to %d: %v", topic, to, err)
	}
	w.change(topic, func(h *history) { h.settled(h.start, to) })
	w.verify(topic)
}

// delete removes a topic.
func (w *world) delete(topic string) {
	w.t.Helper()
	w.change(topic, func(h *history) { h.life = deleting })
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	if err := w.m.dir.Delete(ctx, w.history(topic).part); err != nil {
		w.t.Fatalf("delete %s: %v", topic, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.book[topic]
	h.life = deleted
	w.old[h.name()] = *h
	delete(w.book, topic)
	delete(w.logs, topic)
}

// pass lets time pass, so that background work is done that waits for it.
func (w *world) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// restartPlugin replaces the plugin; the core goes on with what it holds.
func (w *world) restartPlugin(orderly bool) {
	w.t.Helper()
	if orderly {
		if err := w.m.store.Stop(); err != nil {
			w.t.Errorf("stop: %v", err)
		}
		w.m.dir.Orphan()
	} else {
		w.m.killPlugin()
	}
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	if err := w.m.startPlugin(ctx); err != nil {
		w.t.Fatalf("restart: %v", err)
	}
	for topic, l := range w.logs {
		if down := l.Stats().Down; down != nil {
			w.t.Errorf("%s is down: %v", topic, down)
		}
	}
}

// recoverFence restarts the plugin of a fenced directory, and takes from every log what was not confirmed.
func (w *world) recoverFence() {
	w.t.Helper()
	select {
	case <-w.m.dir.Fenced():
	default:
		w.t.Fatal("not fenced")
	}
	w.restartPlugin(false)
	for topic, l := range w.logs {
		w.change(topic, func(h *history) {
			end := l.End()
			h.refused = append(h.refused, h.values[end:]...) // cut for good
			h.settled(h.start, end)
		})
		w.verify(topic)
	}
}

// restart ends core and plugin and starts both again: in order, or by killing them.
func (w *world) restart(orderly bool) {
	w.t.Helper()
	if orderly {
		for topic, l := range w.logs {
			end := w.history(topic).end()
			if err := l.Close(w.ctx); err != nil {
				w.t.Errorf("close %s: %v", topic, err)
			}
			w.change(topic, func(h *history) { h.durable = end })
		}
		if err := w.m.end(); err != nil {
			w.t.Errorf("end: %v", err)
		}
	} else {
		w.m.kill()
	}
	w.start(w.m.disk)
	for topic := range w.logs {
		if h := w.history(topic); !orderly && !h.batched() {
			w.advance(topic)
		}
		before := w.history(topic).end()
		w.open(topic)
		if end := w.logs[topic].End(); end != before {
			w.t.Errorf("%s ended at %d, and ends at %d after its processes were started again", topic, before, end)
		}
	}
}

// refusesMissing checks that a topic that is not there is not made by opening it.
func refusesMissing(err error) bool { return errors.Is(err, storage.ErrDataMissing) }
