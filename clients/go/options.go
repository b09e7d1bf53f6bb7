package trunkline

import (
	"context"
	"net"
	"time"
)

// Option changes how Dial connects.
type Option func(*options)

// options are immutable once Dial has read them.
type options struct {
	name          string
	dial          func(ctx context.Context, network, address string) (net.Conn, error)
	inFlightBytes int
	pingInterval  time.Duration
	writeTimeout  time.Duration
	onAsync       func(error)
	controlLine   int // the server's bound on a line, which it does not tell
}

const (
	inFlightBytesDefault = 4 << 20
	pingIntervalDefault  = 30 * time.Second
	writeTimeoutDefault  = 60 * time.Second
	// requestOverhead is added to a publish's bytes in flight for what the client keeps per request, so that a bound
	// in bytes bounds a flood of empty records too.
	requestOverhead    = 64
	controlLineDefault = 4096
)

func newOptions(opts []Option) *options {
	dialer := net.Dialer{}
	o := &options{
		dial:          dialer.DialContext,
		inFlightBytes: inFlightBytesDefault,
		pingInterval:  pingIntervalDefault,
		writeTimeout:  writeTimeoutDefault,
		onAsync:       func(error) {},
		controlLine:   controlLineDefault,
	}
	for _, opt := range opts {
		opt(o)
	}
	return o
}

// WithName gives the connection a name that the server can show.
func WithName(name string) Option { return func(o *options) { o.name = name } }

// WithDialer makes connections with dial instead of net.Dialer.
func WithDialer(dial func(ctx context.Context, network, address string) (net.Conn, error)) Option {
	return func(o *options) { o.dial = dial }
}

// WithInFlightBytes bounds what is published and not yet answered, 4 MiB by default; Publish waits when it is reached.
// A record larger than n goes alone.
func WithInFlightBytes(n int) Option { return func(o *options) { o.inFlightBytes = max(n, 1) } }

// WithPingInterval sets how long the server may be silent before it is asked whether it is there, 30 s by default; a
// link whose server leaves two such questions unanswered is given up.
func WithPingInterval(d time.Duration) Option {
	return func(o *options) { o.pingInterval = max(d, time.Millisecond) }
}

// WithErrorHandler hands f the errors that answer no request, *ServerErrors with Async set, and at the end what broke
// the link if this side did not close it. It runs on the link's reader and must not block. Subscriptions report theirs
// through their iterator instead.
func WithErrorHandler(f func(error)) Option { return func(o *options) { o.onAsync = f } }
