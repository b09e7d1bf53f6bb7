// Package embedded is the metadata store of a single broker: one bbolt file, nothing to install. A commit is on disk
// when it returns. Changes are kept in memory for watchers, so a watch that starts further back than that, or before
// the process did, is told to list again.
//
// A session lives until it is closed, or as long as the process: its keys go at the next Open at the latest.
//
// It assumes that no other process writes to the file: bbolt's lock makes a second one fail at Open. Deleting a key
// that is not there is no error and no event, and a transaction that changes nothing returns the current revision
// without writing. Made again, a deleted key starts at version 1.
package embedded

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/metadata/history"
)

// Name is how configuration names this store.
const Name = "embedded"

// Version is this implementation's.
const Version = "1.0.0"

// lockTimeout is how long Open waits for another process to let go of the file. A server waits longer for its data
// directory before it starts us, so this is for strays.
const lockTimeout = time.Second

// What is in the file, all integers big-endian:
//
//	bucket "meta":   "format" -> uint32, "revision" -> uint64, "session" -> uint64, the newest session
//	bucket "keys":   key      -> version uint64 | revision uint64 | value
//	bucket "owned":  key      -> session uint64; only keys that have one
//
// bbolt's pages have checksums only on its two meta pages; a torn transaction is never visible.
const (
	formatVersion  = 1
	entryHeadBytes = 16
)

var (
	// ErrLocked says that another process has the file open.
	ErrLocked = errors.New("another process has the metadata file open; stop that server first")
	// ErrFormat says that the file is newer than this program, or not a metadata file.
	ErrFormat = errors.New("not a metadata file that this version can read")
	// ErrBroken says that an earlier commit met an I/O error. Whether it happened is unknown; the store takes no
	// further ones until it is opened again.
	ErrBroken = errors.New("metadata file takes no changes after an I/O error")
	// ErrClosed says that the store or watch was closed.
	ErrClosed = history.ErrClosed
)

// Options say where the store is.
type Options struct {
	Path   string       // the file, "<data>/meta/embedded.db"; made with its directories when missing
	Logger *slog.Logger // nil: slog.Default()
}

// Store is an open file. It is safe for concurrent use.
type Store struct {
	db      *bbolt.DB
	path    string
	log     *slog.Logger
	history *history.History
	failed  chan struct{} // closed when broken
	// turn is held by the one commit that is under way, I/O included; a channel, so that waiting for it can be given up.
	turn chan struct{}

	mu       sync.Mutex
	broken   error
	sessions map[metadata.SessionID]*session // those that live
	closed   bool
}

var _ metadata.Store = (*Store)(nil)

// Open opens the file, or makes it. A crash while it is made leaves nothing that a later Open would trip over.
func Open(opt Options) (*Store, error) {
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	if _, err := os.Lstat(opt.Path); errors.Is(err, fs.ErrNotExist) {
		if err := create(opt.Path); err != nil {
			return nil, fmt.Errorf("make metadata file %s: %w", opt.Path, err)
		}
		opt.Logger.Info("metadata file made", "path", opt.Path)
	}
	db, err := openFile(opt.Path)
	if err != nil {
		return nil, fmt.Errorf("open metadata file %s: %w", opt.Path, err)
	}
	revision, err := readMeta(db)
	if err == nil {
		revision, err = forget(db, revision)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open metadata file %s: %w", opt.Path, err), db.Close())
	}
	return &Store{
		db: db, path: opt.Path, log: opt.Logger,
		history: history.New(revision), failed: make(chan struct{}), turn: make(chan struct{}, 1),
		sessions: make(map[metadata.SessionID]*session),
	}, nil
}

func openFile(path string) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, ErrLocked
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrChecksum):
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return db, err
}

// create builds the file under another name and renames it, so that a half-made one is never found.
func create(path string) error {
	dir := filepath.Dir(path)
	if err := makeDirs(dir); err != nil {
		return err
	}
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := openFile(fresh)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucket(bucketKeys()); err != nil {
			return err
		}
		meta, err := tx.CreateBucket(bucketMeta())
		if err != nil {
			return err
		}
		if err := meta.Put(keyRevision(), binary.BigEndian.AppendUint64(nil, 0)); err != nil {
			return err
		}
		return meta.Put(keyFormat(), binary.BigEndian.AppendUint32(nil, formatVersion))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	return syncDir(dir)
}

