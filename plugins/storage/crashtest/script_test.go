package crashtest

import (
	"errors"
	"syscall"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/faultfs"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
)

// step is a piece of the script.
type step struct {
	name string
	do   func(w *world)
}

// segmentBytes is small, so that a few groups fill a segment.
const segmentBytesMax = 1800

var (
	batch = lend.Settings{SegmentBytes: segmentBytesMax}
	never = lend.Settings{SegmentBytes: segmentBytesMax, Sync: lend.Sync{Mode: lend.SyncNever}}
	often = lend.Settings{SegmentBytes: segmentBytesMax, Sync: lend.Sync{Mode: lend.SyncInterval, Interval: 200 * time.Millisecond}}
)

// some are groups that differ in size: below a sector, over several, of several batches; three of them do not fit into
// one segment.
var some = [][][]int{{{40}}, {{300, 20}, {10}}, {{700}}, {{1}, {2}, {900, 3}}, {{500, 500}}, {{120}}}

// fill appends some groups to both topics.
func fill(w *world) {
	for _, g := range some {
		w.put("safe", g...)
		w.put("lazy", g...)
	}
}

// script is what happens between the first start and the last end.
func script() []step {
	return []step{
		{"create two topics", func(w *world) {
			w.create("safe", batch)
			w.create("lazy", never)
		}},
		{"append, with rolls", fill},
		{"notes, indexes, checkpoints", func(w *world) { w.pass(3 * time.Second) }},
		{"sync", func(w *world) { w.sync("lazy") }},
		{"the plugin is killed", func(w *world) {
			w.put("safe", []int{60})
			w.put("lazy", []int{60})
			w.restartPlugin(false)
		}},
		{"append after re-adoption", fill},
		{"the plugin is restarted", func(w *world) { w.restartPlugin(true) }},
		{"the disk is full at a write", func(w *world) {
			w.m.core.Inject(isFull(logFiles(faultfs.Write), 600)) // the first batch fits
			w.refuse("safe", []int{30}, []int{800})
			w.refuse("safe", []int{10}) // without trying
			w.pass(3 * time.Second)     // the plugin finds room
			w.put("safe", []int{70})
		}},
		{"the disk is full at a roll", func(w *world) {
			w.m.plugin.Inject(isFull(faultfs.On(faultfs.Rename, "*.spare"), 0))
			w.refuse("safe", []int{1790})
			w.pass(3 * time.Second)
			w.put("safe", []int{1790})
		}},
		{"trim inside a segment", func(w *world) {
			h := w.history("safe")
			w.trim("safe", h.bases[len(h.bases)/2]+1)
			w.put("safe", []int{80})
		}},
		{"retention by size", func(w *world) { w.expire("lazy", 0, 2*segmentBytesMax) }},
		{"both processes are killed", func(w *world) { w.restart(false) }},
		{"append after recovery", fill},
		{"alter to sync by interval", func(w *world) {
			w.alter("lazy", often)
			w.put("lazy", []int{90}, []int{5})
			end := w.history("lazy").end()
			w.pass(2 * time.Second)
			w.change("lazy", func(h *history) { h.durable = end })
		}},
		{"alter to sync by batch", func(w *world) {
			w.put("lazy", []int{400})
			w.alter("lazy", batch)
			w.put("lazy", []int{90})
		}},
		{"retention by time", func(w *world) {
			w.pass(2 * time.Minute)
			w.expire("safe", time.Minute, -1)
		}},
		{"truncate in the last segment", func(w *world) {
			w.put("safe", []int{30}, []int{40}, []int{50})
			w.pass(3 * time.Second) // the recovery point passes what goes
			w.truncate("safe", 2)
			w.put("safe", []int{600})
		}},
		{"truncate across segments", func(w *world) {
			fill(w)
			w.pass(3 * time.Second)
			w.truncate("lazy", 7)
			w.put("lazy", []int{77})
		}},
		{"alter to no sync", func(w *world) {
			w.alter("lazy", never)
			w.put("lazy", []int{33}, []int{900})
		}},
		{"a failed sync", func(w *world) {
			w.m.core.Inject(faultfs.Fault{Match: logFiles(faultfs.Sync), Err: syscall.EIO})
			if err := w.append("safe", []int{100}, []int{600}); !errors.Is(err, lend.ErrUnknown) {
				w.t.Fatalf("append with a failed sync: %v", err)
			}
			w.recoverFence()
		}},
		{"append after the fence", fill},
		{"delete and create again", func(w *world) {
			w.delete("safe")
			w.create("safe", batch)
			w.put("safe", []int{25})
			w.pass(3 * time.Second)
		}},
		{"append to the new topic", fill},
		{"close and open", func(w *world) { w.restart(true) }},
		{"append after a clean start", fill},
	}
}
