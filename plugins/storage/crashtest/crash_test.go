// Package crashtest proves that a log survives the loss of the machine at every moment: core and plugin share one
// simulated disk in a scripted run, and after each call of either side that changes something the machine is crashed,
// booted and looked through.
//
// What a step of the script may do is in world_test.go, what has to hold afterwards in history_test.go. A failure names
// the point and the seed; -run Every -point N -seed S tries that one alone. The background work of a plugin may run in
// another order the next time, so a failing point is also told by its step and its call.
//
// Nothing here looks at what a running system does when calls fail: that is tested beside core and plugin.
package crashtest

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/crashfs"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

var (
	seedsFlag = flag.Int("seeds", 1, "random crashes at every point, beside those that leave nothing, everything, and lengths without bytes")
	pointFlag = flag.Int("point", -1, "crash at this point only")
	seedFlag  = flag.Int("seed", -1, "crash with this seed only")
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // thousands of short-lived machines over a large history of points
	debug.SetMemoryLimit(1 << 30)
	goleak.VerifyTestMain(m)
}

func TestEveryCallMayBeTheLast(t *testing.T) {
	var points []point
	var core, plugin int
	synctest.Test(t, func(t *testing.T) {
		points, core, plugin = run(t, crashfs.Options{Torn: true, Unordered: true}, script())
	})
	var crashes atomic.Int64
	t.Run("crash", func(t *testing.T) {
		workers := runtime.GOMAXPROCS(0)
		for worker := range workers {
			t.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				for i := worker; i < len(points); i += workers {
					if *pointFlag >= 0 && *pointFlag != i {
						continue
					}
					for _, seed := range seedsOf(i) {
						crashes.Add(1)
						for _, wrong := range crash(t, points[i], seed) {
							t.Errorf("point %d, seed %d, %q, after %s: %s", i, seed, points[i].step, points[i].call, wrong)
						}
					}
				}
			})
		}
	})
	t.Logf("%d steps, %d points (%d calls of the core, %d of the plugin), %d crashes", len(script()), len(points), core, plugin, crashes.Load())
}

// TestALostSyncIsNoticed lets the disk lie, one kind of sync at a time: each has to be one that something depends on.
func TestALostSyncIsNoticed(t *testing.T) {
	in := func(dir string) func(string) bool {
		return func(name string) bool { return filepath.Dir(name) == filepath.Join(data, dir) }
	}
	for _, tc := range []struct {
		name string
		op   string
		on   func(path string) bool
	}{
		{"of segments", "sync", func(name string) bool { return filepath.Ext(name) == kafkalog.LogSuffix }},
		{"of a partition's directory", "syncdir", in("logs")},
		{"of the directory of partitions", "syncdir", func(name string) bool { return name == filepath.Join(data, "logs") }},
		{"of checkpoints", "sync", in("logs")},
		{"of what is built", "syncdir", in("tmp")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			lie := func(c crashfs.Call) bool { return c.Op == tc.op && tc.on(c.Path) }
			var points []point
			synctest.Test(t, func(t *testing.T) { points, _, _ = run(t, crashfs.Options{Unordered: true, Lie: lie}, script()) })
			for i, p := range points {
				for _, seed := range []uint64{crashfs.Nothing, crashfs.Lengths, crashfs.Random + uint64(i)} {
					if wrong := crash(t, p, seed); len(wrong) > 0 {
						t.Logf("point %d, seed %d, after %s: %s", i, seed, p.call, wrong[0])
						return
					}
				}
			}
			t.Errorf("nothing was missing after %d points", len(points))
		})
	}
}

// seedsOf are the seeds for a point: every point has random ones of its own.
func seedsOf(point int) []uint64 {
	if *seedFlag >= 0 {
		return []uint64{uint64(*seedFlag)}
	}
	seeds := []uint64{crashfs.Nothing, crashfs.Everything, crashfs.Lengths}
	if raceDetector {
		seeds = seeds[point%3 : point%3+1] // they take turns: the detector makes each several times slower
	}
	for n := range *seedsFlag {
		seeds = append(seeds, crashfs.Random+uint64(point**seedsFlag+n))
	}
	return seeds
}

// crash boots the machine after the loss, looks through all that is there, and says what is wrong.
func crash(t *testing.T, p point, seed uint64) []string {
	c := &checker{disk: p.disk.Crash(seed), book: maps.Clone(p.book), boots: 1}
	synctest.Test(t, func(*testing.T) {
		if seed >= crashfs.Random {
			// The machine is lost once more, while it recovers: somewhere in the first calls, where most of it happens.
			c.disk.StopAfter(int(seed % 60))
			c.tryRecovery()
			c.disk = c.disk.Crash(seed / 60)
		}
		c.check()
	})
	return c.wrong
}

// checker is what looks through a crashed machine.
type checker struct {
	disk  *crashfs.FS
	book  book
	boots record.Epoch // since the crash
	wrong []string
}

func (c *checker) fail(format string, args ...any) {
	c.wrong = append(c.wrong, fmt.Sprintf(format, args...))
}

// history is that of a topic, as metadata tells it at this boot: what was not synced by batch gets a new epoch.
func (c *checker) history(h history) history {
	if !h.batched() {
		h.epoch += c.boots
	}
	return h
}

