package line

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Headers that are a record's fields and not its headers. Their names are case-sensitive, as all names in NATS are.
const (
	headerKey       = "Key"
	headerKeyBase64 = "Key-Base64"
	headerTimestamp = "Timestamp"
	headerNullValue = "Null-Value"
	suffixBase64    = "-Base64"
)

// headerVersion begins every header block.
const headerVersion = "NATS/1.0"

// TimeLayout is how times are written: RFC 3339 in UTC with milliseconds.
const TimeLayout = "2006-01-02T15:04:05.000Z07:00"

// HeaderFields says which fields of a record a header block has set.
type HeaderFields struct {
	Key       bool
	Timestamp bool
	NullValue bool
}

// ParseHeaders reads a NATS header block, "NATS/1.0", lines, an empty line, into r: key and timestamp where it carries
// them, a nil value for "Null-Value: true", and every other line appended to r.Headers as it came. The bytes in r alias
// block, but for a key in base64. Set r.Value to the payload before: a null value next to a payload is refused. After an
// error, an *errcode.Error with BAD_HEADERS, r is partly filled.
func ParseHeaders(block []byte, r *record.Record) (HeaderFields, error) {
	var set HeaderFields
	line, rest, ok := cutLine(block)
	if !ok || !bytes.HasPrefix(line, []byte(headerVersion)) {
		return set, badHeaders("the header block does not begin with the line NATS/1.0", "begin it so")
	}
	if len(bytes.Trim(line[len(headerVersion):], " \t")) > 0 {
		return set, badHeaders(fmt.Sprintf("the header block begins with %q", echo(line)), "a status is a server's to send; leave it out")
	}
	for {
		if line, rest, ok = cutLine(rest); !ok {
			return set, badHeaders("the header block does not end with an empty line", "end it with CRLF CRLF and count both")
		}
		if len(line) == 0 {
			break
		}
		name, value, err := cutHeader(line)
		if err != nil {
			return set, err
		}
		if err := set.take(name, value, r); err != nil {
			return set, err
		}
	}
	if len(rest) > 0 {
		return set, badHeaders("the header block goes on after its empty line", "check the header size")
	}
	if set.NullValue {
		if len(r.Value) > 0 {
			return set, badHeaders(fmt.Sprintf("a null value has a payload of %d bytes", len(r.Value)), "send 0 bytes, or leave Null-Value out")
		}
		r.Value = nil
	}
	return set, nil
}

// HeaderKey finds the key that a header block carries, for who wants to know it before the block's turn has come; nil where it
// finds none. It takes the first key there is and checks nothing: what the record's key is, ParseHeaders says. A key in base64 is
// decoded, other keys alias block.
func HeaderKey(block []byte) []byte {
	line, rest, ok := cutLine(block)
	for ok && len(line) > 0 {
		if name, value, found := bytes.Cut(line, []byte{':'}); found && len(name) >= len(headerKey) && string(name[:len(headerKey)]) == headerKey {
			switch string(name) {
			case headerKey:
				return trimBlanks(value[:len(value):len(value)])
			case headerKeyBase64:
				key, err := base64.StdEncoding.DecodeString(string(trimBlanks(value)))
				if err != nil {
					return nil
				}
				return key
			}
		}
		line, rest, ok = cutLine(rest)
	}
	return nil
}

// take puts one header where it belongs.
func (f *HeaderFields) take(name, value []byte, r *record.Record) error {
	switch string(name) {
	case headerKey, headerKeyBase64:
		if f.Key {
			return badHeaders("the record has a second key", "send one of Key and Key-Base64")
		}
		f.Key, r.Key = true, value
		if len(name) > len(headerKey) {
			key, err := base64.StdEncoding.DecodeString(string(value))
			if err != nil {
				return badHeaders(fmt.Sprintf("Key-Base64 %q is not base64", echo(value)), "use standard base64 with padding")
			}
			r.Key = key
		}
	case headerTimestamp:
		var t time.Time
		if err := t.UnmarshalText(value); err != nil || f.Timestamp {
			return badHeaders(fmt.Sprintf("Timestamp %q is not the one time in RFC 3339", echo(value)), "send one like 2026-11-22T08:00:00.000Z")
		}
		f.Timestamp, r.Timestamp = true, t.UnixMilli()
	case headerNullValue:
		switch string(value) {
		case "true":
			f.NullValue = true
		case "false":
		default:
			return badHeaders(fmt.Sprintf("Null-Value is %q", echo(value)), "send true, or leave it out")
		}
	default:
		r.Headers = append(r.Headers, record.Header{Key: name, Value: value})
	}
	return nil
}

