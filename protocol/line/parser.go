// Package line is the text of the line protocol: what a client sends taken apart (Parser), what a server sends put
// together (the Append functions), what a client receives taken apart (FrameParser), and NATS header blocks. All of it
// is pure: bytes go in cut anywhere, commands come out; no socket, clock or goroutine.
//
// The grammar is a superset of the NATS client protocol: control lines end in CRLF or LF, fields are separated by
// spaces or tabs, verbs come in any case, empty lines are ignored, and a payload is exactly the announced number of
// bytes followed by a line end.
package line

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

// Limits bound what a peer may make a Parser hold.
type Limits struct {
	ControlLine int // bytes of a control line without its end; for SEND, of verb and address
	Payload     int // bytes of a payload, headers included, or of SEND's text
}

// Command is one parsed command. Its slices alias the parser's buffer and are valid until its next Buffer call.
type Command struct {
	Verb Verb
	// Word is the verb as the client wrote it.
	Word []byte
	// Args are the fields after the verb, without payload sizes. CONNECT has one, its JSON; SEND has its address.
	Args [][]byte
	// Header is the header block of an HPUB.
	Header []byte
	// Payload is the body of a PUB, HPUB or SEND.
	Payload []byte
	// Err, when not nil, refuses the command; the stream is in step and the connection stays open.
	Err *errcode.Error
}

// ErrPayload is what a BAD_SIZE wraps when a payload is larger than the limit.
var ErrPayload = errors.New("payload is too large")

// sizeDigitsMax is NATS's bound on a size: nine digits cannot overflow.
const sizeDigitsMax = 9

const (
	bufferBytesMin = 1 << 10  // an idle connection's buffer
	bufferBytesMax = 64 << 10 // grown to under load; a larger payload is read into a shared buffer for as long as it lasts
	bodyBytesMax   = 4 << 20  // of a shared buffer that is kept: a larger payload is an exception
)

// bodies are buffers for payloads that exceed a parser's own: whoever sends them one after the other costs no memory for
// each, and whoever is done with them holds none.
var bodies = sync.Pool{New: func() any { return new([]byte) }}

// A TLS client begins with these two bytes, and no verb does. It is told so at once: its greeting need not contain a
// line end, and it would wait for an answer as long as the server waits for that.
const tlsHandshake, tlsMajor = 0x16, 0x03

// Parser takes a client's byte stream apart. Read into Buffer, say how much with Advance, then call Next until it
// reports false. It is not safe for concurrent use.
type Parser struct {
	limits Limits
	buf    []byte
	r, w   int // buf[r:w] is not yet consumed
	seen   int // buf[r:r+seen] holds no LF
	need   int // bytes from r on without which the pending command cannot be whole
	filled bool
	own    []byte  // while buf is a shared one: what it is changed back for
	shared *[]byte // nil: buf is the parser's own
}

// NewParser returns a parser for a fresh connection.
func NewParser(l Limits) *Parser {
	return &Parser{limits: l, buf: make([]byte, bufferBytesMin)}
}

// Buffer returns free space to read into, at least one byte. Slices of earlier commands are void after the call.
func (p *Parser) Buffer() []byte {
	if p.Rest(); p.r == p.w {
		p.r, p.w = 0, 0
	}
	size := len(p.buf)
	if p.filled && size < bufferBytesMax {
		size = min(2*size, bufferBytesMax)
	}
	if p.need > size {
		size = p.need + 1 // and the LF behind a CR that was not asked for
	}
	pending := p.w - p.r
	if pending == size {
		size *= 2 // a SEND text of unknown length; bounded by the limits in Next
	}
	switch {
	case size > len(p.buf):
		p.grow(size)
	case p.r > 0 && (len(p.buf)-p.w < len(p.buf)/2 || p.r+p.need > len(p.buf)):
		copy(p.buf, p.buf[p.r:p.w])
		p.r, p.w = 0, pending
	}
	p.filled = false
	return p.buf[p.w:]
}

