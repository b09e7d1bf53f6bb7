package address

import (
	"errors"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

func TestValidTopic(t *testing.T) {
	for _, name := range []string{"a", "orders", "orders.eu", "A-b_C.9", "_x", "-", "a.b.c.d", "_INBOX", "_INBOXES.a", strings.Repeat("x", TopicBytesMax)} {
		if err := ValidTopic(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for name, why := range map[string]string{
		"": "empty", strings.Repeat("x", TopicBytesMax+1): "250 bytes", strings.Repeat("x", 300): "300 bytes", ".": "empty token", "..": "empty token",
		".a": "empty token", "a.": "empty token", "a..b": "empty token", "__x": "begins with __", "__": "begins with __", "a/b": "not allowed", "../../etc": "empty token",
		"a b": "not allowed", "a\x00": "not allowed", "a*": "not allowed", "a.>": "not allowed", "é": "not allowed", "a\n": "not allowed", "a#k": "not allowed",
		"a@1": "not allowed", "$SRV": "not allowed", "_INBOX.x": "_INBOX",
	} {
		var e *errcode.Error
		if err := ValidTopic(name); !errors.As(err, &e) || e.Code != errcode.BadName || !strings.Contains(e.What, why) || e.Hint == "" {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestFoldMakesCollidingNamesEqual(t *testing.T) {
	if Fold("a.b_c") != Fold("a_b.c") || Fold("a.b") == Fold("a-b") {
		t.Error("folded otherwise")
	}
}

func TestIsLive(t *testing.T) {
	patterns := []string{"live.>", "metrics.*.cpu", "exact"}
	for subject, want := range map[string]bool{
		"orders": false, "orders.live": false, "live": false, "live.a": true, "live.a.b": true, "metrics.x.cpu": true, "metrics.x.y.cpu": false, "metrics.x": false,
		"exact": true, "exact.a": false, "_INBOX.a": true, "_INBOX.a.b": true, "$SRV.PING": true, "$JS.API": true, "a b": true, "__x": true, strings.Repeat("x", 250): true, "": true, "a..b": true,
	} {
		if got := IsLive([]byte(subject), patterns); got != want {
			t.Errorf("%q: %v", subject, got)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		pattern, subject string
		want             bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a", "a.b", false}, {"a.b", "a", false}, {"*", "a", true}, {"*", "a.b", false}, {"*.b", "a.b", true}, {"a.*", "a.b", true},
		{"a.*", "a", false}, {"a.*.c", "a.b.c", true}, {">", "a", true}, {">", "a.b.c", true}, {"a.>", "a", false}, {"a.>", "a.b", true}, {"a.>", "a.b.c", true}, {"a.>", "b.c", false},
		{"*.>", "a.b", true}, {"*.>", "a", false}, {"a*", "a*", true}, {"a*", "ab", false}, {"a>", "a>", true}, {"", "", false}, {">", "", false}, {"*", "", false}, {"a.>", "a.", false},
		{"a.>", "a..b", false}, {">.a", "x.a", false}, {"a.b", "a.b.", false}, {"a.", "a.", false}, {"orders.**", "orders.eu", false},
	} {
		if got := Match(test.pattern, []byte(test.subject)); got != test.want {
			t.Errorf("%q on %q: %v", test.pattern, test.subject, got)
		}
	}
}

func TestSubjects(t *testing.T) {
	for subject, want := range map[string][2]bool{ // valid, has a wildcard
		"a": {true, false}, "a.b": {true, false}, "*": {true, true}, ">": {true, true}, "a.*": {true, true}, "a.*.b": {true, true}, "a.>": {true, true}, "a*": {true, false},
		"a.b>": {true, false}, ">.a": {false, false}, "a.>.b": {false, false}, "": {false, false}, ".": {false, false}, "a.": {false, false}, ".a": {false, false}, "a..b": {false, false},
		"a b": {false, false}, "a\tb": {false, false}, "a\x00": {false, false}, "**": {true, false}, "ü.$x/y": {true, false}, "a.*.": {false, true},
	} {
		if valid, wild := ValidSubject(subject), HasWildcard(subject); valid != want[0] || wild != want[1] {
			t.Errorf("%q: valid %v, wildcard %v", subject, valid, wild)
		}
	}
}

func FuzzSubjects(f *testing.F) {
	f.Add("a.*.>", "a.b.c")
	f.Add("live.>", "live.")
	f.Fuzz(func(t *testing.T, pattern, subject string) {
		matched := Match(pattern, subject)
		if matched && (!ValidSubject(pattern) && ValidSubject(subject) || !strings.Contains(pattern, "*") && !strings.Contains(pattern, ">") && pattern != subject) {
			t.Fatalf("%q matches %q", pattern, subject)
		}
		if ValidSubject(subject) && !HasWildcard(subject) && (!Match(subject, subject) || !Match(">", subject)) {
			t.Fatalf("%q does not match itself", subject)
		}
		if (ValidTopic(subject) == nil) != (findFlaw([]byte(subject)) == noFlaw) || ValidTopic(subject) == nil && !ValidSubject(subject) {
			t.Fatalf("%q is a topic and no subject", subject)
		}
	})
}
