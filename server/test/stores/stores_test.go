// Package stores tests the stores as a topic has them: chosen at its creation, killed and hung under load, full, and on
// a server that dies. What was acknowledged is kept by the client and compared record by record.
package stores

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// records is how many a topic is given.
func records() int {
	if harness.Race() {
		return 20_000
	}
	return 100_000
}

// kind is a store as the tests know it.
type kind struct {
	name     string
	settings string
	ack      string
	outlives bool // the server
}

func kinds() []kind {
	return []kind{
		{"filelog", "storage=filelog segment.bytes=1MiB", "disk", true},
		{"memory", "storage=memory retention.bytes=64MiB segment.bytes=4MiB", "memory", false},
		{"archive", "storage=archive", "disk", true},
	}
}

func create(t *testing.T, s *harness.Server, topic, settings string) {
	t.Helper()
	if got := s.Dial().Ask("TOPIC CREATE " + topic + " " + settings); got != "+OK "+topic {
		t.Fatalf("create %s: %s", topic, got)
	}
}

// info is what TOPIC INFO says, as far as the tests look at it.
type info struct {
	Settings   map[string]any `json:"settings"`
	Partitions []struct {
		Epoch         int   `json:"epoch"`
		LogStart      int64 `json:"log_start"`
		HighWatermark int64 `json:"high_watermark"`
		Bytes         int64 `json:"bytes"`
		Segments      int   `json:"segments"`
	} `json:"partitions"`
}

func infoOf(t *testing.T, s *harness.Server, topic string) info {
	t.Helper()
	c := s.Dial()
	size, err := strconv.Atoi(strings.TrimPrefix(c.Ask("TOPIC INFO "+topic), "DATA "))
	if err != nil {
		t.Fatalf("info of %s: %v", topic, err)
	}
	var i info
	if err := json.Unmarshal([]byte(c.ReadN(size)), &i); err != nil {
		t.Fatal(err)
	}
	return i
}

func TestATopicOnEachStoreSurvivesWhatItsStoreDoes(t *testing.T) {
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			s := harness.StartIn(t, []string{"TRUNKLINE_STORAGE_MEMORY=1GiB"})
			create(t, s, "load", "partitions=3 "+k.settings)
			if got := infoOf(t, s, "load").Settings["storage"]; got != k.name {
				t.Errorf("the topic says its store is %v", got)
			}
			l := harness.StartLoad(t, s, "load", harness.LoadOptions{Name: "a", Ack: k.ack})
			for range 4 {
				l.WaitMore(records() / 10)
				s.KillPlugin("storage", k.name, syscall.SIGKILL)
			}
			l.WaitMore(records() / 10)
			s.KillPlugin("storage", k.name, syscall.SIGSTOP) // until its heartbeat is missed
			harness.Eventually(t, "all records are there", func() bool { return l.Count() >= records() })
			h := l.End()
			if len(h.Refused) > 0 || h.Unknown > 0 {
				t.Errorf("%s: none of them had to be", h)
			}
			h.Check(t, s, 3)
			t.Log(h)
			if !k.outlives {
				return
			}
			s.Kill()
			s.Restart()
			h.Check(t, s, 3)
			more := harness.StartLoad(t, s, "load", harness.LoadOptions{Name: "b", Ack: k.ack})
			more.WaitMore(2000)
			s.Kill() // with groups under way
			h.Add(more.End())
			s.Restart()
			h.Check(t, s, 3)
		})
	}
}

func TestAStoreThatHangsIsNoOtherStoresTrouble(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_STORAGE_MEMORY=1GiB"})
	for _, k := range kinds() {
		create(t, s, k.name, k.settings)
	}
	loads := map[string]*harness.Load{}
	for _, k := range kinds() {
		loads[k.name] = harness.StartLoad(t, s, k.name, harness.LoadOptions{Ack: k.ack})
	}
	for _, k := range kinds() {
		for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
			for _, l := range loads {
				l.WaitMore(200)
			}
			s.KillPlugin("storage", k.name, signal)
		}
	}
	for _, k := range kinds() {
		h := loads[k.name].End()
		if len(h.Refused) > 0 || h.Unknown > 0 {
			t.Errorf("%s: %s: none of them had to be", k.name, h)
		}
		h.Check(t, s, 1)
	}
}

