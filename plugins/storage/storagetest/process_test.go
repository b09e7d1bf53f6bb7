package storagetest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/archive"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/memory"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagerpc"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/plugins/storage/stream"
)

// The test binary runs itself as the plugin's process; these tell it so.
const (
	childData   = "TRUNKLINE_TEST_STORAGE_DATA"
	childListen = "TRUNKLINE_TEST_STORAGE_LISTEN"
	childKind   = "TRUNKLINE_TEST_STORAGE_KIND"
)

func TestMain(m *testing.M) {
	if os.Getenv(childData) != "" {
		if err := serveChild(os.Getenv(childKind), os.Getenv(childData), os.Getenv(childListen)); err != nil {
			fmt.Fprintln(os.Stderr, "storage child:", err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// kinds are the stores that the suite is run on.
func kinds() []string { return []string{"filelog", "memory", "archive"} }

// stoppable is a plugin with its end.
type stoppable interface {
	storage.Plugin
	Stop() error
}

// newStore makes a store of a kind, or one that lies.
func newStore(kind, data string) (stoppable, error) {
	switch kind {
	case "filelog":
		return filelog.New(filelog.Options{Data: data})
	case "memory":
		return memory.New(memory.Options{Data: data, Cap: 1 << 30})
	case "archive":
		s, err := archive.New(archive.Options{Data: data})
		if err != nil {
			return nil, err
		}
		return stream.Serve(s), nil
	case "slab":
		return stream.Serve(newSlab()), nil
	}
	return newLiar(kind, data)
}

// serveChild is a plugin's main: a store behind gRPC, until standard input ends.
func serveChild(kind, data, listen string) error {
	sock, err := storagerpc.SocketFromFd(storagerpc.ChildFd)
	if err != nil {
		return err
	}
	store, err := newStore(kind, data)
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", listen)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	storagerpc.Register(server, store, sock)
	fmt.Println("ready")
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	_, _ = io.Copy(io.Discard, os.Stdin) // ends with the parent
	server.Stop()
	return errors.Join(<-done, store.Stop(), sock.Close())
}

// child is a running plugin process and the core's ends of what connects to it.
type child struct {
	store storage.Plugin
	cmd   *exec.Cmd
	stdin io.Closer
	conn  *grpc.ClientConn
	sock  *storagerpc.Socket
}

func startChild(t *testing.T, dir string) *child {
	t.Helper()
	return startChildOf(t, "filelog", dir)
}

func startChildOf(t testing.TB, kind, dir string) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("", "tl") // a socket's path has to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	listen := filepath.Join(run, "s")
	sock, end, err := storagerpc.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childKind+"="+kind, childData+"="+dir, childListen+"="+listen)
	cmd.ExtraFiles = []*os.File{end}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cmd.Start(), end.Close()); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("child said %q: %v", line, err)
	}
	conn, err := grpc.NewClient("unix:"+listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	return &child{store: storagerpc.NewClient(conn, sock), cmd: cmd, stdin: stdin, conn: conn, sock: sock}
}

// kill ends the process by SIGKILL and waits until it is gone; the core's ends stay open.
func (c *child) kill(t testing.TB) {
	t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.cmd.Wait() // says "killed"
	_ = c.stdin.Close()
}

func (c *child) close(t testing.TB) {
	t.Helper()
	if err := errors.Join(c.conn.Close(), c.sock.Close()); err != nil {
		t.Error(err)
	}
}

func TestConformanceInAProcessOfItsOwn(t *testing.T) {
	for _, kind := range kinds() {
		open := func(dir string) (storage.Plugin, func()) {
			child := startChildOf(t, kind, dir)
			return child.store, func() { child.kill(t); child.close(t) }
		}
		for _, c := range storagetest.CasesFor(storagetest.Describe(t, open)) {
			t.Run(kind+"/"+c.Name, func(t *testing.T) { c.Run(t, open) })
		}
	}
}

func TestRunRunsEveryCase(t *testing.T) {
	storagetest.Run(t, func(dir string) (storage.Plugin, func()) {
		s, err := filelog.New(filelog.Options{Data: dir})
		if err != nil {
			t.Fatal(err)
		}
		return s, func() {
			if err := s.Stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
		}
	})
}

func TestADeadProcessIsUnavailable(t *testing.T) {
	c := startChild(t, t.TempDir())
	defer c.close(t)
	w, _ := storagetest.NewWriter(t, c.store, storagetest.Creating(storagetest.Part(), "a"))
	w.Append("one")
	c.kill(t)
	if _, err := c.store.Describe(context.Background()); !errors.Is(err, storagerpc.ErrUnavailable) {
		t.Errorf("describe by a dead process: %v", err)
	}
	if _, err := c.store.Roll(context.Background(), w.RollRequest()); !errors.Is(err, storagerpc.ErrUnavailable) {
		t.Errorf("roll by a dead process: %v", err)
	}
	w.Append("two") // what is lent stays lent
}

func TestAStoppedProcessMeetsTheDeadline(t *testing.T) {
	c := startChild(t, t.TempDir())
	defer c.close(t)
	if _, err := c.store.Locate(context.Background(), storage.LocateRequest{Partition: storagetest.Part()}); !errors.Is(err, storage.ErrNotOpen) {
		t.Fatalf("locate: %v", err)
	}
	if err := c.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus // the signal takes a moment to stop every thread
	if _, err := syscall.Wait4(c.cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("child did not stop: %v, %v", status, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err := c.store.Describe(ctx)
	if !errors.Is(err, storagerpc.ErrDeadline) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("describe by a stopped process: %v", err)
	}
	c.kill(t)
}

// TestKilledAgainAndAgain kills the process at moments of no choosing while it rolls, notes and opens, and re-adopts or
// recovers; everything written stays.
func TestKilledAgainAndAgain(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, dir)
	w, _ := storagetest.NewWriter(t, c.store, storagetest.Creating(storagetest.Part(), "a"))
	var want []string
	for life := range 8 {
		killed := make(chan struct{})
		victim := c
		timer := time.AfterFunc(time.Duration(life*life)*time.Millisecond, func() {
			defer close(killed)
			victim.kill(t)
		})
		for alive := true; alive; {
			value := fmt.Sprintf("%d of life %d", len(want), life)
			w.Append(value)
			want = append(want, value)
			_ = c.store.Note(context.Background(), w.NoteRequest()) // may be cut off
			rolled := w.TryRoll() == nil
			select {
			case <-killed:
				alive = false
			default:
				if !rolled { // dying: what it answered no more is settled by the next life
					<-killed
					alive = false
				}
			}
		}
		timer.Stop()
		c.close(t)
		c = startChild(t, dir)
		if life%2 == 0 {
			w.Readopt(c.store)
			continue
		}
		w.Let()
		var opened storage.Opened
		w, opened = storagetest.NewWriter(t, c.store, storagetest.Recover(storagetest.Part(), fmt.Sprint("core", life)))
		if opened.Cut != nil || int(opened.Lease.Next) != len(want) {
			t.Fatalf("life %d: recovered to %+v with cut %+v, wrote %d", life, opened.Lease, opened.Cut, len(want))
		}
	}
	w.Note()
	got := storagetest.Read(t, c.store, storagetest.Part(), w.Next())
	if len(got) != len(want) {
		t.Fatalf("read back %d records of %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("record %d is %q, want %q", i, got[i], want[i])
		}
	}
	c.kill(t)
	c.close(t)
}
