package bench

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	nats "github.com/nats-io/nats-server/v2/server"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// peerEnv makes this binary a peer: what Trunkline is compared with, in a process of its own.
const peerEnv = "TRUNKLINE_BENCH_PEER"

// The peers. The last three want a directory behind a colon.
const (
	peerCore      = "core"      // a nats-server with the defaults of one that is started without arguments
	peerJetStream = "jetstream" // the same, with JetStream and its store of files
	peerSink      = "sink"      // takes frames, checks their CRC, and writes them to a file: nothing else
	peerSource    = "source"    // sends a file, as often as it is asked
)

// runPeer serves until standard input ends, which it does with the benchmark.
func runPeer() int {
	kind, dir, _ := strings.Cut(os.Getenv(peerEnv), ":")
	switch kind {
	case peerSink:
		return runBare(dir, sink)
	case peerSource:
		return runBare(dir, source)
	}
	s, err := nats.NewServer(&nats.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: kind == peerJetStream, StoreDir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s.Start()
	if !s.ReadyForConnections(harness.Patience) {
		fmt.Fprintln(os.Stderr, "nats-server is not ready")
		return 1
	}
	fmt.Println(s.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	s.Shutdown()
	s.WaitForShutdown()
	return 0
}

// startPeer starts a nats-server and returns its address and process id.
func startPeer(t testing.TB) (addr string, pid int) {
	t.Helper()
	return startPeerAs(t, peerCore)
}

// startPeerAs is startPeer for any of the peers.
func startPeerAs(t testing.TB, kind string) (addr string, pid int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), peerEnv+"="+kind)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		kill := time.AfterFunc(harness.Patience, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the peer ended with %v", err)
		}
	})
	if _, err := fmt.Fscan(bufio.NewReader(stdout), &addr); err != nil {
		t.Fatalf("the peer said no address: %v", err)
	}
	return addr, cmd.Process.Pid
}
