package trunkline

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"
)

// Option changes how Dial connects.
type Option func(*options)

// options are immutable once Dial has read them.
type options struct {
	name          string
	servers       []string // HOST:PORT
	dial          func(ctx context.Context, network, address string) (net.Conn, error)
	inFlightBytes int
	pingInterval  time.Duration
	writeTimeout  time.Duration
	backoff       backoff
	once          bool // nothing is tried twice
	onAsync       func(error)
	hooks         Hooks
	log           *slog.Logger
	controlLine   int // the server's bound on a line, which it does not tell
	metadataAge   time.Duration
}

// backoff is the pause before the n-th try in a row.
type backoff struct{ least, most time.Duration }

const (
	inFlightBytesDefault = 4 << 20
	pingIntervalDefault  = 30 * time.Second
	writeTimeoutDefault  = 60 * time.Second
	// requestOverhead is added to a publish's bytes in flight for what the client keeps per request, so that a bound
	// in bytes bounds a flood of empty records too.
	requestOverhead    = 64
	controlLineDefault = 4096
	// The first pause is shorter than a person notices, the longest short enough that a server which comes back is found
	// before somebody looks into it.
	backoffLeast       = 50 * time.Millisecond
	backoffMost        = 2 * time.Second
	metadataAgeDefault = 10 * time.Second
)

func newOptions(opts []Option) *options {
	dialer := net.Dialer{}
	o := &options{
		dial:          dialer.DialContext,
		inFlightBytes: inFlightBytesDefault,
		pingInterval:  pingIntervalDefault,
		writeTimeout:  writeTimeoutDefault,
		backoff:       backoff{backoffLeast, backoffMost},
		onAsync:       func(error) {},
		log:           slog.New(slog.DiscardHandler),
		controlLine:   controlLineDefault,
		metadataAge:   metadataAgeDefault,
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

// WithInFlightBytes bounds what Publish has sent and is not yet answered, 4 MiB by default; Publish waits when it is
// reached. A record larger than n goes alone.
func WithInFlightBytes(n int) Option { return func(o *options) { o.inFlightBytes = max(n, 1) } }

// WithPingInterval sets how long the server may be silent before it is asked whether it is there, 30 s by default; a
// link whose server leaves two such questions unanswered is given up.
func WithPingInterval(d time.Duration) Option {
	return func(o *options) { o.pingInterval = max(d, time.Millisecond) }
}

// WithBackoff sets the pauses between tries to connect, or to do again what failed: least before the second try, then
// twice as much for each, up to most. Each is shortened by up to half at random, so that clients of one server do not come
// back in step. The default is 50 ms to 2 s.
func WithBackoff(least, most time.Duration) Option {
	return func(o *options) {
		o.backoff.least = max(least, time.Millisecond)
		o.backoff.most = max(most, o.backoff.least)
	}
}

// WithoutRetry makes the client try everything once: a link that ends stays ended, and what fails is the caller's to
// repeat.
func WithoutRetry() Option { return func(o *options) { o.once = true } }

// WithMetadataAge sets how old what is known of a topic may become before the server is asked again, 10 s by default. By
// that a Consumer and a Subscription that has come back notice that a topic has grown; a Producer is told by the server.
func WithMetadataAge(d time.Duration) Option {
	return func(o *options) { o.metadataAge = max(d, time.Millisecond) }
}

// WithErrorHandler hands f the errors that answer no request, *ServerErrors with Async set, and what broke the client's
// own link if this side did not close it. It runs on the link's reader and must not block. Subscriptions report theirs
// through their iterator instead.
func WithErrorHandler(f func(error)) Option { return func(o *options) { o.onAsync = f } }

// WithLogger makes the client log what an operator wants to know: connections that end and come back at Info and Warn, what
// is tried again at Debug. Without it, nothing is logged.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.log = l } }

// WithHooks has functions called when something happens, for metrics and traces.
func WithHooks(h Hooks) Option { return func(o *options) { o.hooks = h } }

// Hooks are called when something happens; those that are nil are not. They run on the client's goroutines: they must not
// block, nor call the client. Several may run at once.
type Hooks struct {
	// Connected is called for each connection that was made.
	Connected func(Connected)
	// Disconnected is called for each connection that has ended, but for those that this side closed.
	Disconnected func(Disconnected)
	// Produced is called when a batch of a Producer has its outcome.
	Produced func(Produced)
	// Retried is called when a batch of a Producer is going to be sent again.
	Retried func(Retried)
	// Fetched is called for each batch of records that came to a Consumer.
	Fetched func(Fetched)
}

// Connected tells of a connection that was made.
type Connected struct {
	Purpose string // "client", "producer", "consumer", or "subscription to …"
	Address string
	Tries   int // 1 for the first
}

// Disconnected tells of a connection that has ended.
type Disconnected struct {
	Purpose string
	Address string
	Err     error
}

// Produced tells of a batch that has its outcome.
type Produced struct {
	Topic     string
	Partition PartitionID // -1: the server placed each record
	Records   int
	Bytes     int // as sent
	Plain     int // before compression
	Tries     int
	Took      time.Duration // from the first try to the outcome
	Err       error         // nil: written; where the server placed the records, the first error
}

// Retried tells of a batch that is going to be sent again.
type Retried struct {
	Topic     string
	Partition PartitionID
	Records   int
	Unknown   bool // its records may be in the log already: they may be there twice
	Err       error
}

// Fetched tells of records that came to a Consumer.
type Fetched struct {
	Topic         string
	Partition     PartitionID
	Records       int
	Bytes         int // as they came
	HighWatermark Offset
}

// DefaultPort is where a server listens unless told otherwise.
const DefaultPort = 8765

// serverList turns a list of URLs, separated by commas, into what net.Dial takes.
func serverList(urls string) ([]string, error) {
	var list []string
	for url := range strings.SplitSeq(urls, ",") {
		address, err := hostPort(strings.TrimSpace(url))
		if err != nil {
			return nil, err
		}
		list = append(list, address)
	}
	return list, nil
}

// hostPort turns a URL whose scheme and port are optional into what net.Dial takes.
func hostPort(url string) (string, error) {
	rest := url
	if scheme, after, ok := strings.Cut(url, "://"); ok {
		switch strings.ToLower(scheme) {
		case "trunkline", "nats", "tcp":
		default:
			return "", invalid("URL %q has the scheme %q; use trunkline://HOST:PORT", url, scheme)
		}
		rest = after
	}
	rest = strings.TrimSuffix(rest, "/")
	if strings.ContainsAny(rest, "/@?# \t\r\n,") {
		return "", invalid("URL %q is more than HOST:PORT", url)
	}
	if rest == "" {
		rest = "127.0.0.1"
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		host, port = strings.Trim(rest, "[]"), strconv.Itoa(DefaultPort)
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return "", invalid("URL %q is not HOST:PORT", url)
		}
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", invalid("URL %q has the port %q; a port is 1 to 65535", url, port)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}
