package line

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func frameLimits() Limits { return Limits{ControlLine: 256, Payload: 1 << 20} }

// dump is a frame as one line of text.
func (f *Frame) dump() string {
	return fmt.Sprintf("%d detail=%q code=%q subject=%q sid=%q reply=%q header=%q payload=%q size=%d high=%d low=%d",
		f.Kind, f.Detail, f.Code, f.Subject, f.SID, f.Reply, f.Header, f.Payload, f.Size, f.HighWatermark, f.LogStart)
}

// feed gives stream to a fresh parser, at most step bytes at a time, and returns the frames and the final error.
func feed(l Limits, stream []byte, step int) ([]string, error) {
	p := NewFrameParser(l)
	var out []string
	var f Frame
	for len(stream) > 0 {
		n := copy(p.Buffer(), stream[:min(step, len(stream))])
		p.Advance(n)
		stream = stream[n:]
		for {
			ok, err := p.Next(&f)
			if err != nil {
				return out, err
			}
			if !ok {
				break
			}
			out = append(out, f.dump())
		}
	}
	return out, nil
}

func TestFramesWithAReplyReadBack(t *testing.T) {
	for _, reply := range []string{"", "_INBOX.a.1"} {
		head := Head{Subject: []byte("live.x"), SID: []byte("7"), Reply: []byte(reply)}
		wire := AppendEnd(append(AppendMsgReply(nil, head, 2), "hi"...))
		wire = AppendEnd(append(AppendHMsgReply(wire, head, Sizes{Header: 12, Total: 14}), "NATS/1.0\r\n\r\nhi"...))
		blank := reply
		if blank != "" {
			blank += " "
		}
		want := "MSG live.x 7 " + blank + "2\r\nhi\r\nHMSG live.x 7 " + blank + "12 14\r\nNATS/1.0\r\n\r\nhi\r\n"
		if string(wire) != want {
			t.Errorf("got %q, want %q", wire, want)
		}
	}
}

func TestFrameParserReadsEveryFrameCutAnywhere(t *testing.T) {
	big := strings.Repeat("x", 200_000)
	cases := []struct {
		name, in string
		want     Frame
	}{
		{"info", "INFO {\"a\": 1} \r\n", Frame{Kind: FrameInfo, Detail: []byte(`{"a": 1}`)}},
		{"msg", "MSG orders/2@17 9 5\r\nhello\r\n", Frame{Kind: FrameMsg, Subject: []byte("orders/2@17"), SID: []byte("9"), Payload: []byte("hello")}},
		{"msg with reply and tabs", "msg\ta 9\t_INBOX.1  2\nhi\n", Frame{Kind: FrameMsg, Subject: []byte("a"), SID: []byte("9"), Reply: []byte("_INBOX.1"), Payload: []byte("hi")}},
		{"msg of line ends", "MSG a 9 4\r\n\r\n\r\n\r\n", Frame{Kind: FrameMsg, Subject: []byte("a"), SID: []byte("9"), Payload: []byte("\r\n\r\n")}},
		{"empty msg", "MSG a 9 0\r\n\r\n", Frame{Kind: FrameMsg, Subject: []byte("a"), SID: []byte("9")}},
		{"big msg", "MSG a 9 200000\r\n" + big + "\r\n", Frame{Kind: FrameMsg, Subject: []byte("a"), SID: []byte("9"), Payload: []byte(big)}},
		{"hmsg", "HMSG a 0 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", Frame{Kind: FrameHMsg, Subject: []byte("a"), SID: []byte("0"), Header: []byte("NATS/1.0\r\n\r\n"), Payload: []byte("hi")}},
		{"hmsg with reply", "HMSG a 0 r 2 2\nhh\n", Frame{Kind: FrameHMsg, Subject: []byte("a"), SID: []byte("0"), Reply: []byte("r"), Header: []byte("hh")}},
		{"ping", "PING\r\n", Frame{Kind: FramePing}},
		{"pong in small letters", "\r\n\npong\n", Frame{Kind: FramePong}},
		{"ok", "+OK\r\n", Frame{Kind: FrameOK}},
		{"ok with detail", "+OK orders/2@17 disk\r\n", Frame{Kind: FrameOK, Detail: []byte("orders/2@17 disk")}},
		{"err", "-ERR BAD_ARGS 'it's; so'\r\n", Frame{Kind: FrameErr, Code: []byte("BAD_ARGS"), Detail: []byte("it's; so")}},
		{"async err", "-ERR ASYNC CORRUPT 'SUB a: bad'\n", Frame{Kind: FrameAsyncErr, Code: []byte("CORRUPT"), Detail: []byte("SUB a: bad")}},
		{"err of nats", "-ERR 'Stale Connection'\r\n", Frame{Kind: FrameAsyncErr, Detail: []byte("Stale Connection")}},
		{"batch", "BATCH orders/2@17 20 3 70\r\n", Frame{Kind: FrameBatch, Subject: []byte("orders/2@17"), Size: 70, HighWatermark: 20, LogStart: 3}},
		{"part", "PART orders/2 -1 -1 UNKNOWN_TOPIC\r\n", Frame{Kind: FramePart, Subject: []byte("orders/2"), Code: []byte("UNKNOWN_TOPIC"), HighWatermark: -1, LogStart: -1}},
		{"data", "DATA 3\r\n{}\n\r\n", Frame{Kind: FrameData, Payload: []byte("{}\n")}},
	}
	var all []byte
	var wants []string
	for _, c := range cases {
		all = append(all, c.in...)
		wants = append(wants, c.want.dump())
		t.Run(c.name, func(t *testing.T) {
			for _, step := range []int{1, 2, 7, 4096, len(c.in)} {
				got, err := feed(frameLimits(), []byte(c.in), step)
				if err != nil || len(got) != 1 || got[0] != c.want.dump() {
					t.Fatalf("in steps of %d: %.200q, %v\nwant %.200q", step, got, err, c.want.dump())
				}
			}
		})
	}
	for _, step := range []int{1, 3, 1000, len(all)} {
		got, err := feed(frameLimits(), all, step)
		if err != nil || strings.Join(got, "\n") != strings.Join(wants, "\n") {
			t.Fatalf("the whole stream in steps of %d gave %d frames of %d, %v", step, len(got), len(wants), err)
		}
	}
}

