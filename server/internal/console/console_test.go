package console

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

func TestRecordsAreLinesForPeople(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(New(&out, slog.LevelInfo, false))
	log.Debug("not seen")
	log.Info("plain")
	log.With("a", 1).WithGroup("g").With("b", "two words").Warn("more\nlines\x1b[2J", "c", "", slog.Group("h", "d", time.Second), "err", errors.New(`no "x"`))
	want := "INFO  plain\nWARN  more?lines?[2J  a=1  g.b=\"two words\"  g.c=\"\"  g.h.d=1s  g.err=\"no \\\"x\\\"\"\n"
	got := out.String()
	for _, line := range bytes.SplitAfter([]byte(got), []byte("\n")) {
		if len(line) > 0 && (len(line) < 13 || line[2] != ':' || line[8] != '.') {
			t.Errorf("%q does not begin with the time of day", line)
		}
	}
	var bare string
	for line := range bytes.Lines(out.Bytes()) {
		bare += string(line[len("15:04:05.000 "):])
	}
	if bare != want {
		t.Errorf("got\n%swant\n%s", bare, want)
	}
}

func TestLevelMayBeChangedWhileRecordsAreWritten(t *testing.T) {
	var out bytes.Buffer
	level := new(slog.LevelVar)
	h := New(&out, level, true)
	derived := h.WithAttrs([]slog.Attr{slog.Int("a", 1)})
	if derived.Enabled(context.Background(), slog.LevelDebug) {
		t.Error("it begins with debug")
	}
	level.Set(slog.LevelDebug)
	slog.New(derived).Debug("now")
	if want := "\x1b[2mDEBUG\x1b[0m now  a=1\n"; !bytes.HasSuffix(out.Bytes(), []byte(want)) {
		t.Errorf("%q", out.String())
	}
	out.Reset()
	slog.New(derived).Error("bad")
	if want := "\x1b[31mERROR\x1b[0m bad  a=1\n"; !bytes.HasSuffix(out.Bytes(), []byte(want)) {
		t.Errorf("%q", out.String())
	}
}
