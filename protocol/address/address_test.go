package address

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

func TestParse(t *testing.T) {
	at := func(p Position) Address {
		return Address{Topic: []byte("orders"), Partition: partition.None, Position: p}
	}
	tests := map[string]Address{
		"orders":                               at(Position{}),
		"orders.eu-1_x":                        {Topic: []byte("orders.eu-1_x"), Partition: partition.None},
		"orders#k42":                           {Topic: []byte("orders"), Key: []byte("k42"), HasKey: true, Partition: partition.None},
		"orders#a/2@5#b":                       {Topic: []byte("orders"), Key: []byte("a/2@5#b"), HasKey: true, Partition: partition.None},
		"orders/0":                             {Topic: []byte("orders")},
		"orders/2@17":                          {Topic: []byte("orders"), Partition: 2, Position: Position{Kind: Offset, N: 17}},
		"orders/2147483647":                    {Topic: []byte("orders"), Partition: math.MaxInt32},
		"orders@0":                             at(Position{Kind: Offset}),
		"orders@9223372036854775807":           at(Position{Kind: Offset, N: math.MaxInt64}),
		"orders@earliest":                      at(Position{Kind: Earliest}),
		"orders@latest":                        at(Position{Kind: Latest}),
		"orders@-10":                           at(Position{Kind: LastN, N: 10}),
		"orders@1h":                            at(Position{Kind: Ago, Ago: time.Hour}),
		"orders@30m":                           at(Position{Kind: Ago, Ago: 30 * time.Minute}),
		"orders@7d":                            at(Position{Kind: Ago, Ago: 7 * 24 * time.Hour}),
		"orders@500ms":                         at(Position{Kind: Ago, Ago: 500 * time.Millisecond}),
		"orders@1d12h":                         at(Position{Kind: Ago, Ago: 36 * time.Hour}),
		"orders@2026-11-22T08:00:00Z":          at(Position{Kind: Time, N: 1795334400000}),
		"orders@2026-11-22T09:00:00.250+01:00": at(Position{Kind: Time, N: 1795334400250}),
		"orders.*@latest":                      {Topic: []byte("orders.*"), Partition: partition.None, Position: Position{Kind: Latest}},
		"_INBOX.abc.1":                         {Topic: []byte("_INBOX.abc.1"), Partition: partition.None},
	}
	for field, want := range tests {
		t.Run(field, func(t *testing.T) {
			got, err := Parse([]byte(field))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			again, err := Parse([]byte(got.String()))
			if diff := cmp.Diff(want, again); diff != "" || err != nil {
				t.Errorf("%q reads as another address: %v\n%s", got.String(), err, diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for name, field := range map[string]string{
		"nothing": "", "no topic before a key": "#k", "no topic before a partition": "/1", "no topic before a position": "@1",
		"empty key": "orders#", "empty partition": "orders/", "partition no number": "orders/x", "partition negative": "orders/-1",
		"partition too large": "orders/2147483648", "partition far too large": "orders/99999999999999999999999", "a path": "../../etc",
		"two names": "a/b", "two partitions": "orders/1/2", "empty position": "orders@", "two positions": "orders@1@2", "position before partition": "orders@1/2",
		"key and partition": "orders/1#k", "key and position": "orders@1#k", "position no number": "orders@first", "offset too large": "orders@9223372036854775808",
		"last none": "orders@-0", "last no number": "orders@-x", "minus alone": "orders@-", "last too large": "orders@-9223372036854775808", "signed": "orders@+1",
		"time without zone": "orders@2026-11-22T08:00:00", "no such time": "orders@2026-13-22T08:00:00Z", "date only": "orders@2026-11-22", "capital": "orders@Earliest",
		"no such unit": "orders@1y", "no unit": "orders@1h30", "time too long": "orders@106752d", "fraction": "orders@1.5h",
		"hostile": "orders@'\r\n\x00\xff", "long": "orders@" + strings.Repeat("x", 5000), "hexadecimal": "orders@0x10",
	} {
		t.Run(name, func(t *testing.T) {
			a, err := Parse([]byte(field))
			var e *errcode.Error
			if !errors.As(err, &e) || e.Code != errcode.BadAddress || e.What == "" || e.Hint == "" {
				t.Fatalf("reads as %+v, %v", a, err)
			}
			if len(e.Text()) > 450 || strings.ContainsAny(e.Text(), "'\r\n\x00") {
				t.Errorf("unfit for the wire: %q", e.Text())
			}
		})
	}
}

func TestParseLiteralTakesTheWholeField(t *testing.T) {
	got := ParseLiteral([]byte("orders/2@17#k"))
	if string(got.Topic) != "orders/2@17#k" || got.HasKey || got.Partition != partition.None || got.Position.Kind != None {
		t.Errorf("got %+v", got)
	}
}

func TestUseOfAnAddress(t *testing.T) {
	for field, want := range map[string][2]bool{ // fit for publish, for read
		"orders": {true, true}, "orders/1": {true, true}, "orders#k": {true, false}, "orders@1": {false, true}, "orders/1@latest": {false, true},
	} {
		a, err := Parse([]byte(field))
		if err != nil {
			t.Fatal(err)
		}
		for i, err := range []error{a.ForPublish(), a.ForRead()} {
			if (err == nil) != want[i] || err != nil && !errors.Is(err, errcode.Of(errcode.BadAddress)) {
				t.Errorf("%s, use %d: %v", field, i, err)
			}
		}
	}
}

func TestAppendAddress(t *testing.T) {
	if got := string(AppendAddress([]byte("+OK "), "orders", 2, 17)); got != "+OK orders/2@17" {
		t.Errorf("got %q", got)
	}
}

func TestGoodPathDoesNotAllocate(t *testing.T) {
	buf := make([]byte, 0, 64)
	patterns := []string{"live.>", "metrics.*.cpu"}
	fields := [][]byte{[]byte("orders.eu"), []byte("orders#k"), []byte("orders/2@17"), []byte("orders@2026-11-22T08:00:00Z"), []byte("orders@1h30m")}
	n := testing.AllocsPerRun(100, func() {
		for _, f := range fields {
			a, err := Parse(f)
			if err != nil || (!a.HasKey && a.ForRead() != nil) || IsLive(a.Topic, patterns) || HasWildcard(a.Topic) || !ValidSubject(a.Topic) {
				t.Fatal(err)
			}
		}
		buf = AppendAddress(buf[:0], "orders", 2, 17)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"orders", "a#k", "a/1@5", "a@-3", "a@1h", "a@2026-11-22T08:00:00Z", "../../etc", "a@earliest"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, field []byte) {
		a, err := Parse(field)
		if err != nil {
			if !errors.Is(err, errcode.Of(errcode.BadAddress)) {
				t.Fatalf("%q: %v", field, err)
			}
			return
		}
		if a.Position.Kind == Time && (a.Position.N < -62167219200000 || a.Position.N > 253402300799999) {
			t.Skip("a zone moved the year out of what RFC 3339 can write in UTC")
		}
		again, err := Parse([]byte(a.String()))
		if diff := cmp.Diff(a, again); diff != "" || err != nil {
			t.Fatalf("%q as %q: %v\n%s", field, a.String(), err, diff)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	field := []byte("orders.eu.west")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(field); err != nil {
			b.Fatal(err)
		}
	}
}

func TestOffsetsThatAreTimesAreToldHowThoseAreWritten(t *testing.T) {
	const ranges = "t/0 holds offsets 3 to 7, not "
	const hint = "; read from one of these, or from @earliest or @latest"
	for field, want := range map[string]string{
		"t@8":                   hint,
		"t@2":                   hint,
		"t@1764000000":          hint + " (if you mean a time, write it as @2025-11-24T16:00:00.000Z)",
		"t@1764000000123":       hint + " (if you mean a time, write it as @2025-11-24T16:00:00.123Z)",
		"t@1764000000123456":    hint + " (if you mean a time, write it as @2025-11-24T16:00:00.123Z)",
		"t@1764000000123456789": hint + " (if you mean a time, write it as @2025-11-24T16:00:00.123Z)",
		"t@978307199":           hint, // the last second before the first of these years
		"t@978307200":           hint + " (if you mean a time, write it as @2001-01-01T00:00:00.000Z)",
		"t@4102444800":          hint,
		"t@9223372036854775807": hint,
	} {
		a, err := Parse([]byte(field))
		if err != nil {
			t.Fatal(err)
		}
		e := a.Position.OutOfRange("t/0", 3, 7)
		if got, want := e.Text(), ranges+field[2:]+want; got != want || e.Code != errcode.OffsetOutOfRange {
			t.Errorf("%s: %q, want %q", field, got, want)
		}
		at, ok := strings.CutSuffix(want, ")")
		if _, at, _ := strings.Cut(at, "as @"); ok {
			if again, err := Parse([]byte("t@" + at)); err != nil || again.Position.Kind != Time {
				t.Errorf("what is advised is no time: %v", err)
			}
		}
	}
	if got := (Position{Kind: Offset, N: 1764000000123}).OutOfRange("t/0", 1764000000124, 1764000000125).Hint; strings.Contains(got, "time") {
		t.Errorf("of an offset below the log's start: %q", got)
	}
}
