package trunkline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

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

// CreateTopic makes a topic; it exists, durably, when it returns nil. ErrExists when the name is taken.
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
	if _, err := c.link.call(ctx, text.String(), false); err != nil {
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
	if _, err := c.link.call(ctx, text.String(), false); err != nil {
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
	a, err := c.link.call(ctx, "TOPIC TRIM "+addr, false)
	if err != nil {
		return "", fmt.Errorf("trim %s: %w", addr, err)
	}
	return string(a.detail), nil
}

// DeleteTopic deletes a topic and all its records. ErrNotFound when it does not exist.
func (c *Client) DeleteTopic(ctx context.Context, name string) error {
	if err := checkField("topic name", name); err != nil {
		return err
	}
	if _, err := c.link.call(ctx, "TOPIC DELETE "+name, false); err != nil {
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

func (c *Client) callJSON(ctx context.Context, text string, into any) error {
	a, err := c.link.call(ctx, text, false)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(a.data))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return violation("%s is answered with JSON that cannot be read: %v", text, err)
	}
	return nil
}
