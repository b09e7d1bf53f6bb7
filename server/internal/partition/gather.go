package partition

import (
	"fmt"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

const (
	// groupBytesMax is how much one write and one sync carry, and so how much an unclean end may cut as torn: 1 MiB, or
	// one record that is larger.
	groupBytesMax = 1 << 20
	// queueGroupsMax bounds what waits behind the group being written: enough to keep the disk busy, few enough that
	// a partition costs no more than a few MiB under load.
	queueGroupsMax = 2
)

// Claimant is whoever waits for the outcome of a run of records. Settled is called once, from the writer's goroutine,
// and must not block.
type Claimant interface {
	Settled(o Outcome)
}

// Outcome is what became of a run: its N records have offsets [Base, Base+N) and are as durable as it says, or all
// failed with Err.
type Outcome struct {
	Base       record.Offset
	N          int
	Durability string
	Err        *errcode.Error
}

// group is what is written and synced as one: a batch, and who wants to know.
type group struct {
	batch  record.Builder
	buf    []byte
	claims []claim
}

type claim struct {
	who Claimant
	n   int32
}

// settle tells every claimant; o is the outcome of the first record.
func (g *group) settle(o Outcome) {
	for i := range g.claims {
		c := &g.claims[i]
		o.N = int(c.n)
		c.who.Settled(o)
		o.Base += record.Offset(c.n)
		c.who = nil
	}
}

// Extend adds r to who's run if that run is the newest of the pending group and there is room. It reports false
// otherwise; then Publish starts a new run. r is copied.
func (p *Partition) Extend(r *record.Record, who Claimant) bool {
	if p.tooLarge(r) {
		return false
	}
	bound := record.EncodedBound(r)
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.pending
	if g == nil || p.closed != nil || g.batch.Size()+bound > groupBytesMax {
		return false
	}
	last := &g.claims[len(g.claims)-1]
	if last.who != who {
		return false
	}
	last.n++
	g.batch.Append(r)
	return true
}

// Publish adds r as the first record of a new run. It waits for room until the publish timeout or stop. On a nil return
// who will be settled; an error is definite, who is not called, and nothing of r is ever written. r is copied.
func (p *Partition) Publish(stop <-chan struct{}, r *record.Record, who Claimant) *errcode.Error {
	if p.tooLarge(r) {
		return errcode.New(errcode.TooLarge,
			fmt.Sprintf("record exceeds the topic's message.bytes of %d", p.set.Load().MessageBytes), "send a smaller record")
	}
	var deadline <-chan time.Time // made only when there is something to wait for
	for {
		room, err := p.offer(r, who)
		if room == nil {
			return err
		}
		if deadline == nil {
			t := time.NewTimer(p.opt.PublishTimeout)
			defer t.Stop()
			deadline = t.C
		}
		select {
		case <-room:
			continue
		case <-deadline:
		case <-stop:
		}
		return errcode.New(errcode.StorageUnavailable, fmt.Sprintf("%s took no record before the deadline", p.Name),
			"nothing was written; try again")
	}
}

// offer takes r, or refuses it for good, or returns what to wait for before the next try.
func (p *Partition) offer(r *record.Record, who Claimant) (room <-chan struct{}, err *errcode.Error) {
	bound := record.EncodedBound(r)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed != nil {
		return nil, p.closed
	}
	g := p.groupLocked(bound)
	if g == nil {
		return p.room, nil
	}
	g.claims = append(g.claims, claim{who, 1})
	g.batch.Append(r)
	if len(g.claims) == 1 {
		p.work.Signal()
	}
	return nil, nil
}

// tooLarge bounds key, value and headers together.
func (p *Partition) tooLarge(r *record.Record) bool {
	n := len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n > p.set.Load().MessageBytes
}

// groupLocked returns the group that takes a record of at most bound bytes, nil when the queue is full.
func (p *Partition) groupLocked(bound int) *group {
	if g := p.pending; g != nil {
		if g.batch.Size()+bound <= groupBytesMax {
			return g
		}
		if len(p.full) == queueGroupsMax {
			return nil
		}
		p.full = append(p.full, g)
		p.pending = nil
	}
	g := p.spare
	p.spare = nil
	if g == nil {
		g = &group{}
	}
	g.batch.Reset(g.buf)
	g.claims = g.claims[:0]
	p.pending = g
	return g
}
