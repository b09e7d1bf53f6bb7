// Package partition is one partition of a topic while the server runs: it gathers the records of many connections into
// batches, commits one group at a time to the log, tells every publisher its outcome in order, and wakes readers when
// the high watermark moves.
//
// A partition has one writer goroutine, started by Open and ended by Close. Nothing waits for company: a group is
// whatever arrived while the one before it was being synced.
package partition

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Options configure a partition.
type Options struct {
	PublishTimeout time.Duration // how long a publish waits for room or for a plugin
	Durable        string        // what an ack says of a synced record: "disk", or what the store says of itself
	Set            Settings
	Logger         *slog.Logger
}

// Settings are what can change while a partition runs.
type Settings struct {
	MessageBytes int  // bound on key + value + headers of one record
	AppendTime   bool // records get the time at which their batch is committed
	Synced       bool // a record is synced before it is acknowledged
}

// Partition takes publishes and serves readers. Its methods are safe for concurrent use.
type Partition struct {
	Name storage.Partition
	opt  Options
	log  Log
	open record.Offset // where the log ended when it was opened

	hw  atomic.Int64 // end of what readers may see; changed with falls.mu held
	set atomic.Pointer[Settings]

	mu      sync.Mutex
	pending *group         // takes records; nil when none has come since the last take
	full    []*group       // closed to further records, in order; at most queueGroupsMax
	spare   *group         // a group to use again
	ticked  bool           // the writer is to look after its log
	closed  *errcode.Error // not nil: no publish is taken
	room    chan struct{}  // closed and replaced whenever the writer takes a group
	work    *sync.Cond     // signalled when there is something to take, or closed
	writer  sync.WaitGroup

	falls falls
	watch watchers
}

// Open returns a running partition on l.
func Open(name storage.Partition, l Log, o Options) *Partition {
	p := &Partition{Name: name, opt: o, log: l, open: l.Stats().Confirmed, room: make(chan struct{})}
	p.work = sync.NewCond(&p.mu)
	p.hw.Store(int64(p.open))
	p.set.Store(&o.Set)
	p.writer.Go(p.commitAll)
	return p
}

// HighWatermark is the end of what readers may see. It falls only when Falls grows.
func (p *Partition) HighWatermark() record.Offset { return record.Offset(p.hw.Load()) }

// Opened is where the partition ended when it was opened: whoever waited for that has missed nothing below.
func (p *Partition) Opened() record.Offset { return p.open }

// durability is what an acknowledgement claims of everything below end: what the store makes of a sync, or, where the log
// was not synced so far, that the record is in the page cache. The log says so, not the setting, which may have changed.
func (p *Partition) durability(end record.Offset) string {
	if p.log.Durable() >= end || p.opt.Durable != durableDisk {
		return p.opt.Durable
	}
	return durablePage
}

// The durabilities of an acknowledgement, beside what a store of another kind says.
const (
	durableDisk = "disk"
	durablePage = "page" // written, not synced
)

// Alter changes the settings for what is published from now on.
func (p *Partition) Alter(s Settings) { p.set.Store(&s) }

// Tick makes the writer look after its log although nothing is published.
func (p *Partition) Tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ticked = true
	p.work.Signal()
}

// Address is how clients name the partition: "orders/2".
func (p *Partition) Address() string { return fmt.Sprintf("%s/%d", p.Name.Topic, p.Name.ID) }

// MessageBytes bounds key, value and headers of one record.
func (p *Partition) MessageBytes() int { return p.set.Load().MessageBytes }

// Log is what readers read from, up to the high watermark.
func (p *Partition) Log() Log { return p.log }

// Drain takes no more publishes, answers those it has by writing them, and returns when the writer has ended.
func (p *Partition) Drain(reason *errcode.Error) { p.stop(reason, false) }

// Close takes no more publishes and answers those not yet written with reason; it returns when the writer has ended.
// A group that is being written is finished first. It is safe to call twice.
func (p *Partition) Close(reason *errcode.Error) { p.stop(reason, true) }

func (p *Partition) stop(reason *errcode.Error, discard bool) {
	p.mu.Lock()
	if p.closed == nil {
		p.closed = reason
	}
	var dropped []*group
	if discard {
		dropped = p.full
		if p.pending != nil {
			dropped = append(dropped, p.pending)
		}
		p.full, p.pending = nil, nil
	}
	p.wakePublishersLocked()
	p.work.Broadcast()
	p.mu.Unlock()
	for _, g := range dropped {
		g.settle(Outcome{Err: reason})
		g.free()
	}
	p.writer.Wait()
	p.watch.wake()
}

func (p *Partition) wakePublishersLocked() {
	close(p.room)
	p.room = make(chan struct{})
}
