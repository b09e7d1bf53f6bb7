package zookeeper

import (
	"bufio"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// reader collects what a process says.
type reader struct {
	task sync.WaitGroup
	mu   sync.Mutex
	said strings.Builder
}

func newReader(r io.Reader) *reader {
	lines := &reader{}
	lines.task.Go(func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			lines.mu.Lock()
			lines.said.WriteString(s.Text() + "\n")
			lines.mu.Unlock()
		}
	})
	return lines
}

// until waits until text was said.
func (l *reader) until(t *testing.T, text string) {
	t.Helper()
	harness.Eventually(t, "it says "+text, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return strings.Contains(l.said.String(), text)
	})
}

// end waits until nobody can say anything any more.
func (l *reader) end() { l.task.Wait() }
