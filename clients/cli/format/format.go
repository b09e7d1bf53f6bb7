// Package format prints records by a pattern of verbs, those of kcat and rpk where these have one:
//
//	%t topic    %p partition    %o offset     %v or %s value    %k key      %h headers, name=value,…
//	%d time     %T milliseconds %S and %K     the lengths of value and key, -1 for null       %% %
//	\n \t \r \0 \\ \xNN         bytes
//
// Keys and values are printed as they are, byte for byte; one that is null is nothing. Nothing follows a record that the
// pattern does not say.
package format

import (
	"fmt"
	"strconv"
	"strings"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/line"
)

// Format is a pattern that was read.
type Format struct{ parts []part }

// part is literal bytes, and a verb behind them; 0 for none.
type part struct {
	text []byte
	verb byte
}

// Verbs are the verbs there are.
const Verbs = "tpovskhdTSK"

// Parse reads a pattern. The error names what in it cannot be read.
func Parse(pattern string) (*Format, error) {
	f, text := &Format{}, []byte{}
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; c {
		case '%':
			if i++; i == len(pattern) {
				return nil, fmt.Errorf("format %q ends in %%; write %%%% for a %%", pattern)
			}
			switch verb := pattern[i]; {
			case verb == '%':
				text = append(text, '%')
			case strings.IndexByte(Verbs, verb) >= 0:
				f.parts = append(f.parts, part{text, verb})
				text = []byte{}
			default:
				return nil, fmt.Errorf("format %q has the verb %%%c; there are %%%s", pattern, verb, strings.Join(strings.Split(Verbs, ""), " %"))
			}
		case '\\':
			b, n, ok := escape(pattern[i+1:])
			if !ok {
				return nil, fmt.Errorf(`format %q has %.4q; there are \n \t \r \0 \\ \xNN`, pattern, pattern[i:])
			}
			text = append(text, b)
			i += n
		default:
			text = append(text, c)
		}
	}
	f.parts = append(f.parts, part{text: text})
	return f, nil
}

// escape reads what follows a backslash, and returns how many bytes that is.
func escape(s string) (b byte, n int, ok bool) {
	if s == "" {
		return 0, 0, false
	}
	if i := strings.IndexByte(`ntr0\`, s[0]); i >= 0 {
		return "\n\t\r\x00\\"[i], 1, true
	}
	if s[0] != 'x' || len(s) < 3 {
		return 0, 0, false
	}
	code, err := strconv.ParseUint(s[1:3], 16, 8)
	return byte(code), 3, err == nil
}

// Append appends a record.
func (f *Format) Append(dst []byte, r *trunkline.Record) []byte {
	for _, p := range f.parts {
		dst = append(dst, p.text...)
		switch p.verb {
		case 't':
			dst = append(dst, r.Topic...)
		case 'p':
			dst = strconv.AppendInt(dst, int64(r.Partition), 10)
		case 'o':
			dst = strconv.AppendInt(dst, int64(r.Offset), 10)
		case 'v', 's':
			dst = append(dst, r.Value...)
		case 'k':
			dst = append(dst, r.Key...)
		case 'h':
			dst = appendHeaders(dst, r.Headers)
		case 'd':
			dst = r.Timestamp.UTC().AppendFormat(dst, line.TimeLayout)
		case 'T':
			dst = strconv.AppendInt(dst, r.Timestamp.UnixMilli(), 10)
		case 'S':
			dst = appendLength(dst, r.Value)
		case 'K':
			dst = appendLength(dst, r.Key)
		}
	}
	return dst
}

func appendHeaders(dst []byte, headers []trunkline.Header) []byte {
	for i, h := range headers {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, h.Name...), '='), h.Value...)
	}
	return dst
}

func appendLength(dst, field []byte) []byte {
	if field == nil {
		return append(dst, "-1"...)
	}
	return strconv.AppendInt(dst, int64(len(field)), 10)
}
