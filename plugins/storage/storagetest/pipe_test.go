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
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagerpc"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
)

// pipeBytes is the pipe's buffer.
const pipeBytes = 1 << 16

// throughAPipe serves a filelog in this process: calls through memory, descriptors through a real socket pair.
func throughAPipe(t *testing.T, dir string) (storage.Plugin, func()) {
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
	store, err := filelog.New(filelog.Options{Data: dir})
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
	for _, c := range storagetest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			c.Run(t, func(dir string) (storage.Plugin, func()) { return throughAPipe(t, dir) })
		})
	}
}
