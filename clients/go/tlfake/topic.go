package tlfake

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// topic is TOPIC.
func (c *conn) topic(cmd *line.Command) {
	what := ""
	var args [][]byte
	if len(cmd.Args) > 0 {
		what, args = strings.ToUpper(string(clip(cmd.Args[0]))), cmd.Args[1:]
	}
	on := func(f func([][]byte) (string, *errcode.Error)) {
		c.answer(cmd, func(*line.Command) (string, *errcode.Error) { return f(args) })
	}
	of := func(f func([][]byte) (any, *errcode.Error)) {
		c.data(cmd, func(*line.Command) (any, *errcode.Error) { return f(args) })
	}
	switch what {
	case "CREATE":
		on(c.topicCreate)
	case "ALTER":
		on(c.topicAlter)
	case "TRIM":
		on(c.topicTrim)
	case "DELETE":
		on(c.topicDelete)
	case "LIST":
		of(c.topicList)
	case "INFO":
		of(c.topicInfo)
	default:
		c.fail(cmd, errcode.New(errcode.BadArgs, fmt.Sprintf("TOPIC %q is not known", what), "use "+line.Topic.Usage()))
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
	set, partitions, by := defaultSettings(), int32(0), partition.KindMurmur2
	for _, arg := range args[1:] {
		key, value, err := cutSetting(arg)
		switch {
		case err != nil:
		case key == "partitions":
			partitions, err = partitionCount(value)
		case key == "partitioner":
			by = value
		case key == "storage":
			set.storage, err = value, badStore(value)
		default:
			err = set.set(key, value, c.server.opt.maxPayload)
		}
		if err != nil {
			return "", err
		}
	}
	if n, ok := set.retention.bytes.(int64); set.storage == "memory" && ok && n < 0 {
		return "", errcode.New(errcode.BadSetting, "a topic on the store memory needs retention.bytes: memory ends",
			"say how much each partition may keep, such as retention.bytes=64MiB")
	}
	_, err := c.server.createLocked(name, set, partitions, by)
	return name, err
}

// badStore refuses a store that no server ships. To this one they are all the same, but for what they say is durable.
func badStore(name string) *errcode.Error {
	if slices.Contains([]string{"filelog", "memory", "archive"}, name) {
		return nil
	}
	return errcode.New(errcode.BadSetting, fmt.Sprintf("there is no store %s", clip([]byte(name))), "choose filelog, memory or archive")
}

func cutSetting(arg []byte) (key, value string, _ *errcode.Error) {
	key, value, ok := strings.Cut(string(arg), "=")
	if !ok {
		return "", "", errcode.New(errcode.BadArgs, fmt.Sprintf("%q is not a setting", clip(arg)), "write key=value")
	}
	return key, value, nil
}

func partitionCount(value string) (int32, *errcode.Error) {
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < 1 || n > partition.CountMax {
		return 0, errcode.New(errcode.BadSetting, fmt.Sprintf("partitions=%s is out of range", clip([]byte(value))), fmt.Sprintf("choose 1 to %d", partition.CountMax))
	}
	return int32(n), nil
}

func (c *conn) lookup(name []byte) (*topic, *errcode.Error) {
	if t := c.server.topics[string(name)]; t != nil {
		return t, nil
	}
	return nil, errcode.New(errcode.UnknownTopic, fmt.Sprintf("topic %s does not exist", clip(name)), "TOPIC LIST shows what does")
}

func (c *conn) topicAlter(args [][]byte) (string, *errcode.Error) {
	if len(args) < 2 {
		return "", errcode.New(errcode.BadArgs, fmt.Sprintf("TOPIC ALTER has %d arguments", len(args)), "use TOPIC ALTER <name> key=value…")
	}
	t, err := c.lookup(args[0])
	if err != nil {
		return "", err
	}
	plan := t.plan.Plan()
	set, partitions, by := t.set, plan.Partitions, plan.By()
	accepted := false
	for _, arg := range args[1:] {
		key, value, err := cutSetting(arg)
		switch {
		case err != nil:
		case key == "partitions":
			partitions, err = partitionCount(value)
		case key == "partitioner":
			by = value
		case key == "accept_reorder":
			accepted = value == "true"
		case key == "storage":
			err = errcode.New(errcode.BadSetting, "storage cannot be altered", "it is chosen when the topic is created")
		default:
			err = set.set(key, value, c.server.opt.maxPayload)
		}
		if err != nil {
			return "", err
		}
	}
	next, ok := newPlan(by, plan.Version+1, partitions)
	switch {
	case !ok:
		return "", errcode.New(errcode.BadSetting, fmt.Sprintf("there is no partitioner %s", by), "choose one of "+strings.Join(partitioners, ", "))
	case partitions < plan.Partitions:
		return "", errcode.New(errcode.BadSetting, fmt.Sprintf("topic %s has %d partitions, and their number only grows", t.name, plan.Partitions), "choose a larger one")
	case partitions == plan.Partitions && by == plan.By(): // the plan stays
	case !accepted && plan.Keyed() && !plan.Places(next.Plan()):
		return "", errcode.New(errcode.BadSetting, fmt.Sprintf("keys of %s would move to other partitions", t.name), "add accept_reorder=true if that may be")
	default:
		t.plan = next
		t.grow(partitions)
	}
	t.set = set
	c.server.noteLocked()
	return t.name, nil
}

func (c *conn) topicTrim(args [][]byte) (string, *errcode.Error) {
	usage := "use TOPIC TRIM <topic>/<partition>@<position>"
	if len(args) != 1 {
		return "", errcode.New(errcode.BadArgs, fmt.Sprintf("TOPIC TRIM has %d arguments", len(args)), usage)
	}
	a, fault := address.Parse(args[0])
	if fault == nil {
		fault = a.ForRead()
	}
	if fault == nil && (a.Partition == partition.None || a.Position.Kind == address.None) {
		fault = errcode.New(errcode.BadAddress, "TOPIC TRIM names no partition or no position", usage)
	}
	if fault != nil {
		return "", errcode.From(fault, errcode.BadAddress)
	}
	t := c.server.topics[string(a.Topic)]
	if t == nil {
		return "", errUnknownTopic(a.Topic)
	}
	l, err := t.log(a.Partition)
	if err != nil {
		return "", err
	}
	to, err := l.seek(a.Position, address.Latest, c.now)
	if err != nil {
		return "", err
	}
	l.trim(to)
	c.server.noteLocked()
	return string(address.AppendAddress(nil, t.name, l.id, l.start)), nil
}

func (c *conn) topicDelete(args [][]byte) (string, *errcode.Error) {
	if len(args) != 1 {
		return "", errcode.New(errcode.BadArgs, fmt.Sprintf("TOPIC DELETE has %d arguments", len(args)), "use TOPIC DELETE <name>")
	}
	t, err := c.lookup(args[0])
	if err != nil {
		return "", err
	}
	t.gone = true
	c.server.floor = max(c.server.floor, t.plan.Plan().Version)
	delete(c.server.topics, t.name)
	c.server.noteLocked()
	return t.name, nil
}

// topicJSON is a topic as LIST, INFO and METADATA show it.
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
	*extentJSON
}

