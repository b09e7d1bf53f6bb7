package line

import (
	"bytes"
	"errors"
	"fmt"
)

// FrameKind says what a server sent.
type FrameKind uint8

// The kinds of frames a server sends.
const (
	FrameInfo     FrameKind = iota + 1 // INFO {json}
	FrameMsg                           // MSG <subject> <sid> [reply-to] <#bytes>
	FrameHMsg                          // HMSG <subject> <sid> [reply-to] <#header> <#total>
	FramePing                          // PING
	FramePong                          // PONG
	FrameOK                            // +OK [detail]
	FrameErr                           // -ERR CODE 'text': the final answer of the oldest request that has one
	FrameAsyncErr                      // -ERR ASYNC CODE 'text', and NATS's -ERR 'text': no request's answer
	FrameData                          // DATA <#bytes>
	FrameBatch                         // BATCH <topic>/<p>@<base> <high watermark> <log start> <#bytes>; its body is for TakeBody
	FramePart                          // PART <topic>/<p> <high watermark> <log start> CODE
)

// Frame is one frame from a server. Its slices alias the parser's buffer and are valid until its next Buffer call.
type Frame struct {
	Kind FrameKind
	// Detail is INFO's JSON, what follows +OK, or an error's text without its quotes.
	Detail []byte
	// Code is an error's code; empty for an error in NATS's own form.
	Code []byte
	// Subject, SID and Reply come from MSG and HMSG; Reply is empty where there is none.
	Subject, SID, Reply []byte
	// Header is the header block of an HMSG.
	Header []byte
	// Payload is the body of MSG, HMSG or DATA.
	Payload []byte
	// Size, HighWatermark and LogStart come from BATCH, the last two also from PART, where -1 stands for what is not known.
	// The partition's address is the Subject, trouble with it the Code.
	Size                    int
	HighWatermark, LogStart int64
}

// ErrFrame is the error for bytes that are no frame: the stream is out of step and cannot be read on.
var ErrFrame = errors.New("malformed frame")

// FrameParser takes a server's byte stream apart, as Parser does a client's: read into Buffer, say how much with
// Advance, then call Next until it reports false. It allocates nothing per frame and holds at most twice what the
// server has sent of one frame. It is not safe for concurrent use.
type FrameParser struct {
	limits Limits
	buf    []byte
	r, w   int // buf[r:w] is not yet consumed
	seen   int // buf[r:r+seen] holds no LF
	need   int // bytes from r on without which the pending frame cannot be whole
	args   [6][]byte
}

// NewFrameParser returns a parser for a fresh connection. Limits.ControlLine bounds a line, which for a server includes
// INFO's JSON and the addresses after a GET; Limits.Payload bounds one MSG, HMSG or DATA body.
func NewFrameParser(l Limits) *FrameParser {
	return &FrameParser{limits: l, buf: make([]byte, bufferBytesMin)}
}

// Buffer returns free space to read into, at least one byte. Slices of earlier frames are void after the call.
func (p *FrameParser) Buffer() []byte {
	pending := p.w - p.r
	full := p.w == len(p.buf)
	size := len(p.buf)
	switch {
	case pending == size || (full && size < bufferBytesMax):
		// Doubling, and not the announced size, keeps memory in proportion to what really came.
		size *= 2
	case size > bufferBytesMax && pending == 0:
		size = bufferBytesMax
	}
	switch {
	case size != len(p.buf):
		fresh := make([]byte, size)
		copy(fresh, p.buf[p.r:p.w])
		p.buf, p.r, p.w = fresh, 0, pending
	case pending == 0:
		p.r, p.w = 0, 0
	case p.r > 0 && (len(p.buf)-p.w < len(p.buf)/2 || p.r+p.need > len(p.buf)):
		copy(p.buf, p.buf[p.r:p.w])
		p.r, p.w = 0, pending
	}
	return p.buf[p.w:]
}

// Advance says that n bytes were read into the last Buffer.
func (p *FrameParser) Advance(n int) { p.w += n }

// Buffered reports how many bytes wait to be taken: whole frames not yet asked for, or the beginning of one.
func (p *FrameParser) Buffered() int { return p.w - p.r }

// Next takes the next whole frame from what was read. It reports false where there is none yet. Its errors wrap
// ErrFrame; after one the stream is out of step and Next must not be called again.
func (p *FrameParser) Next(f *Frame) (bool, error) {
	for {
		pending := p.buf[p.r:p.w]
		if len(pending) == 0 || len(pending) < p.need {
			return false, nil
		}
		lf := bytes.IndexByte(pending[p.seen:], '\n')
		if lf < 0 {
			if p.seen = len(pending); p.seen > p.limits.ControlLine+1 {
				return false, p.lineTooLong()
			}
			return false, nil
		}
		lf += p.seen
		p.seen = lf
		text := trimCR(pending[:lf])
		if len(text) > p.limits.ControlLine {
			return false, p.lineTooLong()
		}
		*f = Frame{}
		word, after := cutField(text)
		if len(word) == 0 {
			p.consume(lf + 1)
			continue
		}
		return p.take(f, word, after, lf+1)
	}
}

func (p *FrameParser) consume(n int) { p.r += n; p.seen, p.need = 0, 0 }

func (p *FrameParser) lineTooLong() error {
	return fmt.Errorf("%w: line exceeds %d bytes", ErrFrame, p.limits.ControlLine)
}

