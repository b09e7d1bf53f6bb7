package catalog

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/metadata/embedded"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// meanwhile is a store on which something happens just before the next commit.
type meanwhile struct {
	metadata.Store
	do func()
}

func (m *meanwhile) Commit(ctx context.Context, t metadata.Txn) (metadata.Revision, error) {
	if do := m.do; do != nil {
		m.do = nil
		do()
	}
	return m.Store.Commit(ctx, t)
}

func open(t *testing.T) *meanwhile {
	t.Helper()
	s, err := embedded.Open(embedded.Options{Path: filepath.Join(t.TempDir(), "meta.db"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &meanwhile{Store: s}
}

func made(t *testing.T, s metadata.Store, name string) Topic {
	t.Helper()
	topic := Topic{
		Name: name, ID: "of-" + name, Partitions: 1, Epochs: make([]record.Epoch, 1),
		Plan: partition.Plan{Kind: partition.KindMurmur2, Partitions: 1},
	}
	if err := Create(t.Context(), s, &topic); err != nil {
		t.Fatal(err)
	}
	return topic
}

// replan gives the topic's plan another version.
func replan(t *testing.T, s metadata.Store, topic *Topic, version int64) {
	t.Helper()
	topic.Plan.Version = version
	if err := Update(t.Context(), s, topic); err != nil {
		t.Fatal(err)
	}
}

func removed(t *testing.T, s metadata.Store, topic Topic) {
	t.Helper()
	if _, err := Delete(t.Context(), s, topic); err != nil {
		t.Fatal(err)
	}
}

func TestAPlanBeginsAboveThoseOfDeletedTopics(t *testing.T) {
	s := open(t)
	a, b := made(t, s, "a"), made(t, s, "b")
	if a.Plan.Version != 1 || b.Plan.Version != 1 {
		t.Errorf("the first topics' plans have versions %d and %d", a.Plan.Version, b.Plan.Version)
	}
	replan(t, s, &a, 5)
	removed(t, s, a)
	removed(t, s, b) // whose version is below
	again := made(t, s, "a")
	if again.Plan.Version != 6 {
		t.Errorf("version %d after one that had 5", again.Plan.Version)
	}
	if kept, err := Get(t.Context(), s, "a"); err != nil || kept.Plan.Version != 6 {
		t.Errorf("kept is version %d, %v", kept.Plan.Version, err)
	}
}

func TestADeletionAtTheSameMomentIsSeen(t *testing.T) {
	s := open(t)
	a, b := made(t, s, "a"), made(t, s, "b")
	replan(t, s, &a, 7)
	replan(t, s, &b, 9)
	s.do = func() { removed(t, s.Store, b) }
	removed(t, s, a) // and does not lower what b left
	if c := made(t, s, "c"); c.Plan.Version != 10 {
		t.Errorf("version %d after 9 and 7", c.Plan.Version)
	}
	d := made(t, s, "d")
	s.do = func() { removed(t, s.Store, d) }
	if e := made(t, s, "e"); e.Plan.Version != 11 {
		t.Errorf("version %d beside the deletion of one that had 10", e.Plan.Version)
	}
}

func TestNamesThatAreTaken(t *testing.T) {
	s := open(t)
	a := made(t, s, "a.b")
	if err := Create(t.Context(), s, &Topic{Name: "a.b", Partitions: 1}); !errors.Is(err, ErrExists) {
		t.Errorf("a second one: %v", err)
	}
	if err := Create(t.Context(), s, &Topic{Name: "a_b", Partitions: 1}); !errors.Is(err, ErrCollision) {
		t.Errorf("one that differs only there: %v", err)
	}
	removed(t, s, a)
	if _, err := Delete(t.Context(), s, a); !errors.Is(err, ErrUnknown) {
		t.Errorf("a second deletion: %v", err)
	}
}

func TestEntriesThatCannotBeAreNotBelieved(t *testing.T) {
	for key, values := range map[string][]string{
		"/topics/a": {
			"", "null", "7", `{"name":"b","partitions":1,"epochs":[0],"plan":{"partitions":1}}`, `{"name":"a","partitions":1,"plan":{"partitions":1}}`,
			`{"name":"a","partitions":-1,"epochs":[],"plan":{"partitions":-1}}`, `{"name":"a","partitions":0,"epochs":[],"plan":{"partitions":0}}`,
			`{"name":"a","partitions":1,"epochs":[-1],"plan":{"partitions":1}}`, `{"name":"a","partitions":1,"epochs":[0],"plan":{"partitions":2}}`,
			`{"name":"a","partitions":1,"epochs":[0],"plan":{"partitions":1},"grow":{"partitions":1}}`,
		},
		"/tombstones/id": {"", "null", `{"id":"other","partitions":1}`, `{"id":"id","partitions":0}`, `{"id":"id","partitions":-1}`, `{"id":"id","partitions":2147483647}`},
	} {
		for _, value := range values {
			s := open(t)
			if _, err := s.Commit(t.Context(), metadata.Txn{Puts: []metadata.Put{{Key: key, Value: []byte(value)}}}); err != nil {
				t.Fatal(err)
			}
			if c, err := Load(t.Context(), s); err == nil {
				t.Errorf("%s = %s: %+v", key, value, c)
			}
		}
	}
}
