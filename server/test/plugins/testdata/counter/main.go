// Command counter is a partitioner that is called, and writes down of each call how many keys it was asked for.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/jump"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

func main() {
	var conf struct {
		File string `json:"file"`
	}
	sdk.Serve(sdk.Plugin{
		Kind: sdk.KindPartitioner, Name: "counter", Version: "1",
		Config: &conf,
		Setup: func(p *sdk.Plugin) error {
			f, err := os.OpenFile(conf.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			p.Partitioner = counter{file: f}
			return err
		},
	})
}

// counter does what jump does.
type counter struct {
	jump.Partitioner
	file *os.File
}

// Describe tells what this is.
func (counter) Describe(ctx context.Context) (partitioner.Description, error) {
	return partitioner.Description{Name: "counter", Version: "1"}, ctx.Err()
}

// Assign writes a line for the call.
func (c counter) Assign(ctx context.Context, r partitioner.AssignRequest, to []partition.ID) error {
	if _, err := fmt.Fprintln(c.file, r.Keys.Len()); err != nil {
		return err
	}
	return c.Partitioner.Assign(ctx, r, to)
}
