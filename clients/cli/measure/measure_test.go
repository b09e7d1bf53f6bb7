package measure

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestLatencyKeepsThreeDigits(t *testing.T) {
	h := newHistogram()
	if latency(h) != nil {
		t.Error("there is a latency of nothing")
	}
	for i := 1; i <= 100_000; i++ {
		record(h, time.Duration(i)*time.Microsecond)
	}
	record(h, -1) // a clock that was set back
	got := latency(h)
	for _, c := range []struct{ got, want float64 }{{got.P50, 50}, {got.P90, 90}, {got.P99, 99}, {got.P999, 99.9}, {got.P9999, 99.99}, {got.Max, 100}, {got.Mean, 50}} {
		if c.got < 0.998*c.want || c.got > 1.002*c.want {
			t.Errorf("%+v: %v is not %v", got, c.got, c.want)
		}
	}
	record(h, 100*time.Hour) // beyond what is kept
	if got := latency(h); got.Max < 3.59e6 || got.Max > 3.61e6 {
		t.Errorf("the longest is %v", got.Max)
	}
}

func TestPacerGivesEachRecordItsTime(t *testing.T) {
	start := time.Now().Add(-time.Hour) // everything is long due
	p := pacer{start, 1000}
	for _, i := range []int{0, 1, 1000} {
		due, err := p.wait(t.Context(), i)
		if want := start.Add(time.Duration(i) * time.Millisecond); err != nil || due.Sub(want).Abs() > time.Microsecond {
			t.Errorf("record %d is due at %v, want %v (%v)", i, due, want, err)
		}
	}
	p = pacer{time.Now(), 0.001}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.wait(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	before := time.Now()
	p = pacer{before, 100}
	if due, err := p.wait(t.Context(), 2); err != nil || time.Now().Before(due) || due.Sub(before) != 20*time.Millisecond {
		t.Errorf("due %v after the start, %v", due.Sub(before), err)
	}
}

func TestStampTellsRunAndNumber(t *testing.T) {
	v := Payload(StampBytes + 3)
	stamp(v, 7, 123_456)
	if n, ok := stamped(v, 7); !ok || n != 123_456 {
		t.Error(n, ok)
	}
	for _, other := range [][]byte{v[:StampBytes-1], nil, Payload(StampBytes)} {
		if _, ok := stamped(other, 7); ok {
			t.Errorf("%x is taken for the run's", other)
		}
	}
	if _, ok := stamped(v, 8); ok {
		t.Error("a record of another run is taken")
	}
}
