package sdk

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// parentWatch waits for the end of the process that started us. The host's Pdeathsig does the same faster; this is
// for hosts that do not set it.
type parentWatch struct {
	pidfd *os.File
	wg    sync.WaitGroup
}

// watchParent calls gone, once, when the parent ends.
func watchParent(gone func()) (*parentWatch, error) {
	ppid := os.Getppid()
	fd, err := unix.PidfdOpen(ppid, unix.PIDFD_NONBLOCK)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("watch the host's process: %w", err)
	}
	if os.Getppid() != ppid || err != nil {
		gone()
		return nil, errors.New("the host is gone")
	}
	w := &parentWatch{pidfd: os.NewFile(uintptr(fd), "pidfd")}
	conn, err := w.pidfd.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch the host's process: %w", err), w.pidfd.Close())
	}
	w.wg.Go(func() {
		// A pidfd becomes readable when its process ends; Read returns an error when the file is closed before.
		if err := conn.Read(ended); err == nil {
			gone()
		}
	})
	return w, nil
}

func ended(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// close ends the watch.
func (w *parentWatch) close() {
	_ = w.pidfd.Close() // it only ends Read
	w.wg.Wait()
}
