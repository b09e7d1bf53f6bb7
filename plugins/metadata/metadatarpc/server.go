package metadatarpc

import (
	"context"
	"sync"

	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/metadata"
	metadatapb "github.com/trunkline-mq/trunkline/protocol/pluginpb/metadata/v1"
)

// pieceBytesMax bounds the values in one message of a List or a Watch, but for a single larger one.
const pieceBytesMax = 1 << 20

// entryOverhead is what an entry costs beside key and value, roughly: it keeps pieces of many small entries bounded.
const entryOverhead = 64

// Register offers impl on s.
func Register(s grpc.ServiceRegistrar, impl metadata.Store) {
	metadatapb.RegisterMetadataServer(s, &service{impl: impl, sessions: make(map[metadata.SessionID]metadata.Session)})
}

type service struct {
	metadatapb.UnimplementedMetadataServer
	impl metadata.Store

	mu       sync.Mutex
	sessions map[metadata.SessionID]metadata.Session // whose calls are under way
}

func (s *service) Describe(ctx context.Context, _ *metadatapb.DescribeRequest) (*metadatapb.DescribeResponse, error) {
	d, err := s.impl.Describe(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	return &metadatapb.DescribeResponse{Name: d.Name, Version: d.Version, Shared: d.Shared}, nil
}

func (s *service) Get(ctx context.Context, r *metadatapb.GetRequest) (*metadatapb.GetResponse, error) {
	e, err := s.impl.Get(ctx, r.GetKey())
	if err != nil {
		return nil, toStatus(err)
	}
	return &metadatapb.GetResponse{Entry: entryToPB(e)}, nil
}

func (s *service) List(r *metadatapb.ListRequest, stream grpc.ServerStreamingServer[metadatapb.ListResponse]) error {
	snap, err := s.impl.List(stream.Context(), r.GetPrefix())
	if err != nil {
		return toStatus(err)
	}
	rest := snap.Entries
	for first := true; first || len(rest) > 0; first = false {
		n := piece(rest, func(e metadata.Entry) int { return len(e.Key) + len(e.Value) })
		resp := &metadatapb.ListResponse{Revision: int64(snap.Revision), Entries: make([]*metadatapb.Entry, n)}
		for i, e := range rest[:n] {
			resp.Entries[i] = entryToPB(e)
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

func (s *service) Commit(ctx context.Context, r *metadatapb.CommitRequest) (*metadatapb.CommitResponse, error) {
	rev, err := s.impl.Commit(ctx, txnFromPB(r))
	if err != nil {
		return nil, toStatus(err)
	}
	return &metadatapb.CommitResponse{Revision: int64(rev)}, nil
}

func (s *service) Watch(r *metadatapb.WatchRequest, stream grpc.ServerStreamingServer[metadatapb.WatchResponse]) error {
	ctx := stream.Context()
	w, err := s.impl.Watch(ctx, r.GetPrefix(), metadata.Revision(r.GetAfter()))
	if err != nil {
		return toStatus(err)
	}
	defer w.Close()
	if err := stream.Send(&metadatapb.WatchResponse{}); err != nil {
		return err
	}
	for {
		events, err := w.Next(ctx)
		if err != nil {
			return toStatus(err)
		}
		for len(events) > 0 {
			n := piece(events, func(e metadata.Event) int { return len(e.Key) + len(e.Value) })
			resp := &metadatapb.WatchResponse{Events: make([]*metadatapb.Event, n)}
			for i, e := range events[:n] {
				resp.Events[i] = &metadatapb.Event{Entry: entryToPB(e.Entry), Deleted: e.Deleted}
			}
			if err := stream.Send(resp); err != nil {
				return err
			}
			events = events[n:]
		}
	}
}

// piece is how many of items go into one message: at least one, if there is one.
func piece[T any](items []T, size func(T) int) int {
	bytes := 0
	for i, item := range items {
		bytes += entryOverhead + size(item)
		if i > 0 && bytes > pieceBytesMax {
			return i
		}
	}
	return len(items)
}
