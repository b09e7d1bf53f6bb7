package conn

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/lend"
	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
	"github.com/trunkline-mq/trunkline/server/internal/cursor"
	part "github.com/trunkline-mq/trunkline/server/internal/partition"
)

const (
	fetchBytesDefault = 1 << 20
	fetchBytesMax     = 64 << 20
	fetchWaitMax      = 5 * time.Minute
	fetchItemsMax     = 1 << 14
	// fetchBytes and fetchItemBytes are about what a FETCH that waits for its turn takes of memory, its goroutine's
	// stack included, and what each of its partitions does.
	fetchBytes, fetchItemBytes = 4 << 10, 256
	// fetchReadTime is how long finding what to send may take, beside waiting for it.
	fetchReadTime = 10 * time.Second
)

// fetch is one FETCH: what is asked for, and what it waits for.
type fetch struct {
	fetchAsk
	conn  *conn
	place *answer
	now   int64         // milliseconds; when it was asked
	end   chan struct{} // closed by a later verb: the poll ends at once with what it has
	wake  chan struct{}
}

// fetchAsk is what a FETCH asks for.
type fetchAsk struct {
	max   int64
	min   int64
	wait  time.Duration
	items []fetchItem
}

// fetchItem is one partition of a FETCH.
type fetchItem struct {
	name  string        // of the topic, as asked
	topic *broker.Topic // nil: there is none
	id    partition.ID
	pos   address.Position
	part  *part.Partition // nil until it is located, and where it cannot be
	off   record.Offset
	falls uint64       // of the partition, when off was there
	fault errcode.Code // empty: none
}

// handleFetch starts a FETCH. It is answered in a goroutine of its own, so that the reader hears the verb that ends a
// long poll.
func (c *conn) handleFetch(cmd *line.Command) {
	f, err := c.newFetch(cmd)
	if err != nil {
		c.fail(cmd, err)
		return
	}
	f.place = c.box.push(place{holds: fetchBytes + len(f.items)*fetchItemBytes})
	c.poll = f.end
	c.task(f.run)
}

// endPoll ends a long poll that is under way: another verb has come.
func (c *conn) endPoll() {
	if c.poll != nil {
		close(c.poll)
		c.poll = nil
	}
}

func (c *conn) newFetch(cmd *line.Command) (*fetch, *errcode.Error) {
	ask, err := parseFetch(cmd)
	if err != nil {
		return nil, err
	}
	for i := range ask.items {
		it := &ask.items[i]
		it.topic = c.broker().Lookup([]byte(it.name))
	}
	return &fetch{fetchAsk: ask, conn: c, now: c.pub.now, end: make(chan struct{}), wake: make(chan struct{}, 1)}, nil
}

// parseFetch reads either form of FETCH.
func parseFetch(cmd *line.Command) (fetchAsk, *errcode.Error) {
	f := fetchAsk{max: fetchBytesDefault, min: 1}
	var err *errcode.Error
	if cmd.Payload != nil {
		err = f.readJSON(cmd.Payload)
	} else {
		err = f.readArgs(cmd.Args)
	}
	switch {
	case err != nil:
		return f, err
	case len(f.items) == 0:
		err = errcode.New(errcode.BadArgs, "FETCH names no partition", "use "+line.Fetch.Usage())
	case len(f.items) > fetchItemsMax:
		err = errTooManyItems(len(f.items))
	case f.max < 1 || f.max > fetchBytesMax || f.min < 0 || f.min > f.max || f.wait < 0 || f.wait > fetchWaitMax:
		err = errcode.New(errcode.BadArgs, "max, min or wait of FETCH is out of range", "max goes to 64MiB, min to max, wait to 5m")
	}
	return f, err
}

func errTooManyItems(n int) *errcode.Error {
	return errcode.New(errcode.LimitExceeded, fmt.Sprintf("FETCH names %d partitions", n), fmt.Sprintf("name at most %d", fetchItemsMax))
}

