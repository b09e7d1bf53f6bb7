package cli

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// commands are all commands of the client that do something by themselves, such as "topic ls", as its help lists them: what
// these tests demand of every command, they demand of a new one.
func commands(t *testing.T, console *harness.Console) []string {
	t.Helper()
	var walk func(path string) []string
	walk = func(path string) []string {
		help, code := console.Run(t, "trunkline "+path+" --help")
		if code != "0" {
			t.Fatalf("trunkline %s --help: [%s] %s", path, code, help)
		}
		_, list, ok := strings.Cut(help, "\nAvailable Commands:\n")
		if !ok {
			return []string{path}
		}
		var all []string
		for row := range strings.Lines(list) {
			fields := strings.Fields(row)
			if len(fields) == 0 {
				break
			}
			if fields[0] != "help" {
				all = append(all, walk(strings.TrimSpace(path+" "+fields[0]))...)
			}
		}
		return all
	}
	all := walk("")
	if len(all) < 25 || !slices.Contains(all, "topic ls") || !slices.Contains(all, "version") {
		t.Fatalf("the help lists %q", all)
	}
	return all
}

// TestSessionsRunEveryCommandAndMeetEveryExitCode reads the sessions of testdata.
func TestSessionsRunEveryCommandAndMeetEveryExitCode(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var typed strings.Builder
	codes := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range harness.Steps(t, string(text)) {
			typed.WriteString(step.Command + "\n")
			if strings.Contains(step.Command, "trunkline ") {
				codes[step.Code] = step.Command
			}
			if strings.Contains(step.Command, "PIPESTATUS") { // it prints the code
				codes[strings.TrimSpace(step.Want[strings.LastIndex(strings.TrimSuffix(step.Want, "\n"), "\n")+1:])] = step.Command
			}
		}
	}
	for _, command := range commands(t, harness.NewConsole(t, "127.0.0.1:1")) {
		if !regexp.MustCompile(`\btrunkline ` + command + `( |$|;)`).MatchString(strings.ReplaceAll(typed.String(), "\n", ";")) {
			t.Errorf("no session runs trunkline %s", command)
		}
	}
	for _, code := range []string{"", "1", "2", "3", "4", "5", "10", "130", "141"} { // as the package comment of the client lists them
		if codes[code] == "" {
			t.Errorf("no session has a command that exits with %q", code)
		}
	}
}

// denying starts what greets as a server does and denies everything: ours has no reason to deny anything yet.
func denying(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			served.Go(func() { deny(nc) })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); served.Wait() })
	return ln.Addr().String()
}

// deny ends with the client.
func deny(nc net.Conn) {
	defer func() { _ = nc.Close() }()
	fmt.Fprintf(nc, "INFO %s\r\n", `{"server_id":"D","version":"2.12.0","proto":1,"headers":true,"max_payload":100,"trunkline":{"version":"dev","protocol":1,"broker":1,"cluster":"c"}}`)
	lines := bufio.NewScanner(nc)
	for lines.Scan() {
		answer := "-ERR NOT_ALLOWED 'you may not do that; ask who runs the server'"
		if strings.HasPrefix(lines.Text(), "CONNECT ") {
			answer = "+OK"
		}
		fmt.Fprintf(nc, "%s\r\n", answer)
	}
}
