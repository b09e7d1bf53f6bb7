package natsdiff

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// TestALibraryIsToldTheSameByBoth: what a library makes of a refusal hangs on its exact words. The Go one takes
// "Permissions Violation …" for its error handler, and closes itself on "Invalid Publish Subject", which only who asked
// to be pedantic is told.
func TestALibraryIsToldTheSameByBoth(t *testing.T) {
	servers := map[string]string{
		"nats-server": startNATS(t),
		"trunkline":   harness.StartIn(t, []string{"TRUNKLINE_TOPICS_AUTO_CREATE=false"}).Client,
	}
	for name, addr := range servers {
		t.Run(name, func(t *testing.T) {
			for _, test := range []struct {
				what     string
				pedantic bool
				closed   string // the error with which it ends; empty: it goes on
				do       func(nc *nats.Conn) error
			}{
				{"a publish to a pattern, pedantic", true, "nats: Invalid Publish Subject", func(nc *nats.Conn) error { return nc.Publish("foo.*", nil) }},
				{"a publish to a pattern", false, "", func(nc *nats.Conn) error { return nc.Publish("foo.*", nil) }},
				{"a subscription to what is no subject", false, "nats: Invalid Subject", func(nc *nats.Conn) error {
					_, err := nc.SubscribeSync("foo.>.bar")
					return err
				}},
			} {
				t.Run(test.what, func(t *testing.T) {
					ended := make(chan error, 1)
					nc, err := nats.Connect("nats://"+addr, nats.Timeout(harness.Patience), nats.NoReconnect(),
						nats.ClosedHandler(func(nc *nats.Conn) { ended <- nc.LastError() }),
						func(o *nats.Options) error { o.Pedantic = test.pedantic; return nil })
					if err != nil {
						t.Fatal(err)
					}
					defer nc.Close()
					if err := test.do(nc); err != nil {
						t.Fatal(err)
					}
					err = nc.FlushTimeout(harness.Patience)
					if test.closed == "" {
						if err != nil {
							t.Errorf("it does not go on: %v", err)
						}
						return
					}
					select {
					case err := <-ended:
						if err == nil || err.Error() != test.closed {
							t.Errorf("it ends with %v", err)
						}
					case <-time.After(harness.Patience):
						t.Fatal("it goes on")
					}
				})
			}
		})
	}
}
