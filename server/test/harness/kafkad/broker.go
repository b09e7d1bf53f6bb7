package kafkad

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// Broker is a Kafka broker, its own controller, that can be stopped cleanly and started again on its data.
type Broker struct {
	Java    *Java
	Address string // HOST:PORT
	Data    string // directory

	config  string
	cmd     *exec.Cmd
	output  lockedBuffer
	waiting sync.WaitGroup
	ended   chan struct{}
}

// lockedBuffer takes what a process prints while others look at it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// BrokerPatience is how long a broker may take to start, to stop and to answer.
const BrokerPatience = 40 * time.Second

// NewBroker formats a fresh data directory; Start starts it. The last one of a setting counts.
func NewBroker(t testing.TB, j *Java, settings ...string) *Broker {
	t.Helper()
	dir := t.TempDir()
	b := &Broker{Java: j, Address: harness.FreeAddress(t), Data: filepath.Join(dir, "data"), config: filepath.Join(dir, "server.properties")}
	controller := harness.FreeAddress(t)
	text := strings.Join([]string{
		"process.roles=broker,controller", "node.id=1", "controller.quorum.bootstrap.servers=" + controller, "controller.listener.names=CONTROLLER",
		"listeners=PLAINTEXT://" + b.Address + ",CONTROLLER://" + controller, "advertised.listeners=PLAINTEXT://" + b.Address + ",CONTROLLER://" + controller,
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT", "log.dirs=" + b.Data,
		"auto.create.topics.enable=false", "num.partitions=1", "default.replication.factor=1", "offsets.topic.replication.factor=1",
		"log.retention.ms=-1", "num.network.threads=1", "num.io.threads=2", "log.cleaner.enable=false", strings.Join(settings, "\n"), "",
	}, "\n")
	if err := os.WriteFile(b.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	j.Run(t, "", "kafka.tools.StorageTool", "format", "--standalone", "-t", "4L6g3nShT-eMCtK--X86sw", "-c", b.config)
	t.Cleanup(func() {
		if b.cmd != nil {
			_ = b.cmd.Process.Kill()
			b.waiting.Wait()
		}
	})
	return b
}

// Start starts it and waits until ready, which asks it something, returns nil.
func (b *Broker) Start(t testing.TB, ready func(ctx context.Context) error) {
	t.Helper()
	b.cmd = b.Java.Command(context.Background(), "kafka.Kafka", b.config)
	b.cmd.Stdout, b.cmd.Stderr = &b.output, &b.output
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.ended = make(chan struct{})
	b.waiting.Go(func() {
		_ = b.cmd.Wait()
		close(b.ended)
	})
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(BrokerPatience); ; {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := ready(ctx)
		cancel()
		if err == nil {
			return
		}
		select {
		case <-b.ended:
			t.Fatalf("Kafka has ended:\n%s", b.Output())
		case <-tick.C:
		}
		if time.Now().After(end) {
			t.Fatalf("Kafka does not answer: %v\n%s", err, b.Output())
		}
	}
}

// Stop ends it cleanly: what it leaves on disk is whole.
func (b *Broker) Stop(t testing.TB) {
	t.Helper()
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-b.ended:
	case <-time.After(BrokerPatience):
		t.Fatalf("Kafka does not end:\n%s", b.Output())
	}
}

// PID is the broker's process.
func (b *Broker) PID() int { return b.cmd.Process.Pid }

// Output is the end of what the broker has printed.
func (b *Broker) Output() string { return tail(b.output.String()) }
