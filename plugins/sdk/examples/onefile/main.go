// Command trunkline-plugin-storage-onefile is a store for Trunkline that keeps each partition in one file, to which it
// appends. It is of the form without lending: the server hands it batches, and it answers when they are synced.
//
// It is an example. What a server ships does more: it indexes, it keeps room on a full disk, and its files are Kafka's.
package main

import (
	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/plugins/storage/stream"
)

const (
	name    = "onefile"
	version = "1.0.0"
)

func main() {
	sdk.Serve(sdk.Plugin{
		Kind: sdk.KindStorage, Name: name, Version: version,
		Setup: func(p *sdk.Plugin) error {
			s, err := newStore(sdk.DataDir())
			if err != nil {
				return err
			}
			p.Storage = stream.Serve(s)
			return nil
		},
	})
}