func (f *fetchAsk) readArgs(args [][]byte) *errcode.Error {
	for _, arg := range args {
		text := string(arg)
		key, value, isOption := strings.Cut(text, "=")
		if isOption {
			if err := f.option(key, value); err != nil {
				return err
			}
			continue
		}
		addr, err := parseRead(arg, false)
		switch {
		case err != nil:
			return err
		case addr.Partition == partition.None || addr.Position.Kind == address.None:
			return errcode.New(errcode.BadAddress, fmt.Sprintf("%q names no partition or no offset", clip(arg)), "use "+line.Fetch.Usage())
		}
		f.items = append(f.items, fetchItem{name: string(addr.Topic), id: addr.Partition, pos: addr.Position})
	}
	return nil
}

func (f *fetchAsk) option(key, value string) *errcode.Error {
	var err error
	switch key {
	case "max":
		f.max, err = sizeOption(value)
	case "min":
		f.min, err = sizeOption(value)
	case "wait":
		f.wait, err = address.ParseDuration(value)
	default:
		err = errors.New("unknown")
	}
	if err != nil {
		return errcode.New(errcode.BadArgs, fmt.Sprintf("%q is no option of FETCH", clip([]byte(key+"="+value))), "use "+line.Fetch.Usage())
	}
	return nil
}

// sizeOption reads a size with a unit, or a number of bytes.
func sizeOption(value string) (int64, error) {
	if n, err := strconv.ParseUint(value, 10, 63); err == nil { // digits only
		return int64(n), nil
	}
	return address.ParseBytes(value)
}

// fetchJSON is FETCH's JSON (PROTOCOL §6). A partition's epoch is the replicas' business and not looked at.
type fetchJSON struct {
	Max        *int64          `json:"max"`
	Min        *int64          `json:"min"`
	Wait       json.RawMessage `json:"wait"` // "500ms", or a number of milliseconds
	Partitions []struct {
		Topic     string       `json:"topic"`
		Partition partition.ID `json:"partition"`
		Offset    int64        `json:"offset"`
	} `json:"partitions"`
}

func (f *fetchAsk) readJSON(text []byte) *errcode.Error {
	// Each partition has a brace: what names too many is refused before it is taken apart.
	if n := bytes.Count(text, []byte("{")) - 1; n > fetchItemsMax {
		return errTooManyItems(n)
	}
	var ask fetchJSON
	if err := json.Unmarshal(text, &ask); err != nil {
		return errcode.New(errcode.BadJSON, "FETCH's JSON cannot be read: "+jsonFault(err),
			`send {"partitions":[{"topic":"orders","partition":0,"offset":0}]}`)
	}
	if ask.Max != nil {
		f.max = *ask.Max
	}
	if ask.Min != nil {
		f.min = *ask.Min
	}
	if err := f.readWait(ask.Wait); err != nil {
		return errcode.New(errcode.BadJSON, "wait of FETCH is no time", `send "500ms", or a number of milliseconds`)
	}
	for _, p := range ask.Partitions {
		f.items = append(f.items, fetchItem{name: p.Topic, id: p.Partition, pos: address.Position{Kind: address.Offset, N: p.Offset}})
	}
	return nil
}

// readWait reads a time with a unit, or a number of milliseconds. What is beyond any wait is as good as too long.
func (f *fetchAsk) readWait(text json.RawMessage) error {
	if len(text) == 0 {
		return nil
	}
	var ms int64
	if json.Unmarshal(text, &ms) == nil {
		f.wait = time.Duration(max(-1, min(ms, int64(2*fetchWaitMax/time.Millisecond)))) * time.Millisecond
		return nil
	}
	var span string
	if err := json.Unmarshal(text, &span); err != nil {
		return err
	}
	wait, err := address.ParseDuration(span)
	f.wait = wait
	return err
}

// locate says where the partition is read from, as of now: what the connection published before is there.
func (it *fetchItem) locate(ctx context.Context, nowMS int64) {
	if it.topic == nil {
		it.fault = errcode.UnknownTopic
		return
	}
	p, err := it.topic.Partition(it.id)
	if err == nil {
		it.part, it.falls = p, p.Falls()
		it.off, err = cursor.Seek(ctx, p, it.pos, address.Earliest, nowMS)
	}
	if err != nil {
		it.fault = err.Code
	}
}

