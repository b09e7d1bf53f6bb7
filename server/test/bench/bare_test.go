package bench

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
)

// runBare serves connections with f until standard input ends.
func runBare(dir string, f func(nc *net.TCPConn, file *os.File) error) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(l.Addr())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return // closed
			}
			if err := serveBare(nc.(*net.TCPConn), dir, f); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	})
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = l.Close()
	serving.Wait()
	return 0
}

func serveBare(nc *net.TCPConn, dir string, f func(nc *net.TCPConn, file *os.File) error) error {
	defer func() { _ = nc.Close() }()
	file, err := os.OpenFile(filepath.Join(dir, "file"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	err = f(nc, file)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// sink reads frames, a length in four bytes and a record batch, checks the batch's CRC, writes what came together at the
// file's end, and answers each frame with a byte. The file begins anew with each connection.
func sink(nc *net.TCPConn, file *os.File) error {
	if err := file.Truncate(0); err != nil {
		return err
	}
	r := bufio.NewReaderSize(nc, 1<<20)
	group := make([]byte, 0, 2<<20)
	answers := make([]byte, 64)
	var at int64
	for {
		group, answers = group[:0], answers[:0]
		for len(group) == 0 || r.Buffered() > 4 && len(group) < 1<<20 {
			var head [4]byte
			if _, err := io.ReadFull(r, head[:]); err != nil {
				return err
			}
			n := int(binary.BigEndian.Uint32(head[:]))
			if len(group)+n > cap(group) {
				return errors.New("frame is too large")
			}
			batch := group[len(group) : len(group)+n]
			if _, err := io.ReadFull(r, batch); err != nil {
				return err
			}
			if crc32.Checksum(batch[21:], castagnoli) != binary.BigEndian.Uint32(batch[17:]) {
				return errors.New("frame has a wrong checksum")
			}
			group, answers = group[:len(group)+n], append(answers, '+')
		}
		if _, err := file.WriteAt(group, at); err != nil {
			return err
		}
		at += int64(len(group))
		if _, err := nc.Write(answers); err != nil {
			return err
		}
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// source sends the file by sendfile, in pieces of 1 MiB, for each byte it is sent.
func source(nc *net.TCPConn, file *os.File) error {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	for {
		var ask [1]byte
		if _, err := io.ReadFull(nc, ask[:]); err != nil {
			return err
		}
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		for left := size; left > 0; {
			n, err := io.Copy(nc, io.LimitReader(file, min(left, 1<<20))) // net hands this to sendfile
			if err != nil {
				return err
			}
			left -= n
		}
	}
}
