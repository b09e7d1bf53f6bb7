//go:build failpoint

package failpoint

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Hit says that the step of that name was reached, and does not return if that ends this process.
func Hit(step string) {
	path := file()
	if path == "" {
		return
	}
	line, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(line), step+" ") { // a look without the lock: it is a rare match
		return
	}
	victim, err := count(path, step)
	if err != nil {
		panic(fmt.Sprintf("failpoint %s: %v", step, err))
	}
	isPlugin := strings.HasPrefix(step, "plugin.")
	switch {
	case victim == "self":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case victim == "other" && isPlugin:
		_ = syscall.Kill(os.Getppid(), syscall.SIGKILL)
		select {} // the parent's death ends this process too
	case victim == "other":
		killChild()
	}
}

// file is where the line stands, "" if nowhere.
func file() string {
	if path := os.Getenv(Env); path != "" {
		return path
	}
	environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", os.Getppid()))
	for v := range bytes.SplitSeq(environ, []byte{0}) {
		if path, ok := bytes.CutPrefix(v, []byte(Env+"=")); ok {
			return string(path)
		}
	}
	return ""
}

// count takes one hit off what the file says, and returns whom the last one kills.
func count(path, step string) (victim string, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }() // which gives up the lock
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	line, err := io.ReadAll(f)
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(line))
	if len(fields) != 3 || fields[0] != step {
		return "", nil // another was quicker
	}
	n, err := strconv.Atoi(fields[1])
	if err != nil {
		return "", err
	}
	next := "fired\n"
	if n > 1 {
		next = fmt.Sprintf("%s %d %s\n", step, n-1, fields[2])
	} else {
		victim = fields[2]
	}
	if err := f.Truncate(0); err != nil {
		return "", err
	}
	_, err = f.WriteAt([]byte(next), 0)
	return victim, err
}

// killChild ends the storage plugin of this process, and waits until it is dead.
func killChild() {
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		args, _ := os.ReadFile(name)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if !bytes.Contains(args, []byte("\x00plugin\x00storage\x00")) || !runs(pid) {
			continue
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
		for runs(pid) {
			time.Sleep(time.Millisecond)
		}
	}
}

// runs reports whether a process is a child of this one and not dead.
func runs(pid int) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	return len(fields) > 1 && fields[0] != "Z" && fields[0] != "X" && fields[1] == strconv.Itoa(os.Getpid())
}
