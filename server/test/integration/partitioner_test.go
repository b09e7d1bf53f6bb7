package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// toldTopic is what TOPIC INFO says that these tests look at.
type toldTopic struct {
	Settings map[string]any
	Plan     struct {
		Version     int
		Kind        string
		Partitions  int
		Partitioner string
	}
	Partitions []struct {
		HighWatermark int `json:"high_watermark"`
	}
}

func topicInfo(t *testing.T, l *harness.Line, topic string) toldTopic {
	t.Helper()
	l.Send("TOPIC INFO " + topic + "\n")
	if head := l.Read(); !strings.HasPrefix(head, "DATA ") {
		t.Fatalf("TOPIC INFO: %q", head)
	}
	var told toldTopic
	if err := json.Unmarshal([]byte(l.Read()), &told); err != nil {
		t.Fatal(err)
	}
	return told
}

// partitionerPID finds the process of a partitioner.
func partitionerPID(s *harness.Server, name string) int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, _ := os.ReadFile(dir + "/cmdline")
		args := strings.Split(string(line), "\x00")
		if len(args) < 4 || args[1] != "plugin" || args[2] != "partitioner" || args[3] != name {
			continue
		}
		stat, _ := os.ReadFile(dir + "/stat")
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 2 || fields[1] != strconv.Itoa(s.PID()) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && harness.Alive(pid) {
			return pid
		}
	}
	return 0
}

func TestATopicIsSpreadAsItsPartitionerSays(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	for _, name := range []string{"murmur2", "crc32", "fnv1a", "roundrobin", "sticky", "jump"} {
		ask(t, l, "TOPIC CREATE t-"+name+" partitions=5 partitioner="+name, "+OK t-"+name)
		told := topicInfo(t, l, "t-"+name)
		kind := name
		if name == "jump" {
			kind = "called"
		}
		if told.Settings["partitioner"] != name || told.Plan.Kind != kind || told.Plan.Version != 1 || told.Plan.Partitions != 5 {
			t.Errorf("%s: %+v", name, told)
		}
	}
	for i := range 20 {
		key := fmt.Sprintf("customer-%d", i)
		h := fnv.New32a()
		_, _ = h.Write([]byte(key))
		for topic, want := range map[string]uint32{"t-crc32": crc32.ChecksumIEEE([]byte(key)) % 5, "t-fnv1a": h.Sum32() % 5, "t-roundrobin": uint32(i % 5)} {
			if got := l.Ask("SEND " + topic + "#" + key + " x"); !strings.HasPrefix(got, fmt.Sprintf("+OK %s/%d@", topic, want)) {
				t.Errorf("%s of %s: %q, want partition %d", key, topic, got, want)
			}
		}
	}
	first := l.Ask("SEND t-jump#k x")
	where, _, _ := strings.Cut(first, "@")
	if !strings.HasPrefix(where, "+OK t-jump/") {
		t.Fatal(first)
	}
	if code := s.Term(); code != 0 {
		t.Fatal(code)
	}
	s.Restart() // the plugin of a called plan runs again
	l = s.Dial()
	harness.Eventually(t, "the partitioner answers", func() bool { return strings.HasPrefix(l.Ask("SEND t-jump#k y"), where+"@") })
	for in, code := range map[string]string{
		"TOPIC CREATE u partitioner=": "BAD_SETTING", "TOPIC CREATE u partitioner=../../x": "BAD_SETTING", "TOPIC CREATE u partitioner=mine": "BAD_SETTING",
		"TOPIC ALTER t-crc32 partitioner=mine": "BAD_SETTING", "TOPIC ALTER t-crc32 partitioner=": "BAD_SETTING", "TOPIC ALTER t-crc32 partitions=0": "BAD_SETTING",
		"TOPIC ALTER t-crc32 partitions=2049": "BAD_SETTING", "TOPIC ALTER t-crc32 partitions=4": "BAD_SETTING", "TOPIC ALTER t-crc32 accept_reorder=maybe": "BAD_SETTING",
		"TOPIC ALTER t-crc32 adopt=true": "BAD_SETTING", "TOPIC ALTER nothere partitions=4": "UNKNOWN_TOPIC",
	} {
		if got := l.Ask(in); !strings.HasPrefix(got, "-ERR "+code+" ") || !strings.Contains(got, "; ") {
			t.Errorf("%s: %q, want %s", in, got, code)
		}
	}
}

