// Command core is the core's side of one leased log, with the shipped store as its plugin: it appends, and truncates,
// until it is killed. A server of one broker never truncates a log under a living core, so there is none to be killed.
//
//	core DATA SERVER EPOCH
//
// It prints what it does before and after it does it, so that who reads can tell what has to be there:
//
//	R <body>   a record that is there, from the first on    a <body>   is being appended     T <offset>   is being truncated
//	READY      all of them were told                        A          is durable            D            is done
//	E <error>  the call before failed, and what is there follows when the log is open again
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/trunkline-mq/trunkline/plugins/host"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagerpc"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: core DATA SERVER EPOCH")
		os.Exit(2)
	}
	epoch, err := strconv.Atoi(os.Args[3])
	if err == nil {
		err = run(os.Args[1], os.Args[2], record.Epoch(epoch))
	}
	fmt.Fprintln(os.Stderr, "core:", err)
	os.Exit(1)
}

func run(data, server string, epoch record.Epoch) error {
	sockets, err := os.MkdirTemp("", "tlcore") // a socket's path has to be short
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]string{"data": data})
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	dir := lend.NewDir(lend.Options{Instance: fmt.Sprintf("core-%d-%d", os.Getpid(), time.Now().UnixNano()), Logger: log})
	lock, err := owned(data)
	if err != nil {
		return err
	}
	var sock *storagerpc.Socket
	up := host.New(host.Spec{
		Kind: "storage", Name: "filelog", Command: []string{server, "plugin", "storage", "filelog"}, Config: config, RunDir: sockets,
		Files: func() ([]*os.File, error) {
			ours, child, err := storagerpc.SocketPair()
			if err != nil {
				return nil, err
			}
			sock = ours
			inherited, err := syscall.Dup(int(lock.Fd()))
			return []*os.File{child, os.NewFile(uintptr(inherited), "lock")}, err
		},
		OnUp: func(ctx context.Context, inst *host.Instance) error {
			return dir.Adopt(ctx, &lend.Plugin{Store: storagerpc.NewClient(inst.Conn(), sock), Kill: inst.Kill})
		},
		OnDown: func(*host.Instance, error) {
			dir.Orphan()
			_ = sock.Close()
		},
	}, host.Options{Logger: log})
	if err := up.Start(context.Background()); err != nil {
		return err
	}
	tasks, ctx := errgroup.WithContext(context.Background())
	tasks.Go(func() error { return up.Run(ctx) })
	tasks.Go(func() error { return dir.Run(ctx) })
	tasks.Go(func() error {
		part := storage.Partition{Topic: "t", TopicID: strings.Repeat("0f", 16)}
		l, _, err := dir.Open(ctx, part, lend.OpenOptions{Create: true, Epoch: epoch, Settings: lend.Settings{SegmentBytes: 2 << 10}})
		if err != nil {
			return err
		}
		w := writer{log: l, epoch: epoch}
		if err := w.tell(ctx); err != nil {
			return err
		}
		for {
			if err := w.turn(ctx); err != nil {
				return err
			}
		}
	})
	return tasks.Wait()
}

// owned waits until whoever had the directory is dead, its plugin too, which inherits the lock.
func owned(data string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(data, "LOCK"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return lock, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
}

type writer struct {
	log   *lend.Log
	epoch record.Epoch
	made  int
}

// tell reads the whole log.
func (w *writer) tell(ctx context.Context) error {
	end := w.log.End()
	r, err := w.log.NewReader(ctx, 0)
	if err != nil {
		return err
	}
	for {
		b, err := r.Next(ctx, end)
		if errors.Is(err, lend.ErrEnd) {
			fmt.Println("READY")
			return nil
		}
		if err != nil {
			return err
		}
		it, rec := record.NewIterator(b), record.Record{}
		for _, ok := it.Next(&rec); ok; _, ok = it.Next(&rec) {
			fmt.Printf("R %s\n", rec.Value)
		}
	}
}

// turn appends some batches and takes some off again.
func (w *writer) turn(ctx context.Context) error {
	for range 1 + rand.IntN(60) { // more than a segment holds, now and then
		w.made++
		body := fmt.Sprintf("%d.%d", w.epoch, w.made)
		fmt.Println("a", body)
		var b record.Builder
		b.Reset(nil)
		b.Append(&record.Record{Value: []byte(body), Timestamp: time.Now().UnixMilli()})
		base := w.log.End()
		batch := b.Finish(base, w.log.Epoch())
		err := w.log.Append(ctx, lend.Group{Bytes: batch, Base: base, Next: base + 1, MaxTimestamp: b.MaxTimestamp()})
		if err != nil {
			return w.again(ctx, err)
		}
		fmt.Println("A")
	}
	next := max(0, w.log.End()-record.Offset(rand.IntN(70)))
	w.epoch++
	fmt.Println("T", next)
	if err := w.log.Truncate(ctx, next, w.epoch); err != nil {
		return w.again(ctx, err)
	}
	fmt.Println("D")
	return nil
}

// again waits until the plugin's successor has opened the log.
func (w *writer) again(ctx context.Context, cause error) error {
	fmt.Println("E", strings.ReplaceAll(cause.Error(), "\n", " "))
	const patience = time.Minute
	for end := time.Now().Add(patience); w.log.Stats().Down != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("the log stays down: %w", w.log.Stats().Down)
		}
	}
	return w.tell(ctx)
}
