// Package catalog keeps what is true about topics in the metadata store: which exist, under which id, with what plan,
// and which were deleted but are not yet gone from disk. It holds no state of its own; every method is one guarded
// transaction or one read.
//
// Keys: /topics/<name> is the topic; /names/<name with . as _> guards against names that differ only there;
// /tombstones/<id> is a deleted topic whose directories may still exist; /plans/floor is the highest plan version that a
// deleted topic had.
package catalog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

const (
	topicsPrefix     = "/topics/"
	namesPrefix      = "/names/"
	tombstonesPrefix = "/tombstones/"
	floorKey         = "/plans/floor"
)

// State is where a topic stands in its life.
type State string

const (
	// Creating topics may have directories made; they are not served.
	Creating State = "creating"
	// Live topics must have their directories.
	Live State = "live"
)

// Topic is a topic as metadata keeps it.
type Topic struct {
	Name       string            `json:"name"`
	ID         string            `json:"id"` // 32 hex digits
	State      State             `json:"state"`
	Partitions int32             `json:"partitions"`
	Plan       partition.Plan    `json:"plan"`
	Epochs     []record.Epoch    `json:"epochs"`             // leader epoch of each partition
	Settings   map[string]string `json:"settings,omitempty"` // as setting.Topic writes them; what is missing has its default
	Storage    string            `json:"storage,omitempty"`  // its store; Store knows what empty means
	Adopt      bool              `json:"adopt,omitempty"`    // while creating: the directories are moved in
	// Grow is, while partitions are being added, the plan that counts once they are made. Until then those from
	// Partitions on may have directories, and are not served.
	Grow    *partition.Plan  `json:"grow,omitempty"`
	Version metadata.Version `json:"-"`
}

// Tombstone is a deleted topic whose directories may still exist.
type Tombstone struct {
	Name       string `json:"name"`
	ID         string `json:"id"`
	Partitions int32  `json:"partitions"`
	Storage    string `json:"storage,omitempty"` // its store; Store knows what empty means
}

// DefaultStore keeps the topics that name none, and those written before topics named one.
const DefaultStore = "filelog"

// Store is the store that keeps the topic's partitions, for good.
func (t Topic) Store() string { return cmp.Or(t.Storage, DefaultStore) }

// Store is the store that kept the topic's partitions.
func (t Tombstone) Store() string { return cmp.Or(t.Storage, DefaultStore) }

var (
	// ErrExists says that a topic of that name exists.
	ErrExists = errors.New("topic exists")
	// ErrCollision says that a topic exists whose name differs only in . against _.
	ErrCollision = errors.New("topic name collides")
	// ErrUnknown says that there is no such topic, or that it is another one by now.
	ErrUnknown = errors.New("topic does not exist")
)

// Contents is all a catalog holds.
type Contents struct {
	Topics     []Topic
	Tombstones []Tombstone
}

// Load reads everything.
func Load(ctx context.Context, s metadata.Store) (Contents, error) {
	var c Contents
	snap, err := s.List(ctx, topicsPrefix)
	if err != nil {
		return c, fmt.Errorf("list topics: %w", err)
	}
	for _, e := range snap.Entries {
		t, err := decode(e)
		if err != nil {
			return c, err
		}
		c.Topics = append(c.Topics, t)
	}
	snap, err = s.List(ctx, tombstonesPrefix)
	if err != nil {
		return c, fmt.Errorf("list tombstones: %w", err)
	}
	for _, e := range snap.Entries {
		var t Tombstone
		if err := json.Unmarshal(e.Value, &t); err != nil {
			return c, fmt.Errorf("read %s: %w", e.Key, err)
		}
		if e.Key != tombstonesPrefix+t.ID || t.Partitions < 1 || t.Partitions > partition.CountMax {
			return c, fmt.Errorf("read %s: it is of topic id %.80q with %d partitions", e.Key, t.ID, t.Partitions)
		}
		c.Tombstones = append(c.Tombstones, t)
	}
	return c, nil
}

// Create adds t in state Creating, and gives its plan the first version: above that of every topic that was deleted, so that
// who still has a plan of a topic of that name is told that it is stale. ErrExists or ErrCollision when the name is taken.
func Create(ctx context.Context, s metadata.Store, t *Topic) error {
	for {
		err := create(ctx, s, t)
		if !lostFloor(err) {
			return err
		}
	}
}

func create(ctx context.Context, s metadata.Store, t *Topic) error {
	floor, unmoved, err := planFloor(ctx, s)
	if err != nil {
		return err
	}
	t.State, t.Version, t.Plan.Version = Creating, 1, floor+1
	name := namesPrefix + address.Fold(t.Name)
	value, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encode topic %s: %w", t.Name, err)
	}
	_, err = s.Commit(ctx, metadata.Txn{
		Guards: []metadata.Guard{{Key: name, Version: metadata.Absent}, unmoved},
		Puts:   []metadata.Put{{Key: topicsPrefix + t.Name, Value: value}, {Key: name, Value: []byte(t.Name)}},
	})
	if !isConflict(err) || lostFloor(err) {
		return err
	}
	holder, err := s.Get(ctx, name)
	if err == nil && string(holder.Value) != t.Name {
		return fmt.Errorf("%w with %s", ErrCollision, holder.Value)
	}
	return ErrExists
}

