package filelog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/plugins/storage/filelog"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagetest"
	"github.com/trunkline-mq/trunkline/protocol/kafkalog"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// verified lets the judge of kafkalog look at a partition's directory: batches, indexes and epochs.
func verified(t *testing.T, dir string, o kafkalog.VerifyOptions) {
	t.Helper()
	v := kafkalog.NewVerifier(o, func(f kafkalog.Finding) { t.Errorf("finding: %s", f) })
	if text, err := os.ReadFile(filepath.Join(dir, kafkalog.EpochCheckpointName)); err == nil {
		v.Epochs(text)
	}
	for _, name := range names(t, dir) {
		base, ok := kafkalog.ParseSegmentName(name)
		if !ok {
			continue
		}
		log, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		g := kafkalog.Segment{Base: base, Log: bytes.NewReader(log), Size: int64(len(log))}
		if index, err := os.ReadFile(filepath.Join(dir, kafkalog.IndexName(base))); err == nil {
			g.Index = bytes.NewReader(index)
		}
		if times, err := os.ReadFile(filepath.Join(dir, kafkalog.TimeIndexName(base))); err == nil {
			g.TimeIndex = bytes.NewReader(times)
		}
		if err := v.Segment(g); err != nil {
			t.Fatal(err)
		}
	}
	v.End()
}

// wantIndexes compares a segment's index files with those that Kafka's rules make of its batches.
func wantIndexes(t *testing.T, dir string, base record.Offset, sealed bool) {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(dir, kafkalog.SegmentName(base)))
	if err != nil {
		t.Fatal(err)
	}
	w := kafkalog.NewIndexWriter(base, kafkalog.IndexIntervalBytes)
	for at := 0; at < len(log); {
		b := record.Batch(log[at:])
		if err := w.Add(b[:b.Size()], int64(at)); err != nil {
			t.Fatal(err)
		}
		at += b.Size()
	}
	if sealed {
		w.Close()
	}
	index, err := os.ReadFile(filepath.Join(dir, kafkalog.IndexName(base)))
	if (err != nil && (sealed || len(w.Index()) > 0)) || !bytes.Equal(index, w.Index()) {
		t.Errorf("index of segment %d: %d bytes, %v, want %d", base, len(index), err, len(w.Index()))
	}
	times, err := os.ReadFile(filepath.Join(dir, kafkalog.TimeIndexName(base)))
	if (err != nil && (sealed || len(w.TimeIndex()) > 0)) || !bytes.Equal(times, w.TimeIndex()) {
		t.Errorf("time index of segment %d: %d bytes, %v, want %d", base, len(times), err, len(w.TimeIndex()))
	}
}

// fill appends n records of about size bytes.
func fill(w *storagetest.Writer, n, size int) {
	for i := range n {
		w.Append(fmt.Sprintf("%d %s", i, strings.Repeat("x", size)))
	}
}

func stop(t *testing.T, s *filelog.Store) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestIndexesAreKafkas(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	for round, noted := range []bool{true, false, true} {
		for range 10 {
			fill(w, 30, 300)
			if noted {
				w.Note()
			}
		}
		fill(w, 5, 9000+round) // the last of them are in no note
		if round < 2 {
			w.Roll()
		}
	}
	w.Note()
	stop(t, s)
	verified(t, partDir(dir), kafkalog.VerifyOptions{})
	for base, sealed := range map[record.Offset]bool{0: true, 305: true, 610: false} {
		wantIndexes(t, partDir(dir), base, sealed)
	}
}

func TestIndexesAreMadeInRecovery(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 60, 500)
	w.Roll()
	fill(w, 60, 500)
	w.Note()
	fill(w, 60, 500) // in no note
	w.Let()
	stop(t, s)
	for name, spoil := range map[string]func(path string) error{
		"as left":           func(string) error { return nil },
		"gone":              os.Remove,
		"empty":             func(p string) error { return os.Truncate(p, 0) },
		"ragged":            func(p string) error { return os.Truncate(p, 13) },
		"zeros after it":    func(p string) error { return os.Truncate(p, 10<<20/12*12) },
		"nothing but zeros": func(p string) error { return os.WriteFile(p, make([]byte, 240), 0o600) },
		"garbage":           func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("garbage! ", 40)), 0o600) },
		"another segment's": func(p string) error {
			b, err := os.ReadFile(strings.Replace(p, "00000000000000000060", "00000000000000000000", 1))
			return errors.Join(err, os.WriteFile(p, b, 0o600))
		},
	} {
		for _, suffixes := range [][]string{{kafkalog.IndexSuffix}, {kafkalog.TimeIndexSuffix}, {kafkalog.IndexSuffix, kafkalog.TimeIndexSuffix}} {
			for _, base := range []string{"00000000000000000060", "00000000000000000000"} {
				for _, suffix := range suffixes {
					if err := spoil(filepath.Join(partDir(dir), base+suffix)); err != nil {
						t.Fatal(err)
					}
				}
			}
			s := newStore(t, dir, nil)
			w, opened := storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
			if opened.Cut != nil || opened.Lease.Next != 180 || opened.Lease.MaxTimestamp != 180 || opened.Sealed[0].MaxTimestamp != 60 {
				t.Errorf("%s %v: opened %+v", name, suffixes, opened)
			}
			if got := storagetest.Read(t, s, storagetest.Part(), 180); len(got) != 180 {
				t.Errorf("%s %v: read %d", name, suffixes, len(got))
			}
			w.Let()
			stop(t, s)
			verified(t, partDir(dir), kafkalog.VerifyOptions{})
			wantIndexes(t, partDir(dir), 0, true)
			wantIndexes(t, partDir(dir), 60, false)
		}
	}
}

