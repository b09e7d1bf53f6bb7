package storagetest_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagerpc"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
)

// pipeBytes is the pipe's buffer.
const pipeBytes = 1 << 16

// throughAPipe serves a store in this process: calls through memory, descriptors through a real socket pair.
func throughAPipe(t *testing.T, kind, dir string) (storage.Plugin, func()) {
	t.Helper()
	core, child, err := storagerpc.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(child.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	plugin, err := storagerpc.SocketFromFd(fd)
	if err := errors.Join(err, child.Close()); err != nil {
		t.Fatal(err)
	}
	store, err := newStore(kind, dir)
	if err != nil {
		t.Fatal(err)
	}
	pipe := bufconn.Listen(pipeBytes)
	server := grpc.NewServer()
	storagerpc.Register(server, store, plugin)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(pipe) }) // ends with Stop
	conn, err := grpc.NewClient("passthrough:pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	return storagerpc.NewClient(conn, core), func() {
		server.Stop()
		serving.Wait()
		if err := errors.Join(conn.Close(), store.Stop(), plugin.Close(), core.Close()); err != nil {
			t.Errorf("end of the pipe: %v", err)
		}
	}
}

func TestConformanceThroughAPipe(t *testing.T) {
	for _, kind := range kinds() {
		open := func(dir string) (storage.Plugin, func()) { return throughAPipe(t, kind, dir) }
		for _, c := range storagetest.CasesFor(storagetest.Describe(t, open)) {
			t.Run(kind+"/"+c.Name, func(t *testing.T) { c.Run(t, open) })
		}
	}
}

// wire serves what register offers through a pipe, with the plugin's end of the lend socket in its hands.
func wire(t *testing.T, register func(*grpc.Server, *net.UnixConn)) storage.Plugin {
	t.Helper()
	core, child, err := storagerpc.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(child)
	if err := errors.Join(err, child.Close()); err != nil {
		t.Fatal(err)
	}
	pipe := bufconn.Listen(pipeBytes)
	server := grpc.NewServer()
	register(server, conn.(*net.UnixConn))
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(pipe) }) // ends with Stop
	cc, err := grpc.NewClient("passthrough:pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
		if err := errors.Join(cc.Close(), conn.Close(), core.Close()); err != nil {
			t.Errorf("end of the pipe: %v", err)
		}
	})
	return storagerpc.NewClient(cc, core)
}
