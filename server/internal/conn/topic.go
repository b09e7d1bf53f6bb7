package conn

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
	"github.com/trunkline-mq/trunkline/server/internal/cursor"
	"github.com/trunkline-mq/trunkline/server/internal/setting"
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
	Partition int32 `json:"partition"`
	Leader    int   `json:"leader"`
	Epoch     int32 `json:"epoch"`
	Replicas  []int `json:"replicas"`
	ISR       []int `json:"isr"`
	// State and what follows are there while the partition is not served: "down", the code that its verbs are answered,
	// and why.
	State  string `json:"state,omitempty"`
	Error  string `json:"error,omitempty"`
	Reason string `json:"reason,omitempty"`
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

// handleTopic is TOPIC CREATE, LIST, INFO, ALTER, TRIM and DELETE. It sees what this connection did before.
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
	case "ALTER":
		detail, err = c.topicAlter(cmd.Args[1:])
	case "TRIM":
		detail, err = c.topicTrim(cmd.Args[1:])
	default:
		err = errcode.New(errcode.BadArgs, fmt.Sprintf("TOPIC %q is not known", what), "use "+line.Topic.Usage())
	}
	c.reply(cmd, detail, data, err)
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
	ask := broker.NewTopic{Set: setting.Defaults()}
	for _, arg := range args[1:] {
		if err := takeSetting(arg, &ask); err != nil {
			return "", err
		}
	}
	if err := c.fits(&ask.Set); err != nil {
		return "", err
	}
	t, err := c.broker().CreateTopic(c.ctx, name, ask)
	if err != nil {
		return "", errcode.From(err, errcode.StorageUnavailable)
	}
	return t.Meta.Name, nil
}

// fits refuses what no client of this server could use.
func (c *conn) fits(s *setting.Topic) *errcode.Error {
	if limit := c.srv.opt.Limits.Payload; s.MessageBytes > max(limit, setting.Defaults().MessageBytes) {
		return errcode.New(errcode.BadSetting, fmt.Sprintf("message.bytes=%d exceeds this server's limits.payload of %d", s.MessageBytes, limit),
			"choose less, or raise limits.payload")
	}
	return nil
}

// takeSetting reads a key=value of TOPIC CREATE.
func takeSetting(arg []byte, ask *broker.NewTopic) *errcode.Error {
	key, value, err := cutSetting(arg)
	switch {
	case err != nil:
		return err
	case key == "adopt":
		if value != "true" && value != "false" {
			return errcode.New(errcode.BadSetting, fmt.Sprintf("adopt=%s is out of range", clip([]byte(value))), "choose true or false")
		}
		ask.Adopt = value == "true"
		return nil
	case key == "partitioner":
		ask.Partitioner = value
		return badPartitioner(value)
	case key == "storage":
		ask.Storage = value
		return badStore(value)
	case key != "partitions":
		return ask.Set.Set(key, value)
	}
	ask.Partitions, err = partitionCount(value)
	return err
}

func partitionCount(value string) (int32, *errcode.Error) {
	n, err := strconv.ParseUint(value, 10, 31) // digits only
	if err != nil || n < 1 || n > partition.CountMax {
		return 0, errcode.New(errcode.BadSetting, fmt.Sprintf("partitions=%s is out of range", clip([]byte(value))),
			fmt.Sprintf("choose 1 to %d", partition.CountMax))
	}
	return int32(n), nil
}

// badPartitioner refuses the empty name, which the broker takes for the default one; it knows the others.
func badPartitioner(name string) *errcode.Error {
	if name != "" {
		return nil
	}
	return errcode.New(errcode.BadSetting, "partitioner= names none", "leave it out for the default one")
}

// badStore refuses the empty name, as badPartitioner does.
func badStore(name string) *errcode.Error {
	if name != "" {
		return nil
	}
	return errcode.New(errcode.BadSetting, "storage= names none", "leave it out for the default one")
}

func cutSetting(arg []byte) (key, value string, _ *errcode.Error) {
	key, value, ok := strings.Cut(string(arg), "=")
	if !ok {
		return "", "", errcode.New(errcode.BadArgs, fmt.Sprintf("%q is not a setting", clip(arg)), "write key=value")
	}
	return key, value, nil
}

func (c *conn) topicAlter(args [][]byte) (string, *errcode.Error) {
	if len(args) < 2 {
		return "", errcode.New(errcode.BadArgs, fmt.Sprintf("TOPIC ALTER has %d arguments", len(args)), "use TOPIC ALTER <name> key=value…")
	}
	name := string(args[0])
	change, fault := alteration(args[1:])
	if fault != nil {
		return "", fault
	}
	if set := change.Settings; set != nil {
		change.Settings = func(s *setting.Topic) *errcode.Error {
			if err := set(s); err != nil {
				return err
			}
			return c.fits(s)
		}
	}
	if err := c.broker().AlterTopic(c.ctx, name, change); err != nil {
		return "", errcode.From(err, errcode.MetadataUnavailable)
	}
	return name, nil
}

