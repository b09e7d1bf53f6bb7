package sdk

import (
	"fmt"

	"google.golang.org/grpc"

	"github.com/trunkline-mq/trunkline/plugins/metadata/metadatarpc"
	"github.com/trunkline-mq/trunkline/plugins/partitioner/partitionerrpc"
	"github.com/trunkline-mq/trunkline/plugins/storage/storagerpc"
)

// lendFd is where a storage plugin finds the socket over which it lends descriptors: the first the host hands down.
const lendFd = 3

// served is an implementation with its way onto a server and its end.
type served struct {
	impl     any
	register func(*grpc.Server)
	release  func() error // what was opened to serve it
}

// prepare picks p's implementation. The caller calls release in the end.
func (p Plugin) prepare() (served, error) {
	given := 0
	for _, v := range []any{p.Storage, p.Metadata, p.Partitioner} {
		if v != nil {
			given++
		}
	}
	if p.Name == "" || given != 1 {
		return served{}, fmt.Errorf("plugin of kind %q, name %q must have a name and exactly one implementation", p.Kind, p.Name)
	}
	nothing := func() error { return nil }
	switch {
	case p.Kind == KindMetadata && p.Metadata != nil:
		return served{p.Metadata, func(s *grpc.Server) { metadatarpc.Register(s, p.Metadata) }, nothing}, nil
	case p.Kind == KindPartitioner && p.Partitioner != nil:
		return served{p.Partitioner, func(s *grpc.Server) { partitionerrpc.Register(s, p.Partitioner) }, nothing}, nil
	case p.Kind == KindStorage && p.Storage != nil:
		sock, err := storagerpc.SocketFromFd(lendFd)
		if err != nil {
			return served{}, fmt.Errorf("socket for lending, descriptor %d: %w", lendFd, err)
		}
		return served{p.Storage, func(s *grpc.Server) { storagerpc.Register(s, p.Storage, sock) }, sock.Close}, nil
	}
	return served{}, fmt.Errorf("plugin %s has no implementation of its kind %q", p.Name, p.Kind)
}

// finish lets the implementation end in order. A storage.Plugin has a Close of another meaning, hence Stop.
func (s served) finish() error {
	switch impl := s.impl.(type) {
	case interface{ Close() error }:
		return impl.Close()
	case interface{ Stop() error }:
		return impl.Stop()
	}
	return nil
}