func TestMemoryEndsWithItsServerAndOffsetsGoOn(t *testing.T) {
	s := harness.Start(t)
	create(t, s, "m", "storage=memory retention.bytes=8MiB")
	h := harness.NewHistory("m")
	end := int64(0)
	for life := range 4 {
		l := harness.StartLoad(t, s, "m", harness.LoadOptions{Name: fmt.Sprintf("%d.", life), Ack: "memory"})
		l.WaitMore(1000)
		graceful := life%2 == 1
		if graceful {
			h2 := l.End()
			h2.Check(t, s, 1)
			end = infoOf(t, s, "m").Partitions[0].HighWatermark
			s.Term()
		} else {
			s.Kill()
		}
		lived := l.End()
		for addr := range lived.Acked {
			if _, again := h.Acked[addr]; again {
				t.Errorf("offset %s was given twice", addr)
			}
		}
		h.Add(lived)
		s.Restart()
		p := infoOf(t, s, "m").Partitions[0]
		if p.Epoch != life+1 || p.LogStart != p.HighWatermark || p.Bytes != 0 {
			t.Errorf("after life %d the partition is %+v", life, p)
		}
		if graceful && p.LogStart != end {
			t.Errorf("after an end in order the log goes on at %d, it ended at %d", p.LogStart, end)
		}
		if c := s.Dial(); c.Ask("GET m/0@earliest") != fmt.Sprintf("+OK m/0@%d", p.LogStart) {
			t.Errorf("there is something to be read")
		}
	}
}

func TestMemoryStaysWithinItsCap(t *testing.T) {
	s := harness.StartIn(t, []string{"TRUNKLINE_STORAGE_MEMORY=8MiB"})
	c := s.Dial()
	create(t, s, "small", "storage=memory retention.bytes=1MiB")
	body := strings.Repeat("x", 10_000)
	for i := range 2000 { // 20 MB through a topic that keeps one
		if got := c.Ask(fmt.Sprintf("SEND small %s", body)); !strings.HasPrefix(got, "+OK small/0@") {
			t.Fatalf("record %d: %s", i, got)
		}
	}
	if p := infoOf(t, s, "small").Partitions[0]; p.Bytes > 2<<20 || p.LogStart == 0 {
		t.Errorf("after 20 MB the partition is %+v", p)
	}
	if got := c.Ask("TOPIC CREATE huge storage=memory retention.bytes=64MiB"); !strings.HasPrefix(got, "-ERR STORAGE_FULL ") {
		t.Errorf("a topic whose first segment does not fit: %s", got)
	}
	create(t, s, "greedy", "storage=memory retention.bytes=16MiB segment.bytes=1MiB")
	refused := ""
	for range 2000 {
		if refused = c.Ask(fmt.Sprintf("SEND greedy %s", body)); !strings.HasPrefix(refused, "+OK") {
			break
		}
	}
	if !strings.HasPrefix(refused, "-ERR STORAGE_FULL ") {
		t.Fatalf("20 MB into 8 MiB: %s", refused)
	}
	// What others have in hand is theirs, and what is given back can be had.
	if got := c.Ask("SEND small y"); !strings.HasPrefix(got, "+OK small/0@") {
		t.Errorf("another topic: %s", got)
	}
	end := infoOf(t, s, "greedy").Partitions[0].HighWatermark
	if got := c.Ask(fmt.Sprintf("TOPIC TRIM greedy/0@%d", end)); got != fmt.Sprintf("+OK greedy/0@%d", end) {
		t.Fatalf("trim: %s", got)
	}
	if got := c.Ask(fmt.Sprintf("SEND greedy %s", body)); got != fmt.Sprintf("+OK greedy/0@%d memory", end) {
		t.Errorf("after the trim: %s", got)
	}
	if got := c.Ask("TOPIC DELETE greedy"); got != "+OK greedy" {
		t.Fatal(got)
	}
	create(t, s, "greedy", "storage=memory retention.bytes=4MiB")
}

