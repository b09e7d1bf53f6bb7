// Package trunkline is the Go client: it publishes records and tells for each what became of it, reads them, and looks
// after topics. It speaks the line protocol and nothing else.
//
// There are two ways to write and two to read.
//
//   - Client.Publish sends a record by itself and repeats nothing: what was sent and not answered when a link died has an
//     unknown outcome and says so (ErrOutcomeUnknown). It also reaches live subjects.
//   - A Producer gathers records into batches, which is several times as fast, compresses them if told so, and repeats what
//     failed: every record is there at least once, in the order in which it was produced. Most programs want this one.
//   - A Consumer fetches batches, ahead of who reads, checks and unpacks them here, and can seek and pause. Most programs want
//     this one. The caller keeps the positions: Positions tells them.
//   - A Subscription has the server push records, and is for live subjects and wildcards, too; Client.Get reads what is there.
//
// Publishing, producing, consuming and each subscription have a connection of their own, so that a slow reader is slowed by
// its socket alone. A connection that ends is made again, with pauses, to any of the servers that Dial was given; what is
// retriable is tried again until its context ends; what is not comes back as an error whose family errors.Is tells. Hooks and a
// logger tell what goes on meanwhile. WithoutRetry turns all that off.
//
// All methods may be called concurrently, except where they say otherwise. Package tlfake is a broker in memory for tests.
package trunkline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/line"
)

// Version is this client's version, which it tells the server.
const Version = "0.1.0"

// ProtocolVersion is the version of the line protocol that this client speaks.
const ProtocolVersion = 1

// What a server may make the client hold of one frame. A line carries INFO's JSON or the addresses of all partitions
// after a GET; a body a record with its headers, or the list of all topics.
const (
	frameLineBytesMax = 1 << 20
	frameBodyBytesMax = 128 << 20
)

// ServerInfo is what the server said of itself when the connection was made.
type ServerInfo struct {
	ServerID   string `json:"server_id"`
	ServerName string `json:"server_name"`
	Version    string `json:"version"`
	Host       string `json:"host"`      // of the server, as this client reached it, or as the server advertises it
	ClientIP   string `json:"client_ip"` // of this client, as the server sees it
	// MaxPayload bounds a record's value with its header block, in bytes.
	MaxPayload int  `json:"max_payload"`
	Headers    bool `json:"headers"`
	Trunkline  struct {
		Version  string          `json:"version"`
		Protocol int             `json:"protocol"`
		Broker   json.RawMessage `json:"broker"`
		Cluster  string          `json:"cluster"`
		HTTP     string          `json:"http"` // HOST:PORT where the server listens for HTTP; empty where it does not, or does not say
	} `json:"trunkline"`
}

// Client is a connection to a server.
type Client struct {
	opt        *options
	main       *session // for publishes and administration
	maxPayload atomic.Int64

	mu     sync.Mutex
	info   ServerInfo          // guarded by mu; of the newest connection
	closed bool                // guarded by mu
	open   map[closer]struct{} // guarded by mu; what Close must end
}

// closer is what a client has open: subscriptions, readings, producers, consumers. Its close waits for its goroutines.
type closer interface{ close() }

// Dial connects to the server at url, "HOST", "HOST:PORT" or "trunkline://HOST:PORT"; empty is 127.0.0.1:8765. Several, with
// commas between them, are tried in turn, now and whenever a connection has ended. It tries each once, until ctx ends. Errors
// match ErrConnect, ErrProtocol for a peer that is no such server, or ErrInvalid for a URL.
func Dial(ctx context.Context, url string, opts ...Option) (*Client, error) {
	servers, err := serverList(url)
	if err != nil {
		return nil, err
	}
	c := &Client{opt: newOptions(opts), open: make(map[closer]struct{})}
	c.opt.servers = servers
	c.main = c.newSession("client", &publisher{c})
	if _, err := c.main.get(ctx); err != nil {
		if cut, ok := errors.AsType[*LinkError](err); ok {
			err = cut.Err
		}
		return nil, err
	}
	return c, nil
}

// Info returns what the server said of itself when the newest connection was made.
func (c *Client) Info() ServerInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info
}

// Address returns the HOST:PORT that the client's own link is or was connected to.
func (c *Client) Address() string { return c.main.address() }

