package host

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// What a plugin may write into our log: it is text from somebody else's program, and there may be a lot of it.
const (
	lineBytesMax  = 4 << 10 // of one line; the rest is dropped
	attrsMax      = 16      // of one line
	attrBytesMax  = 512     // of one attribute's value
	saidBytesMax  = 400     // of a line that goes into an error
	linesBurst    = 200     // lines at once
	linesASecond  = 50      // lines in the long run; what is above is counted and dropped
	truncatedMark = "…"
)

// lineLog turns a plugin's output into log lines: cleaned, bounded, and limited in rate.
type lineLog struct {
	log *slog.Logger
	now func() time.Time

	mu       sync.Mutex
	tokens   float64
	filled   time.Time
	dropped  int
	lastSaid string
	panicked bool // lastSaid is a panic's first line; the stack trace after it says less
}

func newLineLog(log *slog.Logger, now func() time.Time) *lineLog {
	return &lineLog{log: log, now: now, tokens: linesBurst, filled: now()}
}

// readAll logs r's lines until it ends.
func (l *lineLog) readAll(r io.Reader) {
	br := bufio.NewReaderSize(r, lineBytesMax)
	for {
		line, err := br.ReadSlice('\n')
		if len(line) > 0 {
			l.line(line)
		}
		for errors.Is(err, bufio.ErrBufferFull) { // the rest of a line that is too long
			_, err = br.ReadSlice('\n')
		}
		if err != nil {
			l.flush()
			return
		}
	}
}

// Write logs what a plugin printed through its replaced standard output or error. Lines are taken as they come: what
// is cut by the transport is logged in two pieces.
func (l *lineLog) Write(p []byte) (int, error) {
	for line := range bytes.SplitSeq(p, []byte("\n")) {
		if len(line) > 0 {
			l.line(line[:min(len(line), lineBytesMax)])
		}
	}
	return len(p), nil
}

func (l *lineLog) line(raw []byte) {
	raw = bytes.TrimRight(raw, "\r\n")
	if len(bytes.TrimSpace(raw)) == 0 {
		return
	}
	level, msg, attrs := parseLine(raw)
	l.mu.Lock()
	l.rememberLocked(raw, level, msg, attrs)
	if l.panicked && raw[0] != '{' { // the panic itself, or of its stack trace
		level = slog.LevelError
	}
	pass, dropped := l.takeLocked()
	l.mu.Unlock()
	if !pass {
		return
	}
	if dropped > 0 {
		l.log.Warn("plugin log lines dropped", "count", dropped)
	}
	l.log.LogAttrs(context.Background(), level, msg, attrs...)
}

// rememberLocked keeps what may explain the process's end: an error of the SDK's logger, or text that is not of it.
func (l *lineLog) rememberLocked(raw []byte, level slog.Level, msg string, attrs []slog.Attr) {
	if l.panicked || level < slog.LevelError && bytes.HasPrefix(raw, []byte("{")) {
		return
	}
	l.panicked = bytes.HasPrefix(raw, []byte("panic: ")) || bytes.HasPrefix(raw, []byte("fatal error: "))
	l.lastSaid = said(msg, attrs)
}

// takeLocked takes a token, and with it the count of lines dropped since the last one that passed.
func (l *lineLog) takeLocked() (pass bool, dropped int) {
	now := l.now()
	l.tokens = min(linesBurst, l.tokens+now.Sub(l.filled).Seconds()*linesASecond)
	l.filled = now
	if l.tokens < 1 {
		l.dropped++
		return false, 0
	}
	l.tokens--
	dropped, l.dropped = l.dropped, 0
	return true, dropped
}

func (l *lineLog) flush() {
	l.mu.Lock()
	dropped := l.dropped
	l.dropped = 0
	l.mu.Unlock()
	if dropped > 0 {
		l.log.Warn("plugin log lines dropped", "count", dropped)
	}
}

// said is the last line that reads like a complaint.
func (l *lineLog) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastSaid
}

func said(msg string, attrs []slog.Attr) string {
	for _, a := range attrs {
		if a.Key == "err" || a.Key == "error" {
			msg += ": " + a.Value.String()
		}
	}
	return clean(msg, saidBytesMax)
}

// parseLine understands slog's JSON lines and hclog's. Everything else is a line of text.
func parseLine(raw []byte) (slog.Level, string, []slog.Attr) {
	var fields map[string]json.RawMessage
	if raw[0] != '{' || json.Unmarshal(raw, &fields) != nil {
		return slog.LevelInfo, clean(string(raw), lineBytesMax), nil
	}
	level := slog.LevelInfo
	text := func(keys ...string) string {
		for _, k := range keys {
			if v, ok := fields[k]; ok {
				delete(fields, k)
				return plain(v)
			}
		}
		return ""
	}
	switch strings.ToUpper(text("level", "@level")) {
	case "TRACE", "DEBUG":
		level = slog.LevelDebug
	case "WARN":
		level = slog.LevelWarn
	case "ERROR":
		level = slog.LevelError
	}
	msg := clean(text("msg", "@message"), lineBytesMax)
	text("time", "@timestamp") // ours is written beside it
	keys := make([]string, 0, len(fields))
	for k := range fields {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	attrs := make([]slog.Attr, 0, min(len(keys), attrsMax))
	for _, k := range keys[:min(len(keys), attrsMax)] {
		attrs = append(attrs, slog.String(clean(k, 40), clean(plain(fields[k]), attrBytesMax)))
	}
	return level, msg, attrs
}

// plain is a JSON string's text, or the JSON itself.
func plain(v json.RawMessage) string {
	var s string
	if json.Unmarshal(v, &s) == nil {
		return s
	}
	return string(v)
}

// clean makes text from a plugin fit to be shown: no control characters, which could move a terminal's cursor or fake
// a line, no direction marks, valid UTF-8, at most bytesMax bytes before the mark.
func clean(s string, bytesMax int) string {
	mark := ""
	if len(s) > bytesMax {
		s, mark = s[:bytesMax], truncatedMark
		for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
		if len(s) > 0 && s[len(s)-1] >= utf8.RuneSelf {
			s = s[:len(s)-1]
		}
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r == utf8.RuneError, unicode.IsControl(r), unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp):
			return '?'
		}
		return r
	}, s) + mark
}
