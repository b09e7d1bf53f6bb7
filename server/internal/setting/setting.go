// Package setting is the settings of a topic: what each may be, what it is without being set, how it is written on the
// wire and kept in metadata. It is pure.
package setting

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

// SyncMode says when a record is made durable.
type SyncMode string

// The modes of the setting sync.
const (
	SyncBatch    SyncMode = "batch"    // before it is acknowledged
	SyncInterval SyncMode = "interval" // at the latest after an interval
	SyncNever    SyncMode = "never"    // when the kernel likes
)

// Topic is the settings of a topic. The zero value is not legal; Defaults is.
type Topic struct {
	Sync           SyncMode
	SyncEvery      time.Duration // of SyncInterval
	RetentionTime  time.Duration // 0: for ever
	RetentionBytes int64         // of a partition; -1: no limit
	SegmentBytes   int64
	SegmentTime    time.Duration
	MessageBytes   int
	AppendTime     bool // records get the time at which they are appended
}

// Defaults are the settings of a topic that says nothing.
func Defaults() Topic {
	return Topic{
		Sync: SyncBatch, RetentionTime: 7 * 24 * time.Hour, RetentionBytes: -1,
		SegmentBytes: 1 << 30, SegmentTime: 7 * 24 * time.Hour, MessageBytes: 1 << 20,
	}
}

// Bounds of the settings; the tests and the documentation name them.
const (
	SegmentBytesMin  = 64 << 10
	SegmentBytesMax  = 1<<31 - 1 // positions and relative offsets of an index entry have 31 bits
	MessageBytesMin  = 1 << 10
	SyncEveryMin     = 50 * time.Millisecond
	SegmentTimeMin   = time.Second
	RetentionTimeMin = time.Second
)

// rule reads and writes one setting.
type rule struct {
	key    string
	bounds string
	read   func(t *Topic, value string) bool
	write  func(t *Topic) any
}

func rules() []rule {
	return []rule{
		{"sync", "batch, interval:<time> from 50ms, or never", (*Topic).readSync, func(t *Topic) any { return t.syncText() }},
		{"retention.time", "a time from 1s, or -1 for ever", readForever(func(t *Topic) *time.Duration { return &t.RetentionTime }),
			func(t *Topic) any { return foreverText(t.RetentionTime) }},
		{"retention.bytes", "a size, or -1 for no limit", readRetentionBytes, func(t *Topic) any { return t.RetentionBytes }},
		{"segment.bytes", "64KiB to 2147483647", readSegmentBytes, func(t *Topic) any { return t.SegmentBytes }},
		{"segment.time", "a time from 1s", readSegmentTime, func(t *Topic) any { return address.FormatDuration(t.SegmentTime) }},
		{"message.bytes", "1KiB to the server's limits.payload", readMessageBytes, func(t *Topic) any { return t.MessageBytes }},
		{"timestamps", "create or append", readTimestamps, func(t *Topic) any { return t.timestamps() }},
	}
}

// later are the settings of the protocol that this version does not have. They are refused, not ignored.
var later = []string{"replicas", "min.insync"}

// elsewhere are the settings that are no part of Topic: they say what the topic is made of.
var elsewhere = []string{"partitioner", "partitions", "storage"}

// Set changes one setting. BAD_SETTING says what it may be.
func (t *Topic) Set(key, value string) *errcode.Error {
	var keys []string
	for _, r := range rules() {
		if r.key != key {
			keys = append(keys, r.key)
			continue
		}
		if !r.read(t, value) {
			if lacksUnit(key, value) {
				return errcode.New(errcode.BadSetting, fmt.Sprintf("%s=%s has no unit", key, clip(value)), "write d, h, m, s or ms behind it: choose "+r.bounds)
			}
			return errcode.New(errcode.BadSetting, fmt.Sprintf("%s=%s is out of range", key, clip(value)), "choose "+r.bounds)
		}
		return nil
	}
	for _, l := range later {
		if key == l {
			return errcode.New(errcode.BadSetting, "setting "+key+" is not offered yet", "leave it out")
		}
	}
	keys = append(keys, elsewhere...)
	sort.Strings(keys)
	return errcode.New(errcode.BadSetting, fmt.Sprintf("setting %q is unknown", clip(key)), "there are "+strings.Join(keys, ", "))
}