func TestFrameParserRefusesWhatIsNoFrame(t *testing.T) {
	cases := map[string]string{
		"unknown verb":         "HELLO\r\n",
		"no size":              "MSG a 1\r\n",
		"size is no number":    "MSG a 1 x\r\n",
		"negative size":        "MSG a 1 -1\r\n",
		"ten digits":           "DATA 0000000001\r\n",
		"size above the limit": "DATA 1048577\r\n",
		"header above total":   "HMSG a 1 5 4\r\n",
		"too many fields":      "MSG a 1 r 2 3 4 5 6\r\n",
		"no end after body":    "MSG a 1 2\r\nhello\r\n",
		"cr without lf":        "MSG a 1 2\r\nhi\rx",
		"long line":            "+OK " + strings.Repeat("x", 300),
		"long ended line":      "+OK " + strings.Repeat("x", 253) + "\n",
		"error without quotes": "-ERR BAD_ARGS\r\n",
		"error with one quote": "-ERR BAD_ARGS 'x\r\n",
		"error with two codes": "-ERR BAD ARGS 'x'\r\n",
		"words after the text": "-ERR BAD 'x' y\r\n",
		"batch without a size": "BATCH a/0@0 1 2\r\n",
		"batch of no size":     "BATCH a/0@0 1 2 -3\r\n",
		"batch too large":      "BATCH a/0@0 1 2 1048577\r\n",
		"batch from nowhere":   "BATCH a/0@0 -2 2 3\r\n",
		"part of five fields":  "PART a/0 1 2 X Y\r\n",
		"async with two codes": "-ERR ASYNC A B 'x'\r\n",
	}
	for name, in := range cases {
		t.Run(name, func(t *testing.T) {
			for _, step := range []int{1, len(in)} {
				if got, err := feed(frameLimits(), []byte(in), step); !errors.Is(err, ErrFrame) {
					t.Fatalf("in steps of %d: %q, %v; want ErrFrame", step, got, err)
				}
			}
		})
	}
}

