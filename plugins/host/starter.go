package host

import (
	"runtime"
	"sync"
)

// A starter forks children from one thread. Pdeathsig fires when the forking thread ends, not the process, so that
// thread must live as long as its children: stop it only when they are reaped.
type starter struct {
	jobs chan func() // unbuffered: do waits for its job anyway
	wg   sync.WaitGroup
}

func newStarter() *starter {
	s := &starter{jobs: make(chan func())}
	s.wg.Go(func() {
		// Never unlocked: the runtime ends the thread together with this goroutine.
		runtime.LockOSThread()
		for job := range s.jobs {
			job()
		}
	})
	return s
}

// do runs job on the thread and waits for it.
func (s *starter) do(job func()) {
	done := make(chan struct{})
	s.jobs <- func() {
		defer close(done)
		job()
	}
	<-done
}

// stop ends the thread. No do may follow.
func (s *starter) stop() {
	close(s.jobs)
	s.wg.Wait()
}
