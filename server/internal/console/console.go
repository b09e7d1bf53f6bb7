// Package console writes log records for people who look at a terminal: the time of day, the level, the message, and what
// belongs to it. Programs read JSON instead, which slog itself writes.
//
// A record is one line, whatever is in it, and is written by one call.
package console

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"unicode"
)

// Handler is a slog.Handler.
type Handler struct {
	out    io.Writer
	level  slog.Leveler
	colour bool
	mu     *sync.Mutex // shared by all handlers of one writer
	with   string      // attributes that every record has, written already
	group  string      // what is in front of the names of attributes
}

var _ slog.Handler = (*Handler)(nil)

// New returns a handler of records of a level and above. With colour the level stands out.
func New(out io.Writer, level slog.Leveler, colour bool) *Handler {
	return &Handler{out: out, level: level, colour: colour, mu: new(sync.Mutex)}
}

// Enabled reports whether records of a level are written.
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

// Handle writes a record.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	if !r.Time.IsZero() {
		b.WriteString(r.Time.Format("15:04:05.000 "))
	}
	b.WriteString(h.name(r.Level))
	b.WriteString(" ")
	b.WriteString(clean(r.Message))
	b.WriteString(h.with)
	r.Attrs(func(a slog.Attr) bool {
		writeAttr(&b, h.group, a)
		return true
	})
	b.WriteByte('\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.out, b.String())
	return err
}

// name is a level in five columns.
func (h *Handler) name(l slog.Level) string {
	text := fmt.Sprintf("%-5s", l)
	if !h.colour {
		return text
	}
	switch {
	case l >= slog.LevelError:
		return "\x1b[31m" + text + "\x1b[0m"
	case l >= slog.LevelWarn:
		return "\x1b[33m" + text + "\x1b[0m"
	case l < slog.LevelInfo:
		return "\x1b[2m" + text + "\x1b[0m"
	}
	return text
}

// WithAttrs returns a handler whose records have more attributes.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	more := *h
	var b strings.Builder
	for _, a := range attrs {
		writeAttr(&b, h.group, a)
	}
	more.with += b.String()
	return &more
}

// WithGroup returns a handler whose further attributes are of a group.
func (h *Handler) WithGroup(name string) slog.Handler {
	more := *h
	if name != "" {
		more.group += name + "."
	}
	return &more
}

func writeAttr(b *strings.Builder, group string, a slog.Attr) {
	v := a.Value.Resolve()
	switch {
	case a.Equal(slog.Attr{}):
	case v.Kind() == slog.KindGroup:
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, inner := range v.Group() {
			writeAttr(b, group, inner)
		}
	default:
		b.WriteString("  ")
		b.WriteString(clean(group + a.Key))
		b.WriteByte('=')
		b.WriteString(quoted(v.String()))
	}
}

// quoted puts a value in quotes where its end could not be seen, or it holds what a terminal would act on.
func quoted(s string) string {
	odd := func(r rune) bool { return r == '"' || r == '=' || unicode.IsSpace(r) || !unicode.IsPrint(r) }
	if s == "" || strings.ContainsFunc(s, odd) {
		return strconv.Quote(s)
	}
	return s
}

// clean keeps what a peer made up from being more than one line, or a command to the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