func TestARefusalSaysWhichShareOfTheKeysWouldMove(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=4", "+OK t")
	if got := l.Ask("TOPIC ALTER t partitioner=crc32"); !strings.Contains(got, "none was published") {
		t.Errorf("without keys: %q", got)
	}
	now, err := partition.NewEvaluator(partition.Plan{Kind: partition.KindMurmur2, Partitions: 4})
	if err != nil {
		t.Fatal(err)
	}
	would := map[string]*partition.Evaluator{}
	for change, plan := range map[string]partition.Plan{
		"partitioner=crc32": {Kind: partition.KindCRC32, Partitions: 4}, "partitions=6": {Kind: partition.KindMurmur2, Partitions: 6},
		"partitioner=fnv1a partitions=6": {Kind: partition.KindFNV1a, Partitions: 6},
	} {
		if would[change], err = partition.NewEvaluator(plan); err != nil {
			t.Fatal(err)
		}
	}
	moved := map[string]int{}
	const keys = 40
	for i := range keys {
		key := fmt.Sprintf("customer-%d", i)
		for range 2 { // a key counts once
			if got := l.Ask("SEND t#" + key + " x"); !strings.HasPrefix(got, "+OK t/") {
				t.Fatal(got)
			}
		}
		for change, then := range would {
			if then.ForKey([]byte(key)) != now.ForKey([]byte(key)) {
				moved[change]++
			}
		}
	}
	for change := range would {
		want := fmt.Sprintf("%d of %d recent keys of t (", moved[change], keys)
		if got := l.Ask("TOPIC ALTER t " + change); !strings.HasPrefix(got, "-ERR BAD_SETTING ") || !strings.Contains(got, want) || !strings.Contains(got, "accept_reorder=true") {
			t.Errorf("%s: %q, want %q", change, got, want)
		}
	}
	if got := l.Ask("TOPIC ALTER t partitioner=jump"); !strings.HasPrefix(got, "-ERR BAD_SETTING ") || !strings.Contains(got, fmt.Sprintf(" of %d recent keys", keys)) {
		t.Errorf("to a called one: %q", got)
	}
	ask(t, l, "TOPIC ALTER t partitioner=murmur2", "+OK t") // it is that already
	if told := topicInfo(t, l, "t"); told.Plan.Version != 1 || len(told.Partitions) != 4 {
		t.Errorf("refusals changed the topic: %+v", told)
	}
	ask(t, l, "TOPIC ALTER t partitioner=roundrobin accept_reorder=true", "+OK t")
	ask(t, l, "TOPIC ALTER t partitioner=sticky", "+OK t") // no key was kept together
	ask(t, l, "TOPIC ALTER t partitions=5 retention.time=1d", "+OK t")
	if told := topicInfo(t, l, "t"); told.Plan.Version != 4 || told.Plan.Kind != "sticky" || len(told.Partitions) != 5 || told.Settings["retention.time"] != "1d" {
		t.Errorf("%+v", told)
	}
}

// keyedLoad publishes records with keys on several connections and keeps what was acknowledged; every other answer is
// an error of the test.
type keyedLoad struct {
	t     *testing.T
	topic string
	stop  atomic.Bool
	wg    sync.WaitGroup
	count atomic.Int64
	late  atomic.Int64
	// mayBeLate: the partitioner is called, and has 50 ms, which a busy machine may not grant it.
	mayBeLate bool

	mu    sync.Mutex
	acked map[string]string // address: body
}

const loadWindow = 100

func startKeyedLoad(t *testing.T, s *harness.Server, topic string, mayBeLate bool) *keyedLoad {
	t.Helper()
	l := &keyedLoad{t: t, topic: topic, mayBeLate: mayBeLate, acked: map[string]string{}}
	for i := range 3 {
		nc, err := net.Dial("tcp", s.Client)
		if err != nil {
			t.Fatal(err)
		}
		l.wg.Go(func() { l.publish(nc, i) })
	}
	return l
}

