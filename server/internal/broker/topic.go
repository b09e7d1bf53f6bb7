package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	plan "github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/catalog"
	"github.com/trunkline-mq/trunkline/server/internal/datadir"
	"github.com/trunkline-mq/trunkline/server/internal/partition"
	"github.com/trunkline-mq/trunkline/server/internal/setting"
)

var errShuttingDown = errcode.New(errcode.ShuttingDown, "the server is going down", "connect again later")

// changeTimeout bounds a change to topics; metadataTimeout its calls to the metadata plugin, the wait for a restarting
// one included.
const (
	changeTimeout   = 30 * time.Second
	metadataTimeout = 5 * time.Second
)

// Topic is a served topic, as it was when it was looked up: it is immutable. An altered topic is a new Topic, with the
// same partitions and perhaps more of them.
type Topic struct {
	Meta       catalog.Topic
	Set        setting.Topic
	Plan       *plan.Evaluator        // for records without a key; Choose is for the others
	called     *called                // nil: Plan knows where keys go
	partitions []*partition.Partition // nil where one could not be opened
	faults     []*errcode.Error       // why
	life       *life
	altered    chan struct{} // closed when there is a newer one
}

// life is what all versions of a topic share.
type life struct {
	newest atomic.Pointer[Topic]
	gone   chan struct{}
	recent recentKeys
}

// Gone is closed when the topic was deleted.
func (t *Topic) Gone() <-chan struct{} { return t.life.gone }

// Current returns the newest version of the topic, which may be gone. Whoever keeps a Topic over more than one record
// asks for it: it costs an atomic load.
func (t *Topic) Current() *Topic { return t.life.newest.Load() }

// Altered is closed when Current returns another Topic than this one.
func (t *Topic) Altered() <-chan struct{} { return t.altered }

// Partition returns one partition: UNKNOWN_PARTITION out of range, STORAGE_UNAVAILABLE where it could not be opened.
func (t *Topic) Partition(id plan.ID) (*partition.Partition, *errcode.Error) {
	if id < 0 || int(id) >= len(t.partitions) {
		return nil, errcode.New(errcode.UnknownPartition,
			fmt.Sprintf("topic %s has partitions 0 to %d, not %d", t.Meta.Name, len(t.partitions)-1, id), "name one of these, or none")
	}
	return t.partitions[id], t.faults[id]
}

func (t *Topic) name(i int) storage.Partition {
	return storage.Partition{Topic: t.Meta.Name, TopicID: t.Meta.ID, ID: plan.ID(i)}
}

// lazy reports whether what the topic acknowledges may be gone after an unclean end.
func (t *Topic) lazy(d storage.Description) bool { return t.Set.Sync != setting.SyncBatch || d.Pinned }

// Lookup returns the topic of that name, nil where there is none.
func (b *Broker) Lookup(name []byte) *Topic {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.topics[string(name)]
}

// Version counts the changes of what Lookup answers: an answer may be remembered as long as the version read before it
// stands.
func (b *Broker) Version() uint64 { return b.version.Load() }

// Changed returns a channel that is closed at the next change of topics.
func (b *Broker) Changed() <-chan struct{} {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.changed
}

func (b *Broker) noteChangeLocked() {
	b.version.Add(1)
	close(b.changed)
	b.changed = make(chan struct{})
}

// Topics returns every served topic.
func (b *Broker) Topics() []*Topic {
	b.mu.RLock()
	defer b.mu.RUnlock()
	all := make([]*Topic, 0, len(b.topics))
	for _, t := range b.topics {
		all = append(all, t)
	}
	return all
}

// change runs f while nobody else changes topics, in a time that is bounded.
func (b *Broker) change(ctx context.Context, f func(ctx context.Context) error) error {
	// What is begun is finished, whether or not the client that asked is still there.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()
	return b.changes.alone(ctx, f)
}

func (b *Broker) metadata(ctx context.Context) (metadata.Store, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	s, err := b.meta.get(ctx)
	if err != nil {
		return nil, errcode.Wrap(errcode.MetadataUnavailable, err, "the metadata plugin does not answer", "nothing was changed; try again")
	}
	return s, nil
}

// NewTopic is how a topic is to be.
type NewTopic struct {
	Partitions  int32  // 0: the server's default; of an adopted topic, what lies there
	Partitioner string // empty: the default one
	Storage     string // empty: the default store
	Set         setting.Topic
	Adopt       bool // its directories are moved in from the adopt directory
}

