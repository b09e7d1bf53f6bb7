package trunkline

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trunkline-mq/trunkline/clients/internal/scripted"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hello = scripted.Hello

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// dial connects for tests of what happens on one connection.
func dial(t *testing.T, address string, opts ...Option) *Client {
	t.Helper()
	c, err := Dial(testContext(t), address, append(opts, WithoutRetry())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
