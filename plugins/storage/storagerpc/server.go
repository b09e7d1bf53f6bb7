package storagerpc

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	storagepb "github.com/trunkline-mq/trunkline/protocol/pluginpb/storage/v1"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Register offers impl on s. What impl lends is sent over sock and closed here afterwards.
func Register(s *grpc.Server, impl storage.Plugin, sock *Socket) {
	storagepb.RegisterStorageServer(s, &server{impl: impl, sock: sock})
}

type server struct {
	storagepb.UnimplementedStorageServer
	impl storage.Plugin
	sock *Socket
}

// lend sends f and gives up our copy of it. No file is id 0.
func (s *server) lend(f storage.File) (uint64, error) {
	if f == nil {
		return 0, nil
	}
	id, err := s.sock.send(f)
	_ = f.Close() // the receiver has a descriptor of its own, and nothing was written through this one
	return id, err
}

func (s *server) Describe(ctx context.Context, _ *storagepb.DescribeRequest) (*storagepb.DescribeResponse, error) {
	d, err := s.impl.Describe(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	id, err := s.lend(d.Canary)
	if err != nil {
		return nil, toStatus(err)
	}
	return &storagepb.DescribeResponse{
		Name: d.Name, Version: d.Version, Durability: d.Durability, CanaryLend: id,
		Streams: d.Streams, Pinned: d.Pinned, SegmentRecords: d.SegmentRecords,
	}, nil
}

// takeHeld reads the request and takes the descriptors that the core hands back with it. What giveBack closes is the
// caller's, as the contract has it.
func (s *server) takeHeld(ctx context.Context, q *storagepb.OpenRequest) (r storage.OpenRequest, giveBack func(), err error) {
	r = openFromWire(q)
	var taken []storage.File
	giveBack = func() {
		for _, f := range taken {
			_ = f.Close() // the core has its own, and the store reopened what it keeps
		}
	}
	take := func(id uint64) (storage.File, error) {
		if id == 0 {
			return nil, nil
		}
		f, err := s.sock.take(ctx, id)
		if err == nil {
			taken = append(taken, f)
		}
		return f, err
	}
	h := q.GetHeld()
	if h == nil {
		return r, giveBack, nil
	}
	r.Held.File, err = take(h.GetLend())
	for i := 0; err == nil && i < len(r.Held.Sealed); i++ {
		r.Held.Sealed[i].File, err = take(h.GetSealed()[i].GetLend())
	}
	if err != nil {
		giveBack()
		return r, nil, err
	}
	return r, giveBack, nil
}

// progressEvery is how often Open says how far it has come.
const progressEvery = time.Second

func (s *server) Open(q *storagepb.OpenRequest, stream grpc.ServerStreamingServer[storagepb.OpenResponse]) error {
	var latest atomic.Pointer[storage.Progress]
	latest.Store(&storage.Progress{})
	ctx := storage.WithProgress(stream.Context(), func(p storage.Progress) { latest.Store(&p) })
	request, giveBack, err := s.takeHeld(ctx, q)
	if err != nil {
		return toStatus(err)
	}
	defer giveBack()
	var o storage.Opened
	done := make(chan struct{})
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() {
		defer close(done)
		o, err = s.impl.Open(ctx, request)
	})
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for open := true; open; {
		select {
		case <-done:
			open = false
		case <-tick.C:
			// Who is gone has ended the context too, and the work ends with it.
			_ = stream.Send(progressToWire(*latest.Load()))
		}
	}
	if err != nil {
		return toStatus(err)
	}
	id, err := s.lend(o.Lease.File)
	if err != nil {
		return toStatus(err)
	}
	return stream.Send(&storagepb.OpenResponse{Step: &storagepb.OpenResponse_Opened{Opened: openedToWire(o, id)}})
}

func (s *server) Roll(ctx context.Context, q *storagepb.RollRequest) (*storagepb.RollResponse, error) {
	l, err := s.impl.Roll(ctx, rollFromWire(q))
	if err != nil {
		return nil, toStatus(err)
	}
	id, err := s.lend(l.File)
	if err != nil {
		return nil, toStatus(err)
	}
	return &storagepb.RollResponse{Lease: leaseToWire(l, id)}, nil
}

func (s *server) Locate(ctx context.Context, q *storagepb.LocateRequest) (*storagepb.LocateResponse, error) {
	e, err := s.impl.Locate(ctx, storage.LocateRequest{
		Partition: partitionFromWire(q.GetPartition()), Offset: record.Offset(q.GetOffset()),
	})
	if err != nil {
		return nil, toStatus(err)
	}
	id, err := s.lend(e.File)
	if err != nil {
		return nil, toStatus(err)
	}
	return &storagepb.LocateResponse{
		Segment: segmentToWire(e.Segment), Position: e.Position, Offset: int64(e.Offset), Lend: id,
	}, nil
}

func (s *server) Note(ctx context.Context, q *storagepb.NoteRequest) (*storagepb.NoteResponse, error) {
	if err := s.impl.Note(ctx, noteFromWire(q)); err != nil {
		return nil, toStatus(err)
	}
	return &storagepb.NoteResponse{}, nil
}

func (s *server) Close(ctx context.Context, q *storagepb.CloseRequest) (*storagepb.CloseResponse, error) {
	if err := s.impl.Close(ctx, closeFromWire(q)); err != nil {
		return nil, toStatus(err)
	}
	return &storagepb.CloseResponse{}, nil
}

func (s *server) Delete(ctx context.Context, q *storagepb.DeleteRequest) (*storagepb.DeleteResponse, error) {
	if err := s.impl.Delete(ctx, partitionFromWire(q.GetPartition())); err != nil {
		return nil, toStatus(err)
	}
	return &storagepb.DeleteResponse{}, nil
}

func (s *server) Expire(ctx context.Context, q *storagepb.ExpireRequest) (*storagepb.ExpireResponse, error) {
	start, err := s.impl.Expire(ctx, expireFromWire(q))
	if err != nil {
		return nil, toStatus(err)
	}
	return &storagepb.ExpireResponse{LogStart: int64(start)}, nil
}

func (s *server) Trim(ctx context.Context, q *storagepb.TrimRequest) (*storagepb.TrimResponse, error) {
	t, err := s.impl.Trim(ctx, storage.TrimRequest{
		Partition: partitionFromWire(q.GetPartition()), Instance: q.GetInstance(), LogStart: record.Offset(q.GetLogStart()),
	})
	if err != nil {
		return nil, toStatus(err)
	}
	return &storagepb.TrimResponse{LogStart: int64(t.LogStart), First: int64(t.First)}, nil
}

func (s *server) Truncate(ctx context.Context, q *storagepb.TruncateRequest) (*storagepb.TruncateResponse, error) {
	o, err := s.impl.Truncate(ctx, truncateFromWire(q))
	if err != nil {
		return nil, toStatus(err)
	}
	id, err := s.lend(o.Lease.File)
	if err != nil {
		return nil, toStatus(err)
	}
	return &storagepb.TruncateResponse{Opened: openedToWire(o, id)}, nil
}

func (s *server) Adoptable(ctx context.Context, q *storagepb.AdoptableRequest) (*storagepb.AdoptableResponse, error) {
	a, err := s.impl.Adoptable(ctx, q.GetTopic())
	if err != nil {
		return nil, toStatus(err)
	}
	return adoptionToWire(a), nil
}

func (s *server) Room(ctx context.Context, _ *storagepb.RoomRequest) (*storagepb.RoomResponse, error) {
	if err := s.impl.Room(ctx); err != nil {
		return nil, toStatus(err)
	}
	return &storagepb.RoomResponse{}, nil
}