// CreateTopic creates a topic and serves it. On return it is durable. TOPIC_EXISTS, NAME_COLLISION, BAD_NAME, or what
// the plugins cannot do now.
func (b *Broker) CreateTopic(ctx context.Context, name string, n NewTopic) (*Topic, error) {
	if err := address.ValidTopic(name); err != nil {
		return nil, err
	}
	var t *Topic
	err := b.change(ctx, func(ctx context.Context) error {
		var err error
		t, err = b.createLocked(ctx, name, n)
		return err
	})
	return t, err
}

// EnsureTopic returns the topic of that name and creates it where it is missing, for a publish. UNKNOWN_TOPIC where
// that is switched off, LIMIT_EXCEEDED beyond the number that publishes may create.
//
// id is the partition the publish names, plan.None for none: one that the topic would not have makes no topic.
func (b *Broker) EnsureTopic(ctx context.Context, name string, id plan.ID) (*Topic, error) {
	if err := address.ValidTopic(name); err != nil {
		return nil, err
	}
	if !b.opt.creation.Load().Auto {
		return nil, errcode.New(errcode.UnknownTopic, fmt.Sprintf("topic %s does not exist", name), "create it with TOPIC CREATE "+name)
	}
	if count := b.opt.creation.Load().Partitions; id >= plan.ID(count) {
		return nil, errcode.New(errcode.UnknownPartition, fmt.Sprintf("topic %s does not exist, and a publish would make it with %d partitions", name, count),
			"create it with TOPIC CREATE "+name+" partitions=N")
	}
	var t *Topic
	err := b.change(ctx, func(ctx context.Context) error {
		if t = b.Lookup([]byte(name)); t != nil {
			return nil // somebody was faster
		}
		if n, limit := len(b.Topics()), b.opt.creation.Load().Max; n >= limit {
			return errcode.New(errcode.LimitExceeded, fmt.Sprintf("there are %d topics and topics.auto_create_max is %d", n, limit),
				"create it with TOPIC CREATE, or raise the limit")
		}
		var err error
		t, err = b.createLocked(ctx, name, NewTopic{Set: setting.Defaults()})
		return err
	})
	return t, err
}

func (b *Broker) createLocked(ctx context.Context, name string, n NewTopic) (*Topic, error) {
	if b.Lookup([]byte(name)) != nil {
		return nil, errExists(name)
	}
	store, err := b.metadata(ctx)
	if err != nil {
		return nil, err
	}
	meta := catalog.Topic{
		Name: name, ID: datadir.RandomID(), Partitions: n.Partitions, Storage: cmp.Or(n.Storage, catalog.DefaultStore),
		Settings: n.Set.Text(), Adopt: n.Adopt,
	}
	keep, err := b.engine(ctx, meta.Storage)
	if err != nil {
		return nil, err
	}
	if err := fits(keep.Description(), n.Set); err != nil {
		return nil, err
	}
	if meta.Partitions == 0 {
		meta.Partitions = b.opt.creation.Load().Partitions
	}
	meta.Epochs = make([]record.Epoch, meta.Partitions)
	if n.Adopt {
		if err := prepareAdoption(ctx, keep, &meta, n.Partitions); err != nil {
			return nil, err
		}
	}
	by := n.Partitioner
	if by == "" {
		by = defaultPartitioner
	}
	if meta.Plan, err = b.plan(ctx, name, by, meta.Partitions); err != nil {
		return nil, err
	}
	err = catalog.Create(ctx, store, &meta)
	if errors.Is(err, catalog.ErrExists) && b.clearHalfMade(ctx, store, name) {
		err = catalog.Create(ctx, store, &meta)
	}
	if err != nil {
		return nil, createFailed(name, err)
	}
	return b.serveLocked(ctx, store, meta)
}

// prepareAdoption takes id, partition count and epochs from what lies ready in the adopt directory.
func prepareAdoption(ctx context.Context, from logs, meta *catalog.Topic, partitions int32) error {
	found, err := from.Adoptable(ctx, meta.Name)
	if err != nil {
		return errcode.Wrap(errcode.BadSetting, err, fmt.Sprintf("topic %s cannot be adopted: %v", meta.Name, err),
			"put its directories, "+meta.Name+"-0 and so on, under adopt in the data directory")
	}
	if partitions != 0 && partitions != found.Partitions {
		return errcode.New(errcode.BadSetting, fmt.Sprintf("partitions=%d, but %d directories are to be adopted", partitions, found.Partitions),
			"leave partitions out")
	}
	meta.Partitions = found.Partitions
	if found.TopicID != "" {
		meta.ID = found.TopicID
	}
	meta.Epochs = make([]record.Epoch, found.Partitions)
	for i, e := range found.Epochs {
		meta.Epochs[i] = e + 1 // -1 where none is known; what comes now is told apart from what was there
	}
	return nil
}