func TestSettingsThatAStoreCannotKeepAreRefused(t *testing.T) {
	s := harness.Start(t)
	c := s.Dial()
	for command, want := range map[string]string{
		"TOPIC CREATE a storage=memory":                                 "retention.bytes",
		"TOPIC CREATE a storage=memory retention.bytes=-1":              "retention.bytes",
		"TOPIC CREATE a storage=archive sync=never":                     "sync",
		"TOPIC CREATE a storage=archive sync=interval:1s":               "sync",
		"TOPIC CREATE a storage=tape":                                   "archive, filelog, memory",
		"TOPIC CREATE a storage=":                                       "storage=",
		"TOPIC CREATE a storage=memory retention.bytes=1MiB adopt=true": "adopted",
	} {
		if got := c.Ask(command); !strings.HasPrefix(got, "-ERR BAD_SETTING ") || !strings.Contains(got, want) {
			t.Errorf("%s: %s", command, got)
		}
	}
	create(t, s, "m", "storage=memory retention.bytes=1MiB")
	create(t, s, "a", "storage=archive")
	for _, command := range []string{
		"TOPIC ALTER m retention.bytes=-1", "TOPIC ALTER m storage=filelog", "TOPIC ALTER a sync=never", "TOPIC ALTER a storage=memory",
	} {
		if got := c.Ask(command); !strings.HasPrefix(got, "-ERR BAD_SETTING ") {
			t.Errorf("%s: %s", command, got)
		}
	}
	if got := c.Ask("TOPIC ALTER m partitions=3 accept_reorder=true"); got != "+OK m" {
		t.Errorf("more partitions in memory: %s", got)
	}
	if got := c.Ask("PUB m/2 2\nhi"); got != "+OK m/2@0 memory" {
		t.Errorf("publish to one of them: %s", got)
	}
}

func TestArchiveKeepsObjectsAndLetsThemGo(t *testing.T) {
	s := harness.Start(t)
	c := s.Dial()
	create(t, s, "a", "storage=archive retention.bytes=100KiB")
	body := strings.Repeat("x", 1000)
	for i := range 300 {
		if got := c.Ask("SEND a " + body); got != fmt.Sprintf("+OK a/0@%d disk", i) {
			t.Fatalf("record %d: %s", i, got)
		}
	}
	harness.Eventually(t, "retention moves the log start", func() bool { return infoOf(t, s, "a").Partitions[0].LogStart > 100 })
	start := infoOf(t, s, "a").Partitions[0].LogStart
	if got := c.Ask("GET a/0@0"); !strings.HasPrefix(got, "-ERR OFFSET_OUT_OF_RANGE") {
		t.Errorf("a record that retention took: %s", got)
	}
	c = s.Dial()
	if got := c.Ask(fmt.Sprintf("GET a/0@%d 1", start)); got != fmt.Sprintf("MSG a/0@%d 0 1000", start) {
		t.Errorf("the first record: %s", got)
	}
	c = s.Dial()
	if got := c.Ask("TOPIC TRIM a/0@299"); got != "+OK a/0@299" {
		t.Errorf("trim: %s", got)
	}
	objects := func() []string {
		found, err := filepath.Glob(filepath.Join(s.Data, "archive", "a-0", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if left := objects(); len(left) != 3 { // the mark, the log start, and one record
		t.Errorf("after the trim there are %q", left)
	}
	s.Kill()
	s.Restart()
	if p := infoOf(t, s, "a").Partitions[0]; p.LogStart != 299 || p.HighWatermark != 300 {
		t.Errorf("after a restart the partition is %+v", p)
	}
	// A batch goes to a client as it lies there.
	c = s.Dial()
	var offset, end, from, size int
	if _, err := fmt.Sscanf(c.Ask("FETCH a/0@299"), "BATCH a/0@%d %d %d %d", &offset, &end, &from, &size); err != nil || offset != 299 || end != 300 || from != 299 {
		t.Fatalf("fetch: %d %d %d %d, %v", offset, end, from, size, err)
	}
	if batch := c.ReadN(size); !strings.Contains(batch, body) {
		t.Errorf("the batch holds another record")
	}
	if got := s.Dial().Ask("TOPIC DELETE a"); got != "+OK a" {
		t.Errorf("delete: %s", got)
	}
	if left := objects(); len(left) != 0 {
		t.Errorf("after the delete there are %q", left)
	}
}

func TestPositionsAreFoundOnEveryStore(t *testing.T) {
	s := harness.Start(t)
	for _, k := range kinds() {
		create(t, s, k.name, k.settings)
		c := s.Dial()
		for i := range 20 {
			if got := c.Ask(fmt.Sprintf("SEND %s r%d", k.name, i)); !strings.HasPrefix(got, "+OK") {
				t.Fatal(got)
			}
		}
		for position, want := range map[string]string{"@1h": "0", "@latest": "20", "@7": "7"} {
			got := s.Dial().Ask("GET " + k.name + "/0" + position + " 1")
			if position == "@latest" {
				if got != "+OK "+k.name+"/0@20" {
					t.Errorf("%s at %s: %s", k.name, position, got)
				}
				continue
			}
			if !strings.HasPrefix(got, "MSG "+k.name+"/0@"+want+" ") {
				t.Errorf("%s at %s: %s", k.name, position, got)
			}
		}
	}
}
