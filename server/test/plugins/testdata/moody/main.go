// Command moody is a storage plugin of a third party: the filelog under another name, which opens partitions as the file
// that its configuration names says at that moment.
package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
)

type config struct {
	// Mood is a file: "error" and "hang" say what becomes of an open, anything else that all is well. What was asked for
	// is noted beside it, a line each.
	Mood string `json:"mood"`
}

func main() {
	var conf config
	sdk.Serve(sdk.Plugin{
		Kind: sdk.KindStorage, Name: "moody", Version: "1", Config: &conf,
		Setup: func(p *sdk.Plugin) error {
			data := filepath.Join(sdk.DataDir(), "moody")
			if err := os.MkdirAll(data, 0o700); err != nil {
				return err
			}
			s, err := filelog.New(filelog.Options{Data: data, Logger: sdk.Logger()})
			p.Storage = moody{s, conf.Mood}
			return err
		},
	})
}

type moody struct {
	*filelog.Store
	file string
}

func (m moody) mood() string {
	text, _ := os.ReadFile(m.file)
	return strings.TrimSpace(string(text))
}

// Open notes the call, and does as it is in the mood to.
func (m moody) Open(ctx context.Context, r storage.OpenRequest) (storage.Opened, error) {
	held := "recover"
	if r.Held != nil {
		held = "adopt"
	}
	if err := m.note(held + " " + r.Partition.String() + "\n"); err != nil {
		return storage.Opened{}, err
	}
	if m.mood() == "error" {
		return storage.Opened{}, errors.New("the moon is full")
	}
	for m.mood() == "hang" { // whatever becomes of the caller
		time.Sleep(10 * time.Millisecond)
	}
	return m.Store.Open(ctx, r)
}

func (m moody) note(text string) error {
	f, err := os.OpenFile(m.file+".calls", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
