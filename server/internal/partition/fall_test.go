package partition

import (
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// cutLog is a log of which only the end is looked at.
type cutLog struct {
	Log // nil: what is not written here is not called
	end record.Offset
}

func (l *cutLog) End() record.Offset { return l.end }

// fallTo writes far beyond end, and has the log opened anew there.
func fallTo(p *Partition, l *cutLog, end record.Offset) {
	l.end = end + 1_000_000
	p.raise(l.end)
	l.end = end
	p.Reopened()
}

func TestFallsBeyondTheBoundTellOfNoLessThanWasLost(t *testing.T) {
	l := &cutLog{}
	p := &Partition{log: l}
	const falls = 3 * fallsMax
	for i := range falls {
		fallTo(p, l, record.Offset(i+1)) // the fall of number n goes to n
	}
	if p.Falls() != falls || len(p.falls.ends) != fallsMax || p.HighWatermark() != falls {
		t.Fatalf("%d falls, %d of them told apart, high watermark %d", p.Falls(), len(p.falls.ends), p.HighWatermark())
	}
	for n := range uint64(falls) {
		end, fell := p.FellSince(n)
		lowest, exact := record.Offset(n+1), n > falls-fallsMax
		if !fell || end > lowest || exact && end != lowest {
			t.Errorf("after %d falls: lowest %d, %t, want %d", n, end, fell, lowest)
		}
	}
	if end, fell := p.FellSince(falls); fell {
		t.Errorf("after the last one it fell to %d", end)
	}
	fallTo(p, l, 0)
	for n := range uint64(falls + 1) {
		if end, fell := p.FellSince(n); !fell || end != 0 {
			t.Errorf("after %d falls and one to 0: %d, %t", n, end, fell)
		}
	}
}

func TestALogThatIsNotShorterIsNoFall(t *testing.T) {
	l := &cutLog{end: 5}
	p := &Partition{log: l}
	p.raise(5)
	p.Reopened()
	l.end = 9 // what was written and never acknowledged was there after all
	p.Reopened()
	if end, fell := p.FellSince(0); fell || p.HighWatermark() != 5 {
		t.Errorf("fell to %d, %t; high watermark %d", end, fell, p.HighWatermark())
	}
}
