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

// Placer is a Claimant that wants to know where its records lie before anybody can read them. Placed is called at most
// once, before Settled, under the same terms; it is not called where nothing was written.
type Placer interface {
	Placed(base record.Offset, n int32)
}

// Outcome is what became of a run: its N records have offsets [Base, Base+N) and are as durable as it says, or all
// failed with Err.
type Outcome struct {
	Base       record.Offset
	N          int
	Durability string
	Err        *errcode.Error
}

// group is what is written and synced as one: a batch of records that came one by one, or whole batches that came from
// clients; and who wants to know.
type group struct {
	whole  bool           // buf holds whole batches; else batch is being built in it
	batch  record.Builder // of records that came one by one
	buf    []byte
	pooled *[]byte // where buf came from
	owner  Owner   // whose buf is instead; nil: nobody's else
	claims []claim
}

// size is the number of bytes gathered so far.
func (g *group) size() int {
	if g.whole {
		return len(g.buf)
	}
	return g.batch.Size()
}

type claim struct {
	who Claimant
	n   int32
}

// place tells the claimants that want to know it where their records lie.
func (g *group) place(base record.Offset) {
	for i := range g.claims {
		c := &g.claims[i]
		if p, ok := c.who.(Placer); ok {
			p.Placed(base, c.n)
		}
		base += record.Offset(c.n)
	}
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
	if g == nil || g.whole || p.closed != nil || g.size()+bound > groupBytesMax {
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
	bound := record.EncodedBound(r)
	return p.offer(stop, func() bool {
		g := p.groupLocked(false, bound)
		if g == nil {
			return false
		}
		p.claimLocked(g, claim{who, 1})
		g.batch.Append(r)
		return true
	})
}

// Batches are whole batches from a client.
type Batches struct {
	Bytes   []byte // checked; offsets and epoch are stamped in place when they are committed
	Records int32
	// Owner is told when nobody needs Bytes any more; nil: they are the caller's, and copied.
	Owner Owner
}

// Owner lends memory.
type Owner interface{ Free() }

// KeepBytesLeast is the size from which on Produce writes batches from where they lie, where it may: they fill a group nearly
// by themselves. What is smaller is copied into a group that others go into, too.
const KeepBytesLeast = groupBytesMax / 2

// Produce adds b. Waiting, errors and who are as for Publish. Its owner is told in the end, however that comes.
func (p *Partition) Produce(stop <-chan struct{}, b Batches, who Claimant) *errcode.Error {
	kept := false
	err := p.offer(stop, func() bool {
		g := p.groupLocked(true, len(b.Bytes))
		if g == nil {
			return false
		}
		p.claimLocked(g, claim{who, b.Records})
		if kept = b.Owner != nil && len(g.buf) == 0 && len(b.Bytes) >= KeepBytesLeast; kept {
			g.keep(b)
		} else {
			g.buf = append(g.buf, b.Bytes...)
		}
		return true
	})
	if b.Owner != nil && !kept {
		b.Owner.Free()
	}
	return err
}

// keep makes b, and nothing else, what g is.
func (g *group) keep(b Batches) {
	buffers.Put(g.pooled)
	g.pooled, g.owner = nil, b.Owner
	g.buf = b.Bytes[:len(b.Bytes):len(b.Bytes)]
}

// free gives back the memory that g was gathered in.
func (g *group) free() {
	switch {
	case g.owner != nil:
		g.owner.Free()
	case cap(g.buf) <= keepBytesMax:
		*g.pooled = g.buf[:0]
		buffers.Put(g.pooled)
	}
	g.buf, g.pooled, g.owner = nil, nil, nil
}

// offer calls addLocked until there was room, the publish timeout has passed or stop is closed.
func (p *Partition) offer(stop <-chan struct{}, addLocked func() bool) *errcode.Error {
	var deadline <-chan time.Time // made only when there is something to wait for
	for {
		p.mu.Lock()
		if p.closed != nil {
			defer p.mu.Unlock()
			return p.closed
		}
		added, room := addLocked(), p.room
		p.mu.Unlock()
		if added {
			return nil
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
		return errcode.New(errcode.StorageUnavailable, fmt.Sprintf("%s took no record before the deadline", p.Address()),
			"nothing was written; try again")
	}
}

func (p *Partition) claimLocked(g *group, c claim) {
	g.claims = append(g.claims, c)
	if len(g.claims) == 1 {
		p.work.Signal()
	}
}

// tooLarge bounds key, value and headers together.
func (p *Partition) tooLarge(r *record.Record) bool {
	n := len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n > p.set.Load().MessageBytes
}

// groupLocked returns the group that takes bytes more of a kind, nil when the queue is full.
func (p *Partition) groupLocked(whole bool, bytes int) *group {
	if g := p.pending; g != nil {
		if g.whole == whole && g.owner == nil && g.size()+bytes <= groupBytesMax {
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
	g.whole, g.claims = whole, g.claims[:0]
	g.pooled = buffers.Get().(*[]byte)
	g.buf = (*g.pooled)[:0]
	if !whole {
		g.batch.Reset(g.buf)
	}
	p.pending = g
	return g
}
