package integration

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestTopicCommandsTellWhatIsThere(t *testing.T) {
	s := harness.Start(t)
	if got := succeeds(t, s, nil, "topic", "ls"); got.out != "TOPIC  PARTITIONS\n" {
		t.Errorf("%q", got.out)
	}
	var made, told topicJSON
	object(t, succeeds(t, s, nil, "--json", "topic", "create", "two", "--set", "partitions=2").out, &made)
	succeeds(t, s, nil, "pub", "two/1", "x", "--count", "3")
	object(t, succeeds(t, s, nil, "--json", "topic", "info", "two").out, &told)
	if told.ID != made.ID || len(told.ID) != 32 || told.Plan.Kind != "murmur2" || len(told.Partitions) != 2 || told.Settings["partitions"] != 2.0 {
		t.Errorf("made %+v, told %+v", made, told)
	}
	if p := told.Partitions[1]; p.Partition != 1 || p.HighWatermark != 3 || p.LogEnd != 3 || p.LogStart != 0 || p.Bytes == 0 || p.Segments != 1 ||
		len(p.Replicas) != 1 || len(p.ISR) != 1 || p.Replicas[0] != p.Leader || p.ISR[0] != p.Leader {
		t.Errorf("%+v", p)
	}
	var list struct {
		Topics []topicJSON `json:"topics"`
	}
	object(t, succeeds(t, s, nil, "topic", "ls", "--json").out, &list)
	if len(list.Topics) != 1 || list.Topics[0].Name != "two" || list.Topics[0].ID != told.ID {
		t.Errorf("%+v", list)
	}
	if got := succeeds(t, s, nil, "topic", "ls"); got.out != "TOPIC  PARTITIONS\ntwo    2\n" {
		t.Errorf("%q", got.out)
	}
	table := regexp.MustCompile(`(?s)^topic two, id ` + told.ID + `\n.*  partitions +2\n.*\n +1 +1 +0 +3 +3 +\d+ +1\n$`)
	if got := succeeds(t, s, nil, "topic", "info", "two"); !table.MatchString(got.out) {
		t.Errorf("%s", got.out)
	}
	if got := succeeds(t, s, nil, "topic", "rm", "two"); got.out != "deleted two\n" {
		t.Errorf("%q", got.out)
	}
	if got := succeeds(t, s, nil, "topic", "ls", "--json"); got.out != "{\"topics\":[]}\n" {
		t.Errorf("%q", got.out)
	}
	var version map[string]any
	object(t, succeeds(t, s, nil, "version", "--json").out, &version)
	if version["protocol"] != 1.0 || version["version"] == "" || version["go"] == "" || version["commit"] == nil {
		t.Errorf("%v", version)
	}
}

// topicJSON is what the protocol tells of a topic.
type topicJSON struct {
	Name     string         `json:"name"`
	ID       string         `json:"id"`
	Settings map[string]any `json:"settings"`
	Plan     struct {
		Version int    `json:"version"`
		Kind    string `json:"kind"`
	} `json:"plan"`
	Partitions []struct {
		Partition     int   `json:"partition"`
		Leader        int   `json:"leader"`
		Epoch         int   `json:"epoch"`
		Replicas      []int `json:"replicas"`
		ISR           []int `json:"isr"`
		LogStart      int64 `json:"log_start"`
		HighWatermark int64 `json:"high_watermark"`
		LogEnd        int64 `json:"log_end"`
		Bytes         int64 `json:"bytes"`
		Segments      int   `json:"segments"`
	} `json:"partitions"`
}

func object(t *testing.T, out string, into any) {
	t.Helper()
	if strings.Count(out, "\n") != 1 {
		t.Errorf("not one line: %q", out)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("%.200q: %v", out, err)
	}
}
