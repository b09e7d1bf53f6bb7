package filelog_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/protocol/partition"
)

// BenchmarkOpenSealed opens partitions of ten sealed segments each, sixteen at a time, in a process that has just begun.
func BenchmarkOpenSealed(b *testing.B) {
	const partitions, segments, parallel = 1000, 10, 16
	dir := b.TempDir()
	s, err := filelog.New(filelog.Options{Data: dir})
	if err != nil {
		b.Fatal(err)
	}
	for id := range partition.ID(partitions) {
		p := storagetest.Part()
		p.ID = id
		w, _ := storagetest.NewWriter(b, s, storagetest.Creating(p, "core"))
		for range segments {
			fill2(w)
			w.Roll()
		}
		w.Append("x")
		w.Surrender()
	}
	if err := s.Stop(); err != nil {
		b.Fatal(err)
	}
	round := 0
	for b.Loop() {
		round++
		s, err := filelog.New(filelog.Options{Data: dir})
		if err != nil {
			b.Fatal(err)
		}
		slots := make(chan struct{}, parallel)
		var wg sync.WaitGroup
		for id := range partition.ID(partitions) {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				p := storagetest.Part()
				p.ID = id
				o, err := s.Open(context.Background(), storagetest.Recover(p, fmt.Sprint("round", round)))
				if err != nil || o.Lease.Next != segments*2+1 {
					b.Errorf("open: %+v, %v", o.Lease, err)
					return
				}
				_ = o.Lease.File.Close()
			})
		}
		wg.Wait()
		if err := s.Stop(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/start")
}

// fill2 writes more than an index interval.
func fill2(w *storagetest.Writer) {
	long := string(make([]byte, 7000))
	for range 2 {
		w.Append(long)
	}
}
