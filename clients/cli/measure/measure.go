// Package measure loads a server with a client and tells how fast it was: records a second, and how long each took. It
// checks what it measures: that every record is acknowledged, that offsets follow each other, that what is read is all
// there is. Nobody else may publish to the same partitions meanwhile.
//
// With a rate it is an open loop: each record has a time at which it is due, and what it takes is counted from then on, so
// that a server that stops is not given the time for which it kept its client from sending.
package measure

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	trunkline "github.com/trunkline-mq/trunkline/clients/go"
)

// Options say what is done.
type Options struct {
	Count  int     // records
	Size   int     // bytes of a value
	Window int     // records without an answer at a time; 0: what the client takes
	Rate   float64 // records a second; 0: as fast as they are taken
	// Progress is told now and then how many records are done. It must not block.
	Progress func(done int)
}

// Result is what came out. Latencies are there where they were measured.
type Result struct {
	Bench            string         `json:"bench"`
	Address          string         `json:"address"`
	Sent             int            `json:"sent"`
	Acknowledged     int            `json:"acknowledged"`
	Received         int            `json:"received"`
	Durability       map[string]int `json:"durability"`
	Partitions       int            `json:"partitions"` // that got records
	Size             int            `json:"size"`
	Rate             float64        `json:"rate"` // that was asked for; 0: none
	Seconds          float64        `json:"seconds"`
	RecordsPerSecond float64        `json:"records_per_second"`
	BytesPerSecond   float64        `json:"bytes_per_second"` // of values
	Answered         *Latency       `json:"latency_ms,omitempty"`
	Delivered        *Latency       `json:"delivery_ms,omitempty"`
}

// Latency is a distribution in milliseconds.
type Latency struct {
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	P9999 float64 `json:"p9999"`
	Max   float64 `json:"max"`
}

// place is a partition of a topic.
type place struct {
	topic     string
	partition trunkline.PartitionID
}

// Times are kept with three digits from a microsecond to an hour.
const (
	shortest = int64(time.Microsecond)
	longest  = int64(time.Hour)
	digits   = 3
)

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(shortest, longest, digits) }

func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(min(max(int64(d), shortest), longest)) // within its range it cannot fail
}

func latency(h *hdrhistogram.Histogram) *Latency {
	if h.TotalCount() == 0 {
		return nil
	}
	ms := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1e6 }
	return &Latency{Mean: h.Mean() / 1e6, P50: ms(50), P90: ms(90), P99: ms(99), P999: ms(99.9), P9999: ms(99.99), Max: ms(100)}
}

// finish fills in the rates of records in so much time.
func (r *Result) finish(records int, bytes int64, took time.Duration) {
	r.Seconds = took.Seconds()
	if r.Seconds > 0 {
		r.RecordsPerSecond = float64(records) / r.Seconds
		r.BytesPerSecond = float64(bytes) / r.Seconds
	}
}

// pacer says when records are due.
type pacer struct {
	start time.Time
	rate  float64
}

// wait waits until record i is due and returns when that was; without a rate it is now.
func (p *pacer) wait(ctx context.Context, i int) (time.Time, error) {
	if p.rate <= 0 {
		return time.Now(), nil
	}
	due := p.start.Add(time.Duration(float64(i) / p.rate * float64(time.Second)))
	left := time.Until(due)
	if left <= 0 {
		return due, nil
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-t.C:
		return due, nil
	case <-ctx.Done():
		return due, context.Cause(ctx)
	}
}

// progressEvery is how many records are done between two reports.
const progressEvery = 512

func (o *Options) report(done int) {
	if o.Progress != nil && (done%progressEvery == 0 || done == o.Count) {
		o.Progress(done)
	}
}

// Payload is a value that no compression makes much smaller, the same each time.
func Payload(size int) []byte {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	random := rand.New(rand.NewPCG(8, 765))
	b := make([]byte, size)
	for i := range b {
		b[i] = letters[random.IntN(len(letters))]
	}
	return b
}

// StampBytes is the least size of a value that carries its run and its number.
const StampBytes = 16

// ErrTooSmall is the error for values that have no room for what is measured by them.
var ErrTooSmall = fmt.Errorf("a value needs %d bytes for what it is known by", StampBytes)

// stamp writes which run and which record a value is of.
func stamp(value []byte, run uint64, number int) {
	binary.BigEndian.PutUint64(value, run)
	binary.BigEndian.PutUint64(value[8:], uint64(number))
}

// stamped reads a value's number; false where it is not of the run.
func stamped(value []byte, run uint64) (int, bool) {
	if len(value) < StampBytes || binary.BigEndian.Uint64(value) != run {
		return 0, false
	}
	return int(binary.BigEndian.Uint64(value[8:])), true
}

// errStopped stands for a failure that is told elsewhere.
var errStopped = errors.New("stopped")
