package format

import (
	"strings"
	"testing"
	"time"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
)

func TestFormat(t *testing.T) {
	full := &trunkline.Record{Topic: "orders", Partition: 2, Offset: 17, Timestamp: time.UnixMilli(1234).In(time.FixedZone("", 3600)), Key: []byte("k\xff"),
		Value: []byte("v\n\x00"), Headers: []trunkline.Header{{Name: "a", Value: []byte("1")}, {Name: "a", Value: []byte("2")}}}
	bare := &trunkline.Record{Topic: "t"}
	for _, c := range []struct {
		pattern string
		record  *trunkline.Record
		want    string
	}{
		{"", full, ""},
		{`%t/%p@%o %k=%v\n`, full, "orders/2@17 k\xff=v\n\x00\n"},
		{`%s|%h|%d|%T|%S|%K`, full, "v\n\x00|a=1,a=2|1970-01-01T00:00:01.234Z|1234|3|2"},
		{`%v%k%h%S%K`, bare, "-1-1"},
		{`100%% \t\r\0\\\x7e\xFF`, full, "100% \t\r\x00\\~\xff"},
	} {
		f, err := Parse(c.pattern)
		if err != nil {
			t.Errorf("%q: %v", c.pattern, err)
		} else if got := string(f.Append([]byte("> "), c.record)); got != "> "+c.want {
			t.Errorf("%q gives %q, want %q", c.pattern, got, c.want)
		}
	}
}

func TestFormatsThatCannotBeRead(t *testing.T) {
	for pattern, want := range map[string]string{
		"%": "ends in %", "a%": "ends in %", "%z": "verb %z", "%1": "verb %1", `\`: `has "\\"`, `\q`: `there are \n`, `\x`: "has", `\x1`: "has", `\xg0`: "has",
	} {
		if f, err := Parse(pattern); f != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", pattern, err, want)
		}
	}
}
