package conn

import (
	"encoding/json"
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
	LameDuck   bool          `json:"ldm,omitempty"`
	Trunkline  infoTrunkline `json:"trunkline"`
}

type infoTrunkline struct {
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
	Broker   int    `json:"broker"`
	Cluster  string `json:"cluster"`
}

func (c *conn) appendInfo(dst []byte) []byte { return c.appendInfoOf(dst, false) }

// appendInfoOf is the greeting, or, of a server that is about to go, the news that tells libraries to go elsewhere: its
// own address is not among those.
func (c *conn) appendInfoOf(dst []byte, leaving bool) []byte {
	id := c.srv.opt.Identity
	var urls []string
	if id.Advertise != "" && !leaving {
		urls = []string{id.Advertise}
	}
	host, number := c.reached()
	peer, _, _ := net.SplitHostPort(c.nc.RemoteAddr().String())
	text, _ := json.Marshal(info{ // cannot fail: strings and numbers
		ServerID: id.ServerID, ServerName: id.Name, Version: natsLevel, Proto: 1, Go: runtime.Version(),
		Host: host, Port: number, Headers: true, MaxPayload: c.srv.opt.Limits.Payload, ClientID: c.id, ClientIP: peer,
		URLs: urls, LameDuck: leaving,
		Trunkline: infoTrunkline{Version: id.Version, Protocol: Protocol, Broker: id.Broker, Cluster: id.Cluster},
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

func (c *conn) handleConnect(cmd *line.Command) {
	var ask connect
	var err error
	if len(cmd.Args) > 0 {
		err = json.Unmarshal(cmd.Args[0], &ask)
	}
	switch {
	case err != nil:
		c.fail(cmd, errcode.New(errcode.BadJSON, "CONNECT's JSON cannot be read: "+err.Error(), `send CONNECT {} or CONNECT {"verbose":false}`))
		return
	case ask.Protocol < 0 || ask.Protocol > 1:
		c.fail(cmd, errcode.New(errcode.BadArgs, "protocol "+strconv.Itoa(ask.Protocol)+" is not spoken here", "send 0 or 1"))
		return
	case ask.NoReply && ask.Headers != nil && !*ask.Headers:
		c.fail(cmd, errcode.New(errcode.BadArgs, "no_responders needs headers", "send \"headers\":true, or leave no_responders out"))
		return
	}
	if c.pulse.kind.Load() != kindUnknown { // as in NATS, who connects again begins again
		c.subs.endAll()
	}
	library := ask.Lang != "" && !strings.HasPrefix(ask.Lang, ownLang)
	c.opt = options{
		verbose:    ask.Verbose == nil || *ask.Verbose,
		headers:    !library, // a library says so if it reads them
		timestamps: ask.Timestamps,
		nats:       library,
		literal:    library && !ask.Addresses,
		pedantic:   ask.Pedantic == nil || *ask.Pedantic,
		echo:       ask.Echo == nil || *ask.Echo,
	}
	if ask.Headers != nil {
		c.opt.headers = *ask.Headers
	}
	c.opt.noResponders = ask.NoReply && c.opt.headers
	kind := kindOurs
	if library {
		kind = kindNATS
	}
	c.pulse.kind.Store(kind)
	c.ok()
}
