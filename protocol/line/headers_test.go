package line

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func header(name, value string) record.Header {
	return record.Header{Key: []byte(name), Value: []byte(value)}
}

func TestParseHeaders(t *testing.T) {
	body := []byte("body")
	tests := map[string]struct {
		lines string
		want  record.Record
		set   HeaderFields
	}{
		"none":                {"", record.Record{Value: body}, HeaderFields{}},
		"plain":               {"A: 1\r\nb: two words\r\n", record.Record{Value: body, Headers: []record.Header{header("A", "1"), header("b", "two words")}}, HeaderFields{}},
		"repeated":            {"A: 1\r\nA: 2\r\na: 3\r\n", record.Record{Value: body, Headers: []record.Header{header("A", "1"), header("A", "2"), header("a", "3")}}, HeaderFields{}},
		"trimmed":             {"A: \t 1 \t\r\nB:2\r\nC:\r\n", record.Record{Value: body, Headers: []record.Header{header("A", "1"), header("B", "2"), header("C", "")}}, HeaderFields{}},
		"colon in the value":  {"A: x:y\r\n", record.Record{Value: body, Headers: []record.Header{header("A", "x:y")}}, HeaderFields{}},
		"key":                 {"Key: k 42\r\nA: 1\r\n", record.Record{Key: []byte("k 42"), Value: body, Headers: []record.Header{header("A", "1")}}, HeaderFields{Key: true}},
		"empty key":           {"Key:\r\n", record.Record{Key: []byte{}, Value: body}, HeaderFields{Key: true}},
		"key in base64":       {"Key-Base64: AP8K\r\n", record.Record{Key: []byte{0, 255, 10}, Value: body}, HeaderFields{Key: true}},
		"names keep case":     {"key: x\r\nTIMESTAMP: y\r\n", record.Record{Value: body, Headers: []record.Header{header("key", "x"), header("TIMESTAMP", "y")}}, HeaderFields{}},
		"timestamp":           {"Timestamp: 2026-11-22T08:00:00.250Z\r\n", record.Record{Timestamp: 1795334400250, Value: body}, HeaderFields{Timestamp: true}},
		"null value":          {"Null-Value: true\r\n", record.Record{}, HeaderFields{NullValue: true}},
		"no null value":       {"Null-Value: false\r\n", record.Record{Value: body}, HeaderFields{}},
		"bytes not UTF-8":     {"A: \xff\x00\r\n", record.Record{Value: body, Headers: []record.Header{header("A", "\xff\x00")}}, HeaderFields{}},
		"base64 of its own":   {"A-Base64: AP8K\r\n", record.Record{Value: body, Headers: []record.Header{header("A-Base64", "AP8K")}}, HeaderFields{}},
		"every kind of token": {"!#$%&'*+-.^_`|~09: 1\r\n", record.Record{Value: body, Headers: []record.Header{header("!#$%&'*+-.^_`|~09", "1")}}, HeaderFields{}},
	}
	for name, test := range tests {
		for _, end := range []string{"\r\n", "\n"} {
			t.Run(name, func(t *testing.T) {
				block := strings.ReplaceAll("NATS/1.0\r\n"+test.lines+"\r\n", "\r\n", end)
				r := record.Record{Value: body}
				if test.set.NullValue {
					r.Value = []byte{}
				}
				set, err := ParseHeaders([]byte(block), &r)
				if diff := cmp.Diff(test.want, r); diff != "" || err != nil || set != test.set {
					t.Errorf("%+v, %v\n%s", set, err, diff)
				}
			})
		}
	}
}

