package filelog

import (
	"context"
	"sync"
)

// backlog is work for one goroutine, by name. A name that waits already is not queued twice, so it is never longer
// than there are partitions.
type backlog struct {
	state *backlogState
}

type backlogState struct {
	mu      sync.Mutex
	names   []string
	waiting map[string]struct{}
	wake    chan struct{} // one slot: a second wake-up before the first was seen tells nothing new
}

func newBacklog() backlog {
	return backlog{&backlogState{waiting: make(map[string]struct{}), wake: make(chan struct{}, 1)}}
}

func (b backlog) push(name string) {
	s := b.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.waiting[name]; ok {
		return
	}
	s.waiting[name] = struct{}{}
	s.names = append(s.names, name)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (b backlog) pop() (string, bool) {
	s := b.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.names) == 0 {
		return "", false
	}
	name := s.names[0]
	s.names = s.names[1:]
	delete(s.waiting, name)
	return name, true
}

// run works until ctx ends, and finishes the piece at hand.
func (b backlog) run(ctx context.Context, work func(context.Context, string)) {
	for ctx.Err() == nil {
		if name, ok := b.pop(); ok {
			work(ctx, name)
			continue
		}
		select {
		case <-b.state.wake:
		case <-ctx.Done():
		}
	}
}
