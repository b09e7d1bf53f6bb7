package embedded

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
)

// leaseTime is what Renew promises. A session cannot end behind the process's back, so any time would be true; this one
// makes who asks ask again.
const leaseTime = 10 * time.Second

// forget makes what an older file lacks and deletes the keys of sessions of earlier processes. It returns the revision
// afterwards.
func forget(db *bbolt.DB, revision metadata.Revision) (metadata.Revision, error) {
	clean := false
	err := db.View(func(tx *bbolt.Tx) error {
		owned := tx.Bucket(bucketOwned())
		if owned != nil {
			first, _ := owned.Cursor().First()
			clean = first == nil
		}
		return nil
	})
	if err != nil || clean {
		return revision, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		owned, err := tx.CreateBucketIfNotExists(bucketOwned())
		if err != nil {
			return err
		}
		var t metadata.Txn
		err = owned.ForEach(func(k, _ []byte) error {
			t.Deletes = append(t.Deletes, string(k))
			return nil
		})
		if err == nil {
			revision, _, err = apply(tx, t)
		}
		return err
	})
	return revision, err
}

func ownerOf(owned *bbolt.Bucket, key string) (metadata.SessionID, error) {
	raw := owned.Get([]byte(key))
	switch len(raw) {
	case 0:
		return metadata.NoSession, nil
	case 8:
		return metadata.SessionID(binary.BigEndian.Uint64(raw)), nil
	}
	return metadata.NoSession, fmt.Errorf("%w: the owner of %s is damaged", ErrFormat, key)
}

// session is one of this process's.
type session struct {
	store *Store
	id    metadata.SessionID
	lost  chan struct{} // closed under the store's mutex, when it leaves store.sessions
}

var _ metadata.Session = (*session)(nil)

// Session begins a session. Its number is durable before anybody sees it, so that no later one gets the same.
func (s *Store) Session(ctx context.Context) (metadata.Session, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := errors.Join(ctx.Err(), s.brokenBy()); err != nil {
		return nil, err
	}
	var id metadata.SessionID
	tx, err := s.db.Begin(true)
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return nil, ErrClosed
	}
	if err != nil {
		return nil, fmt.Errorf("begin a session in %s: %w", s.path, err)
	}
	meta := tx.Bucket(bucketMeta())
	if raw := meta.Get(keySession()); len(raw) == 8 {
		id = metadata.SessionID(binary.BigEndian.Uint64(raw))
	}
	id++
	if err := meta.Put(keySession(), binary.BigEndian.AppendUint64(nil, uint64(id))); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return nil, s.breakBy(err)
	}
	born := &session{store: s, id: id, lost: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	s.sessions[id] = born
	return born, nil
}

// lives reports whether a session is open here.
func (s *Store) lives(id metadata.SessionID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[id] != nil
}

// loseAll ends all sessions; their keys go at the next Open.
func (s *Store) loseAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for id, one := range s.sessions {
		close(one.lost)
		delete(s.sessions, id)
	}
}

// ID is the session's number.
func (n *session) ID() metadata.SessionID { return n.id }

// Lost is closed by Close and by the store's end.
func (n *session) Lost() <-chan struct{} { return n.lost }

// Renew promises some time: a session lives as long as the process.
func (n *session) Renew(ctx context.Context) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, err
	}
	if !n.store.lives(n.id) {
		return time.Time{}, fmt.Errorf("%w: %d", metadata.ErrSessionLost, n.id)
	}
	return time.Now().Add(leaseTime), nil
}

// Close ends the session and deletes its keys.
func (n *session) Close() error {
	s := n.store
	s.turn <- struct{}{} // held for one commit at most
	defer func() { <-s.turn }()
	s.mu.Lock()
	open := s.sessions[n.id] != nil
	if open {
		close(n.lost)
		delete(s.sessions, n.id)
	}
	s.mu.Unlock()
	if !open || s.brokenBy() != nil {
		return nil // what it owned goes at the next Open
	}
	var t metadata.Txn
	err := s.view(func(tx *bbolt.Tx) error {
		owned := tx.Bucket(bucketOwned())
		return owned.ForEach(func(k, _ []byte) error {
			owner, err := ownerOf(owned, string(k))
			if owner == n.id {
				t.Deletes = append(t.Deletes, string(k))
			}
			return err
		})
	})
	if err == nil && len(t.Deletes) > 0 {
		_, err = s.commitInTurn(t)
	}
	if err != nil {
		return fmt.Errorf("delete the keys of session %d: %w", n.id, err)
	}
	return nil
}
