package trunkline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

// TopicConfig says how a topic is made.
type TopicConfig struct {
	// Partitions is their number; 0 leaves it to the server.
	Partitions int
	// Settings are the topic's settings by name, as the protocol writes them. What the server has not built it refuses.
	Settings map[string]string
}

// Topic is what the server tells of a topic, in the protocol's JSON.
type Topic struct {
	Name       string         `json:"name"`
	ID         string         `json:"id,omitempty"`
	Settings   map[string]any `json:"settings,omitempty"` // numbers are json.Number
	Plan       *Plan          `json:"plan,omitempty"`
	Partitions []Partition    `json:"partitions,omitempty"`
	// Error is set in place of the rest when the server could not tell.
	Error errcode.Code `json:"error,omitempty"`
}

// Plan states how the topic's records are spread over its partitions.
type Plan struct {
	Version    int64  `json:"version"`
	Kind       string `json:"kind"`
	Partitions int32  `json:"partitions,omitempty"`
}

// Partition is one partition of a Topic. The log is there in what TopicInfo returns.
type Partition struct {
	Partition PartitionID `json:"partition"`
	Leader    int32       `json:"leader"`
	Epoch     int32       `json:"epoch"`
	Replicas  []int32     `json:"replicas"`
	ISR       []int32     `json:"isr"`
	*Log
	Error errcode.Code `json:"error,omitempty"`
}

// Log is the extent of a partition's log. Invariant: Start <= HighWatermark <= End; records [Start, HighWatermark) can
// be read.
type Log struct {
	Start         Offset `json:"log_start"`
	HighWatermark Offset `json:"high_watermark"`
	End           Offset `json:"log_end"`
	Bytes         int64  `json:"bytes"`
	Segments      int    `json:"segments"`
}

// CreateTopic makes a topic; it exists, durably, when it returns nil. ErrExists when the name is taken. Where it was asked
// again because a link had died, a topic that exists by then is taken for the one it made.
func (c *Client) CreateTopic(ctx context.Context, name string, config TopicConfig) error {
	if err := checkField("topic name", name); err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString("TOPIC CREATE " + name)
	if config.Partitions != 0 {
		text.WriteString(" partitions=" + strconv.Itoa(config.Partitions))
	}
	if err := writeSettings(&text, config.Settings); err != nil {
		return err
	}
	_, again, err := c.ask(ctx, text.String())
	if err != nil && !(again && hasCode(err, errcode.TopicExists)) {
		return fmt.Errorf("create topic %s: %w", name, err)
	}
	return nil
}

// writeSettings appends settings in the order of their names.
func writeSettings(text *strings.Builder, settings map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		setting := key + "=" + settings[key]
		if err := checkField("setting", setting); err != nil {
			return err
		}
		text.WriteString(" " + setting)
	}
	return nil
}

// AlterTopic changes settings of a topic. They are durable when it returns nil, and hold for what is published from then
// on. ErrNotFound when the topic does not exist.
func (c *Client) AlterTopic(ctx context.Context, name string, settings map[string]string) error {
	if err := checkField("topic name", name); err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString("TOPIC ALTER " + name)
	if err := writeSettings(&text, settings); err != nil {
		return err
	}
	if _, _, err := c.ask(ctx, text.String()); err != nil {
		return fmt.Errorf("alter topic %s: %w", name, err)
	}
	return nil
}

// TrimTopic removes the records of a partition below the position of addr, topic/partition@position, for good. It returns
// the address of the first record that is left.
func (c *Client) TrimTopic(ctx context.Context, addr string) (string, error) {
	if err := checkField("address", addr); err != nil {
		return "", err
	}
	a, _, err := c.ask(ctx, "TOPIC TRIM "+addr)
	if err != nil {
		return "", fmt.Errorf("trim %s: %w", addr, err)
	}
	return string(a.detail), nil
}

// DeleteTopic deletes a topic and all its records. ErrNotFound when it does not exist, unless it was asked again because a link
// had died.
func (c *Client) DeleteTopic(ctx context.Context, name string) error {
	if err := checkField("topic name", name); err != nil {
		return err
	}
	_, again, err := c.ask(ctx, "TOPIC DELETE "+name)
	if err != nil && !(again && hasCode(err, errcode.UnknownTopic)) {
		return fmt.Errorf("delete topic %s: %w", name, err)
	}
	return nil
}

// Topics lists all topics, without their logs.
func (c *Client) Topics(ctx context.Context) ([]Topic, error) {
	var list struct {
		Topics []Topic `json:"topics"`
	}
	if err := c.callJSON(ctx, "TOPIC LIST", &list); err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	return list.Topics, nil
}

// TopicInfo tells of one topic, with the extent of its partitions' logs. ErrNotFound when it does not exist.
func (c *Client) TopicInfo(ctx context.Context, name string) (*Topic, error) {
	if err := checkField("topic name", name); err != nil {
		return nil, err
	}
	t := new(Topic)
	if err := c.callJSON(ctx, "TOPIC INFO "+name, t); err != nil {
		return nil, fmt.Errorf("topic %s: %w", name, err)
	}
	if t.Name != name {
		return nil, violation("asked for topic %s, told of %.80q", name, t.Name)
	}
	return t, nil
}

// Metadata is who serves what.
type Metadata struct {
	Cluster string   `json:"cluster"`
	Brokers []Broker `json:"brokers"`
	// Topics are all there are, or those that were asked for; one that does not exist has an Error.
	Topics []Topic `json:"topics"`
}

// Broker is a server of the cluster.
type Broker struct {
	ID   int32  `json:"id"`
	Host string `json:"host"`
	Port int    `json:"port"`
}

