package host

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Why a third party's executable is not started.
var (
	// ErrNoExecutable says that there is no such file.
	ErrNoExecutable = errors.New("there is no such executable")
	// ErrInsecure says that somebody else than root and the server's user could change what would be started.
	ErrInsecure = errors.New("others could change it")
	// ErrChecksum says that the file is not the one that was pinned.
	ErrChecksum = errors.New("its sha256 is not the one it is pinned to")
	// ErrNoChecksum says that the file is not pinned at all.
	ErrNoChecksum = errors.New("it is pinned to no sha256")
)

// ExecutablePrefix begins the file names of plugins of third parties: trunkline-plugin-<kind>-<name>.
const ExecutablePrefix = "trunkline-plugin-"

// ExecutableName is the file name of a plugin of a third party.
func ExecutableName(kind, name string) string { return ExecutablePrefix + kind + "-" + name }

// ExecutableError is an executable that is not started, or not vouched for.
type ExecutableError struct {
	Path string
	Err  error  // one of the errors above, or what the system said
	What string // what was found, and what to do
}

func (e *ExecutableError) Error() string {
	s := fmt.Sprintf("plugin executable %s: %v", e.Path, e.Err)
	if e.What != "" {
		s += ": " + e.What
	}
	return s
}

// Unwrap returns the cause.
func (e *ExecutableError) Unwrap() error { return e.Err }

// Executable is a file that was opened and looked at. What is executed is the open descriptor, so that what was hashed
// is what runs, whatever is done to the name meanwhile.
type Executable struct {
	Path   string
	SHA256 string // of the content, in hexadecimal
	// Interpreter is the program that runs the file, if it is a script. Nobody vouches for that one.
	Interpreter string
	// Config is handed to the process in place of Spec.Config, if it is set by whoever opened the file.
	Config []byte

	file *os.File
}

// Close gives the descriptor back.
func (e *Executable) Close() error { return e.file.Close() }

// OpenExecutable opens a plugin's file and takes its hash. The file and its directory must belong to root or to the user
// of this process, nobody else may be able to write to them, and neither may be a symbolic link.
func OpenExecutable(path string) (*Executable, error) {
	if !filepath.IsAbs(path) {
		return nil, &ExecutableError{path, ErrSpec, "name it by its absolute path"}
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, unopened(path, filepath.Dir(path), err)
	}
	defer func() { _ = unix.Close(dir) }() // only looked at
	if err := guarded(dir, path, "the directory"); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(dir, filepath.Base(path), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, unopened(path, path, err)
	}
	e := &Executable{Path: path, file: os.NewFile(uintptr(fd), path)}
	if err := e.inspect(); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// unopened words why at, which is the file or its directory, could not be opened.
func unopened(path, at string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return &ExecutableError{path, ErrNoExecutable, fmt.Sprintf("put it there, or mend the name (%s does not exist)", at)}
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		return &ExecutableError{path, ErrInsecure, fmt.Sprintf("%s is a symbolic link, or no directory; put the file itself there", at)}
	}
	return &ExecutableError{path, err, ""}
}

// inspect checks who may change the file, and reads it.
func (e *Executable) inspect() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(e.file.Fd()), &st); err != nil {
		return &ExecutableError{e.Path, err, ""}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0 {
		return &ExecutableError{e.Path, ErrNoExecutable, "it is no regular file with the right to be executed (chmod 0755)"}
	}
	if err := guarded(int(e.file.Fd()), e.Path, "it"); err != nil {
		return err
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, e.file); err != nil {
		return &ExecutableError{e.Path, err, ""}
	}
	e.SHA256 = hex.EncodeToString(hash.Sum(nil))
	return e.findInterpreter()
}

// guarded refuses what somebody else than root and this user can write to.
func guarded(fd int, path, what string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &ExecutableError{path, err, ""}
	}
	if uid := os.Geteuid(); st.Uid != 0 && int(st.Uid) != uid {
		return &ExecutableError{path, ErrInsecure, fmt.Sprintf("%s belongs to user %d; give it to root or to user %d", what, st.Uid, uid)}
	}
	if st.Mode&0o022 != 0 {
		return &ExecutableError{path, ErrInsecure, fmt.Sprintf("%s has mode %04o; take the right to write from group and others (chmod go-w)", what, st.Mode&0o7777)}
	}
	return nil
}

// interpreterBytesMax is what the kernel reads of a script's first line.
const interpreterBytesMax = 256

func (e *Executable) findInterpreter() error {
	head := bufio.NewReader(io.NewSectionReader(e.file, 0, interpreterBytesMax))
	line, err := head.ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return &ExecutableError{e.Path, err, ""}
	}
	if rest, ok := strings.CutPrefix(line, "#!"); ok {
		e.Interpreter = clean(strings.TrimSpace(rest), interpreterBytesMax)
	}
	return nil
}

// Matches compares the file with what it is pinned to, any of several hashes in hexadecimal.
func (e *Executable) Matches(pins []string) error {
	if len(pins) == 0 {
		return &ExecutableError{e.Path, ErrNoChecksum, "if this is the file you mean, configure sha256: " + e.SHA256}
	}
	for _, pin := range pins {
		if strings.EqualFold(pin, e.SHA256) {
			return nil
		}
	}
	return &ExecutableError{e.Path, ErrChecksum, fmt.Sprintf("it is %s, pinned is %s; put the right file there, or configure the other hash", e.SHA256, strings.Join(pins, ", "))}
}
