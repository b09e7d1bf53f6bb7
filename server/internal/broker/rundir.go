package broker

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// runDirMax leaves room for a plugin's directory and its socket below: a unix socket's path has at most 107 bytes.
const runDirMax = 50

// makeRunDir makes the private directory of the plugins' sockets and sweeps what a killed server left there. It lies in
// the data directory, or, where that path is too long for a socket, in the system's directory for temporary files,
// under a name that belongs to the data directory, which is locked.
func makeRunDir(data string) (string, error) {
	dir := filepath.Join(data, "run")
	if len(dir) > runDirMax {
		h := fnv.New64a()
		_, _ = h.Write([]byte(data)) // never fails
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("trunkline-%x", h.Sum64()))
		if !ownDir(dir) { // anybody may make names there
			return os.MkdirTemp("", "trunkline-")
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.Mkdir(dir, 0o700)
}

// ownDir reports whether path is free, or a private directory of this user.
func ownDir(path string) bool {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil || !info.IsDir() || info.Mode().Perm() != 0o700 {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}
