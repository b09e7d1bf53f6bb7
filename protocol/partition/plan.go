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
	Kind       string `json:"kind"`       // "murmur2"
	Partitions int32  `json:"partitions"` // what the plan was made for
}
