// Package errcode is the one table of what can go wrong on the wire: every code a client can meet, what it means
// for the request it answers, and how it maps onto JetStream's numbers. Codes are appended, never renamed.
//
// An Error travels inside the server as a Go error and leaves it as "-ERR CODE 'what happened; what to do'".
package errcode

import (
	"errors"
	"strings"
)

// Code is a stable word of the line protocol, such as "BAD_ARGS".
type Code string

// The codes of protocol version 1, in the order in which they were added.
const (
	BadVerb                Code = "BAD_VERB"
	BadArgs                Code = "BAD_ARGS"
	BadSize                Code = "BAD_SIZE"
	LineTooLong            Code = "LINE_TOO_LONG"
	BadJSON                Code = "BAD_JSON"
	BadAddress             Code = "BAD_ADDRESS"
	BadName                Code = "BAD_NAME"
	NameCollision          Code = "NAME_COLLISION"
	BadHeaders             Code = "BAD_HEADERS"
	BadBatch               Code = "BAD_BATCH"
	BadSetting             Code = "BAD_SETTING"
	UnknownTopic           Code = "UNKNOWN_TOPIC"
	TopicExists            Code = "TOPIC_EXISTS"
	TopicDeleted           Code = "TOPIC_DELETED"
	UnknownPartition       Code = "UNKNOWN_PARTITION"
	NotSupported           Code = "NOT_SUPPORTED"
	TooLarge               Code = "TOO_LARGE"
	OffsetOutOfRange       Code = "OFFSET_OUT_OF_RANGE"
	Corrupt                Code = "CORRUPT"
	StorageFull            Code = "STORAGE_FULL"
	StorageUnavailable     Code = "STORAGE_UNAVAILABLE"
	StorageUnknown         Code = "STORAGE_UNKNOWN"
	Timeout                Code = "TIMEOUT"
	PartitionerUnavailable Code = "PARTITIONER_UNAVAILABLE"
	PlanStale              Code = "PLAN_STALE"
	MetadataUnavailable    Code = "METADATA_UNAVAILABLE"
	LimitExceeded          Code = "LIMIT_EXCEEDED"
	SlowConsumer           Code = "SLOW_CONSUMER"
	ShuttingDown           Code = "SHUTTING_DOWN"
	UnknownPlugin          Code = "UNKNOWN_PLUGIN"
	PluginNotReplaced      Code = "PLUGIN_NOT_REPLACED"
)

// Outcome says what a failed publish left behind.
type Outcome uint8

const (
	// Definite: the record was certainly not written and never appears.
	Definite Outcome = iota
	// Unknown: the record may appear; only reading the log tells.
	Unknown
)

// Info is a row of the table.
type Info struct {
	Code      Code
	Text      string // what the code means, one phrase
	Retriable bool   // the same request may succeed later without being changed
	Outcome   Outcome
	Closes    bool // the server closes the connection after it: the stream is no longer in step
	HTTP      int  // JetStream's "code" in a publish ack
	JetStream int  // JetStream's "err_code"; 10077 (stream store failed) where it has none of its own
}