// clearHalfMade removes a topic whose creation was begun and not finished; nobody was ever told that it exists.
func (b *Broker) clearHalfMade(ctx context.Context, store metadata.Store, name string) bool {
	half, err := catalog.Get(ctx, store, name)
	if err != nil || half.State != catalog.Creating {
		return false
	}
	grave, err := catalog.Delete(ctx, store, half)
	if err != nil {
		return false
	}
	if err := b.buryLocked(ctx, store, grave); err != nil {
		b.log.Warn("half-made topic still has files", "topic", name, "id", grave.ID, "err", err)
	}
	return true
}

func errExists(name string) *errcode.Error {
	return errcode.New(errcode.TopicExists, fmt.Sprintf("topic %s exists", name), "use it, or choose another name")
}

func createFailed(name string, err error) error {
	switch {
	case errors.Is(err, catalog.ErrExists):
		return errExists(name)
	case errors.Is(err, catalog.ErrCollision):
		return errcode.New(errcode.NameCollision, fmt.Sprintf("topic %s: %v", name, err), "names may not differ only in . against _")
	}
	return errcode.Wrap(errcode.MetadataUnavailable, err, fmt.Sprintf("topic %s could not be written to metadata%s", name, because(err)), "look with TOPIC LIST, then try again")
}

// DeleteTopic deletes a topic and everything in it. On return the name is free. UNKNOWN_TOPIC where there is none.
func (b *Broker) DeleteTopic(ctx context.Context, name string) error {
	return b.change(ctx, func(ctx context.Context) error {
		t := b.Lookup([]byte(name))
		if t == nil {
			return errcode.New(errcode.UnknownTopic, fmt.Sprintf("topic %s does not exist", name), "TOPIC LIST shows what does")
		}
		store, err := b.metadata(ctx)
		if err != nil {
			return err
		}
		fresh, err := b.fresh(ctx, store, t)
		if err != nil {
			return err
		}
		grave, err := catalog.Delete(ctx, store, fresh)
		if err != nil {
			return errcode.Wrap(errcode.MetadataUnavailable, err, fmt.Sprintf("topic %s could not be deleted from metadata%s", name, because(err)),
				"look with TOPIC LIST, then try again")
		}
		b.dropLocked(t)
		if err := b.buryLocked(ctx, store, grave); err != nil {
			// The topic is gone for everybody; what is left on disk goes when the plugin is back, or at the next start.
			b.log.Warn("deleted topic still has files", "topic", name, "id", grave.ID, "err", err)
		}
		return nil
	})
}

// fresh reads a served topic as metadata has it now: an epoch may have been advanced since.
func (b *Broker) fresh(ctx context.Context, store metadata.Store, t *Topic) (catalog.Topic, error) {
	meta, err := catalog.Get(ctx, store, t.Meta.Name)
	if err == nil && meta.ID != t.Meta.ID {
		err = catalog.ErrUnknown
	}
	if err != nil {
		return meta, errcode.Wrap(errcode.MetadataUnavailable, err, fmt.Sprintf("topic %s could not be read from metadata%s", t.Meta.Name, because(err)),
			"nothing was changed; look with TOPIC LIST, then try again")
	}
	return meta, nil
}

// dropLocked takes t out of service: publishes that wait, and readers, hear that it is deleted.
func (b *Broker) dropLocked(t *Topic) {
	b.mu.Lock()
	if b.topics[t.Meta.Name] == t {
		delete(b.topics, t.Meta.Name)
		b.noteChangeLocked()
	}
	b.mu.Unlock()
	close(t.life.gone)
	b.healer.dismiss(t.Meta.ID)
	deleted := errcode.New(errcode.TopicDeleted, fmt.Sprintf("topic %s was deleted", t.Meta.Name), "create it again, or use another")
	for _, p := range t.partitions {
		if p != nil {
			p.Close(deleted)
		}
	}
}

// buryLocked removes what is left of a deleted topic.
func (b *Broker) buryLocked(ctx context.Context, store metadata.Store, grave catalog.Tombstone) error {
	keep, err := b.engine(ctx, grave.Store())
	if err != nil {
		return err
	}
	for i := range grave.Partitions {
		part := storage.Partition{Topic: grave.Name, TopicID: grave.ID, ID: plan.ID(i)}
		if err := keep.Delete(ctx, part); err != nil {
			return err
		}
	}
	return catalog.Bury(ctx, store, grave)
}
