// Package datadir owns a broker's data directory for the life of the process: its lock, its identity and its format.
// It must be opened before any plugin starts, and plugins inherit the lock, so that it is free only when all of them
// are dead.
package datadir

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Format is the newest layout of the directory this version reads and writes.
const Format = 1

// lockWait is how long a new server waits for the last processes of the old one to be gone.
const lockWait = 10 * time.Second

// Dir is a locked data directory.
type Dir struct {
	Path      string // absolute
	ClusterID string
	BrokerID  int
	lock      *os.File
}

// Open makes the directory where it is missing, locks it, and reads or writes its identity. It waits ten seconds for
// another server to let go, and says at once, once, to waiting who has the lock. The error says what is wrong and what to
// do.
func Open(ctx context.Context, path string, brokerID int, waiting func(holder string)) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	if err := os.MkdirAll(abs, 0o750); err != nil {
		return nil, explain(abs, err)
	}
	lock, err := acquire(ctx, filepath.Join(abs, "LOCK"), waiting)
	if err != nil {
		return nil, err
	}
	d := &Dir{Path: abs, BrokerID: brokerID, lock: lock}
	if err := d.identify(); err != nil {
		_ = lock.Close()
		return nil, err
	}
	return d, nil
}

func explain(path string, err error) error {
	switch {
	case errors.Is(err, syscall.EROFS), errors.Is(err, os.ErrPermission):
		return fmt.Errorf("data directory %s cannot be written (%w): choose another with --data, or mount it writable", path, err)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, os.ErrExist):
		if file, kind := inTheWay(path); file == path {
			return fmt.Errorf("data: %s is %s; name a directory with --data", path, kind)
		} else if file != "" {
			return fmt.Errorf("data: %s is %s, so that %s cannot be a directory; name another with --data", file, kind, path)
		}
	}
	return fmt.Errorf("data directory %s: %w", path, err)
}

// inTheWay finds what keeps path from being a directory: path itself or what it would lie in.
func inTheWay(path string) (file, kind string) {
	for ; ; path = filepath.Dir(path) {
		info, err := os.Stat(path)
		link, linkErr := os.Lstat(path)
		switch {
		case err == nil && info.IsDir():
			return "", ""
		case err == nil && info.Mode().IsRegular():
			return path, "a file"
		case err == nil:
			return path, "no directory"
		case linkErr == nil && link.Mode()&os.ModeSymlink != 0:
			return path, "a symbolic link that leads nowhere"
		case path == filepath.Dir(path):
			return "", ""
		}
	}
}

// acquire locks the file at path. The file is never unlinked; the inode is checked after locking, because somebody else
// may have replaced it meanwhile.
func acquire(ctx context.Context, path string, waiting func(holder string)) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	told := false
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
		if err != nil {
			return nil, explain(filepath.Dir(path), err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil && samePlace(f, path):
			return f, writePID(f)
		case err == nil:
			_ = f.Close()
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		holder := readPID(f)
		_ = f.Close()
		if !told {
			told = true
			waiting(holder)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("data directory %s is in use by another server (%s) or by its plugins: stop it, or choose another with --data",
				filepath.Dir(path), holder)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func samePlace(f *os.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	return nil
}

func readPID(f *os.File) string {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0) // io.EOF: the file is shorter than b
	if pid := strings.TrimSpace(string(b[:n])); pid != "" {
		return "pid " + pid
	}
	return "pid unknown"
}

// identify reads meta.properties, or writes it for a new directory.
func (d *Dir) identify() error {
	path := filepath.Join(d.Path, "meta.properties")
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return d.found(path)
	}
	if err != nil {
		return explain(d.Path, err)
	}
	props := map[string]string{}
	for scan := bufio.NewScanner(strings.NewReader(string(b))); scan.Scan(); {
		if k, v, ok := strings.Cut(scan.Text(), "="); ok && !strings.HasPrefix(k, "#") {
			props[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	format, err := strconv.Atoi(props["format"])
	if err != nil {
		return fmt.Errorf("%s names no format: restore it from a backup, or choose another data directory", path)
	}
	if format > Format {
		return fmt.Errorf("data directory %s has format %d, this server reads up to %d: start a newer version, or choose another with --data",
			d.Path, format, Format)
	}
	id, err := strconv.Atoi(props["broker.id"])
	if err != nil || props["cluster.id"] == "" {
		return fmt.Errorf("%s names no broker.id or cluster.id: restore it from a backup", path)
	}
	if d.BrokerID != id {
		return fmt.Errorf("data directory %s belongs to broker %d, not %d: start with --broker-id %d, or choose another with --data",
			d.Path, id, d.BrokerID, id)
	}
	d.ClusterID = props["cluster.id"]
	return nil
}

// found writes the identity of a new directory, so that it is there as a whole or not at all.
func (d *Dir) found(path string) error {
	d.ClusterID = RandomID()
	text := fmt.Sprintf("format=%d\ncluster.id=%s\nbroker.id=%d\n", Format, d.ClusterID, d.BrokerID)
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return explain(d.Path, err)
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDirs(d.Path)
	}
	if err != nil {
		return explain(d.Path, err)
	}
	return nil
}

// syncDirs makes the directory and its own name durable.
func syncDirs(path string) error {
	for _, p := range []string{path, filepath.Dir(path)} {
		dir, err := os.Open(p)
		if err != nil {
			return err
		}
		if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Inherit returns a copy of the lock's descriptor for a child process: the directory stays locked while the child lives.
func (d *Dir) Inherit() (*os.File, error) {
	fd, err := unix.FcntlInt(d.lock.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("copy the lock's descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), d.lock.Name()), nil
}

// Close gives the lock back. It is free when the last child that inherited it is dead.
func (d *Dir) Close() error { return d.lock.Close() }

// RandomID returns 128 random bits as 32 hex digits.
func RandomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, by its contract
	return hex.EncodeToString(b[:])
}
