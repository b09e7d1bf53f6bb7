package address

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

// outcome says how reading a number with a unit went.
type outcome uint8

const (
	fine outcome = iota
	notANumber
	noUnit
	unknownUnit
	overflow
)

func (o outcome) String() string {
	switch o {
	case notANumber:
		return "does not begin with a number"
	case noUnit:
		return "has no unit"
	case unknownUnit:
		return "has a unit that is not known"
	case overflow:
		return "is too large"
	}
	return "can be read"
}

// ParseBytes reads a size: a whole number with one of the units B, KiB, MiB, GiB, TiB; 0 needs none. The error is an
// *errcode.Error.
func ParseBytes(s string) (int64, error) {
	n, f := parseBytes(s)
	if f != fine {
		return 0, errcode.New(errcode.BadSetting, fmt.Sprintf("size %q %s", clip(s), f),
			"write a whole number with B, KiB, MiB, GiB or TiB, such as 64KiB")
	}
	return n, nil
}

func parseBytes(s string) (int64, outcome) {
	n, unit, f := cutNumber(s)
	if f != fine {
		return 0, f
	}
	if len(unit) == 0 && n == 0 {
		return 0, fine
	}
	var shift int
	switch unit {
	case "":
		return 0, noUnit
	case "B":
	case "KiB":
		shift = 10
	case "MiB":
		shift = 20
	case "GiB":
		shift = 30
	case "TiB":
		shift = 40
	default:
		return 0, unknownUnit
	}
	if n > math.MaxInt64>>shift {
		return 0, overflow
	}
	return n << shift, fine
}

// ParseDuration reads a time span: whole numbers with the units d, h, m, s, ms, us or ns, one after the other: "7d",
// "1h30m"; 0 needs none. The error is an *errcode.Error.
func ParseDuration(s string) (time.Duration, error) {
	d, f := parseDuration(s)
	if f != fine {
		return 0, errcode.New(errcode.BadSetting, fmt.Sprintf("time %q %s", clip(s), f),
			"write whole numbers with d, h, m, s or ms, such as 7d or 1h30m")
	}
	return d, nil
}

// LacksTimeUnit reports whether s would be a time span if it had a unit: "7", but not "0", which needs none.
func LacksTimeUnit(s string) bool {
	_, f := parseDuration(s)
	return f == noUnit && strings.Trim(s, "0123456789") == ""
}

func parseDuration[T string | []byte](s T) (time.Duration, outcome) {
	if len(s) == 1 && s[0] == '0' {
		return 0, fine
	}
	var sum time.Duration
	for first := true; first || len(s) > 0; first = false {
		n, rest, f := cutNumber(s)
		if f != fine {
			return 0, f
		}
		end := 0
		for end < len(rest) && (rest[end] < '0' || rest[end] > '9') {
			end++
		}
		unit, f := durationUnit(string(rest[:end]))
		if f != fine {
			return 0, f
		}
		if n > (math.MaxInt64-int64(sum))/int64(unit) {
			return 0, overflow
		}
		sum += time.Duration(n) * unit
		s = rest[end:]
	}
	return sum, fine
}

func durationUnit(name string) (time.Duration, outcome) {
	switch name {
	case "":
		return 0, noUnit
	case "d":
		return 24 * time.Hour, fine
	case "h":
		return time.Hour, fine
	case "m":
		return time.Minute, fine
	case "s":
		return time.Second, fine
	case "ms":
		return time.Millisecond, fine
	case "us":
		return time.Microsecond, fine
	case "ns":
		return time.Nanosecond, fine
	}
	return 0, unknownUnit
}

// cutNumber takes the digits off the front of s.
func cutNumber[T string | []byte](s T) (n int64, rest T, f outcome) {
	end := 0
	for end < len(s) && '0' <= s[end] && s[end] <= '9' {
		end++
	}
	if end == 0 {
		return 0, s, notANumber
	}
	n, ok := parseDecimal(s[:end])
	if !ok {
		return 0, s, overflow
	}
	return n, s[end:], fine
}

// FormatBytes writes a size, which is not negative, in the largest unit that divides it; ParseBytes reads it back.
func FormatBytes(n int64) string {
	units := [...]string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for n != 0 && n%1024 == 0 && i < len(units)-1 {
		n /= 1024
		i++
	}
	return strconv.FormatInt(n, 10) + units[i]
}

// FormatDuration writes a time span, which is not negative, in the largest unit that divides it; ParseDuration reads it
// back.
func FormatDuration(d time.Duration) string {
	for _, name := range [...]string{"d", "h", "m", "s", "ms", "us"} {
		if unit, _ := durationUnit(name); d != 0 && d%unit == 0 {
			return strconv.FormatInt(int64(d/unit), 10) + name
		}
	}
	return strconv.FormatInt(int64(d), 10) + "ns"
}