// Metadata tells of all topics, or of those named, in that order, without their logs.
func (c *Client) Metadata(ctx context.Context, topics ...string) (*Metadata, error) {
	m := new(Metadata)
	if err := c.callJSON(ctx, strings.Join(append([]string{"METADATA"}, topics...), " "), m); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	if len(topics) > 0 && len(m.Topics) != len(topics) {
		return nil, violation("asked for %d topics, told of %d", len(topics), len(m.Topics))
	}
	return m, nil
}

// PartitionOffset is what a position stands for in one partition.
type PartitionOffset struct {
	Partition PartitionID `json:"partition"`
	Offset    Offset      `json:"offset"` // -1 where Error is set, unless that is CORRUPT: then the place is there, and its record is not
	// Timestamp is that of the record there; nil where there is none yet.
	Timestamp     *time.Time   `json:"timestamp"`
	LogStart      Offset       `json:"log_start"`
	HighWatermark Offset       `json:"high_watermark"`
	Error         errcode.Code `json:"error,omitempty"`
}

// Offsets tells which offset an address's position stands for, "orders@1h" or "orders/2@earliest", latest unless it has one,
// in each partition or in the one it names. ErrNotFound when there is none such.
func (c *Client) Offsets(ctx context.Context, addr string) ([]PartitionOffset, error) {
	if err := checkField("address", addr); err != nil {
		return nil, err
	}
	var list struct {
		Partitions []PartitionOffset `json:"partitions"`
	}
	if err := c.callJSON(ctx, "OFFSETS "+addr, &list); err != nil {
		return nil, fmt.Errorf("offsets of %s: %w", addr, err)
	}
	return list.Partitions, nil
}

// Plugin is what the server tells of a plugin, in the protocol's JSON.
type Plugin struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Version  string `json:"version"`
	Protocol int    `json:"protocol"` // of the plugin protocol; 0 before the first start
	// State is starting, ready, restarting or stopped; Since says from when, in RFC 3339.
	State    string `json:"state"`
	Since    string `json:"since,omitempty"`
	PID      int    `json:"pid"`
	Restarts int    `json:"restarts"`
	RSS      int64  `json:"rss"` // bytes
	// LastError is why the last process ended or did not start; it stays after a good restart.
	LastError string `json:"last_error,omitempty"`
	// LastErrorAt says when that was, in RFC 3339.
	LastErrorAt string `json:"last_error_at,omitempty"`
	SHA256      string `json:"sha256"`
	// Shipped is true for a plugin that lives in the server's binary.
	Shipped bool   `json:"shipped"`
	Path    string `json:"path,omitempty"`
	// Interpreter is the program that runs a script; the server has checked the script, and not that program.
	Interpreter string `json:"unverified_interpreter,omitempty"`
}

// Plugins lists the server's plugins, those that nothing has needed yet among them.
func (c *Client) Plugins(ctx context.Context) ([]Plugin, error) {
	var list struct {
		Plugins []Plugin `json:"plugins"`
	}
	if err := c.callJSON(ctx, "PLUGIN LIST", &list); err != nil {
		return nil, fmt.Errorf("list plugins: %w", err)
	}
	return list.Plugins, nil
}

// PluginInfo tells of one plugin, named by kind and name, as in partitioner/murmur2. ErrNotFound where there is none.
func (c *Client) PluginInfo(ctx context.Context, plugin string) (*Plugin, error) {
	if err := checkField("plugin name", plugin); err != nil {
		return nil, err
	}
	p := new(Plugin)
	if err := c.callJSON(ctx, "PLUGIN INFO "+plugin, p); err != nil {
		return nil, fmt.Errorf("plugin %s: %w", plugin, err)
	}
	return p, nil
}

// ReloadPlugin replaces a plugin's process by a new one, which is ready when it returns nil. The server reads its
// configuration of plugins again before. ErrNotFound where there is no such plugin.
func (c *Client) ReloadPlugin(ctx context.Context, plugin string) error {
	if err := checkField("plugin name", plugin); err != nil {
		return err
	}
	if _, _, err := c.ask(ctx, "PLUGIN RELOAD "+plugin); err != nil {
		return fmt.Errorf("reload plugin %s: %w", plugin, err)
	}
	return nil
}

// ask makes a request that may be made twice, and makes it again while it fails in a way that may pass, until ctx ends. again
// says that an earlier try may have been carried out.
func (c *Client) ask(ctx context.Context, text string) (a answer, again bool, err error) {
	for try := 1; ; try++ {
		var l *link
		if l, err = c.main.get(ctx); err == nil {
			if a, err = l.call(ctx, text, false); err == nil {
				return a, again, nil
			}
		}
		if c.opt.once || ctx.Err() != nil || !passes(err) {
			return a, again, err
		}
		again = again || errors.Is(err, ErrOutcomeUnknown)
		c.opt.log.Debug("asking again", "component", "client", "request", text, "err", err)
		if ended := c.opt.backoff.wait(ctx, try); ended != nil {
			return a, again, fmt.Errorf("%w: %w", ended, err)
		}
	}
}

// passes reports whether what failed with err may succeed later, unchanged.
func passes(err error) bool {
	if server, ok := errors.AsType[*ServerError](err); ok {
		return server.Retriable()
	}
	_, cut := errors.AsType[*LinkError](err)
	return cut && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrNotAllowed)
}

func hasCode(err error, code errcode.Code) bool {
	server, ok := errors.AsType[*ServerError](err)
	return ok && server.Code == code
}

func (c *Client) callJSON(ctx context.Context, text string, into any) error {
	a, _, err := c.ask(ctx, text)
	if err != nil {
		return err
	}
	return decode(text, a.data, into)
}

// decode reads the JSON that a request was answered with.
func decode(text string, data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return violation("%s is answered with JSON that cannot be read: %v", text, err)
	}
	return nil
}