// grow makes the buffer one of size bytes, which begins with what is not yet consumed.
func (p *Parser) grow(size int) {
	if size <= cap(p.buf) {
		p.buf = p.buf[:size]
		p.w, p.r = copy(p.buf, p.buf[p.r:p.w]), 0
		return
	}
	if size <= bufferBytesMax {
		grown := make([]byte, size)
		p.w, p.r, p.buf = copy(grown, p.buf[p.r:p.w]), 0, grown
		return
	}
	shared, _ := bodies.Get().(*[]byte)
	if cap(*shared) < size {
		*shared = make([]byte, size)
	}
	n := copy((*shared)[:size], p.buf[p.r:p.w])
	if p.shared == nil {
		p.own = p.buf
	} else {
		p.release()
	}
	p.buf, p.shared = (*shared)[:size], shared
	p.r, p.w = 0, n
}

// Rest gives a shared buffer back where nothing is in it any more. Slices of earlier commands are void after the call.
func (p *Parser) Rest() {
	if p.shared != nil && p.r == p.w && p.need == 0 {
		p.r, p.w = 0, 0
		p.giveBack()
	}
}

// giveBack changes a shared buffer, which nothing is in any more, for the parser's own.
func (p *Parser) giveBack() {
	p.release()
	p.buf, p.own = p.own, nil
}

// release lets others have the shared buffer.
func (p *Parser) release() {
	share(p.shared)
	p.shared = nil
}

// share puts a buffer where the next one is taken from, unless it is an exception.
func share(b *[]byte) {
	if cap(*b) <= bodyBytesMax {
		bodies.Put(b)
	}
}

// Body is a shared buffer that was taken from a Parser, with the payload of a command in it.
type Body struct{ shared *[]byte }

// Free lets others have the buffer; the payload is void then. It is called once.
func (b *Body) Free() { share(b.shared) }

// TakeBody gives away the buffer in which the command lies that Next returned last: its payload is valid until the Body is
// freed, all else of it is void then. It returns nil where the command lies in the parser's own buffer, from which a payload
// has to be copied.
func (p *Parser) TakeBody() *Body {
	rest := p.buf[p.r:p.w]
	if p.shared == nil || len(rest) > len(p.own) {
		return nil
	}
	b := &Body{p.shared}
	p.buf, p.own, p.shared = p.own, nil, nil
	p.r, p.w, p.filled = 0, copy(p.buf, rest), false
	return b
}

// Advance says that n bytes were read into the last Buffer.
func (p *Parser) Advance(n int) {
	p.w += n
	p.filled = p.w == len(p.buf)
}

// Buffered reports how many bytes wait for the rest of their command.
func (p *Parser) Buffered() int { return p.w - p.r }

// HandOver divides what was read: p keeps the commands that taken, a copy of p, has come past, and next, which is given up
// for that, gets what lies behind, and is read into from then on. So one may take p's commands while the other reads.
func (p *Parser) HandOver(taken, next *Parser) {
	rest := p.buf[taken.r:p.w]
	if next.r, next.w = 0, 0; next.shared != nil {
		next.giveBack()
	}
	if size := max(len(rest), min(len(p.buf), bufferBytesMax)); len(next.buf) < len(rest) || p.filled && len(next.buf) < size {
		next.grow(size)
	}
	next.w = copy(next.buf, rest)
	next.seen, next.need, next.filled = taken.seen, taken.need, p.filled
	p.w, p.seen, p.need, p.filled = taken.r, 0, 0, false
}

// Next takes the next whole command from what was read. It reports false where there is none yet. An error is an
// *errcode.Error after which the connection is closed: the stream is out of step and Next must not be called again.
func (p *Parser) Next(c *Command) (bool, error) {
	for {
		pending := p.buf[p.r:p.w]
		if len(pending) == 0 || len(pending) < p.need || len(pending) == 1 && pending[0] == tlsHandshake {
			return false, nil
		}
		if pending[0] == tlsHandshake && pending[1] == tlsMajor {
			return false, errcode.New(errcode.NotSupported, "this looks like TLS, which this server does not speak", "connect without it")
		}
		lf := bytes.IndexByte(pending[p.seen:], '\n')
		if lf < 0 {
			p.seen = len(pending)
			return false, p.checkOpenLine(pending)
		}
		lf += p.seen
		p.seen = lf
		line := trimCR(pending[:lf])
		c.reset()
		c.Word, line = cutField(line)
		if len(c.Word) == 0 {
			p.consume(lf + 1)
			continue
		}
		c.Verb = lookupFast(c.Word)
		return p.take(c, line, lf+1)
	}
}