// tryRecovery begins what check does, on a machine that stops meanwhile.
func (c *checker) tryRecovery() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	defer func() { c.boots++ }()
	m, err := boot(ctx, c.disk, "recovery")
	if err != nil {
		return
	}
	for _, h := range c.book {
		h = c.history(h)
		switch h.life {
		case deleting:
			_ = m.dir.Delete(ctx, h.part)
		case creating, live:
			_, _, _ = m.open(ctx, &h, nil)
		}
	}
	m.kill()
}

// check boots and judges, appends, and boots once more in order.
func (c *checker) check() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := boot(ctx, c.disk, "after")
	if err != nil {
		c.fail("boot: %v", err)
		return
	}
	for id, h := range c.book {
		h = c.history(h)
		switch h.life {
		case deleting:
			if err := m.dir.Delete(ctx, h.part); err != nil {
				c.fail("delete %s: %v", id, err)
			}
			if _, _, err := m.dir.Open(ctx, h.part, lend.OpenOptions{Epoch: h.epoch, Settings: h.settings}); !refusesMissing(err) {
				c.fail("open %s, which was deleted: %v", id, err)
			}
			h.life = deleted
			c.book[id] = h
		case creating, live:
			h = c.recover(ctx, m, h)
			c.book[id] = h
		}
	}
	c.onlyThose()
	if m.killed.Load() {
		c.fail("the core gave the plugin up")
	}
	if err := m.end(); err != nil {
		c.fail("end: %v", err)
	}
	c.again(ctx)
}

// recover opens one log, judges it, and appends to it.
func (c *checker) recover(ctx context.Context, m *machine, h history) history {
	before, err := segments(c.disk, h.part)
	if err != nil {
		c.fail("list %s: %v", h.name(), err)
	}
	l, cut, err := m.open(ctx, &h, nil)
	if err != nil {
		c.fail("open %s: %v", h.name(), err)
		return h
	}
	f := found{start: l.Stats().LogStart, end: l.End(), cut: cut, savedBytes: -1}
	if f.values, err = read(ctx, l, f.start, f.end); err != nil {
		c.fail("read %s: %v", h.name(), err)
	}
	c.measure(h.part, before, &f)
	for _, wrong := range h.judge(f) {
		c.fail("%s", wrong)
	}
	if len(c.wrong) > 0 {
		return h
	}
	h.life = live
	h.settled(f.start, f.end)
	for n := range 2 {
		values := []string{value("after", n, 300), value("after", n+2, 10)}
		if err := l.Append(ctx, group(l, [][]string{values})); err != nil {
			c.fail("append to %s: %v", h.name(), err)
			return h
		}
		h.values = append(h.values, values...)
	}
	if err := l.Close(ctx); err != nil {
		c.fail("close %s: %v", h.name(), err)
	}
	h.durable = h.end()
	return h
}

// measure adds up what recovery took off the end of a log, and what it saved of that.
func (c *checker) measure(p storage.Partition, before map[record.Offset]int64, f *found) {
	after, err := segments(c.disk, p)
	if err != nil {
		c.fail("list %s: %v", p, err)
	}
	first := slices.Min(slices.Collect(maps.Keys(after)))
	for base, size := range before {
		if base >= first { // what lies below was trimmed
			f.bytesBefore += size
		}
	}
	for _, size := range after {
		f.bytesAfter += size
	}
	if f.cut != nil && f.cut.SavedAs != "" {
		if info, err := c.disk.Stat(filepath.Join(data, "logs", p.String(), f.cut.SavedAs)); err == nil {
			f.savedBytes = info.Size
		}
	}
}

// again starts in order: everything is as it was left.
func (c *checker) again(ctx context.Context) {
	if len(c.wrong) > 0 {
		return
	}
	c.boots++
	m, err := boot(ctx, c.disk, "again")
	if err != nil {
		c.fail("second boot: %v", err)
		return
	}
	for _, h := range c.book {
		if h.life != live {
			continue
		}
		h = c.history(h)
		l, cut, err := m.open(ctx, &h, nil)
		if err != nil {
			c.fail("open %s again: %v", h.name(), err)
			continue
		}
		f := found{start: l.Stats().LogStart, end: l.End(), cut: cut}
		if f.values, err = read(ctx, l, f.start, f.end); err != nil {
			c.fail("read %s again: %v", h.name(), err)
		}
		for _, wrong := range h.judge(f) {
			c.fail("again: %s", wrong)
		}
	}
	if err := m.end(); err != nil {
		c.fail("second end: %v", err)
	}
}

// onlyThose checks that nothing is under logs/ but what metadata names, and that nothing was set aside.
func (c *checker) onlyThose() {
	var want []string
	for _, h := range c.book {
		if h.life == live || h.life == creating {
			want = append(want, h.part.TopicID)
		}
	}
	ids, err := topicIDs(c.disk)
	if err != nil {
		c.fail("list logs: %v", err)
	}
	for _, id := range ids {
		if !strings.Contains(strings.Join(want, " "), id) {
			c.fail("a directory of topic id %s is there, of which metadata does not know", id)
		}
	}
	if len(ids) != len(want) {
		c.fail("directories of %d topics, metadata knows of %d", len(ids), len(want))
	}
	if names, err := quarantined(c.disk); err != nil || names != "" {
		c.fail("quarantined: %s, %v", names, err)
	}
}
