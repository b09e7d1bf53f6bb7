package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// batch is where one batch lies in the file.
type batch struct {
	base, next   record.Offset
	at           int64
	size         int
	maxTimestamp int64
}

// file is a partition's log: batches, one behind the other. What was trimmed is a hole at its beginning, and a second
// file says where it ends: log start, and offset and position of the first batch that is left.
type file struct {
	dir     string
	f       *os.File
	start   record.Offset
	first   record.Offset // base of the first batch, or the end where there is none
	from    int64         // position of it
	size    int64
	batches []batch
}

const (
	logName   = "log"
	startName = "start"
	idName    = "topic-id"
)

// groupBytesMax is more than the server writes at once: a torn end that is longer is damage.
const groupBytesMax = 2 << 20

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writeFile puts a small file into its place at once and durably.
func writeFile(dir, name, text string) error {
	temp := filepath.Join(dir, name+".new")
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

// createFile makes an empty log. The name of the topic's id comes last: a directory without it is nobody's.
func createFile(dir, topicID string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, logName), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := writeFile(dir, idName, topicID); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// openFile opens a log and looks at every batch of it. The cut is what was taken off a torn end.
func openFile(dir string) (*file, *storage.Cut, error) {
	l := &file{dir: dir}
	text, err := os.ReadFile(filepath.Join(dir, startName))
	if err == nil {
		_, err = fmt.Sscanf(string(text), "%d %d %d", &l.start, &l.first, &l.from)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%s: %w", startName, err)
	}
	if l.f, err = os.OpenFile(filepath.Join(dir, logName), os.O_RDWR, 0); err != nil {
		return nil, nil, err
	}
	cut, err := l.scan()
	if err != nil {
		return nil, nil, errors.Join(err, l.f.Close())
	}
	return l, cut, nil
}

// scan fills batches, and cuts the file where what follows is none.
func (l *file) scan() (*storage.Cut, error) {
	info, err := l.f.Stat()
	if err != nil {
		return nil, err
	}
	at, next, why := l.from, l.first, error(nil)
	for at < info.Size() {
		var b record.Batch
		if b, why = l.batchAt(at, info.Size()); why == nil && b.BaseOffset() != next {
			why = fmt.Errorf("a batch of offset %d where %d is to be", b.BaseOffset(), next)
		}
		if why != nil {
			break
		}
		l.batches = append(l.batches, batch{next, b.NextOffset(), at, len(b), b.MaxTimestamp()})
		at, next = at+int64(len(b)), b.NextOffset()
	}
	l.size = at
	if why == nil {
		return nil, l.f.Sync() // what is here may have been written, and not synced, by the process before
	}
	lost := info.Size() - at
	if err := l.cutAt(at); err != nil {
		return nil, err
	}
	return &storage.Cut{Offset: next, Bytes: lost, Reason: why.Error(), Dirty: lost > groupBytesMax}, nil
}

// batchAt reads one whole batch and checks it.
func (l *file) batchAt(at, end int64) (record.Batch, error) {
	head := make([]byte, min(record.HeaderBytes, end-at))
	if _, err := l.f.ReadAt(head, at); err != nil {
		return nil, err
	}
	size, err := record.SizeOf(head)
	if err != nil {
		return nil, err
	}
	if int64(size) > end-at {
		return nil, record.ErrShort
	}
	b := make(record.Batch, size)
	if _, err := l.f.ReadAt(b, at); err != nil {
		return nil, err
	}
	return b, b.Check()
}

func (l *file) end() record.Offset {
	if len(l.batches) == 0 {
		return l.first
	}
	return l.batches[len(l.batches)-1].next
}

// holding is the index of the batch that holds an offset; len(l.batches) beyond the end.
func (l *file) holding(at record.Offset) int {
	return sort.Search(len(l.batches), func(i int) bool { return l.batches[i].next > at })
}

// append adds a group that was checked. On a nil return it is synced.
func (l *file) append(group []byte, batches []batch) error {
	if _, err := l.f.WriteAt(group, l.size); err != nil {
		return l.undo(err)
	}
	if err := l.f.Sync(); err != nil {
		return err // what is on the disk nobody knows: the outcome is open
	}
	for _, b := range batches {
		b.at += l.size
		l.batches = append(l.batches, b)
	}
	l.size += int64(len(group))
	return nil
}

// undo takes back what a write has left that failed. Only then nothing of it is there for certain.
func (l *file) undo(err error) error {
	full := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
	if cut := l.cutAt(l.size); cut != nil || !full {
		return errors.Join(err, cut)
	}
	return fmt.Errorf("%w: %w", storage.ErrFull, err)
}

func (l *file) cutAt(at int64) error { return errors.Join(l.f.Truncate(at), l.f.Sync()) }

// has reports whether a group lies at its offset already, byte by byte.
func (l *file) has(base record.Offset, group []byte) (bool, error) {
	i := l.holding(base)
	if i == len(l.batches) || l.batches[i].base != base || l.size-l.batches[i].at < int64(len(group)) {
		return false, nil
	}
	there := make([]byte, len(group))
	if _, err := l.f.ReadAt(there, l.batches[i].at); err != nil {
		return false, err
	}
	return slices.Equal(there, group), nil
}

// truncate takes everything from next on off the log; next is a batch's base, or the end.
func (l *file) truncate(next record.Offset) error {
	i := l.holding(next)
	if i == len(l.batches) {
		return nil
	}
	if err := l.cutAt(l.batches[i].at); err != nil {
		return err
	}
	l.size, l.batches = l.batches[i].at, l.batches[:i]
	return nil
}

// trim moves the start up, and gives back the room of whole batches below it.
func (l *file) trim(start record.Offset) error {
	if start <= l.start {
		return nil
	}
	i := l.holding(start)
	first, from := l.end(), l.size
	if i < len(l.batches) {
		first, from = l.batches[i].base, l.batches[i].at
	}
	if err := writeFile(l.dir, startName, fmt.Sprintf("%d %d %d\n", start, first, from)); err != nil {
		return err
	}
	l.start, l.first, l.from, l.batches = start, first, from, slices.Clone(l.batches[i:])
	if from == 0 {
		return nil
	}
	err := unix.Fallocate(int(l.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, from)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // the room stays taken
	}
	return err
}

// read returns whole batches from the one that holds an offset on, as many as fit, but one at least.
func (l *file) read(into []byte, at record.Offset, limit int64) ([]byte, error) {
	i := l.holding(at)
	if at < l.start || i == len(l.batches) {
		return nil, fmt.Errorf("%w: %d in [%d, %d)", storage.ErrOffsetOutOfRange, at, l.start, l.end())
	}
	size := l.batches[i].size
	for _, b := range l.batches[i+1:] {
		if int64(size+b.size) > limit {
			break
		}
		size += b.size
	}
	if cap(into) < size {
		into = make([]byte, size)
	}
	into = into[:size]
	_, err := l.f.ReadAt(into, l.batches[i].at)
	return into, err
}
