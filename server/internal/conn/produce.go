package conn

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
	part "github.com/trunkline-mq/trunkline/server/internal/partition"
	"github.com/trunkline-mq/trunkline/server/internal/setting"
)

// produceOptions are what a PRODUCE may carry before its size.
type produceOptions struct {
	unacked bool  // acks=0
	plan    int64 // -1: not named
	timeout time.Duration
}

// handleProduce takes whole record batches to a partition.
func (c *conn) handleProduce(cmd *line.Command) {
	if err := c.produce(cmd); err != nil {
		c.fail(cmd, err)
	}
}

func (c *conn) produce(cmd *line.Command) *errcode.Error {
	topic, to, opt, err := c.produceArgs(cmd)
	if err != nil {
		return err
	}
	if opt.plan >= 0 && opt.plan != topic.Meta.Plan.Version {
		return errcode.New(errcode.PlanStale, fmt.Sprintf("topic %s has plan version %d, not %d", topic.Meta.Name, topic.Meta.Plan.Version, opt.plan),
			"read METADATA and choose the partition again")
	}
	n, err := checkBatches(cmd.Payload, topic.Set.MessageBytes)
	if err != nil {
		return err
	}
	if opt.unacked {
		name := to.Name
		c.box.say(func(dst []byte) []byte {
			return line.AppendOK(dst, string(address.AppendAddress(nil, name.Topic, name.ID, -1))+" none")
		})
		// The client does not want to know; a failure is counted nowhere but in the log.
		if err := to.Produce(c.stop, c.batches(cmd, n), unheard{c, to, !c.opt.echo}); err != nil {
			c.log.Debug("unacknowledged PRODUCE failed", "partition", name.String(), "err", err)
		}
		return nil
	}
	a := c.box.push(place{part: to, once: true, verb: line.Produce, due: c.due(opt.timeout), own: !c.opt.echo})
	if err := to.Produce(c.stop, c.batches(cmd, n), a); err != nil {
		a.Settled(part.Outcome{N: 1, Err: err})
	}
	return nil
}

// batches is what cmd carries. The partition may keep the memory it lies in; cmd is void then.
func (c *conn) batches(cmd *line.Command, n int32) part.Batches {
	b := part.Batches{Bytes: cmd.Payload, Records: n}
	if len(cmd.Payload) >= part.KeepBytesLeast {
		if body := c.parser.TakeBody(); body != nil { // an interface with a nil in it is not nil
			b.Owner = body
		}
	}
	return b
}

// unheard is the claimant of a PRODUCE with acks=0.
type unheard struct {
	c   *conn
	to  *part.Partition
	own bool
}

// Placed is that of an answer.
func (u unheard) Placed(base record.Offset, n int32) {
	if u.own {
		u.c.box.hide(u.to, base, n)
	}
}

// Settled logs a failure.
func (u unheard) Settled(o part.Outcome) {
	if o.Err != nil {
		u.c.log.Debug("unacknowledged PRODUCE failed", "err", o.Err)
	}
}

func (c *conn) produceArgs(cmd *line.Command) (*broker.Topic, *part.Partition, produceOptions, *errcode.Error) {
	opt := produceOptions{plan: -1, timeout: c.srv.opt.Publish}
	addr, err := address.Parse(cmd.Args[0])
	if err == nil {
		err = addr.ForPublish()
	}
	if err == nil && addr.Partition == partition.None {
		err = errcode.New(errcode.BadAddress, "PRODUCE names no partition", "use "+line.Produce.Usage())
	}
	if err != nil {
		return nil, nil, opt, errcode.From(err, errcode.BadAddress)
	}
	for _, arg := range cmd.Args[1:] {
		if err := opt.take(string(arg)); err != nil {
			return nil, nil, opt, err
		}
	}
	if c.broker().Lookup(addr.Topic) == nil { // what is refused makes no topic
		if _, err := checkBatches(cmd.Payload, setting.Defaults().MessageBytes); err != nil {
			return nil, nil, opt, err
		}
	}
	topic, fault := c.topicFor(&addr)
	if fault != nil {
		return nil, nil, opt, fault
	}
	to, fault := topic.Partition(addr.Partition)
	return topic, to, opt, fault
}

func (o *produceOptions) take(arg string) *errcode.Error {
	key, value, _ := strings.Cut(arg, "=")
	ok := false
	switch key {
	case "acks":
		o.unacked = value == "0"
		ok = value == "0" || value == "1" || value == "all"
	case "timeout":
		d, err := address.ParseDuration(value)
		o.timeout, ok = d, err == nil && d >= time.Millisecond
	case "plan":
		n, err := strconv.ParseUint(value, 10, 63) // digits only
		o.plan, ok = int64(n), err == nil
	}
	if !ok {
		return errcode.New(errcode.BadArgs, fmt.Sprintf("%q is no option of PRODUCE", clip([]byte(arg))), "use "+line.Produce.Usage())
	}
	return nil
}

// checkBatches checks what a client sent before it is written: whole batches, each sound, with offsets that count from
// 0, of no producer that wants more than to append. It returns how many offsets they take.
func checkBatches(b []byte, messageBytes int) (int32, *errcode.Error) {
	if len(b) == 0 {
		return 0, errcode.New(errcode.BadBatch, "PRODUCE carries no batch", "send at least one record batch")
	}
	var n int64
	for at := 0; at < len(b); {
		size, err := record.SizeOf(b[at:])
		if err == nil && size > len(b)-at {
			err = errors.New("it is cut off")
		}
		if err == nil && size > messageBytes {
			return 0, errcode.New(errcode.TooLarge, fmt.Sprintf("batch of %d bytes exceeds the topic's message.bytes of %d", size, messageBytes),
				"send smaller batches")
		}
		if err != nil {
			return 0, badBatch(at, err)
		}
		batch := record.Batch(b[at : at+size])
		if err := checkBatch(batch); err != nil {
			return 0, badBatch(at, err)
		}
		if batch.ProducerID() >= 0 || batch.Transactional() || batch.Control() {
			return 0, errcode.New(errcode.NotSupported, "idempotent and transactional batches are not offered yet", "send them with producer id -1")
		}
		n += int64(batch.LastDelta()) + 1
		if n > max(64*int64(len(b)), unpackedMax)/recordBytesMin {
			return 0, badBatch(at, fmt.Errorf("%d records are more than its bytes can hold", n))
		}
		at += size
	}
	return int32(n), nil
}

// A compressed batch's records are not counted. What it claims to hold is bounded by what it may unpack to, 64 times its
// size or 64 MiB, in records of seven bytes, the least there is: so offsets stay far from where they overflow.
const (
	unpackedMax    = 64 << 20
	recordBytesMin = 7
)

func badBatch(at int, err error) *errcode.Error {
	return errcode.Wrap(errcode.BadBatch, err, fmt.Sprintf("the batch at byte %d of the payload: %v", at, err),
		"send Kafka record batches of magic 2")
}

func checkBatch(b record.Batch) error {
	if err := b.Check(); err != nil {
		return err
	}
	switch {
	case b.Count() < 1 || b.Count() != b.LastDelta()+1:
		return fmt.Errorf("%d records with a last offset delta of %d", b.Count(), b.LastDelta())
	case b.Codec() != 0:
		return nil // its records are its consumers' to unpack
	}
	var r record.Record
	it := record.NewIterator(b)
	for want := b.BaseOffset(); ; want++ {
		off, ok := it.Next(&r)
		if !ok {
			return it.Err()
		}
		if off != want {
			return fmt.Errorf("record %d has offset delta %d", want-b.BaseOffset(), off-b.BaseOffset())
		}
	}
}
