package natsdiff

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
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
