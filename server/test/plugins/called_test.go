package plugins

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// calls reads how many keys each call had that the counter was asked.
func calls(t *testing.T, file string) (count, keys int) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, line := range strings.Fields(string(text)) {
		n, err := strconv.Atoi(line)
		if err != nil {
			t.Fatal(err)
		}
		count, keys = count+1, keys+n
	}
	return count, keys
}

// TestTheKeysOfAWriteAreAskedForTogether, whether they stand in the address or in a header.
func TestTheKeysOfAWriteAreAskedForTogether(t *testing.T) {
	const records = 2000
	file := filepath.Join(t.TempDir(), "calls")
	shelf := newShelf(t)
	shelf.put("partitioner", "counter", built("counter"), fmt.Sprintf("{file: %q}", file))
	s := shelf.serve()
	ask(t, s.Dial(), "TOPIC CREATE t partitions=7 partitioner=counter", "+OK t")
	ways := map[string]func(b *strings.Builder, i int){
		"in the address": func(b *strings.Builder, i int) { fmt.Fprintf(b, "PUB t#k%d 1\r\nv\r\n", i%500) },
		"in a header": func(b *strings.Builder, i int) {
			block := fmt.Sprintf("NATS/1.0\r\nKey: k%d\r\n\r\n", i%500)
			fmt.Fprintf(b, "HPUB t %d %d\r\n%sv\r\n", len(block), len(block)+1, block)
		},
		"by hand": func(b *strings.Builder, i int) { fmt.Fprintf(b, "SEND t#k%d v\n", i%500) },
	}
	partitions := map[int]string{} // of each key, the same each way
	for name, add := range ways {
		t.Run(name, func(t *testing.T) {
			var text strings.Builder
			for i := range records {
				add(&text, i)
			}
			harness.Eventually(t, "the machine is quick enough for every call", func() bool {
				l := s.Dial()
				defer func() { _ = l.Conn().Close() }()
				count, keys := calls(t, file)
				l.Send(text.String())
				late := 0
				for i := range records {
					got := l.Read()
					if strings.HasPrefix(got, "-ERR PARTITIONER_UNAVAILABLE ") {
						late++
						continue
					}
					place := where(got)
					if !strings.HasPrefix(place, "+OK t/") || partitions[i%500] != "" && partitions[i%500] != place {
						t.Fatalf("record %d: %q; its key went to %q", i, got, partitions[i%500])
					}
					partitions[i%500] = place
				}
				if late > 0 {
					return false
				}
				nowCount, nowKeys := calls(t, file)
				count, keys = nowCount-count, nowKeys-keys
				// Two keys of each call are asked for to see whether the answer is steady; a call that is late is made again.
				if keys < records || count > records/20 {
					t.Errorf("%d calls for %d keys", count, keys)
				}
				return true
			})
		})
	}
}

// published is what t holds, each value once.
func published(t *testing.T, s *harness.Server) map[string]bool {
	t.Helper()
	c, err := trunkline.Dial(t.Context(), s.Client)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	r, err := c.NewConsumer(t.Context(), []string{"t@earliest"}, trunkline.UntilLatest())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	there := map[string]bool{}
	for rec, err := range r.Records(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if there[string(rec.Value)] {
			t.Errorf("%q is there twice, the second time at %d/%d", rec.Value, rec.Partition, rec.Offset)
		}
		there[string(rec.Value)] = true
	}
	return there
}

// TestAProducerOutlivesItsTopicsPartitioner: what it refuses while it is away is certainly not there, and is sent again.
func TestAProducerOutlivesItsTopicsPartitioner(t *testing.T) {
	s := harness.Start(t)
	ask(t, s.Dial(), "TOPIC CREATE t partitions=5 partitioner=jump", "+OK t")
	var refused atomic.Int64
	c, err := trunkline.Dial(t.Context(), s.Client, trunkline.WithHooks(trunkline.Hooks{Retried: func(r trunkline.Retried) {
		var answer *trunkline.ServerError
		if !errors.As(r.Err, &answer) || answer.Code != "PARTITIONER_UNAVAILABLE" || r.Unknown {
			t.Errorf("sent again after %v", r.Err)
		}
		refused.Add(int64(r.Records))
	}}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	p, err := c.NewProducer(trunkline.WithBufferBytes(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	var acked atomic.Int64
	var stop atomic.Bool
	produced := [3]int{}
	var wg sync.WaitGroup
	for n := range produced {
		wg.Go(func() {
			for ; !stop.Load(); produced[n]++ {
				m := &trunkline.Message{Key: fmt.Appendf(nil, "k%d", produced[n]%100), Value: fmt.Appendf(nil, "%d of %d", produced[n], n)}
				err := p.Produce(t.Context(), "t", m, func(_ trunkline.Ack, err error) {
					if err != nil {
						t.Errorf("a record is given up: %v", err)
					}
					acked.Add(1)
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 3 {
		before, sent := refused.Load(), acked.Load()
		harness.Eventually(t, "records are acknowledged", func() bool { return acked.Load() > sent+100 })
		s.KillPlugin("partitioner", "jump", syscall.SIGKILL)
		harness.Eventually(t, "records are refused", func() bool { return refused.Load() > before })
	}
	stop.Store(true)
	wg.Wait()
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	for _, n := range produced {
		sum += int64(n)
	}
	there := published(t, s)
	t.Logf("%d records, %d times one was sent again", sum, refused.Load())
	if acked.Load() != sum || int64(len(there)) != sum {
		t.Errorf("%d produced, %d acknowledged, %d there", sum, acked.Load(), len(there))
	}
}

var acknowledgedLines = regexp.MustCompile(`(?m)^(\d+) of \d+ records acknowledged`)

// TestLinesThatThePartitionerRefusesAreNamed: the command tries everything once, and says what is certainly not there.
func TestLinesThatThePartitionerRefusesAreNamed(t *testing.T) {
	s := harness.Start(t)
	ask(t, s.Dial(), "TOPIC CREATE t partitions=5 partitioner=jump", "+OK t")
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, harness.Binary("trunkline"), "-s", s.Client, "pub", "t", "--lines", "--key-delimiter", ":")
	var said bytes.Buffer
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var feeder sync.WaitGroup
	feeder.Go(func() {
		for i := 0; ; i++ { // until nobody reads any more
			if _, err := io.WriteString(in, fmt.Sprintf("k%d:%d\n", i%100, i)); err != nil {
				return
			}
		}
	})
	harness.Eventually(t, "lines are there", func() bool { return len(published(t, s)) > 10 })
	s.KillPlugin("partitioner", "jump", syscall.SIGKILL)
	err = cmd.Wait()
	feeder.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("%v: %s", err, said.String())
	}
	told := acknowledgedLines.FindStringSubmatch(said.String())
	if told == nil || !regexp.MustCompile(`line \d+: PARTITIONER_UNAVAILABLE`).MatchString(said.String()) {
		t.Fatalf("it says %s", said.String())
	}
	if n := len(published(t, s)); strconv.Itoa(n) != told[1] {
		t.Errorf("%s acknowledged, %d there", told[1], n)
	}
}