type extentJSON struct {
	LogStart      int64 `json:"log_start"`
	HighWatermark int64 `json:"high_watermark"`
	LogEnd        int64 `json:"log_end"`
	Bytes         int64 `json:"bytes"`
	Segments      int   `json:"segments"`
}

func (t *topic) describe(extents bool) topicJSON {
	j := topicJSON{Name: t.name, ID: t.id, Settings: t.set.show(), Plan: t.plan.Plan()}
	j.Settings["partitions"], j.Settings["replicas"] = len(t.parts), 1
	j.Settings["partitioner"], j.Settings["storage"] = t.plan.Plan().By(), t.set.storage
	for _, l := range t.parts {
		p := partitionJSON{Partition: int32(l.id), Leader: 1, Replicas: []int{1}, ISR: []int{1}}
		if extents {
			p.extentJSON = &extentJSON{LogStart: int64(l.start), HighWatermark: int64(l.next), LogEnd: int64(l.next), Segments: 1}
			for _, b := range l.batches {
				p.Bytes += int64(len(b))
			}
		}
		j.Partitions = append(j.Partitions, p)
	}
	return j
}

func (c *conn) topicList(args [][]byte) (any, *errcode.Error) {
	if len(args) != 0 {
		return nil, errcode.New(errcode.BadArgs, "TOPIC LIST takes no arguments", "use TOPIC LIST")
	}
	list := []topicJSON{}
	for _, name := range slices.Sorted(maps.Keys(c.server.topics)) {
		list = append(list, c.server.topics[name].describe(false))
	}
	return struct {
		Topics []topicJSON `json:"topics"`
	}{list}, nil
}

func (c *conn) topicInfo(args [][]byte) (any, *errcode.Error) {
	if len(args) != 1 {
		return nil, errcode.New(errcode.BadArgs, fmt.Sprintf("TOPIC INFO has %d arguments", len(args)), "use TOPIC INFO <name>")
	}
	t := c.server.topics[string(args[0])]
	if t == nil {
		return nil, errUnknownTopic(args[0])
	}
	return t.describe(true), nil
}