func (l *keyedLoad) publish(nc net.Conn, publisher int) {
	defer func() { _ = nc.Close() }()
	r := bufio.NewReaderSize(nc, 64<<10)
	if _, err := r.ReadString('\n'); err != nil {
		l.t.Error(err)
		return
	}
	for seq := 0; !l.stop.Load(); seq += loadWindow {
		var out strings.Builder
		body := func(i int) string { return fmt.Sprintf("%d from %d", seq+i, publisher) }
		for i := range loadWindow {
			switch i % 3 {
			case 0:
				fmt.Fprintf(&out, "SEND %s#k%d %s\n", l.topic, rand.IntN(500), body(i))
			case 1:
				fmt.Fprintf(&out, "PUB %s#k%d %d\r\n%s\r\n", l.topic, rand.IntN(500), len(body(i)), body(i))
			default:
				block := fmt.Sprintf("NATS/1.0\r\nKey: k%d\r\n\r\n", rand.IntN(500))
				fmt.Fprintf(&out, "HPUB %s %d %d\r\n%s%s\r\n", l.topic, len(block), len(block)+len(body(i)), block, body(i))
			}
		}
		_ = nc.SetDeadline(time.Now().Add(harness.Patience))
		if _, err := nc.Write([]byte(out.String())); err != nil {
			l.t.Error(err)
			return
		}
		for i := range loadWindow {
			answer, err := r.ReadString('\n')
			fields := strings.Fields(answer)
			if l.mayBeLate && strings.HasPrefix(answer, "-ERR PARTITIONER_UNAVAILABLE ") && strings.Contains(answer, "did not answer in time") {
				l.late.Add(1)
				continue
			}
			if err != nil || len(fields) != 3 || fields[0] != "+OK" || fields[2] != "disk" {
				l.t.Errorf("publish was answered %q, %v", answer, err)
				return
			}
			l.mu.Lock()
			if before, twice := l.acked[fields[1]]; twice {
				l.t.Errorf("%s was told for %q and %q", fields[1], before, body(i))
			}
			l.acked[fields[1]] = body(i)
			l.mu.Unlock()
			l.count.Add(1)
		}
	}
}

// more waits until n more records are acknowledged.
func (l *keyedLoad) more(n int64) {
	l.t.Helper()
	goal := l.count.Load() + n
	harness.Eventually(l.t, "more records are acknowledged", func() bool { return l.count.Load() >= goal || l.t.Failed() })
}

// end stops the load and compares the log with what was acknowledged; each publisher's records are in order in every
// partition. It returns how many records each partition holds.
func (l *keyedLoad) end(s *harness.Server, partitions int) []int {
	l.t.Helper()
	l.stop.Store(true)
	l.wg.Wait()
	c := s.Dial()
	held := make([]int, partitions)
	for p := range held {
		last := map[int]int{} // by publisher
		for next := fmt.Sprintf("%s/%d@0", l.topic, p); ; {
			c.Send("GET " + next + " 5000\n")
			n := 0
			for {
				f := strings.Fields(c.Read())
				if f[0] == "+OK" {
					next = f[1]
					break
				}
				size, _ := strconv.Atoi(f[len(f)-1])
				frame := c.ReadN(size)
				c.Read()
				if body := frame[strings.LastIndex(frame, "\n")+1:]; l.acked[f[1]] != body {
					l.t.Errorf("%s holds %q, told was %q", f[1], body, l.acked[f[1]])
				}
				var seq, publisher int
				if _, err := fmt.Sscanf(frame[strings.LastIndex(frame, "\n")+1:], "%d from %d", &seq, &publisher); err == nil {
					if before, any := last[publisher]; any && before >= seq {
						l.t.Errorf("%s: record %d of publisher %d stands behind %d", f[1], seq, publisher, before)
					}
					last[publisher] = seq
				}
				n++
			}
			if held[p] += n; n == 0 {
				break
			}
		}
	}
	sum := 0
	for _, n := range held {
		sum += n
	}
	if sum != len(l.acked) {
		l.t.Errorf("%d records acknowledged, %d in the log", len(l.acked), sum)
	}
	return held
}

