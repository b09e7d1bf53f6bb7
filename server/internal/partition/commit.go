package partition

import (
	"context"
	"errors"
	"fmt"

	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// spareBytesMax bounds the buffer an idle partition keeps: ten thousand of them must stay cheap.
const spareBytesMax = 64 << 10

// commitAll is the writer: it commits group after group until the partition is closed and its queue empty.
func (p *Partition) commitAll() {
	for {
		g := p.take()
		if g == nil {
			return
		}
		p.commit(g)
		p.reuse(g)
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
		}
		p.work.Wait()
	}
}

// commit writes and syncs g, moves the high watermark, and only then answers.
func (p *Partition) commit(g *group) {
	// The deadline is the wait for a plugin, should the log have to roll; the disk has none.
	ctx, cancel := context.WithTimeout(context.Background(), p.opt.PublishTimeout)
	defer cancel()
	base := p.log.End()
	batch := g.batch.Finish(base, p.opt.Epoch)
	err := p.log.Append(ctx, lend.Group{
		Bytes: batch, Base: base, Next: batch.NextOffset(), MaxTimestamp: g.batch.MaxTimestamp(),
	})
	g.buf = batch[:0]
	if err != nil {
		code := p.outcome(err)
		g.settle(0, code)
		return
	}
	p.hw.Store(int64(batch.NextOffset()))
	g.settle(base, nil)
	p.watch.wake()
}

// outcome says what a failed append means for its publishers.
func (p *Partition) outcome(err error) *errcode.Error {
	var full *lend.FullError
	switch {
	case errors.As(err, &full):
		return errcode.Wrap(errcode.StorageFull, err, fmt.Sprintf("the disk has no room for %s", p.Name),
			"nothing was written; free space, then try again")
	case errors.Is(err, lend.ErrUnknown):
		return errcode.Wrap(errcode.StorageUnknown, err, fmt.Sprintf("writing to %s failed on the way to the disk", p.Name),
			"the record may or may not appear; read the log before sending it again")
	case errors.Is(err, lend.ErrNoStore):
		return errcode.Wrap(errcode.StorageUnavailable, err, fmt.Sprintf("the storage plugin of %s does not answer", p.Name),
			"nothing was written; try again")
	}
	return errcode.Wrap(errcode.StorageUnavailable, err, fmt.Sprintf("%s takes no records now: %v", p.Name, err),
		"nothing was written; see the server's log, then try again")
}

func (p *Partition) reuse(g *group) {
	if cap(g.buf) > spareBytesMax && !p.busy() {
		g.buf = nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.spare == nil {
		p.spare = g
	}
}

func (p *Partition) busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pending != nil || len(p.full) > 0
}

// Records walks the log from off on, as a reader at the tail or behind it.
func (p *Partition) Records(ctx context.Context, off record.Offset) (*lend.Reader, error) {
	return p.log.NewReader(ctx, off)
}
