package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
)

// lineReader cuts its input at LF and nowhere else. It holds one line.
type lineReader struct {
	in     *bufio.Reader
	limit  int    // bytes of a line without its LF
	long   []byte // a line that does not fit into in's buffer
	number int    // of the line last returned, from 1
}

// readBytes is a read's size; most lines lie whole in it.
const readBytes = 64 << 10

func newLineReader(in io.Reader, limit int) *lineReader {
	return &lineReader{in: bufio.NewReaderSize(in, readBytes), limit: limit}
}

// next returns the next line without its LF, never nil; it is valid until the next call. io.EOF after the last one.
func (r *lineReader) next() ([]byte, error) {
	r.long = r.long[:0]
	for {
		part, err := r.in.ReadSlice('\n')
		ended := err == nil
		if ended {
			part = part[:len(part)-1]
		}
		if len(r.long)+len(part) > r.limit {
			return nil, fmt.Errorf("line %d: %w: it is longer than the %d bytes the server takes", r.number+1, trunkline.ErrTooLarge, r.limit)
		}
		switch {
		case ended && len(r.long) == 0:
			r.number++
			return part, nil
		case !ended && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF):
			return nil, fmt.Errorf("read standard input after line %d: %w", r.number, err)
		case errors.Is(err, io.EOF) && len(r.long)+len(part) == 0:
			return nil, io.EOF
		}
		r.long = append(r.long, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			r.number++
			return r.long, nil
		}
	}
}

// pollMillis is how often a wait for input looks whether it was interrupted.
const pollMillis = 100

// waiting makes reads of a file end with ctx: a read of a terminal or pipe cannot be called back, so it is begun only
// when there is something to read. Other readers are left as they are.
func waiting(ctx context.Context, in io.Reader) io.Reader {
	if f, ok := in.(*os.File); ok {
		return &fileReader{done: ctx.Done(), err: ctx.Err, file: f}
	}
	return in
}

// fileReader lives as long as one command, whose context it watches.
type fileReader struct {
	done <-chan struct{}
	err  func() error
	file *os.File
}

func (r *fileReader) Read(b []byte) (int, error) {
	for {
		select {
		case <-r.done:
			return 0, r.err()
		default:
		}
		ready := []unix.PollFd{{Fd: int32(r.file.Fd()), Events: unix.POLLIN}}
		switch n, err := unix.Poll(ready, pollMillis); {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("poll: %w", err)
		case n > 0:
			return r.file.Read(b)
		}
	}
}
