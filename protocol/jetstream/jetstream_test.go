package jetstream

import (
	"encoding/json"
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func TestAckIsJetStreams(t *testing.T) {
	ack := Ack{Topic: "orders.eu", Partition: 2, Offset: 17, Durability: "disk"}
	const want = `{"stream":"orders_eu","seq":8796093022226,"partition":2,"offset":17,"durability":"disk"}`
	if got := string(AppendAck(nil, ack)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if top := Sequence(2047, 1<<42-2); top >= 1<<53 {
		t.Errorf("the last sequence number %d is no exact JSON number", top)
	}
	if Sequence(0, 0) != 1 || Sequence(1, 0) == Sequence(0, 0) {
		t.Error("sequence numbers do not begin at 1, or meet")
	}
	buf := make([]byte, 0, 256)
	if n := testing.AllocsPerRun(100, func() { buf = AppendAck(buf[:0], ack) }); n != 0 {
		t.Errorf("%v allocations an acknowledgement", n)
	}
}

func TestErrorCarriesJetStreamsNumbers(t *testing.T) {
	for _, row := range errcode.Table {
		text := AppendError(nil, Refuse(errcode.New(row.Code, `what "happened"`, "what to do")))
		var got struct {
			Error struct {
				Code        int    `json:"code"`
				ErrCode     int    `json:"err_code"`
				Description string `json:"description"`
			} `json:"error"`
		}
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got.Error.Code != row.HTTP || got.Error.ErrCode != row.JetStream ||
			got.Error.Description != string(row.Code)+`: what "happened"; what to do` {
			t.Errorf("%s is told as %s", row.Code, text)
		}
	}
	if r := Refuse(errcode.New("NEWER", "a", "b")); r.HTTP != 500 || r.ErrCode == 0 {
		t.Errorf("a code of another version has the numbers %d and %d", r.HTTP, r.ErrCode)
	}
}

func TestHeadersThatAskForMoreAreRefused(t *testing.T) {
	for name, want := range map[string]int{
		"Nats-Expected-Stream": 10003, "Nats-Expected-Last-Sequence": 10003, "Nats-TTL": 10166, "Nats-Rollup": 10003,
		"Nats-Batch-Id": 10174, "Nats-Batch-Commit": 10174, "Nats-Schedule": 10188, "Nats-Schedule-Target": 10188, "Nats-Incr": 10168,
		"Nats-Msg-Id": 0, "Nats-TTL-Of-Mine": 0, "nats-ttl": 0, "X": 0, "Nats-": 0,
	} {
		r := record.Record{Headers: []record.Header{{Key: []byte("A")}, {Key: []byte(name), Value: []byte("1")}}}
		refusal, refused := CheckHeaders(&r)
		if refused != (want != 0) || refusal.ErrCode != want {
			t.Errorf("%s: refused %v with %d, want %d", name, refused, refusal.ErrCode, want)
		}
		if refused && (refusal.Err.Code != errcode.NotSupported || refusal.Err.Hint == "" || refusal.HTTP != 400) {
			t.Errorf("%s is refused with %+v", name, refusal)
		}
	}
}
