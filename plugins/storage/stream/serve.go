package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/trunkline-mq/trunkline/plugins/storage"
	"github.com/trunkline-mq/trunkline/protocol/record"
	"github.com/trunkline-mq/trunkline/protocol/storeframe"
)

// Server offers a store without files as a storage.Plugin.
type Server struct {
	impl  storage.StreamPlugin
	conns connections

	mu    sync.Mutex
	write map[storage.Partition]net.Conn // the channel of each lease
}

var _ storage.Plugin = (*Server)(nil)

// Serve returns a plugin that serves impl until Stop.
func Serve(impl storage.StreamPlugin) *Server {
	return &Server{impl: impl, write: make(map[storage.Partition]net.Conn)}
}

// Stop closes every channel, waits for what is under way, and stops impl if it has a method Stop() error.
func (s *Server) Stop() error {
	s.conns.close()
	if stopper, ok := s.impl.(interface{ Stop() error }); ok {
		return stopper.Stop()
	}
	return nil
}

// Describe implements storage.Store.
func (s *Server) Describe(ctx context.Context) (storage.Description, error) {
	d, err := s.impl.Describe(ctx)
	d.Streams = true
	return d, err
}

// Open implements storage.Store. The lease's file is the channel to append through.
func (s *Server) Open(ctx context.Context, r storage.OpenRequest) (storage.Opened, error) {
	o, err := s.impl.Open(ctx, r)
	if err != nil {
		return storage.Opened{}, err
	}
	if err := s.lend(&o.Lease, r.Partition, r.Instance); err != nil {
		return storage.Opened{}, errors.Join(err, s.impl.Close(ctx, storage.CloseRequest{Partition: r.Partition, Instance: r.Instance, Lease: o.Lease.Epoch}))
	}
	return o, nil
}

// lend makes the channel of a lease. The one before is closed.
func (s *Server) lend(l *storage.Lease, p storage.Partition, instance string) error {
	lent, conn, err := pair()
	if err != nil {
		return err
	}
	a := &appender{impl: s.impl, conn: conn, part: p, instance: instance}
	s.mu.Lock()
	if old := s.write[p]; old != nil {
		_ = old.Close()
	}
	s.write[p] = conn
	s.mu.Unlock()
	if !s.conns.serve(conn, a.run) {
		return errors.Join(ErrBroken, lent.Close())
	}
	l.File = lent
	return nil
}

// Locate implements storage.Store. What it lends is a channel to read from; the rest of the answer says only that.
func (s *Server) Locate(_ context.Context, r storage.LocateRequest) (storage.Extent, error) {
	lent, conn, err := pair()
	if err != nil {
		return storage.Extent{}, err
	}
	reader := &readServer{impl: s.impl, conn: conn, part: r.Partition}
	if !s.conns.serve(conn, reader.run) {
		return storage.Extent{}, errors.Join(ErrBroken, lent.Close())
	}
	return storage.Extent{Segment: storage.Segment{Base: r.Offset, Next: r.Offset, MaxTimestamp: -1}, Offset: r.Offset, File: lent}, nil
}

// Roll implements storage.Store: there is nothing to be rolled.
func (s *Server) Roll(context.Context, storage.RollRequest) (storage.Lease, error) {
	return storage.Lease{}, fmt.Errorf("%w: a store without files rolls nothing", storage.ErrInvalid)
}

// Note implements storage.Store: there is nothing to be noted.
func (s *Server) Note(context.Context, storage.Note) error {
	return fmt.Errorf("%w: a store without files is told nothing", storage.ErrInvalid)
}

// Close implements storage.Store.
func (s *Server) Close(ctx context.Context, r storage.CloseRequest) error {
	if err := s.impl.Close(ctx, r); err != nil {
		return err
	}
	s.drop(r.Partition)
	return nil
}

// Delete implements storage.Store.
func (s *Server) Delete(ctx context.Context, p storage.Partition) error {
	s.drop(p)
	return s.impl.Delete(ctx, p)
}

func (s *Server) drop(p storage.Partition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if conn := s.write[p]; conn != nil {
		_ = conn.Close()
		delete(s.write, p)
	}
}

// Expire implements storage.Keeper.
func (s *Server) Expire(ctx context.Context, r storage.ExpireRequest) (record.Offset, error) {
	return s.impl.Expire(ctx, r)
}

// Trim implements storage.Keeper.
func (s *Server) Trim(ctx context.Context, r storage.TrimRequest) (storage.Trimmed, error) {
	return s.impl.Trim(ctx, r)
}

// Truncate implements storage.Keeper.
func (s *Server) Truncate(ctx context.Context, r storage.TruncateRequest) (storage.Opened, error) {
	o, err := s.impl.Truncate(ctx, r)
	if err == nil {
		err = s.lend(&o.Lease, r.Partition, r.Instance)
	}
	return o, err
}