func (c *conn) metadata(cmd *line.Command) (any, *errcode.Error) {
	host, port, _ := net.SplitHostPort(c.nc.LocalAddr().String())
	type brokerJSON struct {
		ID   int         `json:"id"`
		Host string      `json:"host"`
		Port json.Number `json:"port"`
	}
	m := struct {
		Cluster string       `json:"cluster"`
		Brokers []brokerJSON `json:"brokers"`
		Topics  []any        `json:"topics"`
	}{"tlfake", []brokerJSON{{1, host, json.Number(port)}}, []any{}}
	names := cmd.Args
	if len(names) == 0 {
		for _, name := range slices.Sorted(maps.Keys(c.server.topics)) {
			names = append(names, []byte(name))
		}
	}
	for _, name := range names {
		if t := c.server.topics[string(name)]; t != nil {
			m.Topics = append(m.Topics, t.describe(false))
			continue
		}
		m.Topics = append(m.Topics, struct {
			Name  string       `json:"name"`
			Error errcode.Code `json:"error"`
		}{string(clip(name)), errcode.UnknownTopic})
	}
	return m, nil
}

// settings are a topic's. Those that have an effect here are fields; the others are kept as they are shown.
type settings struct {
	sync         string
	messageBytes int
	appendTime   bool
	storage      string
	retention    struct{ time, bytes any }
	segment      struct{ bytes, time any }
}

func defaultSettings() settings {
	s := settings{sync: "batch", messageBytes: 1 << 20, storage: "filelog"}
	s.retention.time, s.retention.bytes = "7d", int64(-1)
	s.segment.bytes, s.segment.time = int64(1<<30), "7d"
	return s
}

func (s *settings) durability() string {
	switch {
	case s.storage == "memory":
		return "memory"
	case s.sync == "batch":
		return "disk"
	}
	return "page"
}

func (s *settings) show() map[string]any {
	times := "create"
	if s.appendTime {
		times = "append"
	}
	return map[string]any{
		"sync": s.sync, "retention.time": s.retention.time, "retention.bytes": s.retention.bytes, "segment.bytes": s.segment.bytes,
		"segment.time": s.segment.time, "message.bytes": s.messageBytes, "timestamps": times,
	}
}

// settingBounds say what a setting may be, as the server says it.
var settingBounds = map[string]string{
	"sync":            "batch, interval:<time> from 50ms, or never",
	"retention.time":  "a time from 1s, or -1 for ever",
	"retention.bytes": "a size, or -1 for no limit",
	"segment.bytes":   "64KiB to 2147483647",
	"segment.time":    "a time from 1s",
	"message.bytes":   "1KiB to the server's limits.payload",
	"timestamps":      "create or append",
}

// set changes one setting.
func (s *settings) set(key, value string, maxPayload int) *errcode.Error {
	bounds, known := settingBounds[key]
	switch {
	case slices.Contains([]string{"replicas", "min.insync"}, key):
		return errcode.New(errcode.BadSetting, "setting "+key+" is not offered yet", "leave it out")
	case !known:
		keys := append(slices.Collect(maps.Keys(settingBounds)), "partitioner", "partitions", "storage")
		slices.Sort(keys)
		return errcode.New(errcode.BadSetting, fmt.Sprintf("setting %q is unknown", clip([]byte(key))), "there are "+strings.Join(keys, ", "))
	case !s.take(key, value):
		if every, timed := strings.CutPrefix(value, "interval:"); (key == "sync" && timed || strings.HasSuffix(key, ".time")) && address.LacksTimeUnit(every) {
			return errcode.New(errcode.BadSetting, fmt.Sprintf("%s=%s has no unit", key, clip([]byte(value))), "write d, h, m, s or ms behind it: choose "+bounds)
		}
		return errcode.New(errcode.BadSetting, fmt.Sprintf("%s=%s is out of range", key, clip([]byte(value))), "choose "+bounds)
	case s.messageBytes > max(maxPayload, maxPayloadDefault):
		return errcode.New(errcode.BadSetting, fmt.Sprintf("message.bytes=%d exceeds this server's limits.payload of %d", s.messageBytes, maxPayload),
			"choose less, or raise limits.payload")
	}
	return nil
}

func (s *settings) take(key, value string) bool {
	ok := false
	switch key {
	case "sync":
		every, timed := strings.CutPrefix(value, "interval:")
		d, err := address.ParseDuration(every)
		s.sync, ok = value, value == "batch" || value == "never" || timed && err == nil && d >= 50*time.Millisecond
	case "retention.time":
		s.retention.time, ok = span(value)
		if value == "-1" {
			s.retention.time, ok = value, true
		}
	case "segment.time":
		s.segment.time, ok = span(value)
	case "retention.bytes":
		n, err := size(value)
		s.retention.bytes, ok = n, err == nil && (n >= 0 || value == "-1")
	case "segment.bytes":
		n, err := size(value)
		s.segment.bytes, ok = n, err == nil && n >= 64<<10 && n <= math.MaxInt32
	case "message.bytes":
		n, err := size(value)
		s.messageBytes, ok = int(n), err == nil && n >= 1<<10 && n <= math.MaxInt32
	case "timestamps":
		s.appendTime, ok = value == "append", value == "append" || value == "create"
	}
	return ok
}

func span(value string) (string, bool) {
	d, err := address.ParseDuration(value)
	return address.FormatDuration(max(d, 0)), err == nil && d >= time.Second
}
