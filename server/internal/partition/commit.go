package partition

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// buffers are shared by all partitions: an idle one keeps none, and a busy one finds them grown.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// keepBytesMax bounds what goes back to the pool: a group of one huge record is an exception.
const keepBytesMax = 2 * groupBytesMax

// commitAll is the writer: it commits group after group until the partition is closed and its queue empty.
func (p *Partition) commitAll() {
	for {
		g := p.take()
		if g == nil {
			return
		}
		if g == lookAfter {
			p.rollAged()
			continue
		}
		p.commit(g)
		p.reuse(g)
	}
}

// lookAfter is what take returns when there is nothing to commit but the log wants looking after.
var lookAfter = &group{}

// rollAged rolls a segment that is old enough, though nothing is written to it. Only the writer may.
func (p *Partition) rollAged() {
	ctx, cancel := context.WithTimeout(context.Background(), p.opt.PublishTimeout)
	defer cancel()
	if err := p.log.RollAged(ctx); err != nil {
		p.opt.Logger.Warn("aged segment is not rolled; tried again", "partition", p.Name.String(), "err", err)
	}
}

// take waits for the oldest group; nil when closed and empty.
func (p *Partition) take() *group {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case len(p.full) > 0:
			g := p.full[0]
			p.full = append(p.full[:0], p.full[1:]...)
			p.wakePublishersLocked()
			return g
		case p.pending != nil:
			g := p.pending
			p.pending = nil
			p.wakePublishersLocked()
			return g
		case p.closed != nil:
			return nil
		case p.ticked:
			p.ticked = false
			return lookAfter
		}
		p.work.Wait()
	}
}

// commit writes and syncs g, moves the high watermark, and only then answers.
func (p *Partition) commit(g *group) {
	// The deadline is the wait for a plugin, should the log have to roll; the disk has none.
	ctx, cancel := context.WithTimeout(context.Background(), p.opt.PublishTimeout)
	defer cancel()
	set := p.set.Load()
	base := p.log.End()
	out := g.stamp(base, p.log.Epoch(), set.AppendTime)
	err := p.log.Append(ctx, out)
	if err != nil {
		g.settle(Outcome{Err: p.failure(err)})
		return
	}
	g.place(base)
	p.raise(out.Next)
	g.settle(Outcome{Base: base, Durability: p.durability(out.Next)})
	p.watch.wake()
}

// stamp finishes g: offsets from base on, the leader epoch, and, where the topic has it so, the time of now.
func (g *group) stamp(base record.Offset, epoch record.Epoch, appendTime bool) lend.Group {
	if !g.whole {
		g.buf = g.batch.Finish(base, epoch)
	}
	out := lend.Group{Bytes: g.buf, Base: base, Next: base, MaxTimestamp: -1}
	now := time.Now().UnixMilli()
	for rest := g.buf; len(rest) > 0; {
		b := record.Batch(rest)
		b = b[:b.Size()]
		b.SetBase(out.Next)
		b.SetEpoch(epoch)
		if appendTime {
			b.SetAppendTime(now)
		}
		out.Next, out.MaxTimestamp = b.NextOffset(), max(out.MaxTimestamp, b.MaxTimestamp())
		rest = rest[len(b):]
	}
	return out
}

// failure says what a failed append means for its publishers.
func (p *Partition) failure(err error) *errcode.Error {
	var full *lend.FullError
	switch {
	case errors.As(err, &full):
		return errcode.Wrap(errcode.StorageFull, err, fmt.Sprintf("there is no room for %s", p.Address()),
			"nothing was written; free space, then try again")
	case errors.Is(err, lend.ErrUnknown):
		return errcode.Wrap(errcode.StorageUnknown, err, fmt.Sprintf("writing to %s failed on the way to the disk", p.Address()),
			"the record may or may not appear; read the log before sending it again")
	case errors.Is(err, lend.ErrNoStore):
		return errcode.Wrap(errcode.StorageUnavailable, err, fmt.Sprintf("the storage plugin of %s does not answer", p.Address()),
			"nothing was written; try again")
	}
	return errcode.Wrap(errcode.StorageUnavailable, err, fmt.Sprintf("%s takes no records now: %v", p.Address(), err),
		"nothing was written; see the server's log, then try again")
}

// Down says why the log takes no records and gives none, nil when it does. It is tried again by itself, or its store's
// directory is recovered.
func (p *Partition) Down() *errcode.Error {
	down := p.log.Stats().Down
	if down == nil {
		return nil
	}
	return errcode.Wrap(errcode.StorageUnavailable, down, fmt.Sprintf("partition %s is down: %v", p.Address(), down), "see the server's log")
}

// reuse keeps g for the next group, and gives its buffer back.
func (p *Partition) reuse(g *group) {
	g.free()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.spare == nil {
		p.spare = g
	}
}

// Records walks the log from off on, as a reader at the tail or behind it.
func (p *Partition) Records(ctx context.Context, off record.Offset) (Reader, error) {
	return p.log.Reader(ctx, off)
}
