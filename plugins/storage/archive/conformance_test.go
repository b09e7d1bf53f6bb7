package archive_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/archive"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/plugins/storage/stream"
	"github.com/trunkline-mq/trunkline/protocol/storeframe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, o archive.Options) *archive.Store {
	t.Helper()
	s, err := archive.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s interface{ Stop() error }) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestConformance(t *testing.T) {
	for _, c := range storagetest.StreamCases() {
		t.Run(c.Name, func(t *testing.T) {
			c.Run(t, func(dir string) (storage.StreamPlugin, func()) {
				s := start(t, archive.Options{Data: dir})
				return s, func() { stop(t, s) }
			})
		})
	}
}

func TestConformanceThroughChannels(t *testing.T) {
	open := func(dir string) (storage.Plugin, func()) {
		s := stream.Serve(start(t, archive.Options{Data: dir}))
		return s, func() { stop(t, s) }
	}
	for _, c := range storagetest.CasesFor(storagetest.Describe(t, open)) {
		t.Run(c.Name, func(t *testing.T) { c.Run(t, open) })
	}
}

// sumOf is the sum of batches that are whole.
func sumOf(b []byte) uint32 {
	sum, err := storeframe.Sum(b)
	if err != nil {
		panic(err)
	}
	return sum
}
