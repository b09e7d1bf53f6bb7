package filelog

import (
	"testing"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
)

// fakeClock is a clock whose hands a test moves.
type fakeClock struct {
	wall    time.Time
	elapsed time.Duration
}

func (c *fakeClock) Wall() time.Time        { return c.wall }
func (c *fakeClock) Elapsed() time.Duration { return c.elapsed }

// pass lets real time go by; the time of day goes along.
func (c *fakeClock) pass(d time.Duration) { c.wall, c.elapsed = c.wall.Add(d), c.elapsed+d }

const year = 365 * 24 * time.Hour

// TestRetentionClock moves both clocks and says by how much the retention clock has moved since the beginning.
func TestRetentionClock(t *testing.T) {
	type step struct {
		jump, pass time.Duration // of the time of day alone; of both
		restart    bool          // with a new Elapsed, at the end of the step
		want       time.Duration
	}
	const h = time.Hour
	for name, steps := range map[string][]step{
		"time goes by":                   {{pass: h, want: h}, {pass: 50 * h, want: 51 * h}},
		"a small correction forward":     {{jump: h, want: h}, {pass: h, want: 2 * h}},
		"a small correction backward":    {{pass: 2 * h, want: 2 * h}, {jump: -h / 2, want: 2 * h}, {pass: h, want: 2*h + h/2}},
		"years forward":                  {{jump: 2 * year, want: 0}, {pass: 23 * h, want: 23 * h}, {pass: 2 * h, want: 2*year + 25*h}},
		"years forward and put right":    {{jump: 2 * year, pass: 20 * h, want: 20 * h}, {jump: -2 * year, pass: h, want: 21 * h}, {jump: 2 * year, pass: 23 * h, want: 44 * h}},
		"years backward":                 {{pass: h, want: h}, {jump: -3 * year, pass: 100 * h, want: 101 * h}},
		"years backward and put right":   {{jump: -3 * year, pass: 10 * h, want: 10 * h}, {jump: 3 * year, pass: h, want: 11 * h}},
		"a short stop":                   {{pass: h, want: h, restart: true}, {jump: h, want: 2 * h}},
		"a long stop":                    {{pass: h, want: h, restart: true}, {jump: 48 * h, want: h}, {pass: 24 * h, want: 73 * h}},
		"a long stop, and again":         {{jump: 48 * h, pass: 20 * h, want: 20 * h, restart: true}, {pass: 5 * h, want: 73 * h}},
		"the clock ran back over a stop": {{pass: h, want: h, restart: true}, {jump: -year, want: h}, {pass: h, want: 2 * h}},
	} {
		t.Run(name, func(t *testing.T) {
			d := disk{fs: vfs.OS(), data: t.TempDir()}
			if err := vfs.MakeDirs(d.fs, d.logs()); err != nil {
				t.Fatal(err)
			}
			fake := &fakeClock{wall: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
			begin := fake.wall.UnixMilli()
			c := &retentionClock{clock: fake}
			if err := c.load(d, 7); err != nil {
				t.Fatal(err)
			}
			last := c.now()
			for i, s := range steps {
				fake.wall = fake.wall.Add(s.jump)
				fake.pass(s.pass)
				now := c.now()
				if got := time.Duration(now-begin) * time.Millisecond; got != s.want {
					t.Errorf("step %d: moved by %v, want %v", i, got, s.want)
				}
				if now < last {
					t.Errorf("step %d: it went back", i)
				}
				last = now
				if !s.restart {
					continue
				}
				if err := c.save(d); err != nil {
					t.Fatal(err)
				}
				fake.elapsed = 3 * h
				c = &retentionClock{clock: fake}
				if err := c.load(d, 8); err != nil {
					t.Fatal(err)
				}
				if c.era != 7 {
					t.Errorf("step %d: era %d", i, c.era)
				}
			}
		})
	}
}

func TestRetentionClockThatCannotBeReadBeginsAnEra(t *testing.T) {
	d := disk{fs: vfs.OS(), data: t.TempDir()}
	if err := vfs.MakeDirs(d.fs, d.logs()); err != nil {
		t.Fatal(err)
	}
	fake := &fakeClock{wall: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	for generation, text := range []string{"", "1 1 2 3\n", string(withSum([]byte("1 x 3 4\n"))), string(withSum([]byte("2 1 3 4\n"))), string(withSum([]byte("1 1 -3 4\n")))} {
		if err := d.writeDurably(d.retentionClock(), []byte(text)); err != nil {
			t.Fatal(err)
		}
		c := &retentionClock{clock: fake}
		if err := c.load(d, uint32(generation)); err != nil || c.era != uint32(generation) || c.now() != fake.wall.UnixMilli() {
			t.Errorf("%q: era %d, %d, %v", text, c.era, c.now(), err)
		}
	}
}
