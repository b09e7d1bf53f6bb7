// Package client tests the Go client against the shipped server and its plugins: kills in the middle of everything, and what
// only a real server does. What a fake server can be made to do is tested beside the client.
//
// make test kills a few times, make chaos often: -kills and -records say how much.
package client

import (
	"context"
	"flag"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

var (
	killsFlag   = flag.Int("kills", 5, "how often the server is killed under the load")
	recordsFlag = flag.Int("records", 60_000, "how many records are produced meanwhile")
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// server is one that comes back on another port each time, and is found there.
type server struct {
	*harness.Server
	address atomic.Pointer[string]
}

func start(t *testing.T, args ...string) *server {
	s := &server{Server: harness.Start(t, args...)}
	s.note()
	return s
}

func (s *server) note() {
	at := s.Client
	s.address.Store(&at)
}

// bounce kills the server and starts it again.
func (s *server) bounce() {
	s.Kill()
	s.Restart()
	s.note()
}

// dial connects a client that follows the server.
func (s *server) dial(ctx context.Context, t *testing.T, opts ...trunkline.Option) *trunkline.Client {
	t.Helper()
	var d net.Dialer
	opts = append(opts, trunkline.WithBackoff(5*time.Millisecond, 200*time.Millisecond),
		trunkline.WithDialer(func(ctx context.Context, network, _ string) (net.Conn, error) {
			return d.DialContext(ctx, network, *s.address.Load())
		}))
	c, err := trunkline.Dial(ctx, s.Client, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