func (p *Parser) consume(n int) { p.r += n; p.seen, p.need = 0, 0 }

func (c *Command) reset() {
	*c = Command{Args: c.Args[:0]}
}

// take fills c from what follows its verb on the line; end is the offset after the line's LF.
func (p *Parser) take(c *Command, line []byte, end int) (bool, error) {
	kind := verbs[c.Verb].shape
	if kind != text && len(trimCR(p.buf[p.r:p.r+end-1])) > p.limits.ControlLine {
		return false, p.lineTooLong()
	}
	switch kind {
	case text:
		return p.takeText(c, line, end)
	case rest:
		if arg := bytes.Trim(line, " \t"); len(arg) > 0 {
			c.Args = append(c.Args, arg)
		}
	default:
		c.Args = splitFields(c.Args, line)
	}
	switch {
	case kind == payload, kind == headers:
		return p.takePayload(c, end)
	case kind == maybe && len(c.Args) == 1 && parseSize(c.Args[0]) >= 0:
		return p.takeBody(c, end, 0, parseSize(c.Args[0]))
	}
	if c.Verb == Unknown {
		c.Err = badVerb(c.Word)
	} else {
		c.refuseUnoffered()
	}
	p.consume(end)
	return true, nil
}

// takeText is SEND: exactly one blank after the address, then data.
func (p *Parser) takeText(c *Command, line []byte, end int) (bool, error) {
	addr, data := cutField(line)
	if head := len(trimCR(p.buf[p.r:p.r+end-1])) - len(data); head > p.limits.ControlLine {
		return false, p.lineTooLong()
	}
	if len(data) > 0 {
		data = data[1:]
	}
	if len(data) > p.limits.Payload {
		return false, p.textTooLarge()
	}
	if len(addr) == 0 {
		c.Err = badArgs(Send, "SEND names no address")
	} else {
		c.Args = append(c.Args, addr)
	}
	c.Payload = data
	p.consume(end)
	return true, nil
}

// takePayload reads the sizes off c.Args and the payload behind the line.
func (p *Parser) takePayload(c *Command, end int) (bool, error) {
	row := &verbs[c.Verb]
	sizes := 1
	if row.shape == headers {
		sizes = 2
	}
	if len(c.Args) < sizes+row.min {
		// Nobody who leaves out the size sends a payload, so the stream is still in step.
		c.Err = badArgs(c.Verb, fmt.Sprintf("%s has %d arguments", c.Verb, len(c.Args)))
		p.consume(end)
		return true, nil
	}
	total := parseSize(c.Args[len(c.Args)-1])
	if total < 0 {
		return false, badSize(fmt.Sprintf("%q is not a size", echo(c.Args[len(c.Args)-1])), row.usage)
	}
	header := 0
	if sizes == 2 {
		if header = parseSize(c.Args[len(c.Args)-2]); header < 0 {
			return false, badSize(fmt.Sprintf("%q is not a size", echo(c.Args[len(c.Args)-2])), row.usage)
		}
		if header > total {
			c.Err = errcode.New(errcode.BadHeaders, fmt.Sprintf("header size %d exceeds total size %d", header, total),
				"the total counts header and body together")
			header = total
		}
	}
	if c.Args = c.Args[:len(c.Args)-sizes]; len(c.Args) > row.max {
		c.Err = badArgs(c.Verb, fmt.Sprintf("%s has %d arguments", c.Verb, len(c.Args)+sizes))
	}
	return p.takeBody(c, end, header, total)
}

