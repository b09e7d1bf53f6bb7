package conn

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
)

// natsLevel is the NATS server version whose client protocol this server speaks: libraries decide by it what they may
// send.
const natsLevel = "2.12.0"

// Protocol is the version of Trunkline's own verbs.
const Protocol = 1

// ownLang begins the "lang" of clients that were made for this server; any other library knows NATS only.
const ownLang = "trunkline-"

// info is the server's greeting: NATS's fields, then ours.
type info struct {
	ServerID   string        `json:"server_id"`
	ServerName string        `json:"server_name"`
	Version    string        `json:"version"`
	Proto      int           `json:"proto"`
	Go         string        `json:"go"`
	Host       string        `json:"host"`
	Port       int           `json:"port"`
	Headers    bool          `json:"headers"`
	MaxPayload int           `json:"max_payload"`
	ClientID   uint64        `json:"client_id"`
	ClientIP   string        `json:"client_ip"`
	URLs       []string      `json:"connect_urls,omitempty"`
	Connected  bool          `json:"connect_info,omitempty"` // it answers CONNECT
	LameDuck   bool          `json:"ldm,omitempty"`
	Trunkline  infoTrunkline `json:"trunkline"`
}

type infoTrunkline struct {
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
	Broker   int    `json:"broker"`
	Cluster  string `json:"cluster"`
	HTTP     string `json:"http,omitempty"` // where it listens for HTTP
}

// occasion is why INFO is sent.
type occasion uint8

const (
	greeting  occasion = iota
	connected          // after the first PING behind CONNECT: libraries that know of it take it as the answer to both
	leaving            // the server is about to go; its own address is not among those that are named
)

func (c *conn) appendInfo(dst []byte) []byte { return c.appendInfoOf(dst, greeting) }

func (c *conn) appendInfoOf(dst []byte, why occasion) []byte {
	id := c.srv.opt.Identity
	var urls []string
	if id.Advertise != "" && why != leaving {
		urls = []string{id.Advertise}
	}
	host, number := c.reached()
	peer, _, _ := net.SplitHostPort(c.nc.RemoteAddr().String())
	text, _ := json.Marshal(info{ // cannot fail: strings and numbers
		ServerID: id.ServerID, ServerName: id.Name, Version: natsLevel, Proto: 1, Go: runtime.Version(),
		Host: host, Port: number, Headers: true, MaxPayload: c.srv.opt.Limits.Payload, ClientID: c.id, ClientIP: peer,
		URLs: urls, Connected: why == connected, LameDuck: why == leaving,
		Trunkline: infoTrunkline{Version: id.Version, Protocol: Protocol, Broker: id.Broker, Cluster: id.Cluster, HTTP: id.HTTP},
	})
	dst = append(dst, "INFO "...)
	dst = append(dst, text...)
	return append(dst, '\r', '\n')
}

// connect is what this server reads of CONNECT's JSON. Absent fields keep their defaults; NATS's other fields are of no
// concern here.
type connect struct {
	Verbose    *bool  `json:"verbose"`
	Headers    *bool  `json:"headers"`
	Protocol   int    `json:"protocol"`
	Lang       string `json:"lang"`
	Addresses  bool   `json:"addresses"`
	Timestamps bool   `json:"timestamps"`
	Pedantic   *bool  `json:"pedantic"`
	Echo       *bool  `json:"echo"`
	NoReply    bool   `json:"no_responders"`
}

// parseConnect reads CONNECT's JSON, which may be missing.
func parseConnect(args [][]byte) (ask connect, _ *errcode.Error) {
	if len(args) > 0 {
		if err := json.Unmarshal(args[0], &ask); err != nil {
			return ask, errcode.New(errcode.BadJSON, "CONNECT's JSON cannot be read: "+jsonFault(err), `send CONNECT {} or CONNECT {"verbose":false}`)
		}
	}
	switch {
	case ask.Protocol < 0 || ask.Protocol > 1:
		return ask, errcode.New(errcode.BadArgs, "protocol "+strconv.Itoa(ask.Protocol)+" is not spoken here", "send 0 or 1")
	case ask.NoReply && ask.Headers != nil && !*ask.Headers:
		return ask, errcode.New(errcode.BadArgs, "no_responders needs headers", "send \"headers\":true, or leave no_responders out")
	}
	return ask, nil
}

// jsonFault says what is wrong with JSON in words that are not those of the language this server is written in.
func jsonFault(err error) string {
	var kind *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &kind) && kind.Field != "":
		return fmt.Sprintf("the value of %q is of the wrong kind: %s", clip([]byte(kind.Field)), clip([]byte(kind.Value)))
	case errors.As(err, &kind):
		return "an object is wanted, not this: " + kind.Value
	case errors.As(err, &syntax):
		return fmt.Sprintf("%v, at byte %d", syntax, syntax.Offset)
	}
	return err.Error()
}

// library reports whether the client knows NATS only.
func (ask *connect) library() bool { return ask.Lang != "" && !strings.HasPrefix(ask.Lang, ownLang) }

// options are what a connection that asks so gets.
func (ask *connect) options() options {
	o := options{
		verbose:    ask.Verbose == nil || *ask.Verbose,
		headers:    !ask.library(), // a library says so if it reads them
		timestamps: ask.Timestamps,
		nats:       ask.library(),
		literal:    ask.library() && !ask.Addresses,
		pedantic:   ask.Pedantic == nil || *ask.Pedantic,
		echo:       ask.Echo == nil || *ask.Echo,
		news:       ask.Protocol >= 1,
	}
	if ask.Headers != nil {
		o.headers = *ask.Headers
	}
	o.noResponders = ask.NoReply && o.headers
	return o
}

func (c *conn) handleConnect(cmd *line.Command) {
	ask, err := parseConnect(cmd.Args)
	if err != nil {
		c.fail(cmd, err)
		return
	}
	if c.pulse.kind.Load() != kindUnknown { // as in NATS, who connects again begins again
		c.subs.endAll()
	}
	first, due := c.pulse.kind.Load() == kindUnknown, c.opt.news
	c.opt = ask.options()
	c.opt.news = c.opt.news && (first || due)
	kind := kindOurs
	if ask.library() {
		kind = kindNATS
	}
	c.pulse.kind.Store(kind)
	c.ok()
}
