package address

import (
	"fmt"
	"strings"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
)

// TopicBytesMax bounds a topic's name: with the partition behind it, it is the name of a directory.
const TopicBytesMax = 249

// What is live whatever the settings say: NATS libraries' reply subjects and their service discovery.
const (
	inboxPattern   = "_INBOX.>"
	servicePattern = "$SRV.>"
)

// flaw says what keeps a name from being a topic's.
type flaw uint8

const (
	noFlaw flaw = iota
	flawEmpty
	flawLong
	flawToken
	flawByte
	flawOurs
	flawInbox
)

const nameHint = "use tokens of A-Z a-z 0-9 _ - joined by single dots, at most 249 bytes, such as orders.eu"

// ValidTopic returns nil for a legal topic name, else a BAD_NAME that says why it is none.
func ValidTopic(name string) error {
	var what string
	switch findFlaw(name) {
	case noFlaw:
		return nil
	case flawEmpty:
		what = "a topic's name is empty"
	case flawLong:
		what = fmt.Sprintf("topic name %q… has %d bytes", clip(name), len(name))
	case flawToken:
		what = fmt.Sprintf("topic name %q has an empty token", clip(name))
	case flawByte:
		what = fmt.Sprintf("topic name %q has a character that is not allowed", clip(name))
	case flawOurs:
		return errcode.New(errcode.BadName, fmt.Sprintf("topic name %q begins with __", clip(name)),
			"choose another name: these are the server's own")
	case flawInbox:
		return errcode.New(errcode.BadName, fmt.Sprintf("topic name %q begins with _INBOX.", clip(name)),
			"choose another name: these are for replies and never stored")
	}
	return errcode.New(errcode.BadName, what, nameHint)
}

func findFlaw[T string | []byte](name T) flaw {
	switch {
	case len(name) == 0:
		return flawEmpty
	case len(name) > TopicBytesMax:
		return flawLong
	}
	token := 0
	for i := range len(name) {
		c := name[i]
		switch {
		case c == '.' && token == 0:
			return flawToken
		case c == '.':
			token = 0
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
			token++
		default:
			return flawByte
		}
	}
	switch {
	case token == 0:
		return flawToken
	case len(name) >= 2 && name[0] == '_' && name[1] == '_':
		return flawOurs
	case Match(inboxPattern, name):
		return flawInbox
	}
	return noFlaw
}

// Fold maps names that must not stand beside each other onto one: "." becomes "_", as in Kafka, whose metrics cannot
// tell them apart.
func Fold(name string) string { return strings.ReplaceAll(name, ".", "_") }

// IsLive reports whether a subject is never a topic: replies and service discovery, what one of patterns matches, and
// any name that is no legal topic name.
func IsLive(subject []byte, patterns []string) bool {
	if findFlaw(subject) != noFlaw || Match(servicePattern, subject) {
		return true
	}
	for _, p := range patterns {
		if Match(p, subject) {
			return true
		}
	}
	return false
}

// HasWildcard reports whether a subject is a pattern: a token is *, or the last one is >.
func HasWildcard[T string | []byte](subject T) bool {
	for start := 0; start <= len(subject); {
		end := tokenEnd(subject, start)
		if end == start+1 && (subject[start] == '*' || subject[start] == '>' && end == len(subject)) {
			return true
		}
		start = end + 1
	}
	return false
}

// ValidSubject reports whether NATS takes the subject in a SUB: no blank or control byte, no empty token, and > only as
// the last token. * and > inside a longer token are ordinary.
func ValidSubject[T string | []byte](subject T) bool {
	for i := range len(subject) {
		if c := subject[i]; c <= ' ' || c == 0x7f {
			return false
		}
	}
	for start := 0; start <= len(subject); {
		end := tokenEnd(subject, start)
		if end == start || end == start+1 && subject[start] == '>' && end != len(subject) {
			return false
		}
		start = end + 1
	}
	return true
}

// Match reports whether a subject without wildcards matches a pattern: * stands for one token, > at the end for one or
// more.
func Match[P, S string | []byte](pattern P, subject S) bool {
	p, s := 0, 0
	for {
		if p > len(pattern) || s > len(subject) {
			return p > len(pattern) && s > len(subject)
		}
		pEnd, sEnd := tokenEnd(pattern, p), tokenEnd(subject, s)
		if sEnd == s {
			return false
		}
		single := pEnd == p+1
		switch {
		case single && pattern[p] == '>' && pEnd == len(pattern):
			return ValidSubject(subject[s:])
		case single && pattern[p] == '*':
		case string(pattern[p:pEnd]) != string(subject[s:sEnd]):
			return false
		}
		p, s = pEnd+1, sEnd+1
	}
}

func tokenEnd[T string | []byte](s T, start int) int {
	for start < len(s) && s[start] != '.' {
		start++
	}
	return start
}
