package conn

import (
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
)

// topicJSON is a topic as LIST and INFO show it (PROTOCOL §6).
type topicJSON struct {
	Name       string          `json:"name"`
	ID         string          `json:"id"`
	Settings   map[string]any  `json:"settings"`
	Plan       partition.Plan  `json:"plan"`
	Partitions []partitionJSON `json:"partitions"`
}

type partitionJSON struct {
	Partition int32  `json:"partition"`
	Leader    int    `json:"leader"`
	Epoch     int32  `json:"epoch"`
	Replicas  []int  `json:"replicas"`
	ISR       []int  `json:"isr"`
	Error     string `json:"error,omitempty"`
	*extentJSON
}

// extentJSON is what INFO adds.
type extentJSON struct {
	LogStart      int64 `json:"log_start"`
	HighWatermark int64 `json:"high_watermark"`
	LogEnd        int64 `json:"log_end"`
	Bytes         int64 `json:"bytes"`
	Segments      int   `json:"segments"`
}

// handleTopic is TOPIC CREATE, LIST, INFO and DELETE. It sees what this connection did before.
func (c *conn) handleTopic(cmd *line.Command) {
	if !c.box.waitAnswered(c.stop) {
		return
	}
	what := ""
	if len(cmd.Args) > 0 {
		what = strings.ToUpper(string(clip(cmd.Args[0])))
	}
	detail, data, err := "", []byte(nil), (*errcode.Error)(nil)
	switch what {
	case "CREATE":
		detail, err = c.topicCreate(cmd.Args[1:])
	case "LIST":
		data, err = c.topicList(cmd.Args[1:])
	case "INFO":
		data, err = c.topicInfo(cmd.Args[1:])
	case "DELETE":
		detail, err = c.topicDelete(cmd.Args[1:])
	case "ALTER", "TRIM":
		err = errcode.New(errcode.NotSupported, "TOPIC "+what+" is not offered yet", "HELP TOPIC lists what is")
	default:
		err = errcode.New(errcode.BadArgs, fmt.Sprintf("TOPIC %q is not known", what), "use "+line.Topic.Usage())
	}
	switch {
	case err != nil:
		c.fail(cmd, err)
	case data != nil:
		c.box.say(func(dst []byte) []byte { return line.AppendData(dst, data) })
	default:
		c.box.say(func(dst []byte) []byte { return line.AppendOK(dst, detail) })
	}
}

func (c *conn) topicCreate(args [][]byte) (string, *errcode.Error) {
	if len(args) == 0 {
		return "", errcode.New(errcode.BadArgs, "TOPIC CREATE names no topic", "use TOPIC CREATE <name> [partitions=N]")
	}
	name := string(args[0])
	if err := address.ValidTopic(name); err != nil {
		return "", errcode.From(err, errcode.BadName)
	}
	if address.IsLive(args[0], c.srv.opt.Live) {
		return "", errcode.New(errcode.BadName, fmt.Sprintf("%s is a live subject by subjects.live", name), "choose another name, or change subjects.live")
	}
	partitions := c.srv.opt.Partitions
	for _, arg := range args[1:] {
		if err := takeSetting(arg, &partitions); err != nil {
			return "", err
		}
	}
	t, err := c.broker().CreateTopic(c.ctx, name, partitions)
	if err != nil {
		return "", errcode.From(err, errcode.StorageUnavailable)
	}
	return t.Meta.Name, nil
}

// laterSettings are the settings of the protocol that this version does not have yet. They are refused, not ignored.
var laterSettings = []string{
	"replicas", "min.insync", "sync", "retention.time", "retention.bytes", "segment.bytes", "segment.time", "message.bytes",
	"timestamps", "partitioner", "storage", "adopt",
}