func (p *Parser) takeBody(c *Command, end, header, total int) (bool, error) {
	if total > p.limits.Payload {
		return false, p.payloadTooLarge(total)
	}
	have := p.w - p.r
	body := p.buf[p.r+end : p.w]
	if len(body) <= total {
		p.need = end + total + 1
		return false, nil
	}
	after := total + 1
	if body[total] == '\r' {
		if len(body) == after {
			p.need = have + 1
			return false, nil
		}
		after++
	}
	if body[after-1] != '\n' {
		return false, badSize(fmt.Sprintf("%s's payload of %d bytes is not followed by a line end", c.Verb, total),
			"send exactly the announced number of bytes, then CRLF or LF")
	}
	if verbs[c.Verb].shape == headers {
		c.Header = body[:header:header]
	}
	c.Payload = body[header:total:total]
	c.refuseUnoffered()
	p.consume(end + after)
	return true, nil
}

// checkOpenLine decides whether a line that has no end yet may still become one.
func (p *Parser) checkOpenLine(pending []byte) error {
	if len(pending) <= p.limits.ControlLine+1 { // +1: the CR of a CRLF to come
		return nil
	}
	word, after := cutField(pending)
	if lookupFast(word) != Send {
		return p.lineTooLong()
	}
	_, data := cutField(after)
	if len(pending)-len(data) > p.limits.ControlLine+1 {
		return p.lineTooLong()
	}
	if len(data)-2 > p.limits.Payload { // its blank, and the CR to come
		return p.textTooLarge()
	}
	return nil
}

func (p *Parser) lineTooLong() error {
	return errcode.New(errcode.LineTooLong, fmt.Sprintf("control line exceeds %d bytes", p.limits.ControlLine),
		"end the line, or send large data as a payload")
}

func (p *Parser) payloadTooLarge(n int) error {
	return errcode.Wrap(errcode.BadSize, ErrPayload, fmt.Sprintf("payload of %d bytes exceeds this server's limit of %d", n, p.limits.Payload),
		"split it, or raise limits.payload")
}

// textTooLarge does not say how large: the text need not have ended.
func (p *Parser) textTooLarge() error {
	return errcode.Wrap(errcode.BadSize, ErrPayload, fmt.Sprintf("SEND's text exceeds this server's limit of %d bytes", p.limits.Payload),
		"split it, or raise limits.payload")
}

func (c *Command) refuseUnoffered() {
	if c.Err == nil && !verbs[c.Verb].offered {
		c.Err = errcode.New(errcode.NotSupported, "this server does not offer "+c.Verb.String()+" yet", "HELP lists what it offers")
	}
}

func badVerb(word []byte) *errcode.Error {
	hint := "HELP lists the verbs"
	if v := Nearest(word); v != Unknown {
		hint = "did you mean " + v.String() + "? " + hint
	}
	return errcode.New(errcode.BadVerb, fmt.Sprintf("unknown verb %q", echo(word)), hint)
}

func badArgs(v Verb, what string) *errcode.Error {
	return errcode.New(errcode.BadArgs, what, "use "+v.Usage())
}

func badSize(what, hint string) error { return errcode.New(errcode.BadSize, what, hint) }

// echo bounds what of a peer's input is sent back to it.
func echo(b []byte) []byte { return b[:min(len(b), 64)] }

// parseSize reads a payload size: decimal digits only, at most nine. Anything else is -1.
func parseSize(b []byte) int {
	if len(b) == 0 || len(b) > sizeDigitsMax {
		return -1
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return -1
		}
		n = n*10 + int(c-'0')
	}
	return n
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// cutField returns the first field of b and what follows it, its separator included.
func cutField(b []byte) (field, after []byte) {
	start := 0
	for start < len(b) && isBlank(b[start]) {
		start++
	}
	end := start
	for end < len(b) && !isBlank(b[end]) {
		end++
	}
	return b[start:end], b[end:]
}

func splitFields(dst [][]byte, b []byte) [][]byte {
	for {
		var field []byte
		if field, b = cutField(b); len(field) == 0 {
			return dst
		}
		dst = append(dst, field)
	}
}

func trimCR(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == '\r' {
		return b[:n-1]
	}
	return b
}