// makeDirs makes dir and what is missing above it, private, and makes each new name durable.
func makeDirs(dir string) error {
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if err := makeDirs(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func bucketMeta() []byte  { return []byte("meta") }
func bucketKeys() []byte  { return []byte("keys") }
func bucketOwned() []byte { return []byte("owned") }
func keyFormat() []byte   { return []byte("format") }
func keySession() []byte  { return []byte("session") }
func keyRevision() []byte { return []byte("revision") }

func readMeta(db *bbolt.DB) (metadata.Revision, error) {
	var revision metadata.Revision
	err := db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta())
		if meta == nil || tx.Bucket(bucketKeys()) == nil {
			return fmt.Errorf("%w: its buckets are missing", ErrFormat)
		}
		format, rev := meta.Get(keyFormat()), meta.Get(keyRevision())
		if len(format) != 4 || len(rev) != 8 {
			return fmt.Errorf("%w: its header is damaged", ErrFormat)
		}
		if v := binary.BigEndian.Uint32(format); v != formatVersion {
			return fmt.Errorf("%w: it has format %d, this version reads %d", ErrFormat, v, formatVersion)
		}
		revision = metadata.Revision(binary.BigEndian.Uint64(rev))
		return nil
	})
	return revision, err
}

// Describe tells name and version.
func (s *Store) Describe(ctx context.Context) (metadata.Description, error) {
	return metadata.Description{Name: Name, Version: Version}, ctx.Err()
}

// Get reads one key.
func (s *Store) Get(ctx context.Context, key string) (metadata.Entry, error) {
	if err := metadata.CheckKey(key); err != nil {
		return metadata.Entry{}, err
	}
	if err := ctx.Err(); err != nil {
		return metadata.Entry{}, err
	}
	var e metadata.Entry
	err := s.view(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(bucketKeys()).Get([]byte(key))
		if raw == nil {
			return fmt.Errorf("%w: %s", metadata.ErrNotFound, key)
		}
		var err error
		e, err = decodeEntry(tx, key, raw)
		return err
	})
	return e, err
}

// List reads all keys below prefix.
func (s *Store) List(ctx context.Context, prefix string) (metadata.Snapshot, error) {
	if err := metadata.CheckPrefix(prefix); err != nil {
		return metadata.Snapshot{}, err
	}
	var snap metadata.Snapshot
	err := s.view(func(tx *bbolt.Tx) error {
		snap.Revision = metadata.Revision(binary.BigEndian.Uint64(tx.Bucket(bucketMeta()).Get(keyRevision())))
		c := tx.Bucket(bucketKeys()).Cursor()
		for k, v := c.Seek([]byte(prefix)); k != nil && strings.HasPrefix(string(k), prefix); k, v = c.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			e, err := decodeEntry(tx, string(k), v)
			if err != nil {
				return err
			}
			snap.Entries = append(snap.Entries, e)
		}
		return nil
	})
	if err != nil {
		return metadata.Snapshot{}, err
	}
	return snap, nil
}

func (s *Store) view(f func(*bbolt.Tx) error) error {
	err := s.db.View(f)
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}

// Watch watches prefix. ctx bounds nothing here, since nothing is waited for; the watch lives until Close.
func (s *Store) Watch(ctx context.Context, prefix string, after metadata.Revision) (metadata.Watcher, error) {
	if err := metadata.CheckPrefix(prefix); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s.history.Watch(prefix, after)
}

// Failed is closed when the store is broken: it reads on, but only opening the file again makes it take changes.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Close ends watches and sessions, waits for the calls under way and closes the file. It is safe to call twice.
func (s *Store) Close() error {
	s.history.Close()
	s.loseAll()
	return s.db.Close()
}

func decodeEntry(tx *bbolt.Tx, key string, raw []byte) (metadata.Entry, error) {
	if len(raw) < entryHeadBytes {
		return metadata.Entry{}, fmt.Errorf("%w: the entry of %s is damaged", ErrFormat, key)
	}
	owner, err := ownerOf(tx.Bucket(bucketOwned()), key)
	if err != nil {
		return metadata.Entry{}, err
	}
	return metadata.Entry{
		Key:      key,
		Session:  owner,
		Version:  metadata.Version(binary.BigEndian.Uint64(raw)),
		Revision: metadata.Revision(binary.BigEndian.Uint64(raw[8:])),
		Value:    slices.Clone(raw[entryHeadBytes:]), // bbolt's memory ends with the transaction
	}, nil
}

func encodeEntry(e metadata.Entry) []byte {
	raw := make([]byte, 0, entryHeadBytes+len(e.Value))
	raw = binary.BigEndian.AppendUint64(raw, uint64(e.Version))
	raw = binary.BigEndian.AppendUint64(raw, uint64(e.Revision))
	return append(raw, e.Value...)
}
