package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/template"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/trunkline-mq/trunkline/clients/cli/measure"
	trunkline "github.com/trunkline-mq/trunkline/clients/go"
	"github.com/trunkline-mq/trunkline/protocol/line"
)

// lineSource makes records of the lines of its input.
type lineSource struct {
	lines     *lineReader
	m         trunkline.Message // what the records have in common
	records   bool              // a line is a record in JSON
	delimiter []byte            // between key and value; empty for none
}

func newLineSource(in io.Reader, limit int, f *pubFlags, m trunkline.Message) *lineSource {
	if f.records {
		limit = recordLineFactor*limit + recordLineExtra
	}
	return &lineSource{lines: newLineReader(in, limit), m: m, records: f.records, delimiter: []byte(f.delimiter)}
}

// A record in JSON is larger than what it says: a byte may take six, as \u0000 does, and the names of the fields come on
// top. The record itself is measured by the client.
const (
	recordLineFactor = 6
	recordLineExtra  = 4 << 10
)

// lineError is a fault of one line: the ones behind it can be read.
type lineError struct{ err error }

func (e *lineError) Error() string { return e.err.Error() }
func (e *lineError) Unwrap() error { return e.err }

// errNoRecord is the error for a line that is no record.
var errNoRecord = errors.New("not a record")

// number is how many lines were read.
func (s *lineSource) number() int { return s.lines.number }

// next returns the next record, valid until the next call, and the number of its line; io.EOF after the last one.
func (s *lineSource) next() (*trunkline.Message, int, error) {
	text, err := s.lines.next()
	if err != nil {
		return nil, s.lines.number, err
	}
	switch {
	case s.records:
		if s.m, err = readRecord(text); err != nil {
			return nil, s.lines.number, &lineError{err}
		}
	case len(s.delimiter) > 0:
		key, value, ok := bytes.Cut(text, s.delimiter)
		if !ok {
			return nil, s.lines.number, &lineError{fmt.Errorf("%w: the key delimiter %q is not in it", errNoRecord, s.delimiter)}
		}
		s.m.Key, s.m.Value = key, value
	default:
		s.m.Value = text
	}
	return &s.m, s.lines.number, nil
}

// recordLine is a record in the protocol's JSON. Where it lay is read over: a record is published anew.
type recordLine struct {
	Topic       json.RawMessage     `json:"topic"`
	Partition   json.RawMessage     `json:"partition"`
	Offset      json.RawMessage     `json:"offset"`
	Timestamp   *time.Time          `json:"timestamp"`
	Key         *string             `json:"key"`
	KeyBase64   *string             `json:"key_base64"`
	Value       *string             `json:"value"`
	ValueBase64 *string             `json:"value_base64"`
	Headers     map[string][]string `json:"headers"`
}

// readRecord reads a record in JSON. A misspelt field is a fault: what it says must not be lost in silence.
func readRecord(text []byte) (m trunkline.Message, err error) {
	var l recordLine
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return m, fmt.Errorf("%w: %v", errNoRecord, err)
	}
	if d.More() {
		return m, fmt.Errorf("%w: there is more behind it", errNoRecord)
	}
	if m.Key, err = fieldBytes("key", l.Key, l.KeyBase64); err != nil {
		return m, err
	}
	if m.Value, err = fieldBytes("value", l.Value, l.ValueBase64); err != nil {
		return m, err
	}
	if l.Timestamp != nil {
		m.Timestamp = *l.Timestamp
	}
	for _, name := range slices.Sorted(maps.Keys(l.Headers)) {
		for _, value := range l.Headers[name] {
			m.Headers = append(m.Headers, trunkline.Header{Name: name, Value: []byte(value)})
		}
	}
	return m, nil
}

