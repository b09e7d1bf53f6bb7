package conn

import (
	"fmt"
	"strconv"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/server/internal/broker"
	"github.com/trunkline-mq/trunkline/server/internal/cursor"
)

// getCountDefault is how many records a GET without a count delivers, over all partitions.
const getCountDefault = 10

// getSID stands in the frames of a GET where a subscription's sid would.
var getSID = []byte("0")

// handleGet delivers records and the addresses at which the next GET goes on. It sees what this connection published
// before.
func (c *conn) handleGet(cmd *line.Command) {
	if !c.box.waitAnswered(c.stop) {
		return
	}
	next, err := c.get(cmd)
	if err != nil {
		c.fail(cmd, err)
		return
	}
	c.box.say(func(dst []byte) []byte { return line.AppendOK(dst, next) })
}

func (c *conn) get(cmd *line.Command) (next string, _ *errcode.Error) {
	addr, count, err := c.getArgs(cmd)
	if err != nil {
		return "", err
	}
	topic := c.broker().Lookup(addr.Topic)
	if topic == nil {
		return "", errUnknownTopic(addr.Topic)
	}
	cursors, err := c.cursors(topic, &addr)
	if err != nil {
		return "", err
	}
	f := framer{opt: c.opt, sid: getSID}
	for i := range cursors {
		n, err := c.deliverSome(&f, &cursors[i], count)
		if err != nil {
			return "", err
		}
		count -= n
		if i > 0 {
			next += " "
		}
		p := cursors[i].Partition().Name
		next += string(address.AppendAddress(nil, p.Topic, p.ID, cursors[i].Offset()))
	}
	return next, nil
}

func (c *conn) getArgs(cmd *line.Command) (addr address.Address, count int, _ *errcode.Error) {
	if len(cmd.Args) < 1 || len(cmd.Args) > 2 {
		return addr, 0, errcode.New(errcode.BadArgs, fmt.Sprintf("GET has %d arguments", len(cmd.Args)), "use "+line.Get.Usage())
	}
	addr, err := c.readAddress(cmd.Args[0])
	if err != nil {
		return addr, 0, err
	}
	count = getCountDefault
	if len(cmd.Args) == 2 {
		n, err := strconv.ParseUint(string(cmd.Args[1]), 10, 31)
		if err != nil || n == 0 {
			return addr, 0, errcode.New(errcode.BadArgs, fmt.Sprintf("count %q is not a number from 1", clip(cmd.Args[1])), "use "+line.Get.Usage())
		}
		count = int(n)
	}
	return addr, count, nil
}

// parseRead reads an address to read from; a literal one is a topic's name and nothing else.
func parseRead(field []byte, literal bool) (address.Address, *errcode.Error) {
	if literal {
		return address.ParseLiteral(field), nil
	}
	addr, err := address.Parse(field)
	if err == nil {
		err = addr.ForRead()
	}
	if err != nil {
		return addr, errcode.From(err, errcode.BadAddress)
	}
	return addr, nil
}

// readAddress reads an address to read from and refuses what this version does not serve.
func (c *conn) readAddress(field []byte) (address.Address, *errcode.Error) {
	addr, err := parseRead(field, c.opt.literal)
	switch {
	case err != nil:
		return addr, err
	case address.HasWildcard(addr.Topic):
		return addr, errcode.New(errcode.NotSupported, "wildcards are not offered yet", "name one topic")
	case address.IsLive(addr.Topic, c.srv.opt.Live):
		return addr, errLive(addr.Topic)
	}
	return addr, nil
}

// cursors returns one cursor for each partition the address means, in ascending order.
func (c *conn) cursors(t *broker.Topic, addr *address.Address) ([]cursor.Cursor, *errcode.Error) {
	var all []cursor.Cursor
	for first, last := meant(t, addr); first <= last; first++ {
		p, err := t.Partition(first)
		if err != nil {
			return nil, err
		}
		off, err := cursor.Seek(c.ctx, p, addr.Position, address.Earliest, c.pub.now)
		if err != nil {
			return nil, err
		}
		all = append(all, cursor.New(p, off))
	}
	return all, nil
}

// meant are the partitions of t that an address means: first to last.
func meant(t *broker.Topic, addr *address.Address) (first, last partition.ID) {
	if addr.Partition != partition.None {
		return addr.Partition, addr.Partition
	}
	return 0, partition.ID(t.Meta.Partitions - 1)
}

// deliverSome sends up to count records that are visible now.
func (c *conn) deliverSome(f *framer, cur *cursor.Cursor, count int) (int, *errcode.Error) {
	end := cur.Partition().HighWatermark()
	var r record.Record
	for n := range count {
		if !c.box.waitRoom(c.stop) {
			return n, errcode.New(errcode.ShuttingDown, "the connection is closing", "connect again")
		}
		off, ok, err := cur.Record(c.ctx, end, &r)
		if err != nil {
			return n, cursor.ReadFailed(cur.Partition(), err)
		}
		if !ok {
			return n, nil
		}
		c.box.frame(func(dst []byte) []byte { return f.append(dst, cur.Partition(), off, &r) })
	}
	return count, nil
}

func errUnknownTopic(name []byte) *errcode.Error {
	return errcode.New(errcode.UnknownTopic, fmt.Sprintf("topic %s does not exist", clip(name)),
		"create it with TOPIC CREATE, or look with TOPIC LIST")
}