func TestParseHeadersRefuses(t *testing.T) {
	for name, block := range map[string]string{
		"nothing": "", "no version": "\r\n", "another version": "NATS/2.0\r\n\r\n", "a longer version": "NATS/1.05\r\n\r\n", "a status": "NATS/1.0 503\r\n\r\n", "HTTP": "HTTP/1.1 200 OK\r\n\r\n",
		"no line end": "NATS/1.0", "no empty line": "NATS/1.0\r\n", "no empty line after a header": "NATS/1.0\r\nA: 1\r\n", "cut header": "NATS/1.0\r\nA: 1", "data after": "NATS/1.0\r\n\r\nA: 1\r\n",
		"no colon": "NATS/1.0\r\nA\r\n\r\n", "no name": "NATS/1.0\r\n: 1\r\n\r\n", "blank in name": "NATS/1.0\r\nA B: 1\r\n\r\n", "blank after name": "NATS/1.0\r\nA : 1\r\n\r\n",
		"folded line": "NATS/1.0\r\nA: 1\r\n more\r\n\r\n", "name not ASCII": "NATS/1.0\r\n\xc3\xa9: 1\r\n\r\n", "CR in value": "NATS/1.0\r\nA: 1\rB: 2\r\n\r\n",
		"second key": "NATS/1.0\r\nKey: 1\r\nKey: 2\r\n\r\n", "key in both forms": "NATS/1.0\r\nKey-Base64: AA==\r\nKey: 2\r\n\r\n", "bad base64": "NATS/1.0\r\nKey-Base64: A=\r\n\r\n",
		"bad time": "NATS/1.0\r\nTimestamp: yesterday\r\n\r\n", "second time": "NATS/1.0\r\nTimestamp: 2026-11-22T08:00:00Z\r\nTimestamp: 2026-11-22T08:00:00Z\r\n\r\n",
		"null or not": "NATS/1.0\r\nNull-Value: yes\r\n\r\n", "null with a body": "NATS/1.0\r\nNull-Value: true\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			r := record.Record{Value: []byte("body")}
			_, err := ParseHeaders([]byte(block), &r)
			var e *errcode.Error
			if !errors.As(err, &e) || e.Code != errcode.BadHeaders || e.Hint == "" {
				t.Errorf("reads as %+v, %v", r, err)
			}
		})
	}
}

func TestAppendHeaders(t *testing.T) {
	tests := map[string]struct {
		r       record.Record
		opt     HeaderOptions
		want    string
		leftOut int
	}{
		"nothing":         {record.Record{Value: []byte{}}, HeaderOptions{}, "", 0},
		"order":           {record.Record{Key: []byte("k"), Timestamp: 1795334400250, Headers: []record.Header{header("A", "1")}}, HeaderOptions{Timestamp: true}, "Key: k\r\nTimestamp: 2026-11-22T08:00:00.250Z\r\nNull-Value: true\r\nA: 1\r\n", 0},
		"binary key":      {record.Record{Key: []byte{0, 255, 10}, Value: []byte{}}, HeaderOptions{}, "Key-Base64: AP8K\r\n", 0},
		"key with blanks": {record.Record{Key: []byte(" k"), Value: []byte{}}, HeaderOptions{}, "Key-Base64: IGs=\r\n", 0},
		"empty key":       {record.Record{Key: []byte{}, Value: []byte{}}, HeaderOptions{}, "Key: \r\n", 0},
		"binary values":   {record.Record{Value: []byte{}, Headers: []record.Header{header("A", "1\r\n2"), header("B", "\xff"), header("C", "é")}}, HeaderOptions{}, "A-Base64: MQ0KMg==\r\nB-Base64: /w==\r\nC: é\r\n", 0},
		"null header":     {record.Record{Value: []byte{}, Headers: []record.Header{{Key: []byte("A")}}}, HeaderOptions{}, "A: \r\n", 0},
		"left out": {record.Record{Value: []byte{}, Headers: []record.Header{header("", "1"), header("A B", "1"), header("x\r\nKey", "1"), header("Key", "1"), header("Key-Base64", "1"),
			header("Timestamp", "1"), header("Null-Value", "true"), header("key", "stays")}}, HeaderOptions{}, "key: stays\r\n", 7},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, leftOut := AppendHeaders([]byte("before"), &test.r, test.opt)
			if want := "beforeNATS/1.0\r\n" + test.want + "\r\n"; string(got) != want || leftOut != test.leftOut {
				t.Errorf("got %q, %d left out; want %q", got, leftOut, want)
			}
		})
	}
}