// planFloor reads the highest plan version of a deleted topic, and returns with it the guard that it is still that.
func planFloor(ctx context.Context, s metadata.Store) (floor int64, unmoved metadata.Guard, err error) {
	unmoved = metadata.Guard{Key: floorKey, Version: metadata.Absent}
	e, err := s.Get(ctx, floorKey)
	if errors.Is(err, metadata.ErrNotFound) {
		return 0, unmoved, nil
	}
	if err == nil {
		unmoved.Version = e.Version
		floor, err = strconv.ParseInt(string(e.Value), 10, 64)
	}
	if err != nil {
		return 0, unmoved, fmt.Errorf("read %s: %w", floorKey, err)
	}
	return floor, unmoved, nil
}

// lostFloor says that another topic was deleted at the same moment: nothing was done, and it is to be tried again.
func lostFloor(err error) bool {
	var c *metadata.ConflictError
	return errors.As(err, &c) && c.Key == floorKey
}

// Update writes t back; ErrUnknown when it was changed or deleted meanwhile.
func Update(ctx context.Context, s metadata.Store, t *Topic) error {
	value, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encode topic %s: %w", t.Name, err)
	}
	_, err = s.Commit(ctx, metadata.Txn{
		Guards: []metadata.Guard{{Key: topicsPrefix + t.Name, Version: t.Version}},
		Puts:   []metadata.Put{{Key: topicsPrefix + t.Name, Value: value}},
	})
	if isConflict(err) {
		return ErrUnknown
	}
	if err == nil {
		t.Version++
	}
	return err
}

// Delete turns t into a tombstone. From then on its name is free. ErrUnknown when it was changed or deleted meanwhile.
func Delete(ctx context.Context, s metadata.Store, t Topic) (Tombstone, error) {
	for {
		grave, err := remove(ctx, s, t)
		if !lostFloor(err) {
			return grave, err
		}
	}
}

func remove(ctx context.Context, s metadata.Store, t Topic) (Tombstone, error) {
	grave := Tombstone{Name: t.Name, ID: t.ID, Partitions: t.Partitions, Storage: t.Storage}
	if t.Grow != nil {
		grave.Partitions = t.Grow.Partitions
	}
	value, err := json.Marshal(grave)
	if err != nil {
		return grave, fmt.Errorf("encode tombstone of %s: %w", t.Name, err)
	}
	floor, unmoved, err := planFloor(ctx, s)
	if err != nil {
		return grave, err
	}
	txn := metadata.Txn{
		Guards:  []metadata.Guard{{Key: topicsPrefix + t.Name, Version: t.Version}, unmoved},
		Puts:    []metadata.Put{{Key: tombstonesPrefix + t.ID, Value: value}},
		Deletes: []string{topicsPrefix + t.Name, namesPrefix + address.Fold(t.Name)},
	}
	if t.Plan.Version > floor {
		txn.Puts = append(txn.Puts, metadata.Put{Key: floorKey, Value: strconv.AppendInt(nil, t.Plan.Version, 10)})
	}
	_, err = s.Commit(ctx, txn)
	if isConflict(err) && !lostFloor(err) {
		return grave, ErrUnknown
	}
	return grave, err
}

// Bury clears a tombstone: nothing of the topic is left on disk.
func Bury(ctx context.Context, s metadata.Store, t Tombstone) error {
	_, err := s.Commit(ctx, metadata.Txn{Deletes: []string{tombstonesPrefix + t.ID}})
	return err
}

func isConflict(err error) bool {
	var c *metadata.ConflictError
	return errors.As(err, &c)
}

// Get reads one topic; ErrUnknown when there is none.
func Get(ctx context.Context, s metadata.Store, name string) (Topic, error) {
	e, err := s.Get(ctx, topicsPrefix+name)
	if errors.Is(err, metadata.ErrNotFound) {
		return Topic{}, ErrUnknown
	}
	if err != nil {
		return Topic{}, err
	}
	return decode(e)
}

// decode believes nothing that the rest of the server could not live with: whoever keeps metadata may be a third party's.
func decode(e metadata.Entry) (Topic, error) {
	t := Topic{Version: e.Version}
	if err := json.Unmarshal(e.Value, &t); err != nil {
		return t, fmt.Errorf("read %s: %w", e.Key, err)
	}
	switch {
	case e.Key != topicsPrefix+t.Name:
		return t, fmt.Errorf("read %s: it is of topic %.80q", e.Key, t.Name)
	case len(t.Epochs) != int(t.Partitions) || t.Partitions < 1 || t.Partitions > partition.CountMax:
		return t, fmt.Errorf("read %s: %d epochs for %d partitions", e.Key, len(t.Epochs), t.Partitions)
	case slices.Min(t.Epochs) < 0:
		return t, fmt.Errorf("read %s: leader epoch %d", e.Key, slices.Min(t.Epochs))
	case t.Plan.Partitions != t.Partitions:
		return t, fmt.Errorf("read %s: a plan for %d of %d partitions", e.Key, t.Plan.Partitions, t.Partitions)
	}
	if g := t.Grow; g != nil && (g.Partitions <= t.Partitions || g.Partitions > partition.CountMax) {
		return t, fmt.Errorf("read %s: it grows from %d to %d partitions", e.Key, t.Partitions, g.Partitions)
	}
	return t, nil
}