// lacksUnit reports whether a value would be a time if it said of what.
func lacksUnit(key, value string) bool {
	every, timed := strings.CutPrefix(value, string(SyncInterval)+":")
	return (key == "sync" && timed || strings.HasSuffix(key, ".time")) && address.LacksTimeUnit(every)
}

// Show is every setting as JSON shows it: sizes as numbers of bytes, times with units.
func (t *Topic) Show() map[string]any {
	shown := map[string]any{}
	for _, r := range rules() {
		shown[r.key] = r.write(t)
	}
	return shown
}

// Text is every setting as Set takes it; what metadata keeps.
func (t *Topic) Text() map[string]string {
	texts := map[string]string{}
	for key, v := range t.Show() {
		texts[key] = fmt.Sprint(v)
	}
	return texts
}

// Parse reads what Text wrote. A setting that is missing has its default.
func Parse(texts map[string]string) (Topic, error) {
	t := Defaults()
	for key, value := range texts {
		if err := t.Set(key, value); err != nil {
			return t, err
		}
	}
	return t, nil
}

func (t *Topic) readSync(value string) bool {
	mode, every, timed := strings.Cut(value, ":")
	switch {
	case (mode == string(SyncBatch) || mode == string(SyncNever)) && !timed:
		t.Sync, t.SyncEvery = SyncMode(mode), 0
		return true
	case mode == string(SyncInterval) && timed:
		d, err := address.ParseDuration(every)
		if err != nil || d < SyncEveryMin {
			return false
		}
		t.Sync, t.SyncEvery = SyncInterval, d
		return true
	}
	return false
}

func (t *Topic) syncText() string {
	if t.Sync == SyncInterval {
		return string(t.Sync) + ":" + address.FormatDuration(t.SyncEvery)
	}
	return string(t.Sync)
}

// readForever reads a time where -1 stands for none.
func readForever(field func(t *Topic) *time.Duration) func(t *Topic, value string) bool {
	return func(t *Topic, value string) bool {
		if value == "-1" {
			*field(t) = 0
			return true
		}
		d, err := address.ParseDuration(value)
		if err != nil || d < RetentionTimeMin {
			return false
		}
		*field(t) = d
		return true
	}
}

func foreverText(d time.Duration) any {
	if d == 0 {
		return "-1"
	}
	return address.FormatDuration(d)
}

func readRetentionBytes(t *Topic, value string) bool {
	if value == "-1" {
		t.RetentionBytes = -1
		return true
	}
	n, ok := bytesOf(value)
	if !ok || n < 0 {
		return false
	}
	t.RetentionBytes = n
	return true
}

func readSegmentBytes(t *Topic, value string) bool {
	n, ok := bytesOf(value)
	if !ok || n < SegmentBytesMin || n > SegmentBytesMax {
		return false
	}
	t.SegmentBytes = n
	return true
}

func readSegmentTime(t *Topic, value string) bool {
	d, err := address.ParseDuration(value)
	if err != nil || d < SegmentTimeMin {
		return false
	}
	t.SegmentTime = d
	return true
}

func readMessageBytes(t *Topic, value string) bool {
	n, ok := bytesOf(value)
	if !ok || n < MessageBytesMin || n > SegmentBytesMax {
		return false
	}
	t.MessageBytes = int(n)
	return true
}

func readTimestamps(t *Topic, value string) bool {
	t.AppendTime = value == "append"
	return t.AppendTime || value == "create"
}

func (t *Topic) timestamps() string {
	if t.AppendTime {
		return "append"
	}
	return "create"
}

// bytesOf reads a size with a unit, or a plain number of bytes.
func bytesOf(value string) (int64, bool) {
	if n, err := strconv.ParseInt(value, 10, 64); err == nil {
		return n, true
	}
	n, err := address.ParseBytes(value)
	return n, err == nil
}

// clip bounds what of a peer's input is sent back to it.
func clip(s string) string { return s[:min(len(s), 64)] }