// Close ends the client's connections and what was opened with it, and returns when their goroutines are gone. What is
// published or produced and not answered ends with an error: call Flush first. It is safe to call twice; callbacks must not.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	open := c.open
	c.open = nil
	c.mu.Unlock()
	for s := range open {
		s.close()
	}
	c.main.close()
	return nil
}

// add makes Close end s. It fails after Close.
func (c *Client) add(s closer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.open[s] = struct{}{}
	return nil
}

// drop is the opposite of add; what was never added may be dropped.
func (c *Client) drop(s closer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, s)
}

// connectJSON is the argument of CONNECT. Verbose makes each publish have its own final answer.
type connectJSON struct {
	Verbose    bool   `json:"verbose"`
	Pedantic   bool   `json:"pedantic"`
	Lang       string `json:"lang"`
	Version    string `json:"version"`
	Name       string `json:"name,omitempty"`
	Protocol   int    `json:"protocol"`
	Echo       bool   `json:"echo"`
	Headers    bool   `json:"headers"`
	Timestamps bool   `json:"timestamps"`
	Addresses  bool   `json:"addresses"`
}

// connect makes one connection and shakes hands on it.
func (c *Client) connect(ctx context.Context, address string) (net.Conn, *line.FrameParser, error) {
	conn, err := c.opt.dial(ctx, "tcp", address)
	if err != nil {
		return nil, nil, fmt.Errorf("%w to %s: %w", ErrConnect, address, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	parser := line.NewFrameParser(line.Limits{ControlLine: frameLineBytesMax, Payload: frameBodyBytesMax})
	err = c.shakeHands(conn, parser, address)
	if !stop() && ctx.Err() != nil {
		err = fmt.Errorf("%w to %s: %w", ErrConnect, address, context.Cause(ctx))
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, parser, nil
}

func (c *Client) shakeHands(conn net.Conn, parser *line.FrameParser, address string) error {
	var f line.Frame
	if err := await(conn, parser, &f, address); err != nil {
		return err
	}
	if f.Kind != line.FrameInfo {
		return violation("%s does not begin with INFO", address)
	}
	var info ServerInfo
	if err := json.Unmarshal(f.Detail, &info); err != nil {
		return violation("INFO of %s cannot be read: %v", address, err)
	}
	if info.Trunkline.Protocol < ProtocolVersion {
		return violation("%s is no Trunkline server of protocol %d (server version %q)", address, ProtocolVersion, info.Version)
	}
	hello, err := json.Marshal(connectJSON{
		Verbose: true, Lang: "trunkline-go", Version: Version, Name: c.opt.name, Protocol: 1,
		Echo: true, Headers: true, Timestamps: true, Addresses: true,
	})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %s\r\n", hello); err != nil {
		return fmt.Errorf("%w to %s: %w", ErrConnect, address, err)
	}
	for {
		if err := await(conn, parser, &f, address); err != nil {
			return err
		}
		switch f.Kind {
		case line.FrameOK:
			c.mu.Lock()
			c.info = info
			c.mu.Unlock()
			c.maxPayload.Store(int64(info.MaxPayload))
			return nil
		case line.FramePing:
			if _, err := conn.Write([]byte("PONG\r\n")); err != nil {
				return fmt.Errorf("%w to %s: %w", ErrConnect, address, err)
			}
		case line.FrameInfo:
		case line.FrameErr, line.FrameAsyncErr:
			return fmt.Errorf("connect to %s: %w", address, serverError(&f))
		default:
			return violation("%s answers CONNECT with something else", address)
		}
	}
}

// await reads one frame.
func await(conn net.Conn, parser *line.FrameParser, f *line.Frame, address string) error {
	for {
		ok, err := parser.Next(f)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrProtocol, address, err)
		}
		if ok {
			return nil
		}
		n, err := conn.Read(parser.Buffer())
		parser.Advance(n)
		if n == 0 && err != nil {
			return fmt.Errorf("%w to %s: no greeting: %w", ErrConnect, address, err)
		}
	}
}

// publisher is the handler of the client's own link, on which nothing is delivered.
type publisher struct{ c *Client }

func (p *publisher) message(f *line.Frame) error {
	return violation("a record for %.80q that nobody asked for", f.Subject)
}

func (p *publisher) async(err *ServerError) { p.c.opt.onAsync(err) }

func (p *publisher) drained() error { return nil }

func (p *publisher) ended(err error) {
	if !errors.Is(err, ErrClosed) {
		p.c.opt.onAsync(fmt.Errorf("link to %s: %w", p.c.Address(), err))
	}
}

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