func fieldBytes(name string, text, base *string) ([]byte, error) {
	switch {
	case text != nil && base != nil:
		return nil, fmt.Errorf("%w: it has both %s and %s_base64", errNoRecord, name, name)
	case text != nil:
		return []byte(*text), nil
	case base == nil:
		return nil, nil
	}
	b, err := base64.StdEncoding.DecodeString(*base)
	if err != nil {
		return nil, fmt.Errorf("%w: %s_base64 is no base64", errNoRecord, name)
	}
	return b, nil
}

// repeated is what a template knows of its record.
type repeated struct{ Count int }

// Time is the time of day, RFC 3339 with milliseconds.
func (repeated) Time() string { return time.Now().UTC().Format(line.TimeLayout) }

// Unix is the time in seconds.
func (repeated) Unix() int64 { return time.Now().Unix() }

// randomMax bounds what a template makes up.
const randomMax = 1 << 20

func randomText(n int) (string, error) {
	if n < 0 || n > randomMax {
		return "", fmt.Errorf("random %d is not from 0 to %d", n, randomMax)
	}
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[rand.IntN(len(letters))]
	}
	return string(b), nil
}

// newRepeater returns what makes one record after the other. Texts without {{ are left as they are.
func newRepeater(m trunkline.Message, templates bool) (func() (*trunkline.Message, error), error) {
	fixed := func() (*trunkline.Message, error) { return &m, nil }
	if !templates {
		return fixed, nil
	}
	var fields []func(data repeated) error
	executing := regexp.MustCompile(`^template: .* at | in type main\.\w+$`) // where in this program it happened
	add := func(what string, field *[]byte) error {
		if !bytes.Contains(*field, []byte("{{")) {
			return nil
		}
		t, err := template.New(what).Option("missingkey=error").Funcs(template.FuncMap{"random": randomText}).Parse(string(*field))
		if err != nil {
			return fmt.Errorf("%s is no template: %w; --template=false leaves it as it is", what, err)
		}
		fields = append(fields, func(data repeated) error {
			var b bytes.Buffer
			if err := t.Execute(&b, data); err != nil {
				return fmt.Errorf("%s: %s; there are .Count, .Time, .Unix and random N", what, executing.ReplaceAllString(err.Error(), ""))
			}
			*field = b.Bytes()
			return nil
		})
		return nil
	}
	err := errors.Join(add("BODY", &m.Value), add("key", &m.Key))
	for i := range m.Headers {
		err = errors.Join(err, add("header "+m.Headers[i].Name, &m.Headers[i].Value))
	}
	if err != nil || len(fields) == 0 {
		return fixed, err
	}
	number := 0
	return func() (*trunkline.Message, error) {
		number++
		for _, field := range fields {
			if err := field(repeated{number}); err != nil {
				return nil, &usageError{err}
			}
		}
		return &m, nil
	}, nil
}

// lineReader cuts its input at LF and nowhere else. It holds one line.
type lineReader struct {
	in     *bufio.Reader
	limit  int    // bytes of a line without its LF
	long   []byte // a line that does not fit into in's buffer
	number int    // of the line last returned, from 1
}

// readBytes is a read's size; most lines lie whole in it.
const readBytes = 64 << 10

func newLineReader(in io.Reader, limit int) *lineReader {
	return &lineReader{in: bufio.NewReaderSize(in, readBytes), limit: limit}
}

// next returns the next line without its LF, never nil; it is valid until the next call. io.EOF after the last one. A
// line above the limit is a *lineError, and the next call goes on behind it.
func (r *lineReader) next() ([]byte, error) {
	r.long = r.long[:0]
	for {
		part, err := r.in.ReadSlice('\n')
		ended := err == nil
		if ended {
			part = part[:len(part)-1]
		}
		if len(r.long)+len(part) > r.limit {
			r.number++
			if err := r.skip(ended, err); err != nil {
				return nil, err
			}
			return nil, &lineError{fmt.Errorf("%w: the line is longer than the %d bytes the server takes", trunkline.ErrTooLarge, r.limit)}
		}
		switch {
		case ended && len(r.long) == 0:
			r.number++
			return part, nil
		case !ended && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF):
			return nil, r.unreadable(err)
		case errors.Is(err, io.EOF) && len(r.long)+len(part) == 0:
			return nil, io.EOF
		}
		r.long = append(r.long, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			r.number++
			return r.long, nil
		}
	}
}

