// Package partition says which partition of a topic a record goes to. A Plan is what a partitioner plugin lends: a
// strategy that can be stated. An Evaluator runs a plan inside the core or a client, without asking anyone.
package partition

// ID numbers a partition of a topic, from 0.
type ID int32

// None stands for "no partition chosen".
const None ID = -1

// CountMax is the largest number of partitions of a topic. Publish acks pack the partition into 11 bits beside the
// offset (PROTOCOL §4.6), so it cannot grow without changing them.
const CountMax = 2048

// Plan states a strategy. It is committed to metadata together with the topic, and its version grows with each change.
type Plan struct {
	Version    int64  `json:"version"`
	Kind       string `json:"kind"`       // one of the Kind constants
	Partitions int32  `json:"partitions"` // what the plan was made for
	// Partitioner is who lent the plan. Empty: a partitioner of the same name as Kind.
	Partitioner string `json:"partitioner,omitempty"`
}

// By is the name of the partitioner whose plan it is.
func (p Plan) By() string {
	if p.Partitioner == "" {
		return p.Kind
	}
	return p.Partitioner
}

// Keyed reports whether the strategy keeps the records of a key together, so that they have an order.
func (p Plan) Keyed() bool { return p.Kind != KindRoundRobin && p.Kind != KindSticky }

// Places reports whether q is certain to send every key where p sends it.
func (p Plan) Places(q Plan) bool {
	if p.Partitions != q.Partitions {
		return false
	}
	return p.Partitions == 1 || p.Keyed() && p.Kind == q.Kind && (p.Kind != KindCalled || p.By() == q.By())
}
