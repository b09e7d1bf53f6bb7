package kafkalog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/trunkline-mq/trunkline/protocol/record"
)

// entries reads an index entry by entry. The two indexes are checked by going through them beside the segment, which
// needs no more memory than one entry.
type entries struct {
	in   *bufio.Reader // nil where there is no such file, or nothing more to check
	raw  [TimeIndexEntryBytes]byte
	size int
	at   int64 // of the entry in raw
	read int64
}

func (e *entries) init(r io.Reader, size int) {
	e.size = size
	if r != nil {
		e.in = bufio.NewReaderSize(r, 16<<10)
	}
}

func (e *entries) stop() { e.in = nil }

var errRagged = errors.New("not a whole entry")

// next reads one entry; io.EOF at the end, errRagged where a part of one is left.
func (e *entries) next() ([]byte, error) {
	if e.in == nil {
		return nil, io.EOF
	}
	e.at = e.read
	n, err := io.ReadFull(e.in, e.raw[:e.size])
	e.read += int64(n)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		e.stop()
		return e.raw[:n], errRagged
	case err != nil:
		e.stop()
		return nil, err
	}
	return e.raw[:e.size], nil
}

// trouble turns what next says, beside an entry, into a finding or an error.
func (e *entries) trouble(v *Verifier, file string, left []byte, err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case errors.Is(err, errRagged):
		v.find(Finding{File: file, Position: e.at, Offset: -1, Fault: FaultRagged,
			What: fmt.Sprintf("%d bytes are left, an entry has %d", len(left), e.size)})
		return nil
	}
	return fmt.Errorf("read %s: %w", file, err)
}

// disorder reports the first entry that does not ascend. Nothing behind it can be found beside the segment, so the rest
// of the index is left alone: it has to be made again anyhow.
func (e *entries) disorder(v *Verifier, file string, o record.Offset, what string) {
	v.find(Finding{File: file, Position: e.at, Offset: o, Fault: FaultOrder, What: what + "; the rest of the index was not checked"})
	e.stop()
}

// zeros reports an entry that only a file preallocated with zeros has: no entry but the first can be zero.
func zeros(raw []byte) bool {
	for _, b := range raw {
		if b != 0 {
			return false
		}
	}
	return true
}

const zeroTail = "zeros, as in an index that was not closed"

// indexCheck goes through an offset index beside its segment.
type indexCheck struct {
	v       *Verifier
	file    string
	base    record.Offset
	size    int64 // of the segment
	entries entries
	entry   IndexEntry // the next one to meet
	have    bool
	any     bool // entry was ever set
}

// fetch makes entry the next one to meet, and reports false where there is none.
func (c *indexCheck) fetch() (bool, error) {
	for !c.have {
		raw, err := c.entries.next()
		if err != nil {
			return false, c.entries.trouble(c.v, c.file, raw, err)
		}
		before := c.entry
		e, err := ParseIndexEntry(raw, c.base)
		switch {
		case err != nil:
			c.find(-1, FaultEntry, err.Error())
		case c.any && zeros(raw):
			c.entries.disorder(c.v, c.file, -1, zeroTail)
		case c.any && (e.Last <= before.Last || e.Position <= before.Position):
			c.entries.disorder(c.v, c.file, e.Last, fmt.Sprintf("offset %d at %d follows offset %d at %d", e.Last, e.Position, before.Last, before.Position))
		case e.Position >= c.size:
			c.find(e.Last, FaultBeyond, fmt.Sprintf("position %d, and the segment has %d bytes", e.Position, c.size))
		default:
			c.entry, c.have, c.any = e, true, true
		}
	}
	return true, nil
}

// until reports the entries that point to before position, and thus between two batches.
func (c *indexCheck) until(position int64) error {
	for {
		ok, err := c.fetch()
		if !ok || c.entry.Position >= position {
			return err
		}
		c.find(c.entry.Last, FaultEntry, fmt.Sprintf("no batch begins at position %d", c.entry.Position))
		c.have = false
	}
}

// pass meets a batch; sound says whether its header counts.
func (c *indexCheck) pass(b *Walked, sound bool) error {
	if err := c.until(b.Position); err != nil || !c.have || c.entry.Position != b.Position {
		return err
	}
	if last := b.Header.LastOffset(); sound && c.entry.Last != last {
		c.find(c.entry.Last, FaultEntry, fmt.Sprintf("offset %d, and the batch at position %d ends with %d", c.entry.Last, b.Position, last))
	}
	c.have = false
	return nil
}

func (c *indexCheck) end() error { return c.until(math.MaxInt64) }

func (c *indexCheck) find(o record.Offset, fault Fault, what string) {
	c.v.find(Finding{File: c.file, Position: c.entries.at, Offset: o, Fault: fault, What: what})
}

// timeCheck goes through a time index beside its segment.
type timeCheck struct {
	v       *Verifier
	file    string
	base    record.Offset
	entries entries
	entry   TimeIndexEntry // the next one to meet
	have    bool
	any     bool  // entry was ever set
	unsure  bool  // a damaged batch lies between the last sound one and the next
	seen    bool  // a batch was met
	latest  int64 // max timestamp of the batches met, where one was
}

func (c *timeCheck) fetch() (bool, error) {
	for !c.have {
		raw, err := c.entries.next()
		if err != nil {
			return false, c.entries.trouble(c.v, c.file, raw, err)
		}
		before := c.entry
		e, err := ParseTimeIndexEntry(raw, c.base)
		switch {
		case err != nil:
			c.find(-1, FaultEntry, err.Error())
		case c.any && zeros(raw):
			c.entries.disorder(c.v, c.file, -1, zeroTail)
		case c.any && (e.Last <= before.Last || e.MaxTimestamp <= before.MaxTimestamp):
			c.entries.disorder(c.v, c.file, e.Last,
				fmt.Sprintf("time %d of offset %d follows time %d of offset %d", e.MaxTimestamp, e.Last, before.MaxTimestamp, before.Last))
		default:
			c.entry, c.have, c.any = e, true, true
		}
	}
	return true, nil
}

// pass meets a sound batch.
func (c *timeCheck) pass(b *Walked) error {
	last, latest := b.Header.LastOffset(), b.Header.MaxTimestamp()
	for {
		ok, err := c.fetch()
		if err != nil {
			return err
		}
		if !ok || c.entry.Last > last {
			break
		}
		switch {
		case c.entry.Last < last && c.unsure: // it may be of the damaged batch
		case c.entry.Last < last:
			c.find(c.entry.Last, FaultEntry, fmt.Sprintf("no batch ends with offset %d", c.entry.Last))
		case c.entry.MaxTimestamp != latest:
			c.find(last, FaultEntry, fmt.Sprintf("time %d, and the batch that ends with offset %d has %d", c.entry.MaxTimestamp, last, latest))
		case c.seen && c.latest > latest:
			c.find(last, FaultEntry, fmt.Sprintf("time %d of offset %d, and a batch before has %d", latest, last, c.latest))
		}
		c.have = false
	}
	if c.latest = max(c.latest, latest); !c.seen {
		c.seen, c.latest = true, latest
	}
	c.unsure = false
	return nil
}

func (c *timeCheck) end() error {
	for {
		ok, err := c.fetch()
		if !ok || c.unsure {
			return err
		}
		c.find(c.entry.Last, FaultBeyond, fmt.Sprintf("no batch of the segment has offset %d", c.entry.Last))
		c.have = false
	}
}

func (c *timeCheck) find(o record.Offset, fault Fault, what string) {
	c.v.find(Finding{File: c.file, Position: c.entries.at, Offset: o, Fault: fault, What: what})
}