// skip reads to the end of a line, holding nothing of it.
func (r *lineReader) skip(ended bool, err error) error {
	for !ended {
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return r.unreadable(err)
		}
		_, err = r.in.ReadSlice('\n')
		ended = err == nil
	}
	return nil
}

func (r *lineReader) unreadable(err error) error {
	return fmt.Errorf("read the input after line %d: %w", r.number, err)
}

// pollMillis is how often a wait for input looks whether it was interrupted.
const pollMillis = 100

// waiting makes reads of a file end with ctx: a read of a terminal or pipe cannot be called back, so it is begun only
// when there is something to read. Other readers are left as they are.
func waiting(ctx context.Context, in io.Reader) io.Reader {
	if f, ok := in.(*os.File); ok {
		return &fileReader{done: ctx.Done(), err: ctx.Err, file: f}
	}
	return in
}

// fileReader lives as long as one command, whose context it watches.
type fileReader struct {
	done <-chan struct{}
	err  func() error
	file *os.File
}

func (r *fileReader) Read(b []byte) (int, error) {
	for {
		select {
		case <-r.done:
			return 0, r.err()
		default:
		}
		ready := []unix.PollFd{{Fd: int32(r.file.Fd()), Events: unix.POLLIN}}
		switch n, err := unix.Poll(ready, pollMillis); {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("poll: %w", err)
		case n > 0:
			return r.file.Read(b)
		}
	}
}

// tally counts results.
type tally struct {
	keepGoing bool

	own     []*underWay // who publishes has them at hand
	stopped atomic.Bool // a failure ends the run

	mu         sync.Mutex
	idle       []*underWay    // guarded; that have their results
	durability map[string]int // guarded; acknowledged lines by what was reached, but for those that last counts
	reached    string         // guarded; what the newest one reached,
	last       int            // guarded; and how many in a row did
	refused    []error        // guarded; the failures of lines, with their numbers
	first      error          // guarded; that of the lowest of all lines that failed
	low, high  int            // guarded; the lowest and the highest of them
	failures   int            // guarded; how many there were
}

// refusedMax is how many refused lines are named.
const refusedMax = 20

// underWay is a line without a result. Results come in any order where partitions have batches of their own.
type underWay struct {
	tally  *tally
	number int
	done   func(trunkline.Ack, error) // its take; made once, as lines are used again
}

// begin says that a line is going to be published. Lines that have their results are taken over many at a time, so that
// who publishes and who hears the results seldom want the lock at once.
func (t *tally) begin(number int) *underWay {
	if len(t.own) == 0 {
		t.mu.Lock()
		t.own, t.idle = t.idle, t.own
		t.mu.Unlock()
	}
	var l *underWay
	if n := len(t.own); n > 0 {
		l, t.own = t.own[n-1], t.own[:n-1]
	} else {
		l = &underWay{tally: t}
		l.done = l.take
	}
	l.number = number
	return l
}

// take is told the line's outcome.
func (l *underWay) take(ack trunkline.Ack, err error) {
	t := l.tally
	t.mu.Lock()
	defer t.mu.Unlock()
	t.idle = append(t.idle, l)
	if err != nil {
		t.failLocked(l.number, err)
		return
	}
	if ack.Durability != t.reached {
		t.countLocked()
		t.reached = ack.Durability
	}
	t.last++
}

// countLocked adds what was counted aside.
func (t *tally) countLocked() {
	if t.last > 0 {
		t.durability[t.reached] += t.last
		t.last = 0
	}
}