func TestThePartitionerIsSwappedUnderPublishes(t *testing.T) {
	s := harness.Start(t)
	l, producer := s.Dial(), s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=3", "+OK t")
	if got := produce(producer, "t/0 plan=1", batchOf("first")); got != "+OK t/0@0 disk" {
		t.Fatal(got)
	}
	load := startKeyedLoad(t, s, "t", false)
	load.mu.Lock()
	load.acked["t/0@0"] = "first"
	load.mu.Unlock()
	load.more(500)
	const swaps = 200
	for i := range swaps {
		name := []string{"crc32", "fnv1a", "roundrobin", "sticky", "murmur2"}[i%5]
		ask(t, l, "TOPIC ALTER t partitioner="+name+" accept_reorder=true", "+OK t")
		load.more(20)
	}
	if got := produce(producer, "t/0 plan=1", batchOf("late")); !strings.HasPrefix(got, "-ERR PLAN_STALE ") {
		t.Errorf("PRODUCE with the first plan: %q", got)
	}
	told := topicInfo(t, l, "t")
	if told.Plan.Version != swaps+1 || told.Plan.Kind != "murmur2" {
		t.Errorf("plan %+v", told.Plan)
	}
	load.end(s, 3)
	if got := produce(producer, fmt.Sprintf("t/1 plan=%d", swaps+1), batchOf("now")); !strings.HasPrefix(got, "+OK t/1@") {
		t.Errorf("PRODUCE with the newest plan: %q", got)
	}
}

func TestACalledPartitionerIsSwappedInAndOutUnderPublishes(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=3", "+OK t")
	load := startKeyedLoad(t, s, "t", true)
	for i := range 40 {
		ask(t, l, "TOPIC ALTER t partitioner="+[]string{"jump", "murmur2"}[i%2]+" accept_reorder=true", "+OK t")
		load.more(50)
	}
	load.end(s, 3) // what was refused for lateness is not in the log
	if late, all := load.late.Load(), load.count.Load(); late > all/10 {
		t.Errorf("%d publishes were refused for lateness, %d were not", late, all)
	}
}

func TestPartitionsGrowUnderPublishes(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=2", "+OK t")
	load := startKeyedLoad(t, s, "t", false)
	load.more(300)
	for _, n := range []int{3, 5, 12} {
		ask(t, l, fmt.Sprintf("TOPIC ALTER t partitions=%d accept_reorder=true", n), "+OK t")
		load.more(500)
	}
	for p, n := range load.end(s, 12) {
		if n == 0 {
			t.Errorf("partition %d got nothing", p)
		}
	}
	s.Kill()
	s.Restart()
	l = s.Dial()
	if told := topicInfo(t, l, "t"); len(told.Partitions) != 12 || told.Plan.Version != 4 || told.Plan.Partitions != 12 {
		t.Errorf("%+v", told)
	}
	if got := l.Ask("SEND t/11 x"); !strings.HasPrefix(got, "+OK t/11@") {
		t.Error(got)
	}
}

func TestAGrowthThatIsCutOffIsFinishedOrNeverWas(t *testing.T) {
	s := harness.Start(t)
	count := 1
	s.Dial().Ask("TOPIC CREATE t")
	grown := 0
	for round := range 6 {
		l := s.Dial()
		l.Send(fmt.Sprintf("TOPIC ALTER t partitions=%d accept_reorder=true\n", count+20))
		// Somewhere in the middle: when some of the directories are there.
		want := count + round*4
		harness.Eventually(t, "directories appear", func() bool {
			dirs, _ := filepath.Glob(filepath.Join(s.Data, "logs", "t-*"))
			return len(dirs) >= want
		})
		s.Kill()
		s.Restart()
		l = s.Dial()
		told := topicInfo(t, l, "t")
		n := len(told.Partitions)
		if n != count && n != count+20 || told.Plan.Partitions != n {
			t.Fatalf("round %d: %d partitions became %+v", round, count, told)
		}
		if n > count {
			grown++
		}
		count = n
		for p := range n {
			if got := l.Ask(fmt.Sprintf("SEND t/%d x", p)); !strings.HasPrefix(got, fmt.Sprintf("+OK t/%d@", p)) {
				t.Errorf("round %d: %q", round, got)
			}
		}
	}
	if grown == 0 {
		t.Error("no growth was ever begun")
	}
}