func TestNATSReadsOurHeaders(t *testing.T) {
	r := record.Record{Key: []byte("k"), Value: []byte{}, Headers: []record.Header{header("A", "1"), header("a", "2"), header("A", "3")}}
	block, _ := AppendHeaders(nil, &r, HeaderOptions{})
	got, err := nats.DecodeHeadersMsg(block)
	want := nats.Header{"Key": {"k"}, "A": {"1", "3"}, "a": {"2"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestNeedsHeaders(t *testing.T) {
	for name, test := range map[string]struct {
		r    record.Record
		want bool
	}{
		"body": {record.Record{Timestamp: 9, Value: []byte("v")}, false}, "empty body": {record.Record{Value: []byte{}}, false}, "null": {record.Record{}, true},
		"key": {record.Record{Key: []byte{}, Value: []byte{}}, true}, "header": {record.Record{Value: []byte{}, Headers: []record.Header{header("A", "")}}, true},
	} {
		if got := NeedsHeaders(&test.r); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestHeadersDoNotAllocate(t *testing.T) {
	block := []byte("NATS/1.0\r\nKey: k\r\nTimestamp: 2026-11-22T08:00:00Z\r\nX-Trace_id: 1\r\n\r\n")
	var r record.Record
	buf := make([]byte, 0, 256)
	value := []byte("v")
	if n := testing.AllocsPerRun(100, func() {
		r = record.Record{Value: value, Headers: r.Headers[:0]}
		if _, err := ParseHeaders(block, &r); err != nil {
			t.Fatal(err)
		}
		buf, _ = AppendHeaders(buf[:0], &r, HeaderOptions{Timestamp: true})
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzParseHeaders(f *testing.F) {
	f.Add([]byte("NATS/1.0\r\nKey: k\r\nA: 1\r\n\r\n"))
	f.Add([]byte("NATS/1.0\nKey-Base64: AP8K\nTimestamp: 2026-11-22T08:00:00Z\nNull-Value: true\nA: \xff\n\n"))
	f.Fuzz(func(t *testing.T, block []byte) {
		r := record.Record{Value: []byte{}}
		set, err := ParseHeaders(block, &r)
		if err != nil {
			if !errors.Is(err, errcode.Of(errcode.BadHeaders)) {
				t.Fatal(err)
			}
			return
		}
		for _, h := range r.Headers {
			if !utf8.Valid(h.Value) {
				return // goes out in base64, under another name
			}
		}
		if set.Timestamp && (r.Timestamp < -62167219200000 || r.Timestamp > 253402300799999) {
			return // a zone moved the year out of what RFC 3339 can write in UTC
		}
		again := record.Record{Value: []byte{}}
		out, leftOut := AppendHeaders(nil, &r, HeaderOptions{Timestamp: set.Timestamp})
		set2, err := ParseHeaders(out, &again)
		if diff := cmp.Diff(r, again); diff != "" || err != nil || set != set2 || leftOut != 0 {
			t.Fatalf("%q became %q: %d left out, %v\n%s", block, out, leftOut, err, diff)
		}
	})
}

func FuzzAppendHeaders(f *testing.F) {
	f.Add([]byte("k"), []byte("Name"), []byte("value"), int64(5))
	f.Add([]byte("\x00"), []byte("Key"), []byte("\r\nKey: x"), int64(0))
	f.Fuzz(func(t *testing.T, key, name, value []byte, ts int64) {
		r := record.Record{Timestamp: ts % 253402300799999, Key: append([]byte{}, key...), Value: []byte("body"), Headers: []record.Header{{Key: name, Value: value}}}
		if r.Timestamp < 0 {
			r.Timestamp = -r.Timestamp
		}
		block, leftOut := AppendHeaders(nil, &r, HeaderOptions{Timestamp: true})
		got := record.Record{Value: []byte("body")}
		set, err := ParseHeaders(block, &got)
		if err != nil || !set.Key || !set.Timestamp || set.NullValue || !bytes.Equal(got.Key, key) || got.Timestamp != r.Timestamp || len(got.Headers)+leftOut != 1 {
			t.Fatalf("%q: %+v, %+v, %v", block, set, got, err)
		}
	})
}
