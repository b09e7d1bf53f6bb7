// Command trunkline-plugin-partitioner-prefix is a partitioner for Trunkline: keys that begin alike, up to a separator,
// go to one partition. What happens to "anna:cart" and to "anna:orders" keeps its order.
package main

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

const (
	name    = "prefix"
	version = "1.0.0"
)

// config is what an operator may set.
type config struct {
	Separator string `json:"separator"`
}

// Validate refuses what would not work; its text is what the operator reads.
func (c *config) Validate() error {
	if len(c.Separator) != 1 {
		return fmt.Errorf("separator %q is not one byte long", c.Separator)
	}
	return nil
}

func main() {
	conf := config{Separator: ":"} // the default
	sdk.Serve(sdk.Plugin{
		Kind: sdk.KindPartitioner, Name: name, Version: version,
		Config: &conf,
		Setup: func(p *sdk.Plugin) error {
			p.Partitioner = prefixes{separator: conf.Separator[0]}
			return nil
		},
	})
}

// prefixes is the partitioner.
type prefixes struct{ separator byte }

// Describe tells what this is.
func (prefixes) Describe(ctx context.Context) (partitioner.Description, error) {
	return partitioner.Description{Name: name, Version: version}, ctx.Err()
}

// Plan says of a topic that its keys are to be asked for.
func (prefixes) Plan(ctx context.Context, r partitioner.PlanRequest) (partition.Plan, error) {
	if r.Partitions < 1 || r.Partitions > partition.CountMax {
		return partition.Plan{}, fmt.Errorf("%w: %d partitions", partitioner.ErrRefused, r.Partitions)
	}
	return partition.Plan{Kind: partition.KindCalled, Partitions: r.Partitions}, ctx.Err()
}

// Assign answers for all keys of a write.
func (p prefixes) Assign(ctx context.Context, r partitioner.AssignRequest, to []partition.ID) error {
	for i, key := range r.Keys.All() {
		if end := bytes.IndexByte(key, p.separator); end >= 0 {
			key = key[:end]
		}
		h := fnv.New32a()
		_, _ = h.Write(key) // a hash takes everything
		to[i] = partition.ID(h.Sum32() % uint32(r.Partitions))
	}
	return ctx.Err()
}
