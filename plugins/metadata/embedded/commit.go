package embedded

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

// Commit applies t. A context that ends while it waits for its turn leaves nothing behind; once it writes, it is not
// given up. After an I/O error the outcome is unknown and the store is broken (ErrBroken).
func (s *Store) Commit(ctx context.Context, t metadata.Txn) (metadata.Revision, error) {
	if err := t.Check(); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err := s.brokenBy(); err != nil {
		return 0, err
	}
	for _, p := range t.Puts {
		if p.Session != metadata.NoSession && !s.lives(p.Session) {
			return 0, fmt.Errorf("%w: %d, of %s", metadata.ErrSessionLost, p.Session, p.Key)
		}
	}
	return s.commitInTurn(t)
}

func (s *Store) commitInTurn(t metadata.Txn) (metadata.Revision, error) {
	tx, err := s.db.Begin(true)
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return 0, ErrClosed
	}
	if err != nil {
		return 0, fmt.Errorf("begin a change of %s: %w", s.path, err)
	}
	revision, events, err := apply(tx, t)
	if err != nil || len(events) == 0 {
		// A rollback only forgets: nothing was written yet.
		return revision, errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return 0, s.breakBy(err)
	}
	s.history.Add(revision, events)
	return revision, nil
}

// apply checks the guards and makes the changes in tx. Without changes it returns the current revision.
func apply(tx *bbolt.Tx, t metadata.Txn) (metadata.Revision, []metadata.Event, error) {
	meta, keys := tx.Bucket(bucketMeta()), tx.Bucket(bucketKeys())
	for _, g := range t.Guards {
		version, err := versionOf(keys, g.Key)
		if err != nil {
			return 0, nil, err
		}
		if version != g.Version {
			return 0, nil, &metadata.ConflictError{Key: g.Key}
		}
	}
	current := metadata.Revision(binary.BigEndian.Uint64(meta.Get(keyRevision())))
	revision := current + 1
	var events []metadata.Event
	for _, p := range t.Puts {
		e, err := applyPut(tx, p, revision)
		if err != nil {
			return 0, nil, err
		}
		events = append(events, metadata.Event{Entry: e})
	}
	for _, key := range t.Deletes {
		version, err := versionOf(keys, key)
		if err != nil {
			return 0, nil, err
		}
		if version == metadata.Absent {
			continue
		}
		if err := errors.Join(keys.Delete([]byte(key)), tx.Bucket(bucketOwned()).Delete([]byte(key))); err != nil {
			return 0, nil, err
		}
		events = append(events, metadata.Event{
			Entry: metadata.Entry{Key: key, Version: version, Revision: revision}, Deleted: true,
		})
	}
	if len(events) == 0 {
		return current, nil, nil
	}
	slices.SortFunc(events, func(a, b metadata.Event) int { return cmp.Compare(a.Key, b.Key) })
	return revision, events, meta.Put(keyRevision(), binary.BigEndian.AppendUint64(nil, uint64(revision)))
}

func applyPut(tx *bbolt.Tx, p metadata.Put, revision metadata.Revision) (metadata.Entry, error) {
	keys, owned := tx.Bucket(bucketKeys()), tx.Bucket(bucketOwned())
	version, err := versionOf(keys, p.Key)
	if err != nil {
		return metadata.Entry{}, err
	}
	owner, err := ownerOf(owned, p.Key)
	if err != nil {
		return metadata.Entry{}, err
	}
	if version != metadata.Absent && owner != p.Session {
		return metadata.Entry{}, &metadata.ConflictError{Key: p.Key}
	}
	e := metadata.Entry{
		Key: p.Key, Value: slices.Clone(p.Value), Version: version + 1, Revision: revision, Session: p.Session,
	}
	if p.Session != metadata.NoSession {
		if err := owned.Put([]byte(p.Key), binary.BigEndian.AppendUint64(nil, uint64(p.Session))); err != nil {
			return metadata.Entry{}, err
		}
	}
	return e, keys.Put([]byte(p.Key), encodeEntry(e))
}

func versionOf(keys *bbolt.Bucket, key string) (metadata.Version, error) {
	raw := keys.Get([]byte(key))
	if raw == nil {
		return metadata.Absent, nil
	}
	if len(raw) < entryHeadBytes {
		return 0, fmt.Errorf("%w: the entry of %s is damaged", ErrFormat, key)
	}
	return metadata.Version(binary.BigEndian.Uint64(raw)), nil
}

func (s *Store) brokenBy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

func (s *Store) breakBy(err error) error {
	s.mu.Lock()
	s.broken = fmt.Errorf("%w: %s: %w", ErrBroken, s.path, err)
	unknown := fmt.Errorf("%w: %w", metadata.ErrUnknown, s.broken)
	s.mu.Unlock()
	s.log.Error("metadata file takes no more changes", "path", s.path, "err", err)
	close(s.failed) // once: later commits are refused before they get here
	return unknown
}
