package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/partitionerrpc"
)

// page is a log that can be read while it is written.
type page struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (p *page) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.buf.Write(b)
}

func (p *page) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.buf.String()
}

func (p *page) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(p, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

func TestLinesBecomeLogRecords(t *testing.T) {
	for _, tc := range []struct{ name, line, want string }{
		{"slog", `{"time":"2026-01-02T03:04:05Z","level":"WARN","msg":"slow disk","ms":12,"path":"/d"}`, `level=WARN msg="slow disk" ms=12 path=/d`},
		{"hclog", `{"@level":"error","@message":"no","@timestamp":"x","err":"EIO"}`, `level=ERROR msg=no err=EIO`},
		{"text", `plain words`, `level=INFO msg="plain words"`},
		{"broken JSON", `{"level":`, `level=INFO msg="{\"level\":"`},
		{"escape sequences", "a\x1b[2Jb\x07\xff", `level=INFO msg=a?[2Jb??`},
		{"hidden in JSON", `{"level":"INFO","msg":"a\u001b[2J\u202eb","k\n":"v\nlevel=ERROR"}`, `level=INFO msg=a?[2J?b k?="v?level=ERROR"`},
		{"blank", "  \t", ``},
		{"a panic", "going on\npanic: no\n\ngoroutine 1 [running]:", "level=INFO msg=\"going on\"\nlevel=ERROR msg=\"panic: no\"\nlevel=ERROR msg=\"goroutine 1 [running]:\""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var p page
			newLineLog(p.logger(), time.Now).readAll(strings.NewReader(tc.line + "\n"))
			if got := strings.TrimSpace(p.String()); got != tc.want {
				t.Fatalf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestLongLinesAreCut(t *testing.T) {
	var p page
	newLineLog(p.logger(), time.Now).readAll(strings.NewReader(strings.Repeat("x", 1<<20) + "\nnext"))
	if got := p.String(); len(got) > 2*lineBytesMax || !strings.Contains(got, "msg=next") {
		t.Fatalf("%d bytes logged", len(got))
	}
	var attrs strings.Builder
	for i := range 100 {
		fmt.Fprintf(&attrs, `,"k%02d":"%s"`, i, strings.Repeat("é", 20))
	}
	var q page
	newLineLog(q.logger(), time.Now).readAll(strings.NewReader(`{"msg":"m"` + attrs.String()[:3000] + "\"}\n"))
	if got := q.String(); strings.Count(got, "=é") > attrsMax {
		t.Fatalf("attributes are not bounded: %s", got)
	}
}

func TestLinesAreLimitedInRate(t *testing.T) {
	var p page
	now := time.Unix(0, 0)
	l := newLineLog(p.logger(), func() time.Time { return now })
	for i := range 10 * linesBurst {
		l.line(fmt.Appendf(nil, "n=%d", i))
	}
	if got := strings.Count(p.String(), "\n"); got != linesBurst {
		t.Fatalf("%d lines passed at once", got)
	}
	now = now.Add(time.Second)
	for range 10 * linesASecond {
		l.line([]byte("later"))
	}
	if got := strings.Count(p.String(), "later"); got != linesASecond {
		t.Fatalf("%d lines passed in a second", got)
	}
	l.flush()
	got := p.String()
	if !strings.Contains(got, fmt.Sprintf("count=%d", 9*linesBurst)) || !strings.Contains(got, fmt.Sprintf("count=%d", 9*linesASecond)) {
		t.Fatalf("what was dropped is not told: %s", got[len(got)-200:])
	}
}

func TestNoisyPluginIsHeardWithinLimits(t *testing.T) {
	var p page
	r := start(t, specOf("noisy", shortDir(t)), Options{Logger: p.logger()})
	r.stop()
	got := p.String()
	if n := strings.Count(got, "msg=\"line "); n < 100 || n > 5000-100 {
		t.Errorf("%d of 5000 lines were logged", n)
	}
	if strings.Contains(got, "\x1b") || !strings.Contains(got, "plugin=partitioner/probe") {
		t.Error("lines are not cleaned, or do not name the plugin")
	}
	if !strings.Contains(got, "plugin log lines dropped") {
		t.Error("dropping is not told")
	}
}

func TestPrintingWhileServedGoesToTheLog(t *testing.T) {
	var p page
	r := start(t, specOf("probe", shortDir(t)), Options{Logger: p.logger()})
	_, err := partitionerrpc.NewClient(r.latest().Conn()).Plan(t.Context(), partitioner.PlanRequest{Topic: "print", Partitions: 1})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the printed line is logged", func() bool { return strings.Contains(p.String(), "printed while served") })
}

func TestBackoffDoublesUpToItsMaximum(t *testing.T) {
	opt := Options{BackoffMin: 100 * time.Millisecond, BackoffMax: time.Second}
	for crashes, want := range map[int]time.Duration{
		1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 4: 800 * time.Millisecond, 5: time.Second, 1000: time.Second,
	} {
		if got := backoff(opt, crashes, 0); got != want {
			t.Errorf("after %d crashes: %v, not %v", crashes, got, want)
		}
		if got := backoff(opt, crashes, 0.999); got < want*3/4 || got >= want {
			t.Errorf("after %d crashes with jitter: %v", crashes, got)
		}
	}
}

func TestCrashLoopBacksOff(t *testing.T) {
	spec := specOf("probe", shortDir(t))
	var starts []time.Time // written by Start and Run only, read after the end
	spec.Files = func() ([]*os.File, error) {
		starts = append(starts, time.Now())
		return nil, nil
	}
	spec.OnUp = func(_ context.Context, inst *Instance) error {
		if inst.Number() > 1 && inst.Number() < 5 {
			return errors.New("not yet")
		}
		return nil
	}
	r := start(t, spec, Options{BackoffMin: 20 * time.Millisecond, BackoffMax: 80 * time.Millisecond})
	r.latest().Kill(errors.New("by hand"))
	r.ready(t, 5)
	r.stop()
	for i, atLeast := range []time.Duration{0, 15, 30, 60, 60} {
		if i == 0 {
			continue
		}
		if got := starts[i].Sub(starts[i-1]); got < atLeast*time.Millisecond {
			t.Errorf("start %d came %v after the one before", i+1, got)
		}
	}
}
