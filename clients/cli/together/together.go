// Package together reads several subscriptions of one client as if they were one, for commands that take several addresses.
//
// Records of one subscription keep their order; between subscriptions there is none. One alone is read as it is, without a
// goroutine in between.
package together

import (
	"context"
	"iter"
	"sync"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
)

// Subscriptions are several subscriptions read as one. The zero value has none. It belongs to one goroutine.
type Subscriptions struct {
	all []*trunkline.Subscription
	out chan heard // what came of more than one; nil for one alone
}

// Add adds a subscription, before Messages is called.
func (s *Subscriptions) Add(sub *trunkline.Subscription) { s.all = append(s.all, sub) }

// heard is what one of several subscriptions yielded.
type heard struct {
	r    *trunkline.Record
	err  error
	over bool // it yields nothing more
}

// ahead is how many records of several subscriptions wait for standard output, beside what each holds.
const ahead = 256

// Messages yields what the subscriptions yield, each in its own order, until one of them or ctx ends. It is iterated once: of
// several subscriptions, what was read ahead is gone after a break.
func (s *Subscriptions) Messages(ctx context.Context) iter.Seq2[*trunkline.Record, error] {
	if len(s.all) == 1 {
		return s.all[0].Messages(ctx)
	}
	s.out = make(chan heard, ahead)
	return func(yield func(*trunkline.Record, error) bool) {
		reading, cancel := context.WithCancel(ctx)
		var readers sync.WaitGroup
		defer readers.Wait()
		defer cancel()
		for _, sub := range s.all {
			readers.Go(func() { s.read(reading, sub) })
		}
		for {
			select {
			case h := <-s.out:
				if h.over || !yield(h.r, h.err) {
					return
				}
			case <-ctx.Done():
				yield(nil, context.Cause(ctx))
				return
			}
		}
	}
}

func (s *Subscriptions) read(ctx context.Context, sub *trunkline.Subscription) {
	hand := func(h heard) bool {
		select {
		case s.out <- h:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for r, err := range sub.Messages(ctx) {
		if !hand(heard{r: r, err: err}) {
			return
		}
	}
	hand(heard{over: true})
}

// Buffered is how many records have come and were not yet yielded.
func (s *Subscriptions) Buffered() int {
	n := len(s.out)
	for _, sub := range s.all {
		n += sub.Buffered()
	}
	return n
}

// Stop ends all of them, and waits for their goroutines.
func (s *Subscriptions) Stop() {
	for _, sub := range s.all {
		sub.Stop()
	}
}
