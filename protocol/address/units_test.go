package address

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

func TestParseBytes(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "0B": 0, "1B": 1, "64KiB": 65536, "1MiB": 1 << 20, "1GiB": 1 << 30, "3TiB": 3 << 40, "9223372036854775807B": math.MaxInt64, "8388607TiB": 8388607 << 40} {
		if got, err := ParseBytes(s); got != want || err != nil {
			t.Errorf("%q reads as %d, %v", s, got, err)
		}
	}
	for s, why := range map[string]string{"": "number", "B": "number", "-1": "number", " 1B": "number", "1": "no unit", "4096": "no unit", "1 KiB": "not known", "1K": "not known", "1KB": "not known",
		"1kib": "not known", "1.5GiB": "not known", "8388608TiB": "too large", "9223372036854775808B": "too large", "1KiBx": "not known", "1KiB1B": "not known"} {
		if got, err := ParseBytes(s); !errors.Is(err, errcode.Of(errcode.BadSetting)) || !strings.Contains(err.Error(), why) {
			t.Errorf("%q reads as %d, %v", s, got, err)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{"0": 0, "0s": 0, "500ms": 500 * time.Millisecond, "10s": 10 * time.Second, "30m": 30 * time.Minute, "1h": time.Hour, "7d": 7 * 24 * time.Hour,
		"1h30m": 90 * time.Minute, "1d1ns": 24*time.Hour + 1, "3us": 3 * time.Microsecond, "9223372036854775807ns": math.MaxInt64, "106751d": 106751 * 24 * time.Hour} {
		if got, err := ParseDuration(s); got != want || err != nil {
			t.Errorf("%q reads as %v, %v", s, got, err)
		}
	}
	for s, why := range map[string]string{"": "number", "h": "number", "-1h": "number", "10": "no unit", "00": "no unit", "1h30": "no unit", "1w": "not known", "1 h": "not known", "1H": "not known", "1.5h": "not known",
		"106752d": "too large", "106751d24h": "too large", "9223372036854775808ns": "too large", "1hm": "not known"} {
		if got, err := ParseDuration(s); !errors.Is(err, errcode.Of(errcode.BadSetting)) || !strings.Contains(err.Error(), why) {
			t.Errorf("%q reads as %v, %v", s, got, err)
		}
	}
}

func TestATimeThatLacksItsUnitIsTold(t *testing.T) {
	for s, want := range map[string]bool{"7": true, "00": true, "9223372036854775807": true, "0": false, "7d": false, "": false, "-1": false, "1h30": false, "x": false, "99999999999999999999": false} {
		if got := LacksTimeUnit(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestFormatsReadBack(t *testing.T) {
	for want, n := range map[string]int64{"0B": 0, "1B": 1, "1023B": 1023, "64KiB": 65536, "1025B": 1025, "1MiB": 1 << 20, "1024TiB": 1 << 50, "9223372036854775807B": math.MaxInt64} {
		back, err := ParseBytes(FormatBytes(n))
		if FormatBytes(n) != want || back != n || err != nil {
			t.Errorf("%d is written %q and reads as %d, %v", n, FormatBytes(n), back, err)
		}
	}
	for want, d := range map[string]time.Duration{"0ns": 0, "7d": 7 * 24 * time.Hour, "90m": 90 * time.Minute, "1500ms": 1500 * time.Millisecond, "1ns": 1, "2us": 2000} {
		back, err := ParseDuration(FormatDuration(d))
		if FormatDuration(d) != want || back != d || err != nil {
			t.Errorf("%v is written %q and reads as %v, %v", d, FormatDuration(d), back, err)
		}
	}
}

func FuzzUnits(f *testing.F) {
	f.Add("64KiB")
	f.Add("1h30m")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseBytes(s); err == nil {
			if back, err := ParseBytes(FormatBytes(n)); n < 0 || back != n || err != nil {
				t.Fatalf("%q: %d, %d, %v", s, n, back, err)
			}
		}
		if d, err := ParseDuration(s); err == nil {
			if back, err := ParseDuration(FormatDuration(d)); d < 0 || back != d || err != nil {
				t.Fatalf("%q: %d, %d, %v", s, d, back, err)
			}
		}
	})
}
