package conn

import (
	"errors"
	"fmt"
	"net"
	"sort"
	"strconv"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/cursor"
	part "github.com/trunkline-mq/trunkline/server/internal/partition"
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

// offsetsJSON is the answer of OFFSETS (PROTOCOL §6).
type offsetsJSON struct {
	Topic      string       `json:"topic"`
	Partitions []offsetJSON `json:"partitions"`
}

type offsetJSON struct {
	Partition     partition.ID  `json:"partition"`
	Offset        record.Offset `json:"offset"`
	Timestamp     *string       `json:"timestamp"` // of the record there; null where there is none yet
	LogStart      record.Offset `json:"log_start"`
	HighWatermark record.Offset `json:"high_watermark"`
	Error         errcode.Code  `json:"error,omitempty"`
}

// handleOffsets says which offset a position or a time stands for, without reading on from there.
func (c *conn) handleOffsets(cmd *line.Command) {
	if !c.box.waitAnswered(c.stop) {
		return
	}
	data, err := c.offsets(cmd)
	if err != nil {
		c.fail(cmd, err)
		return
	}
	c.box.say(func(dst []byte) []byte { return line.AppendData(dst, data) })
}

func (c *conn) offsets(cmd *line.Command) ([]byte, *errcode.Error) {
	if len(cmd.Args) != 1 {
		return nil, errcode.New(errcode.BadArgs, fmt.Sprintf("OFFSETS has %d arguments", len(cmd.Args)), "use "+line.Offsets.Usage())
	}
	addr, err := address.Parse(cmd.Args[0])
	if err == nil {
		err = addr.ForRead()
	}
	if err != nil {
		return nil, errcode.From(err, errcode.BadAddress)
	}
	t := c.broker().Lookup(addr.Topic)
	if t == nil {
		return nil, errUnknownTopic(addr.Topic)
	}
	first, last := addr.Partition, addr.Partition
	if addr.Partition == partition.None {
		first, last = 0, partition.ID(t.Meta.Partitions-1)
	}
	answer := offsetsJSON{Topic: t.Meta.Name}
	for id := first; id <= last; id++ {
		p, err := t.Partition(id)
		if err != nil && p == nil && addr.Partition != partition.None {
			return nil, err
		}
		if err != nil {
			answer.Partitions = append(answer.Partitions, offsetJSON{Partition: id, Offset: -1, LogStart: -1, HighWatermark: -1, Error: err.Code})
			continue
		}
		answer.Partitions = append(answer.Partitions, c.offset(p, id, addr.Position))
	}
	return encode(answer)
}

func (c *conn) offset(p *part.Partition, id partition.ID, pos address.Position) offsetJSON {
	j := offsetJSON{Partition: id, Offset: -1, LogStart: p.Log().Stats().LogStart, HighWatermark: p.HighWatermark()}
	off, err := cursor.Seek(c.ctx, p, pos, address.Latest, c.pub.now)
	if err != nil {
		j.Error = err.Code
		return j
	}
	j.Offset = off
	cur := cursor.New(p, off)
	var r record.Record
	_, ok, readErr := cur.Record(c.ctx, p.HighWatermark(), &r)
	var damage *lend.CorruptError
	switch {
	case errors.As(readErr, &damage):
		j.Error = errcode.Corrupt
	case readErr != nil:
		j.Error = cursor.ReadFailed(p, readErr).Code
	case ok:
		text := timeText(r.Timestamp)
		j.Timestamp = &text
	}
	return j
}
