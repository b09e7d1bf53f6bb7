package filelog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/trunkline-mq/trunkline/plugins/storage"
)

// Delete implements storage.Store. The name is free, durably, when it returns; the space follows in the background, so
// that a large log cannot outlast the call's deadline. What lies in quarantine stays there: it is an operator's.
func (s *Store) Delete(ctx context.Context, which storage.Partition) error {
	if err := check(which); err != nil {
		return err
	}
	p, err := s.enter(ctx, which.String())
	if err != nil {
		return err
	}
	defer s.leave(p)
	dir := s.disk.partition(p.name)
	id, err := s.topicID(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errUnidentified):
		return nil // not there, or not known to be its own
	case err != nil:
		return fmt.Errorf("delete %s: %w", p.name, err)
	case id != which.TopicID:
		return nil
	}
	trash := filepath.Join(s.disk.trash(), fmt.Sprintf("%s-%d", which.TopicID, which.ID))
	trash, err = s.disk.moveAside(dir, trash)
	if err != nil {
		return fmt.Errorf("delete %s: %w", p.name, err)
	}
	p.reset()
	s.trash.push(filepath.Base(trash))
	return nil
}

// emptyTrash unlinks one deleted partition.
func (s *Store) emptyTrash(_ context.Context, name string) {
	path := filepath.Join(s.disk.trash(), name)
	err := s.disk.fs.RemoveAll(path)
	if err == nil {
		err = s.disk.fs.SyncDir(s.disk.trash())
	}
	if err != nil {
		s.workerFailed("empty the trash of "+name, err)
	}
}