// Adoptable implements storage.Keeper.
func (s *Server) Adoptable(ctx context.Context, topic string) (storage.Adoption, error) {
	return s.impl.Adoptable(ctx, topic)
}

// Room implements storage.Keeper.
func (s *Server) Room(ctx context.Context) error { return s.impl.Room(ctx) }

// headRoom is what is read ahead on a channel: a header, and the beginning of what follows.
const headRoom = 4 << 10

// keepMax bounds the buffer that an idle channel keeps.
const keepMax = 1<<20 + headRoom

// appender serves a channel to append through.
type appender struct {
	impl     storage.StreamPlugin
	conn     net.Conn
	part     storage.Partition
	instance string
	buf      []byte
}

// run answers one group after the other. A frame that is malformed ends the channel: it is not in step any more.
func (a *appender) run() {
	from := &intake{conn: a.conn}
	defer from.unmap()
	in := bufio.NewReaderSize(from, headRoom)
	var head [storeframe.RequestBytes]byte
	var out [storeframe.AnswerBytes + storeframe.TextMax]byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		r, err := storeframe.ParseRequest(head[:])
		if err != nil || r.Op != storeframe.OpAppend {
			return
		}
		group, err := a.group(r, in, from.window)
		if err != nil {
			return
		}
		answer := storeframe.Answer{Op: r.Op, Window: from.tell(), Base: r.Base, Epoch: r.Epoch, Sum: r.Sum}
		err = a.append(r, group)
		if _, err := a.conn.Write(appendAnswer(out[:0], answer, err)); err != nil {
			return
		}
		if cap(a.buf) > keepMax || from.window != nil && cap(a.buf) >= windowMin { // the next one is placed
			a.buf = nil
		}
	}
}

// group is a request's payload: received, or where it was placed.
func (a *appender) group(r storeframe.Request, in io.Reader, window []byte) ([]byte, error) {
	if r.Placed {
		if r.Length > len(window) {
			return nil, fmt.Errorf("%w: %d bytes in a window of %d", storeframe.ErrFrame, r.Length, len(window))
		}
		return window[:r.Length:r.Length], nil
	}
	if cap(a.buf) < r.Length {
		a.buf = make([]byte, r.Length)
	}
	a.buf = a.buf[:r.Length]
	_, err := io.ReadFull(in, a.buf)
	return a.buf, err
}

func (a *appender) append(r storeframe.Request, group []byte) error {
	sum, err := storeframe.Sum(group)
	if err != nil || sum != r.Sum {
		return fmt.Errorf("%w: the group has sum %08x, its frame says %08x", storage.ErrInvalid, sum, r.Sum)
	}
	// Whoever asked has a deadline, and kills this process at it: there is nobody to give up for.
	return a.impl.Append(context.Background(), storage.AppendRequest{
		Partition: a.part, Instance: a.instance, Lease: storage.LeaseEpoch(r.Lease), Epoch: r.Epoch,
		Base: r.Base, Next: r.Next, MaxTimestamp: r.MaxTimestamp, Sum: r.Sum, Bytes: group,
	})
}

// appendAnswer encodes an answer without a payload, or a failure with its text.
func appendAnswer(dst []byte, a storeframe.Answer, err error) []byte {
	text := ""
	if a.Status = statusOf(err); err != nil {
		text = err.Error()
		text = text[:min(len(text), storeframe.TextMax)]
	}
	a.Length = len(text)
	return append(a.AppendTo(dst), text...)
}

// readServer serves a channel to read from.
type readServer struct {
	impl storage.StreamPlugin
	conn net.Conn
	part storage.Partition
	buf  []byte
}

func (s *readServer) run() {
	var head [storeframe.RequestBytes]byte
	var out [storeframe.AnswerBytes + storeframe.TextMax]byte
	for {
		if _, err := io.ReadFull(s.conn, head[:]); err != nil {
			return
		}
		r, err := storeframe.ParseRequest(head[:])
		if err != nil || r.Op != storeframe.OpRead {
			return
		}
		batches, err := s.impl.Read(context.Background(), storage.ReadRequest{Partition: s.part, Offset: r.Base, Limit: r.Limit, Into: s.buf})
		if err == nil && (len(batches) == 0 || len(batches) > storeframe.PayloadMax) {
			err = fmt.Errorf("%w: a read of %d bytes", ErrFailed, len(batches))
		}
		answer := storeframe.Answer{Op: r.Op, Base: r.Base}
		if err != nil {
			if _, err := s.conn.Write(appendAnswer(out[:0], answer, err)); err != nil {
				return
			}
			continue
		}
		answer.Length = len(batches)
		frame := net.Buffers{answer.AppendTo(out[:0]), batches}
		if _, err := frame.WriteTo(s.conn); err != nil {
			return
		}
		if cap(batches) <= keepMax {
			s.buf = batches[:0]
		}
	}
}
