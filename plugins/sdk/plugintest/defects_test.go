package plugintest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	"github.com/trunkline-mq/trunkline/plugins/metadata/embedded"
	"github.com/trunkline-mq/trunkline/plugins/partitioner"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/jump"
	"github.com/trunkline-mq/trunkline/plugins/sdk"
	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// childMain is the main of a plugin with one defect; none for the word "sound".
func childMain(kind, defect string) {
	p := sdk.Plugin{Kind: kind, Name: "probe", Version: "1"}
	switch defect {
	case "garbage":
		fmt.Println("Hello!")
	case "crash":
		sdk.Fatal(errors.New("the flux capacitor is missing"))
	case "version":
		fmt.Println("1|99|unix|/nowhere/plugin1|grpc|")
		hang()
	case "other":
		p.Name = "another"
	case "nameless":
		p.Version = ""
	}
	switch kind {
	case sdk.KindPartitioner:
		p.Partitioner = &brokenPartitioner{defect: defect}
	case sdk.KindMetadata:
		store, err := embedded.Open(embedded.Options{Path: filepath.Join(sdk.DataDir(), "meta.db"), Logger: sdk.Logger()})
		if err != nil {
			sdk.Fatal(err)
		}
		p.Metadata = &brokenStore{Store: store, defect: defect}
	case sdk.KindStorage:
		store, err := filelog.New(filelog.Options{Data: sdk.DataDir(), Logger: sdk.Logger()})
		if err != nil {
			sdk.Fatal(err)
		}
		p.Storage = &brokenLog{Store: store, defect: defect}
	}
	sdk.Serve(p)
}

// hang waits for something that does not come.
func hang() {
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	_, _ = r.Read(make([]byte, 1))
	runtime.KeepAlive(w)
}

// brokenPartitioner is jump with a defect.
type brokenPartitioner struct {
	jump.Partitioner
	defect string
	calls  atomic.Int64
}

func (p *brokenPartitioner) Plan(ctx context.Context, r partitioner.PlanRequest) (partition.Plan, error) {
	switch p.defect {
	case "serves every number":
		if r.Partitions < 1 || r.Partitions > partition.CountMax {
			r.Partitions = 1
		}
	case "plan of its own kind":
		return partition.Plan{Kind: "mine", Partitions: r.Partitions}, nil
	case "another plan each time":
		kinds := []string{partition.KindMurmur2, partition.KindCRC32}
		plan, err := p.Partitioner.Plan(ctx, r)
		plan.Kind = kinds[p.calls.Add(1)%2]
		return plan, err
	}
	return p.Partitioner.Plan(ctx, r)
}

func (p *brokenPartitioner) Assign(ctx context.Context, r partitioner.AssignRequest, to []partition.ID) error {
	if err := p.Partitioner.Assign(ctx, r, to); err != nil || len(to) == 0 {
		return err
	}
	n := p.calls.Add(1)
	for i := range to {
		switch p.defect {
		case "out of range":
			to[i] = partition.ID(r.Partitions)
		case "by the call":
			to[i] = partition.ID((int64(to[i]) + n) % int64(r.Partitions))
		case "by the company":
			to[i] = partition.ID((int(to[i]) + len(to)) % int(r.Partitions))
		case "by the process":
			// Another bit of the number for each key: two processes differ in at least one, whatever their numbers are.
			to[i] = partition.ID((int(to[i]) + os.Getpid()>>(i%32)&1) % int(r.Partitions))
		}
	}
	return nil
}

// brokenStore is embedded with a defect.
type brokenStore struct {
	*embedded.Store
	defect string
}

func (s *brokenStore) Commit(ctx context.Context, t metadata.Txn) (metadata.Revision, error) {
	if s.defect == "guards are not looked at" {
		t.Guards = nil
	}
	return s.Store.Commit(ctx, t)
}

func (s *brokenStore) List(ctx context.Context, prefix string) (metadata.Snapshot, error) {
	snap, err := s.Store.List(ctx, prefix)
	if n := len(snap.Entries); s.defect == "lists lose their last" && n > 0 {
		snap.Entries = snap.Entries[:n-1]
	}
	return snap, err
}

func (s *brokenStore) Watch(ctx context.Context, prefix string, after metadata.Revision) (metadata.Watcher, error) {
	w, err := s.Store.Watch(ctx, prefix, after)
	if s.defect != "watches skip" || err != nil {
		return w, err
	}
	return &skipping{Watcher: w}, nil
}

// skipping leaves every third event out.
type skipping struct {
	metadata.Watcher
	seen int
}

func (s *skipping) Next(ctx context.Context) ([]metadata.Event, error) {
	for {
		events, err := s.Watcher.Next(ctx)
		var rest []metadata.Event
		for _, ev := range events {
			if s.seen++; s.seen%3 != 0 {
				rest = append(rest, ev)
			}
		}
		if err != nil || len(rest) > 0 {
			return rest, err
		}
	}
}

// brokenLog is filelog with a defect.
type brokenLog struct {
	*filelog.Store
	defect string
}

var _ storage.Plugin = (*brokenLog)(nil)

func (l *brokenLog) Open(ctx context.Context, r storage.OpenRequest) (storage.Opened, error) {
	switch l.defect {
	case "makes what is missing":
		r.Create = true
	case "a ceiling is nothing to it":
		r.Ceiling = -1
	}
	return l.Store.Open(ctx, r)
}

func (l *brokenLog) Delete(ctx context.Context, p storage.Partition) error {
	if l.defect == "deletes nothing" {
		return nil
	}
	return l.Store.Delete(ctx, p)
}

func (l *brokenLog) Trim(ctx context.Context, r storage.TrimRequest) (storage.Trimmed, error) {
	if l.defect == "trims nothing" {
		return storage.Trimmed{LogStart: r.LogStart}, nil
	}
	return l.Store.Trim(ctx, r)
}
