package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/clients/internal/scripted"
)

// TestDoctorAsksWhereTheServerAnswersHTTP: where it says, as that is seen from here, and nowhere else.
func TestDoctorAsksWhereTheServerAnswersHTTP(t *testing.T) {
	ready := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer ready.Close()
	at := ready.Listener.Addr().String()
	_, port, err := net.SplitHostPort(at)
	if err != nil {
		t.Fatal(err)
	}
	says := "ok    health      http://" + at + "/readyz says it serves\n"
	for name, tc := range map[string]struct{ peers, http, want string }{
		"its address":                     {`"host":"127.0.0.1","client_ip":"127.0.0.1"`, at, says},
		"all addresses":                   {`"host":"10.0.0.1","client_ip":"10.0.0.2"`, "[::]:" + port, says},
		"all addresses of one kind":       {`"host":"10.0.0.1","client_ip":"10.0.0.2"`, "0.0.0.0:" + port, says},
		"its own machine, which is ours":  {`"host":"10.0.0.1","client_ip":"10.0.0.1"`, at, says},
		"its own machine, which is not":   {`"host":"10.0.0.1","client_ip":"10.0.0.2"`, at, "warn  health      not checked: the server answers HTTP to its own machine only, at " + at + "\n"},
		"nowhere, or it does not say":     {`"host":"127.0.0.1","client_ip":"127.0.0.1"`, "", "warn  health      not checked: the server names no address for HTTP\n"},
		"something that cannot be looked": {`"host":"127.0.0.1","client_ip":"127.0.0.1"`, "soon", "warn  health      not checked: the server names no address for HTTP\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir()) // where no data directory is
			script := strings.Replace(named, `"cluster":"c"`, `"cluster":"c","http":"`+tc.http+`"`, 1)
			script = strings.Replace(script, `"proto":1,`, `"proto":1,`+tc.peers+`,`, 1)
			script += "> PLUGIN LIST\n" + data(`{"plugins":[]}`) + "> TOPIC LIST\n" + data(`{"topics":[]}`)
			got := runWith(t, t.Context(), nil, "doctor", "-s", scripted.Start(t, script))
			if got.code != 0 || !strings.Contains(got.out, tc.want) || strings.Count(got.out, "  health  ") != 1 {
				t.Errorf("%+v, want %q", got, tc.want)
			}
		})
	}
}