// TestEveryPrefixOfBothIndexes: they are not synced while the segment is written, so a power loss leaves any beginning of
// either.
func TestEveryPrefixOfBothIndexes(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 9, 5000)
	w.Note()
	w.Let()
	stop(t, s)
	base := segmentFile(dir, 0)
	base = base[:len(base)-len(kafkalog.LogSuffix)]
	index, err := os.ReadFile(base + kafkalog.IndexSuffix)
	times, timesErr := os.ReadFile(base + kafkalog.TimeIndexSuffix)
	if err := errors.Join(err, timesErr); err != nil || len(index) < 40 || len(times) < 60 {
		t.Fatal(err, len(index), len(times))
	}
	for i := 0; i <= len(index); i += 4 {
		for j := 0; j <= len(times); j += 6 {
			write(t, base+kafkalog.IndexSuffix, string(index[:i]))
			write(t, base+kafkalog.TimeIndexSuffix, string(times[:j]))
			s := newStore(t, dir, nil)
			w, opened := storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
			if opened.Lease.Next != 9 || opened.Lease.MaxTimestamp != 9 || opened.Cut != nil {
				t.Errorf("%d and %d bytes: %+v, cut %+v", i, j, opened.Lease, opened.Cut)
			}
			w.Let()
			stop(t, s)
			wantIndexes(t, partDir(dir), 0, false)
		}
	}
}

func TestIndexesThatLieAreMadeAgain(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 10, 50_000)
	n := w.NoteRequest()
	n.Entries = []storage.Entry{{Last: 3, Position: 200_001, MaxTimestamp: 4, MaxOffset: 3}, {Last: 5, Position: 300_007, MaxTimestamp: 6, MaxOffset: 5}}
	if err := s.Note(context.Background(), n); err != nil {
		t.Fatal(err)
	}
	if got := storagetest.Read(t, s, storagetest.Part(), 10); len(got) != 10 {
		t.Errorf("read %d records", len(got))
	}
	eventually(t, "indexes made again", func() bool {
		info, err := os.Stat(filepath.Join(partDir(dir), kafkalog.IndexName(0)))
		return err == nil && info.Size() == 9*kafkalog.IndexEntryBytes
	})
	w.Roll()
	fill(w, 1, 10)
	stop(t, s)
	verified(t, partDir(dir), kafkalog.VerifyOptions{})
	wantIndexes(t, partDir(dir), 0, true)

	// A sealed one that lies is found when it is used.
	path := filepath.Join(partDir(dir), kafkalog.IndexName(0))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[8*4+7]++ // the position of the fifth entry
	write(t, path, string(b))
	s = newStore(t, dir, nil)
	storagetest.NewWriter(t, s, storagetest.Recover(storagetest.Part(), "next"))
	if got := storagetest.Read(t, s, storagetest.Part(), 11); len(got) != 11 {
		t.Errorf("read %d records", len(got))
	}
	stop(t, s)
	wantIndexes(t, partDir(dir), 0, true)
}

func TestReadoptedIndexesAreCompletedAtTheSeal(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, nil)
	w, _ := storagetest.NewWriter(t, s, storagetest.Creating(storagetest.Part(), "core"))
	fill(w, 30, 500)
	w.Note()
	fill(w, 30, 500)
	stop(t, s)
	s = newStore(t, dir, nil)
	w.Readopt(s)
	fill(w, 30, 500)
	w.Roll()
	fill(w, 1, 10)
	w.Note()
	stop(t, s)
	verified(t, partDir(dir), kafkalog.VerifyOptions{})
	wantIndexes(t, partDir(dir), 0, true)
}