// take fills f from what follows the verb on its line; end is the offset after the line's LF.
func (p *FrameParser) take(f *Frame, word, after []byte, end int) (bool, error) {
	switch {
	case equalFold(word, "MSG"):
		f.Kind = FrameMsg
		return p.takeMessage(f, after, end, 1)
	case equalFold(word, "HMSG"):
		f.Kind = FrameHMsg
		return p.takeMessage(f, after, end, 2)
	case equalFold(word, "DATA"):
		f.Kind = FrameData
		return p.takeData(f, after, end)
	case equalFold(word, "+OK"):
		f.Kind, f.Detail = FrameOK, bytes.Trim(after, " \t")
	case equalFold(word, "-ERR"):
		if !takeError(f, after) {
			return false, fmt.Errorf("%w: -ERR%q has no quoted text", ErrFrame, echo(after))
		}
	case equalFold(word, "PING"):
		f.Kind = FramePing
	case equalFold(word, "PONG"):
		f.Kind = FramePong
	case equalFold(word, "BATCH"):
		f.Kind = FrameBatch
		return p.takePartition(f, after, end)
	case equalFold(word, "PART"):
		f.Kind = FramePart
		return p.takePartition(f, after, end)
	case equalFold(word, "INFO"):
		f.Kind, f.Detail = FrameInfo, bytes.Trim(after, " \t")
	default:
		return false, fmt.Errorf("%w: unknown verb %q", ErrFrame, echo(word))
	}
	p.consume(end)
	return true, nil
}

// takeMessage reads subject, sid, an optional reply and one or two sizes off the line, then the body.
func (p *FrameParser) takeMessage(f *Frame, after []byte, end, sizes int) (bool, error) {
	n := 0
	for {
		var field []byte
		if field, after = cutField(after); len(field) == 0 {
			break
		}
		if n == len(p.args) {
			return false, fmt.Errorf("%w: a message line has too many fields", ErrFrame)
		}
		p.args[n] = field
		n++
	}
	if n != 2+sizes && n != 3+sizes {
		return false, fmt.Errorf("%w: a message line has %d fields", ErrFrame, n)
	}
	f.Subject, f.SID = p.args[0], p.args[1]
	if n == 3+sizes {
		f.Reply = p.args[2]
	}
	total, header := parseSize(p.args[n-1]), 0
	if sizes == 2 {
		header = parseSize(p.args[n-2])
	}
	if header < 0 || total < header {
		return false, fmt.Errorf("%w: bad size in a message for %q", ErrFrame, echo(f.Subject))
	}
	return p.takeBody(f, end, header, total)
}

func (p *FrameParser) takeData(f *Frame, after []byte, end int) (bool, error) {
	total := parseSize(bytes.Trim(after, " \t"))
	if total < 0 {
		return false, fmt.Errorf("%w: %q is no size of DATA", ErrFrame, echo(after))
	}
	return p.takeBody(f, end, 0, total)
}

// takePartition reads what FETCH says of one partition. The body of a BATCH stays where it is.
func (p *FrameParser) takePartition(f *Frame, after []byte, end int) (bool, error) {
	fields := splitFields(p.args[:0], after)
	if len(fields) != 4 {
		return false, fmt.Errorf("%w: a line about a partition has %d fields", ErrFrame, len(fields))
	}
	var ok, okay bool
	f.Subject = fields[0]
	f.HighWatermark, ok = parseOffset(fields[1])
	f.LogStart, okay = parseOffset(fields[2])
	if f.Kind == FramePart {
		f.Code = fields[3]
	} else {
		f.Size = parseSize(fields[3])
	}
	if !ok || !okay || f.Size < 0 {
		return false, fmt.Errorf("%w: bad number in a line about %q", ErrFrame, echo(f.Subject))
	}
	if f.Size > p.limits.Payload {
		return false, fmt.Errorf("%w: body of %d bytes exceeds the limit of %d", ErrFrame, f.Size, p.limits.Payload)
	}
	p.consume(end)
	return true, nil
}

// TakeBody moves what was read of the body behind a FrameBatch into dst and returns how many bytes that were; the caller
// reads the rest of the body past the parser. The line end behind the body may be left to Next.
func (p *FrameParser) TakeBody(dst []byte) int {
	n := copy(dst, p.buf[p.r:p.w])
	p.consume(n)
	return n
}

// parseOffset reads digits, up to 18 of them, or -1.
func parseOffset(b []byte) (int64, bool) {
	if string(b) == "-1" {
		return -1, true
	}
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

func (p *FrameParser) takeBody(f *Frame, end, header, total int) (bool, error) {
	if total > p.limits.Payload {
		return false, fmt.Errorf("%w: body of %d bytes exceeds the limit of %d", ErrFrame, total, p.limits.Payload)
	}
	body := p.buf[p.r+end : p.w]
	if len(body) <= total {
		p.need = end + total + 1
		return false, nil
	}
	after := total + 1
	if body[total] == '\r' {
		if len(body) == after {
			p.need = end + after + 1
			return false, nil
		}
		after++
	}
	if body[after-1] != '\n' {
		return false, fmt.Errorf("%w: body of %d bytes is not followed by a line end", ErrFrame, total)
	}
	f.Header, f.Payload = body[:header:header], body[header:total:total]
	p.consume(end + after)
	return true, nil
}

// takeError reads [ASYNC] CODE 'text', or NATS's 'text'.
func takeError(f *Frame, after []byte) bool {
	f.Kind = FrameAsyncErr
	open := bytes.IndexByte(after, '\'')
	if open < 0 {
		return false
	}
	shut := bytes.LastIndexByte(after, '\'')
	if shut == open || len(bytes.Trim(after[shut+1:], " \t")) > 0 {
		return false
	}
	f.Detail = after[open+1 : shut]
	first, more := cutField(after[:open])
	second, more := cutField(more)
	switch {
	case len(first) == 0: // NATS never ties an error to a request
	case equalFold(first, "ASYNC"):
		f.Code = second
	case len(second) == 0:
		f.Kind, f.Code = FrameErr, first
	default:
		return false
	}
	tail, _ := cutField(more)
	return len(tail) == 0
}