// run waits for its turn and for data, and answers.
func (f *fetch) run() {
	c := f.conn
	ctx, cancel := context.WithTimeout(context.Background(), f.wait+fetchReadTime)
	defer cancel()
	if !c.box.waitOldest(f.place, nil) { // a connection that ends still answers what it was asked
		f.place.settlePieces(nil, nil)
		return
	}
	for i := range f.items {
		f.items[i].locate(ctx, f.now)
		if p := f.items[i].part; p != nil {
			p.Watch(f.wake)
			defer p.Unwatch(f.wake)
		}
	}
	timer := time.NewTimer(f.wait)
	defer timer.Stop()
	over := f.wait == 0
	for {
		pieces, size, after := f.gather(ctx)
		if over || after == gatherAnswer || size >= f.min {
			f.place.settlePieces(pieces, []byte("+OK\r\n"))
			return
		}
		release(pieces)
		var again chan struct{} // nil: only when something has come
		if after == gatherAgain {
			again = make(chan struct{})
			close(again)
		}
		select {
		case <-again:
		case <-f.wake: // new records, or a partition that closed
		case <-timer.C:
			over = true
		case <-f.end:
			over = true
		case <-c.stop:
			over = true
		}
	}
}

// gathered says what comes after a gather, beside what its size says.
type gathered int

const (
	gatherWait   gathered = iota // for more
	gatherAnswer                 // there is trouble to tell of, or what is there is all that can be had at once
	gatherAgain                  // others hold what is needed, and will let go of it
)

// gather takes what is there now: at least one batch, and no more than max bytes beyond that.
func (f *fetch) gather(ctx context.Context) (pieces []piece, size int64, after gathered) {
	for i := range f.items {
		item := &f.items[i]
		if item.fault == "" && isGone(item.topic) {
			item.fault = errcode.TopicDeleted
		}
		if item.fault == "" {
			if size > 0 && size >= f.max {
				continue
			}
			p, n, err := item.read(ctx, f.max-size, size == 0)
			if err == nil {
				if n > 0 {
					pieces, size = append(pieces, p), size+n
				}
				continue
			}
			if errors.Is(err, lend.ErrCrowded) {
				if size == 0 && after == gatherWait {
					return pieces, size, gatherAgain
				}
				return pieces, size, gatherAnswer
			}
			item.fault = errcode.From(err, errcode.StorageUnavailable).Code
		}
		pieces, after = append(pieces, piece{head: item.appendFault(nil)}), gatherAnswer
	}
	return pieces, size, after
}

func isGone(t *broker.Topic) bool {
	select {
	case <-t.Gone():
		return true
	default:
		return false
	}
}

// read makes the piece of one partition; size 0 where there is nothing new, or nothing that fits.
func (it *fetchItem) read(ctx context.Context, limit int64, first bool) (piece, int64, error) {
	if to, fell := it.part.FellSince(it.falls); fell && it.off > to {
		return piece{}, 0, errcode.New(errcode.OffsetOutOfRange, "", "")
	}
	end := it.part.HighWatermark()
	e, err := it.part.Log().Extent(ctx, it.off, end, limit)
	var damage *lend.CorruptError
	switch {
	case errors.Is(err, lend.ErrEnd):
		return piece{}, 0, nil
	case errors.As(err, &damage):
		return piece{}, 0, errcode.Wrap(errcode.Corrupt, err, "", "")
	case errors.Is(err, storage.ErrOffsetOutOfRange):
		return piece{}, 0, errcode.Wrap(errcode.OffsetOutOfRange, err, "", "")
	case err != nil:
		return piece{}, 0, err
	}
	base, size := e.Place()
	if size > limit && !first {
		e.Release()
		return piece{}, 0, nil
	}
	stats := it.part.Log().Stats()
	head := append([]byte("BATCH "), address.AppendAddress(nil, it.part.Name.Topic, it.part.Name.ID, base)...)
	head = fmt.Appendf(head, " %d %d %d\r\n", end, stats.LogStart, size)
	return piece{head: head, extent: e}, size, nil
}

func (it *fetchItem) appendFault(dst []byte) []byte {
	end, start := record.Offset(-1), record.Offset(-1)
	if it.part != nil {
		end, start = it.part.HighWatermark(), it.part.Log().Stats().LogStart
	}
	name := it.name
	if !address.ValidSubject(name) || len(name) > address.TopicBytesMax { // not to be sent back: it could forge a frame, or make a small request's answer long
		name = "-"
	} else {
		name += "/" + strconv.Itoa(int(it.id))
	}
	return fmt.Appendf(dst, "PART %s %d %d %s\r\n", name, end, start, it.fault)
}
