package storagerpc

import (
	"context"

	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	storagepb "github.com/trunkline-mq/trunkline/protocol/pluginpb/storage/v1"
	"github.com/trunkline-mq/trunkline/protocol/record"
)

// Register offers impl on s. What impl lends is sent over sock and closed here afterwards.
func Register(s *grpc.Server, impl storage.Store, sock *Socket) {
	storagepb.RegisterStorageServer(s, &server{impl: impl, sock: sock})
}

type server struct {
	storagepb.UnimplementedStorageServer
	impl storage.Store
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
	return &storagepb.DescribeResponse{Name: d.Name, Version: d.Version, Durability: d.Durability, CanaryLend: id}, nil
}

func (s *server) Open(ctx context.Context, q *storagepb.OpenRequest) (*storagepb.OpenResponse, error) {
	o, err := s.impl.Open(ctx, openFromWire(q))
	if err != nil {
		return nil, toStatus(err)
	}
	id, err := s.lend(o.Lease.File)
	if err != nil {
		return nil, toStatus(err)
	}
	return openedToWire(o, id), nil
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