func takeSetting(arg []byte, partitions *int32) *errcode.Error {
	key, value, ok := strings.Cut(string(arg), "=")
	if !ok {
		return errcode.New(errcode.BadArgs, fmt.Sprintf("%q is not a setting", clip(arg)), "write key=value")
	}
	if key != "partitions" {
		for _, later := range laterSettings {
			if key == later {
				return errcode.New(errcode.BadSetting, "setting "+key+" is not offered yet", "leave it out; partitions is the one there is")
			}
		}
		return errcode.New(errcode.BadSetting, fmt.Sprintf("setting %q is unknown", clip([]byte(key))), "partitions is the one there is")
	}
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < 1 || n > partition.CountMax {
		return errcode.New(errcode.BadSetting, fmt.Sprintf("partitions=%s is out of range", clip([]byte(value))),
			fmt.Sprintf("choose 1 to %d", partition.CountMax))
	}
	*partitions = int32(n)
	return nil
}

func (c *conn) topicList(args [][]byte) ([]byte, *errcode.Error) {
	if len(args) != 0 {
		return nil, errcode.New(errcode.BadArgs, "TOPIC LIST takes no arguments", "use TOPIC LIST")
	}
	topics := c.broker().Topics()
	sort.Slice(topics, func(i, j int) bool { return topics[i].Meta.Name < topics[j].Meta.Name })
	list := struct {
		Topics []topicJSON `json:"topics"`
	}{Topics: make([]topicJSON, 0, len(topics))}
	for _, t := range topics {
		list.Topics = append(list.Topics, c.describe(t, false))
	}
	return encode(list)
}

func (c *conn) topicInfo(args [][]byte) ([]byte, *errcode.Error) {
	if len(args) != 1 {
		return nil, errcode.New(errcode.BadArgs, fmt.Sprintf("TOPIC INFO has %d arguments", len(args)), "use TOPIC INFO <name>")
	}
	t := c.broker().Lookup(args[0])
	if t == nil {
		return nil, errUnknownTopic(args[0])
	}
	return encode(c.describe(t, true))
}

func encode(v any) ([]byte, *errcode.Error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, errcode.Wrap(errcode.NotSupported, err, "the answer cannot be written as JSON", "report this")
	}
	return b, nil
}

func (c *conn) describe(t *broker.Topic, extents bool) topicJSON {
	me := c.srv.opt.Identity.Broker
	j := topicJSON{
		Name: t.Meta.Name, ID: t.Meta.ID, Plan: t.Meta.Plan,
		Settings: map[string]any{
			"partitions": t.Meta.Partitions, "replicas": 1, "sync": "batch", "segment.bytes": int64(broker.SegmentBytes),
			"message.bytes": c.broker().MessageBytes(), "timestamps": "create", "partitioner": t.Meta.Plan.Kind,
			"storage": broker.StorageName,
		},
	}
	for i := range t.Meta.Partitions {
		p := partitionJSON{Partition: i, Leader: me, Epoch: int32(t.Meta.Epochs[i]), Replicas: []int{me}, ISR: []int{me}}
		served, fault := t.Partition(partition.ID(i))
		if fault != nil {
			p.Error = string(fault.Code)
		}
		if extents && fault == nil {
			s := served.Log().Stats()
			p.extentJSON = &extentJSON{
				LogStart: int64(s.LogStart), HighWatermark: int64(served.HighWatermark()), LogEnd: int64(s.Confirmed),
				Bytes: s.Bytes, Segments: s.Segments,
			}
		}
		j.Partitions = append(j.Partitions, p)
	}
	return j
}

func (c *conn) topicDelete(args [][]byte) (string, *errcode.Error) {
	if len(args) != 1 {
		return "", errcode.New(errcode.BadArgs, fmt.Sprintf("TOPIC DELETE has %d arguments", len(args)), "use TOPIC DELETE <name>")
	}
	name := string(args[0])
	if err := c.broker().DeleteTopic(c.ctx, name); err != nil {
		return "", errcode.From(err, errcode.MetadataUnavailable)
	}
	return name, nil
}
