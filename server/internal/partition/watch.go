package partition

import "sync"

// watchers are readers that wait at the tail: each is woken within one commit, and never waited for.
type watchers struct {
	mu   sync.Mutex
	list map[chan<- struct{}]struct{}
}

// Watch sends on c, without waiting, whenever the high watermark has moved or the partition has closed. c holds one
// element, so that a wake-up between two looks is not missed. Unwatch ends it.
func (p *Partition) Watch(c chan<- struct{}) {
	p.watch.mu.Lock()
	defer p.watch.mu.Unlock()
	if p.watch.list == nil {
		p.watch.list = make(map[chan<- struct{}]struct{})
	}
	p.watch.list[c] = struct{}{}
}

// Unwatch ends Watch.
func (p *Partition) Unwatch(c chan<- struct{}) {
	p.watch.mu.Lock()
	defer p.watch.mu.Unlock()
	delete(p.watch.list, c)
}

func (w *watchers) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.list {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
