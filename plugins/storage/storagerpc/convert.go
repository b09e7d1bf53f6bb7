package storagerpc

import (
	"time"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/partition"
	storagepb "github.com/trunkline-mq/trunkline/protocol/pluginpb/storage/v1"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

func partitionToWire(p storage.Partition) *storagepb.Partition {
	return &storagepb.Partition{Topic: p.Topic, TopicId: p.TopicID, Id: int32(p.ID)}
}

func partitionFromWire(p *storagepb.Partition) storage.Partition {
	return storage.Partition{Topic: p.GetTopic(), TopicID: p.GetTopicId(), ID: partition.ID(p.GetId())}
}

func openToWire(r storage.OpenRequest) *storagepb.OpenRequest {
	q := &storagepb.OpenRequest{
		Partition: partitionToWire(r.Partition), Instance: r.Instance, Create: r.Create,
		Epoch: int32(r.Epoch), SegmentBytes: r.SegmentBytes, Ceiling: int64(r.Ceiling),
		Lazy: r.Lazy, Adopt: r.Adopt,
	}
	if h := r.Held; h != nil {
		q.Held = &storagepb.Held{
			Lease: uint64(h.Lease), Base: int64(h.Base), Position: h.Position, Next: int64(h.Next), Dev: h.Dev, Ino: h.Ino,
			LogStart: int64(h.LogStart), MaxTimestamp: h.MaxTimestamp,
		}
		for _, s := range h.Sealed {
			q.Held.Sealed = append(q.Held.Sealed, &storagepb.HeldSegment{Segment: segmentToWire(s.Segment)})
		}
	}
	return q
}

func openFromWire(q *storagepb.OpenRequest) storage.OpenRequest {
	r := storage.OpenRequest{
		Partition: partitionFromWire(q.GetPartition()), Instance: q.GetInstance(), Create: q.GetCreate(),
		Epoch: record.Epoch(q.GetEpoch()), SegmentBytes: q.GetSegmentBytes(), Ceiling: record.Offset(q.GetCeiling()),
		Lazy: q.GetLazy(), Adopt: q.GetAdopt(),
	}
	if h := q.GetHeld(); h != nil {
		r.Held = &storage.Held{
			Lease: storage.LeaseEpoch(h.GetLease()), Base: record.Offset(h.GetBase()), Position: h.GetPosition(),
			Next: record.Offset(h.GetNext()), Dev: h.GetDev(), Ino: h.GetIno(),
			LogStart: record.Offset(h.GetLogStart()), MaxTimestamp: h.GetMaxTimestamp(),
		}
		for _, s := range h.GetSealed() {
			r.Held.Sealed = append(r.Held.Sealed, storage.HeldSegment{Segment: segmentFromWire(s.GetSegment())})
		}
	}
	return r
}

func openedToWire(o storage.Opened, lend uint64) *storagepb.Opened {
	a := &storagepb.Opened{Lease: leaseToWire(o.Lease, lend), LogStart: int64(o.LogStart), GapsBelow: int64(o.GapsBelow)}
	for _, s := range o.Sealed {
		a.Sealed = append(a.Sealed, segmentToWire(s))
	}
	if c := o.Cut; c != nil {
		a.Cut = &storagepb.Cut{
			Offset: int64(c.Offset), Bytes: c.Bytes, Reason: c.Reason, SavedAs: c.SavedAs, Dirty: c.Dirty,
		}
	}
	return a
}

func openedFromWire(a *storagepb.Opened) storage.Opened {
	o := storage.Opened{
		Lease: leaseFromWire(a.GetLease()), LogStart: record.Offset(a.GetLogStart()), GapsBelow: record.Offset(a.GetGapsBelow()),
	}
	for _, s := range a.GetSealed() {
		o.Sealed = append(o.Sealed, segmentFromWire(s))
	}
	if c := a.GetCut(); c != nil {
		o.Cut = &storage.Cut{
			Offset: record.Offset(c.GetOffset()), Bytes: c.GetBytes(), Reason: c.GetReason(), SavedAs: c.GetSavedAs(),
			Dirty: c.GetDirty(),
		}
	}
	return o
}

func leaseToWire(l storage.Lease, lend uint64) *storagepb.Lease {
	return &storagepb.Lease{
		Epoch: uint64(l.Epoch), Base: int64(l.Base), Next: int64(l.Next), Position: l.Position,
		MaxTimestamp: l.MaxTimestamp, Dev: l.Dev, Ino: l.Ino, Lend: lend,
	}
}

func leaseFromWire(l *storagepb.Lease) storage.Lease {
	return storage.Lease{
		Epoch: storage.LeaseEpoch(l.GetEpoch()), Base: record.Offset(l.GetBase()), Next: record.Offset(l.GetNext()),
		Position: l.GetPosition(), MaxTimestamp: l.GetMaxTimestamp(), Dev: l.GetDev(), Ino: l.GetIno(),
	}
}

func segmentToWire(s storage.Segment) *storagepb.Segment {
	return &storagepb.Segment{Base: int64(s.Base), Next: int64(s.Next), Size: s.Size, MaxTimestamp: s.MaxTimestamp}
}

func segmentFromWire(s *storagepb.Segment) storage.Segment {
	return storage.Segment{
		Base: record.Offset(s.GetBase()), Next: record.Offset(s.GetNext()), Size: s.GetSize(), MaxTimestamp: s.GetMaxTimestamp(),
	}
}

func rollToWire(r storage.RollRequest) *storagepb.RollRequest {
	return &storagepb.RollRequest{
		Partition: partitionToWire(r.Partition), Instance: r.Instance, Lease: uint64(r.Lease),
		Position: r.Position, Next: int64(r.Next), MaxTimestamp: r.MaxTimestamp, Entries: entriesToWire(r.Entries),
	}
}

func rollFromWire(q *storagepb.RollRequest) storage.RollRequest {
	return storage.RollRequest{
		Partition: partitionFromWire(q.GetPartition()), Instance: q.GetInstance(), Lease: storage.LeaseEpoch(q.GetLease()),
		Position: q.GetPosition(), Next: record.Offset(q.GetNext()), MaxTimestamp: q.GetMaxTimestamp(),
		Entries: entriesFromWire(q.GetEntries()),
	}
}

func noteToWire(n storage.Note) *storagepb.NoteRequest {
	return &storagepb.NoteRequest{
		Partition: partitionToWire(n.Partition), Instance: n.Instance, Lease: uint64(n.Lease),
		Position: n.Position, Next: int64(n.Next), Entries: entriesToWire(n.Entries),
	}
}

func noteFromWire(q *storagepb.NoteRequest) storage.Note {
	return storage.Note{
		Partition: partitionFromWire(q.GetPartition()), Instance: q.GetInstance(), Lease: storage.LeaseEpoch(q.GetLease()),
		Position: q.GetPosition(), Next: record.Offset(q.GetNext()), Entries: entriesFromWire(q.GetEntries()),
	}
}

func entriesToWire(entries []storage.Entry) []*storagepb.Entry {
	if len(entries) == 0 {
		return nil
	}
	w := make([]*storagepb.Entry, len(entries))
	for i, e := range entries {
		w[i] = &storagepb.Entry{
			Last: int64(e.Last), Position: e.Position, MaxTimestamp: e.MaxTimestamp, MaxOffset: int64(e.MaxOffset),
		}
	}
	return w
}

func entriesFromWire(w []*storagepb.Entry) []storage.Entry {
	if len(w) == 0 {
		return nil
	}
	entries := make([]storage.Entry, len(w))
	for i, e := range w {
		entries[i] = storage.Entry{
			Last: record.Offset(e.GetLast()), Position: e.GetPosition(), MaxTimestamp: e.GetMaxTimestamp(),
			MaxOffset: record.Offset(e.GetMaxOffset()),
		}
	}
	return entries
}

func closeToWire(r storage.CloseRequest) *storagepb.CloseRequest {
	return &storagepb.CloseRequest{
		Partition: partitionToWire(r.Partition), Instance: r.Instance, Lease: uint64(r.Lease),
		Position: r.Position, Next: int64(r.Next),
	}
}

func closeFromWire(q *storagepb.CloseRequest) storage.CloseRequest {
	return storage.CloseRequest{
		Partition: partitionFromWire(q.GetPartition()), Instance: q.GetInstance(), Lease: storage.LeaseEpoch(q.GetLease()),
		Position: q.GetPosition(), Next: record.Offset(q.GetNext()),
	}
}

func extentFromWire(a *storagepb.LocateResponse) storage.Extent {
	return storage.Extent{
		Segment: segmentFromWire(a.GetSegment()), Position: a.GetPosition(), Offset: record.Offset(a.GetOffset()),
	}
}

func progressToWire(p storage.Progress) *storagepb.OpenResponse {
	return &storagepb.OpenResponse{Step: &storagepb.OpenResponse_Progress{Progress: &storagepb.Progress{Done: p.Done, Total: p.Total}}}
}

func expireToWire(r storage.ExpireRequest) *storagepb.ExpireRequest {
	return &storagepb.ExpireRequest{
		Partition: partitionToWire(r.Partition), Instance: r.Instance, RetentionNs: int64(r.RetentionTime),
		RetentionBytes: r.RetentionBytes, Limit: int64(r.Limit),
	}
}

func expireFromWire(q *storagepb.ExpireRequest) storage.ExpireRequest {
	return storage.ExpireRequest{
		Partition: partitionFromWire(q.GetPartition()), Instance: q.GetInstance(),
		RetentionTime: time.Duration(q.GetRetentionNs()), RetentionBytes: q.GetRetentionBytes(), Limit: record.Offset(q.GetLimit()),
	}
}

func truncateToWire(r storage.TruncateRequest) *storagepb.TruncateRequest {
	return &storagepb.TruncateRequest{
		Partition: partitionToWire(r.Partition), Instance: r.Instance, Lease: uint64(r.Lease), Next: int64(r.Next), Epoch: int32(r.Epoch),
	}
}

func truncateFromWire(q *storagepb.TruncateRequest) storage.TruncateRequest {
	return storage.TruncateRequest{
		Partition: partitionFromWire(q.GetPartition()), Instance: q.GetInstance(), Lease: storage.LeaseEpoch(q.GetLease()),
		Next: record.Offset(q.GetNext()), Epoch: record.Epoch(q.GetEpoch()),
	}
}

func adoptionToWire(a storage.Adoption) *storagepb.AdoptableResponse {
	w := &storagepb.AdoptableResponse{TopicId: a.TopicID, Partitions: a.Partitions}
	for _, e := range a.Epochs {
		w.Epochs = append(w.Epochs, int32(e))
	}
	return w
}

func adoptionFromWire(w *storagepb.AdoptableResponse) storage.Adoption {
	a := storage.Adoption{TopicID: w.GetTopicId(), Partitions: w.GetPartitions()}
	for _, e := range w.GetEpochs() {
		a.Epochs = append(a.Epochs, record.Epoch(e))
	}
	return a
}
