package conn

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// wellTold checks that a refusal is one whole line that says what to do.
func wellTold(t *testing.T, err *errcode.Error) {
	t.Helper()
	wire := string(line.AppendErr(nil, err))
	if strings.Count(wire, "\n") != 1 || !strings.HasSuffix(wire, "'\r\n") || !strings.Contains(wire, "; ") || !utf8.ValidString(wire) || len(wire) > 2048 {
		t.Errorf("answer %q", wire)
	}
}

func FuzzConnectJSON(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"verbose":false,"pedantic":true,"echo":false,"headers":true,"no_responders":true,"lang":"go","version":"1.0.0","protocol":1}`,
		`{"lang":"trunkline-go","timestamps":true,"addresses":true}`, `{"protocol":2}`, `{"no_responders":true,"headers":false}`, `{"verbose":"yes"}`, `[]`, `{`, `null`, "{\"lang\":\"\\u0000\"}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		ask, err := parseConnect([][]byte{text})
		if err != nil {
			wellTold(t, err)
			return
		}
		o := ask.options()
		if o.noResponders && !o.headers || o.literal && !o.nats || o.nats != ask.library() {
			t.Errorf("%q gives %+v", text, o)
		}
	})
}

func FuzzFetchJSON(f *testing.F) {
	for _, s := range []string{
		`{"max":1000,"wait":0,"min":1,"partitions":[{"topic":"t","partition":0,"offset":0,"epoch":0},{"topic":"x","partition":1,"offset":-5}]}`,
		`{"wait":"500ms","partitions":[{"topic":"orders","partition":2,"offset":17}]}`, `{"wait":-1,"partitions":[{}]}`, `{"wait":"-5s","partitions":[{}]}`,
		`{"max":99999999999999999999,"partitions":[{"topic":"t"}]}`, `{"partitions":[]}`, `{"partitions":{}}`, `{"partitions":[{"topic":"a\r\nMSG x 1 0"}]}`, `{]`, ``, `null`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if text == nil {
			text = []byte{}
		}
		ask, err := parseFetch(&line.Command{Verb: line.Fetch, Payload: text})
		if err != nil {
			wellTold(t, err)
			return
		}
		if ask.max < 1 || ask.max > fetchBytesMax || ask.min < 0 || ask.min > ask.max || ask.wait < 0 || ask.wait > fetchWaitMax {
			t.Errorf("%q asks for max %d, min %d, wait %s", text, ask.max, ask.min, ask.wait)
		}
		for i := range ask.items { // whatever is asked for, the answer is one line of four fields and a code
			it := &ask.items[i]
			it.fault = errcode.UnknownTopic
			part := it.appendFault(nil)
			if bytes.Count(part, []byte("\n")) != 1 || len(bytes.Fields(part)) != 5 || len(part) > 400 {
				t.Errorf("%q is answered %q", text, part)
			}
		}
	})
}

func FuzzFetchArgs(f *testing.F) {
	for _, s := range []string{"t/0@0", "t/0@0 max=1MiB wait=5s min=0", "t/0@earliest t/1@-3 x/2@1h", "t@0", "t/0", "max=1", "t/0@0 max=-1", "t/0@0 wait=1h"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		ask, err := parseFetch(&line.Command{Verb: line.Fetch, Args: bytes.Fields(text)})
		if err != nil {
			wellTold(t, err)
			return
		}
		for _, it := range ask.items {
			if it.pos.Kind == address.None || it.id < 0 {
				t.Errorf("%q asks for %+v", text, it)
			}
		}
	})
}

// FuzzBatches checks that what a PRODUCE lets through is what readers can walk. Its CRC is made good, or nothing would
// get past it.
func FuzzBatches(f *testing.F) {
	var b record.Builder
	b.Reset(nil)
	b.Append(&record.Record{Timestamp: 1, Key: []byte("k"), Value: []byte("v"), Headers: []record.Header{{Key: []byte("a"), Value: []byte("b")}}})
	b.Append(&record.Record{Timestamp: 2})
	two := append([]byte(nil), b.Finish(0, -1)...)
	f.Add(two, true)
	f.Add(two, false)
	f.Add(append(append([]byte(nil), two...), two...), true)
	f.Add(two[:len(two)-1], true)
	f.Fuzz(func(t *testing.T, in []byte, mend bool) {
		payload := append([]byte(nil), in...)
		if size, err := record.SizeOf(payload); mend && err == nil && size <= len(payload) && size >= record.HeaderBytes {
			binary.BigEndian.PutUint32(payload[17:], crc32.Checksum(payload[21:size], crc32.MakeTable(crc32.Castagnoli)))
		}
		n, fault := checkBatches(payload, 1<<20)
		if fault != nil {
			wellTold(t, fault)
			return
		}
		walked, packed := int32(0), false
		for rest := payload; len(rest) > 0; {
			batch := record.Batch(rest)
			batch = batch[:batch.Size()]
			rest = rest[len(batch):]
			if batch.Codec() != 0 {
				packed = true
				continue
			}
			it, r := record.NewIterator(batch), record.Record{}
			for {
				if _, ok := it.Next(&r); !ok {
					break
				}
				walked++
			}
			if err := it.Err(); err != nil {
				t.Errorf("a batch that was taken cannot be walked: %v", err)
			}
		}
		if n < 1 || !packed && walked != n {
			t.Errorf("%d offsets for %d records", n, walked)
		}
	})
}