// refuse is told of a line that was not sent.
func (t *tally) refuse(line int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failLocked(line, err)
}

// failLocked keeps a failure. Only one that is about the line alone is passed over.
func (t *tally) failLocked(line int, err error) {
	told := fmt.Errorf("line %d: %w", line, befell(err))
	if t.failures++; len(t.refused) < refusedMax {
		t.refused = append(t.refused, told)
	}
	// A line that could not be sent is heard of before those that were sent in vain in front of it.
	if t.first == nil || line < t.low {
		t.first, t.low = told, line
	}
	t.high = max(t.high, line)
	passable := errors.Is(err, trunkline.ErrTooLarge) || errors.Is(err, trunkline.ErrInvalid) || errors.Is(err, errNoRecord)
	if !(t.keepGoing && passable) {
		t.stopped.Store(true)
	}
}

// befell is what befell a line, without that it was in a batch, which was tried once.
func befell(err error) error {
	if e, ok := errors.AsType[*trunkline.ProduceError](err); ok && e.Unknown == errors.Is(e.Err, trunkline.ErrOutcomeUnknown) {
		return e.Err
	}
	return err
}

// linesPerLook is how many lines are published between two looks at whether the run was interrupted.
const linesPerLook = 64

// publishLines publishes what a source has. It stops at the first failure, unless it is to keep going and the failure is
// the line's own, waits for what is under way, and says on standard error what was acknowledged.
func (a *app) publishLines(ctx context.Context, by measure.Publisher, to string, source *lineSource, keepGoing bool) error {
	start := time.Now()
	t := &tally{keepGoing: keepGoing, durability: make(map[string]int)}
	sent, size, failed := 0, uint64(0), error(nil)
	for n := 0; failed == nil; n++ {
		if t.stopped.Load() {
			failed = errStopped
			continue
		}
		if n%linesPerLook == 0 && ctx.Err() != nil { // and whoever waits for input or room looks, too
			failed = context.Cause(ctx)
			continue
		}
		m, number, err := source.next()
		var bad *lineError
		switch {
		case errors.As(err, &bad):
			t.refuse(number, bad.err)
			continue
		case err != nil:
			failed = err
			continue
		}
		if err := by.Publish(ctx, to, m, t.begin(number).done); err != nil {
			t.refuse(number, err)
			continue
		}
		sent++
		size += uint64(len(m.Value))
	}
	unflushed := by.Drain(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.countLocked()
	a.note("%s", t.summary(source.number(), size, time.Since(start)))
	if failed == io.EOF || failed == errStopped {
		failed = unflushed
	}
	return a.reportLines(t, failed)
}

// reportLines names the lines that failed; the last of them is what the command fails with.
func (a *app) reportLines(t *tally, failed error) error {
	if t.failures == 0 {
		return failed
	}
	switch {
	case !t.keepGoing && t.failures == 1:
		return t.first
	case !t.keepGoing:
		return fmt.Errorf("%w; from there to line %d %d lines are not acknowledged", t.first, t.high, t.failures)
	}
	for _, err := range t.refused {
		a.warn(err)
	}
	return fmt.Errorf("lines refused: %d", t.failures)
}

// errStopped stands for the failure that the tally has.
var errStopped = errors.New("stopped")

func (t *tally) summary(lines int, size uint64, took time.Duration) string {
	acknowledged := 0
	for _, n := range t.durability {
		acknowledged += n
	}
	return fmt.Sprintf("%d of %d records acknowledged%s, %s in %v",
		acknowledged, lines, reached(t.durability), humanize.IBytes(size), took.Round(time.Millisecond))
}

// reached lists the durabilities of acknowledged records in parentheses, behind a blank; empty when there are none.
func reached(durability map[string]int) string {
	if len(durability) == 0 {
		return ""
	}
	return " (" + strings.Join(slices.Sorted(maps.Keys(durability)), ", ") + ")"
}
