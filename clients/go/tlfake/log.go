package tlfake

import (
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/protocol/address"
	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/record/codec"
)

// topic is guarded by the server's lock, as are its logs.
type topic struct {
	name  string
	id    string
	set   settings
	plan  *partition.Evaluator
	parts []*log
	gone  bool
}

// log is one partition: batches in the order of their offsets.
type log struct {
	topic   *topic
	id      partition.ID
	start   record.Offset
	next    record.Offset
	batches []record.Batch
}

func (l *log) String() string { return fmt.Sprintf("%s/%d", l.topic.name, l.id) }

// appendBatches stamps whole batches, which are the log's from then on, and returns the first offset.
func (l *log) appendBatches(all []byte) record.Offset {
	base := l.next
	for len(all) > 0 {
		size, _ := record.SizeOf(all) // checked before
		b := record.Batch(all[:size:size])
		b.SetBase(l.next)
		b.SetEpoch(0)
		if l.topic.set.appendTime {
			b.SetAppendTime(time.Now().UnixMilli())
		}
		l.batches = append(l.batches, b)
		l.next = b.NextOffset()
		all = all[size:]
	}
	return base
}

// each calls f for the records from an offset on, until it returns false. What f is given is valid during the call.
func (l *log) each(from record.Offset, f func(record.Offset, *record.Record) bool) {
	var reader codec.Reader
	defer reader.Close()
	var r record.Record
	for _, b := range l.batches[l.find(from):] {
		reader.Reset(b, int(codec.BatchLimit(len(b))))
		for o, ok := reader.Next(&r); ok; o, ok = reader.Next(&r) {
			if o >= from && !f(o, &r) {
				return
			}
		}
	}
}

// find is the number of the first batch that ends behind an offset.
func (l *log) find(from record.Offset) int {
	n, _ := slices.BinarySearchFunc(l.batches, from, func(b record.Batch, o record.Offset) int {
		if b.NextOffset() <= o {
			return -1
		}
		return 1
	})
	return n
}

func (l *log) seek(pos address.Position, none address.PositionKind, now int64) (record.Offset, *errcode.Error) {
	if pos.Kind == address.None {
		pos.Kind = none
	}
	switch pos.Kind {
	case address.Earliest:
		return l.start, nil
	case address.Latest:
		return l.next, nil
	case address.LastN:
		return max(l.start, l.next-record.Offset(pos.N)), nil
	case address.Offset:
		if o := record.Offset(pos.N); o >= l.start && o <= l.next {
			return o, nil
		}
		return 0, pos.OutOfRange(l.String(), l.start, l.next)
	}
	ms := pos.N
	if pos.Kind == address.Ago {
		ms = now - pos.Ago.Milliseconds()
	}
	found := l.next
	l.each(l.start, func(o record.Offset, r *record.Record) bool {
		if r.Timestamp >= ms {
			found = o
			return false
		}
		return true
	})
	return found, nil
}

// trim drops what lies below an offset, by whole batches.
func (l *log) trim(to record.Offset) {
	l.start = max(l.start, to)
	l.batches = slices.Clone(l.batches[l.find(l.start):])
}

// log returns a partition.
func (t *topic) log(id partition.ID) (*log, *errcode.Error) {
	if id < 0 || int(id) >= len(t.parts) {
		return nil, errcode.New(errcode.UnknownPartition,
			fmt.Sprintf("topic %s has partitions 0 to %d, not %d", t.name, len(t.parts)-1, id), "name one of these, or none")
	}
	return t.parts[id], nil
}

// logs are the partitions that an address means.
func (t *topic) logs(id partition.ID) ([]*log, *errcode.Error) {
	if id == partition.None {
		return t.parts, nil
	}
	l, err := t.log(id)
	if err != nil {
		return nil, err
	}
	return []*log{l}, nil
}

// forKey is the partition of a key. A called plan is evaluated here: it only has to be the same each time.
func (t *topic) forKey(key []byte) partition.ID {
	if id := t.plan.ForKey(key); id != partition.None {
		return id
	}
	h := fnv.New32()
	h.Write(key) // cannot fail
	return partition.ID(h.Sum32() / 7 % uint32(len(t.parts)))
}

func (t *topic) grow(n int32) {
	for id := int32(len(t.parts)); id < n; id++ {
		t.parts = append(t.parts, &log{topic: t, id: partition.ID(id)})
	}
}

// newPlan makes a plan of a partitioner's; false for one that there is not.
func newPlan(by string, version int64, partitions int32) (*partition.Evaluator, bool) {
	p := partition.Plan{Version: version, Kind: by, Partitions: partitions}
	if by == "jump" {
		p.Kind, p.Partitioner = partition.KindCalled, by
	} else if by == partition.KindCalled {
		return nil, false
	}
	e, err := partition.NewEvaluator(p)
	return e, err == nil
}

// createLocked makes a topic.
func (s *Server) createLocked(name string, set settings, partitions int32, by string) (*topic, *errcode.Error) {
	if err := address.ValidTopic(name); err != nil {
		return nil, errcode.From(err, errcode.BadName)
	}
	if s.topics[name] != nil {
		return nil, errcode.New(errcode.TopicExists, fmt.Sprintf("topic %s exists", name), "use it, or choose another name")
	}
	for other := range s.topics {
		if address.Fold(other) == address.Fold(name) {
			return nil, errcode.New(errcode.NameCollision, fmt.Sprintf("topic %s: topic name collides with %s", name, other), "names may not differ only in . against _")
		}
	}
	if partitions == 0 {
		partitions = s.opt.partitions
	}
	plan, ok := newPlan(by, s.floor+1, partitions)
	if !ok {
		return nil, errcode.New(errcode.BadSetting, fmt.Sprintf("there is no partitioner %s", by), "choose one of "+strings.Join(partitioners, ", "))
	}
	s.ids++
	t := &topic{name: name, id: hex.EncodeToString(fmt.Appendf(nil, "fake%012d", s.ids)), set: set, plan: plan}
	t.grow(partitions)
	s.topics[name] = t
	s.noteLocked()
	return t, nil
}

var partitioners = []string{"murmur2", "crc32", "fnv1a", "jump", "roundrobin", "sticky"}

// ensureLocked returns the topic that a publish names, and makes it where it is missing.
func (s *Server) ensureLocked(name string, id partition.ID) (*topic, *errcode.Error) {
	if t := s.topics[name]; t != nil {
		return t, nil
	}
	if err := address.ValidTopic(name); err != nil {
		return nil, errcode.From(err, errcode.BadName)
	}
	if !s.opt.autoCreate {
		return nil, errcode.New(errcode.UnknownTopic, fmt.Sprintf("topic %s does not exist", name), "create it with TOPIC CREATE "+name)
	}
	if id >= partition.ID(s.opt.partitions) {
		return nil, errcode.New(errcode.UnknownPartition, fmt.Sprintf("topic %s does not exist, and a publish would make it with %d partitions", name, s.opt.partitions),
			"create it with TOPIC CREATE "+name+" partitions=N")
	}
	return s.createLocked(name, defaultSettings(), 0, partition.KindMurmur2)
}