func TestAGrowthWithoutRoomLeavesTheTopicAsItWas(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t", "+OK t")
	// A file stands where the directory of partition 2 is to be.
	obstacle := filepath.Join(s.Data, "logs", "t-2")
	if err := os.WriteFile(obstacle, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := l.Ask("TOPIC ALTER t partitions=4 accept_reorder=true"); !strings.HasPrefix(got, "-ERR STORAGE_UNAVAILABLE ") {
		t.Fatal(got)
	}
	if told := topicInfo(t, l, "t"); len(told.Partitions) != 1 || told.Plan.Version != 1 {
		t.Errorf("%+v", told)
	}
	ask(t, l, "SEND t x", "+OK t/0@0 disk")
	if err := os.RemoveAll(obstacle); err != nil {
		t.Fatal(err)
	}
	ask(t, l, "TOPIC ALTER t partitions=4 accept_reorder=true", "+OK t")
	ask(t, l, "SEND t/3 x", "+OK t/3@0 disk")
	ask(t, l, "TOPIC DELETE t", "+OK t")
	dirs, err := filepath.Glob(filepath.Join(s.Data, "logs", "t-*"))
	if err != nil || len(dirs) != 0 {
		t.Errorf("left are %q, %v", dirs, err)
	}
}

func TestACalledPartitionerThatDiesOrHangsRefusesAndHeals(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=7 partitioner=jump", "+OK t")
	ask(t, l, "TOPIC CREATE other partitions=7", "+OK other")
	where, _, _ := strings.Cut(l.Ask("SEND t#k before"), "@")
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		pid := partitionerPID(s, "jump")
		if pid == 0 {
			t.Fatal("it does not run")
		}
		if err := syscall.Kill(pid, signal); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, "it is felt", func() bool {
			return strings.HasPrefix(l.Ask("SEND t#k refused"), "-ERR PARTITIONER_UNAVAILABLE ")
		})
		if got := l.Ask("SEND other#k x"); !strings.HasPrefix(got, "+OK other/") {
			t.Errorf("another topic: %q", got)
		}
		if got := l.Ask("SEND t/3 x"); !strings.HasPrefix(got, "+OK t/3@") {
			t.Errorf("a named partition: %q", got)
		}
		if got := l.Ask("SEND t x"); !strings.HasPrefix(got, "+OK t/") {
			t.Errorf("no key: %q", got)
		}
		harness.Eventually(t, "it is back", func() bool {
			got := l.Ask("SEND t#k after")
			if !strings.HasPrefix(got, "-ERR PARTITIONER_UNAVAILABLE ") && !strings.HasPrefix(got, where+"@") {
				t.Fatalf("got %q, before it was %s", got, where)
			}
			return strings.HasPrefix(got, "+OK")
		})
		if now := partitionerPID(s, "jump"); now == pid || now == 0 {
			t.Errorf("process %d became %d", pid, now)
		}
	}
}

func TestSubscriptionReadsPartitionsThatAreAddedLater(t *testing.T) {
	s := harness.Start(t)
	l, sub := s.Dial(), s.Dial()
	ask(t, l, "TOPIC CREATE t", "+OK t")
	ask(t, sub, "SUB t 1", "+OK")
	ask(t, l, "SEND t/0 a", "+OK t/0@0 disk")
	ask(t, l, "TOPIC ALTER t partitions=3 accept_reorder=true", "+OK t")
	ask(t, l, "SEND t/2 b", "+OK t/2@0 disk")
	for _, want := range []string{"MSG t/0@0 1 1", "a", "MSG t/2@0 1 1", "b"} {
		if got := sub.Read(); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

// TestThePlanOfADeletedTopicIsStale: a topic made anew under the name does not take what was placed by the old one's plan.
func TestThePlanOfADeletedTopicIsStale(t *testing.T) {
	s := harness.Start(t)
	l := s.Dial()
	ask(t, l, "TOPIC CREATE t", "+OK t")
	ask(t, l, "TOPIC ALTER t partitioner=sticky accept_reorder=true", "+OK t")
	ask(t, l, "TOPIC CREATE other", "+OK other")
	old := topicInfo(t, l, "t").Plan.Version
	ask(t, l, "TOPIC DELETE other", "+OK other")
	ask(t, l, "TOPIC DELETE t", "+OK t")
	s.Kill()
	s.Restart()
	l = s.Dial()
	ask(t, l, "TOPIC CREATE t partitions=3", "+OK t")
	for version := range old {
		if got := produce(l, fmt.Sprintf("t/0 plan=%d", version+1), batchOf("late")); !strings.HasPrefix(got, "-ERR PLAN_STALE ") {
			t.Errorf("PRODUCE with plan %d of the deleted topic: %q", version+1, got)
		}
	}
	if now := topicInfo(t, l, "t").Plan.Version; now != old+1 {
		t.Errorf("the new topic's plan has version %d, the old one had %d", now, old)
	}
	if got := produce(l, fmt.Sprintf("t/0 plan=%d", old+1), batchOf("now")); got != "+OK t/0@0 disk" {
		t.Errorf("PRODUCE with its own plan: %q", got)
	}
}
