package memory_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/memory"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start starts a store with room for so many bytes.
func start(t *testing.T, dir string, room int64) *memory.Store {
	t.Helper()
	s, err := memory.New(memory.Options{Data: dir, Cap: room})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *memory.Store) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestConformance(t *testing.T) {
	open := func(dir string) (storage.Plugin, func()) {
		s := start(t, dir, 1<<30)
		return s, func() { stop(t, s) }
	}
	for _, c := range storagetest.CasesFor(storagetest.Describe(t, open)) {
		t.Run(c.Name, func(t *testing.T) { c.Run(t, open) })
	}
}

func offset(n int) record.Offset { return record.Offset(n) }