// alteration reads the key=value fields of TOPIC ALTER.
func alteration(args [][]byte) (a broker.Alteration, _ *errcode.Error) {
	type change struct{ key, value string }
	var settings []change
	for _, arg := range args {
		key, value, err := cutSetting(arg)
		switch {
		case err != nil:
		case key == "partitions":
			a.Partitions, err = partitionCount(value)
		case key == "partitioner":
			a.Partitioner, err = value, badPartitioner(value)
		case key == "accept_reorder" && (value == "true" || value == "false"):
			a.AcceptReorder = value == "true"
		case key == "accept_reorder":
			err = errcode.New(errcode.BadSetting, fmt.Sprintf("accept_reorder=%s is out of range", clip([]byte(value))), "choose true or false")
		case key == "adopt" || key == "storage":
			err = errcode.New(errcode.BadSetting, key+" cannot be altered", "it is chosen when the topic is created")
		default:
			settings = append(settings, change{key, value})
		}
		if err != nil {
			return a, err
		}
	}
	if len(settings) > 0 {
		a.Settings = func(s *setting.Topic) *errcode.Error {
			for _, c := range settings {
				if err := s.Set(c.key, c.value); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return a, nil
}

// topicTrim is TOPIC TRIM <topic>/<p>@<position>: what lies below is gone for good.
func (c *conn) topicTrim(args [][]byte) (string, *errcode.Error) {
	usage := "use TOPIC TRIM <topic>/<partition>@<position>"
	if len(args) != 1 {
		return "", errcode.New(errcode.BadArgs, fmt.Sprintf("TOPIC TRIM has %d arguments", len(args)), usage)
	}
	addr, fault := parseRead(args[0], false)
	switch {
	case fault != nil:
		return "", fault
	case addr.Partition == partition.None || addr.Position.Kind == address.None:
		return "", errcode.New(errcode.BadAddress, "TOPIC TRIM names no partition or no position", usage)
	}
	t := c.broker().Lookup(addr.Topic)
	if t == nil {
		return "", errUnknownTopic(addr.Topic)
	}
	p, fault := t.Partition(addr.Partition)
	if fault != nil {
		return "", fault
	}
	to, fault := cursor.Seek(c.ctx, p, addr.Position, address.Latest, c.pub.now)
	if fault != nil {
		return "", fault
	}
	start, err := c.broker().Trim(c.ctx, p, to)
	if err != nil {
		return "", errcode.From(err, errcode.StorageUnavailable)
	}
	return string(address.AppendAddress(nil, p.Name.Topic, p.Name.ID, start)), nil
}

func (c *conn) topicList(args [][]byte) ([]byte, *errcode.Error) {
	if len(args) != 0 {
		return nil, errcode.New(errcode.BadArgs, "TOPIC LIST takes no arguments", "use TOPIC LIST")
	}
	topics := c.topics()
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

// topics returns every topic, by name.
func (c *conn) topics() []*broker.Topic {
	all := c.broker().Topics()
	slices.SortFunc(all, byName)
	return all
}

func byName(a, b *broker.Topic) int { return strings.Compare(a.Meta.Name, b.Meta.Name) }

func encode(v any) ([]byte, *errcode.Error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, errcode.Wrap(errcode.NotSupported, err, "the answer cannot be written as JSON", "report this")
	}
	return b, nil
}

// stateDown is the state of a partition that is not served.
const stateDown = "down"

func (c *conn) describe(t *broker.Topic, extents bool) topicJSON {
	me := c.srv.opt.Identity.Broker
	j := topicJSON{
		Name: t.Meta.Name, ID: t.Meta.ID, Plan: t.Meta.Plan,
		Settings: t.Set.Show(),
	}
	j.Settings["partitions"], j.Settings["replicas"] = t.Meta.Partitions, 1
	j.Settings["partitioner"], j.Settings["storage"] = t.Meta.Plan.By(), t.Meta.Store()
	for i := range t.Meta.Partitions {
		p := partitionJSON{Partition: i, Leader: me, Epoch: int32(t.Meta.Epochs[i]), Replicas: []int{me}, ISR: []int{me}}
		served, fault := t.Partition(partition.ID(i))
		if fault == nil {
			fault = served.Down()
		}
		if fault != nil {
			p.State, p.Error, p.Reason = stateDown, string(fault.Code), fault.What
		}
		if extents && served != nil {
			p.Epoch = int32(served.Log().Epoch())
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
