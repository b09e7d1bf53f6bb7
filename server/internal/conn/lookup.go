package conn

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
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
		for _, t := range c.topics() {
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
	c.reply(cmd, "", data, err)
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
	c.reply(cmd, "", data, err)
}

func (c *conn) offsets(cmd *line.Command) ([]byte, *errcode.Error) {
	if len(cmd.Args) != 1 {
		return nil, errcode.New(errcode.BadArgs, fmt.Sprintf("OFFSETS has %d arguments", len(cmd.Args)), "use "+line.Offsets.Usage())
	}
	addr, fault := parseRead(cmd.Args[0], false)
	if fault != nil {
		return nil, fault
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
		if err != nil && addr.Partition != partition.None {
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

// helpTexts say, for each verb a person may type, what it does, with an example that works as it stands.
var helpTexts = []struct {
	verb line.Verb
	text string
}{
	{line.Send, "writes one record, data to the line end; answers when it is on disk\n  SEND orders hello world\n  SEND orders#alice hello        (by key)\n  SEND orders/0 hello            (to a partition)"},
	{line.Get, "reads records that are there; answers with where to go on (default: 10 from the start)\n  GET orders\n  GET orders/0@5 100\n  GET orders@-3"},
	{line.Sub, "delivers records as they come, under a number of your choice; a position reads on from there;\n  * and > match tokens; what is published to live subjects comes too, shared in a group\n  SUB orders 1\n  SUB orders@earliest 1\n  SUB shop.> 2\n  SUB $jobs workers 3"},
	{line.Unsub, "ends a subscription, at once or after max records in all\n  UNSUB 1"},
	{line.Pub, "writes one record of exactly so many bytes, which follow on the next line; a subject that is\n  no topic goes to whoever listens now; a reply-to gets the acknowledgement, or the answers\n  PUB orders 5\n  hello\n  PUB $jobs _INBOX.me 5\n  hello"},
	{line.HPub, "is PUB with a NATS header block; sizes: of the block, of both\n  HPUB orders 22 27"},
	{line.Topic, "makes, shows and removes topics\n  TOPIC CREATE orders partitions=6 retention.time=1d\n  TOPIC LIST\n  TOPIC INFO orders\n  TOPIC ALTER orders sync=interval:1s\n  TOPIC TRIM orders/0@5\n  TOPIC DELETE orders"},
	{line.Plugin, "shows the server's plugins, and replaces a plugin's process by a new one\n  PLUGIN LIST\n  PLUGIN INFO partitioner/murmur2\n  PLUGIN RELOAD partitioner/murmur2"},
	{line.Metadata, "tells who serves which topics, as JSON\n  METADATA\n  METADATA orders"},
	{line.Offsets, "tells which offset a position or a time stands for\n  OFFSETS orders@1h\n  OFFSETS orders/0@earliest"},
	{line.Produce, "writes whole Kafka record batches, which follow, to one partition; for programs\n  PRODUCE orders/0 acks=all 73"},
	{line.Fetch, "reads whole record batches as they are stored; wait makes it a long poll; for programs\n  FETCH orders/0@0 max=1MiB wait=500ms min=1"},
	{line.Ping, "answers PONG when everything you published before has its outcome\n  PING"},
	{line.Connect, "sets options of this connection; without it, you are verbose. After it the server asks a silent client\n  with PING now and then whether it is there: answer PONG, or anything else\n  CONNECT {\"verbose\":false}"},
	{line.Help, "shows this, or one verb\n  HELP SEND"},
	{line.Quit, "ends the connection\n  QUIT"},
}

const helpEnd = `
An address is topic[#key] to write by key, or topic[/partition][@position] to read.
A position is an offset, earliest, latest, -N (the last N), a time, or 1h (an hour ago).
`

// handleHelp is HELP and HELP <verb>, always allowed.
func (c *conn) handleHelp(cmd *line.Command) {
	if len(cmd.Args) > 1 {
		c.fail(cmd, errcode.New(errcode.BadArgs, "HELP takes one verb", "use "+line.Help.Usage()))
		return
	}
	var text strings.Builder
	want := line.Unknown
	if len(cmd.Args) == 1 {
		if want = line.Lookup(cmd.Args[0]); !want.Offered() {
			e := "there is no verb " + string(clip(cmd.Args[0]))
			hint := "HELP lists the verbs"
			if near := line.Nearest(cmd.Args[0]); near != line.Unknown {
				hint = "did you mean " + near.String() + "? " + hint
			}
			c.fail(cmd, errcode.New(errcode.BadVerb, e, hint))
			return
		}
	}
	for _, h := range helpTexts {
		if want == line.Unknown || want == h.verb {
			text.WriteString(h.verb.Usage() + "\n  " + h.text + "\n")
		}
	}
	if text.Len() == 0 { // +OK, -ERR, INFO, PONG: not for people to type
		text.WriteString(want.Usage() + "\n  is taken and not answered\n")
	}
	if want == line.Unknown {
		text.WriteString(helpEnd)
	}
	c.box.say(func(dst []byte) []byte { return line.AppendData(dst, []byte(text.String())) })
}
