package transcript

import (
	"bufio"
	"net"
	"strings"
	"sync"
	"testing"
)

// echoServer greets, answers PING and QUIT, and sends back every other line as it came.
func echoServer(t *testing.T) func() (net.Conn, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { echo(nc) })
		}
	})
	return func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) }
}

func echo(nc net.Conn) {
	defer func() { _ = nc.Close() }()
	answer := "INFO {}\r\n"
	for r := bufio.NewReader(nc); ; {
		if _, err := nc.Write([]byte(answer)); err != nil {
			return
		}
		var err error
		if answer, err = r.ReadString('\n'); err != nil {
			return
		}
		switch strings.TrimRight(answer, "\r\n") {
		case "PING":
			answer = "PONG\r\n"
		case "QUIT":
			return
		}
	}
}

func TestPlayerTellsWhereASessionGoesOtherwise(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want string // in the error; empty where all is well
	}{
		"as it is":            {"> a\n< a\n", ""},
		"greeting read":       {"< INFO {}\n> a\n< a\n", ""},
		"comment":             {"# nothing\n\n> a\n< a\n", ""},
		"anything":            {"> a b c\n< a…c\n", ""},
		"bytes":               {"> \\xffA\\t\n< \\xffA\\t\n", ""},
		"many":                {"> \\{3*ab}\n< ababab\n", ""},
		"in two parts":        {"> a\\\n> b\n< ab\n", ""},
		"empty line":          {">\n<\n", ""},
		"two clients":         {"> a\n2> b\n2< b\n< a\n", ""},
		"quit":                {"> QUIT\n", ""},
		"closed":              {"> QUIT\n= closed\n", ""},
		"another answer":      {"> a\n< b\n", `line 2, "< b": got "a"`},
		"answer is longer":    {"> ab\n< a\n", `got "ab"`},
		"answer is shorter":   {"> a\n< ab\n", `got "a"`},
		"anything but that":   {"> abc\n< a…b\n", `got "abc"`},
		"another greeting":    {"< INFO {x}\n", `got "INFO {}"`},
		"an answer too many":  {"> a\n", `after the session: got "a"`},
		"of a second client":  {"2> a\n> b\n< b\n", `after the session: got "a"`},
		"not closed":          {"> a\n= closed\n", `got "a\n" (<nil>), not the end`},
		"not closed at QUIT":  {"> a\n> QUIT\n", `not the end`},
		"closed too early":    {"> QUIT\n< a\n", "EOF"},
		"frame without CR":    {"> +OK\n< +OK\n", "without a CR"},
		"neither":             {"a\n", "neither sent nor answered"},
		"unknown escape":      {"> a\\qb\n", "stands before none of"},
		"escape in an answer": {"> a\n< \\q\n", "stands before none of"},
	} {
		t.Run(name, func(t *testing.T) {
			p := player{dial: echoServer(t), step: 1 << 20, end: "\n"}
			err := p.play(tt.text)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
