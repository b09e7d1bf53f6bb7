package archive

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// The objects of a partition, below a directory of its name:
//
//	partition                                                  "1 <topic id>\n": whose the rest is
//	start_<offset>                                             empty: the log start; the highest one counts
//	end_<offset>                                               empty: a truncation that is under way
//	batches_<base>_<next>_<epoch>_<sum>_<max timestamp>_<time> one group, as it came
//
// Offsets have 20 digits, so that names sort as they do. The time is when the group was put, in milliseconds.
const (
	markName      = "partition"
	startPrefix   = "start_"
	endPrefix     = "end_"
	batchesPrefix = "batches_"
)

// object is a group that was put.
type object struct {
	base, next   record.Offset
	epoch        record.Epoch
	sum          uint32
	maxTimestamp int64
	put          int64 // milliseconds
	size         int64
}

func startName(o record.Offset) string { return fmt.Sprintf("%s%020d", startPrefix, o) }
func endName(o record.Offset) string   { return fmt.Sprintf("%s%020d", endPrefix, o) }

func (o *object) name() string {
	return fmt.Sprintf("%s%020d_%020d_%d_%08x_%d_%d", batchesPrefix, o.base, o.next, o.epoch, o.sum, o.maxTimestamp, o.put)
}

// parseObject reads a name of batches.
func parseObject(name string, size int64) (object, bool) {
	o := object{size: size}
	_, err := fmt.Sscanf(name, batchesPrefix+"%d_%d_%d_%x_%d_%d", &o.base, &o.next, &o.epoch, &o.sum, &o.maxTimestamp, &o.put)
	return o, err == nil && o.base >= 0 && o.next > o.base && o.size > 0 && o.name() == name
}

func parseOffset(name, prefix string) (record.Offset, bool) {
	n, err := strconv.ParseInt(strings.TrimPrefix(name, prefix), 10, 64)
	return record.Offset(n), err == nil && n >= 0 && name == fmt.Sprintf("%s%020d", prefix, n)
}

// contents is what a list of a partition says.
type contents struct {
	marked  bool
	start   record.Offset   // the highest start
	starts  []record.Offset // all of them
	ends    []record.Offset
	objects []object // by base; of one base, the longest first
}

// read takes a list apart; ErrFormat where there is something that this version would not have put.
func (c *contents) read(list []Object) error {
	for _, o := range list {
		ok := true
		var at record.Offset
		switch {
		case o.Name == markName:
			c.marked = true
		case strings.HasPrefix(o.Name, startPrefix):
			at, ok = parseOffset(o.Name, startPrefix)
			c.starts, c.start = append(c.starts, at), max(c.start, at)
		case strings.HasPrefix(o.Name, endPrefix):
			at, ok = parseOffset(o.Name, endPrefix)
			c.ends = append(c.ends, at)
		case strings.HasPrefix(o.Name, batchesPrefix):
			var one object
			one, ok = parseObject(o.Name, o.Size)
			c.objects = append(c.objects, one)
		default:
			ok = false
		}
		if !ok {
			return fmt.Errorf("%w: object %.200q", storage.ErrFormat, o.Name)
		}
	}
	slices.SortFunc(c.objects, func(a, b object) int { return cmp.Or(cmp.Compare(a.base, b.base), cmp.Compare(b.next, a.next)) })
	return nil
}

// names are those of everything in the list but the mark.
func names(list []Object) []string {
	var all []string
	for _, o := range list {
		if o.Name != markName {
			all = append(all, o.Name)
		}
	}
	return all
}
