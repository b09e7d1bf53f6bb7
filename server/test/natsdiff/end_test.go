package natsdiff

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

const library = `CONNECT {"verbose":false,"pedantic":false,"headers":true,"lang":"go","version":"1.0.0","protocol":1}` + "\r\n"

// lastWords sends text on a connection of its own, and returns what comes until the end, but INFO.
func lastWords(t *testing.T, addr, text string) []string {
	t.Helper()
	nc, err := net.DialTimeout("tcp", addr, harness.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	_ = nc.SetDeadline(time.Now().Add(harness.Patience))
	if _, err := io.WriteString(nc, library+"PING\r\n"+text); err != nil {
		t.Fatal(err)
	}
	var frames []string
	r := bufio.NewReader(nc)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return frames
		}
		if !strings.HasPrefix(line, "INFO ") {
			frames = append(frames, strings.TrimRight(line, "\r\n"))
		}
	}
}

// TestConnectionsEndAlike: what ends a connection at nats-server ends it here, and with the same last word, by which a
// library decides whether it may connect again.
func TestConnectionsEndAlike(t *testing.T) {
	theirs, ours := startNATS(t), harness.Start(t).Client
	for name, text := range map[string]string{
		"a payload above max_payload":     fmt.Sprintf("PUB foo %d\r\n", 1<<20+1),
		"headers and payload above it":    fmt.Sprintf("HPUB foo 12 %d\r\n", 1<<20+1),
		"a control line without end":      "SUB " + strings.Repeat("x", 8000),
		"a control line that is too long": "SUB " + strings.Repeat("x", 5000) + " 1\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			want, got := lastWords(t, theirs, text), lastWords(t, ours, text)
			if !slices.Equal(want, got) {
				t.Errorf("nats-server: %q\ntrunkline:   %q", want, got)
			}
		})
	}
}

// TestSilentClientsAreGivenUpAlike: both ask twice, and say why they end it. When they ask is the clock's.
func TestSilentClientsAreGivenUpAlike(t *testing.T) {
	theirs := startNATSWith(t, &natsd.Options{PingInterval: 50 * time.Millisecond, MaxPingsOut: 2})
	ours := harness.StartIn(t, []string{"TRUNKLINE_LIMITS_PING_INTERVAL=50ms"}).Client
	for name, addr := range map[string]string{"nats-server": theirs, "trunkline": ours} {
		got := lastWords(t, addr, "")
		last := got[len(got)-1]
		slices.Sort(got)
		if want := []string{"-ERR 'Stale Connection'", "PING", "PING", "PONG"}; !slices.Equal(got, want) || last != want[0] {
			t.Errorf("%s says %q, and last %q", name, got, last)
		}
	}
}

// TestLameDucksLeaveAlike: a server that is to go says so to who is connected, goes on serving, takes nobody else, and
// ends the connection without a word that would keep a library from connecting elsewhere.
func TestLameDucksLeaveAlike(t *testing.T) {
	const grace, spread = 300 * time.Millisecond, 200 * time.Millisecond
	theirs := startServer(t, &natsd.Options{LameDuckGracePeriod: grace, LameDuckDuration: grace + spread})
	ours := harness.StartIn(t, []string{"TRUNKLINE_TOPICS_AUTO_CREATE=false",
		"TRUNKLINE_LIMITS_LAME_DUCK_GRACE=" + grace.String(), "TRUNKLINE_LIMITS_LAME_DUCK_SPREAD=" + spread.String()})
	var retiring sync.WaitGroup
	defer retiring.Wait()
	want := leave(t, theirs.Addr().String(), func() { retiring.Go(theirs.LameDuckShutdown) })
	got := leave(t, ours.Client, func() {
		if err := syscall.Kill(ours.PID(), syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
	})
	if !slices.Equal(want, got) {
		t.Errorf("nats-server: %q\ntrunkline:   %q", want, got)
	}
}

// leave returns what a client is told of a server that is made to go: of INFO the fields that say where else to go.
func leave(t *testing.T, addr string, retire func()) (told []string) {
	t.Helper()
	nc, err := net.DialTimeout("tcp", addr, harness.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	_ = nc.SetDeadline(time.Now().Add(harness.Patience))
	if _, err := io.WriteString(nc, library+"SUB foo 1\r\nPING\r\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(nc)
	for gone := false; ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return told
		}
		line = strings.TrimRight(line, "\r\n")
		if text, ok := strings.CutPrefix(line, "INFO "); ok {
			var info struct {
				LameDuck bool     `json:"ldm"`
				URLs     []string `json:"connect_urls"`
			}
			if err := json.Unmarshal([]byte(text), &info); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			if line = fmt.Sprintf("INFO ldm=%t connect_urls=%q", info.LameDuck, info.URLs); info.LameDuck && !gone {
				gone = true
				if _, err := io.WriteString(nc, "PUB foo 2\r\nhi\r\nPING\r\n"); err != nil {
					t.Fatal(err)
				}
			}
		}
		if told = append(told, line); line == "PONG" && !gone {
			retire()
		}
	}
}

// TestTheGreetingHasWhatLibrariesRead: the fields by which the Go library decides what it may do, with the same values
// where they do not say which server it is.
func TestTheGreetingHasWhatLibrariesRead(t *testing.T) {
	read := func(addr string) map[string]any {
		c := dial(t, addr, strings.TrimSpace(library))
		defer func() { _ = c.nc.Close() }()
		var info map[string]any
		if err := json.Unmarshal([]byte(strings.TrimPrefix(c.greeting, "INFO ")), &info); err != nil {
			t.Fatalf("greeting %q: %v", c.greeting, err)
		}
		return info
	}
	theirs, ours := read(startNATS(t)), read(harness.Start(t).Client)
	for _, same := range []string{"proto", "headers", "max_payload", "client_ip", "host", "auth_required", "tls_required", "tls_available", "nonce", "ldm"} {
		if fmt.Sprint(theirs[same]) != fmt.Sprint(ours[same]) {
			t.Errorf("%s is %v at nats-server and %v here", same, theirs[same], ours[same])
		}
	}
	for _, there := range []string{"server_id", "server_name", "version", "go", "port", "client_id"} {
		if theirs[there] == nil || fmt.Sprintf("%T", theirs[there]) != fmt.Sprintf("%T", ours[there]) {
			t.Errorf("%s is %v at nats-server and %v here", there, theirs[there], ours[there])
		}
	}
}
