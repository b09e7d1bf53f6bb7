package conn

import (
	"net"
	"sort"
	"strconv"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
)

// metadataJSON is the answer of METADATA (PROTOCOL §6).
type metadataJSON struct {
	Cluster string       `json:"cluster"`
	Brokers []brokerJSON `json:"brokers"`
	Topics  []any        `json:"topics"` // topicJSON, or missingJSON
}

type brokerJSON struct {
	ID   int    `json:"id"`
	Host string `json:"host"`
	Port int    `json:"port"`
}

// missingJSON stands for a topic that was asked for and does not exist.
type missingJSON struct {
	Name  string       `json:"name"`
	Error errcode.Code `json:"error"`
}

// handleMetadata tells who serves what: all topics, or those that are named.
func (c *conn) handleMetadata(cmd *line.Command) {
	if !c.box.waitAnswered(c.stop) {
		return
	}
	id := c.srv.opt.Identity
	host, port := c.reached()
	m := metadataJSON{Cluster: id.Cluster, Brokers: []brokerJSON{{ID: id.Broker, Host: host, Port: port}}, Topics: []any{}}
	if len(cmd.Args) == 0 {
		topics := c.broker().Topics()
		sort.Slice(topics, func(i, j int) bool { return topics[i].Meta.Name < topics[j].Meta.Name })
		for _, t := range topics {
			m.Topics = append(m.Topics, c.describe(t, false))
		}
	}
	for _, name := range cmd.Args {
		if t := c.broker().Lookup(name); t != nil {
			m.Topics = append(m.Topics, c.describe(t, false))
		} else {
			m.Topics = append(m.Topics, missingJSON{Name: string(clip(name)), Error: errcode.UnknownTopic})
		}
	}
	data, err := encode(m)
	if err != nil {
		c.fail(cmd, err)
		return
	}
	c.box.say(func(dst []byte) []byte { return line.AppendData(dst, data) })
}

// reached is the address that clients are told: the advertised one, or the one this client reached.
func (c *conn) reached() (host string, port int) {
	at := c.srv.opt.Identity.Advertise
	if at == "" {
		at = c.nc.LocalAddr().String()
	}
	host, text, _ := net.SplitHostPort(at) // of a listener, or checked with the configuration
	port, _ = strconv.Atoi(text)
	return host, port
}

// timeText writes a record's time as PROTOCOL §4.8 has it.
func timeText(ms int64) string { return time.UnixMilli(ms).UTC().Format(line.TimeLayout) }