// Table lists every code, in the order of the constants.
var Table = []Info{
	{Code: BadVerb, Text: "the verb is not known", HTTP: 400, JetStream: 10003},
	{Code: BadArgs, Text: "the verb's arguments are wrong", HTTP: 400, JetStream: 10003},
	{Code: BadSize, Text: "a payload size is wrong, too large, or not followed by a line end", Closes: true, HTTP: 400, JetStream: 10003},
	{Code: LineTooLong, Text: "a control line exceeds the limit", Closes: true, HTTP: 400, JetStream: 10003},
	{Code: BadJSON, Text: "a JSON argument cannot be read", HTTP: 400, JetStream: 10025},
	{Code: BadAddress, Text: "an address cannot be read or does not fit the verb", HTTP: 400, JetStream: 10003},
	{Code: BadName, Text: "a name is not legal", HTTP: 400, JetStream: 10003},
	{Code: NameCollision, Text: "a topic exists whose name differs only in . against _", HTTP: 400, JetStream: 10058},
	{Code: BadHeaders, Text: "a header block cannot be read", HTTP: 400, JetStream: 10003},
	{Code: BadBatch, Text: "a record batch cannot be read", HTTP: 400, JetStream: 10003},
	{Code: BadSetting, Text: "a setting is unknown, not built yet, or out of range", HTTP: 400, JetStream: 10003},
	{Code: UnknownTopic, Text: "the topic does not exist", HTTP: 404, JetStream: 10059},
	{Code: TopicExists, Text: "a topic of this name exists", HTTP: 400, JetStream: 10058},
	{Code: TopicDeleted, Text: "the topic was deleted meanwhile", HTTP: 404, JetStream: 10059},
	{Code: UnknownPartition, Text: "the topic has no such partition", HTTP: 404, JetStream: 10059},
	{Code: NotSupported, Text: "this server does not offer that", HTTP: 501, JetStream: 10003},
	{Code: TooLarge, Text: "the record exceeds the topic's message.bytes", HTTP: 400, JetStream: 10054},
	{Code: OffsetOutOfRange, Text: "the offset is not in the log", HTTP: 404, JetStream: 10037},
	{Code: Corrupt, Text: "stored bytes fail their check", HTTP: 500, JetStream: 10077},
	{Code: StorageFull, Text: "the disk is full", Retriable: true, HTTP: 503, JetStream: 10023},
	{Code: StorageUnavailable, Text: "the partition cannot take records now", Retriable: true, HTTP: 503, JetStream: 10077},
	{Code: StorageUnknown, Text: "writing failed in a way that leaves the outcome open", Retriable: true, Outcome: Unknown, HTTP: 503, JetStream: 10077},
	{Code: Timeout, Text: "no outcome within the deadline", Retriable: true, Outcome: Unknown, HTTP: 503, JetStream: 10077},
	{Code: PartitionerUnavailable, Text: "the topic's partitioner does not answer", Retriable: true, HTTP: 503, JetStream: 10008},
	{Code: PlanStale, Text: "the partition plan has changed", Retriable: true, HTTP: 409, JetStream: 10008},
	{Code: MetadataUnavailable, Text: "the metadata store does not answer", Retriable: true, HTTP: 503, JetStream: 10008},
	{Code: LimitExceeded, Text: "a limit of the server is reached", Retriable: true, HTTP: 429, JetStream: 10023},
	{Code: SlowConsumer, Text: "the peer does not take what it asked for", Retriable: true, Closes: true, HTTP: 503, JetStream: 10008},
	{Code: ShuttingDown, Text: "the server is going down", Retriable: true, HTTP: 503, JetStream: 10008},
	{Code: UnknownPlugin, Text: "there is no such plugin", HTTP: 404, JetStream: 10003},
	{Code: PluginNotReplaced, Text: "a plugin's new process did not become ready", HTTP: 500, JetStream: 10003},
}

// Lookup returns the row of c, and false for a code this version does not know.
func Lookup(c Code) (Info, bool) {
	for _, row := range Table {
		if row.Code == c {
			return row, true
		}
	}
	return Info{}, false
}

// Closes reports whether the server closes the connection after sending c.
func (c Code) Closes() bool { row, _ := Lookup(c); return row.Closes }

// Retriable reports whether the same request may succeed later.
func (c Code) Retriable() bool { row, _ := Lookup(c); return row.Retriable }

// Outcome reports whether a publish that failed with c is certainly not written.
func (c Code) Outcome() Outcome { row, _ := Lookup(c); return row.Outcome }

// Error is a failure that has a code. Two Errors match under errors.Is when their codes are equal.
type Error struct {
	Code Code
	What string // what happened: "payload of 12 bytes is not followed by a line end"
	Hint string // what to do: "send exactly the announced number of bytes"
	Err  error  // the cause, for logs; not sent to clients
}

// New returns an Error that says what happened and what to do about it.
func New(c Code, what, hint string) *Error { return &Error{Code: c, What: what, Hint: hint} }

// Wrap is New with a cause that stays on this side of the wire.
func Wrap(c Code, err error, what, hint string) *Error {
	return &Error{Code: c, What: what, Hint: hint, Err: err}
}

// Text is what stands between the quotes on the wire: "what happened; what to do", on one line, without a quote. Where it
// would be too long, what happened is cut short, and what to do stays.
func (e *Error) Text() string {
	what, hint := e.What, ""
	if e.Hint != "" {
		hint = "; " + e.Hint
	}
	if room := max(textBytesMax-len(hint), textBytesMax/4); len(what) > room {
		what = what[:room] + "…"
	}
	return clean(what + hint)
}

func (e *Error) Error() string {
	s := string(e.Code) + ": " + e.Text()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Is matches any *Error of the same code.
func (e *Error) Is(target error) bool {
	var t *Error
	return errors.As(target, &t) && t.Code == e.Code && t.What == "" && t.Err == nil
}

// Of is the target for errors.Is(err, errcode.Of(errcode.Timeout)).
func Of(c Code) error { return &Error{Code: c} }

// From returns err's code and the Error that carries it; an error without one becomes fallback.
func From(err error, fallback Code) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: fallback, What: err.Error(), Err: err}
}

// textBytesMax bounds what is echoed to a peer: a hostile name must not become a long answer.
const textBytesMax = 400

// Clean makes s safe between single quotes on one line: control bytes become ?, quotes become ’, and
// the length is bounded.
func Clean(s string) string {
	if len(s) > textBytesMax {
		s = s[:textBytesMax] + "…"
	}
	return clean(s)
}

func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\'':
			return '’'
		case r < ' ' || r == 0x7f || r == 0xfffd:
			return '?'
		}
		return r
	}, s)
}