// cutLine takes a line off the front of b, without its CRLF or LF; false where no line ends.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	lf := bytes.IndexByte(b, '\n')
	if lf < 0 {
		return nil, nil, false
	}
	line = trimCR(b[:lf])
	return line[:len(line):len(line)], b[lf+1:], true
}

func cutHeader(line []byte) (name, value []byte, err error) {
	colon := bytes.IndexByte(line, ':')
	if colon < 0 || !isToken(line[:colon]) {
		return nil, nil, badHeaders(fmt.Sprintf("the header line %q does not begin with a name and a colon", echo(line)),
			"write name: value, the name of letters, digits and -")
	}
	value = trimBlanks(line[colon+1:])
	if bytes.IndexByte(value, '\r') >= 0 {
		return nil, nil, badHeaders(fmt.Sprintf("the header %q has a CR in its value", echo(line[:colon])), "encode it")
	}
	return line[:colon:colon], value[:len(value):len(value)], nil
}

// trimBlanks is bytes.Trim, but for what is left of blanks alone: that is empty and not nil, which would be null.
func trimBlanks(b []byte) []byte {
	for len(b) > 0 && isBlank(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isBlank(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// isToken reports whether b can be a header's name: HTTP's token, which every library writes and reads.
func isToken(b []byte) bool {
	for _, c := range b {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return len(b) > 0
}

func badHeaders(what, hint string) error { return errcode.New(errcode.BadHeaders, what, hint) }

// HeaderOptions say what AppendHeaders adds.
type HeaderOptions struct {
	Timestamp bool // a Timestamp: line
}

// NeedsHeaders reports whether r has anything that a MSG without a header block would lose, its timestamp aside.
func NeedsHeaders(r *record.Record) bool {
	return r.Key != nil || r.Value == nil || len(r.Headers) > 0
}

// AppendHeaders appends r's header block and returns how many headers it had to leave out: their names are no tokens, or
// are those of the fields above, which a reader would take for them. A value with CR, LF or bytes that are not UTF-8
// goes out in base64 under <name>-Base64.
func AppendHeaders(dst []byte, r *record.Record, opt HeaderOptions) (block []byte, leftOut int) {
	dst = append(dst, headerVersion+"\r\n"...)
	if r.Key != nil {
		if isPlain(r.Key) {
			dst = appendPlain(append(dst, headerKey...), r.Key)
		} else {
			dst = appendBase64(append(dst, headerKeyBase64+": "...), r.Key)
		}
	}
	if opt.Timestamp {
		dst = append(dst, headerTimestamp+": "...)
		dst = time.UnixMilli(r.Timestamp).UTC().AppendFormat(dst, TimeLayout)
		dst = append(dst, '\r', '\n')
	}
	if r.Value == nil {
		dst = append(dst, headerNullValue+": true\r\n"...)
	}
	for i := range r.Headers {
		h := &r.Headers[i]
		switch {
		case !isToken(h.Key) || isField(h.Key):
			leftOut++
		case bytes.IndexByte(h.Value, '\r') >= 0 || bytes.IndexByte(h.Value, '\n') >= 0 || !utf8.Valid(h.Value):
			dst = append(dst, h.Key...)
			dst = appendBase64(append(dst, suffixBase64+": "...), h.Value)
		default:
			dst = appendPlain(append(dst, h.Key...), h.Value)
		}
	}
	return append(dst, '\r', '\n'), leftOut
}

func isField(name []byte) bool {
	switch string(name) {
	case headerKey, headerKeyBase64, headerTimestamp, headerNullValue:
		return true
	}
	return false
}

// isPlain reports whether a key survives a header line: text without control bytes, and nothing for a reader to trim.
func isPlain(key []byte) bool {
	for _, c := range key {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return utf8.Valid(key) && len(bytes.Trim(key, " ")) == len(key)
}

// appendPlain appends a header's value and its line end after its name.
func appendPlain(dst, value []byte) []byte {
	dst = append(dst, ':', ' ')
	dst = append(dst, value...)
	return append(dst, '\r', '\n')
}

func appendBase64(dst, value []byte) []byte {
	dst = base64.StdEncoding.AppendEncode(dst, value)
	return append(dst, '\r', '\n')
}
