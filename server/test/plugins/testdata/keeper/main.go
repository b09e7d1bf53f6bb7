// Command keeper is a metadata plugin of a third party: the embedded store under another name.
package main

import (
	"path/filepath"

	"github.com/trunkline-mq/trunkline/plugins/metadata/embedded"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
)

func main() {
	sdk.Serve(sdk.Plugin{
		Kind: sdk.KindMetadata, Name: "keeper", Version: "2.0.0",
		Setup: func(p *sdk.Plugin) (err error) {
			p.Metadata, err = embedded.Open(embedded.Options{Path: filepath.Join(sdk.DataDir(), "meta", "keeper.db"), Logger: sdk.Logger()})
			return err
		},
	})
}
