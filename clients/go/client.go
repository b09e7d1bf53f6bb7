package trunkline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
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
	// MaxPayload bounds a record's value with its header block, in bytes.
	MaxPayload int  `json:"max_payload"`
	Headers    bool `json:"headers"`
	Trunkline  struct {
		Version  string          `json:"version"`
		Protocol int             `json:"protocol"`
		Broker   json.RawMessage `json:"broker"`
		Cluster  string          `json:"cluster"`
	} `json:"trunkline"`
}

// Client is a connection to a server.
type Client struct {
	address string // immutable
	opt     *options
	info    ServerInfo
	link    *link

	mu     sync.Mutex
	closed bool                 // guarded by mu
	open   map[*stream]struct{} // guarded by mu; what Close must end
}

// Dial connects to the server at url, "HOST", "HOST:PORT" or "trunkline://HOST:PORT"; empty is 127.0.0.1:8765. It tries
// once, until ctx ends. Errors match ErrConnect, ErrProtocol for a peer that is no such server, or ErrInvalid for a URL.
func Dial(ctx context.Context, url string, opts ...Option) (*Client, error) {
	address, err := hostPort(url)
	if err != nil {
		return nil, err
	}
	c := &Client{address: address, opt: newOptions(opts), open: make(map[*stream]struct{})}
	conn, parser, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	c.link = newLink(conn, parser, &publisher{c}, c.opt)
	return c, nil
}

// Info returns what the server said of itself.
func (c *Client) Info() ServerInfo { return c.info }

// Address returns the HOST:PORT the client is connected to.
func (c *Client) Address() string { return c.address }

// Close ends the link, every subscription and every reading, and returns when their goroutines are gone. What is
// published and not answered ends with a *LinkError: call Flush first. It is safe to call twice; callbacks must not.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	open := c.open
	c.open = nil
	c.mu.Unlock()
	for s := range open {
		s.close()
	}
	c.link.close()
	return nil
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
func (c *Client) connect(ctx context.Context) (net.Conn, *line.FrameParser, error) {
	conn, err := c.opt.dial(ctx, "tcp", c.address)
	if err != nil {
		return nil, nil, fmt.Errorf("%w to %s: %w", ErrConnect, c.address, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	parser := line.NewFrameParser(line.Limits{ControlLine: frameLineBytesMax, Payload: frameBodyBytesMax})
	err = c.shakeHands(conn, parser)
	if !stop() && ctx.Err() != nil {
		err = fmt.Errorf("%w to %s: %w", ErrConnect, c.address, context.Cause(ctx))
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, parser, nil
}

func (c *Client) shakeHands(conn net.Conn, parser *line.FrameParser) error {
	var f line.Frame
	if err := c.await(conn, parser, &f); err != nil {
		return err
	}
	if f.Kind != line.FrameInfo {
		return violation("%s does not begin with INFO", c.address)
	}
	var info ServerInfo
	if err := json.Unmarshal(f.Detail, &info); err != nil {
		return violation("INFO of %s cannot be read: %v", c.address, err)
	}
	if info.Trunkline.Protocol < ProtocolVersion {
		return violation("%s is no Trunkline server of protocol %d (server version %q)", c.address, ProtocolVersion, info.Version)
	}
	hello, err := json.Marshal(connectJSON{
		Verbose: true, Lang: "trunkline-go", Version: Version, Name: c.opt.name, Protocol: 1,
		Echo: true, Headers: true, Timestamps: true, Addresses: true,
	})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %s\r\n", hello); err != nil {
		return fmt.Errorf("%w to %s: %w", ErrConnect, c.address, err)
	}
	for {
		if err := c.await(conn, parser, &f); err != nil {
			return err
		}
		switch f.Kind {
		case line.FrameOK:
			if c.link == nil { // later connections must not change what callers read
				c.info = info
			}
			return nil
		case line.FramePing:
			if _, err := conn.Write([]byte("PONG\r\n")); err != nil {
				return fmt.Errorf("%w to %s: %w", ErrConnect, c.address, err)
			}
		case line.FrameInfo:
		case line.FrameErr, line.FrameAsyncErr:
			return fmt.Errorf("connect to %s: %w", c.address, serverError(&f))
		default:
			return violation("%s answers CONNECT with something else", c.address)
		}
	}
}

// await reads one frame.
func (c *Client) await(conn net.Conn, parser *line.FrameParser, f *line.Frame) error {
	for {
		ok, err := parser.Next(f)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrProtocol, c.address, err)
		}
		if ok {
			return nil
		}
		n, err := conn.Read(parser.Buffer())
		parser.Advance(n)
		if n == 0 && err != nil {
			return fmt.Errorf("%w to %s: no greeting: %w", ErrConnect, c.address, err)
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
		p.c.opt.onAsync(fmt.Errorf("link to %s: %w", p.c.address, err))
	}
}
