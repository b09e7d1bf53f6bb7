package transcript

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// player replays one session; each client of it is a connection of its own.
type player struct {
	dial  func() (net.Conn, error)
	step  int    // bytes a write
	end   string // of the lines that clients send
	peers map[string]*peer
	order []*peer
}

// peer is one client of a session.
type peer struct {
	nc      net.Conn
	r       *bufio.Reader
	greeted bool
	ended   bool   // "= closed" was seen
	sent    string // the last line
}

// row is one line of a session: a client's number, none for the first, what happens, and the text.
var row = regexp.MustCompile(`^([2-9]?)(?:([<>])(?: (.*))?|= closed)$`)

// play runs the session against a server and says where it went otherwise. Afterwards nothing may be left unread, and
// every connection that was not ended still answers.
func (p *player) play(text string) error {
	p.peers = map[string]*peer{}
	defer func() {
		for _, c := range p.order {
			_ = c.nc.Close() // the test is over; what matters was read
		}
	}()
	for n, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := p.row(line); err != nil {
			return fmt.Errorf("line %d, %q: %w", n+1, line, err)
		}
	}
	for _, c := range p.order {
		if err := c.rest(); err != nil {
			return fmt.Errorf("after the session: %w", err)
		}
	}
	return nil
}

func (p *player) row(line string) error {
	m := row.FindStringSubmatch(line)
	if m == nil {
		return errors.New("it is neither sent nor answered")
	}
	c, err := p.peer(m[1])
	if err != nil {
		return err
	}
	if m[2] != "<" || !strings.HasPrefix(m[3], "INFO ") {
		if err := c.greet(); err != nil {
			return err
		}
	}
	switch m[2] {
	case ">":
		text, open, err := unescape(m[3])
		if err != nil {
			return err
		}
		if c.sent = text; !open {
			text += p.end
		}
		c.send(text, p.step)
		return nil
	case "<":
		c.greeted = true
		return c.expect(m[3])
	}
	c.ended = true
	return c.expectEnd()
}

func (p *player) peer(id string) (*peer, error) {
	if c := p.peers[id]; c != nil {
		return c, nil
	}
	nc, err := p.dial()
	if err != nil {
		return nil, err
	}
	c := &peer{nc: nc, r: bufio.NewReader(nc)}
	p.peers[id], p.order = c, append(p.order, c)
	return c, nil
}

// greet reads the greeting, unless the session does.
func (c *peer) greet() error {
	if c.greeted {
		return nil
	}
	c.greeted = true
	return c.expect("INFO {…}")
}

// writesMax bounds how often a line is cut: a text of a million bytes shows nothing new after thousands of pieces.
const writesMax = 1 << 13

// send writes text in pieces. The server may have closed by then: what it said before is still to be read.
func (c *peer) send(text string, step int) {
	step = max(step, len(text)/writesMax)
	_ = c.nc.SetWriteDeadline(time.Now().Add(harness.Patience))
	for len(text) > 0 {
		n := min(step, len(text))
		if _, err := c.nc.Write([]byte(text[:n])); err != nil {
			return
		}
		text = text[n:]
	}
}

// frames are the words that begin a control line of the server, which always ends in CRLF.
var frames = regexp.MustCompile(`^(INFO |MSG |HMSG |DATA |BATCH |PART |\+OK|-ERR |PONG)`)

func (c *peer) expect(pattern string) error {
	want, _, err := unescape(pattern)
	if err != nil {
		return err
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(harness.Patience))
	got, err := c.r.ReadString('\n')
	if err != nil {
		return fmt.Errorf("got %q and then: %w", got, err)
	}
	text, crlf := strings.CutSuffix(got, "\r\n")
	if !crlf {
		text = strings.TrimSuffix(got, "\n")
	}
	if !matches(want, text) {
		return fmt.Errorf("got %q", text)
	}
	if !crlf && frames.MatchString(text) {
		return fmt.Errorf("got %q without a CR", text)
	}
	return nil
}

// expectEnd wants an orderly end: a reset could have swallowed what came before it.
func (c *peer) expectEnd() error {
	_ = c.nc.SetReadDeadline(time.Now().Add(harness.Patience))
	got, err := c.r.ReadString('\n')
	if !errors.Is(err, io.EOF) || got != "" {
		return fmt.Errorf("got %q (%v), not the end", got, err)
	}
	return nil
}

// rest wants nothing but what the last line asked for: the end after QUIT, else silence until a PING.
func (c *peer) rest() error {
	switch {
	case c.ended:
		return nil
	case strings.EqualFold(c.sent, "QUIT"):
		return c.expectEnd()
	}
	c.send("PING\r\n", len("PING\r\n"))
	return c.expect("PONG")
}

// matches compares an answer, which may be any bytes, with a pattern in which … stands for anything.
func matches(pattern, got string) bool {
	parts := strings.Split(pattern, "…")
	rest, ok := strings.CutPrefix(got, parts[0])
	if len(parts) == 1 {
		return ok && rest == ""
	}
	last := parts[len(parts)-1]
	for _, part := range parts[1 : len(parts)-1] {
		at := strings.Index(rest, part)
		if at < 0 {
			return false
		}
		rest = rest[at+len(part):]
	}
	return ok && strings.HasSuffix(rest, last)
}

// escape is a \ and what it stands for: a control byte, a byte in hexadecimal, itself, or a text so many times.
var escape = regexp.MustCompile(`\\(?:r|n|t|\\|x([0-9a-f]{2})|\{(\d+)\*([^}]*)\}|$)`)

// unescape takes a line's escapes out; open says that it ends in a \ of its own, and so has no line end.
func unescape(line string) (text string, open bool, err error) {
	if bare := escape.ReplaceAllString(line, ""); strings.Contains(bare, `\`) {
		return "", false, errors.New(`a \ stands before none of r, n, t, \, xNN, {N*text} or the end`)
	}
	text = escape.ReplaceAllStringFunc(line, func(s string) string {
		m := escape.FindStringSubmatch(s)
		switch {
		case s == `\`:
			open = true
			return ""
		case m[1] != "":
			b, _ := strconv.ParseUint(m[1], 16, 8) // two digits, by the pattern
			return string([]byte{byte(b)})
		case m[2] != "":
			n, _ := strconv.Atoi(m[2]) // digits, by the pattern; too many are the author's
			return strings.Repeat(m[3], n)
		}
		return map[string]string{`\r`: "\r", `\n`: "\n", `\t`: "\t", `\\`: `\`}[s]
	})
	return text, open, nil
}
