package filelog_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	for _, c := range storagetest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			c.Run(t, func(dir string) (storage.Plugin, func()) {
				s, err := filelog.New(filelog.Options{Data: dir})
				if err != nil {
					t.Fatal(err)
				}
				return s, func() {
					if err := s.Stop(); err != nil {
						t.Errorf("stop: %v", err)
					}
				}
			})
		})
	}
}