func TestTheBodyBehindABatchIsTakenFromTheParserAndFromBehindIt(t *testing.T) {
	body := strings.Repeat("+OK\r\n", 100)
	stream := fmt.Sprintf("BATCH a/0@0 9 0 %d\r\n%s\r\nPART a/1 5 4 CORRUPT\r\n+OK\r\n", len(body), body)
	for cut := 1; cut < len(stream); cut++ {
		p := NewFrameParser(Limits{ControlLine: 256, Payload: 1 << 20})
		rest := strings.NewReader(stream)
		var f Frame
		next := func() {
			t.Helper()
			for {
				if ok, err := p.Next(&f); err != nil {
					t.Fatal(err)
				} else if ok {
					return
				}
				n, err := rest.Read(p.Buffer()[:cut])
				if err != nil {
					t.Fatal(err)
				}
				p.Advance(n)
			}
		}
		next()
		got := make([]byte, f.Size)
		if _, err := io.ReadFull(rest, got[p.TakeBody(got):]); err != nil || f.Kind != FrameBatch || string(got) != body {
			t.Fatalf("cut at %d: %v, %v, %q", cut, f.Kind, err, got)
		}
		if next(); f.Kind != FramePart || string(f.Code) != "CORRUPT" || f.LogStart != 4 {
			t.Fatalf("cut at %d: %s", cut, f.dump())
		}
		if next(); f.Kind != FrameOK {
			t.Fatalf("cut at %d: %s", cut, f.dump())
		}
	}
}

func TestFrameParserTakesMemoryOnlyForWhatCame(t *testing.T) {
	p := NewFrameParser(Limits{ControlLine: 256, Payload: 512 << 20})
	p.Advance(copy(p.Buffer(), "DATA 500000000\r\nabc"))
	var f Frame
	if ok, err := p.Next(&f); ok || err != nil {
		t.Fatalf("half a frame: %v, %v", ok, err)
	}
	if n := len(p.Buffer()) + p.Buffered(); n > bufferBytesMax {
		t.Fatalf("an announced size alone made a buffer of %d bytes", n)
	}
}

func TestFrameParserLetsALargeBufferGo(t *testing.T) {
	p := NewFrameParser(frameLimits())
	in := []byte("DATA 900000\r\n" + strings.Repeat("x", 900_000) + "\r\n")
	var f Frame
	for len(in) > 0 {
		n := copy(p.Buffer(), in)
		p.Advance(n)
		in = in[n:]
	}
	if ok, err := p.Next(&f); !ok || err != nil {
		t.Fatalf("whole frame: %v, %v", ok, err)
	}
	if n := len(p.Buffer()); n > bufferBytesMax {
		t.Fatalf("%d bytes are kept after a large frame", n)
	}
}

func TestFrameParserAllocatesNothingPerFrame(t *testing.T) {
	stream := bytes.Repeat([]byte("+OK orders/2@17 disk\r\nHMSG orders/2@17 1 12 17\r\nNATS/1.0\r\n\r\nhello\r\n"), 20)
	p := NewFrameParser(frameLimits())
	var f Frame
	run := func() {
		p.Advance(copy(p.Buffer(), stream))
		for {
			ok, err := p.Next(&f)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return
			}
		}
	}
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Fatalf("%v allocations for 40 frames", n)
	}
}

func FuzzFrameParser(f *testing.F) {
	f.Add([]byte("INFO {}\r\n+OK a\r\nMSG a 1 2\r\nhi\r\n-ERR X 'y'\r\n"), uint8(1))
	f.Add([]byte("HMSG a 0 12 14\r\nNATS/1.0\r\n\r\nhi\r\nDATA 1\nx\n"), uint8(3))
	f.Add([]byte("DATA 1048577\r\n"), uint8(9))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		whole, wholeErr := feed(frameLimits(), in, len(in)+1)
		cut, cutErr := feed(frameLimits(), in, int(step)+1)
		if (wholeErr == nil) != (cutErr == nil) || strings.Join(whole, "\n") != strings.Join(cut, "\n") {
			t.Fatalf("cutting changes the result:\n%q, %v\n%q, %v", whole, wholeErr, cut, cutErr)
		}
	})
}

func BenchmarkFrameParser(b *testing.B) {
	stream := bytes.Repeat([]byte("+OK orders/2@17 disk\r\n"), 100)
	p := NewFrameParser(frameLimits())
	var f Frame
	b.ReportAllocs()
	b.SetBytes(int64(len(stream)))
	for b.Loop() {
		p.Advance(copy(p.Buffer(), stream))
		for {
			ok, err := p.Next(&f)
			if err != nil {
				b.Fatal(err)
			}
			if !ok {
				break
			}
		}
	}
}
